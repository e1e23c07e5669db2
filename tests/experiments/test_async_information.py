"""What a plan knows under asynchronous scheduling, by hand (steps last 1 ms) and at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.clocks import async_information as experiment
from experiments.clocks.async_simulator import EXACT, VLLM, AsyncSimulator, Information
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.clock import StepTerms
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.engine.vllm_v1 import VllmV1
from synergy_gym.policies.router.round_robin import RoundRobin
from synergy_gym.seats import play_policies
from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import SLO, BatchDecision, EngineView, StepReport
from synergy_gym.workload.base import make_workload
from tests.strategies import spec

MS = 10**6
OLD = Information("before", late_arrivals=True, late_reports=True)
LATE = Information(late_arrivals=True)
DECISION = Information("planned")
Request = tuple[float, int, int]
"""Arrival in ms, prompt, output."""


@dataclass
class Asked(EnginePolicy):
    """Decides by a function, and keeps what it was shown and told.

    `told` holds, per decision, the starts in ms of the steps that were observed before it.
    """

    decision: Callable[[EngineView], BatchDecision] = lambda view: BatchDecision(512)
    views: list[EngineView] = field(default_factory=list)
    steps: list[StepReport] = field(default_factory=list)
    told: list[list[int]] = field(default_factory=list)

    def observe(self, step: StepReport) -> None:
        self.steps.append(step)

    def decide(self, engine: EngineView) -> BatchDecision:
        self.views.append(engine)
        self.told.append([round(step.start_s * 1000) for step in self.steps])
        return self.decision(engine)

    @property
    def asked_ms(self) -> list[float]:
        """Instants of the views."""
        return [view.now_s * 1000 for view in self.views]


def episode(requests: list[Request], **engine: Any) -> dict[str, Any]:
    """The arguments of a simulator for these requests."""
    arrival, prompt, output = np.array(requests, float).reshape(-1, 3).T
    return {
        "engines": [spec(**engine)],
        "clocks": [StepTerms(base_ms=1.0).clock()],
        "workload": make_workload(
            np.round(arrival * MS).astype(np.int64),
            prompt.astype(np.int64),
            output.astype(np.int64),
        ),
        "slos": [SLO("default")],
        "auto_route": True,
    }


def play(sim: Simulator, policy: EnginePolicy) -> Any:
    """Play to the end; returns the records."""
    policy.reset(np.random.default_rng(0), sim.engines[0], sim.slos)
    play_policies(sim, [policy], RoundRobin(), np.random.default_rng(0))
    sim.check()
    return sim.records()


def scheduled_ms(information: Information, requests: list[Request], **engine: Any) -> list[float]:
    """When each request first ran under plain scheduling."""
    records = play(AsyncSimulator(information, **episode(requests, **engine)), Asked())
    return [float(ns) / MS for ns in records.scheduled_ns]


@pytest.mark.parametrize("information", [LATE, OLD, VLLM])
def test_who_arrives_in_a_step_joins_two_plans_later(information: Information) -> None:
    requests = [(0.0, 10, 9), (2.5, 10, 2), (3.0, 10, 2)]
    assert scheduled_ms(EXACT, requests) == [0.0, 3.0, 3.0]
    # At 3 ms step [4, 5) is planned, and who arrives in that instant is in time for it.
    assert scheduled_ms(information, requests) == [0.0, 4.0, 4.0]


@pytest.mark.parametrize("information", [EXACT, LATE, DECISION, OLD, VLLM])
def test_an_idle_engine_reacts_at_once(information: Information) -> None:
    # The first has left when the second comes; the third comes in the last step of the second.
    requests = [(0.0, 10, 3), (20.25, 10, 3), (22.5, 10, 3)]
    assert scheduled_ms(information, requests) == [0.0, 20.25, 23.25]


@pytest.mark.parametrize("view", ["planned", "before"])
def test_a_decision_is_that_of_the_point_before(view: Any) -> None:
    policy = Asked(lambda engine: BatchDecision(100 + round(engine.now_s * 1000)))
    sim = AsyncSimulator(Information(view), **episode([(0.0, 10, 6)]))
    play(sim, policy)
    assert policy.asked_ms == [0, 0, 1, 2, 3, 4]
    budgets = [step.token_budget for step in policy.steps]
    assert budgets == [100, 100, 101, 102, 103]
    play(
        exact := AsyncSimulator(EXACT, **episode([(0.0, 10, 6)])), policy := Asked(policy.decision)
    )
    assert [step.token_budget for step in policy.steps] == [100, 101, 102, 103, 104]
    assert exact.steps(0) == sim.steps(0) == 6


def test_the_view_of_a_step_in_flight_counts_its_tokens() -> None:
    requests = [(0.0, 10, 2), (0.0, 20, 9), (0.5, 5, 1)]
    policy = Asked(lambda engine: BatchDecision(16))
    play(AsyncSimulator(VLLM, **episode(requests)), policy)
    fresh, in_first, in_second = policy.views[:3]
    assert (fresh.num_running, fresh.num_waiting, fresh.now_s) == (0, 2, 0.0)
    # The first step takes 10 + 6 prompt tokens. It has emitted nothing yet, but that is certain.
    assert (in_first.now_s, in_first.num_waiting, in_first.last_step) == (0.0, 0, None)
    assert in_first.running.computed_tokens.tolist() == [10, 6]
    assert in_first.running.generated_tokens.tolist() == [1, 0]
    assert in_first.running.first_token_age_s.tolist() == [-1, -1]
    assert (in_first.num_decodes, in_first.kv_free_blocks) == (1, 100 - 2)
    # In the second one the first request ends, and the third has come.
    assert (in_second.now_s, in_second.num_waiting) == (0.001, 1)
    assert in_second.running.computed_tokens.tolist() == [11, 20]
    assert in_second.running.generated_tokens.tolist() == [2, 1]
    assert in_second.running.first_token_age_s.tolist() == [0, -1]
    assert in_second.last_step is not None
    assert in_second.last_step.tokens == 16
    uncounted = Asked(policy.decision)
    play(AsyncSimulator(OLD, **episode(requests)), uncounted)
    assert [view.num_waiting for view in uncounted.views[:3]] == [2, 2, 1]
    assert uncounted.views[2].running.computed_tokens.tolist() == [10, 6]


def test_lists_are_of_requests_not_of_places() -> None:
    """The first of three ends in the step during which the next one is decided."""

    def skip_the_second(engine: EngineView) -> BatchDecision:
        known = engine.num_running + engine.num_waiting
        caps = np.array([-1, 0, -1]) if known == 3 and engine.num_running else None
        return BatchDecision(512, token_caps=caps)

    requests = [(0.0, 10, 3), (0.0, 10, 9), (0.0, 10, 9)]
    for information, skipped in ((Information("before"), 2), (VLLM, 3)):
        records = play(AsyncSimulator(information, **episode(requests)), Asked(skip_the_second))
        # The last of the skips, for step [3, 4), has the first one in its lists.
        assert records.finish_ns.tolist() == [3 * MS, (9 + skipped) * MS, 9 * MS]


def test_orders_move_who_was_shown_and_leave_the_others_behind() -> None:
    def turn_once(engine: EngineView) -> BatchDecision:
        order = np.arange(engine.num_waiting)[::-1] if engine.now_s == 0.001 else None
        return BatchDecision(512, max_running=1, waiting_order=order)

    requests = [(0.0, 10, 4), (0.25, 10, 2), (0.25, 11, 2), (0.25, 12, 2), (1.5, 13, 2)]
    records = play(AsyncSimulator(Information("before"), **episode(requests)), Asked(turn_once))
    # The queue of 1 ms is turned at 2 ms, when the last one has come.
    assert np.argsort(records.scheduled_ns).tolist() == [0, 3, 2, 1, 4]


def test_reports_come_one_step_late_and_none_is_lost() -> None:
    requests = [(0.0, 10, 4), (30.0, 10, 2)]
    for information in (EXACT, Information(late_reports=True), VLLM):
        policy = Asked()
        play(AsyncSimulator(information, **episode(requests)), policy)
        if information == EXACT:
            assert policy.told == [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 30]]
            continue
        # At 30 ms the empty step after the first request is decided, then a step with all known.
        assert policy.told == [
            [], [], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]
        ]  # fmt: skip
        assert all((view.state[10:] == 0).all() for view in policy.views[:2]), (
            "the state vector says nothing of a step that is not told"
        )


def test_an_empty_step_takes_no_time() -> None:
    requests = [(0.0, 40, 4), (0.5, 10, 6), (9.0, 10, 2)]
    expected = play(AsyncSimulator(VLLM, **episode(requests)), Asked())
    policy = Asked()

    def every_other(engine: EngineView) -> BatchDecision:
        skips = np.zeros(engine.num_running + engine.num_waiting, np.int64)
        return BatchDecision(512, token_caps=None if len(policy.views) % 2 else skips)

    policy.decision = every_other
    sim = AsyncSimulator(VLLM, **episode(requests))
    records = play(sim, policy)
    assert sim.empty_steps == len(policy.views) // 2
    assert records.finish_ns[0] == expected.finish_ns[0]
    # Asked a second time it knows who has arrived, so that nobody joins late.
    assert (records.scheduled_ns <= expected.scheduled_ns).all()
    assert sum(step.tokens == 0 for step in policy.steps) == 0


def test_an_order_of_an_empty_step_lasts() -> None:
    def turn_once(engine: EngineView) -> BatchDecision:
        order = np.arange(engine.num_waiting)[::-1] if engine.now_s == 0.001 else None
        return BatchDecision(512, max_running=1, waiting_order=order)

    requests = [(0.0, 10, 2), (0.25, 10, 2), (0.25, 11, 2)]
    sim = AsyncSimulator(VLLM, **episode(requests))
    records = play(sim, Asked(turn_once))
    # The first holds the only seat while step [2, 3) is planned, by the view of 1 ms.
    assert records.scheduled_ns.tolist() == [0, 4 * MS, 2 * MS]
    assert sim.empty_steps == 2


def test_who_ends_holds_a_seat_for_one_step_more() -> None:
    requests = [(0.0, 10, 2), (0.0, 10, 9), (0.0, 10, 2)]
    assert scheduled_ms(EXACT, requests, max_num_seqs=2) == [0, 0, 2]
    assert scheduled_ms(DECISION, requests, max_num_seqs=2) == [0, 0, 2]
    assert scheduled_ms(VLLM, requests, max_num_seqs=2) == [0, 0, 3]
    # Alone in the engine, its step is followed by an empty one.
    assert scheduled_ms(VLLM, requests[::2], max_num_seqs=1) == [0, 2]
    with pytest.raises(ValueError, match="held_seats with view='before'; use view='planned'"):
        Information("before", held_seats=True)


def test_steps_that_want_the_blocks_of_the_ended_are_counted() -> None:
    requests = [(0.0, 64, 2), (0.0, 16, 20), (0.5, 80, 2)]
    sims = [AsyncSimulator(VLLM, **episode(requests, kv_blocks=blocks)) for blocks in (9, 100)]
    for sim in sims:
        play(sim, Asked())
    assert [sim.tight_steps for sim in sims] == [1, 0]


@pytest.mark.parametrize("policy", ["vllm-v1", "lens-guarded", "lens-plus"])
def test_exact_information_changes_no_bit(policy: str) -> None:
    plain = evaluate("smoke", policy, load=1.2, seed=2000)
    wrapped = evaluate("smoke", policy, load=1.2, seed=2000, simulator=partial(AsyncSimulator))
    assert plain.log_hash == wrapped.log_hash
    assert plain.summary == wrapped.summary


def test_a_static_policy_does_not_care_when_it_decides() -> None:
    """Python decides here, so this is the carried decision against the compiled rule."""
    plain = evaluate("smoke", "vllm-v1", load=1.2, seed=2000)
    for information in (DECISION, Information("before"), Information(late_reports=True)):
        simulator = partial(AsyncSimulator, information)
        other = evaluate("smoke", "vllm-v1", load=1.2, seed=2000, simulator=simulator)
        assert other.log_hash == plain.log_hash, information


@pytest.mark.parametrize("information", [LATE, DECISION, OLD, VLLM])
def test_what_is_shown_of_who_is_there_is_true(
    information: Information, rng: np.random.Generator
) -> None:
    """Random decisions on random traffic: nothing stalls, nobody is lost or shown wrongly."""
    arrivals = np.sort(rng.integers(0, 60, 80) / 2.0)
    lengths = rng.integers(1, [100, 20], (80, 2))
    requests = [(at, p, o) for at, (p, o) in zip(arrivals.tolist(), lengths.tolist(), strict=True)]

    def chaos(engine: EngineView) -> BatchDecision:
        running, waiting = engine.num_running, engine.num_waiting
        caps = rng.integers(-1, 3, running + waiting)
        caps[:1] = -1
        return BatchDecision(
            token_budget=int(rng.integers(1, 513)),
            max_running=int(rng.integers(1, 9)),
            prefill_chunk=int(rng.choice([0, 7])),
            running_order=rng.permutation(running),
            waiting_order=rng.permutation(waiting) if rng.random() < 0.5 else None,
            token_caps=caps if rng.random() < 0.5 else None,
        )

    sim = AsyncSimulator(information, **episode(requests))
    policy = Asked(chaos)
    records = play(sim, policy)
    assert (records.emitted_tokens == records.output_tokens).all()
    assert sum(step.tokens == 0 for step in policy.steps) == 0
    if information.view == "planned":
        assert all((view.running.remaining_prefill_tokens >= 1).all() for view in policy.views), (
            "with its output counted, a request always has something to compute"
        )


def test_a_snapshot_holds_what_is_known() -> None:
    sim = AsyncSimulator(VLLM, **episode([(0.0, 10, 8), (2.5, 10, 4)]))
    for _ in range(4):
        sim.advance()
        sim.batch(BatchDecision(512))
    sim.advance()
    kept, shown = sim.snapshot(), sim.engine_view(0).state.tolist()
    ends = []
    for _ in range(2):
        point = BATCH
        while point != DONE:
            sim.batch(BatchDecision(512))
            point = sim.advance()
        ends.append((sim.log_hash(), sim.empty_steps))
        sim.restore(kept)
        assert sim.engine_view(0).state.tolist() == shown
    assert ends[0] == ends[1]


def test_a_decision_must_fit_what_was_shown() -> None:
    sim = AsyncSimulator(VLLM, **episode([(0.0, 10, 8), (0.5, 10, 4)]))
    sim.advance()
    sim.batch(BatchDecision(512))
    sim.advance()
    with pytest.raises(ValueError, match=r"token_caps must hold 1 \+ 0 values"):
        sim.batch(BatchDecision(512, token_caps=np.array([-1, -1])))


# --- the script ---


def test_reports_do_not_matter_to_a_pretrained_model() -> None:
    late = partial(AsyncSimulator, experiment.KINDS["reports"])
    options: dict[str, Any] = {"load": 1.0, "seed": 2000, "horizon_s": 70.0}
    hashes = {
        policy: [
            evaluate("chat-h100", policy, **options, simulator=simulator).log_hash
            for simulator in (None, late)
        ]
        for policy in ("lens-ref", "lens-plus")
    }
    assert hashes["lens-ref"][0] == hashes["lens-ref"][1]
    assert hashes["lens-plus"][0] != hashes["lens-plus"][1]


def test_every_cell_has_its_exact_twin() -> None:
    for quick in (False, True):
        cells = list(experiment.cells(quick))
        twins = {(c.scenario, c.load, c.router_policy, c.engine_policy, c.seed) for c in cells
                 if c.information == "exact"}  # fmt: skip
        assert len(set(cells)) == len(cells)
        assert {(c.scenario, c.load, c.router_policy, c.engine_policy, c.seed) for c in cells} == (
            twins
        )
    assert {cell.information for cell in cells} == set(experiment.KINDS)


def test_probe_says_how_old_a_view_is() -> None:
    cell = experiment.Cell("smoke", 1.0, "round-robin", VllmV1.name, "vllm", 2000)
    rows = {row["quantity"]: row for row in experiment.probe(cell)}
    result, sim = experiment.run(cell)
    mean_step_ms = 1000 * result.window_ns[1] / 1e9 / sim.steps(0)
    assert 0 < rows["age_ms"]["mean_error"] < 2 * mean_step_ms
    assert 0 < rows["waiting"]["share_wrong"] < 0.5


def test_differences_are_paired_by_traffic() -> None:
    columns = {name: 1.0 for name in (*experiment.SHARES, *experiment.TIMES)}
    rows = [
        {**columns, "scenario": "s", "load": 1.0, "router_policy": "r", "engine_policy": "p",
         "seed": seed, "information": kind, "slo_attainment": share, "ttft_p50_s": ttft_s,
         "steps": 100, "tight_steps": 1}
        for seed, kind, share, ttft_s in (
            (1, "exact", 0.9, 0.1), (1, "vllm", 0.8, 0.2), (2, "vllm", 0.4, 0.5),
            (2, "exact", 0.6, 0.4),
        )
    ]  # fmt: skip
    differences = experiment.paired(pd.DataFrame(rows))
    assert differences.slo_points.tolist() == pytest.approx([-10, -20])
    (row,) = experiment.table(differences, experiment.CELL).to_dict("records")
    found = [row[name] for name in ("slo_points", "slo_points_low", "slo_points_high")]
    assert found == pytest.approx([-15, -20, -10])
    assert row["ttft_p50_ms"] == pytest.approx(100)
    assert row["ttft_p50_%"] == pytest.approx((100 + 25) / 2)
    assert row["e2e_points"] == 0
    (level,) = experiment.levels(pd.DataFrame(rows), experiment.CELL).to_dict("records")
    assert level["slo_attainment_exact"] == pytest.approx(0.75)
    assert level["tight_%"] == pytest.approx(1.0)
