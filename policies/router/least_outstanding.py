"""Least outstanding requests: the fewest of this router's requests in flight.

Join-the-shortest-queue on exact local counts, e.g. NGINX `least_conn` and Envoy
`LEAST_REQUEST`. Information class: router.
"""

from __future__ import annotations

from dataclasses import dataclass

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import ClusterView, RequestView, RouterRule


@router_policy("least-outstanding", information="router")
@dataclass
class LeastOutstanding(RouterPolicy):
    """The engine with the fewest requests in flight (ties: lowest index)."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The smallest count."""
        return cluster.argmin(cluster.in_flight)

    def rule(self) -> RouterRule:
        """The same in the simulator."""
        return RouterRule("least-outstanding")
