"""The engine environment as the authors' RL scheduler sees it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from synergy_gym.actions import DEFAULT_GRID
from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.authors import AuthorsScheduler
from synergy_gym.policies.authors_state import AUTHORS_GRID
from synergy_gym.scenario import Scenario
from tests.envs.forms import LIMITS


@pytest.fixture
def env(short_engine: Scenario, small_traffic: Any) -> AuthorsScheduler:
    inner = EngineBatchingEnv(
        short_engine, workload=small_traffic, action=AUTHORS_GRID, decision_interval_s=None
    )
    return AuthorsScheduler(inner)


@pytest.mark.filterwarnings("ignore:.*(infinity|not within the observation space).*")
def test_gymnasium_accepts_it(env: AuthorsScheduler) -> None:
    check_env(env, skip_render_check=True)


def test_every_finished_request_is_rewarded_once(
    env: AuthorsScheduler, rng: np.random.Generator
) -> None:
    observation, _ = env.reset(seed=int(rng.integers(1000)))
    assert observation.shape == (70,)
    finished = in_time = met = 0.0
    ended = False
    while not ended:
        observation, reward, terminated, ended, info = env.step(int(rng.integers(4)))
        judged = env._state.judged
        assert reward == sum(info["reward_terms"].values())
        assert not terminated
        assert env.observation_space.contains(observation)
        finished += judged.in_time + judged.late
        in_time += judged.in_time
        met += info["slo_met"]
    metrics = info["episode_metrics"]
    assert finished == metrics["full"]["finished"] == 40
    assert in_time == pytest.approx(metrics["full"]["e2e_attainment"] * 40)
    assert met == pytest.approx(metrics["slo_attainment"] * 40)


def test_an_episode_begins_without_memory(env: AuthorsScheduler) -> None:
    def episode() -> list[float]:
        observations, rewards = [env.reset(seed=5)[0]], []
        for step in range(60):
            observation, reward, *_ = env.step(step % 4)
            observations.append(observation)
            rewards.append(reward)
        return [*np.concatenate(observations).tolist(), *rewards]

    assert episode() == episode()


def test_other_environments_are_refused(short_engine: Scenario, short_cluster: Scenario) -> None:
    with pytest.raises(ValueError, match="needs action=AUTHORS_GRID"):
        AuthorsScheduler(EngineBatchingEnv(short_engine, action=DEFAULT_GRID))
    with pytest.raises(ValueError, match="give decision_interval_s=None"):
        AuthorsScheduler(EngineBatchingEnv(short_engine, action=AUTHORS_GRID))
    with pytest.raises(TypeError, match="needs an EngineBatchingEnv"):
        AuthorsScheduler(ClusterRoutingEnv(short_cluster))


def test_a_view_needs_an_episode(short_engine: Scenario) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        EngineBatchingEnv(short_engine).engine_view()


def test_the_view_is_that_of_the_moment(short_engine: Scenario, small_traffic: Any) -> None:
    env = EngineBatchingEnv(short_engine, workload=small_traffic, **LIMITS)
    _, info = env.reset(seed=1)
    assert env.engine_view().now_s == info["now_s"]
    now_s = info["now_s"]
    for _ in range(5):
        info = env.step(np.array([511, 63]))[4]
        now_s += info["dt_s"]
        view = env.engine_view()
        assert view.now_s == pytest.approx(now_s)
        assert view.last_step is not None
        assert view.last_step.token_budget == 512
        assert view.num_running == len(view.running)
