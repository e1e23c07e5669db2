"""Requests arriving and leaving: queues of the world, retries, closed loops, compiled."""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import hot, kernel
from synergy_gym.sim.engine import forget_prefill, free_request
from synergy_gym.sim.layout import (
    ABORTING,
    ATTEMPT_MASK,
    ATTEMPT_SHIFT,
    CLASS_MASK,
    DECODE,
    E_ABORTS,
    E_BLOCK_SIZE,
    E_FLIGHT,
    E_MAX_LEN,
    E_MET,
    E_PREFILL_TOKENS,
    E_READY,
    E_RUNNING,
    E_TOTAL,
    E_WAITING,
    ENGINE_MASK,
    F_ARRIVAL,
    F_COUNTS,
    F_FIRST,
    F_GEN,
    F_LAST,
    F_META,
    F_OFF,
    F_OUTPUT,
    F_PLACE,
    F_PROMPT,
    F_SCHEDULED,
    F_STATE,
    H_BACKOFF,
    H_CHILD,
    H_COMP,
    H_COMP_N,
    H_ENG,
    H_HEAP,
    H_HEAP_N,
    H_HORIZON,
    H_ITL,
    H_ITL_N,
    H_MET,
    H_RETRIES,
    H_ROWS,
    H_SIBLING,
    H_SLO,
    H_STRIDE,
    H_TELEMETRY,
    H_THINK,
    H_TIMEOUT,
    H_TO_SIZE,
    H_TO_TAIL,
    H_TOQ,
    H_TRUE_OUTPUT,
    H_WARM,
    INF,
    LEFT,
    OUTCOME_SHIFT,
    PENDING,
    PREFILL,
    SCORED,
    STATE_MASK,
    T_DIRTY,
    T_E2E,
    T_FINISHED,
    T_IDLE_SINCE,
    T_TPOT,
    T_TTFT,
    WAITING,
)
from synergy_gym.sim.lists import (
    computed_tokens,
    decode_leave,
    generated_tokens,
    row,
    run_unlink,
    wait_append,
    wait_unlink,
)
from synergy_gym.sim.telemetry import ROW_SIZE, refresh_row, settle_heartbeats

FINISHED, REJECTED, ABORTED, FAILED = 1, 2, 3, 4


@kernel
def heap_push(a, o, time, r):  # type: ignore[no-untyped-def]
    """Plan an arrival of `r` at `time` (binary heap on time, then request)."""
    h = a[o + H_HEAP]
    i = a[o + H_HEAP_N]
    a[o + H_HEAP_N] = i + 1
    while i > 0:
        up = (i - 1) // 2
        if a[h + 2 * up] < time or (a[h + 2 * up] == time and a[h + 2 * up + 1] < r):
            break
        a[h + 2 * i] = a[h + 2 * up]
        a[h + 2 * i + 1] = a[h + 2 * up + 1]
        i = up
    a[h + 2 * i] = time
    a[h + 2 * i + 1] = r


@kernel
def heap_pop(a, o):  # type: ignore[no-untyped-def]
    """Remove and return the request with the earliest planned arrival."""
    h = a[o + H_HEAP]
    result = a[h + 1]
    n = a[o + H_HEAP_N] - 1
    a[o + H_HEAP_N] = n
    time = a[h + 2 * n]
    r = a[h + 2 * n + 1]
    i = 0
    while 2 * i + 1 < n:
        c = 2 * i + 1
        if c + 1 < n and (
            a[h + 2 * c + 2] < a[h + 2 * c]
            or (a[h + 2 * c + 2] == a[h + 2 * c] and a[h + 2 * c + 3] < a[h + 2 * c + 1])
        ):
            c += 1
        if time < a[h + 2 * c] or (time == a[h + 2 * c] and r < a[h + 2 * c + 1]):
            break
        a[h + 2 * i] = a[h + 2 * c]
        a[h + 2 * i + 1] = a[h + 2 * c + 1]
        i = c
    a[h + 2 * i] = time
    a[h + 2 * i + 1] = r
    return result


@kernel
def begin_attempt(a, o, r, now):  # type: ignore[no-untyped-def]
    """A request enters the system at `now`, for the first time or again."""
    q = row(a, o, r)
    if a[q + F_META] >> ATTEMPT_SHIFT & ATTEMPT_MASK == 0:
        a[q + F_ARRIVAL] = now
        if a[o + H_WARM] <= now < a[o + H_HORIZON]:
            a[q + F_META] |= SCORED
    a[q + F_META] += np.int64(1) << ATTEMPT_SHIFT
    a[q + F_OFF] = 0
    a[q + F_GEN] = 0
    a[q + F_COUNTS] = 0
    a[q + F_PLACE] = 0
    a[q + F_SCHEDULED] = -1
    a[q + F_FIRST] = -1
    a[q + F_LAST] = -1
    a[q + F_STATE] = PENDING
    if a[o + H_TIMEOUT] > 0:
        tail = a[o + H_TO_TAIL]
        p = a[o + H_TOQ] + 2 * (tail % a[o + H_TO_SIZE])
        a[p] = now + a[o + H_TIMEOUT]
        a[p + 1] = r | (a[q + F_META] >> ATTEMPT_SHIFT & ATTEMPT_MASK) << 40
        a[o + H_TO_TAIL] = tail + 1


@kernel
def _release_children(a, o, r, now):  # type: ignore[no-untyped-def]
    if a[o + H_CHILD] == 0:
        return
    child = a[a[o + H_CHILD] + r]
    while child >= 0:
        at = now + a[a[o + H_THINK] + child]
        if at < a[o + H_HORIZON]:
            heap_push(a, o, at, child)
        child = a[a[o + H_SIBLING] + child]


@kernel
def leave(a, o, r, now, outcome):  # type: ignore[no-untyped-def]
    """A request is out of its engine; aborted and failed ones come back while they may."""
    q = row(a, o, r)
    engine = (a[q + F_PLACE] & ENGINE_MASK) - 1
    if engine >= 0 and a[o + H_TELEMETRY] != 0:
        p = a[o + H_ROWS] + engine * ROW_SIZE
        a[p + 1] -= 1
        a[p + 2] -= a[q + F_PROMPT]
        a[a[o + H_ENG] + engine * a[o + H_STRIDE] + T_DIRTY] = 1
    a[q + F_STATE] = LEFT | outcome << OUTCOME_SHIFT
    if a[o + H_COMP] != 0:
        p = a[o + H_COMP] + 8 * a[o + H_COMP_N]
        a[o + H_COMP_N] += 1
        a[p] = now
        a[p + 1] = engine
        a[p + 2] = r
        a[p + 3] = outcome
        a[p + 4] = a[q + F_FIRST]
        a[p + 5] = a[q + F_GEN]
        a[p + 6] = a[q + F_ARRIVAL]
    retry = outcome == ABORTED or outcome == FAILED
    if retry and (a[q + F_META] >> ATTEMPT_SHIFT & ATTEMPT_MASK) <= a[o + H_RETRIES]:
        a[q + F_STATE] = PENDING
        heap_push(a, o, now + a[o + H_BACKOFF], r)
    else:
        _release_children(a, o, r, now)


@kernel
def met_slos(a, o, q, now):  # type: ignore[no-untyped-def]
    """Whether the request at row `q`, finishing at `now`, met every declared SLO."""
    s = a[o + H_SLO] + 3 * (a[q + F_META] & CLASS_MASK)
    if a[s] >= 0 and a[q + F_FIRST] - a[q + F_ARRIVAL] > a[s]:
        return False
    if a[s + 1] >= 0 and now - a[q + F_FIRST] > a[s + 1] * (a[q + F_GEN] - 1):
        return False
    return not (a[s + 2] >= 0 and now - a[q + F_ARRIVAL] > a[s + 2])


@kernel
def finish(a, o, e, r, now):  # type: ignore[no-untyped-def]
    """The request has emitted its last token at `now`; its blocks are already free."""
    q = row(a, o, r)
    a[q + F_LAST] = now
    if a[q + F_META] & SCORED != 0 and met_slos(a, o, q, now):
        a[o + H_MET] += 1
        a[e + E_MET] += 1
    if a[o + H_TELEMETRY] != 0:
        a[e + T_FINISHED] += 1
        a[e + T_TTFT] += a[q + F_FIRST] - a[q + F_ARRIVAL]
        a[e + T_E2E] += now - a[q + F_ARRIVAL]
        if a[q + F_GEN] > 1:
            a[e + T_TPOT] += (now - a[q + F_FIRST]) // (a[q + F_GEN] - 1)
    leave(a, o, r, now, FINISHED)


@kernel
def take_out(a, o, e, r):  # type: ignore[no-untyped-def]
    """Remove a running or waiting request from its engine, freeing its blocks."""
    q = row(a, o, r)
    state = a[q + F_STATE] & STATE_MASK
    if state == WAITING:
        wait_unlink(a, o, e, q)
        return
    computed = computed_tokens(a, e, q)
    free_request(a, e, q, computed)
    if state == DECODE:
        generated = generated_tokens(a, e, q)
        decode_leave(a, o, e, r, 1)
        a[q + F_GEN] = generated
    elif state == PREFILL:
        forget_prefill(a, o, e, r)
        a[e + E_PREFILL_TOKENS] -= a[q + F_PROMPT] + a[q + F_GEN] - computed
    run_unlink(a, o, e, q)


@kernel
def deliver(a, o, r, engine, now):  # type: ignore[no-untyped-def]
    """Hand an arriving request to its engine; prompts that can never fit leave at once."""
    e = a[o + H_ENG] + engine * a[o + H_STRIDE]
    q = row(a, o, r)
    a[q + F_PLACE] = engine + 1
    if a[o + H_TELEMETRY] != 0:
        refresh_row(a, o, e, now)
        p = a[o + H_ROWS] + engine * ROW_SIZE
        a[p + 1] += 1
        a[p + 2] += a[q + F_PROMPT]
        a[p + 3] += a[q + F_PROMPT]
        a[e + T_DIRTY] = 1
    most = min(a[e + E_MAX_LEN], a[e + E_TOTAL] * a[e + E_BLOCK_SIZE])
    if a[q + F_PROMPT] >= most:
        leave(a, o, r, now, REJECTED)
        return
    output = a[q + F_OUTPUT] if a[o + H_TRUE_OUTPUT] == 0 else a[a[o + H_TRUE_OUTPUT] + r]
    a[q + F_OUTPUT] = min(output, most - a[q + F_PROMPT])
    if a[e + E_FLIGHT] == 0 and a[e + E_RUNNING] + a[e + E_WAITING] == 0:
        a[e + E_READY] = max(a[e + E_READY], now)
        if a[o + H_TELEMETRY] != 0:
            settle_heartbeats(a, o, e, now)
            a[e + T_IDLE_SINCE] = INF
    wait_append(a, o, e, r)


@kernel
def abort(a, o, r, now):  # type: ignore[no-untyped-def]
    """The client of `r` gives up at `now`."""
    q = row(a, o, r)
    state = a[q + F_STATE] & STATE_MASK
    if state == LEFT or state == PENDING:
        return
    e = a[o + H_ENG] + ((a[q + F_PLACE] & ENGINE_MASK) - 1) * a[o + H_STRIDE]
    if state != WAITING and a[e + E_FLIGHT] != 0:
        if a[q + F_STATE] & ABORTING == 0:
            a[q + F_GEN] = generated_tokens(a, e, q)
            a[q + F_STATE] |= ABORTING
            a[e + E_ABORTS] += 1
        return
    take_out(a, o, e, r)
    leave(a, o, r, now, ABORTED)


@hot
def itl_row(a, o, gap, weight):  # type: ignore[no-untyped-def]
    """Pool `weight` inter-token gaps of `gap` nanoseconds."""
    if a[o + H_ITL] != 0:
        p = a[o + H_ITL] + 2 * a[o + H_ITL_N]
        a[p] = gap
        a[p + 1] = weight
        a[o + H_ITL_N] += 1
