"""What an episode is configured with: objectives, engines, telemetry, clients, events; frozen.

Numbers that no simulation can hold are a `ValueError` where they are given. What only the cluster
can tell (an engine's limits, whether an event's engine exists) is for `sim.arguments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from synergy_gym.limits import (
    MOST_COUNT,
    MOST_FACTOR,
    MOST_RETRIES,
    check_number,
    check_seconds,
    make_plain,
)

EventKind = Literal["down", "up", "slowdown", "lose_blocks"]
Heartbeat = Literal["idle-only", "overwrite", "none"]


@dataclass(frozen=True, slots=True)
class SLO:
    """Service-level objectives of one request class; `None` means not declared.

    TPOT is (E2E - TTFT) / (output - 1), 0 for a single output token.
    """

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse objectives that no simulation can hold."""
        make_plain(self)
        declared = [n for n in ("ttft_s", "tpot_s", "e2e_s") if getattr(self, n) is not None]
        check_seconds(self, f"SLO {self.name!r}", *declared)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: what runs where, and the limits its server was started with.

    `kv_blocks` counts usable blocks (vLLM's own total minus its null block).
    `max_num_seqs` bounds running requests, `max_num_batched_tokens` the tokens
    of one step, `watermark_blocks` stay free when a request is admitted.
    """

    name: str
    gpu: str
    model: str
    profile: str
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_blocks: int
    block_size: int = 16
    prefix_caching: bool = False
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    watermark_blocks: int = 0
    weight: float = 1.0
    """Relative serving capacity that an operator would configure (weighted routing)."""

    def __post_init__(self) -> None:
        """Whoever computes with a limit meets a Python number."""
        make_plain(self)


@dataclass(frozen=True, slots=True)
class TelemetrySpec:
    """How engine state reaches routers: pushes, heartbeats, scrapes (`docs/telemetry.md`)."""

    push_interval_s: float = 0.2
    push_delay_s: float = 0.0
    push_loss: float = 0.0
    heartbeat: Heartbeat = "idle-only"
    heartbeat_interval_s: float = 2.0
    scrape_interval_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse times that no simulation can hold, and kinds that do not exist."""
        make_plain(self)
        times = ("push_interval_s", "push_delay_s", "heartbeat_interval_s", "scrape_interval_s")
        check_seconds(self, "telemetry", *times)
        check_number("telemetry: push_loss", self.push_loss, 0, 1, "a share, 0 to 1")
        _check_choice("telemetry: heartbeat", self.heartbeat, Heartbeat)


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """Client behaviour: give up after `timeout_s` (0: never), retry after `backoff_s`."""

    timeout_s: float = 0.0
    max_retries: int = 0
    backoff_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse times and counts that no simulation can hold."""
        make_plain(self)
        check_seconds(self, "client", "timeout_s", "backoff_s")
        cure = f"a whole number from 0 to {MOST_RETRIES:,}"
        check_number("client: max_retries", self.max_retries, 0, MOST_RETRIES, cure, whole=True)


@dataclass(frozen=True, slots=True)
class Event:
    """A change of the world at `at_s`.

    `kind`: "down" (requests on the engine fail), "up" (comes back with a cold cache),
    "slowdown" (step times are multiplied by `factor`; 1 ends it), "lose_blocks" (`blocks`
    fewer KV blocks, taken as they become free).
    """

    at_s: float
    kind: EventKind
    engine: int
    factor: float = 1.0
    blocks: int = 0

    def __post_init__(self) -> None:
        """Refuse times, factors and counts that no simulation can hold."""
        make_plain(self)
        check_seconds(self, "event", "at_s")
        where = f"event at {self.at_s:g} s"
        _check_choice(f"{where}: kind", self.kind, EventKind)
        cure = "the index of an engine, from 0"
        check_number(f"{where}: engine", self.engine, 0, MOST_COUNT, cure, whole=True)
        cure = f"a factor from 0 to {MOST_FACTOR:,.0f}; 1 ends a slowdown"
        check_number(f"{where}: factor", self.factor, 0, MOST_FACTOR, cure)
        cure = f"a number of blocks from 0 to {MOST_COUNT:,}"
        check_number(f"{where}: blocks", self.blocks, 0, MOST_COUNT, cure, whole=True)


def _check_choice(where: str, value: str, choices: object) -> None:
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"{where} is {value!r}; choose one of {', '.join(known)}")
