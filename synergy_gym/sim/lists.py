"""Running list, waiting queue, decode bookkeeping: the engine's data structures, compiled.

A decode is lazy: its computed tokens are `F_OFF + E_K`, where `E_K` counts the engine's
non-empty iterations, so an iteration that serves every decode touches none of them. Two
side structures make that exact: `E_PHASE` counts decodes by `F_OFF` modulo the block size
(who needs a new block when), and a calendar of linked buckets finds who finishes at which
`E_K`. Engines with prefix caching walk their list instead and need neither.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import hot, kernel
from synergy_gym.sim.layout import (
    CLASS_MASK,
    DECODE,
    E_BLOCK_SIZE,
    E_CACHING,
    E_CAL,
    E_CAL_MASK,
    E_CONTEXT,
    E_DECODES,
    E_K,
    E_LAST_END,
    E_PHASE,
    E_PRE,
    E_PREFILLS,
    E_PRIORITY,
    E_RUN_HEAD,
    E_RUN_TAIL,
    E_RUNNING,
    E_SCORED_DECODES,
    E_STALLED,
    E_WAIT_HEAD,
    E_WAIT_TAIL,
    E_WAIT_TOKENS,
    E_WAITING,
    F_ARRIVAL,
    F_CAL,
    F_GEN,
    F_LAST,
    F_META,
    F_NEXT,
    F_OFF,
    F_OUTPUT,
    F_PREV,
    F_PROMPT,
    F_STATE,
    H_REQ,
    H_SLO,
    ORDER_QUEUE,
    ORDER_SHORTEST,
    PRIORITY_SHIFT,
    R_ORDER,
    REQUEST_SIZE,
    SCORED,
    STALLED,
    STATE_MASK,
    WAITING,
)


@hot
def row(a, o, r):  # type: ignore[no-untyped-def]
    """Position of request `r`'s row."""
    return a[o + H_REQ] + r * REQUEST_SIZE


@kernel
def computed_tokens(a, e, q):  # type: ignore[no-untyped-def]
    """Tokens of the request at row `q` that are in the KV cache."""
    if a[q + F_STATE] & STATE_MASK == DECODE:
        return a[q + F_OFF] + a[e + E_K]
    return a[q + F_OFF]


@kernel
def generated_tokens(a, e, q):  # type: ignore[no-untyped-def]
    """Output tokens that the request at row `q` has emitted."""
    if a[q + F_STATE] & STATE_MASK == DECODE:
        return a[q + F_OFF] + a[e + E_K] - a[q + F_PROMPT] + 1
    return a[q + F_GEN]


@hot
def num_decodes(a, o, e):  # type: ignore[no-untyped-def]
    """Running requests that miss one token after their first output token.

    A re-admitted request can be one before it is a lazy decode again.
    """
    n = a[e + E_DECODES]
    for i in range(a[e + E_PREFILLS]):
        q = row(a, o, a[a[e + E_PRE] + 2 * i])
        if a[q + F_GEN] > 0 and a[q + F_PROMPT] + a[q + F_GEN] - a[q + F_OFF] == 1:
            n += 1
    return n


@kernel
def run_append(a, o, e, r):  # type: ignore[no-untyped-def]
    """Put `r` at the end of the running list."""
    q = row(a, o, r)
    tail = a[e + E_RUN_TAIL]
    a[q + F_PREV] = tail
    a[q + F_NEXT] = -1
    if tail < 0:
        a[e + E_RUN_HEAD] = r
    else:
        a[row(a, o, tail) + F_NEXT] = r
    a[e + E_RUN_TAIL] = r
    a[e + E_RUNNING] += 1


@hot
def _unlink(a, o, q, head, tail):  # type: ignore[no-untyped-def]
    before = a[q + F_PREV]
    after = a[q + F_NEXT]
    if before < 0:
        a[head] = after
    else:
        a[row(a, o, before) + F_NEXT] = after
    if after < 0:
        a[tail] = before
    else:
        a[row(a, o, after) + F_PREV] = before


@kernel
def run_unlink(a, o, e, q):  # type: ignore[no-untyped-def]
    """Take the request at row `q` out of the running list."""
    _unlink(a, o, q, e + E_RUN_HEAD, e + E_RUN_TAIL)
    a[e + E_RUNNING] -= 1


@kernel
def _insert_before(a, o, e, r, successor):  # type: ignore[no-untyped-def]
    """Link `r` into the waiting queue before `successor` (-1: at the end)."""
    q = row(a, o, r)
    before = a[e + E_WAIT_TAIL]
    if successor >= 0:
        before = a[row(a, o, successor) + F_PREV]
        a[row(a, o, successor) + F_PREV] = r
    else:
        a[e + E_WAIT_TAIL] = r
    a[q + F_PREV] = before
    a[q + F_NEXT] = successor
    if before < 0:
        a[e + E_WAIT_HEAD] = r
    else:
        a[row(a, o, before) + F_NEXT] = r


@kernel
def _order_key(a, o, e, q):  # type: ignore[no-untyped-def]
    if a[e + E_PRIORITY] != 0:
        return a[q + F_META] >> PRIORITY_SHIFT
    if a[e + R_ORDER] == ORDER_SHORTEST:
        return a[q + F_PROMPT] + a[q + F_GEN]
    slo = a[a[o + H_SLO] + 3 * (a[q + F_META] & CLASS_MASK)]
    return a[q + F_ARRIVAL] + (slo if slo >= 0 else np.int64(1 << 61))


@kernel
def _before(a, o, e, q, other):  # type: ignore[no-untyped-def]
    """Whether row `q` belongs strictly before row `other` in a sorted queue."""
    x = _order_key(a, o, e, q)
    y = _order_key(a, o, e, other)
    if a[e + E_PRIORITY] != 0 and x == y:
        x = a[q + F_ARRIVAL]
        y = a[other + F_ARRIVAL]
        if x == y:
            return q < other
    return x < y


@kernel
def wait_append(a, o, e, r):  # type: ignore[no-untyped-def]
    """Put a newly arrived request into the waiting queue."""
    q = row(a, o, r)
    successor = np.int64(-1)
    if a[e + E_PRIORITY] != 0 or a[e + R_ORDER] != ORDER_QUEUE:
        last = a[e + E_WAIT_TAIL]
        while last >= 0 and _before(a, o, e, q, row(a, o, last)):
            successor = last
            last = a[row(a, o, last) + F_PREV]
    _insert_before(a, o, e, r, successor)
    _enter_waiting(a, e, q)


@kernel
def wait_prepend(a, o, e, r):  # type: ignore[no-untyped-def]
    """Put a preempted request back: at the head, or where a sorted queue wants it."""
    q = row(a, o, r)
    successor = a[e + E_WAIT_HEAD]
    if a[e + E_PRIORITY] != 0 or a[e + R_ORDER] != ORDER_QUEUE:
        while successor >= 0 and _before(a, o, e, row(a, o, successor), q):
            successor = a[row(a, o, successor) + F_NEXT]
    _insert_before(a, o, e, r, successor)
    _enter_waiting(a, e, q)


@hot
def _enter_waiting(a, e, q):  # type: ignore[no-untyped-def]
    a[q + F_STATE] = (a[q + F_STATE] & ~STATE_MASK) | WAITING
    a[e + E_WAITING] += 1
    a[e + E_WAIT_TOKENS] += a[q + F_PROMPT] + a[q + F_GEN]


@kernel
def wait_unlink(a, o, e, q):  # type: ignore[no-untyped-def]
    """Take the request at row `q` out of the waiting queue."""
    _unlink(a, o, q, e + E_WAIT_HEAD, e + E_WAIT_TAIL)
    a[e + E_WAITING] -= 1
    a[e + E_WAIT_TOKENS] -= a[q + F_PROMPT] + a[q + F_GEN]


@hot
def calendar_add(a, e, q, r):  # type: ignore[no-untyped-def]
    """File a decode under the iteration count at which it emits its last token."""
    last = a[q + F_PROMPT] + a[q + F_OUTPUT] - 1 - a[q + F_OFF]
    bucket = a[e + E_CAL] + (last & a[e + E_CAL_MASK])
    a[q + F_CAL] = a[bucket]
    a[bucket] = r


@kernel
def _calendar_unlink(a, o, e, r):  # type: ignore[no-untyped-def]
    """Drop `r` from its bucket; decodes that were passed over lie in an earlier one."""
    q = row(a, o, r)
    last = a[q + F_PROMPT] + a[q + F_OUTPUT] - 1 - a[q + F_OFF]
    i = last & a[e + E_CAL_MASK]
    while True:
        place = a[e + E_CAL] + i
        while a[place] >= 0 and a[place] != r:
            place = row(a, o, a[place]) + F_CAL
        if a[place] == r:
            a[place] = a[q + F_CAL]
            return
        i = (i - 1) & a[e + E_CAL_MASK]


@kernel
def decode_enter(a, e, q, r, computed):  # type: ignore[no-untyped-def]
    """A prefill has emitted a token: it decodes from now on."""
    a[q + F_OFF] = computed - a[e + E_K]
    a[q + F_STATE] = (a[q + F_STATE] & ~STATE_MASK) | DECODE
    a[e + E_DECODES] += 1
    a[e + E_CONTEXT] += computed
    if a[q + F_META] & SCORED != 0:
        a[e + E_SCORED_DECODES] += 1
    if a[e + E_CACHING] == 0:
        a[a[e + E_PHASE] + a[q + F_OFF] % a[e + E_BLOCK_SIZE]] += 1
        calendar_add(a, e, q, r)


@kernel
def decode_leave(a, o, e, r, unlink):  # type: ignore[no-untyped-def]
    """A decode ends or is preempted; the caller sets its new state.

    `unlink` is 0 when the caller has already taken it out of its calendar bucket.
    """
    q = row(a, o, r)
    a[e + E_DECODES] -= 1
    a[e + E_CONTEXT] -= a[q + F_OFF] + a[e + E_K]
    if a[q + F_META] & SCORED != 0:
        a[e + E_SCORED_DECODES] -= 1
    if a[q + F_STATE] & STALLED != 0:
        a[q + F_STATE] &= ~STALLED
        a[e + E_STALLED] -= 1
    else:
        a[q + F_LAST] = a[e + E_LAST_END]
    if a[e + E_CACHING] == 0:
        a[a[e + E_PHASE] + a[q + F_OFF] % a[e + E_BLOCK_SIZE]] -= 1
        if unlink != 0:
            _calendar_unlink(a, o, e, r)


@kernel
def decode_postpone(a, e, q):  # type: ignore[no-untyped-def]
    """A decode was passed over in a non-empty iteration: it stays where it was."""
    if a[e + E_CACHING] == 0:
        phase = a[e + E_PHASE]
        a[phase + a[q + F_OFF] % a[e + E_BLOCK_SIZE]] -= 1
        a[phase + (a[q + F_OFF] - 1) % a[e + E_BLOCK_SIZE]] += 1
    a[q + F_OFF] -= 1


@kernel
def relink(a, o, requests, head, tail):  # type: ignore[no-untyped-def]
    """Link `requests` into one list in their order; its ends stand at `a[head]` and `a[tail]`."""
    before = np.int64(-1)
    for i in range(len(requests)):
        q = row(a, o, requests[i])
        a[q + F_PREV] = before
        if before >= 0:
            a[row(a, o, before) + F_NEXT] = requests[i]
        before = requests[i]
    a[row(a, o, before) + F_NEXT] = -1
    a[head] = requests[0]
    a[tail] = before
