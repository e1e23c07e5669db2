"""What is compared, and the simulator's sides: reference engine, reference and compiled simulator.

A side that does not tell something says `None` there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.plain.engine import Features, Job, Step
from synergy_gym.sim.plain.simulator import ReferenceEngine, ReferenceSimulator
from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    ClientSpec,
    EngineView,
    Outcome,
    StepReport,
)
from tests.parity.cases import NEVER, STEP_NS, Case


@dataclass(frozen=True)
class State:
    """An engine between two iterations."""

    running: list[tuple[int, int, int]]
    """(request, computed tokens, generated tokens) in list order."""
    waiting: list[int]
    free_blocks: int
    rejected: list[int]
    """All requests that were rejected so far."""
    evictions: int | None = None
    """Cached blocks that were given away so far."""
    blocks: list[list[int]] | None = None
    """Block table of every running request."""

    @property
    def alive(self) -> set[int]:
        """Everybody in the engine."""
        return {r for r, *_ in self.running} | set(self.waiting)


@dataclass(frozen=True)
class Result:
    """What one iteration did."""

    scheduled: Mapping[int, int | None]
    """Tokens per request."""
    tokens: int | None
    admitted: Mapping[int, int | None]
    """Prefix-cache hit in tokens per request that was admitted."""
    preempted: set[int] | list[int]
    finished: Sequence[int] | set[int]
    features: tuple[int, ...] | None
    """Sequences, tokens, decodes, their context, prefill tokens, pairs and context."""
    free_blocks: int | None = None
    """Free blocks after scheduling, before anything finished."""
    gone: frozenset[int] = frozenset()
    """Requests that left, aborted, before this side could be asked about them."""


class Side(Protocol):
    """One engine that serves a case. `schedule` and `end` make one iteration."""

    def accept(self, aborts: Sequence[int], arrivals: Sequence[int]) -> None:
        """Between two iterations: cancel requests, then take new ones."""
        ...

    def state(self, step: int) -> State:
        """The state that iteration `step` starts from."""
        ...

    def schedule(self, decision: BatchDecision) -> bool:
        """Plan the iteration; whether anything was scheduled."""
        ...

    def end(self, aborts: set[int]) -> Result:
        """Cancel these requests during the iteration, then end it."""
        ...


class EngineSide:
    """`ReferenceEngine` driven directly; tells everything."""

    def __init__(self, case: Case, engine: type[ReferenceEngine] = ReferenceEngine) -> None:
        self.engine = engine(case.spec)
        self._case = case
        self._jobs: dict[int, Job] = {}
        self._rejected: list[int] = []
        self._step: Step | None = None

    def accept(self, aborts: Sequence[int], arrivals: Sequence[int]) -> None:
        for request in aborts:
            self.engine.remove(self._jobs[request])
        for request in arrivals:
            room = self.engine.max_length - self._case.requests[request].prompt
            if room <= 0:
                self._rejected.append(request)
                continue
            self._jobs[request] = job = self._case.job(request, room)
            self.engine.add(job)

    def state(self, step: int) -> State:
        running = self.engine.running
        return State(
            running=[(job.request, job.computed, job.generated) for job in running],
            waiting=[job.request for job in self.engine.waiting],
            free_blocks=self.engine.pool.free,
            rejected=self._rejected.copy(),
            evictions=self.engine.pool.evictions,
            blocks=[job.blocks.copy() for job in running],
        )

    def schedule(self, decision: BatchDecision) -> bool:
        self._step = self.engine.plan(decision, 0)
        return bool(self._step.scheduled)

    def end(self, aborts: set[int]) -> Result:
        step, self._step = self._step, None
        assert step is not None
        scheduled = {job.request: n for job, n in step.scheduled.items()}
        admitted = {job.request: job.computed for job in step.admitted}
        free = self.engine.pool.free
        for request in aborts:
            job = self._jobs[request]
            job.abort_due = job in self.engine.running
            if not job.abort_due:
                self.engine.remove(job)
        outputs = self.engine.commit(step)
        self.engine.check()
        return Result(
            scheduled=scheduled,
            tokens=sum(scheduled.values()),
            admitted=admitted,
            preempted={job.request for job in step.preempted},
            finished=[job.request for job in outputs.finished],
            features=_features(step.features),
            free_blocks=free,
        )


class SimulatorSide:
    """A simulator driven through BATCH points; every iteration lasts one millisecond.

    Requests are told apart by their SLO class. Views do not show the cache hit of a
    re-admission, the order of finishing, nor a request that was cancelled in or right after
    the iteration, so these stay out of the comparison (their effects do not).
    """

    def __init__(self, case: Case, simulator: Any = ReferenceSimulator) -> None:
        timeout_s = case.timeout_steps / 1000 if case.timeout_steps < NEVER else 0.0
        self._simulator = simulator(
            engines=[case.spec],
            clocks=[StepTerms(base_ms=1.0).clock()],
            workload=case.workload,
            slos=[SLO(str(r)) for r in range(len(case.requests))],
            client=ClientSpec(timeout_s=timeout_s),
            auto_route=True,
        )
        self._decision: BatchDecision | None = None
        self._advance()

    def accept(self, aborts: Sequence[int], arrivals: Sequence[int]) -> None:
        """Arrivals and timeouts are the simulator's own business."""

    def state(self, step: int) -> State:
        simulator = self._simulator
        assert self._point == BATCH, f"no BATCH point at step {step}"
        assert simulator.now_ns == step * STEP_NS, f"step {step} begins at {simulator.now_ns} ns"
        return self._state

    def schedule(self, decision: BatchDecision) -> bool:
        """Keep the decision: a simulator plans and ends an iteration at once."""
        assert self._point != DONE
        self._decision = decision
        return True

    def end(self, aborts: set[int]) -> Result:
        simulator = self._simulator
        before, preemptions = self._state, self._records.preemptions
        start_s = simulator.now_ns / NS_PER_S
        simulator.batch(self._decision)
        self._advance()
        after, new = self._state, self._records
        present = before.alive
        finished = {r for r in present if new.finish_ns[r] >= 0}
        computed = {r: done for r, done, _ in after.running}
        for r in finished:
            computed[r] = int(new.prompt_tokens[r] + new.output_tokens[r]) - 1
        scheduled: dict[int, int | None] = {
            r: computed[r] - done for r, done, _ in before.running if computed.get(r, 0) > done
        }
        admitted: dict[int, int | None] = {r: None for r in before.waiting if r in computed}
        scheduled |= admitted
        for r in admitted:
            if preemptions[r] == 0:
                admitted[r] = int(new.cached_tokens[r])
                scheduled[r] = computed[r] - int(new.cached_tokens[r])
        # An episode whose last requests are cancelled ends before the iteration does.
        report = simulator.last_step(0)
        told = report is not None and report.start_s == start_s
        assert told or self._point == DONE
        return Result(
            scheduled=scheduled,
            tokens=report.tokens if told else None,
            admitted=admitted,
            preempted=set(np.flatnonzero(new.preemptions > preemptions).tolist()),
            finished=finished,
            features=report_features(report) if told else None,
            gone=frozenset(present - finished - after.alive),
        )

    def _advance(self) -> None:
        """Go to the next decision point and look around."""
        self._point = self._simulator.advance()
        self._records = self._simulator.records()
        rejected = np.flatnonzero(self._records.outcome == Outcome.REJECTED)
        self._state = _state(self._simulator.engine_view(0), rejected.tolist())


def compiled_side(case: Case) -> SimulatorSide:
    """The compiled simulator."""
    from synergy_gym.sim.simulator import Simulator

    return SimulatorSide(case, Simulator)


SIDES: dict[str, Any] = {
    "reference engine": EngineSide,
    "reference simulator": SimulatorSide,
    "compiled simulator": compiled_side,
}
"""What is held against vLLM: every implementation of an iteration."""


def report_features(report: StepReport) -> tuple[int, ...]:
    """The features of a step from its report."""
    return (
        report.sequences,
        report.tokens,
        report.decodes,
        report.context_tokens,
        report.prefill_tokens,
        report.prefill_pairs,
        report.prefill_context_tokens,
    )


def difference(theirs: Any, mine: Any) -> tuple[str, Any, Any] | None:
    """The first field in which two states, or two results, differ: (name, theirs, mine)."""
    gone: frozenset[int] = getattr(mine, "gone", frozenset())
    for item in fields(theirs):
        expected, given = getattr(theirs, item.name), getattr(mine, item.name)
        if item.name != "gone" and not _same(given, expected, gone):
            return item.name, expected, given
    return None


def _same(mine: Any, theirs: Any, gone: frozenset[int]) -> bool:
    """Equal, where both say anything (`None`, or a set for a list, says less)."""
    if mine is None or theirs is None:
        return True
    if isinstance(mine, set):
        return mine == set(theirs)
    if not isinstance(mine, dict):
        return bool(mine == theirs)
    expected = {r: n for r, n in theirs.items() if r not in gone}
    return mine.keys() == expected.keys() and all(n in (None, expected[r]) for r, n in mine.items())


def _features(features: Features) -> tuple[int, ...]:
    return (
        features.sequences,
        features.tokens,
        features.decodes,
        features.decode_context,
        features.prefill_tokens,
        features.prefill_pairs,
        features.prefill_context,
    )


def _state(view: EngineView, rejected: list[int]) -> State:
    running, waiting = view.running, view.waiting
    columns = (running.slo_class, running.computed_tokens, running.generated_tokens)
    return State(
        running=list(zip(*(column.tolist() for column in columns), strict=True)),
        waiting=waiting.slo_class.tolist(),
        free_blocks=view.kv_free_blocks,
        rejected=rejected,
    )
