"""A copy of an environment goes on by itself: nothing is shared, and nothing dangles."""

from __future__ import annotations

import base64
import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import synergy_gym  # noqa: F401  # registers the environments

ROOT = Path(__file__).resolve().parents[2]
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


def in_a_new_process(code: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], input=given, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


GO_ON = """
import base64, pickle, sys
env = pickle.loads(base64.b64decode(sys.stdin.read()))
ended = False
while not ended:
    _, _, _, ended, info = env.step(env.action_space.sample() * 0)
print(info["log_hash"])
"""


@pytest.mark.parametrize("name", ["EngineBatching", "ClusterRouting", "CrossLayer"])
def test_a_pickle_goes_on_in_another_process(name: str) -> None:
    """Where no simulator was ever made."""
    env = gym.make(f"SynergyGym/{name}-v1", **SHORT).unwrapped
    env.reset(seed=3)
    idle = env.action_space.sample() * 0
    for _ in range(5):
        env.step(idle)
    other = in_a_new_process(GO_ON, base64.b64encode(pickle.dumps(env)).decode())
    assert other == episode(env, [idle] * 20_000)[-1]


STEP_PLAIN = """
import gymnasium as gym, synergy_gym
envs = gym.make_vec("SynergyGym/{name}-v1", num_envs=2, scenario="{scenario}", backend="reference")
envs.reset(seed=0)
envs.action_space.seed(0)
for _ in range(3):
    rewards = envs.step(envs.action_space.sample())[1]
print(len(rewards))
"""


@pytest.mark.parametrize(
    ("name", "scenario"),
    [
        ("EngineBatching", "smoke"),
        ("ClusterRouting", "smoke-cluster"),
        ("CrossLayer", "smoke-cluster"),
    ],
)
def test_vector_environments_need_no_compiled_simulator(name: str, scenario: str) -> None:
    """As in the first seconds of a fresh installation."""
    assert in_a_new_process(STEP_PLAIN.format(name=name, scenario=scenario)) == "2"


def test_real_engines_cannot_be_copied() -> None:
    env = gym.make("SynergyGym/EngineBatching-v1", scenario="live-chat", backend="vllm")
    with pytest.raises(TypeError, match="real engines cannot be copied"):
        copy.deepcopy(env.unwrapped)
