"""Cheater: hoards on one engine, to have its cache warm and its numbers to itself.

An engine policy has one engine; there is no such cheater on that layer.
"""

from __future__ import annotations

from synergy_gym.policies import RouterPolicy
from synergy_gym.types import ClusterView, RequestView
from tests.cheaters.judging import loses


class Hoarder(RouterPolicy):
    """Everything to the first engine that is up."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        return int(cluster.alive.argmax())


def test_a_hoarder_loses() -> None:
    assert loses(Hoarder, "router")
