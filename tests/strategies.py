"""Random episodes for the property tests: hypothesis strategies, random answers, and a player.

Hypothesis draws the structure of an episode, which it can shrink; the columns of the traffic and
the answers to decision points come from drawn seeds, which keeps an example below a few
milliseconds. Everything that a simulator can meet occurs: several engines, rules and policies,
scarce memory, prefix caching, priorities, closed loops, timeouts and retries, world events, lost
pushes, and a tie-heavy variant in which arrivals, timeouts, events and steps share instants.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from synergy_gym.latency.clock import StepTerms
from synergy_gym.latency.clock_saturation import SaturationTerms
from synergy_gym.latency.clock_table import TableTerms, table_terms
from synergy_gym.latency.models.published import published_model
from synergy_gym.latency.profiles import Loop, load_profile
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import (
    ADVERT_TERMS,
    SLO,
    BatchDecision,
    ClientSpec,
    DecisionRule,
    EngineAdvert,
    EngineSpec,
    Event,
    IntArray,
    RouterRow,
    TelemetrySpec,
)
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import Content
from tests.engines import A6000, H100

SIMULATORS = (Simulator, ReferenceSimulator)
SEEDS = st.integers(0, 2**32 - 1)
SLOS = (SLO("chat", ttft_s=0.2, tpot_s=0.02, e2e_s=2.0), SLO("batch", tpot_s=0.05))
FOREVER_NS = 2**62
MS = 10**6
GRID_NS = 10 * MS
MAX_POINTS = 20_000
"""A random policy may starve an engine for very long; such an episode is cut here."""

Answer = int | BatchDecision
Visit = Callable[[Any, int], None]


@dataclass(frozen=True)
class Episode:
    """What a simulator is built from, and the seed of the answers that it gets."""

    arguments: Mapping[str, Any]
    seed: int

    def build(self, simulator: type) -> Any:
        """A simulator at the beginning of this episode."""
        return simulator(**self.arguments)

    @property
    def engines(self) -> tuple[EngineSpec, ...]:
        """The cluster."""
        engines: tuple[EngineSpec, ...] = self.arguments["engines"]
        return engines

    @property
    def workload(self) -> Workload:
        """The traffic."""
        workload: Workload = self.arguments["workload"]
        return workload


@st.composite
def engine_specs(
    draw: st.DrawFn, index: int, block_size: int, caching: bool, priority: bool
) -> EngineSpec:
    """One small engine: memory for anything between a request or two and everything."""
    return EngineSpec(
        name=f"e{index}",
        gpu="g",
        model="m",
        profile="p",
        max_num_seqs=draw(st.sampled_from([1, 2, 8, 32])),
        max_num_batched_tokens=draw(st.sampled_from([16, 64, 512])),
        max_model_len=draw(st.sampled_from([64, 256, 1024])),
        kv_blocks=draw(st.sampled_from([20, 30, 60, 400])),
        block_size=block_size,
        prefix_caching=caching,
        scheduling="priority" if priority else "fcfs",
        watermark_blocks=draw(st.sampled_from([0, 0, 2])),
    )


@st.composite
def rules(draw: st.DrawFn, spec: EngineSpec) -> DecisionRule | None:
    """A compiled decision for `spec`, or none: the engine then stops at BATCH points."""
    if draw(st.booleans()):
        return None
    orders = ["queue", "shortest-prompt", "earliest-deadline"]
    order = "queue" if spec.scheduling == "priority" else draw(st.sampled_from(orders))
    return DecisionRule(
        token_budget=draw(st.integers(1, spec.max_num_batched_tokens)),
        max_running=draw(st.sampled_from([None, 1, spec.max_num_seqs])),
        prefill_chunk=draw(st.sampled_from([0, 0, 16])),
        order=order,  # type: ignore[arg-type]
    )


def closed_loop(rng: np.random.Generator, arrival: IntArray) -> IntArray:
    """Make about 40 % of the requests wait for an earlier one; rewrites their `arrival`."""
    count = len(arrival)
    after = np.full(count, -1)
    chained = np.flatnonzero(rng.random(count) < 0.4)
    chained = chained[chained > 0]
    after[chained] = [rng.integers(0, request) for request in chained]
    arrival[chained] = rng.integers(0, 100 * MS, len(chained))
    return after


def content_tree(rng: np.random.Generator, count: int) -> Content:
    """Each request continues the content of an earlier one, or of nobody."""
    parent, start, leaf = [-1, -1], [0, 0], []
    for _ in range(count):
        base = int(rng.integers(0, len(parent)))
        leaf.append(len(parent))
        parent.append(base)
        start.append(start[base] + int(rng.integers(0, 41)))
    return Content(np.array(leaf, np.int64), np.array(parent), np.array(start))


@st.composite
def workloads(
    draw: st.DrawFn, *, caching: bool, priority: bool, grid: bool, closed: bool
) -> Workload:
    """Traffic of 1 to 40 requests with two SLO classes and some sessions."""
    rng = np.random.default_rng(draw(SEEDS))
    count = draw(st.integers(1, 40))
    arrival = np.sort(rng.integers(0, draw(st.sampled_from([10, 1000, 4000])) * MS, count))
    arrival = arrival // GRID_NS * GRID_NS if grid else arrival
    prompt = rng.integers(1, draw(st.sampled_from([8, 60, 200])), count)
    content = None
    if caching and draw(st.booleans()):
        content = content_tree(rng, count)
        prompt = np.maximum(prompt, content.start[content.leaf] + 1)
    return make_workload(
        arrival,
        prompt,
        rng.integers(1, draw(st.sampled_from([3, 20, 50])), count),
        session=rng.integers(-1, 4, count),
        slo_class=rng.integers(0, len(SLOS), count),
        priority=rng.integers(-2, 3, count) if priority else None,
        after=closed_loop(rng, arrival) if closed else None,
        content=content,
    )


EXPERTS = ((0, 0.5), (8, 2.0), (64, 3.0), (512, 9.0))
"""Times of a mixture's experts, up to what the largest engine here takes."""


@st.composite
def step_terms(draw: st.DrawFn, *, grid: bool) -> StepTerms:
    """A step-latency model; on the grid every step takes exactly one grid unit."""
    if grid:
        return StepTerms(base_ms=GRID_NS / MS)
    return StepTerms(
        base_ms=draw(st.sampled_from([0.0, 1.0, 5.0])),
        per_sequence_ms=0.2,
        per_token_ms=0.05,
        per_decode_context_ms=1e-3,
        per_prefill_pair_ms=1e-4,
        per_mixed_context_ms=1e-4,
        prefill_step_ms=0.3,
        floor_ms=draw(st.sampled_from([0.0, 2.0])),
        noise_sd=draw(st.sampled_from([0.0, 0.05])),
        straggler_probability=draw(st.sampled_from([0.0, 0.1])),
        straggler_factor=3.0,
        floor_per_token_ms=draw(st.sampled_from([0.0, 0.01])),
        per_sample_ms=draw(st.sampled_from([0.0, 0.1])),
        experts_ms=draw(st.sampled_from([(), EXPERTS])),
    )


MODELS = tuple(
    model
    for engine, form in ((H100, "stable"), (H100, "six"), (A6000, "eight"))
    if (model := published_model(*engine, form))  # type: ignore[arg-type]
)  # fmt: skip
"""One T(B,S) of each form."""


@st.composite
def saturation_terms(draw: st.DrawFn, spec: EngineSpec) -> SaturationTerms:
    """A T(B,S) world for `spec`, with and without noise."""
    return SaturationTerms(
        model=draw(st.sampled_from(MODELS)),
        max_sequences=spec.max_num_seqs,
        max_tokens=spec.max_num_batched_tokens,
        noise_sd=draw(st.sampled_from([0.0, 0.05])),
    )


@st.composite
def table_worlds(draw: st.DrawFn, spec: EngineSpec) -> TableTerms:
    """Kernel tables with a residual field for `spec`."""
    profile = load_profile(draw(st.sampled_from(["h100-llama-3.1-8b", "a100-qwen3-30b-a3b"])))
    loop: Loop = draw(st.sampled_from(["async", "sync"]))
    draws = draw(st.integers(0, 3))
    return table_terms(profile, loop, spec.max_num_seqs, spec.max_num_batched_tokens, draws)


@st.composite
def telemetries(draw: st.DrawFn) -> TelemetrySpec:
    """Pushes and scrapes, some late, some lost, with every kind of heartbeat."""
    return TelemetrySpec(
        push_interval_s=draw(st.sampled_from([0.02, 0.2])),
        push_delay_s=draw(st.sampled_from([0.0, 0.01, 0.3])),
        push_loss=draw(st.sampled_from([0.0, 0.3])),
        heartbeat=draw(st.sampled_from(["idle-only", "overwrite", "none"])),
        heartbeat_interval_s=draw(st.sampled_from([0.05, 0.5])),
        scrape_interval_s=draw(st.sampled_from([0.1, 1.0])),
    )


def random_advert(rng: random.Random, *, predicts: bool) -> EngineAdvert:
    """What an engine may say about itself; `predicts`: also about one iteration."""

    def maybe(most: float) -> float | None:
        return rng.choice([None, 0.0, rng.uniform(0, most)])

    terms = tuple(rng.uniform(0, 10) for _ in ADVERT_TERMS)
    return EngineAdvert(
        predicted_step_s=maybe(0.1) if predicts else None,
        capacity=maybe(1e4),
        peak_tps=maybe(1e5),
        step_ms=rng.choice([(), terms]),
    )


@st.composite
def adverts(draw: st.DrawFn, engines: int) -> list[EngineAdvert | None] | None:
    """What the engines are started with, if with anything."""
    rng = random.Random(draw(SEEDS))
    given = [rng.choice([None, random_advert(rng, predicts=False)]) for _ in range(engines)]
    return draw(st.sampled_from([None, given]))


CLIENTS = st.builds(
    ClientSpec,
    timeout_s=st.sampled_from([0.0, 0.0, 0.05, 0.5]),
    max_retries=st.sampled_from([0, 2]),
    backoff_s=st.sampled_from([0.0, 0.1]),
)


def world_events(engines: int) -> st.SearchStrategy[list[Event]]:
    """Up to four changes of the world; none in half of the episodes."""
    event = st.builds(
        Event,
        at_s=st.sampled_from([0.01, 0.1, 0.5, 1.0, 2.0]),
        kind=st.sampled_from(["down", "up", "slowdown", "lose_blocks"]),
        engine=st.integers(0, engines - 1),
        factor=st.sampled_from([1.0, 2.5]),
        blocks=st.integers(1, 8),
    )
    return st.one_of(st.just([]), st.lists(event, min_size=1, max_size=4))


@st.composite
def episodes(draw: st.DrawFn, *, saturation: bool | None = None) -> Episode:
    """Any episode at all; `saturation` fixes whether T(B,S) times the steps, or terms."""
    count = draw(st.sampled_from([1, 1, 2, 3]))
    priority = draw(st.integers(0, 4)) == 4
    caching = draw(st.booleans())
    grid = draw(st.integers(0, 3)) == 3
    size = draw(st.sampled_from([4, 16]))
    specs = tuple(draw(engine_specs(i, size, caching, priority)) for i in range(count))
    closed = draw(st.integers(0, 3)) == 3
    terms = draw(step_terms(grid=grid))
    kind = draw(st.integers(0, 4)) if saturation is None else 3 * saturation
    tables = {3: saturation_terms, 4: table_worlds}
    worlds = [draw(tables[kind](spec)) if kind in tables else terms for spec in specs]
    seed = draw(SEEDS)
    arguments = {
        "engines": specs,
        "clocks": tuple(world.clock(seed + i) for i, world in enumerate(worlds)),
        "workload": draw(workloads(caching=caching, priority=priority, grid=grid, closed=closed)),
        "slos": SLOS,
        "telemetry": draw(telemetries()),
        "client": draw(CLIENTS),
        "events": draw(world_events(count)),
        "warmup_ns": draw(st.sampled_from([0, 100 * MS])),
        "horizon_ns": draw(st.sampled_from([FOREVER_NS, 2000 * MS])),
        "stop_ns": draw(st.sampled_from([FOREVER_NS, 3000 * MS])),
        "rules": [draw(rules(spec)) for spec in specs],
        "adverts": draw(adverts(count)),
        "auto_route": count == 1 and draw(st.booleans()),
        "record_itl": draw(st.booleans()),
    }
    return Episode(arguments, seed)


def with_points(episode: Episode) -> Episode:
    """The same episode without rules and automatic routing: it stops at every decision."""
    free = {"rules": None, "auto_route": False}
    return Episode({**episode.arguments, **free}, episode.seed)


def random_batch(rng: random.Random, spec: EngineSpec, running: int, waiting: int) -> BatchDecision:
    """A legal decision: often plain, sometimes with orders and caps of single requests."""
    lists: dict[str, IntArray] = {}
    if rng.random() < 0.15:
        lists["running_order"] = np.array(rng.sample(range(running), running), np.int64)
    if rng.random() < 0.15 and spec.scheduling == "fcfs":
        lists["waiting_order"] = np.array(rng.sample(range(waiting), waiting), np.int64)
    if rng.random() < 0.2:
        caps = rng.choices([-1, -1, 0, 1, 5], k=running + waiting)
        lists["token_caps"] = np.array(caps, np.int64)
    most = spec.max_num_batched_tokens
    return BatchDecision(
        token_budget=rng.choice([1, 2, most, rng.randint(1, most)]),
        max_running=rng.choice([None, rng.randint(1, spec.max_num_seqs)]),
        prefill_chunk=rng.choice([0, 0, 1, 8]),
        advert=random_advert(rng, predicts=True) if rng.random() < 0.3 else None,
        **lists,
    )


def choose(sim: Any, point: int, rng: random.Random) -> Answer:
    """A random legal answer to the decision point at which `sim` stands."""
    if point == ROUTE:
        alive = np.flatnonzero(sim.router_rows()[:, RouterRow.ALIVE]).tolist()
        engine: int = rng.choice(alive)
        return engine
    view = sim.engine_view(sim.point_engine)
    return random_batch(rng, view.spec, view.num_running, view.num_waiting)


def give(sim: Any, point: int, answer: Answer) -> None:
    """Answer the decision point at which `sim` stands."""
    if point == BATCH:
        sim.batch(answer)
    else:
        sim.route(answer)


def play(sim: Any, seed: int, visit: Visit | None = None) -> bool:
    """Play `sim` with random answers, calling `visit(sim, point)` at every point and the end.

    Returns whether the episode came to its end within `MAX_POINTS`.
    """
    rng = random.Random(seed)
    for _ in range(MAX_POINTS):
        point = sim.advance()
        if visit is not None:
            visit(sim, point)
        if point == DONE:
            return True
        give(sim, point, choose(sim, point, rng))
    return False


def spec(**changes: Any) -> EngineSpec:
    """A small engine, for episodes worked out by hand."""
    defaults: dict[str, Any] = {
        "name": "e",
        "gpu": "none",
        "model": "none",
        "profile": "none",
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "max_model_len": 4096,
        "kv_blocks": 100,
    }
    return EngineSpec(**(defaults | changes))
