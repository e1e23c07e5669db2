"""The parity tests' own machinery, against sides that are broken on purpose; without vLLM.

The reference engine stands in for vLLM here: it tells everything that the oracle must tell.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from synergy_gym.sim.plain.engine import Job, ReferenceEngine
from synergy_gym.types import EngineSpec
from tests.parity.cases import Case, Decisions, Request, random_case
from tests.parity.goals import GOALS, missed
from tests.parity.lockstep import Mismatch, Play, find_mismatch
from tests.parity.record import BEGIN, END, FILE, PAGE, page, play_chunk
from tests.parity.shrink import report, shrink
from tests.parity.sides import EngineSide, SimulatorSide

SEEDS = range(0, 60)


class WrongVictim(ReferenceEngine):
    """Preempts the first running request."""

    def _pick_victim(self) -> Job:
        return self.running[0]


class NoWatermark(ReferenceEngine):
    """Admits requests into the blocks that should stay free."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(replace(spec, watermark_blocks=0))


class ForgetsSkips(ReferenceEngine):
    """Serves requests that a decision skips."""

    def plan(self, decision: Any, start_ns: int) -> Any:
        return super().plan(replace(decision, token_caps=None), start_ns)


class Raises(ReferenceEngine):
    """Breaks down when it has preempted somebody."""

    def plan(self, decision: Any, start_ns: int) -> Any:
        step = super().plan(decision, start_ns)
        if step.preempted:
            raise RuntimeError("cannot preempt")
        return step


BROKEN: dict[type[ReferenceEngine], Callable[[Case], bool]] = {
    WrongVictim: lambda case: len(case.requests) <= 3,
    NoWatermark: lambda case: len(case.requests) <= 3 and case.spec.watermark_blocks > 0,
    ForgetsSkips: lambda case: len(case.requests) == 1 and case.decisions.skips != (0.0,),
    Raises: lambda case: len(case.requests) <= 3,
}
"""Broken engines, and what their shrunk workload must look like."""


def broken_side(engine: type[ReferenceEngine]) -> Callable[[Case], EngineSide]:
    return lambda case: EngineSide(case, engine)


def first_failure(engine: type[ReferenceEngine]) -> Mismatch:
    for seed in SEEDS:
        mismatch = find_mismatch(random_case(seed), EngineSide, {"broken": broken_side(engine)})
        if mismatch is not None:
            return mismatch
    pytest.fail(f"{engine.__name__} is never caught in workloads {SEEDS}")


@pytest.mark.parametrize("engine", BROKEN)
def test_a_broken_side_is_caught_and_its_workload_shrunk(engine: type[ReferenceEngine]) -> None:
    found = first_failure(engine)
    small = shrink(found.case, EngineSide, "broken", broken_side(engine))
    before, after = found.case, small.case
    assert BROKEN[engine](after), report(small)
    assert len(after.requests) < len(before.requests)
    assert small.step <= 30, report(small)
    assert sum(r.prompt + r.output for r in after.requests) < sum(
        r.prompt + r.output for r in before.requests
    )


def test_what_is_printed_can_be_played_again() -> None:
    found = first_failure(WrongVictim)
    small = shrink(found.case, EngineSide, "broken", broken_side(WrongVictim))
    text = report(small)
    assert "preempted" in text or "running" in text
    names = {"Case": Case, "Request": Request, "Decisions": Decisions, "EngineSpec": EngineSpec}
    again = eval(text.splitlines()[-1], names)
    assert again == small.case
    mismatch = find_mismatch(again, EngineSide, {"broken": broken_side(WrongVictim)})
    assert mismatch is not None
    assert str(mismatch) == str(small)


def test_a_side_that_agrees_is_not_shrunk() -> None:
    with pytest.raises(ValueError, match="does what the oracle does in workload 3"):
        shrink(random_case(3), EngineSide, "right", EngineSide)


def test_shrinking_stops_after_its_tries() -> None:
    found = first_failure(WrongVictim)
    played = []

    def counted(case: Case) -> EngineSide:
        played.append(case)
        return EngineSide(case, WrongVictim)

    shrink(found.case, EngineSide, "broken", counted, tries=7)
    assert len(played) <= 8


def test_the_simulator_shows_what_the_engine_does(seed: int) -> None:
    """Fresh workloads: the views of the simulator against the engine inside it."""
    for workload in range(seed, seed + 5):
        Play(random_case(workload), EngineSide, {"simulator": SimulatorSide}).run()


def test_taking_a_request_away_leaves_the_decisions_about_the_others() -> None:
    case = next(c for c in map(random_case, range(100)) if c.decisions.reorder_running == 0.5)
    fewer = replace(case, requests=(*case.requests[:1], *case.requests[2:]))
    orders = 0
    for step in range(40):
        whole = case.decision(step, [0, 1, 2, 3], [])
        part = fewer.decision(step, [0, 1, 2], [])
        assert whole.token_budget == part.token_budget
        if whole.running_order is not None:
            orders += 1
            left = [r - (r > 1) for r in whole.running_order.tolist() if r != 1]
            assert left == part.running_order.tolist()
    assert orders > 5


def test_every_minimum_is_above_nothing_and_is_reported() -> None:
    assert all(goal.least > 0 for goal in GOALS.values())
    short = missed(Counter({name: goal.least * 2 - 1 for name, goal in GOALS.items()}), 200)
    assert short.keys() == GOALS.keys()
    assert missed(Counter({name: goal.least * 2 for name, goal in GOALS.items()}), 200) == {}


def test_a_chunk_keeps_every_mismatch_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.parity.record.CHUNK", 6)
    sides = {"broken": broken_side(ForgetsSkips), "right": EngineSide}
    chunk, clean = play_chunk(0, EngineSide, sides), play_chunk(0, EngineSide, {})
    assert chunk.counts == clean.counts
    assert chunk.digest == clean.digest
    assert 0 < len(chunk.mismatches) <= 6
    assert all("broken" in message for message in chunk.mismatches)


def test_the_page_shows_the_record() -> None:

    text, record = PAGE.read_text(), json.loads(FILE.read_text())
    assert page(text, record) == text, f"{PAGE.name} is not what {FILE.name} gives"
    assert text.index(BEGIN) < text.index(END)
    assert record["mismatches"] == []
    assert record["workloads"] >= 10_000
    assert missed(Counter(record["counts"]), record["workloads"]) == {}
