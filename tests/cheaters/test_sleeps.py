"""Cheater: sleeps in its decision, where the simulated clock stands still and nobody's does."""

from __future__ import annotations

import time

import pytest

from synergy_gym.evaluation.conduct.examine import examine
from synergy_gym.policies import EnginePolicy, RouterPolicy
from synergy_gym.policies.base import Layer
from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView
from tests.cheaters.judging import rejected, watched

NAP_S = 0.05


class SleepingEngine(EnginePolicy):
    """Naps, then decides as the server would."""

    def decide(self, engine: EngineView) -> BatchDecision:
        time.sleep(NAP_S)
        return super().decide(engine)


class SleepingRouter(RouterPolicy):
    """Naps, then takes the least loaded engine."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        time.sleep(NAP_S)
        return super().route(request, cluster)


class Hanging(RouterPolicy):
    """Never decides."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        while True:
            time.sleep(0.001)


class Dozing(SleepingRouter):
    """Wakes up for the decisions by which it is stopped early."""

    def reset(self, *given: object) -> None:
        self.turn = 0

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        self.turn += 1
        time.sleep(5 * NAP_S if self.turn > 20 and self.turn % 10 == 0 else 0)
        return RouterPolicy.route(self, request, cluster)


@pytest.mark.parametrize(
    ("policy", "layer"), [(SleepingEngine, "engine"), (SleepingRouter, "router")]
)
def test_a_sleeper_is_stopped(policy: type, layer: Layer) -> None:
    found = examine(policy, layer, worlds=0)
    assert rejected(found[0], "half of its first 20 decisions", "limit 20 ms")


def test_one_that_sleeps_later_is_found() -> None:
    verdict = watched(Dozing, "router").is_quick()
    assert rejected(verdict, "an engine would stand still")


def test_one_that_hangs_is_ended() -> None:
    failure = watched(Hanging, "router", hang_s=1.0).failure
    assert failure is not None
    assert rejected(failure, "did not return within the limit")
