"""Lowest mean latency of the last scrape window (SynergySched's "Latency-Based" baseline).

Engines without a finished request in the window count as latency 0 and are tried first;
ties are broken at random; both as in the authors' router, whose default is the end-to-end
latency. Information class: router, scraped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from synergy_gym.policies.base import RouterPolicy, random_argmin
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import ClusterView, RequestView


@router_policy("latency-based", information=("router", "scraped"))
@dataclass
class LatencyBased(RouterPolicy):
    """The engine with the lowest mean of `latency` (e2e, ttft or tpot) in the last window."""

    latency: Literal["e2e", "ttft", "tpot"] = "e2e"

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The fastest engine, as last scraped."""
        scraped = cluster.scraped
        means = {
            "e2e": scraped.e2e_mean_s,
            "ttft": scraped.ttft_mean_s,
            "tpot": scraped.tpot_mean_s,
        }
        return random_argmin(cluster, means[self.latency])
