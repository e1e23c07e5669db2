"""One compiled call steps many simulators: arenas are reached by their addresses.

Each sub-environment has a row in a table (int64): where its arena, its scales with the last
observation, and its control vector lie, how long they are, and who steps it. The arrays
themselves stay with their simulators, which must outlive the table's row.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from synergy_gym.envs.fused import outcome, step_router
from synergy_gym.envs.fused_engine import is_legal, play_action
from synergy_gym.jit import hot, kernel
from synergy_gym.observation import Float32Array
from synergy_gym.sim.points import DONE
from synergy_gym.types import IntArray

(
    V_WHO,
    V_ARENA,
    V_ARENA_SIZE,
    V_IO,
    V_IO_SIZE,
    V_CONTROL,
    V_CONTROL_SIZE,
) = range(7)
VECTOR_ROW = 8
"""Numbers per sub-environment."""

WHO_NOBODY = 0
"""Its episode is over: it is left alone, whatever its action says."""
WHO_KERNEL = 1
"""Stepped by the compiled call."""
WHO_PYTHON = 2
"""Its action is checked; its step is taken in Python."""


def write_row(
    table: IntArray,
    i: int,
    who: int,
    control: IntArray | None = None,
    arena: IntArray | None = None,
    io: Float32Array | None = None,
) -> None:
    """Enter who steps sub-environment `i`, and where its arrays lie."""
    table[i] = 0
    table[i, V_WHO] = who
    places = ((V_CONTROL, control), (V_ARENA, arena), (V_IO, io))
    for at, array in places:
        if array is not None:
            table[i, at], table[i, at + 1] = array.ctypes.data, array.size


def _array_of(kind: Any) -> Any:
    """A compiler intrinsic: the contiguous array at an address, without an owner."""

    @intrinsic
    def array(typing_context, address, size):  # type: ignore[no-untyped-def]
        del typing_context, address, size
        result = types.Array(kind, 1, "C")

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            made = make_array(signature.return_type)(context, builder)
            pointer = context.get_data_type(kind).as_pointer()
            item = context.get_constant(types.intp, kind.bitwidth // 8)
            populate_array(
                made,
                data=builder.inttoptr(arguments[0], pointer),
                shape=[arguments[1]],
                strides=[item],
                itemsize=item,
                meminfo=None,
            )
            return made._getvalue()

        return result(types.int64, types.int64), generate

    return array


_int64s = _array_of(types.int64)
_float32s = _array_of(types.float32)


@hot
def _show(io, observations, i):  # type: ignore[no-untyped-def]
    size = observations.shape[1]
    begin = len(io) - size
    for k in range(size):
        observations[i, k] = io[begin + k]


@kernel
def step_engines(  # type: ignore[no-untyped-def]
    table, actions, observations, rewards, dt_s, ended, iterations
):
    """Step every engine whose row says so; all arrays are contiguous.

    Args:
        table: the rows, flat.
        actions: int64 `(num_envs, numbers of an action)`.
        observations: float32 `(num_envs, size)`; written where stepped.
        rewards: float64, requests that met their SLOs; 0 where not stepped.
        dt_s: float64, simulated seconds; 0 where not stepped.
        ended: bool, whether the episode is over.
        iterations: int64, iterations of the step; empty: not asked for.

    Returns:
        How many episodes ended; -1 - i if the action of sub-environment i is illegal, and then
        nothing has happened anywhere.
    """
    width, flat = actions.shape[1], actions.reshape(actions.size)
    for i in range(len(rewards)):
        t = i * VECTOR_ROW
        c = _int64s(table[t + V_CONTROL], table[t + V_CONTROL_SIZE])
        if table[t + V_WHO] != WHO_NOBODY and not is_legal(c, flat, i * width):
            return -1 - i
    done = 0
    for i in range(len(rewards)):
        t = i * VECTOR_ROW
        rewards[i], dt_s[i], ended[i] = 0.0, 0.0, False
        if table[t + V_WHO] != WHO_KERNEL:
            continue
        a = _int64s(table[t + V_ARENA], table[t + V_ARENA_SIZE])
        io = _float32s(table[t + V_IO], table[t + V_IO_SIZE])
        c = _int64s(table[t + V_CONTROL], table[t + V_CONTROL_SIZE])
        point, count = play_action(a, io, c, flat, i * width)
        _, dt_s[i], rewards[i] = outcome(a, point)
        _show(io, observations, i)
        ended[i] = point == DONE
        done += point == DONE
        if len(iterations) > 0:
            iterations[i] = count
    return done


@kernel
def step_routers(table, actions, observations, rewards, dt_s, ended, engines):  # type: ignore[no-untyped-def]
    """Route one request in every cluster whose row says so; see `step_engines`.

    `engines` is the number of engines; the observation at the end of an episode is left to
    the caller.
    """
    for i in range(len(rewards)):
        if table[i * VECTOR_ROW + V_WHO] != WHO_NOBODY and not 0 <= actions[i] < engines:
            return -1 - i
    done = 0
    for i in range(len(rewards)):
        t = i * VECTOR_ROW
        rewards[i], dt_s[i], ended[i] = 0.0, 0.0, False
        if table[t + V_WHO] != WHO_KERNEL:
            continue
        a = _int64s(table[t + V_ARENA], table[t + V_ARENA_SIZE])
        io = _float32s(table[t + V_IO], table[t + V_IO_SIZE])
        point, dt_s[i], rewards[i] = step_router(a, io, actions[i])
        _show(io, observations, i)
        ended[i] = point == DONE
        done += point == DONE
    return done
