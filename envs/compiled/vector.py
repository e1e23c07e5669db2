"""One compiled call steps many simulators: their memories are reached by address.

Each sub-environment has a row in a table (int64): where its memory, its scales with the last
observation, and its control vector lie, and who steps it. The arrays
themselves stay with their simulators, which must outlive the table's row.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.envs.compiled.engine import is_legal, play_action
from synergy_gym.envs.compiled.joint import play_joint
from synergy_gym.envs.compiled.step import ANY, outcome, play_route
from synergy_gym.jit import inner, kernel
from synergy_gym.observation import Float32Array
from synergy_gym.sim.compiled.reach import engine_of, world_at
from synergy_gym.sim.compiled.records import float32s, int64s
from synergy_gym.sim.memory import Memory
from synergy_gym.sim.points import DONE
from synergy_gym.types import IntArray

V_WHO, V_MEMORY, V_IO, V_IO_SIZE, V_CONTROL, V_CONTROL_SIZE, V_HELD, V_INTERVAL = range(8)
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
    memory: Memory | None = None,
    io: Float32Array | None = None,
) -> None:
    """Enter who steps sub-environment `i`, and where its arrays lie."""
    table[i] = 0
    table[i, V_WHO] = who
    if control is not None:
        table[i, V_CONTROL] = control.ctypes.data
        table[i, V_CONTROL_SIZE] = control.shape[-1]
    if memory is not None:
        table[i, V_MEMORY] = memory.address
    if io is not None:
        table[i, V_IO], table[i, V_IO_SIZE] = io.ctypes.data, io.size


def write_held(table: IntArray, i: int, held: IntArray, interval_ns: int) -> None:
    """Enter where the held decisions of sub-environment `i` lie, and how long a new one holds."""
    table[i, V_HELD], table[i, V_INTERVAL] = held.ctypes.data, interval_ns


@inner
def _show(io, observations, ended, i, point):  # type: ignore[no-untyped-def]
    """Hand on what a step has led to; 1 if its episode is over."""
    size = observations.shape[1]
    begin = len(io) - size
    for k in range(size):
        observations[i, k] = io[begin + k]
    ended[i] = point == DONE
    return np.int64(ended[i])


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
        if table[t + V_WHO] == WHO_NOBODY:
            continue  # its addresses lead nowhere
        if not is_legal(int64s(table[t + V_CONTROL], ANY), flat, i * width):
            return -1 - i
    done = 0
    for i in range(len(rewards)):
        t = i * VECTOR_ROW
        rewards[i], dt_s[i], ended[i] = 0.0, 0.0, False
        if table[t + V_WHO] != WHO_KERNEL:
            continue
        io = float32s(table[t + V_IO], table[t + V_IO_SIZE])
        c = int64s(table[t + V_CONTROL], ANY)
        point, count = play_action(table[t + V_MEMORY], io, c, flat, i * width)
        _, dt_s[i], rewards[i] = outcome(world_at(table[t + V_MEMORY]), point)
        done += _show(io, observations, ended, i, point)
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
        io = float32s(table[t + V_IO], table[t + V_IO_SIZE])
        point, dt_s[i], rewards[i] = play_route(table[t + V_MEMORY], io, actions[i])
        done += _show(io, observations, ended, i, point)
    return done


@kernel
def step_joints(  # type: ignore[no-untyped-def]
    table, actions, observations, rewards, dt_s, ended, iterations, turns, met_by
):
    """Take one decision of either layer in every cluster whose row says so; see `step_engines`.

    `turns` gets (kind of the next point, engine that a BATCH point is about), `met_by` the requests
    per engine that met their SLOs, both int64 with a row per sub-environment. The observation at
    the end of an episode is left to the caller.
    """
    width, flat, engines = actions.shape[1], actions.reshape(actions.size), met_by.shape[1]
    for i in range(len(rewards)):
        t = i * VECTOR_ROW
        if table[t + V_WHO] == WHO_NOBODY:
            continue  # its addresses lead nowhere
        control = int64s(table[t + V_CONTROL], table[t + V_CONTROL_SIZE])
        if not (0 <= actions[i, 0] < engines and is_legal(control, flat, i * width + 1)):
            return -1 - i
    done = 0
    for i in range(len(rewards)):
        t = i * VECTOR_ROW
        rewards[i], dt_s[i], ended[i] = 0.0, 0.0, False
        if table[t + V_WHO] != WHO_KERNEL:
            continue
        world = world_at(table[t + V_MEMORY])
        io = float32s(table[t + V_IO], table[t + V_IO_SIZE])
        point, count = play_joint(
            table[t + V_MEMORY], io, table[t + V_CONTROL], table[t + V_CONTROL_SIZE],
            table[t + V_HELD], width, table[t + V_INTERVAL], flat, i * width,
        )  # fmt: skip
        _, dt_s[i], rewards[i] = outcome(world, point)
        turns[i, 0], turns[i, 1] = point, world.point_engine
        for k in range(engines):
            engine = engine_of(world, k)
            met_by[i, k] = engine.met - engine.seen_met
            engine.seen_met = engine.met
        if len(iterations) > 0:
            iterations[i] = count
        done += _show(io, observations, ended, i, point)
    return done
