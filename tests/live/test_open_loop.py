"""Clients of a live cluster: arrivals, retries and closed loops, in given time."""

from __future__ import annotations

import numpy as np

from synergy_gym.live.cluster.clients import OpenLoop
from synergy_gym.sim.plain.records import RequestTable
from synergy_gym.types import SLO, ClientSpec, Outcome
from synergy_gym.workload.base import Workload, make_workload

SECOND = 1_000_000_000
FAR = 1 << 60


def clients(workload: Workload, horizon_ns: int = FAR, **client: float) -> OpenLoop:
    table = RequestTable(workload, (SLO("default"),), 0, horizon_ns, False)
    spec = ClientSpec(**client)  # type: ignore[arg-type]
    return OpenLoop(workload, table, spec, horizon_ns)


def steady(count: int, after: list[int] | None = None) -> Workload:
    ones = np.ones(count, np.int64)
    follows = None if after is None else np.array(after)
    return make_workload(np.arange(count) * SECOND, ones, ones, after=follows)


def test_arrivals_are_due_at_their_own_times() -> None:
    loop = clients(steady(3))
    assert (loop.next_ns(), loop.arrive(0), loop.arrive(0)) == (0, 0, None)
    assert loop.next_ns() == SECOND
    # Whoever looks late gets everybody who is due, in order, each with its own due time.
    assert [loop.arrive(5 * SECOND) for _ in range(3)] == [1, 2, None]
    assert loop.due_ns == [0, SECOND, 2 * SECOND]
    assert loop.next_ns() is None


def test_a_client_retries_as_often_as_it_is_patient() -> None:
    loop = clients(steady(1), timeout_s=3.0, max_retries=2, backoff_s=0.5)
    assert loop.arrive(0) == 0
    assert loop.deadline_ns(0) == 3 * SECOND
    for attempt in (1, 2):
        assert not loop.leave(0, Outcome.ABORTED, attempt * 10 * SECOND)
        back = attempt * 10 * SECOND + SECOND // 2
        assert (loop.next_ns(), loop.arrive(back - 1), loop.arrive(back)) == (back, None, 0)
        assert loop.deadline_ns(0) == back + 3 * SECOND
    assert loop.leave(0, Outcome.FAILED, 40 * SECOND)
    assert loop.left == 1


def test_what_the_router_tries_again_costs_no_patience() -> None:
    loop = clients(steady(1), timeout_s=3.0, max_retries=1)
    assert loop.arrive(0) == 0
    for number in range(3):
        loop.again(0, number)
        assert loop.arrive(number) == 0
        assert loop.deadline_ns(0) == 3 * SECOND
    assert not loop.leave(0, Outcome.FAILED, SECOND)
    assert loop.arrive(SECOND) == 0
    assert loop.leave(0, Outcome.FAILED, SECOND)


def test_finished_and_rejected_requests_are_not_retried() -> None:
    loop = clients(steady(2), max_retries=5)
    loop.arrive(0)
    loop.arrive(SECOND)
    assert loop.leave(0, Outcome.FINISHED, SECOND)
    assert loop.leave(1, Outcome.REJECTED, SECOND)
    assert (loop.left, loop.next_ns()) == (2, None)


def test_a_closed_loop_waits_for_the_turn_before() -> None:
    loop = clients(steady(4, after=[-1, 0, 1, 2]), horizon_ns=30 * SECOND)
    assert loop.arrive(0) == 0
    assert loop.next_ns() is None
    loop.leave(0, Outcome.FINISHED, 10 * SECOND)
    assert loop.next_ns() == 11 * SECOND
    assert loop.arrive(11 * SECOND) == 1
    # A turn that would begin after the horizon never does, nor do those behind it.
    loop.leave(1, Outcome.FINISHED, 29 * SECOND)
    assert (loop.next_ns(), loop.left) == (None, 4)


def test_what_is_left_when_the_episode_is_cut_is_unfinished() -> None:
    loop = clients(steady(3))
    loop.arrive(0)
    loop.leave(0, Outcome.FINISHED, 1)
    loop.arrive(SECOND)
    loop.truncate()
    assert (loop.left, loop.next_ns()) == (3, None)
    loop.truncate()
    assert loop.left == 3
