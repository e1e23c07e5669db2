"""Speed of the environments through `gym.make`, beside Gymnasium's CartPole; their resets."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np

from synergy_gym.bench.million import SPEC, TERMS, traffic
from synergy_gym.bench.row import FULL, Effort, Row, best
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.workload.base import Workload

EVERY_ITERATION: Mapping[str, Any] = MappingProxyType(
    {"action": "limits", "decision_interval_s": None}
)
"""A step of `EngineBatching` that is one iteration."""
IDS = tuple(
    f"SynergyGym/{name}-{version}"
    for name in ("EngineBatching", "ClusterRouting", "CrossLayer")
    for version in ("v0", "v1")
)
_PER_RPS = 7.0
"""Requests/s of every engine of `router_scenario`."""


def made(name: str, **arguments: Any) -> Any:
    """`gym.make`, without its advice that a `-v0` has a successor: both are measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return gym.make(name, **arguments)


def usual_actions(env: Any, count: int = 1000) -> list[Any]:
    """Engines in turn, large budgets, nothing held back, order as it is: an ordinary policy's.

    How long a step takes follows from what was decided before; a tiny budget fills the queues.
    """
    engines = len(env.unwrapped.scenario.engines)
    forms: dict[tuple[int, ...], Any] = {
        (): lambda i: i % engines,
        (2,): lambda i: np.array([2047, 255]),
        (4,): lambda i: np.array([6, 4, 0, 0]),
        (5,): lambda i: np.array([i % engines, 6, 4, 0, 0]),
    }
    make = forms[env.action_space.shape]
    return [make(i) for i in range(count)]


def steps_per_s(env: Any, actions: Sequence[Any], steps: int) -> float:
    """Steps per processor second of an environment, resets left out."""
    env.reset(seed=0)
    spent, done = 0.0, 0
    while done < steps:
        begin = time.process_time()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            done += 1
            if terminated or truncated:
                break
        spent += time.process_time() - begin
        if terminated or truncated:
            env.reset()
    return done / spent


def against_cartpole(env: Any, steps: int, effort: Effort) -> tuple[float, float]:
    """Steps per processor second of an environment and of CartPole, measured in turns."""
    cartpole = gym.make("CartPole-v1")
    steps, theirs = effort.of(steps, 10), effort.of(10_000, 10)
    actions = usual_actions(env, min(steps, 1000))
    steps_per_s(env, actions, min(steps, 100))  # compiles, if it must
    rates = [
        (steps_per_s(env, actions, steps), steps_per_s(cartpole, [0, 1] * 100, theirs))
        for _ in range(effort.repeats + 2)
    ]
    own, peer = zip(*rates, strict=True)
    return max(own), max(peer)


def router_scenario(engines: int) -> Scenario:
    """`engines` equal engines at 7 requests/s each, without prefix caching."""
    base = load_scenario("chat-h100")
    return replace(
        base,
        name=f"bench-{engines}",
        engines=tuple(replace(SPEC, name=f"e{i}") for i in range(engines)),
        terms=(TERMS,) * engines,
        horizon_s=max(4000.0 / (_PER_RPS * engines), 20.0),
        warmup_s=0.0,
        rate_rps=_PER_RPS * engines,
    )


def router_world(engines: int) -> dict[str, Any]:
    """The arguments `scenario` and `workload` of an environment with uncached engines."""
    scenario = router_scenario(engines)

    def play(load: float, seed: int) -> Workload:
        n = int(scenario.rate_rps * load * scenario.horizon_s)
        return traffic(n, scenario.rate_rps * load, seed)

    return {"scenario": scenario, "workload": play}


def engine_rows(effort: Effort = FULL) -> Iterator[Row]:
    """`EngineBatching`: a step per iteration (v0), and decisions that hold (v1)."""
    every = made(IDS[0])
    own, peer = against_cartpole(every, 20_000, effort)
    yield _against("EngineBatching-v0, a step per iteration", own, peer, 5.5, every)
    held = made(IDS[1])
    own, peer = against_cartpole(held, 1_500, effort)
    interval_s = held.unwrapped.decision_interval_s
    name = f"EngineBatching-v1, a step per {interval_s:g} s of simulated time"
    yield _against(name, own, peer, None, held)


def routing_rows(effort: Effort = FULL) -> Iterator[Row]:
    """`ClusterRouting` on its default scenario, and on 8 and 512 uncached engines."""
    for name in IDS[2:4]:
        env = made(name)
        own, peer = against_cartpole(env, 3_000, effort)
        yield _against(name.split("/")[1], own, peer, 2.0, env)
    rates = {}
    for n in (8, 512):
        env = made(IDS[3], **router_world(n))
        rates[n], peer = against_cartpole(env, 4_000, effort)
        if n == 8:
            yield _against("ClusterRouting-v1, 8 uncached engines", rates[n], peer, 3.0, env)
    note = f"{rates[512]:,.0f} decisions/s at 512"
    growth = rates[8] / rates[512]
    yield Row("cost per routing decision, 8 -> 512 engines", growth, "x", 6.0, False, note)


def joint_rows(effort: Effort = FULL) -> Iterator[Row]:
    """`CrossLayer` on its default scenario."""
    for name in IDS[4:]:
        env = made(name)
        own, peer = against_cartpole(env, 3_000, effort)
        yield _against(name.split("/")[1], own, peer, None, env)


def _against(what: str, own: float, peer: float, goal: float | None, env: Any) -> Row:
    label = env.unwrapped.scenario.label
    note = f"{own:,.0f} against {peer:,.0f} steps/s, {label}, without resets"
    return Row(f"{what}, against CartPole-v1", own / peer, "x", goal, True, note)


def ends_rows(effort: Effort = FULL) -> Iterator[Row]:
    """What an episode costs beside its steps, on the default scenario of every environment.

    `reset()` makes traffic and a simulator; the last step also works out the episode's metrics.
    """
    for name in IDS:
        env = made(name)
        env.reset(seed=0)
        label = env.unwrapped.scenario.label
        milliseconds = best(partial(_reset_s, env), effort.repeats) * 1e3
        note = f"{label}, mean of 10 seeds"
        yield Row(f"{name.split('/')[1]}, reset", milliseconds, "ms", None, False, note)
    for name in IDS[1::2]:
        env = made(name)
        last = best(partial(_last_step_s, env), effort.repeats)
        label = env.unwrapped.scenario.label
        what = f"{name.split('/')[1]}, last step"
        yield Row(what, last * 1e3, "ms", None, False, f"{label}, with the episode's metrics")


def _reset_s(env: Any) -> float:
    begin = time.process_time()
    for seed in range(1, 11):
        env.reset(seed=seed)
    return (time.process_time() - begin) / 10


def _last_step_s(env: Any) -> float:
    _, over = env.reset(seed=0), False
    actions = itertools.cycle(usual_actions(env))
    while not over:
        action = next(actions)
        begin = time.process_time()
        _, _, _, over, _ = env.step(action)
    return time.process_time() - begin
