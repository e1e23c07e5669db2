"""What a worker process and its parent say to each other through their pipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from synergy_gym.live.cluster.messages import StepEnded
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.types import SLO, EngineSpec, Outcome


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """To a worker, once: the engine that it makes.

    `arguments` are those of vLLM's `EngineArgs`; `engine` is its place in the cluster.
    """

    engine: int
    spec: EngineSpec
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Begin:
    """To a worker: an episode begins; forget what was before, and batch by this policy."""

    number: int
    policy: EnginePolicy
    seed: int
    slos: tuple[SLO, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """To a worker: serve this attempt; `tokens` are the ids of prompt and output."""

    ticket: int
    tokens: list[int]
    output: int
    slo_class: int
    priority: int
    arrival_ns: int
    cache_salt: str


@dataclass(frozen=True, slots=True)
class Abort:
    """To a worker: this attempt is not wanted any more."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Ready:
    """From a worker: its engine is started."""

    vocabulary: int
    vllm: str


@dataclass(frozen=True, slots=True)
class Begun:
    """From a worker: the engine is empty and cold, its policy reset."""

    number: int


@dataclass(frozen=True, slots=True)
class Left:
    """An attempt that has left an engine."""

    ticket: int
    outcome: Outcome
    reason: str = ""
    scheduled_ns: int = -1
    cached_tokens: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Stepped:
    """From a worker: an iteration ended (or attempts were refused), with all that it did.

    Attributes:
        at_ns: when, monotonic clock.
        tokens: output tokens per attempt.
        left: attempts that are over.
        step: the iteration; `None` when there was none.
        failures: how often the policy failed so far.
        dropped_caps: token caps above zero that vLLM could not obey, so far.
    """

    at_ns: int
    tokens: tuple[tuple[int, int], ...] = ()
    left: tuple[Left, ...] = ()
    step: StepEnded | None = None
    failures: int = 0
    dropped_caps: int = 0


@dataclass(frozen=True, slots=True)
class Beat:
    """From a worker: it is there, and has nothing to do."""


@dataclass(frozen=True, slots=True)
class Broken:
    """From a worker, its last words: what went wrong, as a traceback."""

    text: str


FromWorker = Ready | Begun | Stepped | Beat | Broken
ToWorker = Start | Begin | Add | Abort
