"""`SYNERGY_GYM_CHECK=1`: the state invariants are checked after every step, and are not vacuous."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation import evaluate
from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.compiled import checks
from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.compiled.checks_pool import Spans
from synergy_gym.sim.memory import Memory
from synergy_gym.sim.points import BATCH
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import SLO, BatchDecision, EngineSpec
from synergy_gym.workload.base import make_workload

CHECK = "SYNERGY_GYM_CHECK"
CASES = [("smoke", "random"), ("smoke", "vllm-v1"), ("smoke-cluster", "sarathi-512")]


class Recorded(Simulator):
    """Remembers every simulator of its kind, so that its steps can be counted afterwards."""

    seen: list[Simulator]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        type(self).seen.append(self)


def run(scenario: str, policy: str) -> tuple[str, int]:
    """The log hash of an episode, and how many iterations its engines planned."""
    Recorded.seen = []
    result = evaluate(
        scenario, policy, "random", seed=4, warmup_s=0.0, horizon_s=2.0, simulator=Recorded
    )
    sim = Recorded.seen[-1]
    return result.log_hash, sum(sim.steps(engine) for engine in range(len(sim.engines)))


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the checks, which still take place."""
    calls = [0]
    check = checks.check_memory

    def counted(memory: Memory) -> None:
        calls[0] += 1
        check(memory)

    monkeypatch.setattr(checks, "check_memory", counted)
    return calls


@pytest.mark.parametrize(("scenario", "policy"), CASES)
def test_every_step_is_checked(
    scenario: str, policy: str, count: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where compiled rules decide; and checking changes nothing."""
    monkeypatch.setenv(CHECK, "0")
    plain = run(scenario, policy)
    assert count == [0]
    monkeypatch.setenv(CHECK, "1")
    assert run(scenario, policy) == plain
    assert count[0] >= plain[1]


def test_a_violation_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(memory: Memory) -> None:
        raise AssertionError("invariant 4: free + used blocks != total")

    monkeypatch.setattr(checks, "check_memory", broken)
    monkeypatch.setenv(CHECK, "1")
    with pytest.raises(AssertionError, match="invariant 4"):
        run("smoke", "vllm-v1")


def busy(caching: bool) -> Simulator:
    """A simulator in the middle of an episode: some finished, some running, some waiting."""
    rng = np.random.default_rng(3)
    sim = Simulator(
        engines=[EngineSpec("e", "g", "m", "p", 4, 64, 256, 40, prefix_caching=caching)],
        clocks=[StepTerms(base_ms=4.0).clock()],
        workload=make_workload(
            np.sort(rng.integers(0, 10**8, 30)), rng.integers(1, 60, 30), rng.integers(2, 30, 30)
        ),
        slos=[SLO("any")],
        auto_route=True,
    )
    for _ in range(60):
        assert sim.advance() == BATCH
        sim.batch(BatchDecision(32))
    view = sim.engine_view(0)
    assert view.num_running > 1
    assert view.num_waiting > 1
    assert np.any(sim.records().finish_ns >= 0)
    sim.check()
    return sim


def engine_field(path: str, change: int = 1) -> Callable[[Simulator], None]:
    """A field of the engine, or of a record inside it (`pool.free`)."""

    def corrupt(sim: Simulator) -> None:
        *parts, field = path.split(".")
        record = sim.memory.engines[0]
        for part in parts:
            record = record[part]
        record[field] += change

    return corrupt


def finished_field(field: str, change: int) -> Callable[[Simulator], None]:
    def corrupt(sim: Simulator) -> None:
        request = int(np.flatnonzero(sim.records().finish_ns >= 0)[0])
        memory = sim.memory
        records = memory.details if field in L.DETAIL.dtype.names else memory.requests
        records[field][request] += change

    return corrupt


def head_leaves(sim: Simulator) -> None:
    """The head of the waiting queue vanishes from it."""
    engine = sim.memory.engines[0]
    engine["first_waiting"] = sim.memory.requests[engine["first_waiting"]]["next"]


def span_field(field: str, change: int, *, free: bool = True) -> Callable[[Simulator], None]:
    """A field of a span at the front of the free queue, or of one that a request holds."""

    def corrupt(sim: Simulator) -> None:
        spans, memory = Spans(sim.memory, 0), sim.memory
        held = [number for number in spans.oldest() if spans.records["references"][number]]
        number = memory.engines[0]["pool"]["first_free"] if free else held[0]
        spans.records[field][number] += change

    return corrupt


def decode_stops_looking(sim: Simulator) -> None:
    """A decode is taken for one whose next block others may have filled."""
    requests, details = sim.memory.requests, sim.memory.details
    decode = np.flatnonzero(requests["state"] == L.DECODE)[0]
    details["looks"][decode] = not details["looks"][decode]


@pytest.mark.parametrize(
    ("number", "caching", "corrupt"),
    [
        (1, False, engine_field("running")),
        (1, False, engine_field("waiting")),
        (1, False, engine_field("waiting_tokens")),
        (1, False, engine_field("decodes")),
        (1, False, head_leaves),
        (2, False, finished_field("scheduled_ns", -(10**12))),
        (2, False, finished_field("first_token_ns", 10**12)),
        (2, False, finished_field("generated_tokens", 1)),
        (4, False, engine_field("pool.free")),
        (4, False, engine_field("pool.free", -1)),
        (4, True, engine_field("pool.free")),
        (4, True, engine_field("pool.plain")),
        (4, True, span_field("queue_next", 1)),
        (4, True, span_field("references", 1)),
        (4, True, span_field("references", -1)),
        (4, True, span_field("references", 1, free=False)),
        (4, True, span_field("length", 1)),
        (4, True, span_field("content", 1)),
        (4, True, span_field("begin", 1, free=False)),
        (4, True, span_field("same_previous", 1, free=False)),
        (4, True, decode_stops_looking),
        (5, False, engine_field("plan.tokens", 1000)),
    ],
)
def test_check_finds_a_corrupted_state(
    number: int, caching: bool, corrupt: Callable[[Simulator], None]
) -> None:
    """One change at a time in an otherwise sound memory; the message names the invariant."""
    sim = busy(caching)
    corrupt(sim)
    with pytest.raises(AssertionError, match=f"invariant {number}"):
        sim.check()
