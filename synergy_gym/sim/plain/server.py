"""An engine in a cluster: its clock, its current iteration, its telemetry and its views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from synergy_gym.latency.clock import FLOOR_NS, FS_PER_NS, SEED, SLOW, UNIT, step_ns
from synergy_gym.sim.adverts import NOT_PREDICTED, predicted_ns, published
from synergy_gym.sim.compiled.decision_log import chain_iteration, chain_lists
from synergy_gym.sim.decisions import check_decision, check_rule
from synergy_gym.sim.plain.engine import Features, Job, Outputs, ReferenceEngine, Step
from synergy_gym.sim.plain.rules import rule_decision
from synergy_gym.sim.plain.telemetry import (
    PUSH_COLUMNS,
    SCRAPE_COLUMNS,
    Ended,
    Gauges,
    PushChannel,
    ScrapeChannel,
    guessed_ns,
)
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    DecisionRule,
    EngineSpec,
    EngineStateField,
    IntArray,
    RequestArrays,
    RouterRow,
    StepReport,
    TelemetrySpec,
)

LEAST_EMPTY_STEP_NS = 1000


class Server:
    """One engine of the simulated cluster.

    Args:
        index: its place in the cluster.
        spec: what runs there.
        clock: its step-latency vector (`StepTerms.clock`); copied.
        telemetry: how its state reaches routers.
        rule: decides in place of a policy, or `None`.
        slos: the scenario's classes, for deadline order.
        told: what it tells routers about itself when it starts (`adverts.started_with`).
        engine: what plans and commits the iterations; a `ReferenceEngine` by default.
    """

    def __init__(
        self,
        index: int,
        spec: EngineSpec,
        clock: IntArray,
        telemetry: TelemetrySpec,
        rule: DecisionRule | None,
        slos: tuple[SLO, ...],
        told: list[int],
        engine: ReferenceEngine | None = None,
    ) -> None:
        if rule is not None:
            check_rule(spec, rule)
        self.index = index
        self.engine = ReferenceEngine(spec) if engine is None else engine
        self.alive = True
        self.step: Step | None = None
        """The iteration in flight; its effects on requests become visible at its end."""
        self.last_report: StepReport | None = None
        self.last_step_ns = 0
        self.in_flight = 0
        self.in_flight_tokens = 0
        self.hash = 0
        self.push = PushChannel(telemetry, int(clock[SEED]), spec.kv_blocks, told)
        self.scrape = ScrapeChannel(telemetry, spec.kv_blocks)
        self.rule = rule
        self._predicted_ns = NOT_PREDICTED
        self._clock = [int(value) for value in clock]
        self._slos = slos

    @property
    def is_ready(self) -> bool:
        """Whether the next iteration can be planned."""
        return self.alive and self.step is None and self.engine.has_work

    def receive(self, job: Job, now_ns: int) -> None:
        """A routed request enters the waiting queue."""
        if not self.engine.has_work:
            self.push.work_came(now_ns)
        self.engine.add(job)

    def plan_by_rule(self, now_ns: int, next_arrival_ns: int | None) -> Step:
        """Plan the next iteration as the rule says."""
        assert self.rule is not None
        decision = rule_decision(self.engine, self.rule, self._slos)
        # A rule's queue order is part of the rule, not logged each time.
        return self._start(decision, now_ns, next_arrival_ns)

    def plan(self, decision: BatchDecision, now_ns: int, next_arrival_ns: int | None) -> Step:
        """Plan the next iteration as a policy decided; `ValueError` when that is illegal."""
        check_decision(
            self.engine.spec, decision, len(self.engine.running), len(self.engine.waiting)
        )
        lists = (decision.running_order, decision.waiting_order, decision.token_caps)
        self.hash = chain_lists(self.hash, lists)
        self.push.told = published(decision.advert, self.push.told)
        self._predicted_ns = predicted_ns(decision.advert)
        return self._start(decision, now_ns, next_arrival_ns)

    def commit(self, now_ns: int) -> Outputs:
        """End the iteration in flight."""
        step, self.step = self.step, None
        assert step is not None
        self.scrape.committing(now_ns)
        outputs = self.engine.commit(step)
        self.last_report = self._report(step, len(outputs.finished))
        self.last_step_ns = step.duration_ns
        for job in outputs.finished:
            self.scrape.finished(*_latencies(job))
        gauges = self._gauges()
        self.push.committed(now_ns, gauges, self._ended(step))
        self.scrape.committed(gauges)
        return outputs

    def go_down(self, now_ns: int) -> list[Job]:
        """Stop at once; returns the requests that were here."""
        self.alive = False
        self.step = None
        self.push.went_down(now_ns)
        self.scrape.went_down(now_ns)
        return self.engine.clear()

    def come_up(self, now_ns: int) -> None:
        """Start again, empty and with a cold cache."""
        self.alive = True
        self.push.came_up(now_ns)
        self.scrape.came_up(now_ns, self.engine.pool.total)

    def lose_blocks(self, blocks: int, now_ns: int) -> None:
        """Shrink the KV pool; blocks in use are lost when they become free."""
        self.push.sync(now_ns)
        self.engine.pool.lose(blocks)
        self.push.kv_blocks = self.engine.pool.total

    def slow_down(self, factor: float) -> None:
        """Stretch the iterations planned from now on."""
        self._clock[SLOW] = round(factor * UNIT)

    def sync(self, now_ns: int) -> None:
        """Bring what routers see up to `now_ns`."""
        self.push.sync(now_ns)
        self.scrape.sync(now_ns)

    def router_row(self) -> list[int]:
        """The engine's row of the router's table (`RouterRow`), as of the last `sync`."""
        row = [0] * len(RouterRow)
        row[RouterRow.ALIVE] = int(self.alive)
        row[RouterRow.IN_FLIGHT] = self.in_flight
        row[RouterRow.IN_FLIGHT_TOKENS] = self.in_flight_tokens
        row[RouterRow.ROUTED_SINCE_PUSH] = self.push.routed_tokens
        for column, value in zip(PUSH_COLUMNS, self.push.visible, strict=True):
            row[column] = value
        row[SCRAPE_COLUMNS] = self.scrape.visible
        return row

    def state(self, now_ns: int) -> IntArray:
        """The engine state vector (`EngineStateField`)."""
        queues = (self.engine.running, self.engine.waiting)
        running, waiting = (request_arrays(jobs, now_ns) for jobs in queues)
        pool = self.engine.pool
        return engine_state(running, waiting, now_ns, self.last_report, pool.free, pool.total)

    def check(self) -> None:
        """Raise `AssertionError` when an invariant of this engine is broken."""
        self.engine.check()
        assert self.alive or not self.engine.has_work, "a down engine holds requests"
        held = len(self.engine.running) + len(self.engine.waiting)
        assert held == self.in_flight, "requests in flight are not conserved"

    def _start(self, decision: BatchDecision, now_ns: int, next_arrival_ns: int | None) -> Step:
        step = self.engine.plan(decision, now_ns)
        if not self.engine.has_work:
            self.push.went_idle(now_ns)
            return step
        step.end_ns = now_ns + self._duration(step, next_arrival_ns)
        self.step = step
        self._log(step, decision)
        return step

    def _duration(self, step: Step, next_arrival_ns: int | None) -> int:
        clock = self._clock
        if not step.scheduled:
            least = max(clock[FLOOR_NS], clock[0] // FS_PER_NS, LEAST_EMPTY_STEP_NS)
            return max(least, 0 if next_arrival_ns is None else next_arrival_ns - step.start_ns)
        if step.measured_ns < 0:
            return step_ns(clock, step.number, *step.features.arguments())
        return max(step.measured_ns * clock[SLOW] // UNIT, 1)

    def _log(self, step: Step, decision: BatchDecision) -> None:
        limit = decision.max_running
        limits = (
            decision.token_budget,
            self.engine.spec.max_num_seqs if limit is None else limit,
            decision.prefill_chunk,
        )
        served = step.features
        self.hash = chain_iteration(
            self.hash, step.start_ns, limits, served.sequences, served.tokens, step.duration_ns
        )

    def _ended(self, step: Step) -> Ended:
        served, predicted = step.features, self._predicted_ns
        if predicted == NOT_PREDICTED:
            predicted = guessed_ns(served.tokens, served.sequences)
        return Ended(step.duration_ns, served.tokens, predicted)

    def _gauges(self) -> Gauges:
        running, waiting = self.engine.running, self.engine.waiting
        pool = self.engine.pool
        pending = sum(job.missing for job in [*running, *waiting])
        return Gauges(len(running), len(waiting), pool.used, pool.total, pending)

    def _report(self, step: Step, finished: int) -> StepReport:
        return step_report(
            step.features,
            engine=self.index,
            start_ns=step.start_ns,
            step_ns=step.duration_ns,
            preempted=len(step.preempted),
            admitted=len(step.admitted),
            finished=finished,
            token_budget=step.budget,
        )


def step_report(
    features: Features,
    *,
    engine: int,
    start_ns: int,
    step_ns: int,
    preempted: int,
    admitted: int,
    finished: int,
    token_budget: int,
) -> StepReport:
    """A finished iteration as policies see it."""
    return StepReport(
        engine=engine,
        start_s=start_ns / NS_PER_S,
        step_s=step_ns / NS_PER_S,
        sequences=features.sequences,
        tokens=features.tokens,
        decodes=features.decodes,
        prefill_tokens=features.prefill_tokens,
        context_tokens=features.decode_context,
        prefill_context_tokens=features.prefill_context,
        prefill_pairs=features.prefill_pairs,
        preempted=preempted,
        admitted=admitted,
        finished=finished,
        token_budget=token_budget,
    )


def request_arrays(jobs: Sequence[Job], now_ns: int) -> RequestArrays:
    """What a policy sees of the requests in one queue."""

    def column(values: list[int]) -> IntArray:
        return np.array(values, np.int64)

    ages = [now_ns - job.first_token_ns if job.first_token_ns >= 0 else -NS_PER_S for job in jobs]
    return RequestArrays(
        prompt_tokens=column([job.prompt for job in jobs]),
        computed_tokens=column([job.computed for job in jobs]),
        generated_tokens=column([job.generated for job in jobs]),
        cached_tokens=column([job.cached for job in jobs]),
        waited_s=column([now_ns - job.arrival_ns for job in jobs]) / NS_PER_S,
        first_token_age_s=column(ages) / NS_PER_S,
        slo_class=column([job.slo_class for job in jobs]),
        priority=column([job.priority for job in jobs]),
    )


def engine_state(
    running: RequestArrays,
    waiting: RequestArrays,
    now_ns: int,
    last_step: StepReport | None,
    free_blocks: int,
    total_blocks: int,
) -> IntArray:
    """The state vector (`EngineStateField`) of an engine with these queues."""
    decode = running.is_decode
    last = last_step
    values: Mapping[EngineStateField, int] = {
        EngineStateField.NOW_NS: now_ns,
        EngineStateField.RUNNING: len(running),
        EngineStateField.WAITING: len(waiting),
        EngineStateField.DECODES: int(decode.sum()),
        EngineStateField.PREFILL_TOKENS: int(running.remaining_prefill_tokens[~decode].sum()),
        EngineStateField.WAITING_TOKENS: int(
            (waiting.prompt_tokens + waiting.generated_tokens).sum()
        ),
        EngineStateField.DECODE_CONTEXT_TOKENS: int(running.computed_tokens[decode].sum()),
        EngineStateField.KV_FREE_BLOCKS: free_blocks,
        EngineStateField.KV_TOTAL_BLOCKS: total_blocks,
        EngineStateField.HEAD_WAIT_NS: (
            round(float(waiting.waited_s[0]) * NS_PER_S) if len(waiting) else 0
        ),
        EngineStateField.LAST_STEP_NS: round(last.step_s * NS_PER_S) if last else 0,
        EngineStateField.LAST_SEQUENCES: last.sequences if last else 0,
        EngineStateField.LAST_TOKENS: last.tokens if last else 0,
        EngineStateField.LAST_DECODES: last.decodes if last else 0,
        EngineStateField.LAST_PREEMPTED: last.preempted if last else 0,
        EngineStateField.LAST_BUDGET: last.token_budget if last else 0,
    }
    return np.array([values[name] for name in EngineStateField], np.int64)


def _latencies(job: Job) -> tuple[int, int, int]:
    """TTFT, TPOT and E2E of a finished attempt, as its engine measures them."""
    gaps = max(job.generated - 1, 1)
    tpot = (job.last_token_ns - job.first_token_ns) // gaps
    return job.first_token_ns - job.arrival_ns, tpot, job.last_token_ns - job.arrival_ns
