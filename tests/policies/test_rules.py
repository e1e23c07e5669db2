"""A policy's compiled rule plays every episode exactly as its `decide` does."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synergy_gym.latency.clock import StepTerms
from synergy_gym.policies import engine_policies, make_engine_policy
from synergy_gym.sim.points import BATCH
from synergy_gym.types import SLO, DecisionRule, EngineSpec
from synergy_gym.workload.base import Workload, make_workload

CANDIDATES = (
    ("synergy_gym.sim.plain.simulator", "ReferenceSimulator"),
    ("synergy_gym.sim.simulator", "Simulator"),
)
SLOS = (SLO("chat", ttft_s=0.4), SLO("batch", e2e_s=5.0), SLO("code", ttft_s=0.1))


def simulators() -> Iterator[type]:
    for module, name in CANDIDATES:
        try:
            yield getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise


SIMULATORS = list(simulators())


def make_traffic(rng: np.random.Generator) -> Workload:
    count = int(rng.integers(1, 60))
    return make_workload(
        np.sort(rng.integers(0, 10**9, count)),
        rng.integers(1, 300, count),
        rng.integers(1, 60, count),
        slo_class=rng.integers(0, len(SLOS), count),
    )


def make_spec(rng: np.random.Generator) -> EngineSpec:
    seqs, blocks = int(rng.integers(1, 40)), int(rng.integers(20, 120))
    return EngineSpec("e", "g", "m", "p", seqs, 2048, 512, blocks)


def has_rule(name: str) -> bool:
    policy = make_engine_policy(name)
    policy.reset(np.random.default_rng(0), make_spec(np.random.default_rng(0)), SLOS)
    return policy.rule() is not None


NAMES = [name for name in engine_policies() if has_rule(name)]


def play(simulator: type, name: str, seed: int, ruled: bool) -> list[Any]:
    """Everything that happened."""
    rng = np.random.default_rng(seed)
    spec = make_spec(rng)
    policy = make_engine_policy(name)
    policy.reset(np.random.default_rng(0), spec, SLOS)
    rule = policy.rule()
    assert isinstance(rule, DecisionRule)
    sim = simulator(
        engines=[spec],
        clocks=[StepTerms(base_ms=3.0, per_token_ms=0.1, noise_sd=0.05).clock(seed)],
        workload=make_traffic(rng),
        slos=SLOS,
        rules=[rule if ruled else None],
        auto_route=True,
    )
    while sim.advance() == BATCH:
        sim.batch(policy.decide(sim.engine_view(0)))
    records = sim.records()
    happened = [getattr(records, item.name).tolist() for item in dataclasses.fields(records)]
    queue_order = rule.order == "queue"  # reordering by a policy is part of the decision log
    return [happened, sim.last_step(0), sim.log_hash() if queue_order else ""]


def test_simulators_and_rules_are_there() -> None:
    assert SIMULATORS
    assert set(NAMES) >= {"vllm-v1", "sarathi-512", "shortest-prompt", "earliest-deadline"}


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=max(25, settings.default.max_examples // 8))
@given(seed=st.integers(0, 2**32 - 1))
def test_rule_plays_like_decide(name: str, simulator: type, seed: int) -> None:
    assert play(simulator, name, seed, ruled=True) == play(simulator, name, seed, ruled=False)
