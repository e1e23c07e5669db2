"""One engine iteration is planned at its start: `plan` of `synergy_gym.sim.plain.engine`, compiled.

Same decisions bit for bit. While the budget covers every decode and memory suffices, nobody is
asked but prefills (`_schedule_all`); otherwise the running list is walked as vLLM does
(`_schedule_in_order`). A request is named by its number `r`.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import inner
from synergy_gym.latency.clock import step_ns_kernel
from synergy_gym.sim.compiled.cache import (
    adopt,
    blocks_for,
    fill,
    full_blocks,
    lookup,
    release,
    take,
)
from synergy_gym.sim.compiled.decodes import (
    computed_tokens,
    decode_leave,
    generated_tokens,
    is_decode,
)
from synergy_gym.sim.compiled.layout import DECODE, PREFILL
from synergy_gym.sim.compiled.lists import run_append, run_unlink, wait_prepend, wait_unlink
from synergy_gym.sim.compiled.reach import (
    block_offset_of,
    clock_of,
    detail_of,
    phase_of,
    plan_of,
    planned_of,
    pool_of,
    request_of,
    seat_of,
)


@inner
def plan(world, engine):  # type: ignore[no-untyped-def]
    """Choose what the next iteration runs, under the decision in its plan.

    Returns -1, or a waiting request that can never fit: reject it, then call `admit`.
    """
    step = plan_of(engine)
    _clear(step)
    engine.skipped = engine.ahead = 0
    alone = engine.running + engine.waiting <= 1
    engine.chunk = 0 if alone else step.prefill_chunk
    left = np.int64(-1)
    if not engine.capped and engine.stalled == 0 and step.token_budget >= engine.decodes:
        left = _schedule_all(world, engine)
    if left < 0:
        left = _schedule_in_order(world, engine)
    engine.admission_left = left
    if step.preempted > 0:
        return np.int64(-1)
    return admit(world, engine)


@inner
def _clear(step):  # type: ignore[no-untyped-def]
    step.sequences = step.tokens = step.decodes = step.prefills = step.prefill_tokens = 0
    step.context = step.prefill_context = step.prefill_pairs = 0
    step.preempted = step.admitted = step.finished = 0


@inner
def _schedule_all(world, engine):  # type: ignore[no-untyped-def]
    """Schedule every decode and the prefills; -1 if that needs a walk, else the budget left.

    Exact because nobody is passed over: a truncated prefill must have no decode behind it, and all
    blocks must be free. Nothing is written before both are known.
    """
    pool, step = pool_of(engine), plan_of(engine)
    left = step.token_budget - engine.decodes
    need = phase_of(engine, engine.phase).decodes
    for i in range(engine.prefills):
        planned = planned_of(engine, i)
        request = request_of(world, planned.request)
        computed = request.computed_tokens
        want = request.prompt_tokens + request.generated_tokens - computed
        if 0 < engine.chunk < want:
            want = engine.chunk
        if want > left:
            if _decodes_follow(world, request):
                return np.int64(-1)
            want = left
        left -= want
        need += blocks_for(pool, computed + want) - blocks_for(pool, computed)
        planned.tokens = want
    if need > pool.free:
        return np.int64(-1)
    if not pool.caching:
        pool.free -= need
    elif _somebody_looks(world, engine):
        _grow_in_order(world, engine)
    else:
        _grow_all(world, engine, need)
    engine.ahead = 1
    step.decodes = step.sequences = step.tokens = engine.decodes
    step.context = engine.decode_context
    for i in range(engine.prefills):
        planned = planned_of(engine, i)
        if planned.tokens > 0:
            _compute(engine, request_of(world, planned.request), planned.tokens)
    return left


@inner
def _decodes_follow(world, request):  # type: ignore[no-untyped-def]
    r = request.next
    while r >= 0:
        request = request_of(world, r)
        if request.state == DECODE:
            return True
        r = request.next
    return False


@inner
def _grow_all(world, engine, need):  # type: ignore[no-untyped-def]
    """Give `need` blocks to all who are scheduled; nobody fills one that others may have filled.

    So the order in which they get them does not show. What decodes fill is noted by `ahead`.
    """
    pool = pool_of(engine)
    take(world, pool, need)
    for i in range(engine.prefills):
        planned = planned_of(engine, i)
        if planned.tokens > 0:
            computed = request_of(world, planned.request).computed_tokens
            _fill(world, engine, planned.request, computed, computed + planned.tokens)


@inner
def _somebody_looks(world, engine):  # type: ignore[no-untyped-def]
    """Whether somebody who is scheduled may fill a block with what others have."""
    size = pool_of(engine).block_size
    if phase_of(engine, (engine.phase + size - 1) % size).looking > 0:
        return True
    for i in range(engine.prefills):
        planned = planned_of(engine, i)
        if planned.tokens > 0 and detail_of(world, planned.request).looks:
            return True
    return False


@inner
def _grow_in_order(world, engine):  # type: ignore[no-untyped-def]
    """Give blocks to all who are scheduled, in order of the running list."""
    r, i = engine.first_running, 0
    while r >= 0:
        request, tokens = request_of(world, r), 1
        if request.state != DECODE:
            tokens = planned_of(engine, i).tokens
            i += 1
        if tokens > 0:
            _grow(world, engine, r, computed_tokens(engine, request), tokens)
        r = request.next


@inner
def _schedule_in_order(world, engine):  # type: ignore[no-untyped-def]
    """Schedule the running list in order, as vLLM does; returns the budget left."""
    pool = pool_of(engine)
    left = plan_of(engine).token_budget
    engine.prefills = 0
    r = engine.first_running
    while r >= 0 and left > 0:
        request = request_of(world, r)
        computed = computed_tokens(engine, request)
        tokens = _allowed(engine, request, computed, left)
        if tokens == 0:
            _pass_over(engine, request, r)
            r = request.next
            continue
        need = blocks_for(pool, computed + tokens) - blocks_for(pool, computed)
        while need > pool.free:
            victim = _pick_victim(world, engine)
            left += preempt(world, engine, victim)
            if victim == r:
                _pass_over_rest(world, engine, engine.first_running, True)
                return _served(world, engine, left)
        _schedule(world, engine, r, computed, tokens)
        left -= tokens
        r = request.next
    _pass_over_rest(world, engine, r, False)
    return _served(world, engine, left)


@inner
def _allowed(engine, request, computed, left):  # type: ignore[no-untyped-def]
    """Tokens that a running request may take: need, chunk cap, own cap, budget."""
    if request.skipped:
        return np.int64(0)
    if request.state == DECODE:
        return min(np.int64(1), left)
    tokens = request.prompt_tokens + request.generated_tokens - computed
    if 0 < engine.chunk < tokens:
        tokens = engine.chunk
    if engine.capped and request.token_cap >= 0:
        tokens = min(tokens, request.token_cap)
    return min(tokens, left)


@inner
def _pass_over(engine, request, r):  # type: ignore[no-untyped-def]
    """A running request that gets nothing in this iteration."""
    if request.state == DECODE:
        request.skipped = True
    else:
        _list_planned(engine, r, 0)


@inner
def _list_planned(engine, r, tokens):  # type: ignore[no-untyped-def]
    planned = planned_of(engine, engine.prefills)
    planned.request, planned.tokens = r, tokens
    engine.prefills += 1


@inner
def _pass_over_rest(world, engine, r, again):  # type: ignore[no-untyped-def]
    """Pass over those from `r` on whom the walk did not serve; `again`: some are noted already."""
    while r >= 0:
        request = request_of(world, r)
        if not request.ran and not (again and _is_listed(engine, r)):
            _pass_over(engine, request, r)
        r = request.next


@inner
def _is_listed(engine, r):  # type: ignore[no-untyped-def]
    for i in range(engine.prefills):
        if planned_of(engine, i).request == r:
            return True
    return False


@inner
def _served(world, engine, left):  # type: ignore[no-untyped-def]
    """The end of a walk: count who was passed over, clear its marks."""
    engine.skipped = engine.decodes - engine.skipped
    r = engine.first_running
    while r >= 0:
        request = request_of(world, r)
        request.ran = False
        r = request.next
    return left


@inner
def _pick_victim(world, engine):  # type: ignore[no-untyped-def]
    """Whom vLLM preempts: the last running request, or the least urgent one."""
    if not engine.priority:
        return engine.last_running
    best = engine.first_running
    r = request_of(world, best).next
    while r >= 0:
        mine, other = detail_of(world, r).priority, detail_of(world, best).priority
        request = request_of(world, r)
        later = request.arrival_ns > request_of(world, best).arrival_ns
        if mine > other or (mine == other and later):
            best = r
        r = request.next
    return best


@inner
def preempt(world, engine, r):  # type: ignore[no-untyped-def]
    """Recompute preemption: blocks and computed tokens are lost, the output is kept.

    Returns the tokens that it had been scheduled in the iteration being planned.
    """
    request, step = request_of(world, r), plan_of(engine)
    computed = computed_tokens(engine, request)
    given = np.int64(0)
    if request.state == DECODE:
        if request.ran:
            given = np.int64(1)
            engine.skipped -= 1
            _unschedule(step, True, computed, 1)
        generated = generated_tokens(engine, request)
        free(world, engine, r, computed + given)
        decode_leave(world, engine, r, True)
        request.generated_tokens = generated
    else:
        planned = forget_planned(engine, r)
        if request.ran and planned > 0:
            given = planned
            before = computed - given
            _unschedule(step, is_decode(request, before), before, given)
        engine.prefill_tokens -= request.prompt_tokens + request.generated_tokens - computed
        free(world, engine, r, computed)
    request.ran = request.skipped = False
    request.computed_tokens = 0
    detail_of(world, r).preemptions += 1
    step.preempted += 1
    run_unlink(world, engine, r)
    wait_prepend(world, engine, r)
    return given


@inner
def forget_planned(engine, r):  # type: ignore[no-untyped-def]
    """Drop `r` from the list of prefills; returns the tokens that it was scheduled."""
    for i in range(engine.prefills):
        if planned_of(engine, i).request == r:
            tokens = planned_of(engine, i).tokens
            for j in range(i, engine.prefills - 1):
                here, behind = planned_of(engine, j), planned_of(engine, j + 1)
                here.request, here.tokens = behind.request, behind.tokens
            engine.prefills -= 1
            return tokens
    return np.int64(0)


@inner
def _unschedule(step, decode, computed, tokens):  # type: ignore[no-untyped-def]
    """Take a victim that was already scheduled out of the step's features."""
    step.tokens -= tokens
    step.sequences -= 1
    if decode:
        step.decodes -= 1
        step.context -= computed
    else:
        step.prefills -= 1
        step.prefill_tokens -= tokens
        step.prefill_context -= computed
        step.prefill_pairs -= tokens * computed + tokens * (tokens + 1) // 2


@inner
def admit(world, engine):  # type: ignore[no-untyped-def]
    """Admit waiting requests in queue order; returns one that can never fit, or -1."""
    pool = pool_of(engine)
    r = engine.first_waiting
    while r >= 0 and engine.admission_left > 0 and engine.running < plan_of(engine).max_running:
        request = request_of(world, r)
        following = request.next
        if not (engine.capped and request.token_cap == 0):
            known = request.prompt_tokens + request.generated_tokens
            if blocks_for(pool, known) > pool.total:
                return r
            if not _admit_one(world, engine, r, known):
                break
        r = following
    return np.int64(-1)


@inner
def _admit_one(world, engine, r, known):  # type: ignore[no-untyped-def]
    pool, request, detail = pool_of(engine), request_of(world, r), detail_of(world, r)
    hits, idle, ids = np.int64(0), np.int64(0), np.int64(0)
    if pool.caching:
        # At least one token is recomputed: logits are needed even when all is cached.
        most, ids = full_blocks(pool, known - 1), block_offset_of(world, r).value
        hits, idle = lookup(world, engine, ids, most)
    need = blocks_for(pool, known) - hits + idle
    if engine.running > 0:
        need += engine.watermark_blocks
    if need > pool.free:
        return False
    computed = hits * pool.block_size
    if pool.caching:
        pool.num_seats -= 1
        detail.seat, detail.looks = seat_of(pool, pool.num_seats).value, True
        adopt(world, engine, detail.seat * pool.row_width, ids, hits)
    wait_unlink(world, engine, r)
    run_append(world, engine, r)
    request.state = PREFILL
    request.computed_tokens = computed
    if detail.scheduled_ns < 0:
        detail.scheduled_ns = plan_of(engine).start_ns
        detail.cached_tokens = computed + 1
    plan_of(engine).admitted += 1
    tokens = known - computed
    if 0 < engine.chunk < tokens:
        tokens = engine.chunk
    if engine.capped and request.token_cap > 0:
        tokens = min(tokens, request.token_cap)
    tokens = min(tokens, engine.admission_left)
    engine.prefill_tokens += known - computed
    _grow(world, engine, r, computed, tokens)
    _compute(engine, request, tokens)
    _list_planned(engine, r, tokens)
    engine.admission_left -= tokens
    return True


@inner
def _schedule(world, engine, r, computed, tokens):  # type: ignore[no-untyped-def]
    """Give a running request of the walk its blocks and its tokens."""
    request, step = request_of(world, r), plan_of(engine)
    _grow(world, engine, r, computed, tokens)
    request.ran = True
    if request.state != DECODE:
        _compute(engine, request, tokens)
        _list_planned(engine, r, tokens)
        return
    engine.skipped += 1  # counts the served ones until the walk ends
    step.decodes += 1
    step.sequences += 1
    step.tokens += 1
    step.context += computed


@inner
def _grow(world, engine, r, computed, tokens):  # type: ignore[no-untyped-def]
    """Give a request the blocks for `tokens` more tokens."""
    pool, after = pool_of(engine), computed + tokens
    if not pool.caching:
        pool.free -= blocks_for(pool, after) - blocks_for(pool, computed)
        return
    take(world, pool, blocks_for(pool, after) - blocks_for(pool, computed))
    _fill(world, engine, r, computed, after)


@inner
def _fill(world, engine, r, computed, after):  # type: ignore[no-untyped-def]
    """Note which blocks of a request are full when it has `after` tokens."""
    pool = pool_of(engine)
    full, wanted = full_blocks(pool, computed), full_blocks(pool, after)
    if full < wanted:
        fill(world, engine, r, full, wanted)


@inner
def _compute(engine, request, tokens):  # type: ignore[no-untyped-def]
    """Enter the chunk of a request that is no lazy decode into the step, and into its progress."""
    step, computed = plan_of(engine), request.computed_tokens
    step.tokens += tokens
    step.sequences += 1
    if is_decode(request, computed):
        step.decodes += 1
        step.context += computed
    else:
        step.prefills += 1
        step.prefill_tokens += tokens
        step.prefill_context += computed
        step.prefill_pairs += tokens * computed + tokens * (tokens + 1) // 2
    request.computed_tokens = computed + tokens
    engine.prefill_tokens -= tokens


@inner
def free(world, engine, r, tokens):  # type: ignore[no-untyped-def]
    """Give back the KV blocks of a request that holds `tokens` tokens."""
    pool = pool_of(engine)
    count = blocks_for(pool, tokens)
    if not pool.caching:
        pool.free += count
        return
    seat = detail_of(world, r).seat
    release(pool, seat * pool.row_width, full_blocks(pool, tokens), count)
    seat_of(pool, pool.num_seats).value = seat
    pool.num_seats += 1


@inner
def duration_ns(engine):  # type: ignore[no-untyped-def]
    """How long the planned iteration takes (`latency.clock`)."""
    step = plan_of(engine)
    prefill = np.int64(1) if step.prefills > 0 else np.int64(0)
    mixed = prefill if step.decodes > 0 else np.int64(0)
    return step_ns_kernel(
        clock_of(engine),
        0,
        engine.steps,
        step.sequences,
        step.tokens,
        step.context,
        step.prefill_pairs,
        step.prefill_context,
        prefill,
        mixed,
    )
