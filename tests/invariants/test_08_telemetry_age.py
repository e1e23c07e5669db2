"""Invariant 8, what routers know: how old a pushed state can be (causality: test_two_futures.py).

While no push is lost, the visible snapshot of an engine that has been busy since it was taken is
younger than interval + delay + the longest iteration. An engine that was idle in between pushes
nothing; then heartbeats bound the age by one heartbeat interval more, and without heartbeats
nothing does. A scrape is at most one interval old.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    DecisionRule,
    EngineAdvert,
    EngineSpec,
    IntArray,
    RouterRow,
    TelemetrySpec,
)
from synergy_gym.workload.base import make_workload
from tests.strategies import SEEDS, SIMULATORS, play

COUNT = 2


@dataclass
class Sightings:
    """What the router saw at each arrival, and how long every iteration lasted."""

    now_ns: list[int] = field(default_factory=list)
    rows: list[IntArray] = field(default_factory=list)
    longest_ns: IntArray = field(default_factory=lambda: np.zeros(COUNT, np.int64))

    def visit(self, sim: Any, point: int) -> None:
        for engine in range(COUNT):
            if (step := sim.last_step(engine)) is not None:
                ns = round(step.step_s * NS_PER_S)
                self.longest_ns[engine] = max(self.longest_ns[engine], ns)
        if point == ROUTE:
            self.now_ns.append(sim.now_ns)
            self.rows.append(sim.router_rows())


@st.composite
def telemetries(draw: st.DrawFn) -> TelemetrySpec:
    return TelemetrySpec(
        push_interval_s=draw(st.sampled_from([0.0, 0.02, 0.2])),
        push_delay_s=draw(st.sampled_from([0.0, 0.01, 0.3])),
        heartbeat=draw(st.sampled_from(["idle-only", "overwrite", "none"])),
        heartbeat_interval_s=draw(st.sampled_from([0.05, 0.5])),
        scrape_interval_s=draw(st.sampled_from([0.1, 1.0])),
    )


def episode(simulator: type, telemetry: TelemetrySpec, seed: int) -> Any:
    """Two engines with room for everybody, now busy, now idle."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(5, 60))
    gaps = rng.exponential(rng.choice([0.002, 0.02, 0.2]) * NS_PER_S, count)
    spec = EngineSpec("e", "g", "m", "p", 32, 256, 256, 2000)
    terms = StepTerms(base_ms=4.0, per_token_ms=0.05, noise_sd=0.1)
    return simulator(
        engines=[spec] * COUNT,
        clocks=[terms.clock(seed + i) for i in range(COUNT)],
        workload=make_workload(
            np.cumsum(gaps).astype(np.int64),
            rng.integers(1, 200, count),
            rng.integers(1, 50, count),
        ),
        slos=[SLO("any")],
        telemetry=telemetry,
    )


def busy_since(sim: Any, engine: int, now_ns: int) -> int:
    """From when on the engine has had work without a break until `now_ns`; `now_ns` if idle."""
    records = sim.records()
    mine = records.engine == engine
    since = now_ns
    # Latest first: an interval that reaches `since` moves it back.
    spans = sorted(zip(records.finish_ns[mine], records.arrival_ns[mine], strict=True))[::-1]
    changed = True
    while changed:
        changed = False
        for finish, arrival in spans:
            if arrival < since <= finish:
                since, changed = int(arrival), True
    return since


def bounds_ns(telemetry: TelemetrySpec) -> tuple[int, int]:
    """(interval + delay, what an idle engine adds)."""
    push = round((telemetry.push_interval_s + telemetry.push_delay_s) * NS_PER_S)
    return push, round(telemetry.heartbeat_interval_s * NS_PER_S)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(telemetry=telemetries(), seed=SEEDS)
def test_age_is_bounded(simulator: type, telemetry: TelemetrySpec, seed: int) -> None:
    sim, seen = episode(simulator, telemetry, seed), Sightings()
    assert play(sim, seed, seen.visit)
    push, beat = bounds_ns(telemetry)
    for now, rows in zip(seen.now_ns, seen.rows, strict=True):
        for engine in range(COUNT):
            at = int(rows[engine, RouterRow.PUSH_NS])
            bound = push + int(seen.longest_ns[engine])
            assert 0 <= at <= now
            # The snapshot at time 0 is not of the engine's making; it may be as old as the engine.
            if busy_since(sim, engine, now) <= at:
                assert now - at <= bound
            if telemetry.heartbeat != "none":
                assert now - at <= bound + beat
            if telemetry.heartbeat == "overwrite":
                assert now - at <= beat + round(telemetry.push_delay_s * NS_PER_S)
            assert at == 0 or now - at >= round(telemetry.push_delay_s * NS_PER_S)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(telemetry=telemetries(), seed=SEEDS)
def test_scrapes_are_on_time(simulator: type, telemetry: TelemetrySpec, seed: int) -> None:
    sim, seen = episode(simulator, telemetry, seed), Sightings()
    assert play(sim, seed, seen.visit)
    every = round(telemetry.scrape_interval_s * NS_PER_S)
    for now, rows in zip(seen.now_ns, seen.rows, strict=True):
        assert np.all(rows[:, RouterRow.SCRAPE_NS] == now // every * every)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(telemetry=telemetries(), seed=SEEDS)
def test_a_lost_push_only_makes_it_older(
    simulator: type, telemetry: TelemetrySpec, seed: int
) -> None:
    """Loss has its own random stream: everything but the age of what is seen stays the same."""
    lossy = replace(telemetry, push_loss=0.5)
    plays = []
    for spec in (telemetry, lossy):
        sim, seen = episode(simulator, spec, seed), Sightings()
        play(sim, seed, seen.visit)
        plays.append((sim.log_hash(), seen))
    assert plays[0][0] == plays[1][0]
    for clear, dim in zip(plays[0][1].rows, plays[1][1].rows, strict=True):
        assert np.all(dim[:, RouterRow.PUSH_NS] <= clear[:, RouterRow.PUSH_NS])


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_many_pushes_under_way_keep_their_delay(simulator: type) -> None:
    """Thousands of short iterations, each pushed, none visible before its delay has passed."""
    count = 400
    column = np.full(count, 5)
    sim = simulator(
        engines=[EngineSpec("e", "g", "m", "p", 64, 640, 640, 1000)],
        clocks=[StepTerms(base_ms=0.05).clock()],
        workload=make_workload(np.arange(count) * 1_000_000, column, column * 6),
        slos=[SLO("any")],
        telemetry=TelemetrySpec(push_interval_s=0.0, push_delay_s=0.3, heartbeat="none"),
        rules=[DecisionRule(64)],
    )
    while sim.advance() == ROUTE:
        at = int(sim.router_rows()[0, RouterRow.PUSH_NS])
        assert at == 0 or sim.now_ns - at >= 300_000_000
        sim.route(0)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(telemetry=telemetries(), seed=SEEDS)
def test_adverts_are_unseen_before_the_iteration_ends(
    simulator: type, telemetry: TelemetrySpec, seed: int
) -> None:
    """Every decision advertises its own number; a router sees those of ended iterations only."""
    sim = episode(simulator, telemetry, seed)
    begun_s: list[list[float]] = [[] for _ in range(COUNT)]
    while (point := sim.advance()) != DONE:
        if point == BATCH:
            engine = sim.point_engine
            begun_s[engine].append(sim.now_ns / NS_PER_S)
            number = len(begun_s[engine])
            sim.batch(BatchDecision(64, advert=EngineAdvert(capacity=number, peak_tps=number)))
            continue
        for engine, row in enumerate(sim.router_rows()):
            told, kept = row[[RouterRow.PUSH_CAPACITY, RouterRow.PUSH_PEAK_MILLITPS]] // 1000
            assert told in (0, kept), "a heartbeat says 0, and leaves the engine's model"
            if kept:
                assert begun_s[engine][kept - 1] < row[RouterRow.PUSH_NS] / NS_PER_S
                assert begun_s[engine][kept - 1] <= sim.last_step(engine).start_s
        sim.route(int(sim.now_ns % COUNT))
