"""EngineBlocks: blocks do not depend on the number or the order of the engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.discount import RerouteIllegal
from synergy_gym.envs.wrappers.engine_blocks import EngineBlocks
from synergy_gym.features import NUM_REQUEST_FEATURES, NUM_ROUTER_FEATURES
from synergy_gym.scenario import Scenario


def permuted(scenario: Scenario, order: list[int]) -> Scenario:
    """The same cluster with its engines in another order."""
    back = np.argsort(order).tolist()
    return replace(
        scenario,
        engines=tuple(scenario.engines[i] for i in order),
        terms=tuple(scenario.terms[i] for i in order),
        measured_terms=tuple(scenario.measured_terms[i] for i in order),
        events=tuple(replace(event, engine=back[event.engine]) for event in scenario.events),
    )


def noiseless(scenario: Scenario) -> Scenario:
    """Noise belongs to an engine's index, so it would move with a permutation."""
    terms = tuple(replace(item, noise_sd=0.0) for item in scenario.measured_terms)
    return replace(scenario, terms=terms, measured_terms=terms)


def test_a_permuted_cluster_shows_permuted_blocks(
    failing_cluster: Scenario, small_traffic: Any, rng: np.random.Generator
) -> None:
    order = rng.permutation(3).tolist()
    scenario = noiseless(failing_cluster)
    here = EngineBlocks(ClusterRoutingEnv(scenario, workload=small_traffic), 5, "dict")
    there = EngineBlocks(
        ClusterRoutingEnv(permuted(scenario, order), workload=small_traffic), 5, "dict"
    )
    ours, _ = here.reset(seed=4)
    theirs, _ = there.reset(seed=4)
    truncated, steps = False, 0
    while not truncated:
        assert (ours["engines"][order] == theirs["engines"][:3]).all()
        assert (ours["request"] == theirs["request"]).all()
        assert (ours["mask"][order] == theirs["mask"][:3]).all()
        engine = int(rng.choice(np.flatnonzero(ours["mask"])))
        ours, reward, _, truncated, info = here.step(engine)
        theirs, other, _, _, _ = there.step(order.index(engine))
        assert reward == other
        steps += 1
    assert steps > 10
    assert "episode_metrics" in info


def test_slots_beyond_the_cluster_are_empty_and_illegal(
    short_cluster: Scenario, small_traffic: Any
) -> None:
    bare = ClusterRoutingEnv(short_cluster, workload=small_traffic)
    env = EngineBlocks(ClusterRoutingEnv(short_cluster, workload=small_traffic), 8)
    wanted, _ = bare.reset(seed=1)
    observation, info = env.reset(seed=1)
    size = NUM_REQUEST_FEATURES + 3 * NUM_ROUTER_FEATURES
    assert observation.shape == (NUM_REQUEST_FEATURES + 8 * NUM_ROUTER_FEATURES,)
    assert (observation[:size] == wanted).all()
    assert not observation[size:].any()
    assert info["action_mask"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert info["engine_slots"].tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    names = env.observation_layout.names()
    assert names[size] == "engines[3].router.alive"
    for slot in (3, 7, 8, -1, 1.5, None):
        with pytest.raises(ValueError, match=r"slot .* holds no engine.*\[0, 1, 2\]"):
            env.step(slot)


def test_shuffled_slots_are_the_same_episode(
    failing_cluster: Scenario, small_traffic: Any, seed: int
) -> None:
    bare = ClusterRoutingEnv(failing_cluster, workload=small_traffic)
    env = EngineBlocks(ClusterRoutingEnv(failing_cluster, workload=small_traffic), 6, shuffle=True)
    orders = set()
    for episode in (seed, seed + 1):
        observation, info = env.reset(seed=episode)
        bare.reset(seed=episode)
        slots = info["engine_slots"]
        orders.add(tuple(slots))
        truncated = False
        while not truncated:
            mask = env.action_masks()
            blocks = observation[NUM_REQUEST_FEATURES:].reshape(6, NUM_ROUTER_FEATURES)
            assert (mask == (blocks[:, 0] == 1)).all()
            slot = int(np.flatnonzero(mask)[-1])
            observation, _, _, truncated, info = env.step(slot)
            _, _, _, _, other = bare.step(int(slots[slot]))
        assert info["log_hash"] == other["log_hash"]
    assert env.reset(seed=seed)[1]["engine_slots"].tolist() in [list(o) for o in orders]
    many = {tuple(env.reset(seed=k)[1]["engine_slots"]) for k in range(8)}
    assert len(many) > 1


def test_masks_follow_engines_that_are_down(failing_cluster: Scenario, small_traffic: Any) -> None:
    env = EngineBlocks(ClusterRoutingEnv(failing_cluster, workload=small_traffic), 4)
    env.reset(seed=3)
    truncated, down = False, 0
    while not truncated:
        mask = env.action_masks()
        assert not mask[3]
        down += not mask[1]
        _, _, _, truncated, info = env.step(0)
        assert (info["action_mask"].astype(bool) == env.action_masks()).all()
    assert down > 0


def test_rerouting_skips_empty_slots(short_cluster: Scenario, small_traffic: Any) -> None:
    env = RerouteIllegal(EngineBlocks(ClusterRoutingEnv(short_cluster, workload=small_traffic), 5))
    env.reset(seed=0)
    _, _, _, _, info = env.step(4)
    assert info["rerouted"]
    assert env.unwrapped._sim.records().engine[0] == 0  # type: ignore[attr-defined]


def test_wrong_arguments(short_cluster: Scenario, short_engine: Scenario) -> None:
    env = ClusterRoutingEnv(short_cluster)
    with pytest.raises(ValueError, match="3 engines, more than max_engines=2"):
        EngineBlocks(env, 2)
    with pytest.raises(ValueError, match="form='table'"):
        EngineBlocks(env, form="table")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ClusterRouting"):
        EngineBlocks(EngineBatchingEnv(short_engine))
    with pytest.raises(TypeError, match="observation='flat'"):
        EngineBlocks(ClusterRoutingEnv(short_cluster, observation="dict"))


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*unconventional shape")  # the table of engines
@pytest.mark.parametrize("form", ["flat", "dict"])
def test_gymnasium_and_stable_baselines3_accept_them(
    short_cluster: Scenario, small_traffic: Any, form: Any
) -> None:
    def env() -> Any:
        inner = ClusterRoutingEnv(short_cluster, workload=small_traffic)
        return RerouteIllegal(EngineBlocks(inner, 4, form))

    check_env(env(), skip_render_check=True)
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="extra rl")
    checker.check_env(env())
