"""Speed of the native vector environments, and their share of the time of a training run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from synergy_gym.evaluation.bench import EVERY_ITERATION, Row, router_scenario
from synergy_gym.sim.bench_million import traffic
from synergy_gym.workload.base import Workload

_ENGINE, _ROUTER = "SynergyGym/EngineBatching-v1", "SynergyGym/ClusterRouting-v1"
_NATIVE = "vector_entry_point"
_REPEATS = 7


def _rate(envs: Any, actions: list[Any], steps: int) -> float:
    """Steps of sub-environments per second, the best of several runs."""
    envs.reset(seed=0)
    for action in actions[:3]:
        envs.step(action)
    best = float("inf")
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        for i in range(steps):
            envs.step(actions[i % len(actions)])
        best = min(best, time.perf_counter() - begin)
    rate: float = envs.num_envs * steps / best
    return rate


def _engines(count: int, horizon_s: float) -> Any:
    """`count` engines at 7 requests/s without prefix caching, as in the kernel's rows."""
    scenario = replace(router_scenario(1), horizon_s=horizon_s)

    def play(load: float, seed: int) -> Workload:
        return traffic(int(7.0 * load * horizon_s), 7.0 * load, seed)

    given: dict[str, Any] = {"scenario": scenario, "workload": play, **EVERY_ITERATION}
    return gym.make_vec(_ENGINE, num_envs=count, vectorization_mode=_NATIVE, **given)


def vector_row(count: int, steps: int, horizon_s: float, goal: float) -> Row:
    """`count` engines against as many of Gymnasium's native CartPole; no episode ends."""
    cartpole = gym.make_vec("CartPole-v1", num_envs=count, vectorization_mode=_NATIVE)
    cartpole.action_space.seed(0)
    peer = _rate(cartpole, [cartpole.action_space.sample() for _ in range(64)], steps)
    envs = _engines(count, horizon_s)
    action = np.tile(envs.single_action_space.nvec - 1, (count, 1))
    own = _rate(envs, [action], steps)
    return Row(
        f"native vector env, {count} engines, against CartPoleVectorEnv",
        own / peer,
        "x",
        goal,
        True,
        f"{own / 1e6:.2f} against {peer / 1e6:.2f} million steps/s, without resets",
    )


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        spent[0] += time.perf_counter() - begin
        return result

    return call


def ppo_row(name: str, timesteps: int = 16_384, **arguments: Any) -> Row:
    """Share of the environments (steps and resets) in the time that PPO learns for."""
    import torch
    from stable_baselines3 import PPO

    from synergy_gym.envs.sb3 import SB3VecEnv

    torch.set_num_threads(1)
    arguments["autoreset_mode"] = "SameStep"
    envs: Any = gym.make_vec(name, num_envs=8, vectorization_mode=_NATIVE, **arguments)
    adapter = SB3VecEnv(envs)
    model = PPO("MlpPolicy", adapter, n_steps=512, batch_size=512, device="cpu", seed=0)
    model.learn(4096)  # compiles, and fills the caches
    spent = [0.0]
    timed: Any = adapter
    timed.step_wait, timed.reset = _timed(adapter.step_wait, spent), _timed(adapter.reset, spent)
    begin = time.perf_counter()
    model.learn(timesteps, reset_num_timesteps=False)
    whole = time.perf_counter() - begin
    what = f"{name.split('/')[1]}'s share of PPO's time"
    core = envs.envs[0].unwrapped
    interval_s = getattr(core, "decision_interval_s", None)
    held = "" if interval_s is None else f", decisions of {interval_s:g} s"
    scenario = core.scenario.name + held
    note = f"{timesteps / whole:,.0f} frames/s, 8 environments, {scenario}, with resets"
    return Row(what, 100 * spent[0] / whole, "%", 10.0, False, note)


def vector_rows() -> list[Row]:
    """All rows of this file."""
    return [
        vector_row(64, 400, 900.0, 10.0),
        vector_row(1024, 60, 120.0, 1.0),
        ppo_row(_ENGINE, decision_interval_s=None),
        ppo_row(_ENGINE),
        ppo_row(_ROUTER),
    ]
