"""Uniformly random routing (SGLang model gateway `random`). Information class: router."""

from __future__ import annotations

from dataclasses import dataclass

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import ClusterView, RequestView, RouterRule


@router_policy("random", information="router")
@dataclass
class RandomChoice(RouterPolicy):
    """Any engine that is up, with equal probability."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """A uniform draw."""
        up = cluster.alive.nonzero()[0]
        return int(up[cluster.rng.integers(len(up))])

    def rule(self) -> RouterRule:
        """The same in the simulator."""
        return RouterRule("random")
