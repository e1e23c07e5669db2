"""Reading the arena: state vectors and queues for views, compiled."""

from __future__ import annotations

from synergy_gym.jit import kernel
from synergy_gym.sim.layout import (
    CACHED_MASK,
    CLASS_MASK,
    DECODE,
    E_CAPS_ON,
    E_CONTEXT,
    E_DECODES,
    E_FREE,
    E_PRE,
    E_PREFILL_TOKENS,
    E_PREFILLS,
    E_RUN_HEAD,
    E_RUNNING,
    E_TOTAL,
    E_WAIT_HEAD,
    E_WAIT_TOKENS,
    E_WAITING,
    F_ARRIVAL,
    F_CAL,
    F_COUNTS,
    F_FIRST,
    F_GEN,
    F_META,
    F_NEXT,
    F_OFF,
    F_PROMPT,
    F_STATE,
    H_NOW,
    L_BUDGET,
    L_DECODES,
    L_NS,
    L_PREEMPTED,
    L_SEQUENCES,
    L_TOKENS,
    PRIORITY_SHIFT,
    SKIPPED,
    STATE_MASK,
)
from synergy_gym.sim.lists import computed_tokens, generated_tokens, row
from synergy_gym.types import NS_PER_S

QUEUE_FIELDS = 9


@kernel
def write_state(a, o, e, out, so):  # type: ignore[no-untyped-def]
    """Write the engine state vector (`EngineStateField`) to `out[so:]`."""
    now = a[o + H_NOW]
    out[so] = now
    out[so + 1] = a[e + E_RUNNING]
    out[so + 2] = a[e + E_WAITING]
    out[so + 3] = a[e + E_DECODES]
    out[so + 4] = a[e + E_PREFILL_TOKENS]
    out[so + 5] = a[e + E_WAIT_TOKENS]
    out[so + 6] = a[e + E_CONTEXT]
    for i in range(a[e + E_PREFILLS]):
        q = row(a, o, a[a[e + E_PRE] + 2 * i])
        # What an iteration in flight schedules is entered already, but computed at its end.
        planned = a[a[e + E_PRE] + 2 * i + 1]
        computed = a[q + F_OFF] - planned
        out[so + 4] += planned
        if a[q + F_GEN] > 0 and a[q + F_PROMPT] + a[q + F_GEN] - computed == 1:
            out[so + 3] += 1
            out[so + 4] -= 1
            out[so + 6] += computed
    out[so + 7] = a[e + E_FREE]
    out[so + 8] = a[e + E_TOTAL]
    head = a[e + E_WAIT_HEAD]
    out[so + 9] = now - a[row(a, o, head) + F_ARRIVAL] if head >= 0 else 0
    out[so + 10] = max(a[e + L_NS], 0)
    out[so + 11] = a[e + L_SEQUENCES]
    out[so + 12] = a[e + L_TOKENS]
    out[so + 13] = a[e + L_DECODES]
    out[so + 14] = a[e + L_PREEMPTED]
    out[so + 15] = a[e + L_BUDGET]


@kernel
def write_queue(a, o, e, running, n, out):  # type: ignore[no-untyped-def]
    """List the running (1) or waiting (0) requests: `QUEUE_FIELDS` columns of `n` values each."""
    r = a[e + E_RUN_HEAD] if running != 0 else a[e + E_WAIT_HEAD]
    for i in range(n):
        q = row(a, o, r)
        out[i] = r
        out[n + i] = a[q + F_PROMPT]
        out[2 * n + i] = computed_tokens(a, e, q) if running != 0 else 0
        out[3 * n + i] = generated_tokens(a, e, q)
        out[4 * n + i] = max((a[q + F_COUNTS] & CACHED_MASK) - 1, 0)
        out[5 * n + i] = a[q + F_ARRIVAL]
        out[6 * n + i] = a[q + F_FIRST]
        out[7 * n + i] = a[q + F_META] & CLASS_MASK
        out[8 * n + i] = a[q + F_META] >> PRIORITY_SHIFT
        r = a[q + F_NEXT]


@kernel
def write_ages(now, arrivals, firsts, out):  # type: ignore[no-untyped-def]
    """Seconds since arrival, then since the first token (-1 before it), of n requests each."""
    n = len(arrivals)
    for i in range(n):
        out[i] = (now - arrivals[i]) / NS_PER_S
        out[n + i] = -1.0 if firsts[i] < 0 else (now - firsts[i]) / NS_PER_S


@kernel
def set_caps(a, o, e, caps):  # type: ignore[no-untyped-def]
    """Token caps of the running, then of the waiting requests; a decode is served or skipped."""
    running = a[e + E_RUNNING]
    r = a[e + E_RUN_HEAD]
    for i in range(len(caps)):
        if i == running:
            r = a[e + E_WAIT_HEAD]
        q = row(a, o, r)
        if (a[q + F_STATE] & STATE_MASK) != DECODE:
            a[q + F_CAL] = caps[i]
        elif caps[i] == 0:
            a[q + F_STATE] |= SKIPPED
        r = a[q + F_NEXT]
    a[e + E_CAPS_ON] = 1
