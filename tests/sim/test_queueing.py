"""The simulator against queueing theory: M/D/1, M/M/1 and M/M/4, a million jobs and more each.

An engine with `max_num_seqs=1` whose requests emit one token is a single server: a job is one
iteration, and its service time is what the clock says of its prompt. All seeds are fixed. Each
waiting time is first compared, nanosecond by nanosecond, with Lindley's recursion over the same
jobs; the means are then within 2 % of theory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
import pytest

from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.points import DONE, ROUTE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import SLO, DecisionRule, EngineSpec, IntArray, TelemetrySpec
from synergy_gym.workload.base import make_workload

SERVICE_NS = 1_000_000
"""Mean service time."""
TOKEN_NS = 100
"""Service per prompt token: ten thousand tokens on average, so rounding up adds 0.005 %."""
MAX_TOKENS = 1 << 20
JOBS = 1_000_000
TOLERANCE = 0.02
# The mean of a busier queue converges more slowly: its waits are correlated over longer times.
REPLICATIONS = {0.3: 1, 0.6: 2, 0.9: 10}
FIXED = StepTerms(base_ms=SERVICE_NS / 1e6)
PER_TOKEN = StepTerms(base_ms=0.0, per_token_ms=TOKEN_NS / 1e6)
RULE = DecisionRule(token_budget=MAX_TOKENS)


@dataclass(frozen=True)
class Jobs:
    """When jobs arrive, and for how long each keeps a server busy, nanoseconds."""

    arrival_ns: IntArray
    prompt_tokens: IntArray
    service_ns: IntArray


def poisson(rng: np.random.Generator, rate_per_service: float, count: int) -> IntArray:
    """Arrivals of a Poisson process, on average `rate_per_service` per mean service time."""
    gaps = rng.exponential(SERVICE_NS / rate_per_service, count)
    return np.cumsum(gaps).astype(np.int64)


def fixed_jobs(rng: np.random.Generator, load: float, count: int) -> Jobs:
    """Deterministic service."""
    prompt = np.ones(count, np.int64)
    return Jobs(poisson(rng, load, count), prompt, np.full(count, SERVICE_NS))


def exponential_jobs(rng: np.random.Generator, load: float, count: int) -> Jobs:
    """Exponential service, said in prompt tokens."""
    prompt = np.ceil(rng.exponential(SERVICE_NS / TOKEN_NS, count)).astype(np.int64)
    return Jobs(poisson(rng, load, count), prompt, prompt * TOKEN_NS)


def server(index: int = 0) -> EngineSpec:
    """An engine that serves one request at a time, in the order of arrival."""
    return EngineSpec(
        name=f"server-{index}",
        gpu="g",
        model="m",
        profile="p",
        max_num_seqs=1,
        max_num_batched_tokens=MAX_TOKENS,
        max_model_len=MAX_TOKENS,
        kv_blocks=MAX_TOKENS // 1024,
        block_size=1024,
    )


def simulator(jobs: Jobs, terms: StepTerms, servers: int) -> Simulator:
    ones = np.ones(len(jobs.arrival_ns), np.int64)
    return Simulator(
        engines=[server(index) for index in range(servers)],
        clocks=[terms.clock() for _ in range(servers)],
        workload=make_workload(jobs.arrival_ns, jobs.prompt_tokens, ones),
        slos=[SLO("any")],
        telemetry=TelemetrySpec(heartbeat="none"),
        rules=[RULE] * servers,
        auto_route=servers == 1,
    )


def waits(sim: Simulator) -> IntArray:
    """How long each job waited for its server, nanoseconds."""
    records = sim.records()
    assert np.all(records.finish_ns >= 0)
    waited: IntArray = records.scheduled_ns - records.arrival_ns
    return waited


def lindley(jobs: Jobs) -> IntArray:
    """W(n+1) = max(0, W(n) + S(n) - A(n)): the waits of a single server, in closed form."""
    drift = np.cumsum(jobs.service_ns[:-1] - np.diff(jobs.arrival_ns))
    walk = np.concatenate([[0], drift])
    result: IntArray = walk - np.minimum.accumulate(np.minimum(walk, 0))
    return result


def mean_wait(load: float, terms: StepTerms, exponential: bool) -> float:
    """Mean wait in service times, over independent runs of a million jobs."""
    draw = exponential_jobs if exponential else fixed_jobs
    means = []
    for seed in range(REPLICATIONS[load]):
        jobs = draw(np.random.default_rng(seed), load, JOBS)
        sim = simulator(jobs, terms, servers=1)
        assert sim.advance() == DONE
        waited = waits(sim)
        np.testing.assert_array_equal(waited, lindley(jobs))
        means.append(waited.mean())
    return float(np.mean(means)) / SERVICE_NS


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_deterministic_service(load: float) -> None:
    """M/D/1 (Pollaczek-Khinchine): W = rho / (2 (1 - rho))."""
    theory = load / (2 * (1 - load))
    assert mean_wait(load, FIXED, exponential=False) == pytest.approx(theory, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_exponential_service(load: float) -> None:
    """M/M/1: W = rho / (1 - rho)."""
    theory = load / (1 - load)
    assert mean_wait(load, PER_TOKEN, exponential=True) == pytest.approx(theory, rel=TOLERANCE)


def erlang_wait(servers: int, load: float) -> float:
    """M/M/k: W = C(k, a) / (k (1 - rho)) service times, with Erlang's C and a = k rho."""
    offered = servers * load
    busy = offered**servers / factorial(servers) / (1 - load)
    idle = sum(offered**k / factorial(k) for k in range(servers))
    return busy / (busy + idle) / (servers * (1 - load))


def test_erlang_formula() -> None:
    """One server is M/M/1; two have the textbook's rho^2 / (1 - rho^2)."""
    assert erlang_wait(1, 0.9) == pytest.approx(9.0)
    assert erlang_wait(2, 0.5) == pytest.approx(0.25 / 0.75)


@pytest.mark.slow
def test_least_work_left_is_a_common_queue() -> None:
    """M/M/4: an oracle that knows the work left makes four queues behave as one (FCFS)."""
    servers, load = 4, 0.7
    jobs = exponential_jobs(np.random.default_rng(7), servers * load, JOBS)
    sim = simulator(jobs, PER_TOKEN, servers)
    free_ns = [0] * servers
    expected = np.empty(JOBS, np.int64)
    arrivals, services = jobs.arrival_ns.tolist(), jobs.service_ns.tolist()
    for job, (now, service) in enumerate(zip(arrivals, services, strict=True)):
        assert sim.advance() == ROUTE
        soonest = min(free_ns)
        target = free_ns.index(soonest)
        sim.route(target)
        expected[job] = max(soonest - now, 0)
        free_ns[target] = max(soonest, now) + service
    assert sim.advance() == DONE
    waited = waits(sim)
    np.testing.assert_array_equal(waited, expected)
    mean = float(waited.mean()) / SERVICE_NS
    assert mean == pytest.approx(erlang_wait(servers, load), rel=TOLERANCE)
