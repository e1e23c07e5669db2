"""Cheater: regenerates the traffic from the seed, and plays it with every length known.

The generator that a policy gets does not name its seed, but its state can be compared with those
of seeds that are known, such as a scenario's test seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation.clairvoyant import ClairvoyantEngine, ClairvoyantRouter, OutputOracle
from synergy_gym.evaluation.conduct.examine import Examination
from synergy_gym.evaluation.conduct.two_futures import two_futures
from synergy_gym.policies import EnginePolicy, RouterPolicy
from synergy_gym.policies.base import Layer
from synergy_gym.scenario import load_scenario
from synergy_gym.seeding import policy_stream
from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView
from tests.cheaters.judging import rejected, stage_of

LOAD = 1.5


def oracle_for(rng: np.random.Generator, name: str, engine: int | None) -> OutputOracle | None:
    """Every length of the episode whose generator this is; `None` for a seed it does not know."""
    scenario = load_scenario(name)
    for seed in (*scenario.validation_seeds, *scenario.test_seeds):
        if policy_stream(seed, engine).bit_generator.state == rng.bit_generator.state:
            return OutputOracle(scenario.workload(LOAD, seed))
    return None


class Regenerating(EnginePolicy):
    """The clairvoyant policy where it knows the seed, the server's own scheduling elsewhere."""

    def reset(self, rng: np.random.Generator, spec: Any, slos: Any) -> None:
        oracle = oracle_for(rng, "smoke", 0)
        self.knows: EnginePolicy = EnginePolicy() if oracle is None else ClairvoyantEngine(oracle)
        self.knows.reset(rng, spec, slos)

    def observe(self, step: Any) -> None:
        self.knows.observe(step)

    def decide(self, engine: EngineView) -> BatchDecision:
        return self.knows.decide(engine)


class RegeneratingRouter(RouterPolicy):
    """The same of routers."""

    information = frozenset({"router", "pushed"})

    def reset(self, rng: np.random.Generator, engines: Any, slos: Any) -> None:
        oracle = oracle_for(rng, "smoke-cluster", None)
        self.knows: RouterPolicy = RouterPolicy() if oracle is None else ClairvoyantRouter(oracle)
        self.knows.reset(rng, engines, slos)

    def observe(self, completion: Any) -> None:
        self.knows.observe(completion)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        return self.knows.route(request, cluster)


@pytest.mark.parametrize("engine", [None, 0, 3])
def test_a_generator_does_not_name_its_seed(engine: int | None, seed: int) -> None:
    told: Any = policy_stream(seed, engine).bit_generator.seed_seq
    assert told.entropy != seed
    assert told.entropy > 2**64


CHEATERS: list[tuple[type, Layer]] = [(Regenerating, "engine"), (RegeneratingRouter, "router")]


@pytest.mark.parametrize(("policy", "layer"), CHEATERS)
def test_who_knows_the_seed_by_its_generator_is_found(policy: type, layer: Layer) -> None:
    seen = Examination(policy, layer, stage_of(layer, LOAD))
    assert rejected(seen.is_blind_to_its_generator(), "not to tell seeds by")


def test_why_two_futures_are_not_enough() -> None:
    """It predicts the same future in both worlds, or none; it does not look at the real one."""
    assert two_futures(Regenerating, "engine", range(5)).passed


class Gambling(Regenerating):
    """Draws a number to look like a policy that needs them."""

    def decide(self, engine: EngineView) -> BatchDecision:
        self.rng.random()
        return super().decide(engine)

    def reset(self, rng: np.random.Generator, spec: Any, slos: Any) -> None:
        super().reset(rng, spec, slos)
        self.rng = rng


@pytest.mark.slow
def test_drawing_does_not_hide_it() -> None:
    seen = Examination(Gambling, "engine", stage_of("engine", LOAD))
    verdict = seen.is_blind_to_its_generator()
    assert rejected(verdict, "the episode's own generator is worth", "not from seeds")
