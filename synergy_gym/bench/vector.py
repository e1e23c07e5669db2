"""Speed of the native vector environments, and their share of the time of a training run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from synergy_gym.bench.envs import EVERY_ITERATION, router_scenario, router_world
from synergy_gym.bench.million import traffic
from synergy_gym.bench.row import FULL, Effort, Row
from synergy_gym.workload.base import Workload

_ENGINE, _ROUTER = "SynergyGym/EngineBatching-v1", "SynergyGym/ClusterRouting-v1"
_NATIVE = "vector_entry_point"


def vector_rate(envs: Any, actions: Sequence[Any], warm_up: int, steps: int) -> float:
    """Steps of sub-environments per processor second, after a warm-up of the same episodes."""
    envs.reset(seed=0)
    for i in range(warm_up):
        envs.step(actions[i % len(actions)])
    begin = time.process_time()
    for i in range(steps):
        envs.step(actions[i % len(actions)])
    rate: float = envs.num_envs * steps / (time.process_time() - begin)
    return rate


def _engines(count: int, horizon_s: float) -> Any:
    """`count` engines at 7 requests/s without prefix caching, as in the kernel's rows."""
    scenario = replace(router_scenario(1), horizon_s=horizon_s)

    def play(load: float, seed: int) -> Workload:
        return traffic(int(7.0 * load * horizon_s), 7.0 * load, seed)

    given: dict[str, Any] = {"scenario": scenario, "workload": play, **EVERY_ITERATION}
    return gym.make_vec(_ENGINE, num_envs=count, vectorization_mode=_NATIVE, **given)


def engine_vector_row(count: int, steps: int, goal: float, effort: Effort = FULL) -> Row:
    """`count` engines against as many of Gymnasium's native CartPole; no episode ends."""
    count, steps = effort.of(count, 2), effort.of(steps, 3)
    cartpole = gym.make_vec("CartPole-v1", num_envs=count, vectorization_mode=_NATIVE)
    cartpole.action_space.seed(0)
    theirs = [cartpole.action_space.sample() for _ in range(64)]
    warm_up = effort.of(400)  # some 4 s: from then on as many leave as come
    envs = _engines(count, horizon_s=60.0)
    actions = [np.tile(envs.single_action_space.nvec - 1, (count, 1))]
    rates = [
        (vector_rate(envs, actions, warm_up, steps), vector_rate(cartpole, theirs, 3, steps))
        for _ in range(effort.repeats)
    ]
    own, peer = (max(column) for column in zip(*rates, strict=True))
    return Row(
        f"native vector env, {count} engines, against CartPoleVectorEnv",
        own / peer,
        "x",
        goal,
        True,
        f"{own / 1e6:.2f} against {peer / 1e6:.2f} million steps/s, without resets",
    )


def router_vector_row(
    what: str, goal: float, arguments: dict[str, Any], effort: Effort = FULL
) -> Row:
    """Routing decisions of 64 clusters; no episode ends."""
    count, steps = effort.of(64, 2), effort.of(600, 3)
    envs = gym.make_vec(_ROUTER, num_envs=count, vectorization_mode=_NATIVE, **arguments)
    first: Any = envs.single_action_space
    actions = [np.full(count, i % first.n) for i in range(int(first.n))]
    rates = [vector_rate(envs, actions, effort.of(200), steps) for _ in range(effort.repeats)]
    name = f"native vector env, {count} clusters, {what}"
    note = f"{count} x {steps} decisions, in turn, without resets"
    return Row(name, max(rates), "decisions/s", goal, True, note)


def vector_rows(effort: Effort = FULL) -> Iterator[Row]:
    """Both native vector environments."""
    yield engine_vector_row(64, 1_000, 6.0, effort)
    yield engine_vector_row(1024, 200, 0.6, effort)
    yield router_vector_row("default scenario (hetero-3)", 200_000, {}, effort)
    yield router_vector_row("8 uncached engines each", 1_000_000, router_world(8), effort)


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.process_time()
        result = function(*args, **kwargs)
        spent[0] += time.process_time() - begin
        return result

    return call


def ppo_row(name: str, effort: Effort = FULL, **arguments: Any) -> Row:
    """Share of the environments (steps and resets) in the processor time that PPO learns for."""
    import torch
    from stable_baselines3 import PPO

    from synergy_gym.envs.sb3 import SB3VecEnv

    torch.set_num_threads(1)
    arguments["autoreset_mode"] = "SameStep"
    envs: Any = gym.make_vec(name, num_envs=8, vectorization_mode=_NATIVE, **arguments)
    adapter = SB3VecEnv(envs)
    rollout = effort.of(512, 8)
    model = PPO("MlpPolicy", adapter, n_steps=rollout, batch_size=rollout, device="cpu", seed=0)
    model.learn(8 * rollout)  # compiles, and fills the caches
    spent = [0.0]
    timed: Any = adapter
    timed.step_wait, timed.reset = _timed(adapter.step_wait, spent), _timed(adapter.reset, spent)
    begin = time.process_time()
    model.learn(32 * rollout, reset_num_timesteps=False)
    whole = time.process_time() - begin
    core = envs.envs[0].unwrapped
    what = f"{name.split('/')[1]}{_held(core)}: share of PPO's time"
    note = (
        f"{32 * rollout / whole:,.0f} frames/s, 8 environments, {core.scenario.name}, with resets"
    )
    return Row(what, 100 * spent[0] / whole, "%", 10.0, False, note)


def _held(core: Any) -> str:
    if not hasattr(core, "decision_interval_s"):
        return ""
    held = core.decision_interval_s
    return ", a decision per iteration" if held is None else f", decisions of {held:g} s"


def training_rows(effort: Effort = FULL) -> Iterator[Row]:
    """PPO on the vector environments; needs the extra `rl`."""
    yield ppo_row(_ENGINE, effort)
    yield ppo_row(_ENGINE, effort, decision_interval_s=None)
    yield ppo_row(_ROUTER, effort)
