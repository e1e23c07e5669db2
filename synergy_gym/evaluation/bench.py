"""The speed goals of the project, measured here and now; each is printed beside its goal.

Ratios are between two things measured in the same run. Figures depend on what else the machine
does: repeat on a quiet one before drawing conclusions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from synergy_gym.latency.terms import StepTerms
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.sim.bench_million import SPEC, TERMS, simulator_of, traffic
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import EngineSpec
from synergy_gym.workload.base import Workload, make_workload

EVERY_ITERATION: Mapping[str, Any] = MappingProxyType(
    {"action": "limits", "decision_interval_s": None}
)
"""A step of `EngineBatching` that is one iteration."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured goal; `met` compares `value` with `goal` in the stated direction."""

    name: str
    value: float
    unit: str
    goal: float
    at_least: bool
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure reaches its goal."""
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def play_s(
    workload: Workload, spec: EngineSpec = SPEC, terms: StepTerms = TERMS, cls: Any = Simulator
) -> tuple[float, int]:
    """Seconds to play a whole trace, and how many iterations that took."""
    simulator = simulator_of(workload, spec, terms, cls)
    begin = time.perf_counter()
    simulator.advance()
    seconds = time.perf_counter() - begin
    return seconds, simulator.steps(0) if isinstance(simulator, Simulator) else 0


def best(measure: Callable[[], float], repeats: int) -> float:
    """The smallest of several measurements: other load can only add time."""
    return min(measure() for _ in range(repeats))


def kernel_rows() -> list[Row]:
    """Whole traces in compiled code."""
    workload = traffic(10_000, 7.0)
    iterations = play_s(workload)[1]
    kernel = best(lambda: play_s(workload)[0], 15)
    small = traffic(400, 7.0)
    reference = play_s(small, cls=ReferenceSimulator)[0] / len(small)
    return [
        Row("engine kernel, whole trace", kernel / iterations * 1e9, "ns/iteration", 100, False),
        Row(
            "kernel against the plain-Python reference",
            reference / (kernel / len(workload)),
            "x faster per request",
            1000,
            True,
        ),
        *_million_rows(),
    ]


def _million_rows() -> list[Row]:
    command = [sys.executable, "-m", "synergy_gym.sim.bench_million"]
    measured, processes = [], []
    for _ in range(4):  # the first one may still compile
        begin = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        processes.append(time.perf_counter() - begin)
        measured.append(json.loads(done.stdout))
    simulate = min(m["simulate_s"] for m in measured)
    process = min(processes)
    peak = min(m["peak_mb"] for m in measured)
    iterations = measured[0]["iterations"]
    return [
        Row(
            "1,000,000 requests: simulation",
            simulate,
            "s",
            0.3,
            False,
            f"{iterations:,} iterations",
        ),
        Row("1,000,000 requests: whole process", process, "s", 3.0, False),
        Row("1,000,000 requests: peak memory", peak, "MB", 300, False),
    ]


def growth_row() -> Row:
    """Cost per iteration at batch 8 and 512 with one request per four iterations."""

    def cost(batch: int) -> float:
        output = 4 * batch
        n = max(200_000 // output, 400)
        arrival = np.arange(n, dtype=np.int64) * 40_000_000
        rng = np.random.default_rng(1)
        lengths = rng.integers(output - output // 4, output + output // 4 + 1, n)
        workload = make_workload(arrival, np.full(n, 16), lengths)
        spec = replace(SPEC, max_num_seqs=1024, kv_blocks=400_000)
        terms = StepTerms(base_ms=10.0)
        iterations = play_s(workload, spec, terms)[1]
        return best(lambda: play_s(workload, spec, terms)[0], 15) / iterations

    return Row("cost per iteration, batch 8 -> 512", cost(512) / cost(8), "x", 1.5, False)


def steps_per_s(env: Any, actions: list[Any], steps: int) -> float:
    """Steps per second of an environment, resets left out."""
    env.reset(seed=0)
    spent, done = 0.0, 0
    while done < steps:
        begin = time.perf_counter()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            done += 1
            if terminated or truncated:
                break
        spent += time.perf_counter() - begin
        if terminated or truncated:
            env.reset()
    return done / spent


def _rate(env: Any, actions: list[Any], steps: int, repeats: int = 7) -> float:
    return max(steps_per_s(env, actions, steps) for _ in range(repeats))


def router_scenario(engines: int) -> Scenario:
    """`engines` equal engines at 7 requests/s each, without prefix caching."""
    base = load_scenario("chat-h100")
    return replace(
        base,
        name=f"bench-{engines}",
        engines=tuple(replace(SPEC, name=f"e{i}") for i in range(engines)),
        terms=(TERMS,) * engines,
        horizon_s=max(4000.0 / (7.0 * engines), 20.0),
        warmup_s=0.0,
        rate_rps=7.0 * engines,
    )


def _router_env(engines: int) -> Any:
    scenario = router_scenario(engines)

    def play(load: float, seed: int) -> Workload:
        n = int(scenario.rate_rps * load * scenario.horizon_s)
        return traffic(n, scenario.rate_rps * load, seed)

    return gym.make("SynergyGym/ClusterRouting-v1", scenario=scenario, workload=play)


def env_rows() -> list[Row]:
    """Environments through `gym.make`, beside Gymnasium's CartPole."""
    cartpole = gym.make("CartPole-v1")
    cartpole_rate = _rate(cartpole, [0, 1] * 100, 10_000)
    engine = gym.make("SynergyGym/EngineBatching-v1", scenario="chat-h100", **EVERY_ITERATION)
    action = np.array([2047, 255])
    engine_rate = _rate(engine, [action] * 1000, 20_000)
    held: Any = gym.make("SynergyGym/EngineBatching-v1", scenario="chat-h100")
    held_rate = _rate(held, [np.array([6, 4, 0, 0])] * 1000, 3_000)
    routers = {n: _rate(_router_env(n), [i % n for i in range(1000)], 4_000) for n in (8, 512)}
    return [
        Row(
            "EngineBatching, every iteration, step() against CartPole-v1",
            engine_rate / cartpole_rate,
            "x",
            5.0,
            True,
            f"{engine_rate:,.0f} against {cartpole_rate:,.0f} steps/s; decisions of "
            f"{held.unwrapped.decision_interval_s:g} s: {held_rate:,.0f} steps/s",
        ),
        Row(
            "ClusterRouting, 8 engines, against CartPole-v1",
            routers[8] / cartpole_rate,
            "x",
            3.0,
            True,
            f"{routers[8]:,.0f} decisions/s",
        ),
        Row(
            "cost per routing decision, 8 -> 512 engines",
            routers[8] / routers[512],
            "x",
            6.0,
            False,
            f"{routers[512]:,.0f} decisions/s at 512",
        ),
    ]


def run_bench(out: Path | None = None) -> list[Row]:
    """Measure all rows, print them on stdout, and write `out` (CSV) if given."""
    from synergy_gym.evaluation.bench_vector import vector_rows

    parts: list[Callable[[], list[Row]]] = [kernel_rows, lambda: [growth_row()], env_rows]
    console = Console(stderr=True)
    if find_spec("stable_baselines3"):
        parts.append(vector_rows)
    else:
        console.print("vector rows left out: they need stable-baselines3 (extra rl)")
    rows = [row for part in track(parts, "measuring", console=console) for row in part()]
    print_rows(rows)
    if out is not None:
        import pandas as pd

        columns = ("name", "value", "unit", "goal", "met", "note")
        table = pd.DataFrame([{c: getattr(row, c) for c in columns} for row in rows])
        table.to_csv(out, index=False)
    return rows


def print_rows(rows: list[Row]) -> None:
    """Print the measured figures beside their goals."""
    table = Table(title="Speed, measured in this run")
    for heading in ("what", "measured", "goal", "", "note"):
        table.add_column(heading, justify="right" if heading in ("measured", "goal") else "left")
    for row in rows:
        sign = ">=" if row.at_least else "<="
        measured = f"{row.value:.3g} {row.unit}"
        verdict = "met" if row.met else "MISSED"
        table.add_row(row.name, measured, f"{sign} {row.goal:g}", verdict, row.note)
    Console().print(table)
