"""The end of an engine iteration: tokens are emitted, requests finish, state is published."""

from __future__ import annotations

import numpy as np
from numba import types

from synergy_gym.jit import inner, shared
from synergy_gym.latency.clock import FLOOR_NS, FS_PER_NS, _mix_kernel
from synergy_gym.sim.compiled.decision_log import K_DECISION, K_RESULT, K_START
from synergy_gym.sim.compiled.decodes import (
    decode_enter,
    decode_leave,
    decode_postpone,
    due_decodes,
)
from synergy_gym.sim.compiled.engine import admit, duration_ns, free, plan
from synergy_gym.sim.compiled.layout import DECODE, ENGINE, INF, WORLD
from synergy_gym.sim.compiled.lifecycle import (
    ABORTED,
    REJECTED,
    finish,
    leave,
    note_gap,
    take_out,
)
from synergy_gym.sim.compiled.lists import run_unlink, wait_unlink
from synergy_gym.sim.compiled.reach import (
    clock_of,
    detail_of,
    last_of,
    plan_of,
    planned_of,
    pool_of,
    request_of,
    telemetry_of,
)
from synergy_gym.sim.compiled.records import copy
from synergy_gym.sim.compiled.telemetry import commit_counts, note_step, push, scrape_until

LEAST_EMPTY_STEP_NS = 1000


@shared(types.void(WORLD.type, ENGINE.type, types.int64, types.int64))
def begin_iteration(world, engine, start, next_arrival):  # type: ignore[no-untyped-def]
    """Plan an iteration at `start` under the decision in the engine's plan.

    Nothing runs when rejections left the engine without work.
    """
    step = plan_of(engine)
    step.start_ns = start
    misfit = plan(world, engine)
    while misfit >= 0:
        wait_unlink(world, engine, misfit)
        leave(world, misfit, start, REJECTED)
        misfit = admit(world, engine)
    engine.capped = False
    if engine.running + engine.waiting == 0:
        telemetry_of(engine).idle_since_ns = start
        return
    if step.sequences > 0:
        step.duration_ns = duration_ns(engine)
    else:
        step.duration_ns = _empty_ns(engine, start, next_arrival)
    _note_decision(engine, step)
    engine.steps += 1
    engine.in_flight = True
    engine.end_ns = start + step.duration_ns


@inner
def _empty_ns(engine, start, next_arrival):  # type: ignore[no-untyped-def]
    """An iteration that serves nobody lasts until the next arrival, or the least that one can."""
    clock = clock_of(engine)
    least = max(clock[FLOOR_NS], max(clock[0] // FS_PER_NS, np.int64(LEAST_EMPTY_STEP_NS)))
    return max(least, next_arrival - start) if next_arrival < INF else least


@inner
def _note_decision(engine, step):  # type: ignore[no-untyped-def]
    """Chain the decision and what it led to into the engine's hash."""
    decision = step.token_budget ^ (step.max_running << 21) ^ (step.prefill_chunk << 42)
    result = step.sequences ^ (step.tokens << 20) ^ (step.duration_ns << 40)
    value = np.uint64(step.start_ns) * np.uint64(K_START)
    value ^= np.uint64(decision) * np.uint64(K_DECISION)
    value ^= np.uint64(result) * np.uint64(K_RESULT)
    engine.decision_hash = np.int64(_mix_kernel(np.uint64(engine.decision_hash) ^ value))


@shared(types.void(WORLD.type, ENGINE.type))
def end_iteration(world, engine):  # type: ignore[no-untyped-def]
    """Make the iteration in flight visible at its end."""
    now = engine.end_ns
    if world.telemetry:
        scrape_until(world, engine, now - 1)
    copy(last_of(engine), plan_of(engine))
    ran = plan_of(engine).sequences > 0
    if ran:
        _emit_decodes(world, engine, now)
    else:
        _stall_all(world, engine)
    if engine.aborting > 0:
        _drop_aborted(world, engine, now)
    if ran:
        _finish_and_emit(world, engine, now)
        engine.last_end_ns = now
    engine.in_flight = False
    engine.ready_ns = now
    if engine.running + engine.waiting == 0:
        telemetry_of(engine).idle_since_ns = now
    if world.telemetry:
        commit_counts(engine)
        if ran:
            note_step(engine)
        push(world, engine, now)


@inner
def _emit_decodes(world, engine, now):  # type: ignore[no-untyped-def]
    """Advance the lazy decodes by one token."""
    engine.busy_steps += 1
    engine.ahead = 0
    engine.phase -= 1
    if engine.phase < 0:
        engine.phase = pool_of(engine).block_size - 1
    engine.decode_context += engine.decodes - engine.skipped
    even = engine.scored_decodes
    if engine.skipped + engine.stalled + engine.aborting > 0:
        even = _uneven_gaps(world, engine, now)
    if even > 0:
        note_gap(world, now - engine.last_end_ns, even)


@inner
def _uneven_gaps(world, engine, now):  # type: ignore[no-untyped-def]
    """Inter-token gaps when some decodes were or are passed over; returns the even ones."""
    even = 0
    r = engine.first_running
    while r >= 0:
        request = request_of(world, r)
        if request.state == DECODE:
            if request.skipped:
                request.skipped = False
                decode_postpone(world, engine, r)
                if not request.stalled:
                    _stall(engine, request)
            elif not request.aborting:
                if request.stalled:
                    if request.scored:
                        note_gap(world, now - request.last_token_ns, 1)
                    request.stalled = False
                    engine.stalled -= 1
                elif request.scored:
                    even += 1
        r = request.next
    return even


@inner
def _stall(engine, request):  # type: ignore[no-untyped-def]
    request.last_token_ns = engine.last_end_ns
    request.stalled = True
    engine.stalled += 1


@inner
def _stall_all(world, engine):  # type: ignore[no-untyped-def]
    """Nothing ran: every decode's last token stays where it was."""
    r = engine.first_running
    while r >= 0:
        request = request_of(world, r)
        if request.state == DECODE:
            request.skipped = False
            if not request.stalled:
                _stall(engine, request)
        r = request.next


@inner
def _drop_aborted(world, engine, now):  # type: ignore[no-untyped-def]
    """Requests whose client gave up during the iteration leave without a token."""
    r = engine.first_running
    while r >= 0:
        request = request_of(world, r)
        following = request.next
        if request.aborting:
            request.aborting = False
            emitted = request.generated_tokens
            take_out(world, engine, r)
            request.generated_tokens = emitted
            leave(world, r, now, ABORTED)
        r = following
    engine.aborting = 0


@inner
def _finish_and_emit(world, engine, now):  # type: ignore[no-untyped-def]
    """Decodes with their last token finish; completed prefills emit, and decode or finish.

    With prefix caching in order of the running list, which decides the order of the free queue.
    `planned` keeps the prefills that are unfinished.
    """
    due, kept = due_decodes(world, engine), 0
    in_order = pool_of(engine).caching
    for i in range(engine.prefills):
        r = planned_of(engine, i).request
        while due >= 0 and not (in_order and detail_of(world, due).rank > detail_of(world, r).rank):
            due = _finish_decode(world, engine, due, now)
        request = request_of(world, r)
        if request.computed_tokens == request.prompt_tokens + request.generated_tokens:
            _emit_first(world, engine, r, now)
        else:
            planned = planned_of(engine, kept)
            planned.request, planned.tokens = r, 0
            kept += 1
    engine.prefills = kept
    while due >= 0:
        due = _finish_decode(world, engine, due, now)


@inner
def _finish_decode(world, engine, r, now):  # type: ignore[no-untyped-def]
    """Returns who is due behind it."""
    request = request_of(world, r)
    following = request.token_cap
    free(world, engine, r, request.computed_tokens + engine.busy_steps)
    decode_leave(world, engine, r, False)
    request.generated_tokens = request.output_tokens
    run_unlink(world, engine, r)
    last_of(engine).finished += 1
    finish(world, engine, r, now)
    return following


@inner
def _emit_first(world, engine, r, now):  # type: ignore[no-untyped-def]
    """A request whose known tokens are all computed emits a token and decodes or ends."""
    request = request_of(world, r)
    request.generated_tokens += 1
    if request.first_token_ns < 0:
        request.first_token_ns = now
    elif request.scored:
        note_gap(world, now - request.last_token_ns, 1)
    if request.generated_tokens < request.output_tokens:
        decode_enter(world, engine, r)
        return
    free(world, engine, r, request.computed_tokens)
    run_unlink(world, engine, r)
    last_of(engine).finished += 1
    finish(world, engine, r, now)
