"""A copy of an environment goes on by itself: nothing is shared, and nothing dangles."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import synergy_gym  # noqa: F401  # registers the environments

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
}
SHORT: dict[str, Any] = {"horizon_s": 12.0, "warmup_s": 0.0}
STEPS: dict[str, Any] = {"action": "limits", "decision_interval_s": None}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "engine": ("EngineBatching", {}),
    "limits": ("EngineBatching", STEPS),
    "shaped": ("EngineBatching", {"shaping": "waiting"}),
    "plain": ("EngineBatching", {"scenario": "smoke", "backend": "reference", **STEPS}),
    "router": ("ClusterRouting", {}),
    "random engines": ("ClusterRouting", {"engine_policy": "random"}),
    "joint": ("CrossLayer", {}),
}


def episode(env: Any, actions: list[Any]) -> list[Any]:
    """What the given actions, or those until the end, bring."""
    seen: list[Any] = []
    for action in actions:
        observation, reward, _, ended, info = env.step(action)
        seen.append((observation.tolist(), float(reward), info["dt_s"]))
        if ended:
            seen.append(info["log_hash"])
            break
    return seen


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_in_an_episode_goes_on_alone(kind: str, way: str, rng: np.random.Generator) -> None:
    name, arguments = KINDS[kind]
    env = gym.make(f"SynergyGym/{name}-v1", **SHORT, **arguments).unwrapped
    env.reset(seed=int(rng.integers(1 << 20)))
    env.action_space.seed(int(rng.integers(1 << 20)))
    actions = [env.action_space.sample() for _ in range(20_000)]
    begun = episode(env, actions[:7])
    assert len(begun) == 7
    copied, other = COPIES[way](env), COPIES[way](env)
    wanted = episode(env, actions[7:])
    assert isinstance(wanted[-1], str), "the episode ends"
    env.reset(seed=1)
    env.close()
    del env
    gc.collect()
    assert episode(copied, actions[7:]) == wanted
    assert episode(other, actions[7:]) == wanted


def stepped(envs: Any, actions: list[Any]) -> list[Any]:
    seen = []
    for action in actions:
        observations, rewards, _, ended, _ = envs.step(action)
        seen.append((observations.tolist(), rewards.tolist(), ended.tolist()))
    return seen


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", ["EngineBatching", "ClusterRouting", "CrossLayer"])
def test_a_copy_of_a_vector_environment_goes_on_alone(
    name: str, way: str, rng: np.random.Generator
) -> None:
    envs = gym.make_vec(f"SynergyGym/{name}-v1", num_envs=3, **SHORT).unwrapped
    envs.reset(seed=int(rng.integers(1 << 20)))
    envs.action_space.seed(int(rng.integers(1 << 20)))
    actions = [envs.action_space.sample() for _ in range(60)]
    stepped(envs, actions[:10])
    copied = COPIES[way](envs)
    wanted = stepped(envs, actions[10:])
    del envs
    gc.collect()
    assert stepped(copied, actions[10:]) == wanted


def test_real_engines_cannot_be_copied() -> None:
    env = gym.make("SynergyGym/EngineBatching-v1", scenario="live-chat", backend="vllm")
    with pytest.raises(TypeError, match="real engines cannot be copied"):
        copy.deepcopy(env.unwrapped)
