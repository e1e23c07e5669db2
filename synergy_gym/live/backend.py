"""The backend `vllm`: how real engines are reached, and which of their options are fixed.

A transport is a way to reach engines: in this process under virtual time, or elsewhere in real
time. Each is one entry of `TRANSPORTS`; its builder makes an object with the interface of
`sim.plain.simulator.ReferenceSimulator`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from synergy_gym.live.vllm.tiny_model import SIZES
from synergy_gym.scenario import Scenario
from synergy_gym.types import DecisionRule
from synergy_gym.workload.base import Workload

if TYPE_CHECKING:
    from synergy_gym.live.cluster.fleet_pool import FleetPool

CLOCKS = ("wall", "cpu", "model")
"""What times an iteration: elapsed time, processor time of this process (one thread), or the
scenario's step-latency model, with which a live episode equals the simulated one."""
TOKEN_CAPS = ("error", "drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How the engines of a scenario are started, reached and timed.

    Attributes:
        model: a size of `tiny_model.SIZES` (random weights) or a model folder.
        transport: one of `TRANSPORTS`.
        clock: one of `CLOCKS`; engines in other processes know only "wall".
        threads: threads that compute in this process; more than one makes the "cpu" clock count
            every thread's time.
        dtype: vLLM's data type of weights and KV cache.
        load_format: vLLM's; by default "dummy" for a folder without weights, else "auto".
        token_caps: what becomes of per-request token caps above zero, which vLLM has no means
            for: "error", or "drop" (the request is free; counted).
        urls: running servers, one per engine in the scenario's order (transport "http").
        request_timeout_s: a request of another process that stays silent for this long has
            failed, seconds.
        start_timeout_s: engines in other processes must be ready after this, seconds.
        engine_args: further `EngineArgs` of vLLM, e.g. `{"gpu_memory_utilization": 0.4}`.

    Raises:
        ValueError: an unknown clock, transport or choice, or a number out of range.
    """

    model: str = "tiny"
    transport: str = "inprocess"
    clock: str = "wall"
    threads: int = 1
    dtype: str = "float32"
    load_format: str | None = None
    token_caps: str = "error"
    urls: tuple[str, ...] = ()
    request_timeout_s: float = 60.0
    start_timeout_s: float = 180.0
    engine_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {"transport": tuple(TRANSPORTS), "clock": CLOCKS, "token_caps": TOKEN_CAPS}
        for name, allowed in known.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {list(allowed)}"
                )
        if self.urls and self.transport != "http":
            raise ValueError(
                f"urls are given, but transport is {self.transport!r}; use transport='http' for "
                "running servers, or leave urls out"
            )
        for name in ("threads", "request_timeout_s", "start_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be positive")
        if self.model not in SIZES and not self.model.strip():
            raise ValueError(f"model is empty; give a size ({', '.join(SIZES)}) or a model folder")

    def entry(self) -> dict[str, Any]:
        """The options as a manifest records them."""
        names = ("model", "transport", "clock", "threads", "dtype", "load_format", "token_caps")
        values = {name: getattr(self, name) for name in names}
        return {**values, "urls": list(self.urls), "engine_args": dict(self.engine_args)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEpisode:
    """One episode on real engines, as a transport's builder gets it.

    Attributes:
        scenario: traffic, engine limits, SLOs, telemetry, client and events.
        options: how the engines are reached.
        load: factor of the scenario's rate; unused when `workload` is given.
        seed: fixes traffic, and noise where time is modelled.
        workload: traffic to play instead of the scenario's own.
        rules: per engine a decision that needs no policy, or `None` for BATCH points.
        engine_policy: what decides on engines that cannot stop at BATCH points (those of other
            processes): name, class or instance.
        auto_route: a single engine without ROUTE points.
        record_itl: keep inter-token gaps.
        pool: keeps engines of other processes between episodes (`fleet_pool.FleetPool`); the
            process's own by default, which is closed when it exits.
    """

    scenario: Scenario
    options: LiveOptions
    load: float = 1.0
    seed: int = 0
    workload: Workload | None = None
    rules: Sequence[DecisionRule | None] | None = None
    engine_policy: Any = "vllm-v1"
    auto_route: bool = False
    record_itl: bool = False
    pool: FleetPool | None = None


Builder = Callable[[LiveEpisode], Any]
"""Makes the played object; it has `close()`, which gives its engines back, and
`live_report()`, a mapping of what it counted (for manifests)."""

TRANSPORTS: Mapping[str, str] = MappingProxyType(
    {
        "inprocess": "synergy_gym.live.inprocess.engine:build_inprocess",
        "workers": "synergy_gym.live.cluster.build:build_workers",
        "http": "synergy_gym.live.cluster.build:build_http",
    }
)
"""Transport name -> `module:function` of its builder, loaded when it is used."""

REAL_TIME = ("workers", "http")
"""Transports whose engines run by themselves: they may fail, and nothing stops the clock."""


def live_options(backend: str, live: LiveOptions | None, **given: Any) -> LiveOptions | None:
    """The options of a backend name; `None` for a simulated one.

    Args:
        backend: "vllm", or a simulated backend.
        live: options to start from; the defaults without.
        given: options that were named singly; `None` leaves one as it is.

    Raises:
        ValueError: options of real engines for a simulated backend, or an unknown value.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if backend == "vllm":
        return replace(live or LiveOptions(), **named)
    if live is not None or named:
        unused = ["live"] * (live is not None) + list(named)
        raise ValueError(
            f"{', '.join(unused)} can be given with backend='vllm' only, and backend is "
            f"{backend!r}; leave them out or ask for real engines"
        )
    return None


def build_live(episode: LiveEpisode) -> Any:
    """The played object of an episode before its first arrival.

    Raises:
        VllmUnavailableError: vLLM is needed, and absent, broken or of another release.
        ValueError: the scenario asks for what the model or the transport cannot do.
    """
    module, _, function = TRANSPORTS[episode.options.transport].partition(":")
    builder: Builder = getattr(importlib.import_module(module), function)
    return builder(episode)
