"""One clock for the world: arrivals, timeouts, events and engine iterations, compiled.

Engines run independently between arrivals (lazy advancement). When something that leaves an
engine can come back as an arrival, or when an engine waits for a Python policy, iterations of
different engines are taken in time order instead; results are equal either way.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import hot, kernel
from synergy_gym.latency.terms import SLOW
from synergy_gym.sim.commit import begin_iteration, end_iteration
from synergy_gym.sim.engine import pay_debt
from synergy_gym.sim.layout import (
    ATTEMPT_MASK,
    ATTEMPT_SHIFT,
    B_SLOTS,
    B_SLOTS_N,
    E_ABORTS,
    E_CACHING,
    E_CLOCK,
    E_DEBT,
    E_DOWN,
    E_END,
    E_FLIGHT,
    E_FREE,
    E_INDEX,
    E_MAX_SEQS,
    E_PREFILLS,
    E_READY,
    E_RULE,
    E_RUN_HEAD,
    E_RUNNING,
    E_TOTAL,
    E_WAIT_HEAD,
    E_WAITING,
    EV_DOWN,
    EV_LOSE,
    EV_SLOWDOWN,
    EV_UP,
    EVENT_SIZE,
    F_ARRIVAL,
    F_META,
    F_STATE,
    H_AUTO,
    H_CHECK,
    H_E,
    H_ENG,
    H_EV,
    H_EV_N,
    H_EV_PTR,
    H_HEAP,
    H_HEAP_N,
    H_ITL,
    H_ITL_N,
    H_ITL_SIZE,
    H_N,
    H_NOW,
    H_NUM_ALIVE,
    H_ORDERED,
    H_PENG,
    H_POINT,
    H_PREQ,
    H_PTR,
    H_ROWS,
    H_STOP,
    H_STRIDE,
    H_THINK,
    H_TIMEOUT,
    H_TO_HEAD,
    H_TO_SIZE,
    H_TO_TAIL,
    H_TOQ,
    INF,
    LEFT,
    P_BUDGET,
    P_CAP,
    P_CHUNK,
    PENDING,
    POINT_CHECK,
    POINT_ITL_FULL,
    R_BUDGET,
    R_CAP,
    R_CHUNK,
    R_COVER,
    STATE_MASK,
    T_BEATS,
    T_DIRTY,
    T_IDLE_SINCE,
)
from synergy_gym.sim.lifecycle import (
    FAILED,
    abort,
    begin_attempt,
    deliver,
    heap_pop,
    leave,
    take_out,
)
from synergy_gym.sim.lists import num_decodes, row
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.sim.prefix_cache import reset_pool
from synergy_gym.sim.telemetry import (
    ROW_SIZE,
    commit_counts,
    scrape_until,
    settle_heartbeats,
)


@hot
def next_arrival(a, o):  # type: ignore[no-untyped-def]
    """Time of the next arrival of the stream, or INF."""
    time = np.int64(INF)
    if a[o + H_PTR] < a[o + H_N]:
        time = a[row(a, o, a[o + H_PTR]) + F_ARRIVAL]
    if a[o + H_HEAP_N] > 0:
        time = min(time, a[a[o + H_HEAP]])
    return time


@hot
def _skip_closed(a, o):  # type: ignore[no-untyped-def]
    """Move the trace pointer past requests that arrive after another one has left."""
    if a[o + H_THINK] == 0:
        return
    while a[o + H_PTR] < a[o + H_N] and a[a[o + H_THINK] + a[o + H_PTR]] >= 0:
        a[o + H_PTR] += 1


@kernel
def pop_arrival(a, o):  # type: ignore[no-untyped-def]
    """Take the next request out of the arrival stream."""
    n = a[o + H_HEAP_N]
    r = a[o + H_PTR]
    if n > 0:
        h = a[o + H_HEAP]
        if r >= a[o + H_N]:
            return heap_pop(a, o)
        time = a[row(a, o, r) + F_ARRIVAL]
        if a[h] < time or (a[h] == time and a[h + 1] < r):
            return heap_pop(a, o)
    a[o + H_PTR] = r + 1
    _skip_closed(a, o)
    return r


@kernel
def _next_timeout(a, o):  # type: ignore[no-untyped-def]
    """Time of the next timeout of an attempt that is still in the system, or INF."""
    if a[o + H_TIMEOUT] <= 0:
        return np.int64(INF)
    while a[o + H_TO_HEAD] < a[o + H_TO_TAIL]:
        p = a[o + H_TOQ] + 2 * (a[o + H_TO_HEAD] % a[o + H_TO_SIZE])
        r = a[p + 1] & ((np.int64(1) << 40) - 1)
        q = row(a, o, r)
        current = a[p + 1] >> 40 == (a[q + F_META] >> ATTEMPT_SHIFT & ATTEMPT_MASK)
        state = a[q + F_STATE] & STATE_MASK
        if current and state != LEFT and state != PENDING:
            return a[p]
        a[o + H_TO_HEAD] += 1
    return np.int64(INF)


@kernel
def _pop_timeout(a, o, now):  # type: ignore[no-untyped-def]
    p = a[o + H_TOQ] + 2 * (a[o + H_TO_HEAD] % a[o + H_TO_SIZE])
    a[o + H_TO_HEAD] += 1
    abort(a, o, a[p + 1] & ((np.int64(1) << 40) - 1), now)


@hot
def _next_event(a, o):  # type: ignore[no-untyped-def]
    if a[o + H_EV_PTR] < a[o + H_EV_N]:
        return a[a[o + H_EV] + EVENT_SIZE * a[o + H_EV_PTR]]
    return np.int64(INF)


@hot
def _outside(a, o):  # type: ignore[no-untyped-def]
    """Time of the next thing that happens outside the engines, or INF."""
    return min(next_arrival(a, o), min(_next_event(a, o), _next_timeout(a, o)))


@kernel
def _clear_engine(a, e):  # type: ignore[no-untyped-def]
    """An empty engine with a cold cache."""
    a[e + E_FLIGHT] = 0
    a[e + E_PREFILLS] = 0
    a[e + E_ABORTS] = 0
    a[e + E_DEBT] = 0
    if a[e + E_CACHING] != 0:
        reset_pool(a, e, a[e + E_TOTAL])
        for i in range(a[e + E_MAX_SEQS]):
            a[a[e + B_SLOTS] + i] = i
        a[e + B_SLOTS_N] = a[e + E_MAX_SEQS]
    else:
        a[e + E_FREE] = a[e + E_TOTAL]


@kernel
def _go_down(a, o, e, now):  # type: ignore[no-untyped-def]
    if a[e + E_DOWN] != 0:
        return
    scrape_until(a, o, e, now)
    settle_heartbeats(a, o, e, now)
    a[e + E_DOWN] = 1
    a[e + T_DIRTY] = 1
    a[o + H_NUM_ALIVE] -= 1
    a[a[o + H_ROWS] + a[e + E_INDEX] * ROW_SIZE] = 0
    a[e + E_FLIGHT] = 0
    while a[e + E_RUN_HEAD] >= 0:
        r = a[e + E_RUN_HEAD]
        take_out(a, o, e, r)
        leave(a, o, r, now, FAILED)
    while a[e + E_WAIT_HEAD] >= 0:
        r = a[e + E_WAIT_HEAD]
        take_out(a, o, e, r)
        leave(a, o, r, now, FAILED)
    _clear_engine(a, e)


@kernel
def _come_up(a, o, e, now):  # type: ignore[no-untyped-def]
    scrape_until(a, o, e, now - 1)
    a[e + E_DOWN] = 0
    a[e + T_DIRTY] = 1
    a[o + H_NUM_ALIVE] += 1
    a[a[o + H_ROWS] + a[e + E_INDEX] * ROW_SIZE] = 1
    a[e + E_READY] = now
    a[e + T_IDLE_SINCE] = now
    a[e + T_BEATS] = now
    commit_counts(a, e)


@kernel
def _apply_event(a, o, now):  # type: ignore[no-untyped-def]
    p = a[o + H_EV] + EVENT_SIZE * a[o + H_EV_PTR]
    a[o + H_EV_PTR] += 1
    e = a[o + H_ENG] + a[p + 2] * a[o + H_STRIDE]
    if a[p + 1] == EV_DOWN:
        _go_down(a, o, e, now)
    elif a[p + 1] == EV_UP and a[e + E_DOWN] != 0:
        _come_up(a, o, e, now)
    elif a[p + 1] == EV_SLOWDOWN:
        a[e + E_CLOCK + SLOW] = a[p + 3]
    elif a[p + 1] == EV_LOSE:
        settle_heartbeats(a, o, e, now)
        lost = min(a[p + 3], a[e + E_TOTAL])
        a[e + E_TOTAL] -= lost
        a[e + E_DEBT] += lost


@kernel
def _arrive(a, o, now):  # type: ignore[no-untyped-def]
    """Take one arrival; true when it needs a routing decision."""
    r = pop_arrival(a, o)
    begin_attempt(a, o, r, now)
    if a[o + H_NUM_ALIVE] == 0:
        leave(a, o, r, now, FAILED)
        return False
    if a[o + H_AUTO] != 0:
        deliver(a, o, r, 0, now)
        return False
    a[o + H_POINT] = ROUTE
    a[o + H_PREQ] = r
    return True


@hot
def _apply_rule(a, o, e):  # type: ignore[no-untyped-def]
    budget = a[e + R_BUDGET]
    if a[e + R_COVER] != 0:
        budget = max(budget, num_decodes(a, o, e))
    a[e + P_BUDGET] = budget
    a[e + P_CAP] = a[e + R_CAP]
    a[e + P_CHUNK] = a[e + R_CHUNK]


@hot
def _itl_full(a, o, e):  # type: ignore[no-untyped-def]
    room = a[o + H_ITL_SIZE] - a[o + H_ITL_N]
    return a[o + H_ITL] != 0 and room < a[e + E_MAX_SEQS] + 2


@hot
def _plan(a, o, e, start):  # type: ignore[no-untyped-def]
    """Plan engine `e` at `start`; true when a policy must decide first."""
    pay_debt(a, e)
    if a[e + E_RULE] == 0:
        a[o + H_POINT] = BATCH
        a[o + H_PENG] = a[e + E_INDEX]
        return True
    _apply_rule(a, o, e)
    begin_iteration(a, o, e, start, next_arrival(a, o))
    return False


@hot
def _run_engine(a, o, e, until):  # type: ignore[no-untyped-def]
    """Commit iterations that end by `until`, plan those that start before it."""
    stop = a[o + H_STOP]
    while True:
        if a[e + E_FLIGHT] != 0:
            end = a[e + E_END]
            if end > until or end > stop:
                return False
            if _itl_full(a, o, e):
                a[o + H_POINT] = POINT_ITL_FULL
                return True
            if end > a[o + H_NOW]:
                a[o + H_NOW] = end
            end_iteration(a, o, e)
            if a[o + H_CHECK] != 0:
                a[o + H_POINT] = POINT_CHECK
                return True
        elif a[e + E_RUNNING] + a[e + E_WAITING] == 0:
            return False
        else:
            start = a[e + E_READY]
            if start >= until or start > stop:
                return False
            if _plan(a, o, e, start):
                a[o + H_NOW] = start
                return True


@hot
def _run_lazily(a, o, until):  # type: ignore[no-untyped-def]
    for i in range(a[o + H_E]):
        e = a[o + H_ENG] + i * a[o + H_STRIDE]
        if a[e + E_FLIGHT] != 0 and a[e + E_END] > until:
            continue
        if _run_engine(a, o, e, until):
            return True
    return False


@kernel
def _earliest(a, o):  # type: ignore[no-untyped-def]
    """(end, engine) of the first iteration to end and (start, engine) of the first to plan."""
    end = np.int64(INF)
    ender = np.int64(-1)
    start = np.int64(INF)
    starter = np.int64(-1)
    for i in range(a[o + H_E]):
        e = a[o + H_ENG] + i * a[o + H_STRIDE]
        if a[e + E_FLIGHT] != 0:
            if a[e + E_END] < end:
                end = a[e + E_END]
                ender = e
        elif a[e + E_RUNNING] + a[e + E_WAITING] > 0 and a[e + E_READY] < start:
            start = a[e + E_READY]
            starter = e
    return end, ender, start, starter


@kernel
def _advance_ordered(a, o):  # type: ignore[no-untyped-def]
    """One iteration event in time order: 0 none is due before the world, 1 done, 2 point."""
    outside = _outside(a, o)
    end, ender, start, starter = _earliest(a, o)
    stop = a[o + H_STOP]
    if ender >= 0 and end <= outside and end <= start:
        if end > stop:
            return 0
        if _itl_full(a, o, ender):
            a[o + H_POINT] = POINT_ITL_FULL
            return 2
        a[o + H_NOW] = max(a[o + H_NOW], end)
        end_iteration(a, o, ender)
        if a[o + H_CHECK] != 0:
            a[o + H_POINT] = POINT_CHECK
            return 2
        return 1
    if starter >= 0 and start < outside and start <= stop:
        a[o + H_NOW] = max(a[o + H_NOW], start)
        return 2 if _plan(a, o, starter, start) else 1
    return 0


@kernel
def _busy(a, o):  # type: ignore[no-untyped-def]
    for i in range(a[o + H_E]):
        e = a[o + H_ENG] + i * a[o + H_STRIDE]
        if a[e + E_FLIGHT] != 0 or a[e + E_RUNNING] + a[e + E_WAITING] > 0:
            return True
    return False


@kernel
def _world(a, o):  # type: ignore[no-untyped-def]
    """Handle the next thing outside the engines: 0 handled, 1 routing point, 2 nothing left."""
    event = _next_event(a, o)
    timeout = _next_timeout(a, o)
    now = _outside(a, o)
    if now > a[o + H_STOP] or (next_arrival(a, o) >= INF and not _busy(a, o)):
        return 2
    a[o + H_NOW] = max(a[o + H_NOW], now)
    if event == now:
        _apply_event(a, o, now)
    elif timeout == now:
        _pop_timeout(a, o, now)
    elif _arrive(a, o, now):
        return 1
    return 0


@kernel
def advance(a, o):  # type: ignore[no-untyped-def]
    """Run until a decision is needed that no rule answers; returns the kind of point."""
    while True:
        if a[o + H_ORDERED] != 0:
            moved = _advance_ordered(a, o)
            if moved == 2:
                return a[o + H_POINT]
            if moved == 1:
                continue
        else:
            outside = _outside(a, o)
            if _run_lazily(a, o, outside):
                return a[o + H_POINT]
            if _outside(a, o) > outside:
                continue  # the client whose timeout this was has been served meanwhile
        what = _world(a, o)
        if what == 1:
            return a[o + H_POINT]
        if what == 2:
            a[o + H_POINT] = DONE
            return np.int64(DONE)


@kernel
def take_batch(a, o, e):  # type: ignore[no-untyped-def]
    """Plan the iteration that the last BATCH point asked for (decision in the P_ fields)."""
    begin_iteration(a, o, e, a[e + E_READY], next_arrival(a, o))


@kernel
def take_route(a, o, engine):  # type: ignore[no-untyped-def]
    """Hand the request of the last ROUTE point to `engine`."""
    deliver(a, o, a[o + H_PREQ], engine, a[o + H_NOW])
