"""The adapter equals stable-baselines3's own `DummyVecEnv`, and its algorithms train on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.vector import ClusterRoutingVectorEnv, EngineBatchingVectorEnv
from synergy_gym.scenario import Scenario

sb3 = pytest.importorskip("stable_baselines3", reason="extra rl")
SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu"}
N = 3


def adapter(envs: Any) -> Any:
    from synergy_gym.envs.sb3 import SB3VecEnv

    return SB3VecEnv(envs)


def assert_equal(mine: Any, theirs: Any) -> None:
    if isinstance(mine, dict):
        assert set(mine) == set(theirs)
        for key in mine:
            assert_equal(mine[key], theirs[key])
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert_equal(a, b)
    else:
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize(
    ("kind", "interval_s"),
    [("engine", 0.05), ("engine", None), ("router", None), ("failing router", None)],
)
def test_equals_dummy_vec_env(
    short_engine: Scenario,
    short_cluster: Scenario,
    failing_cluster: Scenario,
    small_traffic: Callable[..., Any],
    kind: str,
    interval_s: float | None,
    observation: str,
    seed: int,
) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    scenario = {"engine": short_engine, "router": short_cluster}.get(kind, failing_cluster)
    single: Any = EngineBatchingEnv if kind == "engine" else ClusterRoutingEnv
    vector: Any = EngineBatchingVectorEnv if kind == "engine" else ClusterRoutingVectorEnv
    given: dict[str, Any] = {
        "scenario": scenario, "workload": small_traffic, "observation": observation,
    }  # fmt: skip
    if kind == "engine":
        given["decision_interval_s"] = interval_s
    theirs = DummyVecEnv([lambda: single(**given)] * N)
    mine = adapter(vector(N, autoreset_mode="SameStep", **given))
    for env in (theirs, mine):
        env.seed(seed % 1000)
    assert_equal(mine.reset(), theirs.reset())
    assert_equal(mine.reset_infos, theirs.reset_infos)
    rng = np.random.default_rng(seed)
    ended = 0
    for _ in range(120):
        masks = np.stack(theirs.env_method("action_masks"))
        np.testing.assert_array_equal(np.stack(mine.env_method("action_masks")), masks)
        actions = masks.argmax(axis=1)
        if kind == "engine":
            sizes = mine.action_space.nvec
            actions = rng.integers(sizes, size=(N, len(sizes)))
        step, wanted = mine.step(actions), theirs.step(actions)
        for info in step[3]:
            episode = info.pop("episode", None)
            assert (episode is not None) == ("terminal_observation" in info)
            ended += episode is not None
        assert_equal(step, wanted)
        assert_equal(mine.reset_infos, theirs.reset_infos)
    assert ended > 0 or kind == "engine"


def test_episode_sums(short_cluster: Scenario, small_traffic: Callable[..., Any]) -> None:
    env = adapter(
        ClusterRoutingVectorEnv(
            2, scenario=short_cluster, workload=small_traffic, autoreset_mode="SameStep"
        )
    )
    env.reset()
    total, length = 0.0, 0
    while True:
        _, rewards, dones, infos = env.step(np.zeros(2, np.int64))
        total, length = total + float(rewards[0]), length + 1
        if dones[0]:
            break
    assert (infos[0]["episode"]["r"], infos[0]["episode"]["l"]) == (total, length)
    assert total == round(infos[0]["episode_metrics"]["slo_attainment"] * 40)


def test_without_infos_only_ends_are_told(
    short_cluster: Scenario, small_traffic: Callable[..., Any]
) -> None:
    from synergy_gym.envs.sb3 import SB3VecEnv

    envs = ClusterRoutingVectorEnv(
        2, scenario=short_cluster, workload=small_traffic, autoreset_mode="SameStep"
    )
    env = SB3VecEnv(envs, infos=False)
    env.reset()
    for _ in range(60):
        _, _, dones, infos = env.step(np.zeros(2, np.int64))
        assert [bool(info) for info in infos] == dones.tolist()


def test_wrong_environments_are_refused(short_engine: Scenario) -> None:
    with pytest.raises(ValueError, match='autoreset_mode="SameStep"'):
        adapter(EngineBatchingVectorEnv(1, scenario=short_engine))
    with pytest.raises(TypeError, match="native vector environment"):
        adapter(EngineBatchingEnv(short_engine))


def test_options_are_per_environment(short_engine: Scenario) -> None:
    env = adapter(EngineBatchingVectorEnv(2, scenario=short_engine, autoreset_mode="SameStep"))
    env.set_options([{"load": 0.5}, {}])
    env.reset()
    assert [info["load"] for info in env.reset_infos] == [0.5, 1.0]


def test_ppo_trains(short_engine: Scenario, small_traffic: Callable[..., Any]) -> None:
    envs = EngineBatchingVectorEnv(
        4, scenario=short_engine, workload=small_traffic, action="grid", autoreset_mode="SameStep"
    )
    model = sb3.PPO("MlpPolicy", adapter(envs), seed=1, **SMALL).learn(128)
    assert model.num_timesteps == 128


def test_maskable_ppo_never_meets_an_engine_that_is_down(
    failing_cluster: Scenario, small_traffic: Callable[..., Any]
) -> None:
    contrib = pytest.importorskip("sb3_contrib", reason="extra rl")
    envs = ClusterRoutingVectorEnv(
        4, scenario=failing_cluster, workload=small_traffic, autoreset_mode="SameStep"
    )
    model = contrib.MaskablePPO("MlpPolicy", adapter(envs), seed=1, **SMALL).learn(256)
    assert model.num_timesteps == 256
