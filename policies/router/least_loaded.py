"""Fewest queued requests in the scraped metrics (SynergySched's "Least-Loaded" baseline).

Metrics are up to one scrape interval (10 s) old, so everything goes to one engine until the
next scrape; engines without metrics count as 0, ties are broken at random, both as in the
authors' router. Information class: router, scraped.
"""

from __future__ import annotations

from dataclasses import dataclass

from synergy_gym.policies.base import RouterPolicy, random_argmin
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import ClusterView, RequestView, RouterRule


@router_policy("least-loaded", information=("router", "scraped"))
@dataclass
class LeastLoaded(RouterPolicy):
    """The engine whose last scrape shows the fewest waiting requests."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The shortest queue, as last scraped."""
        return random_argmin(cluster, cluster.scraped.waiting)

    def rule(self) -> RouterRule:
        """The same in the simulator."""
        return RouterRule("least-loaded")
