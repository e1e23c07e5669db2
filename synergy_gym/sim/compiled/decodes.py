"""Decodes are lazy: an iteration that serves every decode touches none of them.

A decode's computed tokens are `computed_tokens + busy_steps`, where the engine counts its non-empty
iterations. What an iteration must do for single decodes is found without a walk:

- who needs a KV block, or fills one: decodes are counted by phase, which is `computed_tokens`
  modulo the block size and stays as it is. With prefix caching each phase also counts those who
  may fill a block with what others have: then the running list is walked after all, because the
  order in which blocks are filled is vLLM's;
- who ends: buckets of a calendar list decodes by the iteration that emits their last token.
"""

from __future__ import annotations

from synergy_gym.jit import inner
from synergy_gym.sim.compiled.layout import DECODE
from synergy_gym.sim.compiled.reach import (
    bucket_of,
    detail_of,
    phase_of,
    planned_of,
    pool_of,
    request_of,
)


@inner
def computed_tokens(engine, request):  # type: ignore[no-untyped-def]
    """Tokens of a request that are in the KV cache."""
    if request.state == DECODE:
        return request.computed_tokens + engine.busy_steps
    return request.computed_tokens


@inner
def generated_tokens(engine, request):  # type: ignore[no-untyped-def]
    """Output tokens that a request has emitted."""
    if request.state == DECODE:
        return request.computed_tokens + engine.busy_steps - request.prompt_tokens + 1
    return request.generated_tokens


@inner
def is_decode(request, computed):  # type: ignore[no-untyped-def]
    """Whether a request with so many computed tokens misses its last emitted one alone.

    A re-admitted request can be one before it is a lazy decode again.
    """
    emitted = request.generated_tokens
    return emitted > 0 and request.prompt_tokens + emitted - computed == 1


@inner
def num_decodes(world, engine):  # type: ignore[no-untyped-def]
    """Running requests that miss one token after their first output token."""
    count = engine.decodes
    for i in range(engine.prefills):
        request = request_of(world, planned_of(engine, i).request)
        if is_decode(request, request.computed_tokens):
            count += 1
    return count


@inner
def decode_enter(world, engine, r):  # type: ignore[no-untyped-def]
    """A prefill has emitted a token: it decodes from now on."""
    request = request_of(world, r)
    engine.decodes += 1
    engine.decode_context += request.computed_tokens
    if request.scored:
        engine.scored_decodes += 1
    request.computed_tokens -= engine.busy_steps
    request.state = DECODE
    _phase_add(world, engine, r, 1)
    bucket_add(engine, request, r)


@inner
def decode_leave(world, engine, r, filed):  # type: ignore[no-untyped-def]
    """A decode ends or is preempted; the caller sets its new state.

    `filed` is false when the caller has already taken it out of its bucket.
    """
    request = request_of(world, r)
    engine.decodes -= 1
    engine.decode_context -= request.computed_tokens + engine.busy_steps
    if request.scored:
        engine.scored_decodes -= 1
    if request.stalled:
        request.stalled = False
        engine.stalled -= 1
    else:
        request.last_token_ns = engine.last_end_ns
    _phase_add(world, engine, r, -1)
    if filed:
        _bucket_remove(world, engine, r)


@inner
def decode_postpone(world, engine, r):  # type: ignore[no-untyped-def]
    """A decode was passed over in a non-empty iteration: it stays where it was."""
    _phase_add(world, engine, r, -1)
    request_of(world, r).computed_tokens -= 1
    _phase_add(world, engine, r, 1)


@inner
def phase_of_decode(engine, request):  # type: ignore[no-untyped-def]
    """Where a decode is counted."""
    return phase_of(engine, request.computed_tokens % pool_of(engine).block_size)


@inner
def _phase_add(world, engine, r, count):  # type: ignore[no-untyped-def]
    """Count a decode in its phase, or (-1) no longer."""
    phase = phase_of_decode(engine, request_of(world, r))
    phase.decodes += count
    if pool_of(engine).caching and detail_of(world, r).looks:
        phase.looking += count


@inner
def last_step(request):  # type: ignore[no-untyped-def]
    """The count of busy steps at which a decode emits its last token, unless it is passed over."""
    return request.prompt_tokens + request.output_tokens - 1 - request.computed_tokens


@inner
def bucket_add(engine, request, r):  # type: ignore[no-untyped-def]
    """File a decode under the iteration that emits its last token."""
    bucket = bucket_of(engine, last_step(request) & engine.bucket_mask)
    request.token_cap = bucket.value
    bucket.value = r


@inner
def _bucket_remove(world, engine, r):  # type: ignore[no-untyped-def]
    """Drop `r` from its bucket; decodes that were passed over lie in an earlier one."""
    request = request_of(world, r)
    i = last_step(request) & engine.bucket_mask
    while not _removed_from(world, bucket_of(engine, i), request, r):
        i = (i - 1) & engine.bucket_mask


@inner
def _removed_from(world, bucket, request, r):  # type: ignore[no-untyped-def]
    if bucket.value == r:
        bucket.value = request.token_cap
        return True
    other = bucket.value
    while other >= 0:
        before = request_of(world, other)
        if before.token_cap == r:
            before.token_cap = request.token_cap
            return True
        other = before.token_cap
    return False


@inner
def due_decodes(world, engine):  # type: ignore[no-untyped-def]
    """Take those who emit their last token now out of their bucket.

    Returns the first of a list through REQUEST.token_cap, or -1; in order of the running list with
    prefix caching, where the order in which blocks are freed matters.
    """
    bucket = bucket_of(engine, engine.busy_steps & engine.bucket_mask)
    r, due = bucket.value, -1
    bucket.value = -1
    while r >= 0:
        request = request_of(world, r)
        following = request.token_cap
        if last_step(request) != engine.busy_steps:
            bucket_add(engine, request, r)
        elif pool_of(engine).caching:
            due = _inserted_by_rank(world, due, r)
        else:
            request.token_cap = due
            due = r
        r = following
    return due


@inner
def _inserted_by_rank(world, first, r):  # type: ignore[no-untyped-def]
    rank, before, behind = detail_of(world, r).rank, -1, first
    while behind >= 0 and detail_of(world, behind).rank < rank:
        before = behind
        behind = request_of(world, behind).token_cap
    request_of(world, r).token_cap = behind
    if before < 0:
        return r
    request_of(world, before).token_cap = r
    return first
