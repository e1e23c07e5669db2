"""Speed of the compiled simulator alone: whole traces, a million requests, prefix caching."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from synergy_gym.bench.million import SPEC, TERMS, simulator_of, traffic
from synergy_gym.bench.row import FULL, Effort, Row, best, best_each, child, processor_s
from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import EngineSpec
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import Content

MILLION = 1_000_000


def play_s(
    workload: Workload, spec: EngineSpec = SPEC, terms: StepTerms = TERMS, cls: Any = Simulator
) -> tuple[float, int]:
    """Processor seconds to play a whole trace, and how many iterations that took."""
    simulator = simulator_of(workload, spec, terms, cls)
    seconds = processor_s(simulator.advance)
    return seconds, simulator.steps(0) if isinstance(simulator, Simulator) else 0


def kernel_rows(effort: Effort = FULL) -> Iterator[Row]:
    """Whole traces in compiled code, and beside the plain simulator."""
    workload, small = traffic(effort.of(10_000), 7.0), traffic(effort.of(400), 7.0)
    iterations = play_s(workload)[1]
    kernel = best(lambda: play_s(workload)[0], 3 * effort.repeats)
    yield Row("engine kernel, whole trace", kernel / iterations * 1e9, "ns/iteration", 50, False)
    plain = best(lambda: play_s(small, cls=ReferenceSimulator)[0], min(effort.repeats, 2))
    factor = (plain / len(small)) / (kernel / len(workload))
    yield Row("kernel against the plain-Python reference", factor, "x faster per request", 1000)


def million_rows(effort: Effort = FULL) -> Iterator[Row]:
    """One million requests in a process of their own."""
    requests = effort.of(MILLION)
    command = [sys.executable, "-m", "synergy_gym.bench.million", str(requests)]
    runs = [child(command) for _ in range(effort.repeats + 1)]  # the first one may still compile
    measured = [json.loads(printed) for _, printed in runs]
    what, note = f"{requests:,} requests", f"{measured[0]['iterations']:,} iterations"
    simulation = min(m["simulate_s"] for m in measured)
    yield Row(f"{what}: simulation", simulation, "s", 0.2, False, note)
    process = min(spent for spent, _ in runs)
    yield Row(f"{what}: whole process", process, "s", 1.2, False, "with imports and traffic")
    peak = min(m["peak_mb"] for m in measured)
    yield Row(f"{what}: peak memory", peak, "MB", 200, False)


def growth_row(effort: Effort = FULL) -> Row:
    """Cost per iteration at batch 8 and 512 with one request per four iterations."""

    def one(batch: int) -> tuple[Workload, EngineSpec, StepTerms]:
        output = 4 * batch
        n = effort.of(max(200_000 // output, 400))
        arrival = np.arange(n, dtype=np.int64) * 40_000_000
        rng = np.random.default_rng(1)
        lengths = rng.integers(output - output // 4, output + output // 4 + 1, n)
        workload = make_workload(arrival, np.full(n, 16), lengths)
        spec = replace(SPEC, max_num_seqs=1024, kv_blocks=400_000)
        return workload, spec, StepTerms(base_ms=10.0)

    cases = [one(8), one(512)]
    counts = [play_s(*case)[1] for case in cases]
    small, large = best_each(
        [lambda case=case: play_s(*case)[0] for case in cases],  # type: ignore[misc]
        3 * effort.repeats,
    )
    cost = (small / counts[0], large / counts[1])
    note = f"{cost[0] * 1e9:.0f} and {cost[1] * 1e9:.0f} ns"
    return Row("cost per iteration, batch 8 -> 512", cost[1] / cost[0], "x", 1.5, False, note)


def caching_rows(effort: Effort = FULL) -> Iterator[Row]:
    """What prefix caching costs where it saves nothing: equal batches with and without it.

    An iteration without it costs the same whatever the batch; with it, more requests begin and end
    stretches of blocks the larger the batch is. So there are several.
    """
    for rate_rps in (2.0, 4.0, 7.0):
        short = _unshared(effort.of(3_000), rate_rps, prompt=(16, 64), output=(300, 500))
        yield _caching_row(short, effort, "short prompts, long outputs", 1.5)
    long = _unshared(effort.of(2_000), 3.0, prompt=(4_000, 4_000), output=(50, 150))
    yield _caching_row(long, effort, "prompts of 4,000 tokens", None)


def _unshared(
    requests: int, rate_rps: float, prompt: tuple[int, int], output: tuple[int, int]
) -> Workload:
    """Requests whose content is known, and nobody else's; lengths are even in a range."""
    rng = np.random.default_rng(2)
    arrival = np.cumsum(rng.exponential(1e9 / rate_rps, requests)).astype(np.int64)
    prompts, outputs = (rng.integers(low, high + 1, requests) for low, high in (prompt, output))
    own = np.arange(requests, dtype=np.int64)
    content = Content(own, np.full(requests, -1, np.int64), np.zeros(requests, np.int64))
    return make_workload(arrival, prompts, outputs, content=content)


def _caching_row(workload: Workload, effort: Effort, what: str, goal: float | None) -> Row:
    specs = [replace(SPEC, prefix_caching=on) for on in (True, False)]
    played = [simulator_of(workload, spec) for spec in specs]
    for simulator in played:
        simulator.advance()
    if played[0].now_ns != played[1].now_ns or played[0].steps(0) != played[1].steps(0):
        raise RuntimeError(f"{what}: the batches differ, so that their costs say nothing")
    cached, uncached = best_each(
        [lambda spec=spec: play_s(workload, spec)[0] for spec in specs],  # type: ignore[misc]
        2 * effort.repeats,
    )
    iterations = played[0].steps(0)
    each = [f"{seconds / iterations * 1e9:,.0f}" for seconds in (cached, uncached)]
    batch = workload.output_tokens.sum() / iterations
    note = f"{each[0]} against {each[1]} ns in {iterations:,} iterations"
    name = f"prefix caching against none, {what}, batch {batch:.0f}"
    return Row(name, cached / uncached, "x per iteration", goal, False, note)
