"""The reference simulator on cases small enough to compute by hand (steps last 1 ms)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import (
    INFORMATION_CLASSES,
    SLO,
    BatchDecision,
    ClientSpec,
    ClusterView,
    DecisionRule,
    Event,
    Outcome,
    TelemetrySpec,
)
from synergy_gym.workload.base import make_workload
from synergy_gym.workload.blocks import Content
from tests.strategies import spec

MS = 1_000_000
RULE = DecisionRule(token_budget=512)


def simulator(
    requests: list[tuple[float, int, int]],
    *,
    columns: dict[str, Any] | None = None,
    engines: int = 1,
    rule: DecisionRule | None = RULE,
    terms: StepTerms | None = None,
    auto_route: bool = True,
    slos: list[SLO] | None = None,
    engine: dict[str, Any] | None = None,
    **options: Any,
) -> ReferenceSimulator:
    """A simulator for requests of (arrival in ms, prompt, output)."""
    arrival, prompt, output = np.array(requests, float).reshape(-1, 3).T
    return ReferenceSimulator(
        engines=[spec(**(engine or {}))] * engines,
        clocks=[(terms or StepTerms(base_ms=1.0)).clock()] * engines,
        workload=make_workload(
            np.round(arrival * MS).astype(np.int64),
            prompt.astype(np.int64),
            output.astype(np.int64),
            **(columns or {}),
        ),
        slos=slos or [SLO("default")],
        rules=[rule] * engines,
        auto_route=auto_route and engines == 1,
        **options,
    )


def finish(sim: ReferenceSimulator) -> Any:
    assert sim.advance() == DONE
    sim.check()
    return sim.records()


def cluster_view(sim: ReferenceSimulator) -> ClusterView:
    return sim.cluster_view(np.random.default_rng(0), frozenset(INFORMATION_CLASSES))


# --- one engine, iteration by iteration ---


def test_prefill_then_one_token_per_step() -> None:
    records = finish(simulator([(2.5, 10, 3)]))
    assert records.scheduled_ns.tolist() == [2_500_000]
    assert records.first_token_ns.tolist() == [3_500_000]
    assert records.finish_ns.tolist() == [5_500_000]
    assert records.emitted_tokens.tolist() == [3]


def test_features_time_the_step() -> None:
    terms = StepTerms(base_ms=1, per_sequence_ms=0.1, per_token_ms=0.01, per_decode_context_ms=0.5)
    records = finish(simulator([(0, 10, 2)], terms=terms))
    first = 1_000_000 + 100_000 + 10 * 10_000
    assert records.first_token_ns.tolist() == [first]
    assert records.finish_ns.tolist() == [first + 1_000_000 + 100_000 + 10_000 + 10 * 500_000]


# --- prefix cache ---


def shared(prompts: list[int], **changes: Any) -> Any:
    """Requests one after the other whose content is one and the same root."""
    n = len(prompts)
    content = Content(np.zeros(n, np.int64), np.array([-1]), np.array([0]))
    requests = [(10.0 * i, prompt, 1) for i, prompt in enumerate(prompts)]
    options = {"prefix_caching": True} | changes
    return finish(simulator(requests, columns={"content": content}, engine=options))


def test_whole_blocks_are_reused_and_one_token_is_recomputed() -> None:
    assert shared([40, 40, 33, 32, 16]).cached_tokens.tolist() == [0, 32, 32, 16, 0]
    assert shared([40, 40], block_size=32).cached_tokens.tolist() == [0, 32]
    assert shared([40, 40], prefix_caching=False).cached_tokens.tolist() == [0, 0]


# --- limits ---


def test_too_long_prompts_are_rejected_and_outputs_are_cut() -> None:
    records = finish(simulator([(0, 64, 1), (1, 60, 9), (2, 5, 1)], engine={"kv_blocks": 4}))
    outcomes = [Outcome.REJECTED, Outcome.FINISHED, Outcome.FINISHED]
    assert records.outcome.tolist() == outcomes
    assert records.emitted_tokens.tolist() == [0, 4, 1]


def test_lost_blocks_reject_what_no_longer_fits() -> None:
    events = [Event(1.5e-3, "lose_blocks", 0, blocks=3)]
    sim = simulator([(0, 10, 30), (1, 60, 1)], engine={"kv_blocks": 4}, events=events)
    records = finish(sim)
    assert records.outcome.tolist() == [Outcome.REJECTED, Outcome.REJECTED]
    assert records.emitted_tokens.tolist() == [7, 0], "16 tokens fit into the last block"


def test_an_empty_step_lasts_until_the_next_arrival() -> None:
    sim = simulator([(0, 5, 2), (7.5, 5, 1)], rule=None)
    assert sim.advance() == BATCH
    sim.batch(BatchDecision(8, token_caps=np.array([0])))
    assert sim.advance() == BATCH
    assert sim.now_ns == 7_500_000
    report = sim.last_step(0)
    assert report is not None
    assert (report.tokens, report.step_s) == (0, 7.5e-3)


def test_illegal_decisions_name_the_cure() -> None:
    sim = simulator([(0, 5, 2)], rule=None)
    sim.advance()
    for decision, message in [
        (BatchDecision(0), "token_budget is 0"),
        (BatchDecision(513), "takes 1..512"),
        (BatchDecision(1, 9), "max_running is 9"),
        (BatchDecision(1, prefill_chunk=-1), "prefill_chunk is -1"),
        (BatchDecision(1, waiting_order=np.array([1])), "permutation"),
        (BatchDecision(1, token_caps=np.array([1, 1])), "token_caps must hold 0 \\+ 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            sim.batch(decision)
    with pytest.raises(RuntimeError, match="unanswered"):
        sim.advance()
    with pytest.raises(ValueError, match="ROUTE"):
        sim.route(0)
    with pytest.raises(ValueError, match="by priority"):
        simulator(
            [], engine={"scheduling": "priority"}, rule=DecisionRule(1, order="earliest-deadline")
        )


# --- rules ---


def test_rule_orders_the_queue() -> None:
    order = DecisionRule(1, max_running=1, order="shortest-prompt")
    records = finish(simulator([(0, 1, 1), (0.5, 3, 1), (0.6, 2, 1)], rule=order))
    assert np.argsort(records.scheduled_ns).tolist() == [0, 2, 1]


def test_timeout_cancels_at_once_or_at_the_end_of_the_step() -> None:
    sim = simulator(
        [(0, 5, 99), (0.25, 5, 99)],
        rule=DecisionRule(512, max_running=1),
        client=ClientSpec(timeout_s=2.5e-3),
    )
    records = finish(sim)
    assert records.outcome.tolist() == [Outcome.ABORTED] * 2
    assert records.emitted_tokens.tolist() == [2, 0], "the step that ends at 3 ms emits nothing"
    ends = [(view.now_s, view.output_tokens) for view in sim.completions()]
    assert ends == [(2.75e-3, 0), (3e-3, 2)]


def test_a_request_that_finishes_at_its_timeout_is_finished() -> None:
    sim = simulator([(0, 5, 2)], client=ClientSpec(timeout_s=2e-3))
    assert finish(sim).outcome.tolist() == [Outcome.FINISHED]


def test_retries_start_over_and_keep_the_first_arrival() -> None:
    client = ClientSpec(timeout_s=4.5e-3, max_retries=1, backoff_s=10e-3)
    slow = Event(0, "slowdown", 0, factor=2.0)
    sim = simulator([(1, 5, 4)], client=client, events=[slow, Event(9e-3, "slowdown", 0)])
    records = finish(sim)
    # Due at 5.5, cancelled at the end of the step from 5 to 7, back 10 ms later.
    assert records.scheduled_ns.tolist() == [17 * MS]
    assert records.finish_ns.tolist() == [21 * MS]
    assert records.arrival_ns.tolist() == [MS]
    assert records.attempts.tolist() == [2]
    given_up = finish(simulator([(1, 5, 4)], client=client, events=[slow]))
    assert given_up.outcome.tolist() == [Outcome.ABORTED]
    assert given_up.attempts.tolist() == [2]


def test_down_fails_requests_and_up_starts_cold() -> None:
    events = [Event(1.5e-3, "down", 0), Event(5e-3, "up", 0)]
    content = Content(np.zeros(3, np.int64), np.array([-1]), np.array([0]))
    sim = simulator(
        [(0, 40, 9), (2, 40, 9), (6, 40, 2)],
        events=events,
        columns={"content": content},
        engine={"prefix_caching": True},
    )
    records = finish(sim)
    assert records.outcome.tolist() == [Outcome.FAILED, Outcome.FAILED, Outcome.FINISHED]
    assert records.emitted_tokens.tolist() == [1, 0, 2]
    assert records.cached_tokens.tolist() == [0, 0, 0]
    assert records.engine.tolist() == [0, -1, 0]


def test_slowdown_stretches_later_steps() -> None:
    sim = simulator([(0, 5, 3)], events=[Event(1.5e-3, "slowdown", 0, factor=3.0)])
    assert finish(sim).finish_ns.tolist() == [(1 + 1 + 3) * MS]


def test_closed_loop_waits_thinks_and_ends_at_the_horizon() -> None:
    sim = simulator(
        [(0, 5, 2), (10, 5, 1), (90, 5, 1), (0, 5, 1)],
        columns={"after": np.array([-1, 0, 1, 2])},
        horizon_ns=100 * MS,
    )
    records = finish(sim)
    assert records.arrival_ns.tolist() == [0, 12 * MS, -1, -1]
    assert records.outcome.tolist() == [1, 1, Outcome.UNFINISHED, Outcome.UNFINISHED]


def test_truncation_leaves_requests_unfinished() -> None:
    sim = simulator([(0, 5, 9), (1, 5, 2)], stop_ns=int(3.5 * MS))
    records = finish(sim)
    assert records.outcome.tolist() == [Outcome.UNFINISHED, Outcome.FINISHED]
    assert records.emitted_tokens.tolist() == [3, 2]


# --- scores, telemetry, routing ---


def test_slos_are_met_at_the_bound_and_missed_above() -> None:
    slos = [SLO("ttft", ttft_s=1e-3), SLO("tpot", tpot_s=1e-3), SLO("e2e", e2e_s=2.9e-3)]
    sim = simulator([(0, 5, 3)] * 3, slos=slos, columns={"slo_class": np.arange(3)})
    finish(sim)
    assert sim.met() == 2
    unscored = simulator([(0, 5, 3)], warmup_ns=1)
    finish(unscored)
    assert unscored.met() == 0


def test_gaps_between_tokens_are_pooled() -> None:
    sim = simulator([(0, 5, 3), (1.5, 600, 1)], rule=DecisionRule(512), record_itl=True)
    finish(sim)
    gaps, counts = sim.itl()
    assert gaps.tolist() == [MS]
    assert counts.tolist() == [2]


def test_pushes_have_interval_delay_and_age() -> None:
    telemetry = TelemetrySpec(push_interval_s=2e-3, push_delay_s=0.5e-3, heartbeat="none")
    requests = [(0, 20, 99), (1.4, 1, 1), (1.6, 1, 1), (3.4, 1, 1), (3.6, 1, 1)]
    sim = simulator(requests, telemetry=telemetry, auto_route=False, stop_ns=5 * MS)
    seen = []
    while sim.advance() == ROUTE:
        view = cluster_view(sim)
        age = round(1e3 * view.pushed.age_s[0], 3)
        seen.append((age, view.pushed.running[0], view.routed_tokens_since_push[0]))
        sim.route(0)
    # Snapshots at 1 and 3 ms become visible at 1.5 and 3.5 ms.
    assert seen == [(0, 0, 0), (1.4, 0, 20), (0.6, 1, 0), (2.4, 1, 1), (0.6, 1, 0)]


def test_idle_engines_send_zeros() -> None:
    telemetry = TelemetrySpec(push_interval_s=0.0, heartbeat="idle-only", heartbeat_interval_s=2e-3)
    sim = simulator([(5, 20, 2), (12, 1, 1)], telemetry=telemetry, auto_route=False)
    assert sim.advance() == ROUTE
    assert cluster_view(sim).pushed.age_s[0] == pytest.approx(1e-3)
    sim.route(0)
    assert sim.advance() == ROUTE
    pushed = cluster_view(sim).pushed
    assert pushed.age_s[0] == pytest.approx(1e-3), "idle since 7 ms: beats at 9 and 11 ms"
    assert pushed.step_tokens[0] == 0


def test_scrapes_show_the_last_window() -> None:
    telemetry = TelemetrySpec(scrape_interval_s=4e-3)
    requests = [(0, 5, 3), (2.5, 5, 9), (4, 5, 1), (9, 1, 1)]
    sim = simulator(requests, telemetry=telemetry, auto_route=False)
    rows = []
    while sim.advance() == ROUTE:
        scraped = cluster_view(sim).scraped
        rows.append((scraped.running[0], scraped.finished[0], round(scraped.e2e_mean_s[0] * 1e3)))
        sim.route(0)
    assert rows == [(0, 0, 0), (0, 0, 0), (1, 1, 3), (1, 1, 1)]


def test_routing_counts_and_sessions() -> None:
    sim = simulator([(0, 5, 9), (1, 7, 9)], engines=2, columns={"session": np.array([4, 4])})
    assert sim.advance() == ROUTE
    assert cluster_view(sim).session_engine == -1
    sim.route(1)
    assert sim.advance() == ROUTE
    view = cluster_view(sim)
    assert (view.session_engine, view.session_age_s) == (1, 1e-3)
    assert view.in_flight.tolist() == [0, 1]
    assert view.in_flight_tokens.tolist() == [0, 5]
    with pytest.raises(ValueError, match=r"choose 0\.\.1"):
        sim.route(2)


def test_snapshot_repeats_and_decisions_show_in_the_hash() -> None:
    sim = simulator([(0, 20, 5), (0, 20, 5), (1, 20, 5)], rule=None)
    sim.advance()
    snapshot = sim.snapshot()

    def play(budget: int) -> str:
        sim.restore(snapshot)
        sim.batch(BatchDecision(budget))
        while sim.advance() == BATCH:
            sim.check()
            sim.batch(BatchDecision(budget))
        return sim.log_hash()

    assert play(64) == play(64)
    assert play(64) != play(63)


def test_an_empty_trace_is_done_at_once() -> None:
    sim = simulator([])
    assert sim.advance() == DONE
    assert len(sim.records()) == 0
