"""Vector wrappers equal vectors of wrapped environments, natively and in Gymnasium's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.vector import ClusterRoutingVectorEnv, EngineBatchingVectorEnv
from synergy_gym.envs.wrappers.actions import FlatActions
from synergy_gym.envs.wrappers.discount import RerouteIllegal, SemiMarkovDiscount
from synergy_gym.envs.wrappers.vector import (
    VectorFlatActions,
    VectorRerouteIllegal,
    VectorSemiMarkovDiscount,
    vector_action_masks,
)
from synergy_gym.scenario import Scenario

GRID = EngineGrid(budgets=(64, 1024), caps=(0.25, 1.0))
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
BETA = 0.3


def sync(make: Any, mode: AutoresetMode, count: int = 3) -> SyncVectorEnv:
    return SyncVectorEnv([make] * count, autoreset_mode=mode)


def native(single: Any, mode: AutoresetMode, count: int = 3) -> Any:
    """The native vector environment of a `partial` of a single one."""
    kinds = {
        EngineBatchingEnv: EngineBatchingVectorEnv,
        ClusterRoutingEnv: ClusterRoutingVectorEnv,
    }
    (scenario,) = single.args
    make: Any = kinds[single.func]
    return make(count, autoreset_mode=mode, scenario=scenario, **single.keywords)


def steps(envs: Any, actions: Any, count: int = 150) -> list[Any]:
    envs.reset(seed=5)
    return [envs.step(actions[k]) for k in range(count)]


@pytest.mark.parametrize("vector", [sync, native])
@pytest.mark.parametrize("mode", MODES)
def test_discounts_and_numbers_equal_wrapped_singles(
    short_engine: Scenario,
    small_traffic: Any,
    vector: Any,
    mode: AutoresetMode,
    rng: np.random.Generator,
) -> None:
    single = partial(EngineBatchingEnv, short_engine, workload=small_traffic, action=GRID)
    ours = VectorSemiMarkovDiscount(VectorFlatActions(vector(single, mode)), BETA)
    theirs = sync(lambda: SemiMarkovDiscount(FlatActions(single()), BETA), mode)
    assert ours.single_action_space == theirs.single_action_space
    assert (vector_action_masks(ours) == vector_action_masks(theirs)).all()
    actions = rng.integers(0, int(ours.single_action_space.n), (400, 3))  # type: ignore[attr-defined]
    ends = 0
    pairs = zip(steps(ours, actions, 400), steps(theirs, actions, 400), strict=True)
    for here, there in pairs:
        for index in range(4):
            assert (here[index] == there[index]).all()
        present = there[4].get("_discount", np.zeros(3, bool))
        assert (here[4]["_discount"] == present).all()
        assert not present.any() or (here[4]["discount"] == there[4]["discount"]).all()
        if "final_info" in there[4]:
            assert (here[4]["final_info"]["discount"] == there[4]["final_info"]["discount"]).all()
        ends += int(here[3].sum())
    assert ends > 2


@pytest.mark.parametrize("vector", [sync, native])
@pytest.mark.parametrize("mode", MODES)
def test_rerouting_equals_wrapped_singles(
    failing_cluster: Scenario, small_traffic: Any, vector: Any, mode: AutoresetMode
) -> None:
    single = partial(ClusterRoutingEnv, failing_cluster, workload=small_traffic)
    ours = VectorRerouteIllegal(vector(single, mode))
    theirs = sync(lambda: RerouteIllegal(single()), mode)
    actions = np.ones((150, 3), np.int64)
    counted = np.zeros(3, np.int64)
    for here, there in zip(steps(ours, actions), steps(theirs, actions), strict=True):
        for index in range(4):
            assert (here[index] == there[index]).all()
        wanted = np.asarray(there[4].get("rerouted", np.zeros(3)), bool)
        if "final_info" in there[4]:
            wanted = wanted | there[4]["final_info"]["rerouted"].astype(bool)
        assert (here[4]["rerouted"] == wanted).all()
        counted += wanted
    assert (ours.rerouted_total == counted).all()
    assert counted.min() > 0


@pytest.mark.parametrize("vector", [sync, native])
def test_a_masked_reset_begins_new_weights(
    short_engine: Scenario, small_traffic: Any, vector: Any
) -> None:
    single = partial(EngineBatchingEnv, short_engine, workload=small_traffic, action=GRID)
    envs = VectorSemiMarkovDiscount(vector(single, AutoresetMode.DISABLED, 2), 5.0)
    bare = sync(single, AutoresetMode.DISABLED, 2)
    action = np.ones((2, 4), np.int64)[:, : len(GRID.shape)]
    for each in (envs, bare):
        each.reset(seed=1)
    truncated = np.zeros(2, bool)
    while not truncated.any():
        rewards, truncated = envs.step(action)[1], bare.step(action)[3]
    options = {"reset_mask": truncated.copy()}
    if truncated.all():
        options = {"reset_mask": np.array([True, True])}
    for each in (envs, bare):
        each.reset(seed=[7, 8], options=dict(options))
    rewards, plain = envs.step(action)[1], bare.step(action)[1]
    fresh = options["reset_mask"]
    assert (rewards[fresh] == plain[fresh]).all()
    assert (envs._weights[~fresh] < envs._weights[fresh].min()).all()


@pytest.mark.parametrize("vector", [sync, native])
def test_masks_pass_gymnasiums_vector_wrappers(
    failing_cluster: Scenario, small_traffic: Any, vector: Any
) -> None:
    single = partial(ClusterRoutingEnv, failing_cluster, workload=small_traffic)
    inner = vector(single, AutoresetMode.NEXT_STEP)
    envs = NormalizeObservation(RecordEpisodeStatistics(inner))
    envs.reset(seed=5)
    down = 0
    for _ in range(60):
        masks = vector_action_masks(envs)
        assert (masks == np.stack(inner.call("action_masks"))).all()
        down += int((~masks).sum())
        envs.step(masks.argmax(axis=1))
    assert down > 0


def test_wrong_uses(short_engine: Scenario, short_cluster: Scenario) -> None:
    batching = sync(lambda: EngineBatchingEnv(short_engine, action=GRID), AutoresetMode.NEXT_STEP)
    routing = sync(lambda: ClusterRoutingEnv(short_cluster), AutoresetMode.NEXT_STEP)
    with pytest.raises(TypeError, match="MultiDiscrete"):
        VectorFlatActions(routing)
    with pytest.raises(TypeError, match="Discrete"):
        VectorRerouteIllegal(batching)
    with pytest.raises(ValueError, match="beta_per_s=0"):
        VectorSemiMarkovDiscount(batching, 0)
    flat = VectorFlatActions(batching)
    flat.reset(seed=0)
    with pytest.raises(ValueError, match="outside"):
        flat.step(np.array([0, 99, 0]))
    with pytest.raises(AttributeError, match="action_masks"):
        vector_action_masks(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"))
