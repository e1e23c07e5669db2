"""Invariant 1: no request is lost and none is made up, through events, timeouts and retries."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given

from synergy_gym.sim.points import BATCH, ROUTE
from synergy_gym.types import Outcome, RouterRow
from tests.strategies import SIMULATORS, Episode, episodes, play

FINAL = (Outcome.FINISHED, Outcome.REJECTED, Outcome.ABORTED, Outcome.FAILED)


class Ledger:
    """Every attempt that was routed, against what is in the engines and what has left them."""

    def __init__(self, engines: int) -> None:
        self.engines = range(engines)
        self.routed: Counter[int] = Counter()
        self.left: Counter[int] = Counter()
        self.outcomes: Counter[Outcome] = Counter()

    def visit(self, sim: Any, point: int) -> None:
        for completion in sim.completions():
            self.left[completion.engine] += 1
            self.outcomes[completion.outcome] += 1
        views = [sim.engine_view(engine) for engine in self.engines]
        rows = sim.router_rows()
        for engine, view in enumerate(views):
            inside = view.num_running + view.num_waiting
            assert self.routed[engine] == self.left[engine] + inside
            assert rows[engine, RouterRow.IN_FLIGHT] == inside
            assert len(view.running) == view.num_running
            assert len(view.waiting) == view.num_waiting
            prompts = view.running.prompt_tokens.sum() + view.waiting.prompt_tokens.sum()
            assert rows[engine, RouterRow.IN_FLIGHT_TOKENS] == prompts

    def answered(self, sim: Any, engine: int) -> None:
        self.routed[engine] += 1


def audit(simulator: type, episode: Episode) -> tuple[Any, Ledger, bool]:
    """Play the episode under a ledger."""
    sim = episode.build(simulator)
    ledger = Ledger(len(episode.engines))
    route = sim.route

    def counted(engine: int) -> None:
        route(engine)
        ledger.answered(sim, engine)

    sim.route = counted
    ended = play(sim, episode.seed, ledger.visit)
    return sim, ledger, ended


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_arrived_is_inside_or_left(simulator: type, episode: Episode) -> None:
    """On every engine and at every decision point; the router's own counts agree."""
    routed = Episode({**episode.arguments, "auto_route": False}, episode.seed)
    sim, ledger, ended = audit(simulator, routed)
    records = sim.records()
    attempts = int(records.attempts.sum())
    # An attempt that finds no engine up leaves at once, from engine -1.
    assert attempts == ledger.routed.total() + ledger.left[-1]
    if ended:
        counts = Counter(Outcome(int(outcome)) for outcome in records.outcome)
        assert counts[Outcome.PENDING] == 0
        assert counts.total() == len(routed.workload)
        for outcome in (Outcome.FINISHED, Outcome.REJECTED):
            assert counts[outcome] == ledger.outcomes[outcome]
        for outcome in (Outcome.ABORTED, Outcome.FAILED):
            assert counts[outcome] <= ledger.outcomes[outcome]


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_who_has_left_never_comes_back(simulator: type, episode: Episode) -> None:
    """An outcome is final, retries stay within the client's, and nobody finishes twice."""
    sim = episode.build(simulator)
    settled: dict[int, int] = {}

    def visit(sim: Any, point: int) -> None:
        outcome = sim.records().outcome
        for request, final in settled.items():
            assert outcome[request] == final
        if point in (BATCH, ROUTE):
            settled.update({r: int(o) for r, o in enumerate(outcome) if o in FINAL})

    play(sim, episode.seed, visit)
    retries = episode.arguments["client"].max_retries
    assert int(sim.records().attempts.max()) <= 1 + retries


@given(episode=episodes())
def test_the_simulators_own_check_holds(episode: Episode) -> None:
    """`check()` reads what no view shows: links of the queues, counts, sums of tokens."""
    play(episode.build(SIMULATORS[0]), episode.seed, lambda sim, point: sim.check())
