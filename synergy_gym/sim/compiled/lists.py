"""Running list and waiting queue: doubly linked through REQUEST.next and REQUEST.previous.

A request is in one of them at most. The running list is in vLLM's order, the order of admission
unless a decision permutes it; DETAIL.rank grows along it.
"""

from __future__ import annotations

import numpy as np

from synergy_gym.jit import inner
from synergy_gym.sim.compiled.layout import DECODE, ORDER_QUEUE, ORDER_SHORTEST, WAITING
from synergy_gym.sim.compiled.reach import (
    detail_of,
    objective_of,
    planned_of,
    request_of,
    rule_of,
)

NO_LIMIT_NS = 1 << 61


@inner
def run_append(world, engine, r):  # type: ignore[no-untyped-def]
    """Put `r` at the end of the running list."""
    request = request_of(world, r)
    request.previous, request.next = engine.last_running, -1
    if engine.last_running < 0:
        engine.first_running = r
    else:
        request_of(world, engine.last_running).next = r
    engine.last_running = r
    engine.running += 1
    engine.last_rank += 1
    detail_of(world, r).rank = engine.last_rank


@inner
def run_unlink(world, engine, r):  # type: ignore[no-untyped-def]
    """Take `r` out of the running list."""
    request = request_of(world, r)
    _bridge(world, request)
    if request.previous < 0:
        engine.first_running = request.next
    if request.next < 0:
        engine.last_running = request.previous
    engine.running -= 1


@inner
def _bridge(world, request):  # type: ignore[no-untyped-def]
    """Link the neighbours of a request with each other."""
    if request.previous >= 0:
        request_of(world, request.previous).next = request.next
    if request.next >= 0:
        request_of(world, request.next).previous = request.previous


@inner
def wait_append(world, engine, r):  # type: ignore[no-untyped-def]
    """Put a newly arrived request into the waiting queue."""
    successor = np.int64(-1)
    if engine.priority or rule_of(engine).order != ORDER_QUEUE:
        last = engine.last_waiting
        while last >= 0 and _belongs_before(world, engine, r, last):
            successor = last
            last = request_of(world, last).previous
    _insert_before(world, engine, r, successor)


@inner
def wait_prepend(world, engine, r):  # type: ignore[no-untyped-def]
    """Put a preempted request back: at the head, or where a sorted queue wants it."""
    successor = engine.first_waiting
    if engine.priority or rule_of(engine).order != ORDER_QUEUE:
        while successor >= 0 and _belongs_before(world, engine, successor, r):
            successor = request_of(world, successor).next
    _insert_before(world, engine, r, successor)


@inner
def wait_unlink(world, engine, r):  # type: ignore[no-untyped-def]
    """Take `r` out of the waiting queue."""
    request = request_of(world, r)
    _bridge(world, request)
    if request.previous < 0:
        engine.first_waiting = request.next
    if request.next < 0:
        engine.last_waiting = request.previous
    engine.waiting -= 1
    engine.waiting_tokens -= request.prompt_tokens + request.generated_tokens


@inner
def _insert_before(world, engine, r, successor):  # type: ignore[no-untyped-def]
    """Link `r` into the waiting queue before `successor` (-1: at the end)."""
    request = request_of(world, r)
    before = engine.last_waiting
    if successor >= 0:
        before = request_of(world, successor).previous
        request_of(world, successor).previous = r
    else:
        engine.last_waiting = r
    request.previous, request.next = before, successor
    if before < 0:
        engine.first_waiting = r
    else:
        request_of(world, before).next = r
    request.state = WAITING
    engine.waiting += 1
    engine.waiting_tokens += request.prompt_tokens + request.generated_tokens


@inner
def _belongs_before(world, engine, r, other):  # type: ignore[no-untyped-def]
    """Whether `r` belongs strictly before `other` in a sorted queue."""
    x, y = _order_key(world, engine, r), _order_key(world, engine, other)
    if engine.priority and x == y:
        x, y = request_of(world, r).arrival_ns, request_of(world, other).arrival_ns
        if x == y:
            return r < other
    return x < y


@inner
def _order_key(world, engine, r):  # type: ignore[no-untyped-def]
    if engine.priority:
        return detail_of(world, r).priority
    request = request_of(world, r)
    if rule_of(engine).order == ORDER_SHORTEST:
        return request.prompt_tokens + request.generated_tokens
    limit = objective_of(world, request.slo_class).ttft_ns
    return request.arrival_ns + (limit if limit >= 0 else np.int64(NO_LIMIT_NS))


@inner
def _relink(world, requests):  # type: ignore[no-untyped-def]
    """Link `requests` into one list in their order."""
    before = np.int64(-1)
    for i in range(len(requests)):
        r = requests[i]
        request_of(world, r).previous = before
        if before >= 0:
            request_of(world, before).next = r
        before = r
    request_of(world, before).next = -1


@inner
def reorder_waiting(world, engine, requests):  # type: ignore[no-untyped-def]
    """Bring the waiting queue into the order of `requests`, which are all in it."""
    _relink(world, requests)
    engine.first_waiting, engine.last_waiting = requests[0], requests[-1]


@inner
def reorder_running(world, engine, requests):  # type: ignore[no-untyped-def]
    """Bring the running list, and what follows its order, into that of `requests`."""
    _relink(world, requests)
    engine.first_running, engine.last_running = requests[0], requests[-1]
    for i in range(len(requests)):
        engine.last_rank += 1
        detail_of(world, requests[i]).rank = engine.last_rank
    _reorder_planned(world, engine, requests)


@inner
def _reorder_planned(world, engine, requests):  # type: ignore[no-untyped-def]
    count = 0
    for i in range(len(requests)):
        if request_of(world, requests[i]).state != DECODE:
            planned_of(engine, count).request = requests[i]
            count += 1
