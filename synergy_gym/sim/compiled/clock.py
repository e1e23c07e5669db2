"""One clock for the world: arrivals, timeouts, events and engine iterations, compiled.

Engines run independently between arrivals (lazy advancement). When something that leaves an
engine can come back as an arrival, or when an engine waits for a Python policy, iterations of
different engines are taken in time order instead; results are equal either way.
"""

from __future__ import annotations

import numpy as np
from numba import types

from synergy_gym.jit import inner, kernel, shared
from synergy_gym.latency.clock import SLOW
from synergy_gym.sim.compiled.cache import lose, reset, reset_seats, settle
from synergy_gym.sim.compiled.commit import begin_iteration, end_iteration
from synergy_gym.sim.compiled.decodes import num_decodes
from synergy_gym.sim.compiled.layout import (
    BY_POLICY,
    EVENT_DOWN,
    EVENT_LOSE,
    EVENT_SLOWDOWN,
    EVENT_UP,
    INF,
    LEFT,
    PENDING,
    POINT_CHECK,
    POINT_GAPS_FULL,
)
from synergy_gym.sim.compiled.lifecycle import (
    FAILED,
    abort,
    begin_attempt,
    deliver,
    known_session,
    leave,
    pop_return,
    take_out,
)
from synergy_gym.sim.compiled.reach import (
    clock_of,
    engine_of,
    event_of,
    family_of,
    plan_of,
    pool_of,
    request_of,
    return_of,
    router_of,
    row_of,
    rule_of,
    session_place_of,
    telemetry_of,
    timeout_of,
    world_at,
)
from synergy_gym.sim.compiled.routing import choose_engine
from synergy_gym.sim.compiled.telemetry import commit_counts, scrape_until, settle_heartbeats
from synergy_gym.sim.points import BATCH, DONE, ROUTE

# What `_advance_ordered` and `_happen` say.
_NOTHING, _MOVED, _POINT, _OVER = 0, 1, 2, 3


@shared(types.int64(types.int64))
def advance(address):  # type: ignore[no-untyped-def]
    """Run until a decision is needed that no rule answers; returns the kind of point."""
    world = world_at(address)
    while True:
        if world.ordered:
            moved = _advance_ordered(world)
            if moved == _POINT:
                return world.point
            if moved == _MOVED:
                continue
        else:
            outside = _outside(world)
            if _run_lazily(world, outside):
                return world.point
            if _outside(world) > outside:
                continue  # the client whose timeout this was has been served meanwhile
        what = _happen(world)
        if what == _POINT:
            return world.point
        if what == _OVER:
            world.point, world.over = DONE, True
            return world.point


@shared(types.void(types.int64))
def take_batch(address):  # type: ignore[no-untyped-def]
    """Plan the iteration that the last BATCH point asked for (decision in the engine's plan)."""
    world = world_at(address)
    engine = engine_of(world, world.point_engine)
    begin_iteration(world, engine, engine.ready_ns, next_arrival(world))


@shared(types.void(types.int64, types.int64))
def take_route(address, engine):  # type: ignore[no-untyped-def]
    """Hand the request of the last ROUTE point to `engine`, where its session is from now on."""
    world = world_at(address)
    session = known_session(world, world.point_request)
    if session >= 0:
        place = session_place_of(world, session)
        place.engine, place.at_ns = engine, world.now_ns
    deliver(world, world.point_request, engine, world.now_ns)


def load(*, compiles: bool = True) -> bool:
    """Have the shared kernels of a simulation ready: no other kernel may run before.

    Args:
        compiles: false: only what is in the cache.

    Returns:
        Whether they are.
    """
    every = (begin_iteration, end_iteration, advance, take_batch, take_route)
    return all(one.load(compiles=compiles) for one in every)


@kernel
def run(address):  # type: ignore[no-untyped-def]
    """`advance` for Python."""
    return advance(address)


@kernel
def batch(address):  # type: ignore[no-untyped-def]
    """`take_batch` for Python."""
    take_batch(address)


@kernel
def route(address, engine):  # type: ignore[no-untyped-def]
    """`take_route` for Python."""
    take_route(address, engine)


@inner
def next_arrival(world):  # type: ignore[no-untyped-def]
    """Time of the next arrival of the stream, or INF."""
    time = np.int64(INF)
    if world.next_request < world.num_requests:
        time = request_of(world, world.next_request).arrival_ns
    if world.num_returns > 0:
        time = min(time, return_of(world, 0).at_ns)
    return time


@inner
def _pop_arrival(world):  # type: ignore[no-untyped-def]
    """Take the next request out of the arrival stream."""
    r = world.next_request
    if world.num_returns > 0:
        if r >= world.num_requests:
            return pop_return(world)
        back, time = return_of(world, 0), request_of(world, r).arrival_ns
        if back.at_ns < time or (back.at_ns == time and back.request < r):
            return pop_return(world)
    world.next_request = r + 1
    if world.closed_loop:
        _skip_children(world)
    return r


@inner
def _skip_children(world):  # type: ignore[no-untyped-def]
    """Move past requests that arrive after another one has left."""
    r = world.next_request
    while r < world.num_requests and family_of(world, r).think_ns >= 0:
        r += 1
    world.next_request = r


@inner
def _next_timeout(world):  # type: ignore[no-untyped-def]
    """Time of the next timeout of an attempt that is still in the system, or INF."""
    if world.timeout_ns <= 0:
        return np.int64(INF)
    while world.first_timeout < world.end_timeout:
        timeout = timeout_of(world, world.first_timeout % world.timeouts_size)
        request = request_of(world, timeout.request)
        if timeout.attempt == request.attempts and PENDING < request.state < LEFT:
            return timeout.at_ns
        world.first_timeout += 1
    return np.int64(INF)


@inner
def _pop_timeout(world, now):  # type: ignore[no-untyped-def]
    timeout = timeout_of(world, world.first_timeout % world.timeouts_size)
    world.first_timeout += 1
    abort(world, timeout.request, now)


@inner
def _next_event(world):  # type: ignore[no-untyped-def]
    if world.next_event < world.num_events:
        return event_of(world, world.next_event).at_ns
    return np.int64(INF)


@inner
def _outside(world):  # type: ignore[no-untyped-def]
    """Time of the next thing that happens outside the engines, or INF."""
    return min(next_arrival(world), min(_next_event(world), _next_timeout(world)))


@inner
def _go_down(world, engine, now):  # type: ignore[no-untyped-def]
    if engine.down:
        return
    scrape_until(world, engine, now)
    settle_heartbeats(world, engine, now)
    engine.down = True
    telemetry_of(engine).dirty = True
    world.num_alive -= 1
    row_of(world, engine.index).alive = 0
    engine.in_flight = False
    _lose_all(world, engine, now)
    engine.prefills = engine.aborting = 0
    reset(pool_of(engine))
    if pool_of(engine).caching:
        reset_seats(pool_of(engine), engine.max_num_seqs)


@inner
def _lose_all(world, engine, now):  # type: ignore[no-untyped-def]
    """The requests of an engine that goes down fail."""
    while engine.running + engine.waiting > 0:
        r = engine.first_running if engine.running > 0 else engine.first_waiting
        take_out(world, engine, r)
        leave(world, r, now, FAILED)


@inner
def _come_up(world, engine, now):  # type: ignore[no-untyped-def]
    scrape_until(world, engine, now - 1)
    engine.down = False
    world.num_alive += 1
    row_of(world, engine.index).alive = 1
    engine.ready_ns = now
    telemetry = telemetry_of(engine)
    telemetry.dirty = True
    telemetry.idle_since_ns = telemetry.beats_ns = now
    commit_counts(engine)


@inner
def _apply_event(world, now):  # type: ignore[no-untyped-def]
    event = event_of(world, world.next_event)
    world.next_event += 1
    engine = engine_of(world, event.engine)
    if event.kind == EVENT_DOWN:
        _go_down(world, engine, now)
    elif event.kind == EVENT_UP and engine.down:
        _come_up(world, engine, now)
    elif event.kind == EVENT_SLOWDOWN:
        clock_of(engine)[SLOW] = event.value
    elif event.kind == EVENT_LOSE:
        settle_heartbeats(world, engine, now)
        lose(pool_of(engine), event.value)


@inner
def _arrive(world, now):  # type: ignore[no-untyped-def]
    """Take one arrival; true when it needs a routing decision."""
    r = _pop_arrival(world)
    world.num_arrivals += 1
    begin_attempt(world, r, now)
    if world.num_alive == 0:
        leave(world, r, now, FAILED)
        return False
    if world.auto_route:
        deliver(world, r, 0, now)
        return False
    if router_of(world).kind != BY_POLICY:
        deliver(world, r, choose_engine(world, r, now), now)
        return False
    world.point, world.point_request = ROUTE, r
    return True


@inner
def _apply_rule(world, engine):  # type: ignore[no-untyped-def]
    rule, step = rule_of(engine), plan_of(engine)
    step.token_budget = rule.token_budget
    if rule.cover_decodes:
        step.token_budget = max(rule.token_budget, num_decodes(world, engine))
    step.max_running, step.prefill_chunk = rule.max_running, rule.prefill_chunk


@inner
def _gaps_full(world, engine):  # type: ignore[no-untyped-def]
    room = world.gaps_size - world.num_gaps
    return world.records_gaps and room < engine.max_num_seqs + 2


@inner
def _plan(world, engine, start):  # type: ignore[no-untyped-def]
    """Plan an iteration at `start`; true when a policy must decide first."""
    settle(world, pool_of(engine))
    if not rule_of(engine).given:
        world.point, world.point_engine = BATCH, engine.index
        return True
    _apply_rule(world, engine)
    begin_iteration(world, engine, start, next_arrival(world))
    return False


@inner
def _commit(world, engine):  # type: ignore[no-untyped-def]
    """End the iteration in flight; true when Python must do something first, or look."""
    if _gaps_full(world, engine):
        world.point = POINT_GAPS_FULL
        return True
    world.now_ns = max(world.now_ns, engine.end_ns)
    end_iteration(world, engine)
    if world.check:
        world.point = POINT_CHECK
        return True
    return False


@inner
def _run_engine(world, engine, until):  # type: ignore[no-untyped-def]
    """Commit iterations that end by `until`, plan those that start before it."""
    while True:
        if engine.in_flight:
            if engine.end_ns > until or engine.end_ns > world.stop_ns:
                return False
            if _commit(world, engine):
                return True
        elif engine.running + engine.waiting == 0:
            return False
        else:
            start = engine.ready_ns
            if start >= until or start > world.stop_ns:
                return False
            if _plan(world, engine, start):
                world.now_ns = start
                return True


@inner
def _run_lazily(world, until):  # type: ignore[no-untyped-def]
    for i in range(world.num_engines):
        engine = engine_of(world, i)
        if engine.in_flight and engine.end_ns > until:
            continue
        if _run_engine(world, engine, until):
            return True
    return False


@inner
def _earliest(world):  # type: ignore[no-untyped-def]
    """(end, engine) of the first iteration to end and (start, engine) of the first to plan."""
    end, ender = np.int64(INF), np.int64(-1)
    start, starter = np.int64(INF), np.int64(-1)
    for i in range(world.num_engines):
        engine = engine_of(world, i)
        if engine.in_flight:
            if engine.end_ns < end:
                end, ender = engine.end_ns, np.int64(i)
        elif engine.running + engine.waiting > 0 and engine.ready_ns < start:
            start, starter = engine.ready_ns, np.int64(i)
    return end, ender, start, starter


@inner
def _advance_ordered(world):  # type: ignore[no-untyped-def]
    """One iteration event in time order, if one is due before the world."""
    outside = _outside(world)
    end, ender, start, starter = _earliest(world)
    if ender >= 0 and end <= outside and end <= start:
        if end > world.stop_ns:
            return _NOTHING
        return _POINT if _commit(world, engine_of(world, ender)) else _MOVED
    if starter >= 0 and start < outside and start <= world.stop_ns:
        world.now_ns = max(world.now_ns, start)
        return _POINT if _plan(world, engine_of(world, starter), start) else _MOVED
    return _NOTHING


@inner
def _busy(world):  # type: ignore[no-untyped-def]
    for i in range(world.num_engines):
        engine = engine_of(world, i)
        if engine.in_flight or engine.running + engine.waiting > 0:
            return True
    return False


@inner
def _happen(world):  # type: ignore[no-untyped-def]
    """Handle the next thing outside the engines."""
    event, timeout = _next_event(world), _next_timeout(world)
    now = _outside(world)
    if now > world.stop_ns or (next_arrival(world) >= INF and not _busy(world)):
        return _OVER
    world.now_ns = max(world.now_ns, now)
    if event == now:
        _apply_event(world, now)
    elif timeout == now:
        _pop_timeout(world, now)
    elif _arrive(world, now):
        return _POINT
    return _MOVED
