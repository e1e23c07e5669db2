"""Cheater: memorises the test seeds' traffic and recognises it by its first requests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation.clairvoyant import ClairvoyantEngine, OutputOracle
from synergy_gym.evaluation.conduct.examine import Examination, fresh_seeds
from synergy_gym.evaluation.conduct.watch import Watch, Watcher
from synergy_gym.policies import EnginePolicy, RouterPolicy
from synergy_gym.policies.base import Layer
from synergy_gym.scenario import load_scenario
from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView
from tests.cheaters.judging import rejected, stage_of

LOAD = 1.5


@cache
def memory(name: str) -> dict[int, OutputOracle]:
    """What was learnt by heart: the traffic of every test seed, by its first arrival."""
    scenario = load_scenario(name)
    plays = [scenario.workload(LOAD, seed) for seed in scenario.test_seeds]
    return {int(traffic.arrival_ns[0]): OutputOracle(traffic) for traffic in plays}


class Memorising(EnginePolicy):
    """Clairvoyant on traffic that it recognises, the server's own scheduling elsewhere."""

    def reset(self, rng: np.random.Generator, spec: Any, slos: Any) -> None:
        self.given = rng, spec, slos
        self.knows: EnginePolicy | None = None

    def observe(self, step: Any) -> None:
        if self.knows is not None:
            self.knows.observe(step)

    def decide(self, engine: EngineView) -> BatchDecision:
        if self.knows is None:
            first = round(1e9 * (engine.now_s - float(engine.waiting.waited_s.max(initial=0.0))))
            near = [oracle for at, oracle in memory("smoke").items() if abs(at - first) < 3]
            self.knows = ClairvoyantEngine(near[0]) if near else EnginePolicy()
            self.knows.reset(*self.given)
        return self.knows.decide(engine)


@cache
def choices() -> dict[int, list[int]]:
    """What a good policy chose on every test seed, by the instant of its first request."""
    stage = stage_of("router", LOAD)
    found = {}
    for seed in load_scenario("smoke-cluster").test_seeds:
        watch = Watch()
        result = stage.play("router", "prism-plus", seed, [Watcher("router", watch)])
        found[int(result.records.arrival_ns[0])] = watch.tapes[0].answers
    return found


class MemorisingRouter(RouterPolicy):
    """Choices learnt by heart on traffic that it recognises, the first engine elsewhere."""

    def reset(self, *given: Any) -> None:
        self.left: Iterator[int] | None = None

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        if self.left is None:
            self.left = iter(choices().get(cluster.now_ns, ()))
        known = next(self.left, None)
        return int(cluster.alive.argmax()) if known is None else known


@pytest.mark.parametrize(
    ("policy", "layer"), [(Memorising, "engine"), (MemorisingRouter, "router")]
)
def test_fresh_seeds_find_who_knows_the_test_seeds(policy: type, layer: Layer) -> None:
    seen = Examination(policy, layer, stage_of(layer, LOAD))
    assert rejected(seen.is_as_good_on_fresh_seeds(), "on fresh ones", "not from seeds")


def test_fresh_seeds_are_in_no_split() -> None:
    scenario = load_scenario("smoke")
    known = {*scenario.train_seeds, *scenario.validation_seeds, *scenario.test_seeds}
    first, second = fresh_seeds(50), fresh_seeds(50)
    assert len({*first, *second}) == 100
    assert not known & {*first, *second}
