"""The compiled step equals the step in its parts, and is what the defaults use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.scenario import Scenario
from synergy_gym.types import SLO
from synergy_gym.workload.base import Workload, make_workload
from tests.envs.forms import LIMITS


def play(env: Any, seed: int, *, fused: bool) -> list[Any]:
    actions = np.random.default_rng(seed)
    observation, _ = env.reset(seed=3)
    steps: list[Any] = [observation.tolist()]
    truncated = False
    while not truncated:
        if not fused:
            env._fused = None
        action = np.array(actions.integers(getattr(env.action_space, "nvec", 3)))
        observation, reward, _, truncated, info = env.step(action)
        facts = [info.get(name) for name in ("dt_s", "reward_terms", "iterations")]
        steps.append((observation.tolist(), reward, facts))
    return [*steps, info["log_hash"]]


@pytest.mark.parametrize("kind", [EngineBatchingEnv, ClusterRoutingEnv])
def test_both_ways_are_equal(
    kind: Any, short_engine: Scenario, short_cluster: Scenario, small_traffic: Any, seed: int
) -> None:
    scenario = short_engine if kind is EngineBatchingEnv else short_cluster
    form = LIMITS if kind is EngineBatchingEnv else {}
    env = kind(scenario, workload=small_traffic, **form)
    assert play(env, seed, fused=True) == play(env, seed, fused=False)


@pytest.mark.parametrize("interval_s", [None, 0.02])
@pytest.mark.parametrize("action", ["limits", "full", "grid"])
@pytest.mark.parametrize("scheduling", ["fcfs", "priority"])
def test_every_form_of_action_is_compiled(
    short_engine: Scenario, action: Any, scheduling: Any, interval_s: float | None, seed: int
) -> None:
    def play_small(load: float, seed: int) -> Workload:
        rng = np.random.default_rng(seed)
        times, classes = np.sort(rng.integers(0, 10**9, 60)), rng.integers(0, 2, 60)
        lengths = rng.integers(20, 900, 60), rng.integers(1, 40, 60)
        return make_workload(times, *lengths, slo_class=classes, priority=rng.integers(0, 3, 60))

    spec = replace(short_engine.engines[0], kv_blocks=160, scheduling=scheduling)
    slos = (SLO("a", ttft_s=0.2), SLO("b", e2e_s=3.0))
    scenario = replace(short_engine, engines=(spec,), slos=slos)
    env = EngineBatchingEnv(
        scenario, workload=play_small, action=action, decision_interval_s=interval_s
    )
    env.reset(seed=3)
    assert env._fused is not None
    for number in range(seed, seed + 30):  # one in ten series of random decisions preempts nobody
        assert play(env, number, fused=True) == play(env, number, fused=False)
        if env._sim.records().preemptions.sum() > 0:
            return
    pytest.fail("thirty episodes in a row without a preemption")


@pytest.mark.parametrize(
    ("arguments", "compiled"),
    [
        ({}, True),
        ({"observation": "dict"}, True),
        ({"render_mode": "ansi"}, True),
        ({"render_mode": "human"}, False),
        ({"backend": "reference"}, False),
    ],
    ids=str,
)
def test_what_is_compiled(
    short_engine: Scenario,
    short_cluster: Scenario,
    small_traffic: Any,
    arguments: dict[str, Any],
    compiled: bool,
) -> None:
    for env in (
        EngineBatchingEnv(short_engine, workload=small_traffic, **LIMITS, **arguments),
        EngineBatchingEnv(short_engine, workload=small_traffic, action="full", **arguments),
        EngineBatchingEnv(short_engine, workload=small_traffic, action="grid", **arguments),
        ClusterRoutingEnv(short_cluster, workload=small_traffic, **arguments),
        CrossLayerEnv(short_cluster, workload=small_traffic, **arguments),
    ):
        env.reset(seed=0)
        assert (env._fused is not None) == compiled
        env.close()


def test_options_that_need_the_parts(short_engine: Scenario, failing_cluster: Scenario) -> None:
    for env in (
        EngineBatchingEnv(short_engine, shaping="waiting"),
        CrossLayerEnv(failing_cluster),
        CrossLayerEnv(failing_cluster, router_policy="round-robin"),
        EngineBatchingEnv(short_engine, action="grid", shaping="waiting"),
        ClusterRoutingEnv(failing_cluster),
        ClusterRoutingEnv(failing_cluster, engine_policy="random"),
    ):
        env.reset(seed=0)
        assert env._fused is None
