"""The end of an engine iteration: tokens are emitted, requests finish, state is published."""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import hot, kernel
from synergy_gym.latency.terms import FLOOR_NS, _mix_kernel
from synergy_gym.sim.admission import admit_more, schedule, step_time
from synergy_gym.sim.decision_log import K_DECISION, K_RESULT, K_START
from synergy_gym.sim.engine import free_request
from synergy_gym.sim.layout import (
    ABORTING,
    DECODE,
    E_ABORTS,
    E_BLOCK_SIZE,
    E_CACHING,
    E_CAL,
    E_CAL_MASK,
    E_CAPS_ON,
    E_CLOCK,
    E_CONTEXT,
    E_DECODES,
    E_END,
    E_FLIGHT,
    E_HASH,
    E_J,
    E_K,
    E_LAST_END,
    E_PRE,
    E_PREFILLS,
    E_READY,
    E_RUN_HEAD,
    E_RUNNING,
    E_SCORED_DECODES,
    E_SKIPPED,
    E_STALLED,
    E_START,
    E_STEPS,
    E_WAITING,
    F_CAL,
    F_FIRST,
    F_GEN,
    F_LAST,
    F_META,
    F_NEXT,
    F_OFF,
    F_OUTPUT,
    F_PROMPT,
    F_STATE,
    H_TELEMETRY,
    INF,
    L_BUDGET,
    L_FINISHED,
    L_NS,
    L_SEQUENCES,
    L_START,
    P_BUDGET,
    P_CAP,
    P_CHUNK,
    P_SEQUENCES,
    P_TOKENS,
    PREFILL,
    RAN,
    SCORED,
    SKIPPED,
    STALLED,
    STATE_MASK,
    T_IDLE_SINCE,
)
from synergy_gym.sim.lifecycle import ABORTED, REJECTED, finish, itl_row, leave, take_out
from synergy_gym.sim.lists import (
    calendar_add,
    decode_enter,
    decode_leave,
    decode_postpone,
    row,
    run_unlink,
    wait_unlink,
)
from synergy_gym.sim.telemetry import commit_counts, note_step, push, scrape_until


@hot
def _note_decision(a, e, duration):  # type: ignore[no-untyped-def]
    """Chain the decision and what it led to into the engine's hash."""
    decision = a[e + P_BUDGET] ^ (a[e + P_CAP] << 21) ^ (a[e + P_CHUNK] << 42)
    result = a[e + P_SEQUENCES] ^ (a[e + P_TOKENS] << 20) ^ (duration << 40)
    value = np.uint64(a[e + E_START]) * np.uint64(K_START)
    value ^= np.uint64(decision) * np.uint64(K_DECISION)
    value ^= np.uint64(result) * np.uint64(K_RESULT)
    a[e + E_HASH] = np.int64(_mix_kernel(np.uint64(a[e + E_HASH]) ^ value))


@hot
def begin_iteration(a, o, e, start, next_arrival):  # type: ignore[no-untyped-def]
    """Plan an iteration at `start` under the decision in the P_ fields.

    False when rejections left the engine without work, so that nothing runs.
    """
    a[e + E_START] = start
    misfit = schedule(a, o, e)
    while misfit >= 0:
        wait_unlink(a, o, e, row(a, o, misfit))
        leave(a, o, misfit, start, REJECTED)
        misfit = admit_more(a, o, e)
    a[e + E_CAPS_ON] = 0
    if a[e + E_RUNNING] + a[e + E_WAITING] == 0:
        a[e + T_IDLE_SINCE] = start
        return False
    if a[e + P_SEQUENCES] > 0:
        duration = step_time(a, e)
    else:
        least = max(a[e + E_CLOCK + FLOOR_NS], a[e + E_CLOCK] // 1000000, 1000)
        duration = least
        if next_arrival < INF:
            duration = max(least, next_arrival - start)
    _note_decision(a, e, duration)
    a[e + E_STEPS] += 1
    a[e + E_FLIGHT] = 1
    a[e + E_END] = start + duration
    return True


@hot
def _report(a, e):  # type: ignore[no-untyped-def]
    a[e + L_START] = a[e + E_START]
    a[e + L_NS] = a[e + E_END] - a[e + E_START]
    for field in range(9):
        a[e + L_SEQUENCES + field] = a[e + P_SEQUENCES + field]
    a[e + L_FINISHED] = 0
    a[e + L_BUDGET] = a[e + P_BUDGET]


@kernel
def _stall_all(a, o, e):  # type: ignore[no-untyped-def]
    """Nothing ran: every decode's last token stays where it was."""
    r = a[e + E_RUN_HEAD]
    while r >= 0:
        q = row(a, o, r)
        if a[q + F_STATE] & STATE_MASK == DECODE:
            a[q + F_STATE] &= ~SKIPPED
            if a[q + F_STATE] & STALLED == 0:
                _stall(a, e, q)
        r = a[q + F_NEXT]


@kernel
def _stall(a, e, q):  # type: ignore[no-untyped-def]
    a[q + F_LAST] = a[e + E_LAST_END]
    a[q + F_STATE] |= STALLED
    a[e + E_STALLED] += 1


@kernel
def _uneven_gaps(a, o, e, now):  # type: ignore[no-untyped-def]
    """Inter-token gaps when some decodes were or are passed over; returns the even ones."""
    even = 0
    r = a[e + E_RUN_HEAD]
    while r >= 0:
        q = row(a, o, r)
        state = a[q + F_STATE]
        if state & STATE_MASK == DECODE:
            scored = 1 if a[q + F_META] & SCORED != 0 else 0
            if state & SKIPPED != 0:
                a[q + F_STATE] &= ~SKIPPED
                decode_postpone(a, e, q)
                if state & STALLED == 0:
                    _stall(a, e, q)
            elif state & ABORTING != 0:
                even += 0
            elif state & STALLED != 0:
                if scored != 0:
                    itl_row(a, o, now - a[q + F_LAST], 1)
                a[q + F_STATE] &= ~STALLED
                a[e + E_STALLED] -= 1
            else:
                even += scored
        r = a[q + F_NEXT]
    return even


@hot
def _emit_decodes(a, o, e, now):  # type: ignore[no-untyped-def]
    """Advance the lazy decodes by one token."""
    a[e + E_K] += 1
    a[e + E_J] -= 1
    if a[e + E_J] < 0:
        a[e + E_J] = a[e + E_BLOCK_SIZE] - 1
    a[e + E_CONTEXT] += a[e + E_DECODES] - a[e + E_SKIPPED]
    even = a[e + E_SCORED_DECODES]
    if a[e + E_SKIPPED] + a[e + E_STALLED] + a[e + E_ABORTS] > 0:
        even = _uneven_gaps(a, o, e, now)
    if even > 0:
        itl_row(a, o, now - a[e + E_LAST_END], even)


@kernel
def _drop_aborted(a, o, e, now):  # type: ignore[no-untyped-def]
    """Requests whose client gave up during the iteration leave without a token."""
    r = a[e + E_RUN_HEAD]
    while r >= 0:
        q = row(a, o, r)
        following = a[q + F_NEXT]
        if a[q + F_STATE] & ABORTING != 0:
            a[q + F_STATE] &= ~ABORTING
            emitted = a[q + F_GEN]
            take_out(a, o, e, r)
            a[q + F_GEN] = emitted
            leave(a, o, r, now, ABORTED)
        r = following
    a[e + E_ABORTS] = 0


@kernel
def _finish_decode(a, o, e, r, now, unlink):  # type: ignore[no-untyped-def]
    q = row(a, o, r)
    free_request(a, e, q, a[q + F_OFF] + a[e + E_K])
    decode_leave(a, o, e, r, unlink)
    a[q + F_GEN] = a[q + F_OUTPUT]
    run_unlink(a, o, e, q)
    a[e + L_FINISHED] += 1
    finish(a, o, e, r, now)


@hot
def _finish_by_calendar(a, o, e, now):  # type: ignore[no-untyped-def]
    bucket = a[e + E_CAL] + (a[e + E_K] & a[e + E_CAL_MASK])
    r = a[bucket]
    a[bucket] = -1
    while r >= 0:
        q = row(a, o, r)
        following = a[q + F_CAL]
        if a[q + F_PROMPT] + a[q + F_OUTPUT] - 1 - a[q + F_OFF] == a[e + E_K]:
            _finish_decode(a, o, e, r, now, 0)
        else:
            calendar_add(a, e, q, r)
        r = following


@kernel
def _emit_prefill(a, o, e, r, now):  # type: ignore[no-untyped-def]
    """A request whose known tokens are all computed emits a token and decodes or ends."""
    q = row(a, o, r)
    a[q + F_GEN] += 1
    if a[q + F_FIRST] < 0:
        a[q + F_FIRST] = now
    elif a[q + F_META] & SCORED != 0:
        itl_row(a, o, now - a[q + F_LAST], 1)
    if a[q + F_GEN] < a[q + F_OUTPUT]:
        decode_enter(a, e, q, r, a[q + F_OFF])
        return
    free_request(a, e, q, a[q + F_OFF])
    run_unlink(a, o, e, q)
    a[e + L_FINISHED] += 1
    finish(a, o, e, r, now)


@hot
def _complete(a, q):  # type: ignore[no-untyped-def]
    prefill = a[q + F_STATE] & STATE_MASK == PREFILL
    return prefill and a[q + F_OFF] == a[q + F_PROMPT] + a[q + F_GEN]


@hot
def _emit_prefills(a, o, e, now):  # type: ignore[no-untyped-def]
    """Completed prefills emit; the array keeps the unfinished ones in list order."""
    pre = a[e + E_PRE]
    kept = 0
    for i in range(a[e + E_PREFILLS]):
        r = a[pre + 2 * i]
        q = row(a, o, r)
        if _complete(a, q):
            _emit_prefill(a, o, e, r, now)
        elif a[q + F_STATE] & STATE_MASK == PREFILL:
            a[pre + 2 * kept] = r
            a[pre + 2 * kept + 1] = 0
            kept += 1
    a[e + E_PREFILLS] = kept


@kernel
def _finish_by_list(a, o, e, now):  # type: ignore[no-untyped-def]
    """Finish in list order, which decides the order of the free queue."""
    r = a[e + E_RUN_HEAD]
    while r >= 0:
        q = row(a, o, r)
        following = a[q + F_NEXT]
        a[q + F_STATE] &= ~RAN
        if a[q + F_STATE] & STATE_MASK == DECODE:
            if a[q + F_PROMPT] + a[q + F_OUTPUT] - 1 - a[q + F_OFF] == a[e + E_K]:
                _finish_decode(a, o, e, r, now, 0)
        elif _complete(a, q):
            _emit_prefill(a, o, e, r, now)
        r = following


@hot
def end_iteration(a, o, e):  # type: ignore[no-untyped-def]
    """Make the iteration in flight visible at its end."""
    now = a[e + E_END]
    if a[o + H_TELEMETRY] != 0:
        scrape_until(a, o, e, now - 1)
    _report(a, e)
    ran = a[e + P_SEQUENCES] > 0
    if ran:
        _emit_decodes(a, o, e, now)
    else:
        _stall_all(a, o, e)
    if a[e + E_ABORTS] > 0:
        _drop_aborted(a, o, e, now)
    if ran:
        if a[e + E_CACHING] == 0:
            _finish_by_calendar(a, o, e, now)
        else:
            _finish_by_list(a, o, e, now)
        _emit_prefills(a, o, e, now)
        a[e + E_LAST_END] = now
    a[e + E_FLIGHT] = 0
    a[e + E_READY] = now
    if a[e + E_RUNNING] + a[e + E_WAITING] == 0:
        a[e + T_IDLE_SINCE] = now
    if a[o + H_TELEMETRY] != 0:
        commit_counts(a, e)
        if ran:
            note_step(a, e)
        push(a, o, e, now)
