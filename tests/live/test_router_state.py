"""The router's table by itself; `test_conformance_router.py` plays it beside the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from synergy_gym.live.router.state import (
    HEARTBEAT_SIZE,
    PUSH_SIZE,
    SCRAPE_SIZE,
    RouterState,
)
from synergy_gym.types import EngineSpec, InformationError, Outcome, RouterRow

MS = 1_000_000


def engines(count: int = 3) -> list[EngineSpec]:
    return [
        EngineSpec(f"e{i}", "gpu", "model", "", 8, 512, 1024, kv_blocks=100 + i)
        for i in range(count)
    ]


def column(state: RouterState, name: RouterRow) -> list[int]:
    return list(state.rows()[:, name].tolist())


def test_counts_follow_requests() -> None:
    state = RouterState(engines())
    state.routed(1, 0, 100, 0)
    state.routed(2, 2, 30, MS)
    state.routed(3, 0, 7, 2 * MS)
    assert column(state, RouterRow.IN_FLIGHT) == [2, 0, 1]
    assert column(state, RouterRow.IN_FLIGHT_TOKENS) == [107, 0, 30]
    assert column(state, RouterRow.ROUTED_SINCE_PUSH) == [107, 0, 30]
    assert state.in_flight(0) == [1, 3]
    state.ended(1, Outcome.FINISHED, 5 * MS)
    assert column(state, RouterRow.IN_FLIGHT_TOKENS) == [7, 0, 30]
    assert column(state, RouterRow.ROUTED_SINCE_PUSH) == [107, 0, 30], "until the next push"


def test_a_push_resets_what_was_routed_and_a_heartbeat_keeps_the_model() -> None:
    state = RouterState(engines())
    state.routed(1, 1, 50, 0)
    vector = list(range(PUSH_SIZE))
    state.pushed(1, vector)
    row = state.rows()[1]
    assert row[RouterRow.ROUTED_SINCE_PUSH] == 0
    assert row[RouterRow.PUSH_PENDING_TOKENS] == 5
    assert row[RouterRow.PUSH_FLOOR_FS] == 20
    state.routed(2, 1, 50, 0)
    state.pushed(1, [9, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0])
    row = state.rows()[1]
    assert row[RouterRow.ROUTED_SINCE_PUSH] == 0
    assert row[RouterRow.PUSH_TOTAL_BLOCKS] == 99
    assert (row[RouterRow.PUSH_CAPACITY], row[RouterRow.PUSH_FLOOR_FS]) == (0, 20)
    assert row[RouterRow.IN_FLIGHT] == 2, "only requests change it"


def test_before_any_push_an_engine_is_idle_and_has_told_what_it_starts_with() -> None:
    told = [list(range(10, 21)) for _ in range(3)]
    rows = RouterState(engines(), told=told).rows()
    assert rows[:, RouterRow.PUSH_TOTAL_BLOCKS].tolist() == [100, 101, 102]
    assert rows[:, RouterRow.PUSH_CAPACITY].tolist() == [0, 0, 0]
    assert rows[:, RouterRow.PUSH_PEAK_MILLITPS].tolist() == [11, 11, 11]
    assert rows[:, RouterRow.ALIVE].tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [0, HEARTBEAT_SIZE - 1, HEARTBEAT_SIZE + 1, PUSH_SIZE + 1])
def test_vectors_of_another_length_are_refused(size: int) -> None:
    state = RouterState(engines())
    before = state.rows()
    with pytest.raises(ValueError, match=f"{size} numbers"):
        state.pushed(0, [1] * size)
    assert (state.rows() == before).all()


def test_scrapes_fill_their_columns() -> None:
    state = RouterState(engines())
    state.scraped(2, list(range(1, SCRAPE_SIZE + 1)))
    rows = state.rows()
    assert rows[2, RouterRow.SCRAPE_NS : RouterRow.SCRAPE_FINISHED + 1].tolist() == [*range(1, 10)]
    assert not rows[:2, RouterRow.SCRAPE_NS].any()
    with pytest.raises(ValueError, match="8 numbers"):
        state.scraped(2, [0] * 8)


def test_sessions_remember_the_last_engine_and_the_oldest_is_forgotten() -> None:
    state = RouterState(engines(), max_sessions=2)
    rng = np.random.default_rng(0)
    state.routed(1, 0, 1, 0, session=7)
    state.routed(2, 1, 1, 2 * 10**9, session=7)
    view = state.cluster_view(5 * 10**9, rng=rng, session=7)
    assert (view.session_engine, view.session_age_s) == (1, 3.0)
    assert state.cluster_view(0, rng=rng, session=-1).session_engine == -1
    state.routed(3, 2, 1, 3 * 10**9, session=8)
    state.routed(4, 2, 1, 4 * 10**9, session=9)
    assert state.cluster_view(0, rng=rng, session=7).session_engine == -1
    assert state.cluster_view(0, rng=rng, session=8).session_engine == 2


def test_completions_tell_what_the_router_saw_in_order() -> None:
    state = RouterState(engines())
    state.routed(5, 1, 10, 100 * MS, session=3, arrival_ns=50 * MS)
    state.routed(4, 1, 20, 100 * MS)
    state.routed(6, 0, 30, 100 * MS)
    state.emitted(5, 150 * MS)
    state.emitted(5, 170 * MS, tokens=3)
    view = state.ended(5, Outcome.FINISHED, 250 * MS)
    state.ended(6, Outcome.ABORTED, 250 * MS)
    state.ended(4, Outcome.FINISHED, 250 * MS, output_tokens=9)
    state.refused(9, 8, 240 * MS, arrival_ns=200 * MS)
    assert (view.ttft_s, view.e2e_s, view.output_tokens) == (0.1, 0.2, 4)
    assert (view.session, view.engine, view.prompt_tokens) == (3, 1, 10)
    seen = state.completions()
    assert [(c.engine, c.prompt_tokens) for c in seen] == [(-1, 8), (0, 30), (1, 20), (1, 10)]
    assert [c.outcome.name for c in seen] == ["FAILED", "ABORTED", "FINISHED", "FINISHED"]
    assert [c.ttft_s for c in seen] == [-1.0, -1.0, -1.0, 0.1]
    assert seen[2].output_tokens == 9
    assert state.completions() == []


def test_down_engines_take_nothing() -> None:
    state = RouterState(engines())
    state.down(1)
    assert state.alive.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="engine 1 is down"):
        state.routed(1, 1, 10, 0)
    with pytest.raises(ValueError, match="engine 3 does not exist"):
        state.routed(1, 3, 10, 0)
    state.up(1)
    state.routed(1, 1, 10, 0)
    with pytest.raises(ValueError, match="in flight already"):
        state.routed(1, 0, 10, 0)


def test_avoided_engines_look_down_in_the_view_only() -> None:
    state = RouterState(engines())
    view = state.cluster_view(0, rng=np.random.default_rng(0), avoid=[0, 2])
    assert view.alive.tolist() == [False, True, False]
    assert state.alive.all()


def test_views_are_snapshots_and_guard_their_classes() -> None:
    state = RouterState(engines())
    view = state.cluster_view(0, rng=np.random.default_rng(0), information=frozenset({"router"}))
    state.routed(1, 0, 10, 0)
    assert view.in_flight.tolist() == [0, 0, 0]
    with pytest.raises(InformationError):
        view.pushed  # noqa: B018


def test_a_router_without_engines_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one engine"):
        RouterState([])
