"""Cheater: raises at random, in the hope that an episode that goes badly does not count."""

from __future__ import annotations

import secrets
import sys

import pytest

from synergy_gym.evaluation.conduct.examine import examine
from synergy_gym.evaluation.jobs import Job
from synergy_gym.evaluation.workers.run import run_jobs
from synergy_gym.policies import EnginePolicy, RouterPolicy
from synergy_gym.policies.base import Layer
from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView
from tests.cheaters.judging import rejected, watched

ONE_IN = 10
"""Of several hundred decisions: an episode without it has a chance below 1e-9."""


class FallingEngine(EnginePolicy):
    """Gives up now and then."""

    def decide(self, engine: EngineView) -> BatchDecision:
        if secrets.randbelow(ONE_IN) == 0:
            raise RuntimeError("not today")
        return super().decide(engine)


class FallingRouter(RouterPolicy):
    """Gives up now and then."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        if secrets.randbelow(ONE_IN) == 0:
            raise RuntimeError("not today")
        return super().route(request, cluster)


class Leaving(RouterPolicy):
    """Ends the process."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        sys.exit(0)


class Whimsical(RouterPolicy):
    """Draws from a generator of its own, so that no episode can be played again."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        up = cluster.alive.nonzero()[0]
        return int(up[secrets.randbelow(len(up))])


@pytest.mark.parametrize(
    ("policy", "layer"), [(FallingEngine, "engine"), (FallingRouter, "router")]
)
def test_who_raises_is_rejected(policy: type, layer: Layer) -> None:
    failure = watched(policy, layer).failure
    assert failure is not None
    assert rejected(failure, "raised RuntimeError: not today", "correct the policy")


def test_leaving_is_no_way_out() -> None:
    found = examine(Leaving, "router", worlds=1)
    assert rejected(found[0], "SystemExit")


def test_an_episode_that_fails_is_a_missing_row() -> None:
    """It makes a table incomplete, which is an error; it does not leave the mean."""
    jobs = [Job("x", "smoke-cluster", 1.5, 3000, "vllm-v1", FallingRouter, 8.0, 1.0)]
    batch = run_jobs(jobs)
    assert not batch.results
    assert "raised RuntimeError: not today" in batch.failures[jobs[0]]


def test_what_cannot_be_repeated_is_rejected() -> None:
    assert rejected(watched(Whimsical, "router").repeats_itself(), "two plays of one episode")
