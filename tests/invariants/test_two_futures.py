"""Invariants 7 and 8, black-box: no policy's decision depends on anything that is still to come.

The test itself is `synergy_gym.evaluation.conduct.two_futures`, which submissions have to pass too.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synergy_gym.evaluation.conduct.two_futures import (
    PlayedWorld,
    SmallWorld,
    play_engine,
    play_pair,
    play_router,
    player,
    two_futures,
)
from synergy_gym.policies import EnginePolicy, RouterPolicy, engine_policies, router_policies
from synergy_gym.policies.agent_file import packaged_agents
from synergy_gym.sim.points import DONE
from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView
from synergy_gym.workload.base import Workload

CANDIDATES = (
    ("synergy_gym.sim.plain.simulator", "ReferenceSimulator"),
    ("synergy_gym.sim.simulator", "Simulator"),
)
AGENTS = [f"agent:{name}" for name in packaged_agents("engine")]
ENGINE = [*engine_policies(), "random:full=true", *AGENTS]
ROUTER = [*router_policies(), *(f"agent:{name}" for name in packaged_agents("router"))]
# Per policy and simulator; together they are well above what the profile asks of one invariant.
EXAMPLES = settings(max_examples=max(20, settings.default.max_examples // 10))
SEEDS = st.integers(0, 2**32 - 1)


def simulators() -> Iterator[type]:
    for module, name in CANDIDATES:
        try:
            yield getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise


SIMULATORS = list(simulators())


def test_a_simulator_is_there() -> None:
    assert SIMULATORS
    assert DONE == 0


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", ENGINE)
@EXAMPLES
@given(seed=SEEDS)
def test_engine_policy_does_not_know_the_future(name: str, simulator: type, seed: int) -> None:
    pair = play_pair(seed, *player(name, "engine"), simulator)
    assert pair.first
    assert pair.same, pair.difference()


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", ROUTER)
@EXAMPLES
@given(seed=SEEDS)
def test_router_policy_does_not_know_the_future(name: str, simulator: type, seed: int) -> None:
    pair = play_pair(seed, *player(name, "router"), simulator)
    assert pair.first
    assert pair.same, pair.difference()


class Clairvoyant(EnginePolicy, RouterPolicy):  # type: ignore[misc]
    """A control: it looks where no policy can, so the test must catch it."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.total = 0

    def reset(self, *args: object) -> None:
        """Keep what the test gave it."""

    def observe(self, *args: object) -> None:
        """Learn nothing."""

    def decide(self, engine: EngineView) -> BatchDecision:
        return BatchDecision(token_budget=64 + self.total % 64)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        up = np.flatnonzero(cluster.alive)
        return int(up[self.total % len(up)])

    def play_engine(self, simulator: type, world: SmallWorld, workload: Workload) -> PlayedWorld:
        self.total = int(getattr(workload, self.column).sum())
        return play_engine(self, simulator, world, workload)

    def play_router(self, simulator: type, world: SmallWorld, workload: Workload) -> PlayedWorld:
        self.total = int(getattr(workload, self.column).sum())
        return play_router(self, simulator, world, workload)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("column", ["arrival_ns", "output_tokens"])
def test_a_clairvoyant_policy_is_caught(column: str, simulator: type) -> None:
    cheat = Clairvoyant(column)
    for count, play in ((1, cheat.play_engine), (3, cheat.play_router)):
        pairs = [play_pair(seed, count, play, simulator) for seed in range(5)]
        told = [pair.difference() for pair in pairs if not pair.same]
        assert told
        assert all("it decided" in text for text in told)


def test_a_verdict_says_what_was_played() -> None:
    verdict = two_futures("round-robin", "router", range(3))
    assert verdict.passed
    assert verdict.figures["worlds"] == 3
    assert verdict.figures["decisions"] > 3
    assert verdict.entry()["check"] == "two-futures"


def test_nothing_played_is_no_pass() -> None:
    assert not two_futures("vllm-v1", "engine", ()).passed


def test_a_policy_that_fails_is_no_pass() -> None:
    verdict = two_futures("least-loaded", "router", range(1))
    assert verdict.passed, verdict.reason

    class Broken(RouterPolicy):
        def route(self, request: RequestView, cluster: ClusterView) -> int:
            raise ZeroDivisionError("on purpose")

    verdict = two_futures(Broken, "router", range(3))
    assert not verdict.passed
    assert verdict.reason.startswith("world 0: raised PolicyError: router policy ")
    assert "raised ZeroDivisionError: on purpose; correct the policy" in verdict.reason


def test_a_pair_is_tested_layer_by_layer() -> None:
    with pytest.raises(ValueError, match="one by one"):
        two_futures("vllm-v1", "joint")  # type: ignore[arg-type]
