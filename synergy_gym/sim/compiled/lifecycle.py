"""Requests arriving and leaving: queues of the world, retries, closed loops, compiled."""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import inner
from synergy_gym.sim.compiled.decodes import computed_tokens, decode_leave, generated_tokens
from synergy_gym.sim.compiled.engine import forget_planned, free
from synergy_gym.sim.compiled.layout import DECODE, INF, LEFT, PENDING, PREFILL, WAITING
from synergy_gym.sim.compiled.lists import run_unlink, wait_append, wait_unlink
from synergy_gym.sim.compiled.reach import (
    completion_of,
    detail_of,
    engine_of,
    family_of,
    gap_of,
    objective_of,
    pool_of,
    request_of,
    return_of,
    row_of,
    session_of,
    telemetry_of,
    timeout_of,
    true_output_of,
)
from synergy_gym.sim.compiled.telemetry import refresh_row, settle_heartbeats

FINISHED, REJECTED, ABORTED, FAILED, UNFINISHED = 1, 2, 3, 4, 5


@inner
def plan_return(world, at_ns, r):  # type: ignore[no-untyped-def]
    """Let `r` arrive at an instant (binary heap on time, then request)."""
    i = world.num_returns
    world.num_returns = i + 1
    while i > 0:
        up = return_of(world, (i - 1) // 2)
        if up.at_ns < at_ns or (up.at_ns == at_ns and up.request < r):
            break
        copied = return_of(world, i)
        copied.at_ns, copied.request = up.at_ns, up.request
        i = (i - 1) // 2
    here = return_of(world, i)
    here.at_ns, here.request = at_ns, r


@inner
def _first(world, i, j):  # type: ignore[no-untyped-def]
    """Which of two planned returns is earlier."""
    one, other = return_of(world, i), return_of(world, j)
    if other.at_ns < one.at_ns or (other.at_ns == one.at_ns and other.request < one.request):
        return j
    return i


@inner
def pop_return(world):  # type: ignore[no-untyped-def]
    """Remove and return the request with the earliest planned arrival."""
    result = return_of(world, 0).request
    n = world.num_returns - 1
    world.num_returns = n
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n:
            child = _first(world, child, child + 1)
        if _first(world, n, child) == n:
            break
        here, moved = return_of(world, i), return_of(world, child)
        here.at_ns, here.request = moved.at_ns, moved.request
        i = child
    here, last = return_of(world, i), return_of(world, n)
    here.at_ns, here.request = last.at_ns, last.request
    return result


@inner
def known_session(world, r):  # type: ignore[no-untyped-def]
    """The session of a request that the router remembers, -1: none."""
    return np.int64(-1) if world.sessions == 0 else session_of(world, r).value


@inner
def begin_attempt(world, r, now):  # type: ignore[no-untyped-def]
    """A request enters the system at `now`, for the first time or again."""
    request, detail = request_of(world, r), detail_of(world, r)
    if request.attempts == 0:
        request.arrival_ns = now
        request.scored = world.warmup_ns <= now < world.horizon_ns
    request.attempts += 1
    request.computed_tokens = request.generated_tokens = 0
    request.engine = 0
    request.first_token_ns = request.last_token_ns = -1
    request.state, request.outcome = PENDING, 0
    detail.scheduled_ns = -1
    detail.cached_tokens = detail.preemptions = 0
    if world.timeout_ns > 0:
        timeout = timeout_of(world, world.end_timeout % world.timeouts_size)
        timeout.at_ns = now + world.timeout_ns
        timeout.request, timeout.attempt = r, request.attempts
        world.end_timeout += 1


@inner
def _release_children(world, r, now):  # type: ignore[no-untyped-def]
    if not world.closed_loop:
        return
    child = family_of(world, r).first_child
    while child >= 0:
        at_ns = now + family_of(world, child).think_ns
        if at_ns < world.horizon_ns:
            plan_return(world, at_ns, child)
        else:
            request_of(world, child).outcome = UNFINISHED  # it never arrives
        child = family_of(world, child).next_sibling


@inner
def leave(world, r, now, outcome):  # type: ignore[no-untyped-def]
    """A request is out of its engine; aborted and failed ones come back while they may."""
    request = request_of(world, r)
    index = request.engine - 1
    if index >= 0 and world.telemetry:
        row = row_of(world, index)
        row.in_flight -= 1
        row.in_flight_tokens -= request.prompt_tokens
        telemetry_of(engine_of(world, index)).dirty = True
    request.state, request.outcome = LEFT, outcome
    request.stalled = request.skipped = request.ran = request.aborting = False
    if world.completions != 0:
        _complete(world, request, r, now)
    retry = outcome == ABORTED or outcome == FAILED
    if retry and request.attempts <= world.max_retries:
        request.state = PENDING
        plan_return(world, now + world.backoff_ns, r)
    else:
        _release_children(world, r, now)


@inner
def _complete(world, request, r, now):  # type: ignore[no-untyped-def]
    """Note for router policies that a request has left."""
    completion = completion_of(world, world.num_completions)
    world.num_completions += 1
    completion.now_ns, completion.request = now, r
    completion.engine, completion.outcome = request.engine - 1, request.outcome
    completion.first_token_ns = request.first_token_ns
    completion.emitted = request.generated_tokens
    completion.arrival_ns = request.arrival_ns


@inner
def met_slos(world, request, now):  # type: ignore[no-untyped-def]
    """Whether a request that finishes at `now` met every declared SLO."""
    limit = objective_of(world, request.slo_class)
    decoding = now - request.first_token_ns
    if limit.ttft_ns >= 0 and request.first_token_ns - request.arrival_ns > limit.ttft_ns:
        return False
    gaps = request.generated_tokens - 1
    # decoding > limit * gaps, where that product would not fit
    if limit.tpot_ns >= 0 and gaps > 0 and (decoding - 1) // gaps >= limit.tpot_ns:
        return False
    return not (limit.e2e_ns >= 0 and now - request.arrival_ns > limit.e2e_ns)


@inner
def finish(world, engine, r, now):  # type: ignore[no-untyped-def]
    """The request has emitted its last token at `now`; its blocks are already free."""
    request = request_of(world, r)
    request.last_token_ns = now
    if request.scored and met_slos(world, request, now):
        world.met += 1
        engine.met += 1
    if world.telemetry:
        telemetry = telemetry_of(engine)
        telemetry.finished += 1
        telemetry.ttft_ns += request.first_token_ns - request.arrival_ns
        telemetry.e2e_ns += now - request.arrival_ns
        if request.generated_tokens > 1:
            decoding = now - request.first_token_ns
            telemetry.tpot_ns += decoding // (request.generated_tokens - 1)
    leave(world, r, now, FINISHED)


@inner
def take_out(world, engine, r):  # type: ignore[no-untyped-def]
    """Remove a running or waiting request from its engine, freeing its blocks."""
    request = request_of(world, r)
    if request.state == WAITING:
        wait_unlink(world, engine, r)
        return
    computed = computed_tokens(engine, request)
    free(world, engine, r, computed)
    if request.state == DECODE:
        generated = generated_tokens(engine, request)
        decode_leave(world, engine, r, True)
        request.generated_tokens = generated
    elif request.state == PREFILL:
        forget_planned(engine, r)
        engine.prefill_tokens -= request.prompt_tokens + request.generated_tokens - computed
    run_unlink(world, engine, r)


@inner
def deliver(world, r, index, now):  # type: ignore[no-untyped-def]
    """Hand an arriving request to its engine; prompts that can never fit leave at once."""
    engine, request = engine_of(world, index), request_of(world, r)
    pool, telemetry = pool_of(engine), telemetry_of(engine)
    request.engine = index + 1
    if world.telemetry:
        refresh_row(world, engine, now)
        row = row_of(world, index)
        row.in_flight += 1
        row.in_flight_tokens += request.prompt_tokens
        row.routed_since_push += request.prompt_tokens
        telemetry.dirty = True
    most = min(engine.max_model_len, pool.total * pool.block_size)
    if request.prompt_tokens >= most:
        leave(world, r, now, REJECTED)
        return
    output = request.output_tokens
    if world.true_outputs != 0:
        output = true_output_of(world, r).value
    request.output_tokens = min(output, most - request.prompt_tokens)
    if not engine.in_flight and engine.running + engine.waiting == 0:
        engine.ready_ns = max(engine.ready_ns, now)
        if world.telemetry:
            settle_heartbeats(world, engine, now)
            telemetry.idle_since_ns = INF
    wait_append(world, engine, r)


@inner
def abort(world, r, now):  # type: ignore[no-untyped-def]
    """The client of `r` gives up at `now`."""
    request = request_of(world, r)
    if request.state == LEFT or request.state == PENDING:
        return
    engine = engine_of(world, request.engine - 1)
    if request.state != WAITING and engine.in_flight:
        if not request.aborting:
            request.generated_tokens = generated_tokens(engine, request)
            request.aborting = True
            engine.aborting += 1
        return
    take_out(world, engine, r)
    leave(world, r, now, ABORTED)


@inner
def note_gap(world, gap_ns, count):  # type: ignore[no-untyped-def]
    """Pool `count` inter-token gaps."""
    if world.records_gaps:
        gap = gap_of(world, world.num_gaps)
        gap.ns, gap.count = gap_ns, np.int64(count)
        world.num_gaps += 1
