"""Power of two choices on requests in flight.

Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 2001; in
SGLang's model gateway `power_of_two`. Information class: router.
"""

from __future__ import annotations

from dataclasses import dataclass

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import ClusterView, RequestView, RouterRule


@router_policy("power-of-two", information="router")
@dataclass
class PowerOfTwo(RouterPolicy):
    """Two different random engines that are up; the one with fewer requests in flight."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The better of two draws; the first one on a tie."""
        up = cluster.alive.nonzero()[0]
        if len(up) == 1:
            return int(up[0])
        first = int(cluster.rng.integers(len(up)))
        second = (first + 1 + int(cluster.rng.integers(len(up) - 1))) % len(up)
        one, two = int(up[first]), int(up[second])
        return two if cluster.in_flight[two] < cluster.in_flight[one] else one

    def rule(self) -> RouterRule:
        """The same in the simulator."""
        return RouterRule("power-of-two")
