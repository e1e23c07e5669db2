"""Records shared by every layer: frozen, typed, with units in their names.

Nothing here imports more than `arrays`, `router_table` and `specs`, so policies that use only these
records also run inside a real engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synergy_gym.arrays import NS_PER_S as NS_PER_S
from synergy_gym.arrays import BoolArray as BoolArray
from synergy_gym.arrays import FloatArray as FloatArray
from synergy_gym.arrays import IntArray as IntArray
from synergy_gym.router_table import PushedState as PushedState
from synergy_gym.router_table import RouterRow as RouterRow
from synergy_gym.router_table import RouterRule as RouterRule
from synergy_gym.router_table import ScrapedState as ScrapedState
from synergy_gym.router_table import pushed_state, scraped_state
from synergy_gym.specs import SLO as SLO
from synergy_gym.specs import ClientSpec as ClientSpec
from synergy_gym.specs import EngineSpec as EngineSpec
from synergy_gym.specs import Event as Event
from synergy_gym.specs import TelemetrySpec as TelemetrySpec

InformationClass = Literal["engine", "router", "pushed", "scraped", "oracle"]
INFORMATION_CLASSES: tuple[InformationClass, ...] = (
    "engine",
    "router",
    "pushed",
    "scraped",
    "oracle",
)


class InformationError(RuntimeError):
    """A policy read a field outside the information classes that it declares."""


class Outcome(IntEnum):
    """What became of a request; only `FINISHED` can meet an SLO (invariant 11)."""

    PENDING = 0
    FINISHED = 1
    REJECTED = 2
    """`too_long`: can never fit `max_model_len` or the KV cache."""
    ABORTED = 3
    """The client gave up (timeout) and had no retry left."""
    FAILED = 4
    """Its engine went down and the client had no retry left."""
    UNFINISHED = 5
    """Still in the system when the episode was truncated."""


class EngineStateField(IntEnum):
    """Slots of the engine state vector (int64): what observations and learned policies read."""

    NOW_NS = 0
    RUNNING = 1
    WAITING = 2
    DECODES = 3
    PREFILL_TOKENS = 4
    """Tokens that running prefills still have to compute."""
    WAITING_TOKENS = 5
    """Known tokens (prompt + generated) of the waiting requests."""
    DECODE_CONTEXT_TOKENS = 6
    """Tokens in the KV cache that belong to decodes."""
    KV_FREE_BLOCKS = 7
    KV_TOTAL_BLOCKS = 8
    HEAD_WAIT_NS = 9
    """Time since the arrival of the head of the waiting queue; 0 when it is empty."""
    LAST_STEP_NS = 10
    LAST_SEQUENCES = 11
    LAST_TOKENS = 12
    LAST_DECODES = 13
    LAST_PREEMPTED = 14
    LAST_BUDGET = 15


@dataclass(frozen=True, slots=True)
class EngineAdvert:
    """What an engine tells routers with its next push, beside its counts (`docs/telemetry.md`).

    `None` (or an empty `step_ms`) keeps what was told last, except for the prediction.

    Attributes:
        predicted_step_s: predicted duration of the iteration that the decision is for.
        capacity: the authors' "engine capacity", Pmax * 1000 in normalised tokens per second.
        peak_tps: the same in physical tokens per second (capacity * token scale).
        step_ms: coefficients of a step-latency model in milliseconds, in the order of
            `ADVERT_TERMS`.
    """

    predicted_step_s: float | None = None
    capacity: float | None = None
    peak_tps: float | None = None
    step_ms: tuple[float, ...] = ()


ADVERT_TERMS: tuple[str, ...] = (
    "base_ms",
    "per_sequence_ms",
    "per_token_ms",
    "per_decode_context_ms",
    "per_prefill_pair_ms",
    "per_prefill_context_ms",
    "prefill_step_ms",
    "per_mixed_context_ms",
    "floor_ms",
)
"""Order of `EngineAdvert.step_ms`, the step model that an engine publishes. A step takes

    T = max(floor, base + per_sequence*B + per_token*S)
        + per_decode_context*C + per_prefill_pair*A + per_prefill_context*P
        + prefill_step*[prefill] + per_mixed_context*C*[prefill and decodes]

milliseconds; `latency.models.base.StepFeatures` says what the letters are. It is a form of its own,
not that of the simulator's clock: what a clock has beyond it, no policy is told.
"""


@dataclass(frozen=True, slots=True, eq=False)
class BatchDecision:
    """What the next iteration of an engine may take.

    Attributes:
        token_budget: most tokens of the step, >= 1.
        max_running: requests are admitted only while fewer run (`None`: the
            engine's `max_num_seqs`), >= 1. It never evicts.
        prefill_chunk: most prefill tokens per request (0: no cap); applies only
            while running + waiting > 1 (vLLM's `long_prefill_token_threshold`).
        running_order: new order of the running list as indices into it; persistent.
        waiting_order: new order of the waiting queue as indices into it; persistent.
        token_caps: per request (running, then waiting, before any reordering):
            -1 free, 0 skip this step, n at most n tokens.
        advert: what the engine publishes from now on; it changes nothing in the iteration.
    """

    token_budget: int
    max_running: int | None = None
    prefill_chunk: int = 0
    running_order: IntArray | None = None
    waiting_order: IntArray | None = None
    token_caps: IntArray | None = None
    advert: EngineAdvert | None = None


@dataclass(frozen=True, slots=True)
class DecisionRule:
    """A declarative decision that the compiled engine can take by itself, every step.

    Equal to `BatchDecision(max(token_budget, num_decodes if cover_decodes else 0),
    max_running, prefill_chunk)` with the waiting queue sorted (stable) by `order`.
    """

    token_budget: int
    max_running: int | None = None
    prefill_chunk: int = 0
    cover_decodes: bool = False
    order: Literal["queue", "shortest-prompt", "earliest-deadline"] = "queue"


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished engine iteration.

    `sequences` counts requests with at least one token (B), `tokens` all scheduled
    tokens (S), `context_tokens` the tokens already in the KV cache of the decodes,
    `prefill_pairs` is sum(chunk * computed + chunk * (chunk + 1) / 2) over prefill chunks.
    """

    engine: int
    start_s: float
    step_s: float
    sequences: int
    tokens: int
    decodes: int
    prefill_tokens: int
    context_tokens: int
    prefill_context_tokens: int
    prefill_pairs: int
    preempted: int
    admitted: int
    finished: int
    token_budget: int


@dataclass(frozen=True, slots=True, eq=False)
class RequestArrays:
    """Requests of one queue in list order, one entry per request.

    `generated_tokens` counts emitted output tokens, `cached_tokens` prompt tokens found
    in the prefix cache at the first admission, `waited_s` the time since arrival,
    `first_token_age_s` the time since the first token (-1 before it).
    """

    prompt_tokens: IntArray
    computed_tokens: IntArray
    generated_tokens: IntArray
    cached_tokens: IntArray
    waited_s: FloatArray
    first_token_age_s: FloatArray
    slo_class: IntArray
    priority: IntArray

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def remaining_prefill_tokens(self) -> IntArray:
        """Known tokens (prompt + generated) not yet computed; 1 for a decode."""
        known: IntArray = self.prompt_tokens + self.generated_tokens
        return known - self.computed_tokens

    @property
    def is_decode(self) -> BoolArray:
        """True where exactly the last sampled token is uncomputed (output has begun)."""
        result: BoolArray = (self.remaining_prefill_tokens == 1) & (self.generated_tokens > 0)
        return result


class EngineView:
    """What an engine policy sees before an iteration (information class `engine`).

    Scalars are ready; `running` and `waiting` are fetched when first read. `state` is the
    int64 vector of `EngineStateField`. Arrays are snapshots of this decision point.
    """

    __slots__ = (
        "_fetch",
        "_running",
        "_waiting",
        "kv_free_blocks",
        "kv_total_blocks",
        "last_step",
        "now_s",
        "num_decodes",
        "num_running",
        "num_waiting",
        "slos",
        "spec",
        "state",
    )

    def __init__(
        self,
        *,
        spec: EngineSpec,
        slos: tuple[SLO, ...],
        state: IntArray,
        last_step: StepReport | None,
        fetch: Callable[[], tuple[RequestArrays, RequestArrays]],
    ) -> None:
        values = state.tolist()
        self.spec = spec
        self.slos = slos
        self.state = state
        self.now_s = values[EngineStateField.NOW_NS] / NS_PER_S
        self.num_running = values[EngineStateField.RUNNING]
        self.num_waiting = values[EngineStateField.WAITING]
        self.num_decodes = values[EngineStateField.DECODES]
        self.kv_free_blocks = values[EngineStateField.KV_FREE_BLOCKS]
        self.kv_total_blocks = values[EngineStateField.KV_TOTAL_BLOCKS]
        self.last_step = last_step
        self._fetch = fetch
        self._running: RequestArrays | None = None
        self._waiting: RequestArrays | None = None

    @property
    def running(self) -> RequestArrays:
        """Running requests in list order (the last one is preempted first under FCFS)."""
        if self._running is None:
            self._running, self._waiting = self._fetch()
        return self._running

    @property
    def waiting(self) -> RequestArrays:
        """Waiting requests in queue order."""
        if self._waiting is None:
            self._running, self._waiting = self._fetch()
        return self._waiting


@dataclass(frozen=True, slots=True, eq=False)
class RequestView:
    """The arriving request as its router sees it; no true output length.

    `block_hashes` identify the full prompt blocks (chained; empty when the traffic has
    no prefix information), `session` is -1 without one, `attempt` counts retries.
    """

    prompt_tokens: int
    arrival_s: float
    session: int = -1
    slo_class: int = 0
    priority: int = 0
    attempt: int = 0
    expected_output_tokens: float | None = None
    block_hashes: IntArray = field(default_factory=lambda: np.empty(0, np.int64))


class ClusterView:
    """What a router policy sees when a request arrives.

    Class `router`: `now_s`, `engines`, `alive`, `in_flight`, `in_flight_tokens` (prompt
    tokens of requests in flight), `routed_tokens_since_push`, `session_engine` (-1: none),
    `session_age_s`, `rng`. `pushed` and `scraped` carry the engines' own state with its
    age; reading one that the policy did not declare raises `InformationError`.

    Args:
        now_ns: the arrival's instant.
        engines: the cluster, as configured.
        rows: int64 `(engines, len(RouterRow))`, a snapshot of the router's table.
        session_engine: engine that last got a request of this session, or -1.
        session_age_s: time since then (inf without one).
        rng: an opaque generator that belongs to the policy.
        information: the classes that may be read.
    """

    __slots__ = (
        "_information",
        "_pushed",
        "_rows",
        "_scraped",
        "engines",
        "now_ns",
        "rng",
        "session_age_s",
        "session_engine",
    )

    def __init__(
        self,
        *,
        now_ns: int,
        engines: tuple[EngineSpec, ...],
        rows: IntArray,
        session_engine: int,
        session_age_s: float,
        rng: np.random.Generator,
        information: frozenset[str] = frozenset(INFORMATION_CLASSES),
    ) -> None:
        self.now_ns = now_ns
        self.engines = engines
        self.session_engine = session_engine
        self.session_age_s = session_age_s
        self.rng = rng
        self._rows = rows
        self._information = information
        self._pushed: PushedState | None = None
        self._scraped: ScrapedState | None = None

    def _check(self, name: str) -> None:
        if name not in self._information:
            raise InformationError(
                f"this policy read `ClusterView.{name}` but declares the information classes "
                f"{sorted(self._information)}; add {name!r} to its registration"
            )

    @property
    def rows(self) -> IntArray:
        """The whole table (`RouterRow`); needs every class that its columns belong to."""
        self._check("pushed")
        self._check("scraped")
        return self._rows

    @property
    def now_s(self) -> float:
        """The arrival's instant, seconds."""
        return self.now_ns / NS_PER_S

    @property
    def alive(self) -> BoolArray:
        """Engines that accept requests."""
        up: BoolArray = self._rows[:, RouterRow.ALIVE] != 0
        return up

    @property
    def in_flight(self) -> IntArray:
        """Requests routed to each engine that have not left."""
        return self._rows[:, RouterRow.IN_FLIGHT]

    @property
    def in_flight_tokens(self) -> IntArray:
        """Prompt tokens of the requests in flight."""
        return self._rows[:, RouterRow.IN_FLIGHT_TOKENS]

    @property
    def routed_tokens_since_push(self) -> IntArray:
        """Prompt tokens routed since the visible snapshot of each engine last changed."""
        return self._rows[:, RouterRow.ROUTED_SINCE_PUSH]

    @property
    def pushed(self) -> PushedState:
        """The last state vector received from each engine."""
        self._check("pushed")
        if self._pushed is None:
            self._pushed = pushed_state(self._rows, self.now_ns)
        return self._pushed

    @property
    def scraped(self) -> ScrapedState:
        """The last metrics scraped from each engine."""
        self._check("scraped")
        if self._scraped is None:
            self._scraped = scraped_state(self._rows, self.now_ns)
        return self._scraped

    @property
    def num_engines(self) -> int:
        """Engines of the cluster, down ones included."""
        return len(self.engines)

    def argmin(self, values: NDArray[Any]) -> int:
        """Index of the smallest value among engines that are up; ties to the lowest."""
        return int(np.where(self.alive, values, np.inf).argmin())

    def argmax(self, values: NDArray[Any]) -> int:
        """Index of the largest value among engines that are up; ties to the lowest."""
        return int(np.where(self.alive, values, -np.inf).argmax())


@dataclass(frozen=True, slots=True)
class CompletionView:
    """A request that left the system, as its router sees the end of the stream."""

    now_s: float
    engine: int
    session: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float
    outcome: Outcome


@dataclass(frozen=True, slots=True, eq=False)
class RequestRecords:
    """What happened to every offered request, one entry each, in arrival order.

    Times are integer nanoseconds since the episode began; -1 means it never happened.
    `arrival_ns` is the first arrival: a retried request keeps it. `emitted_tokens` is
    what was streamed by its last attempt; `output_tokens` is what it would have emitted.
    """

    arrival_ns: IntArray
    scheduled_ns: IntArray
    first_token_ns: IntArray
    finish_ns: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    emitted_tokens: IntArray
    cached_tokens: IntArray
    preemptions: IntArray
    engine: IntArray
    outcome: IntArray
    slo_class: IntArray
    session: IntArray
    attempts: IntArray

    def __len__(self) -> int:
        return len(self.arrival_ns)
