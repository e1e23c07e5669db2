"""Invariants 7 and 8, black-box: no policy's decision depends on anything that is still to come.

Each policy plays twice. Both worlds are identical up to an instant t; after it other requests
arrive, and whatever has not finished by t has another output length. Everything that the policy
sees and decides up to t must be identical.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synergy_gym.latency.terms import StepTerms
from synergy_gym.policies import (
    EnginePolicy,
    RouterPolicy,
    engine_policies,
    make_engine_policy,
    make_router_policy,
    router_policies,
)
from synergy_gym.policies.agent_file import packaged_agents
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import (
    INFORMATION_CLASSES,
    NS_PER_S,
    SLO,
    BatchDecision,
    ClusterView,
    DecisionRule,
    EngineSpec,
    EngineView,
    Event,
    IntArray,
    Outcome,
    RequestRecords,
    RequestView,
    TelemetrySpec,
)
from synergy_gym.workload.base import Content, Workload, make_workload

CANDIDATES = (
    ("synergy_gym.sim.reference", "ReferenceSimulator"),
    ("synergy_gym.sim.cluster", "Simulator"),
)
SLOS = (SLO("chat", ttft_s=0.4, tpot_s=0.05), SLO("batch", e2e_s=5.0))
TELEMETRY = TelemetrySpec(
    push_delay_s=0.03, push_loss=0.2, heartbeat_interval_s=0.3, scrape_interval_s=0.4
)
SESSIONS = 6
AGENTS = [f"agent:{name}" for name in packaged_agents("engine")]
ENGINE = [*engine_policies(), "random:full=true", *AGENTS]
ROUTER = [*router_policies(), *(f"agent:{name}" for name in packaged_agents("router"))]
# Per policy and simulator; together they are well above what the profile asks of one invariant.
EXAMPLES = settings(max_examples=max(20, settings.default.max_examples // 10))
SEEDS = st.integers(0, 2**32 - 1)

Log = list[tuple[int, Any]]


def simulators() -> Iterator[type]:
    for module, name in CANDIDATES:
        try:
            yield getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise


SIMULATORS = list(simulators())


class Play(Protocol):
    def __call__(self, simulator: type, world: World, workload: Workload) -> Played: ...


@dataclasses.dataclass(frozen=True)
class World:
    engines: tuple[EngineSpec, ...]
    clocks: tuple[IntArray, ...]
    events: tuple[Event, ...]


@dataclasses.dataclass(frozen=True)
class Played:
    log: Log
    records: RequestRecords

    def until(self, t: int) -> Log:
        return [entry for entry in self.log if entry[0] <= t]


def make_world(rng: np.random.Generator, count: int) -> World:
    terms = StepTerms(base_ms=4.0, per_sequence_ms=0.1, per_token_ms=0.08, noise_sd=0.05)
    specs = [
        EngineSpec(
            name=f"e{index}",
            gpu="g",
            model="m",
            profile="h100-llama-3.1-8b",  # published: LENS is ready at once
            max_num_seqs=int(rng.integers(2, 12)),
            max_num_batched_tokens=2048,
            max_model_len=512,
            kv_blocks=int(rng.integers(32, 90)),
            prefix_caching=bool(rng.random() < 0.5),
            weight=1.0 + index,
        )
        for index in range(count)
    ]
    clocks = [terms.clock(int(rng.integers(1 << 40))) for _ in specs]
    down, up = (Event(t, kind, 1) for t, kind in ((0.3, "down"), (0.9, "up")))  # type: ignore[arg-type]
    return World(tuple(specs), tuple(clocks), (down, up) if count > 1 else ())


def columns(rng: np.random.Generator, count: int, start: int, span_s: float) -> dict[str, IntArray]:
    times = start + np.sort(rng.integers(0, int(span_s * NS_PER_S), count))
    return {
        "arrival_ns": times,
        "prompt_tokens": rng.integers(1, 250, count),
        "output_tokens": rng.integers(1, 40, count),
        "session": rng.integers(-1, SESSIONS, count),
        "slo_class": rng.integers(0, len(SLOS), count),
    }


def make_traffic(values: dict[str, IntArray]) -> Workload:
    """One shared system prompt, one history per session, one leaf per request."""
    count = len(values["arrival_ns"])
    session = values["session"]
    parent = np.concatenate(
        [[-1], np.zeros(SESSIONS, np.int64), np.where(session < 0, 0, session + 1)]
    )
    start = np.repeat([0, 32, 96], [1, SESSIONS, count])
    content = Content(1 + SESSIONS + np.arange(count), parent, start)
    arrival, prompt, output = (
        values[name] for name in ("arrival_ns", "prompt_tokens", "output_tokens")
    )
    return make_workload(
        arrival, prompt, output, session=session, slo_class=values["slo_class"], content=content
    )


def other_future(
    rng: np.random.Generator, workload: Workload, records: RequestRecords, t: int
) -> Workload:
    """The same traffic up to `t`: later arrivals and unseen output lengths are new."""
    past = int(np.searchsorted(workload.arrival_ns, t, side="right"))
    later = columns(rng, int(rng.integers(1, 15)), t + 1, 1.0)
    values = {name: getattr(workload, name)[:past] for name in later}
    known = (records.outcome[:past] == Outcome.FINISHED) & (records.finish_ns[:past] <= t)
    longer = values["output_tokens"] + rng.integers(1, 40, past)
    values["output_tokens"] = np.where(known, values["output_tokens"], longer)
    return make_traffic({name: np.concatenate([values[name], later[name]]) for name in later})


def plain(value: object) -> object:
    """Plain data that compares by content."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return [plain(getattr(value, item.name)) for item in dataclasses.fields(value)]
    return value


def play_engine(policy: EnginePolicy, simulator: type, world: World, workload: Workload) -> Played:
    sim = simulator(
        engines=world.engines,
        clocks=world.clocks,
        workload=workload,
        slos=SLOS,
        telemetry=TELEMETRY,
        auto_route=True,
    )
    policy.reset(np.random.default_rng(5), world.engines[0], SLOS)
    log: Log = []
    last = None
    while sim.advance() == BATCH:
        if (step := sim.last_step(0)) is not None and step != last:
            policy.observe(step)
            last = step
        view = sim.engine_view(0)
        seen = plain([view.state, view.running, view.waiting, view.last_step])
        decision = policy.decide(view)
        log.append((int(sim.now_ns), (seen, plain(decision))))
        sim.batch(decision)
    return Played(log, sim.records())


def play_router(policy: RouterPolicy, simulator: type, world: World, workload: Workload) -> Played:
    sim = simulator(
        engines=world.engines,
        clocks=world.clocks,
        workload=workload,
        slos=SLOS,
        telemetry=TELEMETRY,
        events=world.events,
        rules=[DecisionRule(token_budget=256, cover_decodes=True) for _ in world.engines],
    )
    rng = np.random.default_rng(5)
    policy.reset(rng, world.engines, SLOS)
    log: Log = []
    while sim.advance() == ROUTE:
        done = sim.completions()
        for completion in done:
            policy.observe(completion)
        request, everything = (
            sim.request_view(),
            sim.cluster_view(rng, frozenset(INFORMATION_CLASSES)),
        )
        seen = plain([request, done, everything.rows, everything.session_engine])
        choice = policy.route(request, sim.cluster_view(rng, policy.information))
        log.append((int(sim.now_ns), (seen, choice)))
        sim.route(choice)
    return Played(log, sim.records())


def same_past(seed: int, count: int, play: Play, simulator: type) -> bool:
    """Whether what is seen and decided up to a random instant is the same in two futures."""
    rng = np.random.default_rng(seed)
    world = make_world(rng, count)
    traffic = make_traffic(columns(rng, int(rng.integers(5, 20 * count)), 0, 1.2))
    first = play(simulator, world, traffic)
    times = [t for t, _ in first.log if t < traffic.arrival_ns[-1]]
    t = int(rng.choice(times))
    second = play(simulator, world, other_future(rng, traffic, first.records, t))
    assert first.until(t)
    return first.until(t) == second.until(t)


def test_a_simulator_is_there() -> None:
    assert SIMULATORS
    assert DONE == 0


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", ENGINE)
@EXAMPLES
@given(seed=SEEDS)
def test_engine_policy_does_not_know_the_future(name: str, simulator: type, seed: int) -> None:
    policy = make_engine_policy(name)
    assert same_past(seed, 1, lambda *args: play_engine(policy, *args), simulator)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", ROUTER)
@EXAMPLES
@given(seed=SEEDS)
def test_router_policy_does_not_know_the_future(name: str, simulator: type, seed: int) -> None:
    policy = make_router_policy(name)
    assert same_past(seed, 3, lambda *args: play_router(policy, *args), simulator)


class Clairvoyant(EnginePolicy, RouterPolicy):  # type: ignore[misc]
    """A control: it looks where no policy can, so the test must catch it."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.total = 0

    def reset(self, *args: object) -> None:
        """Keep what the test gave it."""

    def observe(self, *args: object) -> None:
        """Learn nothing."""

    def decide(self, engine: EngineView) -> BatchDecision:
        return BatchDecision(token_budget=64 + self.total % 64)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        up = np.flatnonzero(cluster.alive)
        return int(up[self.total % len(up)])

    def play_engine(self, simulator: type, world: World, workload: Workload) -> Played:
        self.total = int(getattr(workload, self.column).sum())
        return play_engine(self, simulator, world, workload)

    def play_router(self, simulator: type, world: World, workload: Workload) -> Played:
        self.total = int(getattr(workload, self.column).sum())
        return play_router(self, simulator, world, workload)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("column", ["arrival_ns", "output_tokens"])
def test_a_clairvoyant_policy_is_caught(column: str, simulator: type) -> None:
    cheat = Clairvoyant(column)
    assert not all(same_past(seed, 1, cheat.play_engine, simulator) for seed in range(5))
    assert not all(same_past(seed, 3, cheat.play_router, simulator) for seed in range(5))
