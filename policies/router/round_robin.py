"""Round robin (vLLM production-stack, `RoundRobinRouter` in routing_logic.py).

As there, the counter runs over the engines that are up at the moment, so a failure shifts
the turn. Information class: router.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import SLO, ClusterView, EngineSpec, RequestView, RouterRule


@router_policy("round-robin", information="router")
@dataclass
class RoundRobin(RouterPolicy):
    """Engines that are up, one after the other."""

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Begin with the first engine."""
        self._turn = 0

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The next one in turn."""
        up = cluster.alive.nonzero()[0]
        choice = int(up[self._turn % len(up)])
        self._turn += 1
        return choice

    def rule(self) -> RouterRule:
        """The same in the simulator."""
        return RouterRule("round-robin")
