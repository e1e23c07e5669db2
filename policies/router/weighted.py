"""Random routing in proportion to configured weights (SynergySched's "Weighted" baseline).

There the weights follow the engines' peak throughput; here they are `EngineSpec.weight`,
what an operator would configure. Information class: router.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import SLO, ClusterView, EngineSpec, RequestView, RouterRule


@router_policy("weighted", information="router")
@dataclass
class Weighted(RouterPolicy):
    """A random engine that is up, with probability proportional to its weight."""

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Read the weights."""
        self._weights = np.array([spec.weight for spec in engines])
        if not (np.isfinite(self._weights).all() and (self._weights > 0).all()):
            raise ValueError(f"weighted: engine weights {self._weights.tolist()} must be > 0")

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """One draw from the cumulative weights of the engines that are up."""
        up = cluster.alive.nonzero()[0]
        edges = self._weights[up].cumsum()
        place = edges.searchsorted(cluster.rng.random() * edges[-1], side="right")
        return int(up[min(place, len(up) - 1)])

    def rule(self) -> RouterRule:
        """The same in the simulator."""
        return RouterRule("weighted", weights=tuple(self._weights.tolist()))
