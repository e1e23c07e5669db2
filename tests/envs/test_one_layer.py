"""OneLayer: the spaces and steps of one layer, whatever decides the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.one_layer import OneLayer
from synergy_gym.scenario import Scenario
from synergy_gym.workload.base import make_workload
from tests.envs.forms import LIMITS


def same_episodes(a: Any, b: Any, seed: int, rng: np.random.Generator) -> None:
    np.testing.assert_array_equal(a.reset(seed=seed)[0], b.reset(seed=seed)[0])
    ended = False
    while not ended:
        np.testing.assert_array_equal(a.action_masks(), b.action_masks())
        action = rng.choice(np.flatnonzero(b.action_masks()))
        x, y = a.step(action), b.step(action)
        np.testing.assert_array_equal(x[0], y[0])
        assert x[1:4] == y[1:4]
        assert x[4]["dt_s"] == pytest.approx(y[4]["dt_s"])
        assert x[4]["reward_terms"]["slo_met"] == x[4]["met_by_engine"].sum()
        ended = x[3]
    assert x[4]["log_hash"] == y[4]["log_hash"]


def test_the_router_alone_is_cluster_routing(
    failing_cluster: Scenario, small_traffic: Any, rng: np.random.Generator
) -> None:
    limits = [(e.max_num_batched_tokens, e.max_num_seqs) for e in failing_cluster.engines]
    joint = CrossLayerEnv(failing_cluster, workload=small_traffic, **LIMITS)

    def stock(observation: Any, info: dict[str, Any]) -> list[int]:
        tokens, seqs = limits[int(info["agent"].removeprefix("engine_"))]
        return [tokens - 1, seqs - 1]

    env = OneLayer(joint, "router", stock)
    alone = ClusterRoutingEnv(failing_cluster, workload=small_traffic)
    assert env.action_space == alone.action_space
    assert env.observation_space == alone.observation_space
    same_episodes(env, alone, 4, rng)


@pytest.mark.parametrize("interval_s", [None, 0.05])
@pytest.mark.parametrize("observation", ["flat", "dict"])
def test_the_engine_alone_is_engine_batching(
    short_engine: Scenario,
    small_traffic: Any,
    observation: Any,
    interval_s: float | None,
    rng: np.random.Generator,
) -> None:
    arguments: dict[str, Any] = {"workload": small_traffic, "observation": observation}
    arguments["decision_interval_s"] = interval_s
    env = OneLayer(CrossLayerEnv(short_engine, **arguments), "engine", lambda *_: 0)
    alone = EngineBatchingEnv(short_engine, **arguments)
    assert env.action_space == alone.action_space
    assert env.observation_space == alone.observation_space
    first, wanted = env.reset(seed=2)[0], alone.reset(seed=2)[0]
    total, ended = [0.0, 0.0], False
    while not ended:
        for a, b in zip(_parts(first), _parts(wanted), strict=True):
            np.testing.assert_array_equal(a, b)
        action = rng.integers(alone.action_space.nvec)  # type: ignore[attr-defined]
        x, y = env.step(action), alone.step(action)
        (first, wanted), ended = (x[0], y[0]), x[3]
        total = [total[0] + x[1], total[1] + y[1]]
        assert ended == y[3]
        assert x[4].get("iterations") == y[4].get("iterations")
        if ended:
            break
    assert x[4]["log_hash"] == y[4]["log_hash"]
    assert total[0] == total[1]


def _parts(observation: Any) -> list[Any]:
    return [*observation.values()] if isinstance(observation, dict) else [observation]


def test_an_episode_without_a_decision_of_the_layer(short_cluster: Scenario) -> None:
    too_long = make_workload(np.array([5]), np.array([10**7]), np.array([1]))
    env = OneLayer(CrossLayerEnv(short_cluster, workload=too_long), "engine", lambda *_: 0)
    _, info = env.reset(seed=0)
    assert "layer" not in info
    _, reward, _, truncated, info = env.step([0, 0, 0, 0])
    assert (reward, truncated) == (0.0, True)
    assert info["episode_metrics"]["rejected"] == 1


def test_only_an_environment_with_both_layers_open(short_cluster: Scenario) -> None:
    with pytest.raises(TypeError, match="CrossLayer"):
        OneLayer(ClusterRoutingEnv(short_cluster), "router", lambda *_: 0)
    with pytest.raises(ValueError, match="router_policy"):
        OneLayer(CrossLayerEnv(short_cluster, router_policy="preble"), "engine", lambda *_: 0)
    with pytest.raises(ValueError, match="layer="):
        OneLayer(CrossLayerEnv(short_cluster), "both", lambda *_: 0)  # type: ignore[arg-type]
