"""What running decodes allow, and which prompts can be on time: compiled parts of lens-plus.

All arrays are one-dimensional; see `tests/policies/test_pacing.py` for the same in plain Python.
"""

from __future__ import annotations

from collections.abc import Sequence

from synergy_gym.jit import kernel
from synergy_gym.latency.models.rls import predict
from synergy_gym.types import SLO

DECODES, CONTEXT, DECODE_MS, TARGET_MS, PACE_MS = 0, 1, 2, 3, 4
PREFILLS, PREFILL_TOKENS, PREFILL_CONTEXT, LATE_PREFILLS, OUT_OF_PLACE = 5, 6, 7, 8, 9
SUMMARY_SIZE = 10
TAIL_SIZE = 32
NEVER = 1e18


def objectives(slos: Sequence[SLO]) -> list[tuple[float, float, float]]:
    """TTFT, TPOT and E2E objectives per class in seconds, `NEVER` where there is none.

    Without a class there is one without objectives.
    """
    return [(_or(slo.ttft_s), _or(slo.tpot_s), _or(slo.e2e_s)) for slo in slos] or [(NEVER,) * 3]


def _or(limit_s: float | None) -> float:
    return NEVER if limit_s is None else limit_s


@kernel
def summarize(prompt, generated, computed, waited, age, slo, limits, out):  # type: ignore[no-untyped-def]
    """Count decodes and prefills of the running list into `out`.

    `limits` holds TTFT, TPOT and E2E objectives per class (s, `NEVER` without one).
    `OUT_OF_PLACE` counts prefills with a decode behind them, `LATE_PREFILLS` those whose
    first token is overdue.
    """
    for i in range(SUMMARY_SIZE):
        out[i] = 0.0
    pending = 0.0
    for i in range(len(prompt)):
        left = prompt[i] + generated[i] - computed[i]
        if left == 1 and generated[i] > 0:
            out[DECODES] += 1.0
            out[CONTEXT] += computed[i]
            out[OUT_OF_PLACE] += pending
            pending = 0.0
        else:
            pending += 1.0
            out[PREFILLS] += 1.0
            out[PREFILL_TOKENS] += left
            out[PREFILL_CONTEXT] += computed[i]
            if age[i] < 0.0 and waited[i] > limits[3 * slo[i]]:
                out[LATE_PREFILLS] += 1.0


@kernel
def _enter(tail, size, value):  # type: ignore[no-untyped-def]
    """Keep the `size` smallest values seen in `tail`, ascending."""
    i = size - 1
    if value >= tail[i]:
        return
    while i > 0 and tail[i - 1] > value:
        tail[i] = tail[i - 1]
        i -= 1
    tail[i] = value


@kernel
def pace(  # type: ignore[no-untyped-def]
    prompt, generated, computed, waited, age, slo, limits, remaining, knobs, tail, model, out,
):  # fmt: skip
    """How long the next step may take, in ms: `out[TARGET_MS]`, `out[PACE_MS]`.

    `remaining` and `knobs[0]` are `OutputLengths.remaining` and `.high`; the other knobs are
    margin, share of decodes that may be sacrificed, how much slower than a step of decodes alone
    the future is taken to be, and the step in ms at which prefill keeps up with arrivals.
    `model` is the state of `latency.models.rls`.

    A decode with n tokens in all keeps its TPOT when its decode time stays below
    TPOT * (n - 1). It may spend now what is left after n - g - 1 steps of decodes alone. The
    target is what all but a few of the decodes allow, `PACE_MS` the steady step that keeps the
    tightest of them on schedule. Decodes that have missed an objective, or that no pace can
    save, have none to keep and are left out.

    A pace below `knobs[4]` only moves time from decodes to the queue, and the later a first
    token, the tighter the pace that its E2E objective asks for: as long as whole objectives
    allow the step at which prefill keeps up, that is the pace.
    """
    high, margin, share, slower, balance = knobs[0], knobs[1], knobs[2], knobs[3], knobs[4]
    decodes = out[DECODES]
    alone = predict(model, decodes, decodes, out[CONTEXT], 0.0, 0.0, decodes)
    out[DECODE_MS] = alone
    future = alone * slower / 1e3
    size = min(int(share * decodes) + 1, TAIL_SIZE)
    for i in range(size):
        tail[i] = NEVER
    slowest = NEVER
    whole = NEVER
    last = len(remaining) - 1
    for i in range(len(prompt)):
        g = generated[i]
        if g == 0 or prompt[i] + g - computed[i] != 1:
            continue
        if waited[i] - age[i] > limits[3 * slo[i]]:
            continue
        tpot, e2e = limits[3 * slo[i] + 1], limits[3 * slo[i] + 2]
        low = g + remaining[min(g, last)]
        long = max(high, low)
        spared = tpot * (long - 1) - age[i] - (long - g) * alone / 1e3
        if spared < 0.0 or e2e - waited[i] < alone / 1e3:
            continue
        allowed = margin * tpot * (low - 1) - age[i] - (low - g - 1) * future
        steady = margin * tpot
        whole = min(whole, steady)
        if high > 0.0 and e2e < NEVER:
            allowed = min(allowed, margin * e2e - waited[i] - (max(high, g + 1) - g - 1) * future)
            # Where outputs of that length cannot be saved, shorter ones still can.
            e2e_pace = (margin * e2e - (waited[i] - age[i])) / high
            steady = min(steady, max(e2e_pace, 1.25 * alone / 1e3))
            whole = min(whole, e2e / high)
        _enter(tail, size, allowed)
        slowest = min(slowest, steady)
    if balance <= whole * 1e3:
        slowest = max(slowest, balance / 1e3)
    out[PACE_MS] = min(slowest, NEVER / 1e3) * 1e3
    out[TARGET_MS] = max(min(tail[size - 1], NEVER / 1e3) * 1e3, out[PACE_MS])


@kernel
def _push(heap, size, key, item):  # type: ignore[no-untyped-def]
    """Add to a binary max-heap of (key, item) pairs."""
    i = size
    while i > 0:
        up = (i - 1) // 2
        if heap[2 * up] >= key:
            break
        heap[2 * i], heap[2 * i + 1] = heap[2 * up], heap[2 * up + 1]
        i = up
    heap[2 * i], heap[2 * i + 1] = key, item


@kernel
def _pop(heap, size):  # type: ignore[no-untyped-def]
    """Remove the largest pair of a heap of `size`; its item."""
    item = heap[1]
    key, last = heap[2 * size - 2], heap[2 * size - 1]
    n = size - 1
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and heap[2 * child + 2] > heap[2 * child]:
            child += 1
        if heap[2 * child] <= key:
            break
        heap[2 * i], heap[2 * i + 1] = heap[2 * child], heap[2 * child + 1]
        i = child
    heap[2 * i], heap[2 * i + 1] = key, last
    return item


@kernel
def slack(waited, slo, limits, decode_s, out):  # type: ignore[no-untyped-def]
    """Seconds until each first token is due.

    It is due at its TTFT objective, and early enough for `decode_s` seconds of decoding within
    the E2E objective (0.7 of that while `decode_s` is 0: lengths are unknown yet).
    """
    for i in range(len(waited)):
        e2e = limits[3 * slo[i] + 2]
        rest = 0.3 * e2e if decode_s == 0.0 else decode_s
        out[i] = min(limits[3 * slo[i]], e2e - rest) - waited[i]


@kernel
def in_groups(by_slack, keep, order):  # type: ignore[no-untyped-def]
    """Write the requests of groups 2, 1 and 0 of `keep` to `order`, each by slack.

    Returns how many are in groups 2 and 1.
    """
    at = 0
    punctual = 0
    for group in range(2, -1, -1):
        for place in range(len(by_slack)):
            if keep[by_slack[place]] == group:
                order[at] = by_slack[place]
                at += 1
        if group == 1:
            punctual = at
    return punctual


@kernel
def on_time(  # type: ignore[no-untyped-def]
    by_slack, slack_s, prompt, generated, token_s, start_s, hopeless, heap, keep, order
):
    """Order the waiting queue so that the most first tokens are on time; how many can be.

    Moore and Hodgson's algorithm (Moore, Management Science 15, 1968) for one machine, which is
    optimal: prompts are added by due time, and whenever one would be late the longest is taken
    out. `by_slack` orders them, each occupies the engine for `token_s` per token, `start_s` lies
    before the first. A prompt with less slack than `hopeless` times its own work is late anyway.

    Writes to `order` first the requests that stream already (preempted ones), then the punctual
    ones, then the late ones, each by due time; returns the size of the first two groups.
    `heap` has room for two values per prompt, `keep` for one.
    """
    size = 0
    now = start_s
    n = len(by_slack)
    for place in range(n):
        i = by_slack[place]
        work = (prompt[i] + generated[i]) * token_s
        keep[i] = 1
        if generated[i] > 0:
            keep[i] = 2
            now += work
        elif slack_s[i] < hopeless * work:
            keep[i] = 0
        else:
            now += work
            _push(heap, size, work, float(i))
            size += 1
            if now > slack_s[i]:
                longest = int(_pop(heap, size))
                size -= 1
                keep[longest] = 0
                now -= (prompt[longest] + generated[longest]) * token_s
    return in_groups(by_slack, keep, order)
