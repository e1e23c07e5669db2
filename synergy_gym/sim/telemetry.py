"""What routers can know and how old it is: pushes, heartbeats, scrapes (spec C.1), compiled."""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import kernel
from synergy_gym.latency.terms import SEED, _mix_kernel
from synergy_gym.sim.layout import (
    A_CAPACITY,
    A_MODEL,
    ADVERT_SIZE,
    C_RUNNING,
    C_TOTAL,
    C_USED,
    C_WAITING,
    E_CLOCK,
    E_DEBT,
    E_DECODES,
    E_DOWN,
    E_FLIGHT,
    E_FREE,
    E_INDEX,
    E_PREFILL_TOKENS,
    E_RUNNING,
    E_TOTAL,
    E_WAIT_TOKENS,
    E_WAITING,
    H_ENG,
    H_HB_INTERVAL,
    H_HEARTBEAT,
    H_PUSH_DELAY,
    H_PUSH_INTERVAL,
    H_PUSH_LOSS,
    H_RING,
    H_ROWS,
    H_SCRAPE_INTERVAL,
    H_STRIDE,
    HEARTBEAT_NONE,
    HEARTBEAT_OVERWRITE,
    L_NS,
    L_SEQUENCES,
    L_TOKENS,
    MEAN_SIZE,
    MEAN_STEPS,
    PUSH_MODEL,
    PUSH_SIZE,
    PUSH_TOLD,
    T_ADVERT,
    T_ATTEMPTS,
    T_BEATS,
    T_DIRTY,
    T_E2E,
    T_FINISHED,
    T_IDLE_SINCE,
    T_LAST_PUSH,
    T_MEAN_N,
    T_MEAN_NS,
    T_MEAN_PREDICTED,
    T_MEAN_RING,
    T_MEAN_TOKENS,
    T_NEXT_SCRAPE,
    T_PREDICTED,
    T_PUSHES,
    T_RING,
    T_TPOT,
    T_TTFT,
)
from synergy_gym.types import RouterRow

ROW_SIZE = len(RouterRow)
LOSS_STREAM = 0x2545F4914F6CDD1D
_SHIFT = int(RouterRow.PUSH_PREDICTED_NS) - PUSH_TOLD  # from a push's later fields to its columns
# SynergySched's stand-in for a prediction, in nanoseconds: base, per token, per request.
GUESS_NS, GUESS_TOKEN_NS, GUESS_REQUEST_NS = 8_700_000, 20_000, 500_000
LATENCY_BELOW, THROUGHPUT_ABOVE = 256, 1024
"""Mean tokens per step that bound the scheduling modes (spec C.1)."""


@kernel
def scrape_until(a, o, e, now):  # type: ignore[no-untyped-def]
    """Capture every scrape that is due before or at `now` (committed state only)."""
    while a[e + T_NEXT_SCRAPE] <= now:
        r = a[o + H_ROWS] + a[e + E_INDEX] * ROW_SIZE
        a[e + T_DIRTY] = 1
        if a[e + E_DOWN] == 0:
            n = max(a[e + T_FINISHED], 1)
            a[r + 12] = a[e + T_NEXT_SCRAPE]
            a[r + 13] = a[e + C_RUNNING]
            a[r + 14] = a[e + C_WAITING]
            a[r + 15] = a[e + C_USED]
            a[r + 16] = a[e + C_TOTAL]
            a[r + 17] = a[e + T_TTFT] // n
            a[r + 18] = a[e + T_TPOT] // n
            a[r + 19] = a[e + T_E2E] // n
            a[r + 20] = a[e + T_FINISHED]
        for field in range(T_FINISHED, T_E2E + 1):
            a[e + field] = 0
        a[e + T_NEXT_SCRAPE] += a[o + H_SCRAPE_INTERVAL]


@kernel
def note_step(a, e):  # type: ignore[no-untyped-def]
    """Enter the finished iteration into the means over the last ten non-empty ones."""
    n = a[e + T_MEAN_N]
    i = e_ring(a, e, n)
    if n >= MEAN_STEPS:
        a[e + T_MEAN_NS] -= a[i]
        a[e + T_MEAN_TOKENS] -= a[i + 1]
        a[e + T_MEAN_PREDICTED] -= a[i + 2]
    predicted = a[e + T_PREDICTED]
    if predicted < 0:
        predicted = GUESS_NS + GUESS_TOKEN_NS * a[e + L_TOKENS]
        predicted += GUESS_REQUEST_NS * a[e + L_SEQUENCES]
    a[i] = a[e + L_NS]
    a[i + 1] = a[e + L_TOKENS]
    a[i + 2] = predicted
    a[e + T_MEAN_NS] += a[i]
    a[e + T_MEAN_TOKENS] += a[i + 1]
    a[e + T_MEAN_PREDICTED] += predicted
    a[e + T_MEAN_N] = n + 1


@kernel
def e_ring(a, e, n):  # type: ignore[no-untyped-def]
    """Position of the ring entry of non-empty iteration `n`."""
    return a[e + T_MEAN_RING] + MEAN_SIZE * (n % MEAN_STEPS)


@kernel
def _append_push(a, o, e, at):  # type: ignore[no-untyped-def]
    """A new entry stamped `at`; the caller fills the rest."""
    p = a[e + T_RING] + (a[e + T_PUSHES] % a[o + H_RING]) * PUSH_SIZE
    a[e + T_PUSHES] += 1
    a[p] = at
    return p


@kernel
def _append_beat(a, o, e, at):  # type: ignore[no-untyped-def]
    """A heartbeat: the idle vector, and about the engine's model what was sent last."""
    last = a[e + T_RING] + ((a[e + T_PUSHES] - 1) % a[o + H_RING]) * PUSH_SIZE
    p = _append_push(a, o, e, at)
    for i in range(1, PUSH_MODEL):
        a[p + i] = 0
    a[p + 4] = a[e + E_TOTAL]
    for i in range(PUSH_MODEL, PUSH_SIZE):
        a[p + i] = a[last + i]


@kernel
def commit_counts(a, e):  # type: ignore[no-untyped-def]
    """What the engine's own metrics say after an iteration."""
    a[e + C_RUNNING] = a[e + E_RUNNING]
    a[e + C_WAITING] = a[e + E_WAITING]
    a[e + C_USED] = a[e + E_TOTAL] + a[e + E_DEBT] - a[e + E_FREE]
    a[e + C_TOTAL] = a[e + E_TOTAL]


@kernel
def _origin(a, o, e):  # type: ignore[no-untyped-def]
    """Instant from which heartbeats are counted, or -1 while none are sent."""
    if a[e + E_DOWN] != 0 or a[o + H_HEARTBEAT] == HEARTBEAT_NONE:
        return np.int64(-1)
    if a[o + H_HEARTBEAT] == HEARTBEAT_OVERWRITE:
        return np.int64(0)
    if a[e + E_FLIGHT] == 0 and a[e + E_RUNNING] + a[e + E_WAITING] == 0:
        return a[e + T_IDLE_SINCE]
    return np.int64(-1)


@kernel
def settle_heartbeats(a, o, e, now):  # type: ignore[no-untyped-def]
    """Before an engine's heartbeats change: keep those sent that are under way or visible."""
    origin = _origin(a, o, e)
    if origin < 0:
        return
    every = a[o + H_HB_INTERVAL]
    # Earlier beats are superseded by one that is visible already.
    after = max(max(now - a[o + H_PUSH_DELAY], a[e + T_BEATS]) - origin, every)
    beat = origin + after // every * every
    if beat <= a[e + T_BEATS]:
        beat += every
    while beat <= now:
        _append_beat(a, o, e, beat)
        beat += every
    a[e + T_BEATS] = now


@kernel
def _mode(a, e, n):  # type: ignore[no-untyped-def]
    """Scheduling mode over the last `n` non-empty steps: latency, balanced, throughput."""
    if a[e + T_MEAN_TOKENS] > THROUGHPUT_ABOVE * n:
        return 2
    return 0 if a[e + T_MEAN_N] > 0 and a[e + T_MEAN_TOKENS] < LATENCY_BELOW * n else 1


@kernel
def push(a, o, e, now):  # type: ignore[no-untyped-def]
    """Send the state vector if the interval has passed since the last one."""
    if a[o + H_HEARTBEAT] == HEARTBEAT_OVERWRITE:
        settle_heartbeats(a, o, e, now)
    if a[e + T_LAST_PUSH] >= 0 and now - a[e + T_LAST_PUSH] < a[o + H_PUSH_INTERVAL]:
        return
    a[e + T_LAST_PUSH] = now
    attempt = a[e + T_ATTEMPTS]
    a[e + T_ATTEMPTS] = attempt + 1
    if a[o + H_PUSH_LOSS] != 0:
        draw = _mix_kernel((a[e + E_CLOCK + SEED] + attempt) ^ LOSS_STREAM)
        if np.int64(draw >> np.uint64(32)) < a[o + H_PUSH_LOSS]:
            return
    p = _append_push(a, o, e, now)
    n = max(min(a[e + T_MEAN_N], MEAN_STEPS), 1)
    a[p + 1] = a[e + C_RUNNING]
    a[p + 2] = a[e + C_WAITING]
    a[p + 3] = a[e + C_USED]
    a[p + 4] = a[e + C_TOTAL]
    a[p + 5] = a[e + E_WAIT_TOKENS] + a[e + E_PREFILL_TOKENS] + a[e + E_DECODES]
    a[p + 6] = a[e + T_MEAN_NS] // n
    a[p + 7] = a[e + T_MEAN_TOKENS] * 1000 // n
    a[p + PUSH_TOLD] = a[e + T_MEAN_PREDICTED] // n
    a[p + PUSH_TOLD + 1] = _mode(a, e, n)
    told = a[e + T_ADVERT]
    a[p + PUSH_TOLD + 2] = a[told + A_CAPACITY]
    for i in range(A_MODEL, ADVERT_SIZE):
        a[p + PUSH_MODEL - A_MODEL + i] = a[told + i]


@kernel
def _show(a, e, r, at):  # type: ignore[no-untyped-def]
    """A heartbeat or push stamped `at` becomes visible in row `r`; true if it is new."""
    if a[r + 4] == at:
        return False
    a[r + 4] = at
    a[r + 3] = 0
    a[e + T_DIRTY] = 1
    return True


@kernel
def refresh_row(a, o, e, now):  # type: ignore[no-untyped-def]
    """Bring one engine's row of the router table up to date."""
    scrape_until(a, o, e, now)
    r = a[o + H_ROWS] + a[e + E_INDEX] * ROW_SIZE
    seen = now - a[o + H_PUSH_DELAY]
    beat = np.int64(-1)
    origin = _origin(a, o, e)
    if origin >= 0 and seen - origin >= a[o + H_HB_INTERVAL]:
        beat = seen - (seen - origin) % a[o + H_HB_INTERVAL]
        if beat <= a[e + T_BEATS]:
            beat = np.int64(-1)
    i = a[e + T_PUSHES] - 1
    oldest = max(a[e + T_PUSHES] - a[o + H_RING], 0)
    p = a[e + T_RING] + (i % a[o + H_RING]) * PUSH_SIZE
    while i > oldest and a[p] > seen:
        i -= 1
        p = a[e + T_RING] + (i % a[o + H_RING]) * PUSH_SIZE
    if beat > a[p]:
        if _show(a, e, r, beat):
            for k in range(5, 12):
                a[r + k] = 0
            a[r + 8] = a[e + E_TOTAL]
            for k in range(PUSH_TOLD, PUSH_MODEL):
                a[r + _SHIFT + k] = 0
            for k in range(PUSH_MODEL, PUSH_SIZE):
                a[r + _SHIFT + k] = a[p + k]
    elif _show(a, e, r, a[p]):
        for k in range(1, PUSH_TOLD):
            a[r + 4 + k] = a[p + k]
        for k in range(PUSH_TOLD, PUSH_SIZE):
            a[r + _SHIFT + k] = a[p + k]


@kernel
def refresh_rows(a, o, engines, now):  # type: ignore[no-untyped-def]
    """Bring the whole router table up to date."""
    for i in range(engines):
        refresh_row(a, o, a[o + H_ENG] + i * a[o + H_STRIDE], now)
