"""Round robin that passes over engines with too many requests in flight.

"v4" of the SynergySched authors' later experiments (their diary of 2026, `experiments/
e2e_8xh100`), with a margin of 2 the best router that they measured on a homogeneous cluster.
Information class: router.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import SLO, ClusterView, EngineSpec, RequestView


@router_policy("rr-veto", information="router")
@dataclass
class RoundRobinVeto(RouterPolicy):
    """The next engine in turn with at most `margin` requests in flight above the fewest."""

    margin: int = 2

    def __post_init__(self) -> None:
        """Refuse a margin that would veto every engine."""
        if self.margin < 0:
            raise ValueError(f"rr-veto: margin is {self.margin}; use 0 or more")

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Begin with the first engine."""
        self._next = 0

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The first from the pointer on that is up and not vetoed; the pointer moves behind it."""
        alive, in_flight = cluster.alive.tolist(), cluster.in_flight.tolist()
        most = self.margin + min(n for n, up in zip(in_flight, alive, strict=True) if up)
        engine = self._next
        while not alive[engine] or in_flight[engine] > most:
            engine = (engine + 1) % len(alive)
        self._next = (engine + 1) % len(alive)
        return engine
