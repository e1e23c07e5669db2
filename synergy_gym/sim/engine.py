"""One engine iteration, compiled: plan at its start, commit at its end.

Same semantics as `reference.py`, bit for bit. While the budget covers every decode and memory
suffices, planning costs O(1) in the number of decodes; otherwise the running list is walked.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import hot, kernel
from synergy_gym.sim.layout import (
    B_SLOTS,
    B_SLOTS_N,
    DECODE,
    E_BLOCK_SIZE,
    E_CACHING,
    E_CAPS_ON,
    E_CONTEXT,
    E_DEBT,
    E_DECODES,
    E_FREE,
    E_J,
    E_PHASE,
    E_PRE,
    E_PREFILL_TOKENS,
    E_PREFILLS,
    E_PRIORITY,
    E_RUN_HEAD,
    E_RUN_TAIL,
    E_SKIPPED,
    F_ARRIVAL,
    F_CAL,
    F_COUNTS,
    F_GEN,
    F_META,
    F_NEXT,
    F_OFF,
    F_PLACE,
    F_PROMPT,
    F_STATE,
    H_BLOCK_IDS,
    H_BLOCK_OFFSETS,
    P_BUDGET,
    P_CONTEXT,
    P_DECODES,
    P_PAIRS,
    P_PREEMPTED,
    P_PREFILL_CONTEXT,
    P_PREFILL_TOKENS,
    P_PREFILLS,
    P_SEQUENCES,
    P_TOKENS,
    PREEMPTION_SHIFT,
    PRIORITY_SHIFT,
    RAN,
    SKIPPED,
    SLOT_SHIFT,
    STATE_MASK,
)
from synergy_gym.sim.lists import (
    computed_tokens,
    decode_leave,
    generated_tokens,
    row,
    run_unlink,
    wait_prepend,
)
from synergy_gym.sim.prefix_cache import (
    blocks_for,
    full_blocks,
    grow,
    release,
    table_of,
    take_block,
)


@kernel
def ids_of(a, o, r):  # type: ignore[no-untyped-def]
    """Position of request `r`'s block ids."""
    return a[o + H_BLOCK_IDS] + a[a[o + H_BLOCK_OFFSETS] + r]


@kernel
def free_request(a, e, q, tokens):  # type: ignore[no-untyped-def]
    """Give back the KV blocks of a request that holds `tokens` tokens."""
    count = blocks_for(a, e, tokens)
    if a[e + E_CACHING] == 0:
        a[e + E_FREE] += count
        return
    release(a, e, table_of(a, e, q), count)
    a[a[e + B_SLOTS] + a[e + B_SLOTS_N]] = a[q + F_PLACE] >> SLOT_SHIFT
    a[e + B_SLOTS_N] += 1


@kernel
def pay_debt(a, e):  # type: ignore[no-untyped-def]
    """Surrender blocks that a `lose_blocks` event took, as far as they are free."""
    while a[e + E_DEBT] > 0 and a[e + E_FREE] > 0:
        if a[e + E_CACHING] == 0:
            a[e + E_FREE] -= 1
        else:
            take_block(a, e)
        a[e + E_DEBT] -= 1


@hot
def count_chunk(a, e, q, computed, tokens):  # type: ignore[no-untyped-def]
    """Enter a scheduled prefill-state request into the features of the step."""
    a[e + P_TOKENS] += tokens
    a[e + P_SEQUENCES] += 1
    if a[q + F_GEN] > 0 and a[q + F_PROMPT] + a[q + F_GEN] - computed == 1:
        a[e + P_DECODES] += 1
        a[e + P_CONTEXT] += computed
    else:
        a[e + P_PREFILLS] += 1
        a[e + P_PREFILL_TOKENS] += tokens
        a[e + P_PREFILL_CONTEXT] += computed
        a[e + P_PAIRS] += tokens * computed + tokens * (tokens + 1) // 2


@kernel
def _decodes_follow(a, o, r):  # type: ignore[no-untyped-def]
    r = a[row(a, o, r) + F_NEXT]
    while r >= 0:
        q = row(a, o, r)
        if a[q + F_STATE] & STATE_MASK == DECODE:
            return True
        r = a[q + F_NEXT]
    return False


@hot
def running_fast(a, o, e, chunk):  # type: ignore[no-untyped-def]
    """Schedule all decodes and the prefills; -1 if that needs the walk, else budget left.

    Exact because no request is passed over: a truncated prefill must have no decode behind
    it, and all blocks must be free. Nothing is written before both are known.
    """
    left = a[e + P_BUDGET] - a[e + E_DECODES]
    need = a[a[e + E_PHASE] + a[e + E_J]]
    pre = a[e + E_PRE]
    for i in range(a[e + E_PREFILLS]):
        r = a[pre + 2 * i]
        q = row(a, o, r)
        want = a[q + F_PROMPT] + a[q + F_GEN] - a[q + F_OFF]
        if 0 < chunk < want:
            want = chunk
        if want > left:
            if _decodes_follow(a, o, r):
                return np.int64(-1)
            want = left
        left -= want
        need += blocks_for(a, e, a[q + F_OFF] + want) - blocks_for(a, e, a[q + F_OFF])
        a[pre + 2 * i + 1] = want
    if need > a[e + E_FREE]:
        return np.int64(-1)
    a[e + E_FREE] -= need
    a[e + P_DECODES] = a[e + E_DECODES]
    a[e + P_SEQUENCES] = a[e + E_DECODES]
    a[e + P_TOKENS] = a[e + E_DECODES]
    a[e + P_CONTEXT] = a[e + E_CONTEXT]
    for i in range(a[e + E_PREFILLS]):
        n = a[pre + 2 * i + 1]
        if n > 0:
            q = row(a, o, a[pre + 2 * i])
            count_chunk(a, e, q, a[q + F_OFF], n)
            a[q + F_OFF] += n
            a[e + E_PREFILL_TOKENS] -= n
    return left


@kernel
def _victim(a, o, e):  # type: ignore[no-untyped-def]
    """Whom vLLM preempts: the last running request, or the least urgent one."""
    if a[e + E_PRIORITY] == 0:
        return a[e + E_RUN_TAIL]
    best = a[e + E_RUN_HEAD]
    r = a[row(a, o, best) + F_NEXT]
    while r >= 0:
        q = row(a, o, r)
        b = row(a, o, best)
        mine = a[q + F_META] >> PRIORITY_SHIFT
        other = a[b + F_META] >> PRIORITY_SHIFT
        if mine > other or (mine == other and a[q + F_ARRIVAL] > a[b + F_ARRIVAL]):
            best = r
        r = a[q + F_NEXT]
    return best


@kernel
def forget_prefill(a, o, e, r):  # type: ignore[no-untyped-def]
    """Drop `r` from the prefill array; returns the tokens it was scheduled."""
    pre = a[e + E_PRE]
    count = a[e + E_PREFILLS]
    for i in range(count):
        if a[pre + 2 * i] == r:
            n = a[pre + 2 * i + 1]
            for j in range(i, count - 1):
                a[pre + 2 * j] = a[pre + 2 * j + 2]
                a[pre + 2 * j + 1] = a[pre + 2 * j + 3]
            a[e + E_PREFILLS] = count - 1
            return n
    return np.int64(0)


@kernel
def _unschedule(a, e, q, computed, tokens):  # type: ignore[no-untyped-def]
    """Take a victim that was already scheduled out of the step's features."""
    a[e + P_TOKENS] -= tokens
    a[e + P_SEQUENCES] -= 1
    decode = a[q + F_STATE] & STATE_MASK == DECODE
    if decode or (a[q + F_GEN] > 0 and a[q + F_PROMPT] + a[q + F_GEN] - computed == 1):
        a[e + P_DECODES] -= 1
        a[e + P_CONTEXT] -= computed
    else:
        a[e + P_PREFILLS] -= 1
        a[e + P_PREFILL_TOKENS] -= tokens
        a[e + P_PREFILL_CONTEXT] -= computed
        a[e + P_PAIRS] -= tokens * computed + tokens * (tokens + 1) // 2


@kernel
def preempt(a, o, e, r):  # type: ignore[no-untyped-def]
    """Recompute preemption: blocks and computed tokens are lost, the output is kept.

    Returns the tokens that it had been scheduled in the iteration being planned.
    """
    q = row(a, o, r)
    state = a[q + F_STATE]
    given = np.int64(0)
    computed = computed_tokens(a, e, q)
    if state & STATE_MASK == DECODE:
        if state & RAN != 0:
            given = np.int64(1)
            a[e + E_SKIPPED] -= 1
            _unschedule(a, e, q, computed, 1)
        generated = generated_tokens(a, e, q)
        free_request(a, e, q, computed + given)
        decode_leave(a, o, e, r, 1)
        a[q + F_GEN] = generated
    else:
        given = forget_prefill(a, o, e, r)
        if state & RAN == 0:
            given = np.int64(0)
        if given > 0:
            _unschedule(a, e, q, computed - given, given)
        a[e + E_PREFILL_TOKENS] -= a[q + F_PROMPT] + a[q + F_GEN] - computed
        free_request(a, e, q, computed)
    a[q + F_STATE] &= ~(RAN | SKIPPED)
    a[q + F_OFF] = 0
    a[q + F_COUNTS] += np.int64(1) << PREEMPTION_SHIFT
    a[e + P_PREEMPTED] += 1
    run_unlink(a, o, e, q)
    wait_prepend(a, o, e, r)
    return given


@hot
def _at_edge(a, e, computed):  # type: ignore[no-untyped-def]
    """Whether one more token starts or fills a block."""
    size = a[e + E_BLOCK_SIZE]
    inside = computed - full_blocks(a, e, computed) * size
    return inside == 0 or inside == size - 1


@hot
def allocate(a, o, e, r, q, computed, tokens):  # type: ignore[no-untyped-def]
    """Give request `r` (row `q`) the blocks for `tokens` more tokens."""
    if a[e + E_CACHING] == 0:
        a[e + E_FREE] -= blocks_for(a, e, computed + tokens) - blocks_for(a, e, computed)
    elif tokens > 1 or _at_edge(a, e, computed):
        grow(a, e, table_of(a, e, q), ids_of(a, o, r), computed, computed + tokens)


@hot
def _wanted(a, e, q, computed, chunk, left):  # type: ignore[no-untyped-def]
    """Tokens that a running request may take: need, chunk cap, own cap, budget."""
    if a[q + F_STATE] & STATE_MASK == DECODE:
        return min(np.int64(1), left)
    n = a[q + F_PROMPT] + a[q + F_GEN] - computed
    if 0 < chunk < n:
        n = chunk
    if a[e + E_CAPS_ON] != 0 and a[q + F_CAL] >= 0:
        n = min(n, a[q + F_CAL])
    return min(n, left)


@hot
def _pass_over(a, e, q, r):  # type: ignore[no-untyped-def]
    """A running request that gets nothing in this iteration."""
    if a[q + F_STATE] & STATE_MASK == DECODE:
        a[q + F_STATE] |= SKIPPED
    else:
        i = a[e + E_PRE] + 2 * a[e + E_PREFILLS]
        a[i] = r
        a[i + 1] = 0
        a[e + E_PREFILLS] += 1


@hot
def _schedule(a, o, e, r, q, computed, n):  # type: ignore[no-untyped-def]
    allocate(a, o, e, r, q, computed, n)
    a[q + F_STATE] |= RAN
    if a[q + F_STATE] & STATE_MASK == DECODE:
        a[e + E_SKIPPED] += 1
        a[e + P_DECODES] += 1
        a[e + P_SEQUENCES] += 1
        a[e + P_TOKENS] += 1
        a[e + P_CONTEXT] += computed
        return
    count_chunk(a, e, q, computed, n)
    a[q + F_OFF] += n
    a[e + E_PREFILL_TOKENS] -= n
    i = a[e + E_PRE] + 2 * a[e + E_PREFILLS]
    a[i] = r
    a[i + 1] = n
    a[e + E_PREFILLS] += 1


@kernel
def running_walk(a, o, e, chunk):  # type: ignore[no-untyped-def]
    """Schedule the running list in order, as vLLM does; returns the budget left."""
    left = a[e + P_BUDGET]
    a[e + E_PREFILLS] = 0
    r = a[e + E_RUN_HEAD]
    while r >= 0 and left > 0:
        q = row(a, o, r)
        computed = computed_tokens(a, e, q)
        skip = a[q + F_STATE] & SKIPPED != 0
        n = np.int64(0) if skip else _wanted(a, e, q, computed, chunk, left)
        if n == 0:
            _pass_over(a, e, q, r)
            r = a[q + F_NEXT]
            continue
        need = blocks_for(a, e, computed + n) - blocks_for(a, e, computed)
        fits = True
        while need > a[e + E_FREE]:
            victim = _victim(a, o, e)
            left += preempt(a, o, e, victim)
            if victim == r:
                fits = False
                break
        if not fits:
            r = np.int64(-2)
            break
        _schedule(a, o, e, r, q, computed, n)
        left -= n
        r = a[q + F_NEXT]
    _pass_over_rest(a, o, e, r)
    return left


@kernel
def _pass_over_rest(a, o, e, r):  # type: ignore[no-untyped-def]
    """Note everybody whom the walk did not reach (-2: it ended at a preempted request)."""
    fresh = r != -2
    if not fresh:
        r = a[e + E_RUN_HEAD]
    while r >= 0:
        q = row(a, o, r)
        if a[q + F_STATE] & RAN == 0 and (fresh or not _is_listed(a, e, r)):
            _pass_over(a, e, q, r)
        r = a[q + F_NEXT]


@kernel
def _is_listed(a, e, r):  # type: ignore[no-untyped-def]
    for i in range(a[e + E_PREFILLS]):
        if a[a[e + E_PRE] + 2 * i] == r:
            return True
    return False


@kernel
def finish_walk(a, o, e):  # type: ignore[no-untyped-def]
    """Turn the count of served lazy decodes into the count of skipped ones; clear marks."""
    a[e + E_SKIPPED] = a[e + E_DECODES] - a[e + E_SKIPPED]
    if a[e + E_CACHING] != 0:
        return  # the walk that ends the iteration clears them
    r = a[e + E_RUN_HEAD]
    while r >= 0:
        q = row(a, o, r)
        a[q + F_STATE] &= ~RAN
        r = a[q + F_NEXT]
