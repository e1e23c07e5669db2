"""A step of the two-layer environment as one compiled call.

One float32 array holds the router's scales and its observation (kept from arrival to arrival,
because only what has changed is written), the scales of every engine, and the joint observation:
the flag of the layer, the router's part, the engine's part, of which one is zero.

An engine's decision may hold for an interval: then its later iterations are planned without a
step of the agent, between the decisions of the router and of other engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from synergy_gym.envs.compiled.engine import choose
from synergy_gym.envs.compiled.step import (
    ANY,
    FusedStep,
    mark_dirty,
    observe_engine,
    observe_request,
    outcome,
    usable_memory,
)
from synergy_gym.features import (
    ENGINE_SCALE_SIZE,
    NUM_ENGINE_FEATURES,
    NUM_REQUEST_FEATURES,
    NUM_ROUTER_FEATURES,
    ROUTER_CLASS_SCALE_SIZE,
    ROUTER_COMMON_SCALE_SIZE,
    ROUTER_ENGINE_SCALE_SIZE,
)
from synergy_gym.jit import direct, inner, kernel
from synergy_gym.observation import Float32Array
from synergy_gym.sim.compiled.clock import advance, take_batch, take_route
from synergy_gym.sim.compiled.reach import engine_of, world_at
from synergy_gym.sim.compiled.records import float32s, int64s
from synergy_gym.sim.memory import Memory
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import IntArray

JointOutcome = tuple[int, int, float, float, int]
"""(kind of the next point, the engine that a BATCH point is about, seconds passed, SLOs met,
iterations planned)."""

HELD_UNTIL, HELD_ACTION = 0, 1
"""Columns of the held decisions: the instant (ns) until which an engine's holds, and its action."""


@inner
def _router_at(world):  # type: ignore[no-untyped-def]
    """Where the router's own observation starts in `io`."""
    per_engine = world.num_engines * ROUTER_ENGINE_SCALE_SIZE
    return per_engine + ROUTER_COMMON_SCALE_SIZE + ROUTER_CLASS_SCALE_SIZE * world.num_slo_classes


@inner
def _observe(world, io, point):  # type: ignore[no-untyped-def]
    """Write the joint observation of a decision point."""
    router = _router_at(world)
    size = NUM_REQUEST_FEATURES + NUM_ROUTER_FEATURES * world.num_engines
    scales = router + size
    flag = scales + world.num_engines * ENGINE_SCALE_SIZE
    part = flag + 1 + size
    if point == ROUTE:
        observe_request(world, io)
        io[flag] = 0.0
        for k in range(size):
            io[flag + 1 + k] = io[router + k]
        for k in range(NUM_ENGINE_FEATURES):
            io[part + k] = 0.0
        return
    if io[flag] == 0.0:
        io[flag] = 1.0
        for k in range(size):
            io[flag + 1 + k] = 0.0
    i = world.point_engine
    scale = io[scales + i * ENGINE_SCALE_SIZE :]  # a view costs nothing without NRT
    observe_engine(world, engine_of(world, i), scale, io, part)


@inner
def _plan(address, controls, control_size, held, held_size):  # type: ignore[no-untyped-def]
    """Plan the iteration of a BATCH point by the decision that the engine holds."""
    world = world_at(address)
    i = world.point_engine
    control = int64s(controls + 8 * control_size * i, control_size)
    decision = int64s(held + 8 * held_size * i, held_size)
    choose(world, engine_of(world, i), control, decision, HELD_ACTION)
    take_batch(address)


@inner
def _holds(world, held, held_size):  # type: ignore[no-untyped-def]
    """Whether the engine of a BATCH point goes by its last decision."""
    decision = int64s(held + 8 * held_size * world.point_engine, held_size)
    return world.now_ns < decision[HELD_UNTIL]


@inner
def _go_on(  # type: ignore[no-untyped-def]
    address, io, controls, control_size, held, held_size, iterations
):
    """Repeat held decisions up to the next point where the agent decides, and observe it.

    Returns (kind of the point, iterations planned).
    """
    world = world_at(address)
    point = advance(address)
    while point == BATCH and _holds(world, held, held_size):
        _plan(address, controls, control_size, held, held_size)
        iterations += 1
        point = advance(address)
    if point != DONE:
        _observe(world, io, point)
    return point, iterations


@inner
def _outcome(address, point, iterations):  # type: ignore[no-untyped-def]
    world = world_at(address)
    _, dt_s, reward = outcome(world, point)
    return np.int64(point), world.point_engine, dt_s, reward, np.int64(iterations)


@kernel
def _route(  # type: ignore[no-untyped-def]
    address, io_address, controls, control_size, held, held_size, engine
):
    io = float32s(io_address, ANY)
    take_route(address, engine)
    point, count = _go_on(address, io, controls, control_size, held, held_size, 0)
    return _outcome(address, point, count)


@kernel
def _batch(address, io_address, controls, control_size, held, held_size):  # type: ignore[no-untyped-def]
    io = float32s(io_address, ANY)
    _plan(address, controls, control_size, held, held_size)
    point, count = _go_on(address, io, controls, control_size, held, held_size, 1)
    return _outcome(address, point, count)


@inner
def play_joint(  # type: ignore[no-untyped-def]
    address, io, controls, control_size, held, held_size, interval_ns, actions, at
):
    """Take the legal joint action at `actions[at:]` for whoever decides; as `_go_on`."""
    world = world_at(address)
    if world.point == ROUTE:
        take_route(address, actions[at])
        return _go_on(address, io, controls, control_size, held, held_size, 0)
    decision = int64s(held + 8 * held_size * world.point_engine, held_size)
    decision[HELD_UNTIL] = world.now_ns + interval_ns
    for k in range(held_size - 1):
        decision[HELD_ACTION + k] = actions[at + 1 + k]
    _plan(address, controls, control_size, held, held_size)
    return _go_on(address, io, controls, control_size, held, held_size, 1)


class JointStep:
    """The two kinds of step of an episode, on the arrays of `joint_stepper`.

    Args:
        memory: of the simulator.
        io: scales and observations.
        controls: what the actions of each engine mean (`engine_control`), a row each.
        held: what each engine has decided: the table of `HeldDecisions`.
    """

    def __init__(
        self, memory: Memory, io: Float32Array, controls: IntArray, held: IntArray
    ) -> None:
        self._kept = memory, io, controls, held  # the arguments are their addresses
        self._arrays = (
            memory.address,
            io.ctypes.data,
            controls.ctypes.data,
            controls.shape[1],
            held.ctypes.data,
            held.shape[1],
        )
        self._route, self._batch = direct(_route), direct(_batch)

    def route(self, engine: int) -> JointOutcome:
        """Send the request of a ROUTE point to an engine that exists and is up."""
        return self._route(*self._arrays, engine)  # type: ignore[no-any-return]

    def batch(self) -> JointOutcome:
        """Take the legal action that `held` has for the engine of a BATCH point."""
        return self._batch(*self._arrays)  # type: ignore[no-any-return]


def joint_stepper(
    simulator: Any,
    router_scale: Float32Array,
    engine_scales: Sequence[Float32Array],
    controls: IntArray,
    held: IntArray,
) -> tuple[JointStep, FusedStep] | None:
    """Compiled steps of a cluster whose every decision the agent takes; `None` without a memory.

    Returns the steps, and the arrays that they work on as the environments hold them. At the end
    of the episode the observation is left alone.
    """
    memory = usable_memory(simulator)
    if memory is None:
        return None
    mark_dirty(memory)
    router = NUM_REQUEST_FEATURES + NUM_ROUTER_FEATURES * len(engine_scales)
    joint = np.zeros(1 + router + NUM_ENGINE_FEATURES, np.float32)
    io = np.concatenate([router_scale, np.zeros(router, np.float32), *engine_scales, joint])
    step = JointStep(memory, io, controls, held)
    entry: Any = step.route
    return step, FusedStep(entry, io, io[-len(joint) :])
