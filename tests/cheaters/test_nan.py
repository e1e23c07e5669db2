"""Cheater: answers NaN and the like, in the hope that a comparison with it goes well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation.conduct.examine import examine
from synergy_gym.policies import EnginePolicy, RouterPolicy
from synergy_gym.policies.base import Layer
from synergy_gym.types import BatchDecision, ClusterView, EngineAdvert, EngineView, RequestView
from tests.cheaters.judging import rejected, watched

NAN: Any = float("nan")


class NanBudget(EnginePolicy):
    """No number of tokens."""

    def decide(self, engine: EngineView) -> BatchDecision:
        return BatchDecision(NAN)


class NanCap(EnginePolicy):
    """No number of requests."""

    def decide(self, engine: EngineView) -> BatchDecision:
        return BatchDecision(64, max_running=NAN)


class NanOrder(EnginePolicy):
    """No order."""

    def decide(self, engine: EngineView) -> BatchDecision:
        order: Any = np.full(engine.num_waiting, np.nan)
        return BatchDecision(64, waiting_order=order)


class NanCaps(EnginePolicy):
    """No caps."""

    def decide(self, engine: EngineView) -> BatchDecision:
        caps: Any = np.full(engine.num_running + engine.num_waiting, np.nan)
        return BatchDecision(64, token_caps=caps)


class NanAdvert(EnginePolicy):
    """Routers are told nonsense."""

    def decide(self, engine: EngineView) -> BatchDecision:
        return BatchDecision(64, advert=EngineAdvert(predicted_step_s=NAN))


class NoDecision(EnginePolicy):
    """Nothing at all."""

    def decide(self, engine: EngineView) -> Any:
        return None


class NanEngine(RouterPolicy):
    """No engine."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        return NAN  # type: ignore[no-any-return]


class ManyEngines(RouterPolicy):
    """All at once."""

    def route(self, request: RequestView, cluster: ClusterView) -> Any:
        return np.arange(cluster.num_engines)


@pytest.mark.parametrize(
    ("policy", "layer", "place"),
    [
        (NanBudget, "engine", "token_budget"),
        (NanCap, "engine", "max_running"),
        (NanOrder, "engine", "waiting_order"),
        (NanCaps, "engine", "token_caps"),
        (NanAdvert, "engine", "predicted_step_s"),
        (NoDecision, "engine", "return a BatchDecision"),
        (NanEngine, "router", "return the engine's index"),
        (ManyEngines, "router", "return the engine's index"),
    ],
)
def test_nonsense_is_rejected_by_name(policy: type, layer: Layer, place: str) -> None:
    failure = watched(policy, layer).failure
    assert failure is not None
    assert rejected(failure, "PolicyError", policy.__name__, place)


def test_both_checks_say_so() -> None:
    found = examine(NanEngine, "router", worlds=2)
    assert [verdict.passed for verdict in found] == [False, False]
