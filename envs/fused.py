"""A whole step as one compiled call: take the decision, simulate, observe.

Equal to `batch()` or `route()`, `advance()` and the views, without a Python object in
between. Works on simulators that show their `arena`, and where nothing else has to happen
between two decisions (no Python policy, no shaping, no live picture).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from synergy_gym.features import RequestField, write_engine_features, write_router_features
from synergy_gym.observation import Float32Array
from synergy_gym.sim.clock import advance, take_batch, take_route
from synergy_gym.sim.exports import write_state
from synergy_gym.sim.jit import kernel
from synergy_gym.sim.layout import (
    ATTEMPT_MASK,
    ATTEMPT_SHIFT,
    CLASS_MASK,
    F_META,
    F_PROMPT,
    H_E,
    H_ENG,
    H_MET,
    H_NOW,
    H_PREQ,
    H_REQ,
    H_ROWS,
    H_SESSION,
    H_SESSION_TABLE,
    P_BUDGET,
    P_CAP,
    P_CHUNK,
    PRIORITY_SHIFT,
    REQUEST_SIZE,
)
from synergy_gym.sim.points import ROUTE
from synergy_gym.sim.telemetry import refresh_rows
from synergy_gym.types import EngineStateField, FloatArray

Outcome = tuple[int, int, int]
"""(kind of the next point, its instant in ns, requests that met their SLOs so far)."""

_NOW, _PROMPT = int(RequestField.NOW_NS), int(RequestField.PROMPT_TOKENS)
_SESSION, _AGE = int(RequestField.SESSION_ENGINE), int(RequestField.SESSION_AGE_NS)
_ATTEMPT, _CLASS = int(RequestField.ATTEMPT), int(RequestField.SLO_CLASS)
_PRIORITY = int(RequestField.PRIORITY)
_EXPECTED = int(RequestField.EXPECTED_OUTPUT_MILLITOKENS)


@kernel
def _step_engine(a, scale, state, out, budget, cap):  # type: ignore[no-untyped-def]
    e = a[H_ENG]
    a[e + P_BUDGET], a[e + P_CAP], a[e + P_CHUNK] = budget, cap, 0
    take_batch(a, 0, e)
    point = advance(a, 0)
    write_state(a, 0, e, state)
    write_engine_features(state, 0, scale, out, 0)
    return point, a[H_NOW], a[H_MET]


@kernel
def _session_slot(a, r):  # type: ignore[no-untyped-def]
    """Where the table remembers the session of request `r`; 0 without one."""
    if a[H_SESSION_TABLE] == 0 or a[a[H_SESSION] + r] < 0:
        return 0
    return a[H_SESSION_TABLE] + 2 * a[a[H_SESSION] + r]


@kernel
def _write_request_vector(a, request):  # type: ignore[no-untyped-def]
    r = a[H_PREQ]
    q = a[H_REQ] + r * REQUEST_SIZE
    meta, slot, now = a[q + F_META], _session_slot(a, r), a[H_NOW]
    engine = a[slot] if slot else -1
    request[_NOW] = now
    request[_PROMPT] = a[q + F_PROMPT]
    request[_SESSION] = engine
    request[_AGE] = now - a[slot + 1] if engine >= 0 else -1
    request[_ATTEMPT] = ((meta >> ATTEMPT_SHIFT) & ATTEMPT_MASK) - 1
    request[_CLASS] = meta & CLASS_MASK
    request[_PRIORITY] = meta >> PRIORITY_SHIFT
    request[_EXPECTED] = -1


@kernel
def _step_router(a, scale, request, out, engine):  # type: ignore[no-untyped-def]
    slot = _session_slot(a, a[H_PREQ])
    if slot:
        a[slot], a[slot + 1] = engine, a[H_NOW]
    take_route(a, 0, engine)
    point = advance(a, 0)
    if point == ROUTE:
        _write_request_vector(a, request)
        refresh_rows(a, 0, a[H_E], a[H_NOW])
        write_router_features(a, a[H_ROWS], a[H_E], request, scale, out, 0)
    return point, a[H_NOW], a[H_MET]


def engine_stepper(
    simulator: Any, scale: FloatArray, out: Float32Array
) -> Callable[[int, int], Outcome] | None:
    """`step(token_budget, max_running)` of a single-engine simulator, or `None` without an arena.

    Both arguments must be legal. The observation is written to `out`.
    """
    arena = getattr(simulator, "arena", None)
    if arena is None:
        return None
    state = np.zeros(len(EngineStateField), np.int64)
    return partial(_step_engine, arena, scale, state, out)


def router_stepper(
    simulator: Any, scale: FloatArray, out: Float32Array
) -> Callable[[int], Outcome] | None:
    """`step(engine)` of a cluster whose engines all follow rules, or `None` without an arena.

    The engine must be up. The observation is written to `out`, except at the end of the episode.
    """
    arena = getattr(simulator, "arena", None)
    if arena is None:
        return None
    return partial(_step_router, arena, scale, np.zeros(len(RequestField), np.int64), out)
