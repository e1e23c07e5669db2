"""Invariant 9: a seed fixes the episode bit for bit, in whatever process it is played.

Random streams are split: a policy that draws more random numbers meets the same traffic and noise.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given

import synergy_gym  # noqa: F401  (registers the environments)
from synergy_gym.evaluation import evaluate
from synergy_gym.policies import RouterPolicy
from synergy_gym.scenario import load_scenario
from synergy_gym.seeding import stream
from synergy_gym.types import ClusterView, RequestView
from tests.strategies import SEEDS, SIMULATORS, Episode, episodes, play

WINDOW = {"warmup_s": 0.0, "horizon_s": 3.0}
EPISODES = (
    ("smoke", "random", "round-robin"),
    ("smoke-cluster", "vllm-v1", "random"),
    ("smoke-cluster", "sarathi-512", "power-of-two"),
)
# Plays one environment episode and the same evaluations as `log_hashes`, in a fresh interpreter.
SCRIPT = f"""
import gymnasium as gym
import numpy as np
import synergy_gym
from synergy_gym.evaluation import evaluate

for scenario, engine, router in {EPISODES!r}:
    print(evaluate(scenario, engine, router, seed=5, **{WINDOW!r}).log_hash)
env = gym.make("SynergyGym/EngineBatching-v1", scenario="smoke")
env.reset(seed=11)
actions = np.random.default_rng(0)
truncated = False
while not truncated:
    *_, truncated, info = env.step(actions.integers(env.action_space.nvec))
print(info["log_hash"])
"""


def log_hashes() -> list[str]:
    return [
        evaluate(scenario, engine, router, seed=5, **WINDOW).log_hash  # type: ignore[arg-type]
        for scenario, engine, router in EPISODES
    ]


def environment_hash(seed: int) -> str:
    """One episode with fixed random actions."""
    env = gym.make("SynergyGym/EngineBatching-v1", scenario="smoke")
    env.reset(seed=seed)
    actions = np.random.default_rng(0)
    while True:
        *_, truncated, info = env.step(actions.integers(env.action_space.nvec))  # type: ignore[attr-defined]
        if truncated:
            return str(info["log_hash"])


@pytest.mark.slow
def test_hash_seeds_make_no_difference() -> None:
    """Fresh interpreters with PYTHONHASHSEED 0, 1 and random print the hashes of this one."""
    expected = [*log_hashes(), environment_hash(11)]
    for hash_seed in ("0", "1", "random"):
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.split() == expected, f"PYTHONHASHSEED={hash_seed}"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_make_no_difference(method: str) -> None:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        jobs = [pool.submit(evaluate, *names, seed=5, **WINDOW) for names in EPISODES]  # type: ignore[arg-type]
        assert [job.result().log_hash for job in jobs] == log_hashes()


def test_reset_fixes_the_episode() -> None:
    first, again, other = (environment_hash(seed) for seed in (11, 11, 12))
    assert first == again
    assert first != other


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_equal_answers_give_equal_hashes(simulator: type, episode: Episode) -> None:
    """A simulator keeps nothing from the one before it, and draws nothing of its own."""
    hashes = set()
    for _ in range(2):
        sim = episode.build(simulator)
        play(sim, episode.seed)
        hashes.add(sim.log_hash())
        np.random.default_rng().random()
    assert len(hashes) == 1


class Gambler(RouterPolicy):
    """Draws a hundred random numbers per request; sends everybody to the first engine."""

    name = "gambler"
    information = frozenset({"router"})

    def reset(self, rng: np.random.Generator, *rest: Any) -> None:
        self.rng = rng

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        return int(self.rng.random(100).sum() * 0) + int(cluster.rng.random() * 0)


def test_policies_meet_the_same_traffic() -> None:
    """A policy that uses more randomness changes neither arrivals nor lengths nor sessions."""
    plays = [evaluate("smoke-cluster", "vllm-v1", p, seed=5, **WINDOW) for p in ("random", Gambler)]  # type: ignore[arg-type]
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "session", "slo_class"):
        a, b = (getattr(result.records, name) for result in plays)
        np.testing.assert_array_equal(a, b)
    assert plays[0].log_hash != plays[1].log_hash


@given(seed=SEEDS)
def test_streams_are_independent(seed: int) -> None:
    """Each consumer has its own stream, and asking one for numbers does not move another."""
    names = ("arrivals", "lengths", "content", "noise", "policy")
    before = {name: stream(seed, name).integers(0, 2**62, 4).tolist() for name in names}
    assert len({tuple(values) for values in before.values()}) == len(names)
    stream(seed, "policy").random(1000)
    np.random.seed(seed)  # noqa: NPY002  (the global generator must not matter)
    after = {name: stream(seed, name).integers(0, 2**62, 4).tolist() for name in names}
    assert before == after
    assert stream(seed, "policy", 1).random() != stream(seed, "policy", 0).random()


def test_traffic_does_not_depend_on_the_global_generator() -> None:
    scenario = load_scenario("smoke")
    plays = []
    for state in (1, 2):
        np.random.seed(state)  # noqa: NPY002
        plays.append(scenario.workload(1.0, 3))
    np.testing.assert_array_equal(plays[0].arrival_ns, plays[1].arrival_ns)
    np.testing.assert_array_equal(plays[0].prompt_tokens, plays[1].prompt_tokens)
    np.testing.assert_array_equal(plays[0].output_tokens, plays[1].output_tokens)
