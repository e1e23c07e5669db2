"""What an episode is configured with: objectives, engines, telemetry, clients, events; frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SLO:
    """Service-level objectives of one request class; `None` means not declared.

    TPOT is (E2E - TTFT) / (output - 1), 0 for a single output token.
    """

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


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


@dataclass(frozen=True, slots=True)
class TelemetrySpec:
    """How engine state reaches routers: pushes, heartbeats, scrapes (`docs/telemetry.md`)."""

    push_interval_s: float = 0.2
    push_delay_s: float = 0.0
    push_loss: float = 0.0
    heartbeat: Literal["idle-only", "overwrite", "none"] = "idle-only"
    heartbeat_interval_s: float = 2.0
    scrape_interval_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """Client behaviour: give up after `timeout_s` (0: never), retry after `backoff_s`."""

    timeout_s: float = 0.0
    max_retries: int = 0
    backoff_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """A change of the world at `at_s`.

    `kind`: "down" (requests on the engine fail), "up" (comes back with a cold cache),
    "slowdown" (step times are multiplied by `factor`; 1 ends it), "lose_blocks" (`blocks`
    fewer KV blocks, taken as they become free).
    """

    at_s: float
    kind: Literal["down", "up", "slowdown", "lose_blocks"]
    engine: int
    factor: float = 1.0
    blocks: int = 0
