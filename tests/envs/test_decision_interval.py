"""Decisions that hold for an interval: as the wrapper, agents and repeating by hand do it."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import synergy_gym  # noqa: F401 - registers the ids
from synergy_gym.actions import EngineGrid
from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.actions import DecisionInterval
from synergy_gym.evaluation import evaluate
from synergy_gym.policies.agent_file import Agent, save_agent
from synergy_gym.policies.learned import ENGINE_FEATURES
from synergy_gym.policies.networks import network
from synergy_gym.scenario import Scenario
from tests.envs.forms import EVERY_ITERATION

GRID = EngineGrid(budgets=(16, 64, 256), caps=(0.05, 1.0))
INTERVAL_S = 0.05
LONGEST_EPISODE = 2000
"""Steps within which an episode of an id's defaults ends, so that learners see returns soon."""


def play(env: Any, seed: int, decide: Any) -> list[tuple[Any, ...]]:
    """(observation, reward, dt_s, reward terms, iterations) of every step, and the hash."""
    observation, info = env.reset(seed=3)
    rng, steps, ended = np.random.default_rng(seed), [], False
    while not ended:
        observation, reward, _, ended, info = env.step(decide(env, rng))
        facts = (info["dt_s"], info["reward_terms"], info["iterations"])
        steps.append((observation.tolist(), reward, *facts))
    return [*steps, (info["log_hash"],)]


def any_action(env: Any, rng: np.random.Generator) -> Any:
    return rng.integers(env.action_space.nvec)


@pytest.mark.parametrize("backend", ["sim", "reference"])
@pytest.mark.parametrize("action", ["limits", "full", "grid", GRID], ids=str)
@pytest.mark.parametrize("interval_s", [1e-9, 0.01, INTERVAL_S, 0.5, 1e9])
def test_it_equals_the_wrapper(
    short_engine: Scenario,
    small_traffic: Any,
    backend: str,
    action: Any,
    interval_s: float,
    seed: int,
) -> None:
    given: dict[str, Any] = {"workload": small_traffic, "action": action, "backend": backend}
    own = EngineBatchingEnv(short_engine, decision_interval_s=interval_s, **given)
    wrapped = DecisionInterval(
        EngineBatchingEnv(short_engine, **EVERY_ITERATION, **given), interval_s
    )
    assert play(own, seed, any_action) == play(wrapped, seed, any_action)


def test_an_endless_interval_is_one_decision(short_engine: Scenario, small_traffic: Any) -> None:
    env = EngineBatchingEnv(short_engine, workload=small_traffic, decision_interval_s=1e30)
    env.reset(seed=3)
    _, reward, _, truncated, info = env.step([8, 4, 0, 0])
    assert truncated
    assert reward == info["episode_metrics"]["slo_attainment"] * 40
    assert info["dt_s"] == pytest.approx(env._sim.now_ns / 1e9, abs=0.2)


def test_the_wrapper_counts_iterations_of_longer_steps(
    short_engine: Scenario, small_traffic: Any, seed: int
) -> None:
    env = EngineBatchingEnv(short_engine, workload=small_traffic, decision_interval_s=0.02)
    steps = play(DecisionInterval(env, 0.1), seed, any_action)[:-1]
    assert all(dt_s >= 0.1 for _, _, dt_s, _, _ in steps[:-1])
    assert sum(iterations for *_, iterations in steps) == env._sim.steps(0)


@pytest.mark.parametrize("backend", ["sim", "reference"])
def test_shaping_is_that_of_the_whole_step(
    short_engine: Scenario, small_traffic: Any, backend: str, rng: np.random.Generator
) -> None:
    beta, weight = 0.7, 3.0
    env = EngineBatchingEnv(
        short_engine, workload=small_traffic, load=3.0, decision_interval_s=INTERVAL_S,
        shaping="waiting", shaping_weight=weight, shaping_beta_per_s=beta, backend=backend,
    )  # fmt: skip
    env.reset(seed=3)
    before, truncated, sizes = env._potential(), False, []
    while not truncated:
        _, reward, _, truncated, info = env.step(any_action(env, rng))
        after = 0.0 if truncated else env._potential()
        wanted = weight * (exp(-beta * info["dt_s"]) * after - before)
        assert info["reward_terms"]["shaping"] == pytest.approx(wanted)
        assert reward == sum(info["reward_terms"].values())
        before = after
        sizes.append(wanted)
    assert np.abs(sizes).max() > 0


def by_hand(world: Scenario, traffic: Any, interval_s: float, seed: int) -> list[tuple[Any, ...]]:
    """What `play` gives of a cluster that is asked before every iteration and repeats decisions."""
    env = CrossLayerEnv(world, workload=traffic, **EVERY_ITERATION)
    observation, _ = env.reset(seed=3)
    rng, steps, ended = np.random.default_rng(seed), [], False
    held: dict[int, tuple[int, Any]] = {}
    while not ended:
        action = env.joint(choose(env, rng))
        if env.layer == "engine":
            held[env._engine] = (env._sim.now_ns + round(interval_s * 1e9), action)
        total, begin_ns, iterations, met = 0.0, env._sim.now_ns, 0, 0.0
        while True:
            iterations += env.layer == "engine"
            observation, reward, _, ended, info = env.step(action)
            total, met = total + reward, met + info["reward_terms"]["slo_met"]
            if ended or env.layer == "router" or env._engine not in held:
                break
            until_ns, action = held[env._engine]
            if env._sim.now_ns >= until_ns:
                break
        dt_s = (env._sim.now_ns - begin_ns) / 1e9
        steps.append((observation.tolist(), total, dt_s, {"slo_met": met}, iterations))
    return [*steps, (info["log_hash"],)]


def choose(env: CrossLayerEnv, rng: np.random.Generator) -> Any:
    own = [int(rng.choice(np.flatnonzero(legal))) for legal in env.agent_masks()]
    return own[0] if env.layer == "router" else own


@pytest.mark.parametrize("backend", ["sim", "reference"])
@pytest.mark.parametrize("interval_s", [0.02, 0.3])
@pytest.mark.parametrize("failing", [False, True])
def test_every_engine_of_a_cluster_holds_its_own(
    short_cluster: Scenario,
    failing_cluster: Scenario,
    small_traffic: Any,
    backend: str,
    interval_s: float,
    failing: bool,
    seed: int,
) -> None:
    world = failing_cluster if failing else short_cluster
    env = CrossLayerEnv(
        world, workload=small_traffic, decision_interval_s=interval_s, backend=backend
    )
    steps = play(env, seed, lambda env, rng: env.joint(choose(env, rng)))
    assert steps == by_hand(world, small_traffic, interval_s, seed)
    assert max(iterations for *_, iterations in steps[:-1]) > 1


def test_an_agent_steers_a_cluster_as_in_its_environment(
    short_cluster: Scenario, small_traffic: Any, rng: np.random.Generator, tmp_path: Path
) -> None:
    sizes = (sum(GRID.shape), len(ENGINE_FEATURES))
    arrays = {"w0": rng.standard_normal(sizes).astype(np.float32), "b0": np.zeros(sizes[0])}
    meta = {
        "format": 1, "kind": "engine", "name": "random", "network": "mlp", "activation": "tanh",
        "features": ENGINE_FEATURES, "frames": 1, "interval_s": INTERVAL_S,
        "head": "multidiscrete", "grid": GRID.to_dict(), "training": {},
    }  # fmt: skip
    agent = Agent(meta, {name: array.astype(np.float32) for name, array in arrays.items()})
    save_agent(tmp_path / "agent.npz", agent)
    env = CrossLayerEnv(
        short_cluster, workload=small_traffic, router_policy="round-robin", action=GRID,
        decision_interval_s=INTERVAL_S,
    )  # fmt: skip
    forward = network(agent)
    observation, _ = env.reset(seed=4)
    ended = False
    while not ended:
        parts = np.split(forward(observation), np.cumsum(GRID.shape)[:-1])
        observation, _, _, ended, info = env.step([int(part.argmax()) for part in parts])
    played = evaluate(
        short_cluster, f"agent:{tmp_path / 'agent.npz'}", "round-robin", seed=4,
        workload=small_traffic(1.0, 4), warmup_s=0.0, horizon_s=2.0,
    )  # fmt: skip
    assert played.log_hash == info["log_hash"]


def test_fixed_engines_decide_before_every_iteration(
    short_cluster: Scenario, small_traffic: Any
) -> None:
    env = CrossLayerEnv(short_cluster, workload=small_traffic, engine_policy="lens-plus")
    assert env.decision_interval_s is None
    env.reset(seed=1)
    assert "iterations" not in env.step(0)[4]


@pytest.mark.parametrize("kind", ["random", "least", "most"])
@pytest.mark.parametrize("name", ["EngineBatching", "ClusterRouting", "CrossLayer"])
def test_an_episode_of_the_defaults_is_short(name: str, kind: str) -> None:
    env: Any = gym.make(f"SynergyGym/{name}-v1")
    space = env.action_space
    space.seed(0)
    last = space.n - 1 if isinstance(space, gym.spaces.Discrete) else space.nvec - 1
    fixed = {"least": 0 * last, "most": last}.get(kind)
    env.reset(seed=1000)
    steps, ended = 0, False
    while not ended:
        ended = env.step(space.sample() if fixed is None else fixed)[3]
        steps += 1
    assert steps <= LONGEST_EPISODE


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("EngineBatching", {"action": "limits", "decision_interval_s": None}),
        ("ClusterRouting", {}),
        ("CrossLayer", {"action": "grid", "decision_interval_s": None}),
    ],
)
def test_the_first_version_is_an_argument_of_the_second(name: str, old: dict[str, Any]) -> None:
    scenario = "smoke" if name == "EngineBatching" else "smoke-cluster"
    with pytest.warns(DeprecationWarning, match="v0 is out of date"):
        first: Any = gym.make(f"SynergyGym/{name}-v0", scenario=scenario)
    second: Any = gym.make(f"SynergyGym/{name}-v1", scenario=f"season1/{scenario}", **old)
    assert first.action_space == second.action_space
    assert getattr(first.unwrapped, "decision_interval_s", None) is None
    first.action_space.seed(1)
    (seen, _), (wanted, _) = first.reset(seed=1), second.reset(seed=1)
    for _ in range(500):
        assert (seen == wanted).all()
        action = first.action_space.sample()
        (seen, *a), (wanted, *b) = first.step(action), second.step(action)
        assert repr(a) == repr(b)
        assert "iterations" not in a[-1]
        if a[2]:
            break
