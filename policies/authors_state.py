"""What SynergySched's authors' own RL scheduler observes and is rewarded for (engine layer).

`vllm/v1/core/sched/rl` of YNewsoul/vllm, its second generation: a DQN that chooses one of four
token budgets before every step. The global numbers are those of commit b45c9d9; the ten requests
per queue, the scales, the budgets and the reward those of commit 1d03d1a. Differences:

- their requests bear one E2E objective each; here it is that of the request's class, or 30 s (their
  scale) where a class declares none;
- they see finished requests directly; here a request that has left both queues has finished, at
  the end of the last step;
- they reward a preempted request as a finished one; here it is none.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synergy_gym.actions import EngineGrid
from synergy_gym.observation import Float32Array, Group, ObservationLayout, Slot
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BoolArray,
    EngineSpec,
    EngineView,
    FloatArray,
    IntArray,
    RequestArrays,
    StepReport,
)

DEFAULT_E2E_S = 30.0
"""Objective of a class without one: their `slo_norm`."""
ROWS = 10
"""Requests of each queue that are observed one by one."""
PROMPT_SCALE_TOKENS = 10_000.0
BUDGET_SCALE_TOKENS = 2048.0
STEP_SCALE_S = 0.3
THROUGHPUT_SCALE_TPS = 20_000.0
RECENT_REQUESTS = 100
"""Finished requests behind the recent share of those in time."""
RECENT_STEPS = 100
"""Steps behind the recent throughput."""
MISMATCH_TOKENS = 255
"""A step that takes so many tokens less than its budget is one of a wrong budget."""

AUTHORS_GRID = EngineGrid(
    budgets=(256, 512, 1024, 2048),
    caps=(1.0,),
    orders=("queue",),
    holds=(False,),
    cover_decodes=False,
)
"""Their four token budgets. They serve decodes, then the running prompt with the fewest tokens
left, then the queue; as only the last running request can be half prefilled, vLLM does so too."""

_ANY = (-np.inf, np.inf)
_LEFT = "(objective - age) / objective"
GLOBALS = (
    Slot("decodes", "decodes / running"),
    Slot("decode_mean_left", f"mean over decodes of {_LEFT}", *_ANY),
    Slot("decode_least_left", f"smallest over decodes of {_LEFT}", *_ANY),
    Slot("prefill_tokens", "share of its prompt that the first running prefill still needs"),
    Slot("prefill_left", f"max(0, {_LEFT}) of it"),
    Slot("waiting_mean_left", f"mean over waiting requests of {_LEFT}", *_ANY),
    Slot("waiting_mean_prompt", "mean prompt of waiting requests / 10,000 tokens", 0.0, np.inf),
    Slot("recent_in_time", "share of the last 100 finished requests within their objective"),
    Slot("last_budget", "budget of the last step / 2048 tokens", 0.0, np.inf),
    Slot("last_step", "duration of the last step / 300 ms", 0.0, np.inf),
)
WAITING = (Slot("prompt", "prompt / 10,000 tokens", 0.0, np.inf), Slot("left", _LEFT, *_ANY))
RUNNING = (Slot("decodes", "1 for a decode"), Slot("left", _LEFT, *_ANY))
THERE = (Slot("there", "1 where there is such a request"),)
AUTHORS_GROUPS = (
    Group("authors", GLOBALS),
    Group("waiting", WAITING, ROWS),
    Group("running", RUNNING, ROWS),
    Group("waiting_mask", THERE, ROWS),
    Group("running_mask", THERE, ROWS),
)
"""The 70 numbers; 0 where there is nothing to average, and for a request that is not there."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What their reward weighs, of the step before a view.

    Attributes:
        in_time: requests that finished within their objective.
        late: requests that finished after it.
        recent_in_time: share of the last 100 finished requests within their objective, 0 without.
        recent_tps: tokens per second over the last 100 steps, prompts included.
        unused_tokens: budget of the step less its tokens.
    """

    in_time: int
    late: int
    recent_in_time: float
    recent_tps: float
    unused_tokens: int

    def reward_terms(self) -> dict[str, float]:
        """The four weighed terms; their sum is the reward."""
        mismatch = -1.0 if abs(self.unused_tokens) > MISMATCH_TOKENS else 0.0
        return {
            "recent_in_time": 2.0 * self.recent_in_time,
            "recent_throughput": self.recent_tps / THROUGHPUT_SCALE_TPS,
            "unused_budget": 0.5 * mismatch,
            "finished": 0.5 * (0.5 * self.in_time - 0.5 * self.late),
        }


class AuthorsState:
    """Turns the views of one engine, in order, into their observation.

    Args:
        spec: the engine.
        slos: the scenario's classes; their E2E objectives set the scales.

    Attributes:
        layout: names and places of the 70 numbers.
        judged: what the last view says about the step before it.
    """

    def __init__(self, spec: EngineSpec, slos: Sequence[SLO]) -> None:
        self.layout = ObservationLayout(AUTHORS_GROUPS)
        limits = [DEFAULT_E2E_S if slo.e2e_s is None else slo.e2e_s for slo in slos]
        self._limits_s: FloatArray = np.array(limits or [DEFAULT_E2E_S])
        self._recent: deque[bool] = deque(maxlen=RECENT_REQUESTS)
        self._steps: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
        self._known: tuple[_Known, ...] = ()
        self._last: StepReport | None = None
        self.judged = Judged(0, 0, 0.0, 0.0, 0)

    def __call__(self, view: EngineView) -> Float32Array:
        """The observation, float32 `(70,)`."""
        self._judge(view)
        observation = np.zeros(self.layout.size, np.float32)
        self._write_globals(view, observation)
        waiting, running = view.waiting, view.running
        share = waiting.prompt_tokens[:ROWS] / PROMPT_SCALE_TOKENS
        self._write_rows(observation, "waiting", share, self._left(waiting))
        self._write_rows(observation, "running", _decodes(running)[:ROWS], self._left(running))
        return observation

    def _left(self, queue: RequestArrays) -> FloatArray:
        limits_s = self._limits_s[queue.slo_class]
        left: FloatArray = (limits_s - queue.waited_s) / limits_s
        return left

    def _write_globals(self, view: EngineView, out: Float32Array) -> None:
        running, waiting = view.running, view.waiting
        decodes, left = _decodes(running), self._left(running)
        if len(running):
            out[0] = decodes.mean()
        if decodes.any():
            out[1:3] = left[decodes].mean(), left[decodes].min()
        if not decodes.all():
            first = int(np.argmin(decodes))
            prompt = running.prompt_tokens[first]
            out[3] = (prompt - running.computed_tokens[first]) / max(prompt, 1)
            out[4] = max(left[first], 0.0)
        if len(waiting):
            out[5] = self._left(waiting).mean()
            out[6] = waiting.prompt_tokens.mean() / PROMPT_SCALE_TOKENS
        out[7] = self.judged.recent_in_time
        if view.last_step is not None:
            out[8] = view.last_step.token_budget / BUDGET_SCALE_TOKENS
            out[9] = view.last_step.step_s / STEP_SCALE_S

    def _write_rows(
        self, out: Float32Array, name: str, first: FloatArray | BoolArray, left: FloatArray
    ) -> None:
        rows = out[self.layout[name]].reshape(ROWS, 2)
        rows[: len(first), 0] = first
        rows[: len(first), 1] = left[:ROWS]
        out[self.layout[f"{name}_mask"]][: len(first)] = 1.0

    def _judge(self, view: EngineView) -> None:
        step, in_time, late = view.last_step, 0, 0
        queues = view.running, view.waiting
        known = tuple(_Known.of(queue, view.now_s) for queue in queues)
        if step is not None and step != self._last:
            self._steps.append((step.tokens, step.step_s))
            if step.finished:
                in_time, late = self._finished(known, step.start_s + step.step_s)
        self._known, self._last = known, step
        seconds = sum(s for _, s in self._steps)
        self.judged = Judged(
            in_time=in_time,
            late=late,
            recent_in_time=sum(self._recent) / len(self._recent) if self._recent else 0.0,
            recent_tps=sum(n for n, _ in self._steps) / seconds if seconds > 0 else 0.0,
            unused_tokens=0 if step is None else step.token_budget - step.tokens,
        )

    def _finished(self, known: tuple[_Known, ...], end_s: float) -> tuple[int, int]:
        """How many of the requests that have left were in time, and how many were late."""
        left = sum((k.counted() for k in self._known), Counter())
        left -= sum((k.counted() for k in known), Counter())
        verdicts = [
            bool(end_s - arrival_ns / NS_PER_S < self._limits_s[slo_class])
            for arrival_ns, _, slo_class in left.elements()
        ]
        self._recent.extend(verdicts)
        return sum(verdicts), len(verdicts) - sum(verdicts)


@dataclass(frozen=True, slots=True)
class _Known:
    """Who was in a queue: requests have no names, but an arrival, a prompt and a class."""

    arrival_ns: IntArray
    prompt_tokens: IntArray
    slo_class: IntArray

    @staticmethod
    def of(queue: RequestArrays, now_s: float) -> _Known:
        # Whole nanoseconds, so that a request keeps its arrival from view to view.
        arrival_ns = round(now_s * NS_PER_S) - np.rint(queue.waited_s * NS_PER_S).astype(np.int64)
        return _Known(arrival_ns, queue.prompt_tokens.copy(), queue.slo_class.copy())

    def counted(self) -> Counter[tuple[int, int, int]]:
        columns = (self.arrival_ns, self.prompt_tokens, self.slo_class)
        return Counter(zip(*(column.tolist() for column in columns), strict=True))


def _decodes(queue: RequestArrays) -> BoolArray:
    """Their test: the whole prompt is computed."""
    decodes: BoolArray = queue.computed_tokens >= queue.prompt_tokens
    return decodes
