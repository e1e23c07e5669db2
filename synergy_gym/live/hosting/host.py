"""An engine policy at work inside a vLLM scheduler: asked every step, never able to break one.

The scheduler calls four methods around its own: `added`, `before_schedule`, `after_schedule` and
`step_ended`. A policy that raises, or decides what is not allowed, costs that step only: vLLM
schedules it with the limits that it was started with, and the failure is counted and logged.

A step lasts from the call of `schedule()` to that of `update_from_output()`, the decision included.
Where several steps are in flight (asynchronous scheduling, pipeline stages) a step begins, for its
duration, no earlier than the output of the step before it: what is measured is then the time
between consecutive outputs. A step that found nothing to schedule beside one in flight is none.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from synergy_gym.latency.models.published import published_advert
from synergy_gym.live.hosting.steering import Note, ScheduledStep, Steering, without_positive_caps
from synergy_gym.live.log import is_loud
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.seats import EngineSeat
from synergy_gym.sim.adverts import NOT_PREDICTED, predicted_ns, published, started_with
from synergy_gym.sim.decisions import is_integer
from synergy_gym.sim.plain.telemetry import Ended, Gauges, guessed_ns
from synergy_gym.types import NS_PER_S, BatchDecision, StepReport

log = logging.getLogger(__name__)

SLO_CLASS = "slo_class"
"""Key of `vllm_xargs` (HTTP) or `extra_args` (in process): name or index of a request's class."""


@dataclass(frozen=True, slots=True)
class HostClock:
    """Where time comes from.

    Attributes:
        now_ns: monotonic nanoseconds.
        wall_s: the clock of vLLM's `Request.arrival_time`; `None`: a request arrives when it is
            added.
    """

    now_ns: Callable[[], int] = time.monotonic_ns
    wall_s: Callable[[], float] | None = time.time


@dataclass(frozen=True, slots=True)
class HostedStep:
    """One finished step of a hosted engine.

    Attributes:
        number: counts from 1.
        end_ns: when its output came back, nanoseconds of the host's clock.
        report: as the policy observes it.
        decision: what scheduled it, token caps above zero already dropped; `None`: stock vLLM,
            because the policy had failed.
        running: requests that ran when it was decided.
        waiting: requests that waited then.
        finished: ids of the requests that it finished.
        ended: what pushed state says about it (`docs/telemetry.md`).
    """

    number: int
    end_ns: int
    report: StepReport
    decision: BatchDecision | None
    running: int
    waiting: int
    finished: tuple[str, ...]
    ended: Ended


class StepListener(Protocol):
    """Is told what happens on the engine; what it raises is logged and counted."""

    def work_came(self, host: PolicyHost, now_ns: int) -> None:
        """The engine was empty and has a request now."""

    def step_ended(self, host: PolicyHost, step: HostedStep) -> None:
        """`step` has ended, and the scheduler has taken its output in."""

    def close(self) -> None:
        """The engine shuts down."""


@dataclass(slots=True)
class _Flight:
    """A step from its decision to its output."""

    start_ns: int
    decision: BatchDecision | None
    running: int
    waiting: int
    output: Any = None
    step: ScheduledStep | None = None
    counts: bool = False
    """Whether policies and listeners hear of it."""

    @property
    def had_work(self) -> bool:
        return self.running + self.waiting > 0


class PolicyHost:
    """A policy and the scheduler that it steers.

    Args:
        policy: not yet reset; it is reset here, and again before a step while that fails.
        steering: around the scheduler.
        rng: the policy's own generator.
        clock: where time comes from.
        name: the engine's name in logs and pushed state.
        engine: its index in `StepReport.engine`.
        listeners: told of every finished step.

    Attributes:
        told: what the policy's adverts tell routers, as `adverts.published` writes it.
        last_step: the last finished step.
        steps: finished steps that had requests.
        failures: how often the policy failed, by where (`reset`, `observe`, `decide`, `view`,
            `decision`), and `listener` for those that listen.
        dropped_caps: token caps above zero that a live engine cannot obey, summed over steps.
        unknown_classes: requests that named no declared SLO class; they count as the first.
    """

    def __init__(
        self,
        policy: EnginePolicy,
        steering: Steering,
        *,
        rng: np.random.Generator,
        clock: HostClock = HostClock(),
        name: str = "engine",
        engine: int = 0,
        listeners: Iterable[StepListener] = (),
    ) -> None:
        self.policy = policy
        self._seat = EngineSeat(policy)
        self.steering = steering
        self.name = name
        self.failures: Counter[str] = Counter()
        self.dropped_caps = 0
        self.unknown_classes = 0
        self.last_step: StepReport | None = None
        self.steps = 0
        self._rng = rng
        self._clock = clock
        self._engine = engine
        self._listeners = tuple(listeners)
        self._is_reset = False
        self._unseen: deque[StepReport] = deque()
        self._deciding = _Flight(0, None, 0, 0)
        self._in_flight: deque[_Flight] = deque()
        self._last_end_ns: int | None = None
        self.told = started_with([published_advert(steering.spec)], 1)[0]
        self._announce()
        self._reset()

    @property
    def failed_steps(self) -> int:
        """Steps that stock vLLM scheduled because the policy had failed."""
        return sum(n for where, n in self.failures.items() if where != "listener")

    @property
    def in_flight(self) -> int:
        """Steps that are scheduled and have no output yet."""
        return len(self._in_flight)

    def now_ns(self) -> int:
        """The host's clock."""
        return self._clock.now_ns()

    def added(self, request: Any) -> None:
        """Keep the arrival and the SLO class of a request that vLLM has queued, until it leaves."""
        scheduler, notes = self.steering.scheduler, self.steering.notes
        name = request.request_id
        # A session's next turn comes under a known id, and its last one ends the request.
        if name not in notes and name in scheduler.requests:
            notes[name] = Note(self._arrival_ns(request), self._slo_class(request))
            if len(notes) == 1:
                self._tell(lambda listener: listener.work_came(self, self.now_ns()))

    def left(self, names: Iterable[str]) -> None:
        """These requests have left the scheduler, if they are finished there."""
        requests = self.steering.scheduler.requests
        for name in names:
            request = requests.get(name)
            if request is None or request.is_finished():
                self.steering.notes.pop(name, None)

    def before_schedule(self) -> None:
        """Observe, decide and apply; call it right before vLLM's own `schedule()`."""
        running, waiting = map(len, self.steering.queues())
        flight = self._deciding = _Flight(self.now_ns(), None, running, waiting)
        if flight.had_work:
            flight.decision = self._decide(flight.start_ns)
        if flight.decision is None:
            self.steering.apply_stock()
        self.steering.before_schedule()

    def after_schedule(self, output: Any) -> None:
        """Take note of what vLLM's `schedule()` has returned."""
        flight = self._deciding
        flight.output = output
        flight.step = self.steering.scheduled(output, flight.start_ns)
        waits_only = bool(self._in_flight) and not flight.step.scheduled
        flight.counts = flight.had_work and not waits_only
        self._in_flight.append(flight)

    def step_ended(self, output: Any, results: Any, end_ns: int) -> None:
        """Report a step whose answer vLLM has taken in.

        Args:
            output: what `schedule()` returned for this step.
            results: what `update_from_output()` returned.
            end_ns: the host's clock when that was called.
        """
        flight = self._landed(output)
        answers = [answer for group in results.values() for answer in group.outputs]
        self._note_first_tokens(answers, end_ns)
        self.left(output.num_scheduled_tokens)
        if flight is None or flight.step is None:
            return
        began_ns = flight.start_ns
        if self._last_end_ns is not None:
            began_ns = max(began_ns, self._last_end_ns)
        self._last_end_ns = end_ns
        if flight.counts:
            flight.step.start_ns = began_ns
            finished = tuple(a.request_id for a in answers if a.finish_reason is not None)
            self._report(flight, flight.step, finished, end_ns)

    def close(self) -> None:
        """Close the listeners."""
        self._tell(lambda listener: listener.close())

    def gauges(self) -> Gauges:
        """Counts of the engine as it is now, for pushed state."""
        running, waiting = map(len, self.steering.queues())
        total = self.steering.spec.kv_blocks
        used = total - self.steering.free_blocks()
        return Gauges(running, waiting, used, total, self.steering.pending_tokens())

    def _report(
        self, flight: _Flight, step: ScheduledStep, finished: tuple[str, ...], end_ns: int
    ) -> None:
        duration_ns = end_ns - step.start_ns
        report = step.report(self._engine, duration_ns, len(finished))
        self.last_step = report
        self._unseen.append(report)
        self.steps += 1
        hosted = HostedStep(
            number=self.steps,
            end_ns=end_ns,
            report=report,
            decision=flight.decision,
            running=flight.running,
            waiting=flight.waiting,
            finished=finished,
            ended=Ended(duration_ns, report.tokens, _predicted_ns(flight.decision, report)),
        )
        self._tell(lambda listener: listener.step_ended(self, hosted))

    def _tell(self, what: Callable[[StepListener], None]) -> None:
        for listener in self._listeners:
            try:
                what(listener)
            except Exception as error:
                self._failed("listener", error, f"{type(listener).__name__} has missed something")

    def _decide(self, now_ns: int) -> BatchDecision | None:
        """What the policy decides, applied to the scheduler; `None` when it has failed."""
        where = "reset"
        try:
            if not self._is_reset and not self._reset():
                return None
            where = "observe"
            while self._unseen:
                self._seat.observe(self._unseen.popleft())
            where = "view"
            view = self.steering.view(now_ns, self.last_step)
            where = "decide"
            decision = self._seat.decision(view)
            where = "decision"
            return self._apply(decision)
        except Exception as error:
            self._failed(where, error, "stock vLLM schedules this step")
            return None

    def _apply(self, decision: BatchDecision) -> BatchDecision:
        if not isinstance(decision, BatchDecision):
            raise TypeError(f"decide returned {decision!r}; return a BatchDecision")
        obeyed, dropped = without_positive_caps(decision)
        self.steering.apply(obeyed)
        self.dropped_caps += dropped
        self.told = published(obeyed.advert, self.told)
        return obeyed

    def _reset(self) -> bool:
        self._unseen.clear()
        try:
            self._seat.reset(self._rng, self.steering.spec, self.steering.slos)
        except Exception as error:
            self._failed("reset", error, "stock vLLM schedules until it succeeds")
            return False
        self._is_reset = True
        return True

    def _failed(self, where: str, error: Exception, consequence: str) -> None:
        """Count, and log the 1st (with its traceback), 2nd, 4th, 8th ... failure of this kind."""
        self.failures[where] += 1
        times = self.failures[where]
        if is_loud(times):
            log.error(
                "policy %s on engine %r: %s failed (%s: %s); %s; %d such failures so far",
                self.policy.label,
                self.name,
                where,
                type(error).__name__,
                error,
                consequence,
                times,
                exc_info=error if times == 1 else None,
            )

    def _announce(self) -> None:
        log.info("policy %s schedules engine %r", self.policy.label, self.name)
        if self.policy.uses_token_caps:
            log.warning(
                "policy %s caps the tokens of single requests, which vLLM cannot: on engine %r "
                "caps above zero are dropped and counted (skips and everything else hold)",
                self.policy.label,
                self.name,
            )

    def _landed(self, output: Any) -> _Flight | None:
        """The flight of `output`; outputs come back in the order of their steps."""
        while self._in_flight:
            flight = self._in_flight.popleft()
            if flight.output is output:
                return flight
        return None

    def _note_first_tokens(self, answers: Sequence[Any], end_ns: int) -> None:
        for answer in answers:
            note = self.steering.notes.get(answer.request_id)
            if note is not None and note.first_token_ns < 0 and answer.new_token_ids:
                note.first_token_ns = end_ns

    def _arrival_ns(self, request: Any) -> int:
        now_ns, wall_s = self.now_ns(), self._clock.wall_s
        if wall_s is None:
            return now_ns
        age_s = max(wall_s() - float(request.arrival_time), 0.0)
        return now_ns - round(age_s * NS_PER_S)

    def _slo_class(self, request: Any) -> int:
        sampling = request.sampling_params
        asked = (getattr(sampling, "extra_args", None) or {}).get(SLO_CLASS, 0)
        names = [slo.name for slo in self.steering.slos]
        if asked in names:
            return names.index(asked)
        if is_integer(asked) and 0 <= asked < max(len(names), 1):
            return int(asked)
        self.unknown_classes += 1
        if is_loud(self.unknown_classes):
            log.warning(
                "engine %r: request %s asks for %s %r; declared are %s (or 0..%d), so it counts as "
                "the first; %d such requests so far",
                self.name,
                request.request_id,
                SLO_CLASS,
                asked,
                ", ".join(names),
                len(names) - 1,
                self.unknown_classes,
            )
        return 0


def _predicted_ns(decision: BatchDecision | None, report: StepReport) -> int:
    predicted = predicted_ns(decision.advert if decision else None)
    if predicted != NOT_PREDICTED:
        return predicted
    return guessed_ns(report.tokens, report.sequences)
