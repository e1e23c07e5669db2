"""Admission and the whole schedule of one iteration, compiled (see `engine`)."""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import hot, kernel
from synergy_gym.latency.terms import step_ns_kernel
from synergy_gym.sim.engine import (
    allocate,
    count_chunk,
    finish_walk,
    ids_of,
    running_fast,
    running_walk,
)
from synergy_gym.sim.layout import (
    B_SLOTS,
    B_SLOTS_N,
    CACHED_MASK,
    E_BLOCK_SIZE,
    E_CACHING,
    E_CAPS_ON,
    E_CHUNK,
    E_CLOCK,
    E_DECODES,
    E_FREE,
    E_LEFT,
    E_PRE,
    E_PREFILL_TOKENS,
    E_PREFILLS,
    E_PRIORITY,
    E_RUNNING,
    E_SKIPPED,
    E_STALLED,
    E_START,
    E_STEPS,
    E_TOTAL,
    E_WAIT_HEAD,
    E_WAITING,
    E_WATERMARK,
    ENGINE_MASK,
    F_CAL,
    F_COUNTS,
    F_GEN,
    F_NEXT,
    F_OFF,
    F_PLACE,
    F_PROMPT,
    F_SCHEDULED,
    F_STATE,
    P_ADMITTED,
    P_BUDGET,
    P_CAP,
    P_CHUNK,
    P_CONTEXT,
    P_DECODES,
    P_PAIRS,
    P_PREEMPTED,
    P_PREFILL_CONTEXT,
    P_PREFILLS,
    P_SEQUENCES,
    P_TOKENS,
    PREFILL,
    SLOT_SHIFT,
    STATE_MASK,
)
from synergy_gym.sim.lists import row, run_append, wait_unlink
from synergy_gym.sim.prefix_cache import adopt_hits, blocks_for, count_hits, full_blocks, table_of


@hot
def _clear_plan(a, e):  # type: ignore[no-untyped-def]
    for field in range(P_SEQUENCES, P_PREFILLS + 1):
        a[e + field] = 0
    a[e + E_SKIPPED] = 0


@kernel
def _admit_one(a, o, e, r, q, computed, n):  # type: ignore[no-untyped-def]
    wait_unlink(a, o, e, q)
    run_append(a, o, e, r)
    known = a[q + F_PROMPT] + a[q + F_GEN]
    a[q + F_STATE] = (a[q + F_STATE] & ~STATE_MASK) | PREFILL
    a[q + F_OFF] = computed + n
    if a[q + F_COUNTS] & CACHED_MASK == 0:
        a[q + F_COUNTS] += computed + 1
    if a[q + F_SCHEDULED] < 0:
        a[q + F_SCHEDULED] = a[e + E_START]
    a[e + E_PREFILL_TOKENS] += known - computed - n
    a[e + P_ADMITTED] += 1
    count_chunk(a, e, q, computed, n)
    i = a[e + E_PRE] + 2 * a[e + E_PREFILLS]
    a[i] = r
    a[i + 1] = n
    a[e + E_PREFILLS] += 1


@hot
def _hits(a, o, e, r, known):  # type: ignore[no-untyped-def]
    if a[e + E_CACHING] == 0:
        return np.int64(0), np.int64(0)
    return count_hits(a, e, ids_of(a, o, r), full_blocks(a, e, known - 1))


@hot
def _admit(a, o, e, chunk, left):  # type: ignore[no-untyped-def]
    """Admit waiting requests in queue order; returns a request that can never fit, or -1."""
    r = a[e + E_WAIT_HEAD]
    while r >= 0 and left > 0 and a[e + E_RUNNING] < a[e + P_CAP]:
        q = row(a, o, r)
        following = a[q + F_NEXT]
        if a[e + E_CAPS_ON] != 0 and a[q + F_CAL] == 0:
            r = following
            continue
        known = a[q + F_PROMPT] + a[q + F_GEN]
        if blocks_for(a, e, known) > a[e + E_TOTAL]:
            a[e + E_LEFT] = left
            a[e + E_CHUNK] = chunk
            return r
        hits, idle = _hits(a, o, e, r, known)
        need = blocks_for(a, e, known) - hits + idle
        if a[e + E_RUNNING] > 0:
            need += a[e + E_WATERMARK]
        if need > a[e + E_FREE]:
            break
        computed = hits * a[e + E_BLOCK_SIZE]
        n = known - computed
        if 0 < chunk < n:
            n = chunk
        if a[e + E_CAPS_ON] != 0 and a[q + F_CAL] > 0:
            n = min(n, a[q + F_CAL])
        n = min(n, left)
        if a[e + E_CACHING] != 0:
            a[e + B_SLOTS_N] -= 1
            slot = a[a[e + B_SLOTS] + a[e + B_SLOTS_N]]
            a[q + F_PLACE] = (a[q + F_PLACE] & ENGINE_MASK) | (slot << SLOT_SHIFT)
            adopt_hits(a, e, table_of(a, e, q), ids_of(a, o, r), hits)
        _admit_one(a, o, e, r, q, computed, n)
        allocate(a, o, e, r, q, computed, n)
        left -= n
        r = following
    return np.int64(-1)


@hot
def schedule(a, o, e):  # type: ignore[no-untyped-def]
    """Choose what the next iteration runs, under the decision in the P_ fields.

    Returns -1, or a waiting request that can never fit: reject it, then call `admit_more`.
    """
    _clear_plan(a, e)
    chunk = a[e + P_CHUNK] if a[e + E_RUNNING] + a[e + E_WAITING] > 1 else np.int64(0)
    left = np.int64(-1)
    plain = a[e + E_CACHING] + a[e + E_PRIORITY] + a[e + E_CAPS_ON] + a[e + E_STALLED] == 0
    if plain and a[e + P_BUDGET] >= a[e + E_DECODES]:
        left = running_fast(a, o, e, chunk)
    if left < 0:
        left = running_walk(a, o, e, chunk)
        finish_walk(a, o, e)
    if a[e + P_PREEMPTED] > 0:
        return np.int64(-1)
    return _admit(a, o, e, chunk, left)


@kernel
def admit_more(a, o, e):  # type: ignore[no-untyped-def]
    """Go on with admission after a rejected request has left the queue."""
    return _admit(a, o, e, a[e + E_CHUNK], a[e + E_LEFT])


@hot
def step_time(a, e):  # type: ignore[no-untyped-def]
    """Duration of the planned iteration, nanoseconds."""
    prefill = np.int64(1) if a[e + P_PREFILLS] > 0 else np.int64(0)
    mixed = prefill if a[e + P_DECODES] > 0 else np.int64(0)
    return step_ns_kernel(
        a,
        e + E_CLOCK,
        a[e + E_STEPS],
        a[e + P_SEQUENCES],
        a[e + P_TOKENS],
        a[e + P_CONTEXT],
        a[e + P_PAIRS],
        a[e + P_PREFILL_CONTEXT],
        prefill,
        mixed,
    )
