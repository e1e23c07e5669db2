"""Observation features: bounded float32 numbers computed from the int64 state vectors.

Environments, learned policies and compiled steps call the same two kernels,
`write_engine_features` and `write_router_features`, so an agent sees in a real server
exactly what it saw in training. `EngineFeatures` and `RouterFeatures` are the Python face:
they take views and know the layout.

Every number is one of three forms, named in `Slot.formula`:

    share(x, c) = min(x / c, 1)   x is bounded by c anyway (the minimum guards transients)
    sat(x, c)   = x / (x + c)     x has no bound; c is where it reads 0.5, nothing is clipped
    flag(b)     = 1 if b else 0

Scales c come from the engine's own limits and the declared SLOs, so that the same value
means the same pressure on another GPU or model.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synergy_gym.jit import inner, kernel
from synergy_gym.observation import Float32Array, Group, ObservationLayout, Slot
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    ClusterView,
    EngineSpec,
    EngineStateField,
    EngineView,
    IntArray,
    RequestView,
    RouterRow,
)

DEFAULT_TTFT_S = 1.0
"""Time scale of waiting where no class declares a TTFT objective."""
DEFAULT_TPOT_S = 0.05
"""Time scale of an iteration where no class declares a TPOT objective."""
DEFAULT_E2E_S = 10.0
"""Time scale of a whole request where no class declares an E2E objective."""
PREEMPTION_SCALE = 8.0
PUSH_AGE_SCALE_S = 1.0
SCRAPE_AGE_SCALE_S = 10.0
SESSION_AGE_SCALE_S = 60.0
OUTPUT_SCALE_TOKENS = 256.0


class RequestField(IntEnum):
    """Slots of the request vector (int64): the arriving request as its router sees it."""

    NOW_NS = 0
    PROMPT_TOKENS = 1
    SESSION_ENGINE = 2
    """Engine that last got this session, -1 without one."""
    SESSION_AGE_NS = 3
    """Time since then, -1 without one."""
    ATTEMPT = 4
    """Retries so far."""
    SLO_CLASS = 5
    PRIORITY = 6
    EXPECTED_OUTPUT_MILLITOKENS = 7
    """Published expectation of the output length in thousandths of a token, -1 without one."""


ENGINE_GROUPS = (
    Group(
        "running",
        (
            Slot("requests", "share(RUNNING, max_num_seqs)"),
            Slot("decodes", "share(DECODES, max_num_seqs)"),
            Slot("prefill_tokens", "sat(PREFILL_TOKENS, max_num_batched_tokens)"),
            Slot("decode_context", "sat(DECODE_CONTEXT_TOKENS, KV capacity in tokens)"),
            Slot("mean_context", "share(DECODE_CONTEXT_TOKENS / DECODES, max_model_len)"),
        ),
    ),
    Group(
        "waiting",
        (
            Slot("requests", "sat(WAITING, max_num_seqs)"),
            Slot("tokens", "sat(WAITING_TOKENS, max_num_batched_tokens)"),
            Slot("mean_tokens", "share(WAITING_TOKENS / WAITING, max_model_len)"),
            Slot("head_wait", "sat(HEAD_WAIT_NS, tightest TTFT objective)"),
        ),
    ),
    Group(
        "kv",
        (
            Slot("free", "share(KV_FREE_BLOCKS, KV_TOTAL_BLOCKS)"),
            Slot("total", "share(KV_TOTAL_BLOCKS, kv_blocks of the spec)"),
        ),
    ),
    Group(
        "last_step",
        (
            Slot("duration", "sat(LAST_STEP_NS, tightest TPOT objective)"),
            Slot("sequences", "share(LAST_SEQUENCES, max_num_seqs)"),
            Slot("tokens", "share(LAST_TOKENS, max_num_batched_tokens)"),
            Slot("decodes", "share(LAST_DECODES, max_num_seqs)"),
            Slot("preempted", "sat(LAST_PREEMPTED, 8)"),
            Slot("budget", "share(LAST_BUDGET, max_num_batched_tokens)"),
        ),
    ),
)
"""The engine observation; upper-case names are `EngineStateField`s."""

REQUEST_SLOTS = (
    Slot("prompt", "sat(PROMPT_TOKENS, largest max_num_batched_tokens)"),
    Slot("prompt_share", "share(PROMPT_TOKENS, largest max_model_len)"),
    Slot("expected_output", "sat(EXPECTED_OUTPUT_MILLITOKENS / 1000, 256); 0 without one"),
    Slot("has_session", "flag(SESSION_ENGINE >= 0)"),
    Slot("session_freshness", "1 - sat(SESSION_AGE_NS, 60 s); 0 without a session"),
    Slot("attempt", "sat(ATTEMPT, 1)"),
    Slot("priority", "PRIORITY / (|PRIORITY| + 1)", low=-1.0),
    Slot("slo_ttft", "sat(TTFT objective of its class, 1 s); 1 without one"),
    Slot("slo_tpot", "sat(TPOT objective of its class, 0.05 s); 1 without one"),
    Slot("slo_e2e", "sat(E2E objective of its class, 10 s); 1 without one"),
)
"""The request part of the router observation; upper-case names are `RequestField`s."""

ROUTER_SLOTS = (
    Slot("router.alive", "flag(ALIVE)"),
    Slot("router.weight", "weight / largest weight"),
    Slot("router.session", "flag(SESSION_ENGINE is this engine)"),
    Slot("router.in_flight", "sat(IN_FLIGHT, max_num_seqs)"),
    Slot("router.in_flight_tokens", "sat(IN_FLIGHT_TOKENS, KV capacity in tokens)"),
    Slot("router.routed_tokens", "sat(ROUTED_SINCE_PUSH, max_num_batched_tokens)"),
    Slot("pushed.age", "sat(NOW_NS - PUSH_NS, 1 s)"),
    Slot("pushed.running", "share(PUSH_RUNNING, max_num_seqs)"),
    Slot("pushed.waiting", "sat(PUSH_WAITING, max_num_seqs)"),
    Slot("pushed.kv_usage", "share(PUSH_USED_BLOCKS, PUSH_TOTAL_BLOCKS)"),
    Slot("pushed.pending_tokens", "sat(PUSH_PENDING_TOKENS, max_num_batched_tokens)"),
    Slot("pushed.step", "sat(PUSH_STEP_NS, tightest TPOT objective)"),
    Slot("pushed.step_tokens", "share(PUSH_STEP_MILLITOKENS / 1000, max_num_batched_tokens)"),
    Slot("scraped.age", "sat(NOW_NS - SCRAPE_NS, 10 s)"),
    Slot("scraped.running", "share(SCRAPE_RUNNING, max_num_seqs)"),
    Slot("scraped.waiting", "sat(SCRAPE_WAITING, max_num_seqs)"),
    Slot("scraped.kv_usage", "share(SCRAPE_USED_BLOCKS, SCRAPE_TOTAL_BLOCKS)"),
    Slot("scraped.ttft", "sat(SCRAPE_TTFT_NS, tightest TTFT objective)"),
    Slot("scraped.tpot", "sat(SCRAPE_TPOT_NS, tightest TPOT objective)"),
    Slot("scraped.e2e", "sat(SCRAPE_E2E_NS, tightest E2E objective)"),
    Slot("scraped.finished", "sat(SCRAPE_FINISHED, max_num_seqs)"),
)
"""The per-engine part of the router observation; upper-case names are `RouterRow`s."""

NUM_ENGINE_FEATURES = sum(group.size for group in ENGINE_GROUPS)
NUM_REQUEST_FEATURES = len(REQUEST_SLOTS)
NUM_ROUTER_FEATURES = len(ROUTER_SLOTS)

ENGINE_SCALE_SIZE = 7
ROUTER_ENGINE_SCALE_SIZE = 4
ROUTER_COMMON_SCALE_SIZE = 5
ROUTER_CLASS_SCALE_SIZE = 3


def engine_layout() -> ObservationLayout:
    """Layout of the engine observation."""
    return ObservationLayout(ENGINE_GROUPS)


def router_layout(engines: int) -> ObservationLayout:
    """Layout of the router observation: the request, then one block per engine.

    `observation[layout["engines"]].reshape(engines, NUM_ROUTER_FEATURES)` is the table.
    """
    return ObservationLayout(
        (Group("request", REQUEST_SLOTS), Group("engines", ROUTER_SLOTS, engines))
    )


def engine_scale(spec: EngineSpec, slos: Sequence[SLO]) -> Float32Array:
    """The float32 scales that `write_engine_features` divides by."""
    return np.array(
        [
            spec.max_num_seqs,
            spec.max_num_batched_tokens,
            spec.kv_blocks * spec.block_size,
            spec.kv_blocks,
            spec.max_model_len,
            _tightest(slos, "ttft_s", DEFAULT_TTFT_S),
            _tightest(slos, "tpot_s", DEFAULT_TPOT_S),
        ],
        np.float32,
    )


def router_scale(engines: Sequence[EngineSpec], slos: Sequence[SLO]) -> Float32Array:
    """The float32 scales of `write_router_features`: per engine, common, per SLO class."""
    heaviest = max(spec.weight for spec in engines)
    values: list[float] = []
    for spec in engines:
        weight = spec.weight / heaviest if heaviest > 0 else 1.0
        kv_tokens = spec.kv_blocks * spec.block_size
        values += [spec.max_num_seqs, spec.max_num_batched_tokens, kv_tokens, weight]
    values.append(max(spec.max_num_batched_tokens for spec in engines))
    values.append(max(spec.max_model_len for spec in engines))
    values.append(_tightest(slos, "ttft_s", DEFAULT_TTFT_S))
    values.append(_tightest(slos, "tpot_s", DEFAULT_TPOT_S))
    values.append(_tightest(slos, "e2e_s", DEFAULT_E2E_S))
    for slo in slos:
        values.append(_objective(slo.ttft_s, DEFAULT_TTFT_S))
        values.append(_objective(slo.tpot_s, DEFAULT_TPOT_S))
        values.append(_objective(slo.e2e_s, DEFAULT_E2E_S))
    return np.array(values, np.float32)


def _tightest(slos: Sequence[SLO], name: str, default_s: float) -> float:
    declared = [value for slo in slos if (value := getattr(slo, name)) is not None and value > 0]
    return min(declared, default=default_s) * NS_PER_S


def _objective(value_s: float | None, scale_s: float) -> float:
    return 1.0 if value_s is None else value_s / (value_s + scale_s)


@inner
def _sat(x, c):  # type: ignore[no-untyped-def]
    return x / (x + c)


@inner
def _share(x, c):  # type: ignore[no-untyped-def]
    return min(x / c, 1.0)


_S = EngineStateField
_RUNNING, _WAITING, _DECODES = int(_S.RUNNING), int(_S.WAITING), int(_S.DECODES)
_PREFILL, _WAITING_TOKENS = int(_S.PREFILL_TOKENS), int(_S.WAITING_TOKENS)
_CONTEXT, _HEAD_WAIT = int(_S.DECODE_CONTEXT_TOKENS), int(_S.HEAD_WAIT_NS)
_KV_FREE, _KV_TOTAL = int(_S.KV_FREE_BLOCKS), int(_S.KV_TOTAL_BLOCKS)
_LAST_NS, _LAST_SEQS = int(_S.LAST_STEP_NS), int(_S.LAST_SEQUENCES)
_LAST_TOKENS, _LAST_DECODES = int(_S.LAST_TOKENS), int(_S.LAST_DECODES)
_LAST_PREEMPTED, _LAST_BUDGET = int(_S.LAST_PREEMPTED), int(_S.LAST_BUDGET)


@kernel
def write_engine_features(state, so, scale, out, oo):  # type: ignore[no-untyped-def]
    """Write `NUM_ENGINE_FEATURES` numbers to `out[oo:]` from the state vector at `state[so:]`.

    `state` is int64 (`EngineStateField`), `scale` is `engine_scale(...)`, `out` float32; all
    are one-dimensional. The formulas stand in `ENGINE_GROUPS`.
    """
    seqs, tokens, model_len = scale[0], scale[1], scale[4]
    context, decodes = state[so + _CONTEXT], state[so + _DECODES]
    waiting, waiting_tokens = state[so + _WAITING], state[so + _WAITING_TOKENS]
    out[oo] = _share(state[so + _RUNNING], seqs)
    out[oo + 1] = _share(decodes, seqs)
    out[oo + 2] = _sat(state[so + _PREFILL], tokens)
    out[oo + 3] = _sat(context, scale[2])
    out[oo + 4] = _share(context, max(decodes, 1) * model_len)
    out[oo + 5] = _sat(waiting, seqs)
    out[oo + 6] = _sat(waiting_tokens, tokens)
    out[oo + 7] = _share(waiting_tokens, max(waiting, 1) * model_len)
    out[oo + 8] = _sat(state[so + _HEAD_WAIT], scale[5])
    out[oo + 9] = _share(state[so + _KV_FREE], max(state[so + _KV_TOTAL], 1))
    out[oo + 10] = _share(state[so + _KV_TOTAL], scale[3])
    out[oo + 11] = _sat(state[so + _LAST_NS], scale[6])
    out[oo + 12] = _share(state[so + _LAST_SEQS], seqs)
    out[oo + 13] = _share(state[so + _LAST_TOKENS], tokens)
    out[oo + 14] = _share(state[so + _LAST_DECODES], seqs)
    out[oo + 15] = _sat(state[so + _LAST_PREEMPTED], PREEMPTION_SCALE)
    out[oo + 16] = _share(state[so + _LAST_BUDGET], tokens)


_ROW = len(RouterRow)
_PUSH_AGE = PUSH_AGE_SCALE_S * NS_PER_S
_SCRAPE_AGE = SCRAPE_AGE_SCALE_S * NS_PER_S
_SESSION_AGE = SESSION_AGE_SCALE_S * NS_PER_S
_OUTPUT = OUTPUT_SCALE_TOKENS * 1000
_R = RequestField
_NOW, _PROMPT, _ATTEMPT = int(_R.NOW_NS), int(_R.PROMPT_TOKENS), int(_R.ATTEMPT)
_SESSION, _AGE = int(_R.SESSION_ENGINE), int(_R.SESSION_AGE_NS)
_CLASS, _PRIORITY = int(_R.SLO_CLASS), int(_R.PRIORITY)
_EXPECTED = int(_R.EXPECTED_OUTPUT_MILLITOKENS)


@inner
def write_request(request, qo, scale, so, out, oo):  # type: ignore[no-untyped-def]
    """Write the `NUM_REQUEST_FEATURES` numbers of a request; `so` is where common scales start."""
    priority = request[qo + _PRIORITY]
    classes = so + ROUTER_COMMON_SCALE_SIZE + ROUTER_CLASS_SCALE_SIZE * request[qo + _CLASS]
    known = 1.0 if request[qo + _SESSION] >= 0 else 0.0
    out[oo] = _sat(request[qo + _PROMPT], scale[so])
    out[oo + 1] = _share(request[qo + _PROMPT], scale[so + 1])
    out[oo + 2] = _sat(max(request[qo + _EXPECTED], 0), _OUTPUT)
    out[oo + 3] = known
    out[oo + 4] = known * (_SESSION_AGE / (max(request[qo + _AGE], 0) + _SESSION_AGE))
    out[oo + 5] = _sat(request[qo + _ATTEMPT], 1.0)
    out[oo + 6] = priority / (abs(priority) + 1.0)
    out[oo + 7] = scale[classes]
    out[oo + 8] = scale[classes + 1]
    out[oo + 9] = scale[classes + 2]


@inner
def write_router_row(rows, r, scale, so, co, out, oo):  # type: ignore[no-untyped-def]
    """Write what changes only with an engine's row: all of its block but ages and session.

    The row starts at `rows[r]`, its scales at `scale[so]`, the common ones at `scale[co]`.
    """
    seqs, tokens = scale[so], scale[so + 1]
    out[oo] = 1.0 if rows[r] != 0 else 0.0
    out[oo + 1] = scale[so + 3]
    out[oo + 3] = _sat(rows[r + 1], seqs)
    out[oo + 4] = _sat(rows[r + 2], scale[so + 2])
    out[oo + 5] = _sat(rows[r + 3], tokens)
    out[oo + 7] = _share(rows[r + 5], seqs)
    out[oo + 8] = _sat(rows[r + 6], seqs)
    out[oo + 9] = _share(rows[r + 7], max(rows[r + 8], 1))
    out[oo + 10] = _sat(rows[r + 9], tokens)
    out[oo + 11] = _sat(rows[r + 10], scale[co + 3])
    out[oo + 12] = _share(rows[r + 11], 1000.0 * tokens)
    out[oo + 14] = _share(rows[r + 13], seqs)
    out[oo + 15] = _sat(rows[r + 14], seqs)
    out[oo + 16] = _share(rows[r + 15], max(rows[r + 16], 1))
    out[oo + 17] = _sat(rows[r + 17], scale[co + 2])
    out[oo + 18] = _sat(rows[r + 18], scale[co + 3])
    out[oo + 19] = _sat(rows[r + 19], scale[co + 4])
    out[oo + 20] = _sat(rows[r + 20], seqs)


@inner
def write_router_ages(rows, ro, engines, request, qo, out, oo):  # type: ignore[no-untyped-def]
    """Write what changes with every request: ages and the session flag of each block.

    `oo` is where the first engine's block starts.
    """
    now, session = request[qo + _NOW], request[qo + _SESSION]
    for engine in range(engines):
        r, o = ro + engine * _ROW, oo + engine * NUM_ROUTER_FEATURES
        out[o + 2] = 1.0 if engine == session else 0.0
        out[o + 6] = _sat(now - rows[r + 4], _PUSH_AGE)
        out[o + 13] = _sat(now - rows[r + 12], _SCRAPE_AGE)


@kernel
def write_router_features(rows, ro, engines, request, qo, scale, out, oo):  # type: ignore[no-untyped-def]
    """Write `NUM_REQUEST_FEATURES + engines * NUM_ROUTER_FEATURES` numbers to `out[oo:]`.

    `rows` is the router's int64 table, flattened, from `rows[ro]` on; `request` the vector of
    `RequestField`; `scale` is `router_scale(...)`; `out` float32. The formulas stand in
    `REQUEST_SLOTS` and `ROUTER_SLOTS`.
    """
    common = engines * ROUTER_ENGINE_SCALE_SIZE
    blocks = oo + NUM_REQUEST_FEATURES
    write_request(request, qo, scale, common, out, oo)
    write_router_ages(rows, ro, engines, request, qo, out, blocks)
    for engine in range(engines):
        so, o = engine * ROUTER_ENGINE_SCALE_SIZE, blocks + engine * NUM_ROUTER_FEATURES
        write_router_row(rows, ro + engine * _ROW, scale, so, common, out, o)


def request_vector(request: RequestView, cluster: ClusterView) -> IntArray:
    """The int64 vector of `RequestField` of an arriving request."""
    expected = request.expected_output_tokens
    vector = np.empty(len(RequestField), np.int64)
    vector[RequestField.NOW_NS] = cluster.now_ns
    vector[RequestField.PROMPT_TOKENS] = request.prompt_tokens
    vector[RequestField.SESSION_ENGINE] = cluster.session_engine
    vector[RequestField.SESSION_AGE_NS] = _session_age_ns(cluster)
    vector[RequestField.ATTEMPT] = request.attempt
    vector[RequestField.SLO_CLASS] = request.slo_class
    vector[RequestField.PRIORITY] = request.priority
    vector[RequestField.EXPECTED_OUTPUT_MILLITOKENS] = (
        -1 if expected is None else round(expected * 1000)
    )
    return vector


def _session_age_ns(cluster: ClusterView) -> int:
    return round(cluster.session_age_s * NS_PER_S) if cluster.session_engine >= 0 else -1


class EngineFeatures:
    """Turns an `EngineView` into the engine observation of this engine.

    Args:
        spec: the engine.
        slos: the scenario's classes; they set the time scales.
    """

    def __init__(self, spec: EngineSpec, slos: Sequence[SLO]) -> None:
        self.layout = engine_layout()
        self.scale = engine_scale(spec, slos)

    def __call__(self, view: EngineView, out: Float32Array | None = None) -> Float32Array:
        """The observation, in `out` if given (float32, `NUM_ENGINE_FEATURES` long)."""
        return self.write(view.state, out)

    def write(self, state: IntArray, out: Float32Array | None = None) -> Float32Array:
        """Like a call, from the bare state vector."""
        result = np.empty(self.layout.size, np.float32) if out is None else out
        write_engine_features(state, 0, self.scale, result, 0)
        return result


class RouterFeatures:
    """Turns `(RequestView, ClusterView)` into the router observation of this cluster.

    It reads the whole table, so the policy must declare the information classes `router`,
    `pushed` and `scraped`.
    """

    def __init__(self, engines: Sequence[EngineSpec], slos: Sequence[SLO]) -> None:
        self.layout = router_layout(len(engines))
        self.engines = len(engines)
        self.scale = router_scale(engines, slos)

    def __call__(
        self, request: RequestView, cluster: ClusterView, out: Float32Array | None = None
    ) -> Float32Array:
        """The observation, in `out` if given (float32, `layout.size` long)."""
        return self.write(cluster.rows, request_vector(request, cluster), out)

    def write(
        self, rows: NDArray[Any], request: IntArray, out: Float32Array | None = None
    ) -> Float32Array:
        """Like a call, from the table `(engines, len(RouterRow))` and the request vector."""
        result = np.empty(self.layout.size, np.float32) if out is None else out
        write_router_features(rows.reshape(-1), 0, self.engines, request, 0, self.scale, result, 0)
        return result
