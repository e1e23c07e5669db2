"""What a live cluster plays, and what an engine's policy needs to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synergy_gym.types import SLO, ClientSpec, EngineSpec, Event, TelemetrySpec
from synergy_gym.workload.base import Workload

NEVER_NS = 1 << 62
LIVE_EVENTS = ("down", "up")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterEpisode:
    """One episode; times in nanoseconds since it began.

    Attributes:
        engines: limits of the engines, in index order.
        workload: the traffic.
        tokens: token ids of a request's prompt and output.
        slos: objectives per class.
        telemetry: how the state of engines that report every step reaches the router.
        client: timeouts and retries.
        events: changes of the world, in any order; "down" and "up" only.
        told: per engine what it says about itself before its first push; zeros by default.
        warmup_ns: arrivals before this are not scored.
        horizon_ns: end of scoring; closed-loop requests arrive only before it.
        stop_ns: the episode is cut then.
        auto_route: send arrivals to the only engine, without ROUTE points.
        record_itl: keep the gaps between tokens of scored requests.
        options: how the engines are reached, as manifests record it.

    Raises:
        ValueError: an event that cannot be done to real engines, or `auto_route` with several.
    """

    engines: tuple[EngineSpec, ...]
    workload: Workload
    tokens: Callable[[int], Sequence[int]]
    slos: tuple[SLO, ...]
    telemetry: TelemetrySpec = field(default_factory=TelemetrySpec)
    client: ClientSpec = field(default_factory=ClientSpec)
    events: tuple[Event, ...] = ()
    told: Sequence[Sequence[int]] | None = None
    warmup_ns: int = 0
    horizon_ns: int = NEVER_NS
    stop_ns: int = NEVER_NS
    auto_route: bool = False
    record_itl: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strange = sorted({event.kind for event in self.events} - set(LIVE_EVENTS))
        if strange:
            raise ValueError(
                f"events {strange} cannot be done to real engines in real time; leave them out, "
                "or use backend='sim' ('down' and 'up' work on every backend)"
            )
        if self.auto_route and len(self.engines) != 1:
            raise ValueError(f"auto_route needs exactly one engine, there are {len(self.engines)}")
