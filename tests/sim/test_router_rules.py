"""Routers that the simulator plays by itself decide as the policies whose rules they are."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import njit

from synergy_gym.evaluation import evaluate
from synergy_gym.policies import router_policies
from synergy_gym.policies.base import RouterPolicy, router_rule
from synergy_gym.policies.registry import make_router_policy
from synergy_gym.policies.router.least_outstanding import LeastOutstanding
from synergy_gym.policies.router.round_robin import RoundRobin
from synergy_gym.router_table import RouterKind
from synergy_gym.scenario import load_scenario
from synergy_gym.seeding import policy_stream
from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.compiled.pcg64 import draw_below, draw_float, write_state
from synergy_gym.sim.compiled.records import at
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.points import DONE, ROUTE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import INFORMATION_CLASSES, ClusterView, RequestView, RouterRule
from tests.sim.test_equivalence import same
from tests.strategies import SEEDS, Episode, choose, episodes, give

KINDS = get_args(RouterKind)
router_at = at(L.ROUTER)


@njit
def drawn(address: int, bounds: Any, out: Any) -> None:
    router = router_at(address)
    for i in range(len(bounds)):
        if bounds[i] == 0:
            out[i] = draw_float(router)
        else:
            out[i] = draw_below(router, bounds[i])


def test_draws_are_numpys(rng: np.random.Generator) -> None:
    """Floats and bounded integers in any order, from a fresh and from a used generator."""
    bounds = rng.choice([0, 1, 2, 3, 7, 1000, (1 << 31) + 5, (1 << 32) - 2], 5000)
    generator = policy_stream(int(rng.integers(1 << 30)))
    generator.integers(5)
    record = np.zeros(1, L.ROUTER.dtype)
    write_state(record[0], generator)
    out = np.empty(len(bounds))
    drawn(record.ctypes.data, bounds, out)
    wanted = [float(generator.integers(b)) if b else generator.random() for b in bounds.tolist()]
    assert out.tolist() == wanted


def test_another_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="draws from PCG64, not MT19937"):
        write_state(np.zeros(1, L.ROUTER.dtype)[0], np.random.Generator(np.random.MT19937(1)))


def played(sim: Any, seed: int, policy: RouterPolicy | None, rng: np.random.Generator) -> Any:
    """The episode with a policy at its ROUTE points; without one there must be none."""
    batches, information = random.Random(seed), frozenset(INFORMATION_CLASSES)
    routes = []
    while (point := sim.advance()) != DONE:
        if point == ROUTE:
            assert policy is not None
            routes.append(policy.route(sim.request_view(), sim.cluster_view(rng, information)))
            sim.route(routes[-1])
        else:
            give(sim, point, choose(sim, point, batches))
    return sim


def weighted(episode: Episode, rng: random.Random) -> Episode:
    """Engines of different weights."""
    specs = [replace(spec, weight=rng.uniform(0.1, 3.0)) for spec in episode.engines]
    return Episode(
        {**episode.arguments, "engines": tuple(specs), "auto_route": False}, episode.seed
    )


@settings(suppress_health_check=list(HealthCheck))
@given(episode=episodes(), kind=st.sampled_from(KINDS), seed=SEEDS)
def test_a_rule_decides_as_its_policy(episode: Episode, kind: str, seed: int) -> None:
    """On random clusters, with engines that fail, impatient clients and closed loops."""
    episode = weighted(episode, random.Random(seed))
    runs = []
    for simulator in (Simulator, ReferenceSimulator):
        for ruled in (False, True):
            policy, rng = make_router_policy(kind), policy_stream(seed)
            policy.reset(rng, episode.engines, episode.arguments["slos"])
            rule = router_rule(policy)
            assert rule is not None
            more = {"router": (rule, rng)} if ruled else {}
            sim = Episode({**episode.arguments, **more}, episode.seed).build(simulator)
            runs.append(played(sim, seed, None if ruled else policy, rng))
    first, *others = runs
    for other in others:
        assert other.log_hash() == first.log_hash()
        same(other.records(), first.records(), "records")
        assert other.met() == first.met()


def test_every_policy_with_a_rule_is_held_to_it() -> None:
    scenario, found = load_scenario("smoke-cluster"), set()
    for name in router_policies():
        policy = make_router_policy(name)
        policy.reset(policy_stream(0), scenario.engines, scenario.slos)
        if router_rule(policy) is not None:
            found.add(name)
    assert found == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_plays_the_rule(kind: str) -> None:
    ruled = evaluate("smoke-cluster", router_policy=kind, seed=3)
    asked = evaluate("smoke-cluster", router_policy=kind, seed=3, simulator=Simulator)
    assert ruled.timings["router_decisions"] == 0
    assert asked.timings["router_decisions"] > 100
    assert ruled.log_hash == asked.log_hash
    assert ruled.summary == asked.summary


class Backwards(RoundRobin):
    """Overrides the decision, and so must not be replaced by its parent's rule."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        return int(np.flatnonzero(cluster.alive)[-1])


class Watching(LeastOutstanding):
    """Learns from completions."""

    def observe(self, completion: Any) -> None:
        self.seen = completion


class Honest(Backwards):
    def rule(self) -> RouterRule:
        return RouterRule("random")


def test_a_subclass_that_decides_otherwise_does_not_inherit_the_rule() -> None:
    assert router_rule(RoundRobin()) == RouterRule("round-robin")
    assert router_rule(Backwards()) is None
    assert router_rule(Watching()) is None
    assert router_rule(Honest()) == RouterRule("random")
    last = evaluate("smoke-cluster", router_policy=Backwards, seed=3)
    assert set(last.records.engine.tolist()) == {2}
