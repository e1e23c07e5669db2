"""What an agent sees and says through the wrappers is what its policy sees and says."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.wrappers import (
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
)

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.actions import DecisionInterval, DeltaActions, FlatActions
from synergy_gym.envs.wrappers.discount import SemiMarkovDiscount
from synergy_gym.envs.wrappers.engine_blocks import EngineBlocks
from synergy_gym.evaluation import evaluate
from synergy_gym.policies.agent_file import Agent, save_agent
from synergy_gym.policies.learned import ENGINE_FEATURES, SCORER_FEATURES, engine_rows
from synergy_gym.policies.networks import network
from synergy_gym.scenario import Scenario
from tests.envs.forms import EVERY_ITERATION

GRID = EngineGrid(budgets=(64, 256, 1024), caps=(0.25, 1.0), orders=("queue", "late-last"))
FRAMES = 3
INTERVAL_S = 0.05
STEPS: dict[str, Any] = {"action": GRID, **EVERY_ITERATION}


def agent_of(kind: str, sizes: list[int], rng: np.random.Generator, **meta: Any) -> Agent:
    """Random dense layers."""
    arrays: dict[str, Any] = {}
    for i, (inputs, outputs) in enumerate(zip(sizes[::2], sizes[1::2], strict=True)):
        arrays[f"w{i}"] = rng.standard_normal((outputs, inputs)).astype(np.float32)
        arrays[f"b{i}"] = rng.standard_normal(outputs).astype(np.float32)
    common = {"format": 1, "kind": kind, "name": "random", "activation": "tanh", "training": {}}
    return Agent({**common, **meta}, arrays)


@pytest.mark.parametrize("head", ["multidiscrete", "discrete"])
def test_an_engine_agent_plays_the_same_episode(
    short_engine: Scenario, small_traffic: Any, rng: np.random.Generator, tmp_path: Path, head: str
) -> None:
    outputs = prod(GRID.shape) if head == "discrete" else sum(GRID.shape)
    agent = agent_of(
        "engine",
        [FRAMES * len(ENGINE_FEATURES), 8, 8, outputs],
        rng,
        network="mlp",
        features=ENGINE_FEATURES,
        frames=FRAMES,
        interval_s=INTERVAL_S,
        head=head,
        grid=GRID.to_dict(),
    )
    save_agent(tmp_path / "agent.npz", agent)
    workload = small_traffic(1.0, 3)
    given: dict[str, Any] = {"workload": workload, "action": GRID}
    env: Any = EngineBatchingEnv(short_engine, decision_interval_s=INTERVAL_S, **given)
    env = FlattenObservation(FrameStackObservation(env, FRAMES))
    if head == "discrete":
        env = FlatActions(env)
    forward = network(agent)
    observation, _ = env.reset(seed=3)
    truncated = False
    while not truncated:
        logits = forward(observation)
        parts = [logits] if head == "discrete" else np.split(logits, np.cumsum(GRID.shape)[:-1])
        choice = [int(part.argmax()) for part in parts]
        action = choice[0] if head == "discrete" else np.array(choice)
        observation, _, _, truncated, info = env.step(action)
    played = evaluate(
        short_engine, f"agent:{tmp_path / 'agent.npz'}", seed=3, workload=workload,
        warmup_s=0.0, horizon_s=2.0,
    )  # fmt: skip
    assert played.log_hash == info["log_hash"]


def test_a_router_agent_plays_the_same_episode_in_any_slots(
    short_cluster: Scenario, small_traffic: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    width = len(SCORER_FEATURES)
    agent = agent_of(
        "router",
        [width, 8, 16, 8, 8, 1],
        rng,
        network="scorer",
        features=SCORER_FEATURES,
        frames=1,
        interval_s=0.0,
    )
    save_agent(tmp_path / "agent.npz", agent)
    workload = small_traffic(1.0, 3)
    forward = network(agent)
    env = EngineBlocks(ClusterRoutingEnv(short_cluster, workload=workload), 7, shuffle=True)
    observation, _ = env.reset(seed=3)
    truncated = False
    while not truncated:
        slot = int(forward(engine_rows(observation), env.action_masks()).argmax())
        observation, _, _, truncated, info = env.step(slot)
    played = evaluate(
        short_cluster,
        router_policy=f"agent:{tmp_path / 'agent.npz'}",
        seed=3,
        workload=workload,
        warmup_s=0.0,
        horizon_s=2.0,
    )
    assert played.log_hash == info["log_hash"]


def test_gymnasiums_wrappers_stack_and_normalise(
    short_engine: Scenario, small_traffic: Any
) -> None:
    bare = EngineBatchingEnv(short_engine, workload=small_traffic, **STEPS)
    env: Any = EngineBatchingEnv(short_engine, workload=small_traffic, **STEPS)
    env = RecordEpisodeStatistics(env)
    env = NormalizeReward(NormalizeObservation(FlattenObservation(FrameStackObservation(env, 2))))
    action = np.array([1, 1, 0, 0])
    for episode in range(2):
        first, _ = bare.reset(seed=episode)
        observation, _ = env.reset(seed=episode)
        assert observation.shape == (2 * first.size,)
        truncated, total = False, 0.0
        while not truncated:
            _, reward, _, truncated, _ = bare.step(action)
            observation, _, _, _, info = env.step(action)
            total += reward
        assert info["episode"]["r"] == total
        assert info["episode_metrics"]
    assert np.isfinite(observation).all()
    assert env.get_wrapper_attr("obs_rms").mean.shape == observation.shape
    assert env.get_wrapper_attr("action_masks")().all()


def test_discounts_by_time_inside_and_outside_of_an_interval(
    short_engine: Scenario, small_traffic: Any
) -> None:
    def total(wrap: Any) -> float:
        env = wrap(EngineBatchingEnv(short_engine, workload=small_traffic, **STEPS))
        env.reset(seed=3)
        truncated, rewards = False, 0.0
        while not truncated:
            _, reward, _, truncated, _ = env.step(np.array([2, 1, 0, 0]))
            rewards += reward
        return rewards

    beta = 0.5
    bare = total(lambda env: SemiMarkovDiscount(env, beta))
    inside = total(lambda env: DecisionInterval(SemiMarkovDiscount(env, beta), 0.2))
    outside = total(lambda env: SemiMarkovDiscount(DecisionInterval(env, 0.2), beta))
    assert inside == pytest.approx(bare)  # every reward at its own time
    assert bare < outside < 1.25 * bare  # at the time of the decision, which is earlier


def test_everything_at_once(short_engine: Scenario, small_traffic: Any) -> None:
    env: Any = EngineBatchingEnv(short_engine, workload=small_traffic, **STEPS)
    env = SemiMarkovDiscount(DecisionInterval(env, 0.05), 0.1)
    env = FlatActions(DeltaActions(env, axes=(0,), edges="mask"))
    env = RecordEpisodeStatistics(FlattenObservation(FrameStackObservation(env, 4)))
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    truncated = False
    while not truncated:
        assert observation in env.observation_space
        mask = env.get_wrapper_attr("action_masks")()
        observation, _, _, truncated, info = env.step(int(rng.choice(np.flatnonzero(mask))))
    assert info["episode"]["l"] > 10
