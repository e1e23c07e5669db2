"""Reading a simulation's memory: state vectors and queues for views, compiled.

Entries for Python take the address of the memory, and the index of an engine.
"""

from __future__ import annotations

from synergy_gym.jit import inner, kernel
from synergy_gym.sim.compiled.decodes import computed_tokens, generated_tokens, is_decode
from synergy_gym.sim.compiled.layout import DECODE
from synergy_gym.sim.compiled.lifecycle import known_session
from synergy_gym.sim.compiled.lists import reorder_running, reorder_waiting
from synergy_gym.sim.compiled.reach import (
    block_offset_of,
    detail_of,
    engine_of,
    last_of,
    planned_of,
    pool_of,
    request_of,
    session_place_of,
    world_at,
)
from synergy_gym.sim.compiled.telemetry import refresh_rows
from synergy_gym.types import NS_PER_S

QUEUE_FIELDS = 9
ARRIVAL_FIELDS = 9


@inner
def write_state(world, engine, out, at):  # type: ignore[no-untyped-def]
    """Write the engine state vector (`EngineStateField`) to `out[at:]`."""
    pool, last = pool_of(engine), last_of(engine)
    decodes, prefill_tokens, context = _progress(world, engine)
    out[at] = world.now_ns
    out[at + 1] = engine.running
    out[at + 2] = engine.waiting
    out[at + 3] = decodes
    out[at + 4] = prefill_tokens
    out[at + 5] = engine.waiting_tokens
    out[at + 6] = context
    out[at + 7] = pool.free
    out[at + 8] = pool.total
    head = engine.first_waiting
    out[at + 9] = world.now_ns - request_of(world, head).arrival_ns if head >= 0 else 0
    out[at + 10] = max(last.duration_ns, 0)
    out[at + 11] = last.sequences
    out[at + 12] = last.tokens
    out[at + 13] = last.decodes
    out[at + 14] = last.preempted
    out[at + 15] = last.token_budget


@inner
def _progress(world, engine):  # type: ignore[no-untyped-def]
    """Decodes, tokens that prefills still have to compute, tokens in the cache of decodes.

    What an iteration in flight schedules is entered already, but computed at its end.
    """
    decodes, prefill_tokens = engine.decodes, engine.prefill_tokens
    context = engine.decode_context
    for i in range(engine.prefills):
        planned = planned_of(engine, i)
        request = request_of(world, planned.request)
        computed = request.computed_tokens - planned.tokens
        prefill_tokens += planned.tokens
        if is_decode(request, computed):
            decodes += 1
            prefill_tokens -= 1
            context += computed
    return decodes, prefill_tokens, context


@kernel
def engine_state(address, index, out):  # type: ignore[no-untyped-def]
    """`write_state` for Python."""
    world = world_at(address)
    write_state(world, engine_of(world, index), out, 0)


@kernel
def write_queue(address, index, running, n, out):  # type: ignore[no-untyped-def]
    """List the running (1) or waiting (0) requests: `QUEUE_FIELDS` columns of `n` values each."""
    world = world_at(address)
    engine = engine_of(world, index)
    r = engine.first_running if running != 0 else engine.first_waiting
    for i in range(n):
        request, detail = request_of(world, r), detail_of(world, r)
        out[i] = r
        out[n + i] = request.prompt_tokens
        out[2 * n + i] = computed_tokens(engine, request) if running != 0 else 0
        out[3 * n + i] = generated_tokens(engine, request)
        out[4 * n + i] = max(detail.cached_tokens - 1, 0)
        out[5 * n + i] = request.arrival_ns
        out[6 * n + i] = request.first_token_ns
        out[7 * n + i] = request.slo_class
        out[8 * n + i] = detail.priority
        r = request.next


@kernel
def write_ages(now, arrivals, firsts, out):  # type: ignore[no-untyped-def]
    """Seconds since arrival, then since the first token (-1 before it), of n requests each."""
    n = len(arrivals)
    for i in range(n):
        out[i] = (now - arrivals[i]) / NS_PER_S
        out[n + i] = -1.0 if firsts[i] < 0 else (now - firsts[i]) / NS_PER_S


@kernel
def set_caps(address, index, caps):  # type: ignore[no-untyped-def]
    """Token caps of the running, then of the waiting requests; a decode is served or skipped."""
    world = world_at(address)
    engine = engine_of(world, index)
    r = engine.first_running
    for i in range(len(caps)):
        if i == engine.running:
            r = engine.first_waiting
        request = request_of(world, r)
        if request.state != DECODE:
            request.token_cap = min(caps[i], (1 << 31) - 1)
        elif caps[i] == 0:
            request.skipped = True
        r = request.next
    engine.capped = True


@kernel
def set_order(address, index, running, requests):  # type: ignore[no-untyped-def]
    """Permute the running list (1) or waiting queue (0)."""
    world = world_at(address)
    if running != 0:
        reorder_running(world, engine_of(world, index), requests)
    else:
        reorder_waiting(world, engine_of(world, index), requests)


@kernel
def write_arrival(address, out):  # type: ignore[no-untyped-def]
    """What a ROUTE point is about, and the router's table brought up to date.

    Writes the time, and of the request its prompt tokens, SLO class, priority, attempts so far,
    session (-1: none), where that was sent last (-1) and when, and the place of its block ids.
    """
    world = world_at(address)
    r = world.point_request
    request = request_of(world, r)
    session = known_session(world, r)
    out[0], out[1], out[2] = world.now_ns, request.prompt_tokens, request.slo_class
    out[3], out[4], out[5] = detail_of(world, r).priority, request.attempts, session
    out[6], out[7], out[8] = -1, -1, 0
    if session >= 0:
        place = session_place_of(world, session)
        out[6], out[7] = place.engine, place.at_ns
    if world.block_offsets != 0:
        out[8] = world.block_ids + 8 * block_offset_of(world, r).value
    refresh_rows(world, world.now_ns)


@kernel
def router_rows(address):  # type: ignore[no-untyped-def]
    """Bring the router's table up to date."""
    world = world_at(address)
    refresh_rows(world, world.now_ns)
