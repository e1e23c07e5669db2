"""lens-plus: LENS's decision with deadlines, a context-aware model and no starved decode.

Ours, after SynergySched's LENS (arXiv 2509.23384): the same information and the same decision,
a step whose predicted latency meets a target. The target follows from the objectives of the
requests that run instead of the length of the queue, the model sees the context
(`latency.models.context`), every decode runs in every step, and the waiting queue is ordered so
that the most first tokens are on time (Moore, Management Science 15, 1968).
Information class: engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from synergy_gym.latency.models.base import StepFeatures
from synergy_gym.latency.models.context import ContextAwareModel
from synergy_gym.latency.models.published import published_advert
from synergy_gym.policies import pacing
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.output_lengths import OutputLengths
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import (
    SLO,
    BatchDecision,
    EngineAdvert,
    EngineSpec,
    EngineView,
    IntArray,
    RequestArrays,
    StepReport,
)

PUBLISH_EVERY = 8
"""Decisions between two adverts of the model's coefficients."""
MIXED_PROBE_TOKENS = 512
INFLOW_S = 10.0
"""Time constant of the prompt tokens that come in."""
HOPELESS = 0.5
"""A prompt is late anyway when its slack is below this share of its own work."""
MAX_BACKGROUND_STEPS = 200
"""Consecutive steps that an overdue prefill may be passed over."""


@engine_policy("lens-plus", information="engine")
@dataclass
class LensPlus(EnginePolicy):
    """The longest step that keeps the running requests' objectives, for the most punctual prompts.

    Attributes:
        margin: share of an objective that is planned with.
        sacrifice: share of the decodes that may fall behind for the others' sake.
        slower: steps to come are taken to be this much longer than steps of decodes alone.
        quantum: a step with prefill carries at least this many times the prefill that its
            extra cost (decodes attend more slowly beside a prefill) would pay for; until it
            may, steps without prefill save up for it.
        spare: overdue requests are admitted while a step of decodes alone stays below this
            share of the pace, besides
        late_share: this share of all prefill tokens, which is always theirs.
        short: quantile of output lengths that a request is trusted to reach.
        long: quantile that it is not expected to exceed.
    """

    version: ClassVar[int] = 2

    margin: float = 0.9
    sacrifice: float = 0.02
    slower: float = 1.2
    quantum: float = 8.0
    spare: float = 0.4
    late_share: float = 0.02
    short: float = 0.1
    long: float = 0.9

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Forget everything but the step model that is published for the engine."""
        known = published_advert(spec)
        self._model = ContextAwareModel(known.step_ms if known else None)
        self._lengths = OutputLengths(self.short, self.long)
        self._limits = np.array(pacing.objectives(slos)).reshape(-1)
        self._work = np.zeros(pacing.SUMMARY_SIZE)
        self._tail = np.zeros(pacing.TAIL_SIZE)
        self._heap, self._slack = np.zeros(2), np.zeros(1)
        self._keep = np.zeros(1, np.int64)
        self._knobs = np.array([0.0, self.margin, self.sacrifice, self.slower, 0.0])
        self._inflow_tokens, self._then_s = 0.0, 0.0
        self._prefilled, self._backlog = 0, 0.0
        self._sortable = spec.scheduling == "fcfs"
        self._uncached = 1.0
        self._saved_ms = 0.0
        self._credit = 0.0
        self._passed_over = 0
        self._decisions = 0

    def observe(self, step: StepReport) -> None:
        """Learn the step's time, and how much prefill it did."""
        self._prefilled += step.prefill_tokens
        self._model.observe(StepFeatures.of(step), step.step_s * 1e3, step.start_s)

    def decide(self, engine: EngineView) -> BatchDecision:
        """The next step's budget, order and admissions."""
        running, waiting = engine.running, engine.waiting
        self._decisions += 1
        self._lengths.look(engine.now_s, running, waiting)
        self._look(engine, running, waiting)
        limit = engine.spec.max_num_batched_tokens
        decodes = int(self._work[pacing.DECODES])
        if decodes == 0:
            return self._without_decodes(waiting, limit)
        prefill = self._prefill_tokens(limit - decodes)
        budget = min(max(decodes + prefill, 1), limit)
        order = _decodes_first(running) if self._work[pacing.OUT_OF_PLACE] else None
        advert = self._advert(decodes, prefill)
        if prefill == 0 or not len(waiting):
            skips = self._skips(running, waiting, 0)
            return BatchDecision(budget, running_order=order, token_caps=skips, advert=advert)
        ahead = max(self._work[pacing.PREFILL_TOKENS] - prefill, 0.0)
        rate = self._sustained_rate(decodes, limit)
        queue, punctual = self._queue(waiting, rate, ahead / rate)
        queue, admit = self._admit(queue, punctual, waiting, prefill)
        cap = min(max(len(running) + admit, 1), engine.spec.max_num_seqs)
        return BatchDecision(
            budget,
            max_running=cap if admit < len(waiting) else None,
            running_order=order,
            waiting_order=self._told(queue),
            token_caps=self._skips(running, waiting, punctual),
            advert=advert,
        )

    def _look(self, engine: EngineView, running: RequestArrays, waiting: RequestArrays) -> None:
        """Summarise the running list into `_work`, what its decodes allow, and the backlog."""
        r = running
        pacing.summarize(
            r.prompt_tokens, r.generated_tokens, r.computed_tokens, r.waited_s,
            r.first_token_age_s, r.slo_class, self._limits, self._work,
        )  # fmt: skip
        if engine.spec.prefix_caching and len(r):
            share = 1 - r.cached_tokens.sum() / r.prompt_tokens.sum()
            self._uncached += 0.02 * (share - self._uncached)
        self._note_inflow(engine.now_s, waiting)
        if self._work[pacing.DECODES]:
            self._knobs[0] = self._lengths.high
            self._knobs[4] = self._balance_ms()
            pacing.pace(
                r.prompt_tokens, r.generated_tokens, r.computed_tokens, r.waited_s,
                r.first_token_age_s, r.slo_class, self._limits, self._lengths.remaining,
                self._knobs, self._tail, self._model.state, self._work,
            )  # fmt: skip

    def _note_inflow(self, now_s: float, waiting: RequestArrays) -> None:
        """What came in is what the backlog has grown by, and what was prefilled meanwhile."""
        backlog = float(self._work[pacing.PREFILL_TOKENS])
        if len(waiting):
            backlog += self._uncached * int(waiting.remaining_prefill_tokens.sum())
        came = max(backlog - self._backlog + self._prefilled, 0.0)
        fade = math.exp(-(now_s - self._then_s) / INFLOW_S)
        self._inflow_tokens = self._inflow_tokens * fade + came
        self._backlog, self._prefilled, self._then_s = backlog, 0, now_s

    def _balance_ms(self) -> float:
        """The step at which prefill keeps up with arrivals beside these decodes; long in vain."""
        low, slope = self._mixed(int(self._work[pacing.DECODES]), int(self._work[pacing.CONTEXT]))
        busy = self._inflow_tokens / INFLOW_S / 1e3 * slope
        return low / (1.0 - busy) if busy < 1.0 else pacing.NEVER

    def _prefill_tokens(self, room: int) -> int:
        """Prefill tokens of the next step; 0 while it pays to save up for a larger chunk."""
        work, model = self._work, self._model
        decodes, context = int(work[pacing.DECODES]), int(work[pacing.CONTEXT])
        if self._backlog < 1 or room < 1:
            return room
        before = int(work[pacing.PREFILL_CONTEXT] / max(work[pacing.PREFILLS], 1))
        target = max(work[pacing.TARGET_MS], work[pacing.PACE_MS] + self._saved_ms)
        tokens = model.invert_tokens(decodes, context, target, before, room)
        least = min(self._quantum_tokens(decodes, context), self._backlog, room)
        if tokens >= least:
            self._saved_ms = 0.0
            return max(tokens, 1)
        self._saved_ms += max(work[pacing.PACE_MS] - work[pacing.DECODE_MS], 0.5)
        return 0

    def _quantum_tokens(self, decodes: int, context: int) -> float:
        """Smallest chunk that is worth making a step of decodes a mixed one."""
        low, slope = self._mixed(decodes, context)
        extra = max(low - self._work[pacing.DECODE_MS], 0.0)
        return self.quantum * extra / slope if slope > 0 else 1.0

    def _mixed(self, decodes: int, context: int) -> tuple[float, float]:
        """A step of these decodes with one prefill token, ms, and ms per further token."""
        low = self._mixed_ms(decodes, context, 1)
        high = self._mixed_ms(decodes, context, 1 + MIXED_PROBE_TOKENS)
        return low, (high - low) / MIXED_PROBE_TOKENS

    def _mixed_ms(self, decodes: int, context: int, tokens: int) -> float:
        return self._model.predict_ms(
            StepFeatures(decodes + 1, decodes + tokens, context, 0, 0, decodes)
        )

    def _sustained_rate(self, decodes: int, limit: int) -> float:
        """Prefill tokens per second that can go on beside the decodes at their pace."""
        work = self._work
        chunk = min(limit, 2048)
        ms = self._mixed_ms(decodes, int(work[pacing.CONTEXT]), chunk) - work[pacing.DECODE_MS]
        free = max(1 - work[pacing.DECODE_MS] / work[pacing.PACE_MS], 0.05)
        return float(1e3 * free * chunk / max(ms, 1e-3))

    def _queue(self, waiting: RequestArrays, rate: float, start_s: float) -> tuple[IntArray, int]:
        """Order of the waiting queue, and how many of its head can be on time.

        Requests that have begun to stream (preempted ones) come first, then the largest set
        that can be on time, then the others, each by due time.
        """
        n = len(waiting)
        if len(self._keep) < n:
            self._heap, self._slack = np.zeros(4 * n), np.zeros(2 * n)
            self._keep = np.zeros(2 * n, np.int64)
        slack, order = self._slack[:n], np.empty(n, np.int64)
        step_ms = min(self._work[pacing.PACE_MS], self._knobs[4])
        decode_s = self._lengths.high * step_ms / 1e3
        pacing.slack(waiting.waited_s, waiting.slo_class, self._limits, decode_s, slack)
        punctual: int = pacing.on_time(
            slack.argsort(kind="stable"), slack, waiting.prompt_tokens, waiting.generated_tokens,
            self._uncached / rate, start_s, HOPELESS, self._heap, self._keep, order,
        )  # fmt: skip
        return order, punctual

    def _told(self, queue: IntArray) -> IntArray | None:
        """The order as a decision says it: nothing where it is the queue's own."""
        moved = self._sortable and bool((queue[1:] < queue[:-1]).any())
        return queue if moved else None

    def _admit(
        self, queue: IntArray, punctual: int, waiting: RequestArrays, prefill: int
    ) -> tuple[IntArray, int]:
        """The queue with an overdue request first when it is its turn; how many may come in."""
        if punctual == len(queue):
            return queue, punctual
        self._credit += self.late_share * prefill
        oldest = queue[punctual]
        price = self._uncached * waiting.remaining_prefill_tokens[oldest]
        if self._credit >= price:
            self._credit -= price
            rest = np.delete(queue, punctual)
            return np.concatenate([[oldest], rest]), punctual + 1
        if self._work[pacing.DECODE_MS] < self.spare * self._work[pacing.PACE_MS]:
            return queue, len(queue)
        return queue, punctual

    def _skips(
        self, running: RequestArrays, waiting: RequestArrays, punctual: int
    ) -> IntArray | None:
        """Overdue prefills wait while punctual ones have work; never for long."""
        late = self._work[pacing.LATE_PREFILLS]
        busy = punctual > 0 or self._work[pacing.PREFILLS] > late
        if not late or not busy or self._passed_over >= MAX_BACKGROUND_STEPS:
            self._passed_over = 0
            return None
        self._passed_over += 1
        caps = np.full(len(running) + len(waiting), -1, np.int64)
        overdue = running.waited_s > self._limits[3 * running.slo_class]
        caps[: len(running)][overdue & (running.first_token_age_s < 0)] = 0
        return caps

    def _without_decodes(self, waiting: RequestArrays, limit: int) -> BatchDecision:
        """Nobody's TPOT is at stake: the server's whole budget, punctual prompts first."""
        order = None
        if len(waiting) > 1:
            rate = 1e3 * limit / self._mixed_ms(0, 0, limit)
            queue, _ = self._queue(waiting, rate, self._work[pacing.PREFILL_TOKENS] / rate)
            order = self._told(queue)
        return BatchDecision(limit, waiting_order=order, advert=self._advert(0, limit))

    def _advert(self, decodes: int, prefill: int) -> EngineAdvert:
        """The step's predicted time; now and then the model itself."""
        context = int(self._work[pacing.CONTEXT])
        tokens = min(prefill, int(self._backlog))
        step = StepFeatures(
            decodes + (tokens > 0), max(decodes + tokens, 1), context, 0, 0, decodes
        )
        predicted = self._model.predict_ms(step) / 1e3
        if self._decisions % PUBLISH_EVERY != 1:
            return EngineAdvert(predicted_step_s=predicted)
        told = self._model.advert()
        return EngineAdvert(predicted, told.capacity, told.peak_tps, told.step_ms)


def _decodes_first(running: RequestArrays) -> IntArray:
    """The running list with its decodes before its prefills."""
    decodes = running.is_decode
    return np.concatenate([np.flatnonzero(decodes), np.flatnonzero(~decodes)])
