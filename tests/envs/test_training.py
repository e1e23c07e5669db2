"""The environments train under stable-baselines3, with and without masks."""

from __future__ import annotations

from typing import Any

import pytest

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.discount import RerouteIllegal, SemiMarkovDiscount
from synergy_gym.envs.wrappers.one_layer import OneLayer
from synergy_gym.scenario import Scenario

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu"}


@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_ppo_on_batching(short_engine: Scenario, small_traffic: Any, observation: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="extra rl")
    inner = EngineBatchingEnv(short_engine, workload=small_traffic, observation=observation)
    env = SemiMarkovDiscount(inner, beta_per_s=0.1)
    policy = "MlpPolicy" if observation == "flat" else "MultiInputPolicy"
    model = sb3.PPO(policy, env, gamma=1.0, seed=1, **SMALL).learn(32)
    assert model.num_timesteps == 32


def test_ppo_without_masks(failing_cluster: Scenario, small_traffic: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="extra rl")
    env = RerouteIllegal(ClusterRoutingEnv(failing_cluster, workload=small_traffic))
    model = sb3.PPO("MlpPolicy", env, seed=1, **SMALL).learn(64)
    assert model.num_timesteps == 64


def test_maskable_ppo_never_meets_an_engine_that_is_down(
    failing_cluster: Scenario, small_traffic: Any
) -> None:
    contrib = pytest.importorskip("sb3_contrib", reason="extra rl")
    env = ClusterRoutingEnv(failing_cluster, workload=small_traffic)
    model = contrib.MaskablePPO("MlpPolicy", env, seed=1, **SMALL).learn(64)
    assert model.num_timesteps == 64


def test_maskable_ppo_on_both_layers(failing_cluster: Scenario, small_traffic: Any) -> None:
    contrib = pytest.importorskip("sb3_contrib", reason="extra rl")
    env = CrossLayerEnv(failing_cluster, workload=small_traffic)
    model = contrib.MaskablePPO("MlpPolicy", env, seed=1, **SMALL).learn(64)
    assert model.num_timesteps == 64


def test_layers_learn_in_turn(failing_cluster: Scenario, small_traffic: Any) -> None:
    """Each against the other's present network."""
    contrib = pytest.importorskip("sb3_contrib", reason="extra rl")
    world = CrossLayerEnv(failing_cluster, workload=small_traffic)
    router_env = OneLayer(world, "router", lambda observation, info: [8, 4, 0, 0])
    router = contrib.MaskablePPO("MlpPolicy", router_env, seed=1, **SMALL).learn(16)

    def route(observation: Any, info: dict[str, Any]) -> Any:
        mask = info.get("action_mask", [None])[0]
        return router.predict(observation, action_masks=mask, deterministic=True)[0]

    engine_env = OneLayer(world, "engine", route)
    engine = contrib.MaskablePPO("MlpPolicy", engine_env, seed=1, **SMALL).learn(32)
    assert (router.num_timesteps, engine.num_timesteps) == (16, 32)
