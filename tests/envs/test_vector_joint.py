"""The native vector environment of both layers equals `SyncVectorEnv`, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import synergy_gym  # noqa: F401  # registers the environments
from synergy_gym.envs.compiled.vector import WHO_KERNEL, WHO_PYTHON
from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.vector_joint import CrossLayerVectorEnv
from synergy_gym.scenario import Scenario
from tests.envs.test_vector import MODES, play

N = 3


@pytest.fixture
def unequal(short_cluster: Scenario) -> Scenario:
    """Engines with different limits: a space that not every engine has."""
    first, *others = short_cluster.engines
    engines = (replace(first, max_num_seqs=first.max_num_seqs // 2), *others)
    return replace(short_cluster, engines=engines)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "option",
    [
        {},
        {"decision_interval_s": None},
        {"decision_interval_s": 0.05, "observation": "dict"},
        {"action": "full", "decision_interval_s": 0.1},
        {"action": "limits", "decision_interval_s": None},
    ],
    ids=str,
)
def test_both_layers(
    short_cluster: Scenario,
    small_traffic: Callable[..., Any],
    mode: AutoresetMode,
    option: dict[str, Any],
    seed: int,
) -> None:
    engine = short_cluster.engines[0]
    equal = tuple(replace(engine, name=one.name) for one in short_cluster.engines)
    scenario = replace(short_cluster, engines=equal) if "action" in option else short_cluster
    given = {"workload": small_traffic, **option}
    native = CrossLayerVectorEnv(N, scenario=scenario, autoreset_mode=mode, **given)
    native.reset(seed=seed)
    assert (native._table[:, 0] == WHO_KERNEL).all()
    play(native, [CrossLayerEnv(scenario, **given) for _ in range(N)], mode, seed)


def test_episodes_end(
    short_cluster: Scenario, small_traffic: Callable[..., Any], seed: int
) -> None:
    given: dict[str, Any] = {"workload": small_traffic, "decision_interval_s": 5.0}
    mode = AutoresetMode.SAME_STEP
    native = CrossLayerVectorEnv(N, scenario=short_cluster, autoreset_mode=mode, **given)
    assert play(native, [CrossLayerEnv(short_cluster, **given) for _ in range(N)], mode, seed) >= N


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "option",
    [
        {"action": "full", "decision_interval_s": None},
        {"router_policy": "round-robin"},
        {"engine_policy": "vllm-v1"},
        {"shaping": "in-flight"},
        {"backend": "reference"},
    ],
    ids=str,
)
def test_what_is_stepped_in_python(
    unequal: Scenario,
    small_traffic: Callable[..., Any],
    mode: AutoresetMode,
    option: dict[str, Any],
    seed: int,
) -> None:
    given = {"workload": small_traffic, **option}
    native = CrossLayerVectorEnv(2, scenario=unequal, autoreset_mode=mode, **given)
    native.reset(seed=seed)
    assert (native._table[:, 0] == WHO_PYTHON).all()
    play(native, [CrossLayerEnv(unequal, **given) for _ in range(2)], mode, seed, 80)


def test_an_illegal_action_names_its_sub_environment() -> None:
    envs: Any = gym.make_vec("SynergyGym/CrossLayer-v1", num_envs=2, scenario="smoke-cluster")
    assert isinstance(envs.unwrapped, CrossLayerVectorEnv)
    envs.reset(seed=0)
    before = [env.unwrapped.memory.bytes() for env in envs.unwrapped.envs]
    actions = envs.action_space.sample()
    actions[1, 0] = 99
    with pytest.raises(ValueError, match="sub-environment 1: action"):
        envs.step(actions)
    for env, block in zip(envs.unwrapped.envs, before, strict=True):
        np.testing.assert_array_equal(env.unwrapped.memory.bytes(), block)


def test_the_dict_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no native vector environment"):
        CrossLayerVectorEnv(2, scenario="smoke-cluster", action_form="dict")
