"""`horizon_s` and `warmup_s` give an environment the window that `evaluate` takes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import synergy_gym  # noqa: F401 - registers the ids
from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.vector import EngineBatchingVectorEnv
from synergy_gym.evaluation import evaluate
from tests.envs.forms import LIMITS

WINDOW = {"horizon_s": 4.0, "warmup_s": 1.0}


def last_info(env: Any, decide: Any) -> dict[str, Any]:
    env.reset(seed=7)
    steps, ended = 0, False
    while not ended:
        *_, ended, info = env.step(decide(env, steps))
        steps += 1
    final: dict[str, Any] = info
    return final


def most(env: Any, step: int) -> Any:
    return env.action_space.nvec - 1


def in_turn(env: Any, step: int) -> int:
    return step % int(env.action_space.n)


def joint(env: CrossLayerEnv, step: int) -> Any:
    sizes = env.actions.engines[env._engine].sizes
    return [size - 1 for size in sizes]


@pytest.mark.parametrize("kind", ["engine", "router", "both"])
def test_it_is_the_window_of_evaluate(kind: str) -> None:
    name = "smoke" if kind == "engine" else "smoke-cluster"
    env: Any = {
        "engine": lambda: EngineBatchingEnv(name, load=1.2, **WINDOW, **LIMITS),
        "router": lambda: ClusterRoutingEnv(name, load=1.2, **WINDOW),
        "both": lambda: CrossLayerEnv(
            name, load=1.2, router_policy="round-robin", **WINDOW, **LIMITS
        ),
    }[kind]()
    info = last_info(env, {"engine": most, "router": in_turn, "both": joint}[kind])
    wanted = evaluate(name, "vllm-v1", "round-robin", load=1.2, seed=7, **WINDOW)  # type: ignore[arg-type]
    assert info["log_hash"] == wanted.log_hash
    metrics = info["episode_metrics"]
    assert metrics["offered"] == wanted.summary["offered"] > 0
    assert metrics["slo_attainment"] == wanted.summary["slo_attainment"]
    assert env.scenario.horizon_s == 4.0


def test_without_it_the_scenario_says() -> None:
    env: Any = gym.make("SynergyGym/ClusterRouting-v1", scenario="smoke-cluster")
    assert (env.scenario.horizon_s, env.scenario.warmup_s) == (20.0, 2.0)
    short: Any = gym.make("SynergyGym/ClusterRouting-v1", scenario="smoke-cluster", horizon_s=5)
    assert (short.scenario.horizon_s, short.scenario.warmup_s) == (5.0, 2.0)


def test_vector_environments_take_it_for_all() -> None:
    envs = EngineBatchingVectorEnv(2, scenario=["smoke", "chat-h100"], **WINDOW)
    assert {scenario.horizon_s for scenario in envs.get_attr("scenario")} == {4.0}
    envs.reset(seed=1)
    for env in envs.envs:
        core: Any = env.unwrapped
        assert core._sim.records().arrival_ns.max() < 4 * 10**9


def test_a_given_workload_is_scored_in_it(short_engine: Any, small_traffic: Any) -> None:
    env = EngineBatchingEnv(short_engine, workload=small_traffic, horizon_s=1.0, warmup_s=0.5)
    info = last_info(env, lambda env, step: np.array([8, 4, 0, 0]))
    arrivals = small_traffic(1.0, 7).arrival_ns
    assert info["episode_metrics"]["offered"] == ((arrivals >= 5e8) & (arrivals < 1e9)).sum()
    assert info["episode_metrics"]["full"]["offered"] == 40


def test_an_event_beyond_the_horizon_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"horizon_s=30 ends scenario 'incident-cold-restart'"):
        gym.make("SynergyGym/ClusterRouting-v1", scenario="incident-cold-restart", horizon_s=30)
