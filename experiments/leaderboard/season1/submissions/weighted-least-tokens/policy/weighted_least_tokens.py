"""Weighted least connections, counted in prompt tokens (after `wlc` of Linux Virtual Server)."""

import numpy as np

from synergy_gym import ClusterView, RequestView, RouterPolicy


class WeightedLeastTokens(RouterPolicy):
    """The engine with the fewest prompt tokens in flight per unit of its configured weight.

    Linux Virtual Server's `wlc` counts connections; prompts differ in length, so this counts
    their tokens, the new request's included. Exact local counts, no telemetry, no model.
    """

    information = frozenset({"router"})

    def reset(self, rng, engines, slos) -> None:
        """Take the weights that an operator has configured."""
        self.weights = np.array([engine.weight for engine in engines])

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The engine that would have the least per unit of weight."""
        tokens = cluster.in_flight_tokens + request.prompt_tokens
        return cluster.argmin(tokens / self.weights)
