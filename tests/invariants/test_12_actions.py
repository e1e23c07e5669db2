"""Invariant 12: an action that is masked or out of range is a clear error, and changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import synergy_gym  # noqa: F401  (registers the environments)
from synergy_gym.scenario import load_scenario
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import BatchDecision, Event
from tests.strategies import (
    MAX_POINTS,
    SIMULATORS,
    Episode,
    choose,
    episodes,
    give,
    play,
    with_points,
)


def bad_decisions(sim: Any) -> list[tuple[BatchDecision, str]]:
    """Illegal decisions at this point, with a word that the error must contain."""
    view = sim.engine_view(sim.point_engine)
    spec, running, waiting = view.spec, view.num_running, view.num_waiting
    good = BatchDecision(1)
    orders = [
        (replace(good, running_order=np.arange(running + 1)), "running_order"),
        (replace(good, running_order=np.full(running + 1, -1)), "running_order"),
        (replace(good, token_caps=np.zeros(running + waiting + 1, np.int64)), "token_caps"),
        (replace(good, token_caps=np.full(running + waiting, -2)), "token_caps"),
        (replace(good, waiting_order=np.zeros(waiting + 2, np.int64)), "waiting_order"),
        # The caps are fine, the order is not: neither may have an effect.
        (
            replace(
                good,
                token_caps=np.zeros(running + waiting, np.int64),
                running_order=np.arange(running)[::-1].copy(),
                waiting_order=np.zeros(waiting + 2, np.int64),
            ),
            "waiting_order",
        ),
    ]
    return [
        (BatchDecision(0), "token_budget"),
        (BatchDecision(-5), "token_budget"),
        (BatchDecision(spec.max_num_batched_tokens + 1), "token_budget"),
        (BatchDecision(1, 0), "max_running"),
        (BatchDecision(1, spec.max_num_seqs + 1), "max_running"),
        (BatchDecision(1, None, -1), "prefill_chunk"),
        *orders,
    ]


def provoke(sim: Any, point: int) -> None:
    """Give every illegal answer at this point."""
    if point == DONE:
        return
    if point == BATCH:
        with pytest.raises(ValueError, match="advance"):
            sim.route(0)
        for decision, word in bad_decisions(sim):
            with pytest.raises(ValueError, match=word):
                sim.batch(decision)
    else:
        with pytest.raises(ValueError, match="advance"):
            sim.batch(BatchDecision(1))
        alive = sim.router_rows()[:, 0]
        for engine in (-1, len(alive), *np.flatnonzero(alive == 0).tolist()):
            with pytest.raises(ValueError, match="engine"):
                sim.route(engine)
    with pytest.raises(RuntimeError, match="point"):
        sim.advance()


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes(), often=st.sampled_from([0.1, 1.0]))
def test_an_illegal_answer_changes_nothing(simulator: type, episode: Episode, often: float) -> None:
    """An episode full of refused answers is the episode without them."""
    episode = with_points(episode)
    calm, tried = episode.build(simulator), episode.build(simulator)
    play(calm, episode.seed)
    rng, dice = random.Random(episode.seed), random.Random(1)
    for _ in range(MAX_POINTS):
        point = tried.advance()
        if dice.random() < often:
            provoke(tried, point)
        if point == DONE:
            break
        give(tried, point, choose(tried, point, rng))
    assert tried.log_hash() == calm.log_hash()


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize(
    "decision",
    [
        BatchDecision(10.5),  # type: ignore[arg-type]
        BatchDecision(float("nan")),  # type: ignore[arg-type]
        BatchDecision(8, 1.5),  # type: ignore[arg-type]
        BatchDecision(8, None, 2.5),  # type: ignore[arg-type]
        BatchDecision(8, token_caps=np.array([0.5])),  # type: ignore[arg-type]
    ],
    ids=["budget", "nan", "cap", "chunk", "token-caps"],
)
def test_a_fraction_is_an_error(simulator: type, decision: BatchDecision) -> None:
    """Cutting it to an integer would be a silent clamp."""
    sim = one_request(simulator)
    assert sim.advance() == BATCH
    with pytest.raises((ValueError, TypeError)):
        sim.batch(decision)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_a_fraction_is_no_engine(simulator: type) -> None:
    sim = one_request(simulator, auto_route=False)
    assert sim.advance() == ROUTE
    with pytest.raises((ValueError, TypeError)):
        sim.route(0.5)
    sim.route(0)


def one_request(simulator: type, **changes: Any) -> Any:
    from synergy_gym.latency.clock import StepTerms
    from synergy_gym.types import SLO, EngineSpec
    from synergy_gym.workload.base import make_workload

    one = np.array([5])
    arguments = {
        "engines": [EngineSpec("e", "g", "m", "p", 4, 64, 64, 100)],
        "clocks": [StepTerms(base_ms=1.0).clock()],
        "workload": make_workload(one, one, one),
        "slos": [SLO("any")],
        "auto_route": True,
    }
    return simulator(**{**arguments, **changes})


@pytest.mark.parametrize(
    "action", [[-1, 0], [8192, 0], [0, 1024], [0], [0, 0, 0], [0.5, 0.5], "text", None], ids=repr
)
def test_engine_environment_refuses(action: Any) -> None:
    form = {"action": "limits", "decision_interval_s": None}
    env = gym.make("SynergyGym/EngineBatching-v1", scenario="smoke", **form).unwrapped
    env.reset(seed=0)
    with pytest.raises((ValueError, TypeError)):
        env.step(action if isinstance(action, str | None) else np.array(action))


@pytest.mark.parametrize(
    "action", [[-1, 0, 0, 0], [9, 0, 0, 0], [0, 0, 0, 2], [0], [0.5] * 4, "text", None], ids=repr
)
def test_engine_environment_refuses_cells_outside_the_grid(action: Any) -> None:
    env = gym.make("SynergyGym/EngineBatching-v1", scenario="smoke").unwrapped
    env.reset(seed=0)
    with pytest.raises((ValueError, TypeError)):
        env.step(action if isinstance(action, str | None) else np.array(action))


@pytest.mark.parametrize("action", [-1, 99, 0.5, "text", None, [0, 1]], ids=repr)
def test_router_environment_refuses(action: Any) -> None:
    env = gym.make("SynergyGym/ClusterRouting-v1", scenario="smoke-cluster").unwrapped
    env.reset(seed=0)
    with pytest.raises((ValueError, TypeError)):
        env.step(action)


def test_a_masked_engine_is_refused_and_the_others_are_not() -> None:
    scenario = load_scenario("smoke-cluster")
    events = (Event(0.0, "down", 0), Event(5.0, "up", 0))
    env: Any = gym.make(
        "SynergyGym/ClusterRouting-v1", scenario=replace(scenario, events=events)
    ).unwrapped
    env.reset(seed=0)
    mask = env.action_masks()
    assert not mask[0]
    assert mask[1:].all()
    with pytest.raises(ValueError, match="0"):
        env.step(0)
    for engine in np.flatnonzero(mask):
        env.reset(seed=0)
        env.step(int(engine))
