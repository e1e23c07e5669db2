"""Least KV-cache usage, as last pushed (AIBrix gateway `least-kv-cache`).

The pushed share is up to one push interval old; ties are broken at random, so that idle
engines share the load. Information class: router, pushed.
"""

from __future__ import annotations

from dataclasses import dataclass

from synergy_gym.policies.base import RouterPolicy, random_argmin
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import ClusterView, RequestView, RouterRule


@router_policy("least-kv", information=("router", "pushed"))
@dataclass
class LeastKv(RouterPolicy):
    """The engine with the smallest share of its KV cache in use."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The emptiest cache, as last pushed."""
        return random_argmin(cluster, cluster.pushed.kv_usage)

    def rule(self) -> RouterRule:
        """The same in the simulator."""
        return RouterRule("least-kv")
