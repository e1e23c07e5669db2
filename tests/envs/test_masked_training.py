"""Masks reach sb3-contrib's MaskablePPO through every vector env and every wrapper."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.wrappers import (
    NormalizeReward,
    RecordEpisodeStatistics,
    TimeLimit,
)

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.randomisation.ranges import Choice, Integers, Outages, Several, Uniform
from synergy_gym.envs.randomisation.worlds import DomainRandomization, WorldRanges
from synergy_gym.envs.vector import ClusterRoutingVectorEnv
from synergy_gym.envs.wrappers.actions import DecisionInterval, DeltaActions, FlatActions
from synergy_gym.envs.wrappers.discount import RerouteIllegal, SemiMarkovDiscount
from synergy_gym.envs.wrappers.engine_blocks import EngineBlocks
from synergy_gym.scenario import Scenario

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "device": "cpu"}
STEPS = 192


@pytest.fixture(scope="module")
def contrib() -> Any:
    return pytest.importorskip("sb3_contrib", reason="extra rl")


def routing(scenario: Scenario, workload: Any) -> Any:
    return ClusterRoutingEnv(scenario, workload=workload)


def stacked(scenario: Scenario, workload: Any) -> Any:
    """Every wrapper that a routing environment can have."""
    env: Any = EngineBlocks(ClusterRoutingEnv(scenario, workload=workload), 5, shuffle=True)
    env = NormalizeReward(SemiMarkovDiscount(DecisionInterval(env, 1e-9), 0.1))
    return RecordEpisodeStatistics(TimeLimit(env, 1000))


class Watched(ClusterRoutingEnv):
    """Counts decisions with some engine down, so that a test knows that masks mattered."""

    decisions_while_down = 0

    def step(self, action: Any) -> Any:
        if not self.action_masks().all():
            type(self).decisions_while_down += 1
        return super().step(action)


@pytest.mark.parametrize("make", [routing, stacked])
def test_dummy_vec_env(
    contrib: Any, failing_cluster: Scenario, small_traffic: Any, make: Any
) -> None:
    vec = pytest.importorskip("stable_baselines3.common.vec_env", reason="extra rl")
    envs = vec.DummyVecEnv([partial(make, failing_cluster, small_traffic)] * 2)
    model = contrib.MaskablePPO("MlpPolicy", envs, seed=1, **SMALL).learn(STEPS)
    assert model.num_timesteps == STEPS


def test_masks_matter_in_these_episodes(
    contrib: Any, failing_cluster: Scenario, small_traffic: Any
) -> None:
    vec = pytest.importorskip("stable_baselines3.common.vec_env", reason="extra rl")
    Watched.decisions_while_down = 0
    envs = vec.DummyVecEnv([partial(Watched, failing_cluster, workload=small_traffic)] * 2)
    model = contrib.MaskablePPO("MlpPolicy", envs, seed=1, **SMALL).learn(STEPS)
    assert Watched.decisions_while_down > 10
    sb3 = pytest.importorskip("stable_baselines3", reason="extra rl")
    with pytest.raises(ValueError, match="engine 1 is down"):
        sb3.PPO("MlpPolicy", envs, seed=1, **SMALL).learn(4 * STEPS)
    assert model.num_timesteps == STEPS


@pytest.mark.slow
def test_subproc_vec_env(
    contrib: Any, failing_cluster: Scenario, small_traffic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # workers load this file
    vec = pytest.importorskip("stable_baselines3.common.vec_env", reason="extra rl")
    # Masks and observations pass through SB3's own wrappers as well.
    make = partial(stacked, failing_cluster, small_traffic)
    envs = vec.VecNormalize(vec.VecFrameStack(vec.SubprocVecEnv([make] * 2, "spawn"), 2))
    try:
        model = contrib.MaskablePPO("MlpPolicy", envs, seed=1, **SMALL).learn(STEPS)
    finally:
        envs.close()
    assert model.num_timesteps == STEPS


def test_native_vector_env(contrib: Any, failing_cluster: Scenario, small_traffic: Any) -> None:
    vec = pytest.importorskip("stable_baselines3.common.vec_env", reason="extra rl")
    from synergy_gym.envs.sb3 import SB3VecEnv

    native = ClusterRoutingVectorEnv(
        3, autoreset_mode="SameStep", scenario=failing_cluster, workload=small_traffic
    )
    envs = vec.VecNormalize(vec.VecFrameStack(SB3VecEnv(native), 2))
    model = contrib.MaskablePPO("MlpPolicy", envs, seed=1, **SMALL)
    down = counter_of_masks()
    model.learn(STEPS, callback=down)
    assert model.num_timesteps == STEPS
    assert down.seen > 10


def counter_of_masks() -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class Callback(BaseCallback):  # type: ignore[misc]
        """Counts rows of masks with an engine that is down."""

        seen = 0

        def _on_step(self) -> bool:
            masks = np.stack(self.training_env.env_method("action_masks"))
            self.seen += int((~masks.all(axis=1)).sum())
            return True

    return Callback()


def test_clusters_of_any_size_in_one_training(contrib: Any) -> None:
    ranges = WorldRanges(
        "smoke-cluster",
        load=Uniform(0.8, 1.3),
        knobs={
            "engines": Several(Choice(("hetero-3/h100", "hetero-3/a100")), Integers(2, 4)),
            "horizon_s": 4.0,
            "outage": Outages(0.7, 1.0, 2.0),
        },
    )
    env = DomainRandomization(lambda s: EngineBlocks(ClusterRoutingEnv(s), 4), ranges)
    model = contrib.MaskablePPO("MlpPolicy", env, seed=1, **SMALL).learn(STEPS)
    assert model.num_timesteps == STEPS


def test_masked_moves_of_an_engine(
    contrib: Any, short_engine: Scenario, small_traffic: Any
) -> None:
    env: Any = EngineBatchingEnv(short_engine, workload=small_traffic, decision_interval_s=0.02)
    env = DeltaActions(env, axes=(0, 1), edges="mask")
    model = contrib.MaskablePPO("MlpPolicy", env, seed=1, **SMALL).learn(STEPS)
    assert model.num_timesteps == STEPS


def test_dqn_takes_flat_actions(short_engine: Scenario, small_traffic: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="extra rl")
    env: Any = EngineBatchingEnv(short_engine, workload=small_traffic, decision_interval_s=0.02)
    env = FlatActions(env)
    small = {"buffer_size": 200, "learning_starts": 20, "batch_size": 16, "device": "cpu"}
    model = sb3.DQN("MlpPolicy", env, seed=1, **small).learn(64)
    assert model.num_timesteps == 64


def test_dqn_routes_without_masks(failing_cluster: Scenario, small_traffic: Any) -> None:
    sb3 = pytest.importorskip("stable_baselines3", reason="extra rl")
    env = RerouteIllegal(stacked(failing_cluster, small_traffic))
    small = {"buffer_size": 200, "learning_starts": 20, "batch_size": 16, "device": "cpu"}
    model = sb3.DQN("MlpPolicy", env, seed=1, **small).learn(128)
    assert model.num_timesteps == 128
    assert env.rerouted_total > 0


def test_sampled_actions_are_legal_under_their_masks(
    failing_cluster: Scenario, small_traffic: Any, rng: np.random.Generator
) -> None:
    env = stacked(failing_cluster, small_traffic)
    _, info = env.reset(seed=2)
    env.action_space.seed(int(rng.integers(1 << 31)))
    truncated = False
    while not truncated:
        mask = env.get_wrapper_attr("action_masks")()
        assert (info["action_mask"].astype(bool) == mask).all()
        _, _, _, truncated, info = env.step(env.action_space.sample(info["action_mask"]))
