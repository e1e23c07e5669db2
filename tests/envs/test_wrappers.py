"""SemiMarkovDiscount and RerouteIllegal."""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np
import pytest

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.discount import RerouteIllegal, SemiMarkovDiscount
from synergy_gym.scenario import Scenario
from tests.envs.forms import LIMITS

BETA = 0.7


def rewards(env: Any) -> tuple[list[float], list[dict[str, Any]]]:
    """Rewards and infos of one episode of constant actions."""
    _, info = env.reset(seed=3)
    collected: list[float] = []
    infos: list[dict[str, Any]] = []
    truncated = False
    while not truncated:
        _, reward, _, truncated, info = env.step(np.array([2000, 100]))
        collected.append(reward)
        infos.append(info)
    return collected, infos


def test_the_sum_of_rewards_is_the_discounted_return(
    short_engine: Scenario, small_traffic: Any
) -> None:
    plain, infos = rewards(EngineBatchingEnv(short_engine, workload=small_traffic, **LIMITS))
    elapsed = np.concatenate([[0.0], np.cumsum([info["dt_s"] for info in infos])[:-1]])
    wanted = sum(r * exp(-BETA * t) for r, t in zip(plain, elapsed, strict=True))
    env = SemiMarkovDiscount(
        EngineBatchingEnv(short_engine, workload=small_traffic, **LIMITS), BETA
    )
    for _ in range(2):
        discounted, infos = rewards(env)
        assert sum(discounted) == pytest.approx(wanted)
        assert all(i["discount"] == exp(-BETA * i["dt_s"]) for i in infos)


def test_rewards_can_be_left_alone(short_engine: Scenario, small_traffic: Any) -> None:
    plain, _ = rewards(EngineBatchingEnv(short_engine, workload=small_traffic, **LIMITS))
    inner = EngineBatchingEnv(short_engine, workload=small_traffic, **LIMITS)
    kept, infos = rewards(SemiMarkovDiscount(inner, BETA, scale_rewards=False))
    assert kept == plain
    assert all(0 < info["discount"] <= 1 for info in infos)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_must_be_positive(short_engine: Scenario, beta: float) -> None:
    with pytest.raises(ValueError, match="beta_per_s"):
        SemiMarkovDiscount(EngineBatchingEnv(short_engine), beta)


def test_illegal_actions_are_rerouted_and_counted(
    failing_cluster: Scenario, small_traffic: Any
) -> None:
    env = RerouteIllegal(ClusterRoutingEnv(failing_cluster, workload=small_traffic))
    for _ in range(2):
        env.reset(seed=3)
        count = 0
        truncated = False
        while not truncated:
            mask = env.unwrapped.action_masks()  # type: ignore[attr-defined]
            _, _, _, truncated, info = env.step(1)
            assert info["rerouted"] == (not mask[1])
            count += info["rerouted"]
            assert info["rerouted_total"] == count
        assert count > 0
    engines = env.unwrapped._sim.records().engine  # type: ignore[attr-defined]
    assert set(engines.tolist()) <= {1, 2}


def test_actions_outside_the_space_stay_errors(short_cluster: Scenario) -> None:
    env = RerouteIllegal(ClusterRoutingEnv(short_cluster))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(99)


def test_only_routing_can_be_rerouted(short_engine: Scenario) -> None:
    with pytest.raises(TypeError, match="Discrete"):
        RerouteIllegal(EngineBatchingEnv(short_engine))
