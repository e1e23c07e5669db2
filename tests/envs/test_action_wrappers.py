"""FlatActions, DeltaActions and DecisionInterval."""

from __future__ import annotations

from dataclasses import replace
from math import exp, prod
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.actions import (
    DecisionInterval,
    DeltaActions,
    FlatActions,
    flat_mask,
)
from synergy_gym.envs.wrappers.discount import SemiMarkovDiscount
from synergy_gym.scenario import Scenario
from synergy_gym.types import Event
from tests.envs.forms import EVERY_ITERATION

GRID = EngineGrid(
    budgets=(64, 256, 1024), caps=(0.25, 1.0), orders=("queue", "late-last"), holds=(False,)
)
STEPS: dict[str, Any] = {"action": GRID, **EVERY_ITERATION}


@pytest.fixture
def batching(short_engine: Scenario, small_traffic: Any) -> EngineBatchingEnv:
    return EngineBatchingEnv(short_engine, workload=small_traffic, **STEPS)


@pytest.fixture
def plain(short_engine: Scenario, small_traffic: Any) -> EngineBatchingEnv:
    return EngineBatchingEnv(short_engine, workload=small_traffic, **STEPS)


def play(env: Any, actions: Any, seed: int = 3) -> list[tuple[Any, float, dict[str, Any]]]:
    """One episode; `actions` is a function of the step number."""
    env.reset(seed=seed)
    steps: list[tuple[Any, float, dict[str, Any]]] = []
    truncated = False
    while not truncated:
        observation, reward, _, truncated, info = env.step(actions(len(steps)))
        assert env.observation_space.contains(observation)
        steps.append((observation, reward, info))
    return steps


class Masked(gym.Wrapper[Any, Any, Any, Any]):
    """Forbids one value of one dimension."""

    def action_masks(self) -> Any:
        return np.array([True, False, True, True, True, True, True])


def test_numbers_stand_for_combinations_in_c_order(batching: Any, plain: Any) -> None:
    env = FlatActions(batching)
    assert env.action_space == spaces.Discrete(prod(GRID.shape))
    cells = list(np.ndindex(*GRID.shape))
    flat = play(env, lambda k: k % len(cells))
    grid = play(plain, lambda k: np.array(cells[k % len(cells)]))
    assert flat[-1][2]["log_hash"] == grid[-1][2]["log_hash"]
    assert env.action_masks().tolist() == [True] * len(cells)


def test_a_combination_is_legal_when_its_parts_are(batching: Any) -> None:
    env = FlatActions(Masked(batching))
    cells = np.array(list(np.ndindex(*GRID.shape)))
    assert env.action_masks().tolist() == (cells[:, 0] != 1).tolist()
    assert flat_mask(np.ones(4), (3, 1)).shape == (3,)


@pytest.mark.parametrize("action", [-1, 12, 1.5, None])
def test_numbers_outside_are_errors(batching: Any, action: Any) -> None:
    env = FlatActions(batching)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="outside"):
        env.step(action)


def test_too_many_combinations_are_refused(short_engine: Scenario) -> None:
    with pytest.raises(ValueError, match=r"8,388,608 combinations.*grid"):
        FlatActions(EngineBatchingEnv(short_engine, action="limits"))
    with pytest.raises(TypeError, match="MultiDiscrete"):
        FlatActions(ClusterRoutingEnv())


def test_moves_walk_along_the_budgets(batching: Any, plain: Any) -> None:
    env = DeltaActions(batching)
    assert env.action_space == spaces.MultiDiscrete([3, 2, 2])
    moves = [0, 0, 0, 1, 2, 1, 2, 2]
    budgets = [1, 0, 0, 0, 1, 1, 2, 2]
    moved = play(env, lambda k: np.array([moves[k] if k < 8 else 1, 1, 0]))
    absolute = play(plain, lambda k: np.array([budgets[k] if k < 8 else 2, 1, 0]))
    assert moved[-1][2]["log_hash"] == absolute[-1][2]["log_hash"]
    assert [info["position"].tolist() for _, _, info in moved[:8]] == [[b] for b in budgets]
    assert [float(obs[-1]) for obs, _, _ in moved[:8]] == [b / 2 for b in budgets]
    assert [info["moves_cut"] for _, _, info in moved[:8]] == [0, 0, 1, 1, 1, 1, 1, 2]
    assert env.reset(seed=1)[1]["moves_cut"] == 0


def test_masked_moves_are_errors(batching: Any) -> None:
    env = DeltaActions(batching, axes=(0, 1), start=0, edges="mask")
    _, info = env.reset(seed=0)
    wanted = [False, True, True, False, True, True, True, True]
    assert env.action_masks().tolist() == wanted
    assert info["action_mask"].tolist() == [int(x) for x in wanted]
    with pytest.raises(ValueError, match=r"moves from \[0, 0\] to \[-1, 0\]"):
        env.step(np.array([0, 1, 0]))
    _, _, _, _, info = env.step(np.array([2, 1, 0]))
    assert info["position"].tolist() == [1, 0]
    assert info["action_mask"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


def test_moves_respect_inner_masks(batching: Any) -> None:
    env = DeltaActions(Masked(batching), start=2)
    env.reset(seed=0)
    assert env.action_masks().tolist() == [False, True, True, True, True, True, True]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"axes": ()}, "axes"),
        ({"axes": (0, 0)}, "axes"),
        ({"axes": (3,)}, "axes"),
        ({"moves": (-1, 1)}, "hold 0"),
        ({"start": 3}, "start=3"),
        ({"edges": "wrap"}, "edges='wrap'"),
    ],
)
def test_wrong_delta_arguments(batching: Any, arguments: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DeltaActions(batching, **arguments)


def test_a_dict_observation_gets_a_position(short_engine: Scenario, small_traffic: Any) -> None:
    inner = EngineBatchingEnv(short_engine, workload=small_traffic, observation="dict", **STEPS)
    env = DeltaActions(inner)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert observation["position"].tolist() == [1.0]


def test_a_decision_lasts_for_its_interval(batching: Any, plain: Any) -> None:
    interval_s = 0.05
    cells = list(np.ndindex(*GRID.shape))
    held = play(DecisionInterval(batching, interval_s), lambda k: np.array(cells[k % 12]))
    plain.reset(seed=3)
    truncated, log = False, []
    for k, (observation, reward, info) in enumerate(held):
        elapsed_ns, total, count = 0, 0.0, 0
        while elapsed_ns < interval_s * 1e9 and not truncated:
            seen, gained, _, truncated, inner = plain.step(np.array(cells[k % 12]))
            elapsed_ns += round(inner["dt_s"] * 1e9)
            total, count = total + gained, count + 1
        assert (info["dt_s"], info["iterations"]) == (elapsed_ns / 1e9, count)
        assert reward == total == info["reward_terms"]["slo_met"]
        assert (seen == observation).all()
        log.append(count)
    assert truncated
    assert max(log) > 1
    assert held[-1][2]["log_hash"] == inner["log_hash"]


def test_an_interval_of_an_instant_changes_nothing(batching: Any, plain: Any) -> None:
    action = np.array([1, 1, 1])
    held = play(DecisionInterval(batching, 1e-9), lambda _: action)
    bare = play(plain, lambda _: action)
    assert held[-1][2]["log_hash"] == bare[-1][2]["log_hash"]
    assert [info["dt_s"] for _, _, info in held] == [info["dt_s"] for _, _, info in bare]


def test_discounts_inside_an_interval(batching: Any) -> None:
    beta = 0.5
    env = DecisionInterval(SemiMarkovDiscount(batching, beta), 0.1)
    for _, _, info in play(env, lambda _: np.array([2, 1, 0])):
        assert info["discount"] == pytest.approx(exp(-beta * info["dt_s"]))


def test_shaping_of_an_interval_is_the_sum(short_engine: Scenario, small_traffic: Any) -> None:
    def shaping(interval_s: float) -> float:
        inner = EngineBatchingEnv(short_engine, workload=small_traffic, shaping="backlog", **STEPS)
        steps = play(DecisionInterval(inner, interval_s), lambda _: np.array([2, 1, 0]))
        assert all(r == pytest.approx(sum(i["reward_terms"].values())) for _, r, i in steps)
        return sum(i["reward_terms"]["shaping"] for _, _, i in steps)

    assert shaping(0.1) == pytest.approx(shaping(1e-9))


def test_an_interval_ends_when_its_engine_goes_down(
    short_cluster: Scenario, small_traffic: Any
) -> None:
    scenario = replace(short_cluster, events=(Event(0.5, "down", 1), Event(1.5, "up", 1)))
    env = DecisionInterval(ClusterRoutingEnv(scenario, workload=small_traffic), 10.0)
    env.reset(seed=3)
    _, _, _, truncated, info = env.step(1)
    assert not truncated
    assert info["action_mask"].tolist() == [1, 0, 1]
    assert 0 < info["dt_s"] < 1.0


def test_intervals_and_moves_have_one_order(batching: Any) -> None:
    with pytest.raises(TypeError, match=r"DeltaActions\(DecisionInterval"):
        DecisionInterval(SemiMarkovDiscount(DeltaActions(batching), 0.1), 0.1)
    with pytest.raises(ValueError, match="interval_s=0"):
        DecisionInterval(batching, 0.0)


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize(
    "wrap",
    [
        FlatActions,
        DeltaActions,
        lambda env: DecisionInterval(env, 0.1),
        lambda env: FlatActions(DeltaActions(DecisionInterval(env, 0.1), axes=(0, 1))),
    ],
    ids=["flat", "delta", "interval", "all"],
)
def test_gymnasium_and_stable_baselines3_accept_them(batching: Any, wrap: Any) -> None:
    check_env(wrap(batching), skip_render_check=True)
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="extra rl")
    checker.check_env(wrap(batching))
