"""A whole step as one compiled call: take the decision, simulate, observe.

Equal to `batch()` or `route()`, `advance()` and the views, without a Python object in
between. Works on simulators that show their `arena`, and where nothing else has to happen
between two decisions (no Python policy, no shaping, no live picture).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from synergy_gym.features import (
    ENGINE_SCALE_SIZE,
    NUM_REQUEST_FEATURES,
    NUM_ROUTER_FEATURES,
    ROUTER_CLASS_SCALE_SIZE,
    ROUTER_COMMON_SCALE_SIZE,
    ROUTER_ENGINE_SCALE_SIZE,
    RequestField,
    write_engine_features,
    write_request,
    write_router_ages,
    write_router_row,
)
from synergy_gym.jit import direct, kernel
from synergy_gym.observation import Float32Array
from synergy_gym.sim.clock import advance, take_batch, take_route
from synergy_gym.sim.exports import write_state
from synergy_gym.sim.layout import (
    ATTEMPT_MASK,
    ATTEMPT_SHIFT,
    CLASS_MASK,
    E_MAX_SEQS,
    E_MAX_TOKENS,
    F_META,
    F_PROMPT,
    H_CHECK,
    H_E,
    H_ENG,
    H_MET,
    H_NOW,
    H_PREQ,
    H_REQ,
    H_REQUEST,
    H_ROWS,
    H_SEEN_MET,
    H_SEEN_NOW,
    H_SESSION,
    H_SESSION_TABLE,
    H_SLO_CLASSES,
    H_STATE,
    H_STRIDE,
    P_BUDGET,
    P_CAP,
    P_CHUNK,
    PRIORITY_SHIFT,
    REQUEST_SIZE,
    T_DIRTY,
)
from synergy_gym.sim.points import DONE, ROUTE
from synergy_gym.sim.telemetry import ROW_SIZE, refresh_rows
from synergy_gym.types import NS_PER_S, IntArray

Outcome = tuple[Any, ...]
"""(kind of the next point, seconds passed, requests that met their SLOs meanwhile).

Where decisions can hold for an interval, the number of iterations follows.
"""

ILLEGAL = -1
"""In place of a decision point: the action does not exist, nothing has happened."""

_NOW, _PROMPT = int(RequestField.NOW_NS), int(RequestField.PROMPT_TOKENS)
_SESSION, _AGE = int(RequestField.SESSION_ENGINE), int(RequestField.SESSION_AGE_NS)
_ATTEMPT, _CLASS = int(RequestField.ATTEMPT), int(RequestField.SLO_CLASS)
_PRIORITY = int(RequestField.PRIORITY)
_EXPECTED = int(RequestField.EXPECTED_OUTPUT_MILLITOKENS)


@kernel
def outcome(a, point):  # type: ignore[no-untyped-def]
    """(point, seconds passed, SLOs met) since the last step."""
    dt_s = (a[H_NOW] - a[H_SEEN_NOW]) / NS_PER_S
    reward = float(a[H_MET] - a[H_SEEN_MET])
    if point != DONE:
        a[H_SEEN_NOW] = a[H_NOW]
        a[H_SEEN_MET] = a[H_MET]
    return np.int64(point), dt_s, reward


@kernel
def _step_engine(a, io, budget, cap):  # type: ignore[no-untyped-def]
    e = a[H_ENG]
    if not (0 <= budget < a[e + E_MAX_TOKENS] and 0 <= cap < a[e + E_MAX_SEQS]):
        return np.int64(ILLEGAL), 0.0, 0.0
    budget, cap = budget + 1, cap + 1
    a[e + P_BUDGET], a[e + P_CAP], a[e + P_CHUNK] = budget, cap, 0
    take_batch(a, 0, e)
    point = advance(a, 0)
    write_state(a, 0, e, a, a[H_STATE])
    write_engine_features(a, a[H_STATE], io, io, ENGINE_SCALE_SIZE)
    return outcome(a, point)


@kernel
def _session_slot(a, r):  # type: ignore[no-untyped-def]
    """Where the table remembers the session of request `r`; 0 without one."""
    if a[H_SESSION_TABLE] == 0 or a[a[H_SESSION] + r] < 0:
        return 0
    return a[H_SESSION_TABLE] + 2 * a[a[H_SESSION] + r]


@kernel
def _write_request_vector(a, request, at):  # type: ignore[no-untyped-def]
    r = a[H_PREQ]
    q = a[H_REQ] + r * REQUEST_SIZE
    meta, slot, now = a[q + F_META], _session_slot(a, r), a[H_NOW]
    engine = a[slot] if slot else -1
    request[at + _NOW] = now
    request[at + _PROMPT] = a[q + F_PROMPT]
    request[at + _SESSION] = engine
    request[at + _AGE] = now - a[slot + 1] if engine >= 0 else -1
    request[at + _ATTEMPT] = ((meta >> ATTEMPT_SHIFT) & ATTEMPT_MASK) - 1
    request[at + _CLASS] = meta & CLASS_MASK
    request[at + _PRIORITY] = meta >> PRIORITY_SHIFT
    request[at + _EXPECTED] = -1


@kernel
def _write_observation(a, io, engines):  # type: ignore[no-untyped-def]
    """`write_router_features`, leaving the blocks of engines whose rows have not changed."""
    common = engines * ROUTER_ENGINE_SCALE_SIZE
    at = common + ROUTER_COMMON_SCALE_SIZE + ROUTER_CLASS_SCALE_SIZE * a[H_SLO_CLASSES]
    blocks = at + NUM_REQUEST_FEATURES
    write_request(a, a[H_REQUEST], io, common, io, at)
    write_router_ages(a, a[H_ROWS], engines, a, a[H_REQUEST], io, blocks)
    for i in range(engines):
        e = a[H_ENG] + i * a[H_STRIDE]
        if a[e + T_DIRTY] != 0:
            a[e + T_DIRTY] = 0
            row, scale = a[H_ROWS] + i * ROW_SIZE, i * ROUTER_ENGINE_SCALE_SIZE
            write_router_row(a, row, io, scale, common, io, blocks + i * NUM_ROUTER_FEATURES)


@kernel
def send_request(a, engine):  # type: ignore[no-untyped-def]
    """Hand the request of the ROUTE point to an engine that exists and is up."""
    slot = _session_slot(a, a[H_PREQ])
    if slot:
        a[slot], a[slot + 1] = engine, a[H_NOW]
    take_route(a, 0, engine)


@kernel
def observe_request(a, io):  # type: ignore[no-untyped-def]
    """Write what the router sees at a ROUTE point behind its scales in `io`."""
    _write_request_vector(a, a, a[H_REQUEST])
    refresh_rows(a, 0, a[H_E], a[H_NOW])
    _write_observation(a, io, a[H_E])


@kernel
def step_router(a, io, engine):  # type: ignore[no-untyped-def]
    """Route, go on to the next arrival, and observe."""
    if not 0 <= engine < a[H_E]:
        return np.int64(ILLEGAL), 0.0, 0.0
    send_request(a, engine)
    point = advance(a, 0)
    if point == ROUTE:
        observe_request(a, io)
    return outcome(a, point)


class FusedStep(NamedTuple):
    """A compiled step, its scales and observation in one array, and the latter alone."""

    step: Callable[..., Outcome]
    io: Float32Array
    observation: Float32Array


def joined(scale: Float32Array, size: int) -> Float32Array:
    """Scales and observation in one array: each further array argument costs time."""
    return np.concatenate([scale, np.zeros(size, np.float32)])


def usable_arena(simulator: Any) -> IntArray | None:
    """The memory that a compiled step works on; `None` where something must watch each step."""
    arena: IntArray | None = getattr(simulator, "arena", None)
    return None if arena is None or arena[H_CHECK] else arena


def engine_stepper(simulator: Any, scale: Float32Array, size: int) -> FusedStep | None:
    """`step(token_budget - 1, max_running - 1)` of one engine, or `None` without an arena.

    An illegal argument changes nothing and gives the point `ILLEGAL`. The observation has
    `size` numbers.
    """
    arena = usable_arena(simulator)
    if arena is None:
        return None
    io = joined(scale, size)
    return FusedStep(partial(direct(_step_engine), arena, io), io, io[len(scale) :])


def router_stepper(simulator: Any, scale: Float32Array, size: int) -> FusedStep | None:
    """`step(engine)` of a cluster whose engines all follow rules, or `None` without an arena.

    The engine must be up; one that does not exist gives the point `ILLEGAL`. The observation
    has `size` numbers and is left alone at the end of the episode.
    """
    arena = usable_arena(simulator)
    if arena is None:
        return None
    mark_dirty(arena)
    io = joined(scale, size)
    return FusedStep(partial(direct(step_router), arena, io), io, io[len(scale) :])


def mark_dirty(arena: IntArray) -> None:
    """Have the block of every engine written anew with the next router observation."""
    for i in range(int(arena[H_E])):
        arena[arena[H_ENG] + i * arena[H_STRIDE] + T_DIRTY] = 1


def mark_seen(arena: IntArray, now_ns: int, met: int) -> None:
    """The environment has reported everything up to `now_ns`, with `met` SLOs met."""
    arena[H_SEEN_NOW], arena[H_SEEN_MET] = now_ns, met


def seen(arena: IntArray) -> tuple[int, int]:
    """What the last fused step that did not end the episode had reported: (now_ns, met)."""
    return int(arena[H_SEEN_NOW]), int(arena[H_SEEN_MET])
