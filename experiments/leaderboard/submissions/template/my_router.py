"""A router policy to begin with: one file, one class, NumPy and synergy_gym's views."""

import numpy as np

from synergy_gym import ClusterView, RequestView, RouterPolicy


class MyRouter(RouterPolicy):
    """The engine with the fewest prompt tokens in flight per unit of its configured weight."""

    information = frozenset({"router"})  # reading any other class is an error

    def reset(self, rng, engines, slos) -> None:
        self.weights = np.array([engine.weight for engine in engines])

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        load = cluster.in_flight_tokens + request.prompt_tokens
        return cluster.argmin(load / self.weights)  # of the engines that are up
