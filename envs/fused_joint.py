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

from synergy_gym.envs.fused import (
    FusedStep,
    mark_dirty,
    observe_request,
    outcome,
    send_request,
    usable_arena,
)
from synergy_gym.envs.fused_engine import choose
from synergy_gym.features import (
    ENGINE_SCALE_SIZE,
    NUM_ENGINE_FEATURES,
    NUM_REQUEST_FEATURES,
    NUM_ROUTER_FEATURES,
    ROUTER_CLASS_SCALE_SIZE,
    ROUTER_COMMON_SCALE_SIZE,
    ROUTER_ENGINE_SCALE_SIZE,
    write_engine_features,
)
from synergy_gym.jit import direct, hot, kernel
from synergy_gym.observation import Float32Array
from synergy_gym.sim.clock import advance, take_batch
from synergy_gym.sim.exports import write_state
from synergy_gym.sim.layout import H_E, H_ENG, H_NOW, H_PENG, H_SLO_CLASSES, H_STATE, H_STRIDE
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import IntArray

JointOutcome = tuple[int, int, float, float, int]
"""(kind of the next point, the engine that a BATCH point is about, seconds passed, SLOs met,
iterations planned)."""

HELD_UNTIL, HELD_ACTION = 0, 1
"""Columns of the held decisions: the instant (ns) until which an engine's holds, and its action."""


@hot
def _router_at(a):  # type: ignore[no-untyped-def]
    """Where the router's own observation starts in `io`."""
    per_engine = a[H_E] * ROUTER_ENGINE_SCALE_SIZE
    return per_engine + ROUTER_COMMON_SCALE_SIZE + ROUTER_CLASS_SCALE_SIZE * a[H_SLO_CLASSES]


@kernel
def _observe(a, io, point):  # type: ignore[no-untyped-def]
    """Write the joint observation of a decision point."""
    router, size = _router_at(a), NUM_REQUEST_FEATURES + NUM_ROUTER_FEATURES * a[H_E]
    scales = router + size
    flag = scales + a[H_E] * ENGINE_SCALE_SIZE
    part = flag + 1 + size
    if point == ROUTE:
        observe_request(a, io)
        io[flag] = 0.0
        for k in range(size):
            io[flag + 1 + k] = io[router + k]
        for k in range(NUM_ENGINE_FEATURES):
            io[part + k] = 0.0
        return
    e = a[H_ENG] + a[H_PENG] * a[H_STRIDE]
    if io[flag] == 0.0:
        io[flag] = 1.0
        for k in range(size):
            io[flag + 1 + k] = 0.0
    write_state(a, 0, e, a, a[H_STATE])
    scale = io[scales + a[H_PENG] * ENGINE_SCALE_SIZE :]  # a view costs nothing without NRT
    write_engine_features(a, a[H_STATE], scale, io, part)


@kernel
def _plan(a, controls, held):  # type: ignore[no-untyped-def]
    """Plan the iteration of a BATCH point by the decision that the engine holds."""
    i = a[H_PENG]
    e = a[H_ENG] + i * a[H_STRIDE]
    choose(a, e, controls[i], held[i], HELD_ACTION)
    take_batch(a, 0, e)


@kernel
def _go_on(a, io, controls, held, iterations):  # type: ignore[no-untyped-def]
    """Repeat held decisions up to the next point where the agent decides, and observe it."""
    point = advance(a, 0)
    while point == BATCH and a[H_NOW] < held[a[H_PENG], HELD_UNTIL]:
        _plan(a, controls, held)
        iterations += 1
        point = advance(a, 0)
    if point != DONE:
        _observe(a, io, point)
    _, dt_s, reward = outcome(a, point)
    return np.int64(point), a[H_PENG], dt_s, reward, np.int64(iterations)


@kernel
def _route(a, io, controls, held, engine):  # type: ignore[no-untyped-def]
    send_request(a, engine)
    return _go_on(a, io, controls, held, 0)


@kernel
def _batch(a, io, controls, held):  # type: ignore[no-untyped-def]
    _plan(a, controls, held)
    return _go_on(a, io, controls, held, 1)


class JointStep:
    """The two kinds of step of an episode, on the arrays of `joint_stepper`.

    Args:
        arena: the simulator's memory.
        io: scales and observations.
        controls: what the actions of each engine mean (`engine_control`), a row each.
        held: what each engine has decided: the table of `HeldDecisions`.
    """

    def __init__(
        self, arena: IntArray, io: Float32Array, controls: IntArray, held: IntArray
    ) -> None:
        self._arrays = arena, io, controls, held
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
    """Compiled steps of a cluster whose every decision the agent takes; `None` without an arena.

    Returns the steps, and the arrays that they work on as the environments hold them. At the end
    of the episode the observation is left alone.
    """
    arena = usable_arena(simulator)
    if arena is None:
        return None
    mark_dirty(arena)
    router = NUM_REQUEST_FEATURES + NUM_ROUTER_FEATURES * len(engine_scales)
    joint = np.zeros(1 + router + NUM_ENGINE_FEATURES, np.float32)
    io = np.concatenate([router_scale, np.zeros(router, np.float32), *engine_scales, joint])
    step = JointStep(arena, io, controls, held)
    entry: Any = step.route
    return step, FusedStep(entry, io, io[-len(joint) :])
