"""The compiled parts of lens-plus against the same in plain Python."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.latency.models.base import StepFeatures
from synergy_gym.latency.models.context import ContextAwareModel
from synergy_gym.policies import pacing
from synergy_gym.types import FloatArray, IntArray

SEEDS = st.integers(0, 2**32 - 1)
LIMITS = np.array([1.0, 0.05, 20.0, 20.0, pacing.NEVER, 60.0, pacing.NEVER, 0.1, pacing.NEVER])


class Queue:
    """Columns of a random running list."""

    def __init__(self, rng: np.random.Generator, n: int) -> None:
        self.prompt = rng.integers(1, 3000, n)
        self.generated = rng.integers(0, 300, n) * (rng.random(n) < 0.7)
        decode = (self.generated > 0) & (rng.random(n) < 0.9)
        part = (rng.random(n) * (self.prompt + self.generated)).astype(np.int64)
        self.computed = np.where(decode, self.prompt + self.generated - 1, part)
        self.waited = rng.random(n) * 30
        self.age = np.where(self.generated > 0, self.waited * rng.random(n), -1.0)
        self.slo = rng.integers(0, 3, n)

    def columns(self) -> tuple[IntArray | FloatArray, ...]:
        return self.prompt, self.generated, self.computed, self.waited, self.age, self.slo

    def is_decode(self, i: int) -> bool:
        left = self.prompt[i] + self.generated[i] - self.computed[i]
        return bool(left == 1 and self.generated[i] > 0)


def summarized(queue: Queue) -> FloatArray:
    out = np.full(pacing.SUMMARY_SIZE, 7.0)
    pacing.summarize(*queue.columns(), LIMITS, out)
    return out


@given(seed=SEEDS)
def test_summary_counts_the_running_list(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queue = Queue(rng, int(rng.integers(0, 40)))
    n = len(queue.prompt)
    decodes = [i for i in range(n) if queue.is_decode(i)]
    prefills = [i for i in range(n) if not queue.is_decode(i)]
    late = [i for i in prefills if queue.age[i] < 0 and queue.waited[i] > LIMITS[3 * queue.slo[i]]]
    before = [i for i in prefills if any(j > i for j in decodes)]
    left = queue.prompt + queue.generated - queue.computed
    out = summarized(queue)
    assert out[pacing.DECODES] == len(decodes)
    assert out[pacing.CONTEXT] == queue.computed[decodes].sum()
    assert out[pacing.PREFILLS] == len(prefills)
    assert out[pacing.PREFILL_TOKENS] == left[prefills].sum()
    assert out[pacing.PREFILL_CONTEXT] == queue.computed[prefills].sum()
    assert out[pacing.LATE_PREFILLS] == len(late)
    assert out[pacing.OUT_OF_PLACE] == len(before)


def plain_pace(
    queue: Queue, remaining: IntArray, knobs: FloatArray, alone_ms: float
) -> tuple[float, float]:
    """(target, pace) in ms, decode by decode."""
    high, margin, share, slower, balance = knobs
    alone, future = alone_ms / 1e3, alone_ms * slower / 1e3
    allowances, steady_steps, whole, decodes = [], [], [pacing.NEVER], 0
    for i in range(len(queue.prompt)):
        if not queue.is_decode(i):
            continue
        decodes += 1
        ttft, tpot, e2e = LIMITS[3 * queue.slo[i] : 3 * queue.slo[i] + 3]
        g, age, waited = int(queue.generated[i]), float(queue.age[i]), float(queue.waited[i])
        least = g + int(remaining[min(g, len(remaining) - 1)])
        most = max(high, least)
        missed = waited - age > ttft
        hopeless = tpot * (most - 1) - age < (most - g) * alone or e2e - waited < alone
        if missed or hopeless:
            continue
        allowed = margin * tpot * (least - 1) - age - (least - g - 1) * future
        steady = margin * tpot
        whole.append(steady)
        if high > 0 and e2e < pacing.NEVER:
            allowed = min(allowed, margin * e2e - waited - (max(high, g + 1) - g - 1) * future)
            steady = min(steady, max((margin * e2e - waited + age) / high, 1.25 * alone))
            whole.append(e2e / high)
        allowances.append(allowed)
        steady_steps.append(steady)
    allowances += [pacing.NEVER] * 40
    pace = min([*steady_steps, pacing.NEVER / 1e3])
    if balance <= min(whole) * 1e3:
        pace = max(pace, balance / 1e3)
    target = min(sorted(allowances)[int(share * decodes)], pacing.NEVER / 1e3)
    return max(target, pace) * 1e3, pace * 1e3


@given(seed=SEEDS)
def test_pace_equals_plain_python(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queue = Queue(rng, int(rng.integers(1, 60)))
    model = ContextAwareModel()
    remaining = rng.integers(1, 100, int(rng.integers(1, 200)))
    high = float(rng.choice([0.0, 50.0, 250.0]))
    balance = rng.choice([0.0, rng.uniform(1, 100), pacing.NEVER])
    share = rng.choice([0.0, 0.02, 0.3])
    knobs = np.array([high, rng.uniform(0.5, 1), share, rng.uniform(1, 2), balance])
    out = summarized(queue)
    tail = np.zeros(pacing.TAIL_SIZE)
    pacing.pace(*queue.columns(), LIMITS, remaining, knobs, tail, model.state, out)
    d, c = int(out[pacing.DECODES]), int(out[pacing.CONTEXT])
    alone = model.predict_ms(StepFeatures(d, d, c, 0, 0, d))
    target, pace = plain_pace(queue, remaining, knobs, alone)
    assert out[pacing.DECODE_MS] == pytest.approx(alone)
    assert out[pacing.PACE_MS] == pytest.approx(pace)
    assert out[pacing.TARGET_MS] == pytest.approx(target)


def most_on_time(work: FloatArray, due: FloatArray, start: float) -> int:
    """Largest number of prompts that can be on time, by trying every subset."""
    best = 0
    for chosen in itertools.product((0, 1), repeat=len(work)):
        now, fits = start, True
        for i in sorted(np.flatnonzero(chosen), key=lambda i: due[i]):
            now += work[i]
            fits &= now <= due[i]
        if fits:
            best = max(best, sum(chosen))
    return best


def ordered(
    slack: FloatArray, prompt: IntArray, generated: IntArray, token_s: float, start_s: float
) -> tuple[list[int], int]:
    n = len(slack)
    order = np.empty(n, np.int64)
    heap, keep = np.zeros(2 * n + 2), np.zeros(n + 1, np.int64)
    by_slack = slack.argsort(kind="stable")
    punctual = pacing.on_time(
        by_slack, slack, prompt, generated, token_s, start_s, 0.0, heap, keep, order
    )
    return order.tolist(), punctual


@given(seed=SEEDS)
def test_the_most_first_tokens_are_on_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 9))
    prompt, slack = rng.integers(1, 1000, n), rng.uniform(-0.1, 1.0, n)
    start = float(rng.uniform(0, 0.3))
    order, punctual = ordered(slack, prompt, np.zeros(n, np.int64), 1e-3, start)
    assert sorted(order) == list(range(n))
    assert punctual == most_on_time(prompt * 1e-3, slack, start)
    now = start
    for i in order[:punctual]:
        now += prompt[i] * 1e-3
        assert now <= slack[i]
    assert slack[order[punctual:]].tolist() == sorted(slack[order[punctual:]])


def test_streaming_requests_come_first_and_late_ones_last() -> None:
    slack = np.array([0.9, -3.0, 0.25, -5.0, 0.001])
    generated = np.array([0, 0, 0, 7, 0])
    order, punctual = ordered(slack, np.array([100, 100, 100, 100, 100]), generated, 1e-3, 0.0)
    assert (order, punctual) == ([3, 2, 0, 1, 4], 3)


def test_slack_leaves_time_to_decode_within_the_e2e_objective() -> None:
    waited, slo, out = np.array([0.25, 1.0, 1.0]), np.array([0, 1, 2]), np.zeros(3)
    pacing.slack(waited, slo, LIMITS, 0.0, out)
    assert out[:2].tolist() == [0.75, 19.0]
    assert out[2] > 1e16
    pacing.slack(waited, slo, LIMITS, 19.5, out)
    assert out[:2].tolist() == [0.25, 19.0]
    only_e2e = np.array([pacing.NEVER, pacing.NEVER, 3.0])
    pacing.slack(waited, np.zeros(3, np.int64), only_e2e, 2.5, out)
    assert out.tolist() == [0.25, -0.5, -0.5]
