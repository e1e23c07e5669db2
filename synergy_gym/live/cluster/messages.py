"""What a live cluster and its engines tell each other, whatever lies between them.

A connection belongs to one engine. It is told to start and to stop attempts, and reports what
happens as events, stamped when it happened. Time is `time.monotonic_ns()`, which all processes of a
machine share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from synergy_gym.live.router.health import HealthSpec
from synergy_gym.sim.plain.telemetry import Gauges
from synergy_gym.types import Outcome, StepReport

PROBING = HealthSpec(interval_s=2.0, last_backoff_s=2.0, timeout_s=3.0)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a live cluster waits, seconds; whatever takes longer has failed.

    Attributes:
        start_s: a server or worker that is started must be healthy by then.
        connect_s: a connection must be open by then, and what is sent must have left.
        first_token_s: an attempt must have its first token by then (queueing included).
        token_gap_s: longest time between two pieces of a stream.
        silence_s: a worker that says nothing for so long is down until it speaks again.
        health: how servers are probed.
    """

    start_s: float = 180.0
    connect_s: float = 5.0
    first_token_s: float = 120.0
    token_gap_s: float = 30.0
    silence_s: float = 10.0
    health: HealthSpec = PROBING


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """One attempt of a request, as an engine gets it.

    Attributes:
        ticket: names the attempt; never used twice.
        prompt_token_ids: the prompt.
        output_token_ids: what the workload says the answer is; engines that cannot be told what
            to answer sample something else.
        max_tokens: how many tokens the engine shall emit: the true output length, which no view
            has.
        slo_class: index into the scenario's classes.
        slo_name: name of that class.
        priority: smaller is more urgent.
        arrival_ns: when its client sent it first, monotonic clock.
        deadline_ns: when its client gives up, monotonic clock; `None`: never.
        cache_salt: attempts share cached prefixes only with attempts of equal salt.
    """

    ticket: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    max_tokens: int
    slo_class: int
    slo_name: str
    priority: int
    arrival_ns: int
    deadline_ns: int | None
    cache_salt: str


@dataclass(frozen=True, slots=True)
class TokensCame:
    """`tokens` output tokens of an attempt reached the client at `at_ns`."""

    engine: int
    at_ns: int
    ticket: int
    tokens: int


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt is over; told once per attempt.

    `scheduled_ns` (-1), `cached_tokens` and `preemptions` (0) stay at their neutral value where
    the transport does not tell them.
    """

    engine: int
    at_ns: int
    ticket: int
    outcome: Outcome
    reason: str = ""
    scheduled_ns: int = -1
    cached_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """From `at_ns` on an engine accepts requests (`alive`), or does not."""

    engine: int
    at_ns: int
    alive: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StepEnded:
    """An engine that reports every iteration ended one at `at_ns`.

    `told` is what its policy says about it (`sim.adverts.published`), `predicted_ns` how long
    that expected the step to take; `start_s` of `report` is of the engine's own clock.
    """

    engine: int
    at_ns: int
    report: StepReport
    gauges: Gauges
    predicted_ns: int
    told: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StatePushed:
    """An engine's state vector (order of `sim.plain.telemetry.PUSH_COLUMNS`) came in.

    Its first entry, the time of the snapshot, is nanoseconds of the monotonic clock.
    """

    engine: int
    at_ns: int
    vector: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MetricsScraped:
    """An engine's metrics were read: the scrape columns of the router's table, in their order."""

    engine: int
    at_ns: int
    values: tuple[int, ...]


LiveEvent = TokensCame | AttemptEnded | HealthChanged | StepEnded | StatePushed | MetricsScraped


class Connection(Protocol):
    """One engine of a live cluster, from the caller's side; no method waits for the engine."""

    def submit(self, request: LiveRequest) -> None:
        """Start an attempt; it ends with exactly one `AttemptEnded`."""

    def abort(self, ticket: int) -> None:
        """The attempt is not wanted any more: it ends as aborted, if it has not ended yet."""

    def close(self) -> None:
        """Stop what this connection has started; attempts that are open fail."""
