"""A policy in front of real engines: rehearsed, asked, and replaced when it fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from synergy_gym.live.router.policy import LiveRouter, NoEngineError
from synergy_gym.live.router.rehearsal import REQUESTS, rehearse_routing
from synergy_gym.live.router.state import RouterState
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.registry import make_router_policy, router_policies
from synergy_gym.types import SLO, ClusterView, Outcome, RequestView
from tests.live.fake_upstream import Pinned, spec

SLOS = (SLO("default", ttft_s=1.0, tpot_s=0.05),)
ENGINES = [spec(name) for name in "abc"]


def router(policy: RouterPolicy) -> LiveRouter:
    return LiveRouter(policy, RouterState(ENGINES), SLOS, np.random.default_rng(0))


@pytest.mark.parametrize("name", router_policies())
def test_every_policy_passes_its_rehearsal(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert rehearse_routing(make_router_policy(name), ENGINES, SLOS) == 0
    assert not caplog.records, "a rehearsal warns of nothing that is not there"


def test_a_rehearsal_leaves_no_trace() -> None:
    policy = Pinned()
    rehearse_routing(policy, ENGINES, SLOS)
    assert not policy.requests


def test_a_rehearsal_shows_models_and_completions() -> None:
    shown: dict[str, Any] = {}

    class Nosy(Pinned):
        def route(self, request: RequestView, cluster: ClusterView) -> int:
            shown["models"] = cluster.pushed.step_ms.any(axis=1).all()
            shown["completions"] = len(self.completions)
            return super().route(request, cluster)

    rehearse_routing(Nosy(), ENGINES, SLOS)
    assert shown["models"]
    assert shown["completions"] > 2


def test_a_policy_that_fails_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RouterPolicy):
        def route(self, request: RequestView, cluster: ClusterView) -> int:
            raise KeyError("no")

    assert rehearse_routing(Broken(), ENGINES, SLOS) == REQUESTS
    assert "failed 16 times in rehearsal" in caplog.text

    class Unready(RouterPolicy):
        def reset(self, *arguments: Any) -> None:
            raise ValueError("not on these engines")

    assert rehearse_routing(Unready(), ENGINES, SLOS) == 1
    assert "not on these engines" in caplog.text


def test_completions_come_before_the_next_choice() -> None:
    policy = Pinned()
    asked = router(policy)
    request = RequestView(prompt_tokens=5, arrival_s=0.0)
    engine, by_policy = asked.choose(request, 0)
    assert (engine, by_policy) == (0, True)
    asked.state.routed(1, engine, 5, 0)
    asked.state.ended(1, Outcome.FINISHED, 10)
    assert not policy.completions
    asked.choose(request, 20)
    assert [completion.engine for completion in policy.completions] == [0]


def test_round_robin_passes_over_engines_that_are_down() -> None:
    asked = router(Pinned())
    asked.state.down(1)
    assert [asked.round_robin() for _ in range(4)] == [0, 2, 0, 2]
    for engine in (0, 2):
        asked.state.down(engine)
    with pytest.raises(NoEngineError, match="none of 3"):
        asked.round_robin()
    with pytest.raises(NoEngineError):
        asked.choose(RequestView(prompt_tokens=5, arrival_s=0.0), 0)


def test_without_an_engine_the_policy_still_learns() -> None:
    policy = Pinned()
    asked = router(policy)
    asked.state.routed(1, 0, 5, 0)
    asked.state.ended(1, Outcome.FAILED, 10)
    with pytest.raises(NoEngineError):
        asked.choose(RequestView(prompt_tokens=5, arrival_s=0.0), 20, avoid=[0, 1, 2])
    assert [completion.outcome for completion in policy.completions] == [Outcome.FAILED]
