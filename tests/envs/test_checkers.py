"""Gymnasium's and stable-baselines3's checkers pass without a single warning."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import synergy_gym  # noqa: F401 - registers the ids

ENGINE, ROUTER = "SynergyGym/EngineBatching-v1", "SynergyGym/ClusterRouting-v1"
JOINT = "SynergyGym/CrossLayer-v1"
ALIKE = "long-context-4xh100"  # checkers do not read masks, and unlike engines have some
MODES = (None, "human", "ansi", "rgb_array")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    (ENGINE, {}),
    (ENGINE, {"action": "limits", "decision_interval_s": None}),
    (ENGINE, {"action": "full"}),
    (ENGINE, {"observation": "dict"}),
    (ENGINE, {"shaping": "backlog", "shaping_beta_per_s": 0.1}),
    (ROUTER, {}),
    (ROUTER, {"observation": "dict"}),
    (ROUTER, {"shaping": "in-flight"}),
    (JOINT, {"observation": "dict"}),
    (JOINT, {"scenario": ALIKE, "action": "full"}),
    (JOINT, {"scenario": ALIKE, "router_policy": "prism-ref", "action": "limits"}),
    (JOINT, {"engine_policy": "vllm-v1", "shaping": "in-flight"}),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [ENGINE, ROUTER, JOINT])
def test_gymnasium_checker_has_no_warning(name: str, mode: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(name, render_mode=mode)
        check_env(env)
        env.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [ENGINE, ROUTER, JOINT])
def test_stable_baselines3_checker_has_no_warning(name: str, mode: str | None) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="extra rl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(gym.make(name, render_mode=mode), skip_render_check=False)


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=str)
def test_every_variant_passes_both(name: str, arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(name, **arguments), skip_render_check=True)
        checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="extra rl")
        checker.check_env(gym.make(name, **arguments))


@pytest.mark.parametrize("name", [ENGINE, ROUTER, JOINT])
def test_make_adds_no_wrapper(name: str) -> None:
    env = gym.make(name)
    assert env.unwrapped is env


@pytest.mark.parametrize("name", [ENGINE, ROUTER, JOINT])
def test_vectorised_by_gymnasium(name: str) -> None:
    envs = gym.make_vec(name, num_envs=2, vectorization_mode="sync")
    observations, _ = envs.reset(seed=5)
    assert observations.shape[0] == 2
    assert not (observations[0] == observations[1]).all()
    envs.step(envs.action_space.sample())
    envs.close()


def test_two_parts_as_a_dict_pass_gymnasium() -> None:
    """stable-baselines3 has no Dict actions."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(JOINT, action_form="dict"), skip_render_check=True)
