"""The router environment with forecasts: spaces, and the same decisions as outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.wrappers.forecast import ForecastObservation
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.policies.agent_file import FORMAT, Agent, save_agent
from synergy_gym.policies.forecast import NUM_BLOCK_FEATURES
from synergy_gym.policies.learned import FORECAST_FEATURES, LearnedRouter, engine_rows
from synergy_gym.policies.registry import make_router_policy

SCENARIO = "smoke-cluster"


@pytest.fixture
def agent(tmp_path: Path, rng: np.random.Generator) -> str:
    """A file of random weights."""
    sizes = [(8, len(FORECAST_FEATURES)), (8, 16), (1, 8)]
    arrays = {f"w{i}": rng.normal(size=size).astype(np.float32) for i, size in enumerate(sizes)}
    arrays |= {f"b{i}": np.zeros(size[0], np.float32) for i, size in enumerate(sizes)}
    meta = {
        "format": FORMAT, "kind": "router", "name": "random", "network": "scorer",
        "activation": "relu", "features": FORECAST_FEATURES, "frames": 1, "interval_s": 0.0,
        "training": {},
    }  # fmt: skip
    save_agent(tmp_path / "random.npz", Agent(meta, arrays))
    return str(tmp_path / "random.npz")


def played(env: gym.Env[Any, Any], choose: Any, seed: int) -> str:
    observation, _ = env.reset(seed=seed)
    while True:
        observation, _, _, ended, info = env.step(choose(observation))
        if ended:
            assert not observation.any()
            return str(info["log_hash"])


def test_gymnasium_accepts_it() -> None:
    check_env(ForecastObservation(ClusterRoutingEnv(SCENARIO)), skip_render_check=True)


def test_an_agent_decides_in_the_environment_as_in_an_evaluation(agent: str, seed: int) -> None:
    policy = LearnedRouter(agent)
    env = ForecastObservation(ClusterRoutingEnv(SCENARIO))

    def choose(observation: Any) -> int:
        rows = engine_rows(observation, NUM_BLOCK_FEATURES)
        return int(policy._network(rows, env.action_masks()).argmax())

    expected = evaluate(SCENARIO, "vllm-v1", f"agent:{agent}", seed=seed % 1000)
    assert played(env, choose, seed % 1000) == expected.log_hash


@pytest.mark.parametrize("name", ["prism-plus", "least-outstanding"])
def test_views_let_a_policy_play_in_the_environment(name: str, seed: int) -> None:
    env = ClusterRoutingEnv(SCENARIO)
    assert env.views() is None
    policy = make_router_policy(name)
    policy.reset(np.random.default_rng(0), tuple(env.engines), tuple(env.scenario.slos))
    env.reset(seed=seed % 1000)
    ended = False
    while not ended:
        views = env.views()
        assert views is not None
        request, cluster, completions = views
        for completion in completions:
            policy.observe(completion)
        _, _, _, ended, info = env.step(policy.route(request, cluster))
    assert info["log_hash"] == evaluate(SCENARIO, "vllm-v1", name, seed=seed % 1000).log_hash
    assert env.views() is None


def test_another_environment_is_refused() -> None:
    with pytest.raises(TypeError, match="ClusterRouting-v1"):
        ForecastObservation(gym.make("CartPole-v1"))
