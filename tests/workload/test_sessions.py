"""Conversations: growth, shared content, stationarity, closed loop, common random numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.seeding import stream
from synergy_gym.types import NS_PER_S
from synergy_gym.workload import sessions
from synergy_gym.workload.arrivals import draw_arrivals
from synergy_gym.workload.base import Workload
from synergy_gym.workload.sessions import Talk, Turns, draw_turns, mean_turns, session_workload
from synergy_gym.workload.spec import ArrivalSpec, LengthSpec, SessionSpec

TURNS = LengthSpec("geometric", {"mean": 3.0}, maximum=12)
LENGTHS = LengthSpec("uniform", {"low": 5, "high": 60})


def talk(**changes: Any) -> Talk:
    return Talk(replace(SessionSpec(turns=TURNS, think_s=5.0), **changes), LENGTHS, LENGTHS)


def play(t: Talk, rate: float = 4.0, horizon: float = 60.0, seed: int = 1) -> Workload:
    return session_workload(t, ArrivalSpec(), rate, horizon, seed)[0]


def by_session(turns: Turns, session: int) -> Turns:
    return turns.select(np.flatnonzero(turns.session == session))


def previous_of(workload: Workload) -> list[int]:
    last: dict[int, int] = {}
    previous = []
    for row, session in enumerate(workload.session.tolist()):
        previous.append(last.get(session, -1))
        last[session] = row
    return previous


def test_appended_prompts_repeat_everything_said() -> None:
    turns = draw_turns(talk(system_prompts=2, system_tokens=100, history_tokens=7), 50, seed=3)
    for session in range(50):
        own = by_session(turns, session)
        said = own.prompt_tokens + own.output_tokens
        assert own.turn.tolist() == list(range(len(own.turn)))
        assert 107 + 5 <= own.prompt_tokens[0] <= 107 + 60
        assert own.reused_tokens.tolist() == [0, *said[:-1].tolist()]
        added = own.prompt_tokens[1:] - said[:-1]
        assert np.all((added >= 5) & (added <= 60))


def test_window_prompts_keep_their_distribution_and_grow() -> None:
    turns = draw_turns(talk(growth="window", prompt_correlation=0.9), 30_000, seed=3)
    shares = np.bincount(turns.prompt_tokens, minlength=61)[5:] / len(turns.turn)
    assert shares == pytest.approx(1 / 56, abs=0.003)
    assert np.all(np.diff(turns.prompt_tokens)[turns.turn[1:] > 0] >= 0)
    within = [by_session(turns, s).prompt_tokens.std() for s in range(200)]
    assert np.mean(within) < 0.5 * turns.prompt_tokens.std()


def test_a_sliding_window_repeats_few_tokens() -> None:
    turns = draw_turns(talk(growth="window", reused_tokens=20), 200, seed=3)
    later = turns.turn > 0
    assert np.all(turns.reused_tokens[~later] == 0)
    assert np.all(turns.reused_tokens[later] <= 20)
    assert np.all(turns.reused_tokens <= turns.prompt_tokens)


def test_a_context_limit_ends_sessions_and_keeps_the_rate() -> None:
    limited = talk(context_limit_tokens=200)
    turns = draw_turns(limited, 500, seed=4)
    assert np.max(turns.prompt_tokens + turns.output_tokens) <= 200
    assert mean_turns(limited) < mean_turns(talk())
    counts = [len(play(limited, rate=5.0, horizon=100.0, seed=s)) for s in range(40)]
    assert np.mean(counts) == pytest.approx(500, rel=0.05)


def test_a_context_limit_below_every_turn_is_an_error() -> None:
    with pytest.raises(ValueError, match="context_limit_tokens = 3 is below every first turn"):
        play(talk(context_limit_tokens=3))


def test_think_times_have_mean_and_cv() -> None:
    turns = draw_turns(talk(think_s=20.0, think_cv=0.8), 20_000, seed=5)
    gaps = turns.gap_ns[turns.turn > 0] / NS_PER_S
    assert gaps.mean() == pytest.approx(20.0, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(0.8, rel=0.05)


def test_request_rate_is_steady_from_the_first_second() -> None:
    thirds = np.zeros(3)
    for seed in range(200):
        times = play(talk(), rate=5.0, horizon=60.0, seed=seed).arrival_ns
        thirds += np.histogram(times, bins=3, range=(0, 60 * NS_PER_S))[0]
    print(f"seeds 0-199: requests per third {thirds}")
    assert thirds / 200 == pytest.approx([100, 100, 100], rel=0.03)


@given(seed=st.integers(0, 2**32), rate=st.floats(0.1, 20.0), append=st.booleans())
def test_workloads_are_legal_and_share_what_turns_repeat(
    seed: int, rate: float, append: bool
) -> None:
    chosen = talk(growth="append" if append else "window", system_prompts=3, system_tokens=16)
    workload = play(chosen, rate=rate, horizon=20.0, seed=seed)
    assert np.all(np.diff(workload.arrival_ns) >= 0)
    if len(workload):
        assert 0 <= workload.arrival_ns[0] <= workload.arrival_ns[-1] < 20 * NS_PER_S
        assert sorted(set(workload.session.tolist())) == list(range(workload.session.max() + 1))
    offsets, ids = workload.block_ids(8)
    for row, before in enumerate(previous_of(workload)):
        own = ids[offsets[row] : offsets[row + 1]]
        if before >= 0:
            said = int(workload.prompt_tokens[before] + workload.output_tokens[before])
            shared = min(said, int(workload.prompt_tokens[row])) // 8
            earlier = ids[offsets[before] : offsets[before + 1]]
            assert own[:shared].tolist() == earlier[:shared].tolist()


@given(
    seed=st.integers(0, 2**32),
    growth=st.sampled_from(["append", "window"]),
    limit=st.sampled_from([0, 150]),
    least=st.integers(0, 1),
)
def test_only_turns_that_arrive_are_worked_out_and_none_changes(
    seed: int, growth: str, limit: int, least: int
) -> None:
    turns = replace(TURNS, minimum=least, maximum=6)
    if least == 0:
        turns = replace(turns, kind="empirical", options={"values": (0, 0, 1, 4)})
    chosen = talk(turns=turns, growth=growth, context_limit_tokens=limit, reused_tokens=30)
    workload = play(chosen, rate=3.0, horizon=15.0, seed=seed)
    rps = 3.0 / mean_turns(chosen)
    new = draw_arrivals("poisson", stream(seed, "arrivals", 0), rps, 15.0)
    old = -draw_arrivals("poisson", stream(seed, "arrivals", 1), rps, chosen.lead_s)
    rows = []
    for member, start in enumerate((new, old)):
        every = draw_turns(chosen, len(start), seed, member)
        due = start[every.session] + every.offset_ns
        columns = (due, every.session, every.turn, every.prompt_tokens, every.output_tokens)
        for at, session, turn, *said in zip(*(c.tolist() for c in columns), strict=True):
            if 0 <= at < 15 * NS_PER_S:
                rows.append((at, member, session, turn, *said))
    rows.sort()
    assert workload.arrival_ns.tolist() == [row[0] for row in rows]
    assert workload.prompt_tokens.tolist() == [row[4] for row in rows]
    assert workload.output_tokens.tolist() == [row[5] for row in rows]
    numbers: dict[tuple[int, int], int] = {}
    expected = [numbers.setdefault(row[1:3], len(numbers)) for row in rows]
    assert workload.session.tolist() == expected


@pytest.mark.parametrize("growth", ["append", "window"])
def test_numbers_too_large_to_be_sorted_as_one_are_sorted_alike(
    growth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = talk(growth=growth, system_prompts=2, system_tokens=16)
    packed = play(chosen, rate=20.0)
    monkeypatch.setattr(sessions, "_KEY_BITS", 0)
    apart = play(chosen, rate=20.0)
    for name in ("arrival_ns", "prompt_tokens", "output_tokens", "session"):
        assert getattr(packed, name).tolist() == getattr(apart, name).tolist()
    assert packed.block_ids(8)[1].tolist() == apart.block_ids(8)[1].tolist()


def test_system_prompts_are_shared_across_sessions() -> None:
    workload = play(talk(system_prompts=2, system_tokens=64), rate=10.0)
    offsets, ids = workload.block_ids(16)
    first = [ids[offsets[row] : offsets[row] + 4].tolist() for row in range(len(workload))]
    assert len({tuple(blocks) for blocks in first}) == 2


def test_a_prompt_within_its_system_prompt_keeps_its_output_to_itself() -> None:
    chosen = talk(growth="window", turns=LengthSpec("constant", {"value": 1}))
    workload = play(
        replace(chosen, sessions=replace(chosen.sessions, system_prompts=1, system_tokens=64))
    )
    offsets, ids = workload.block_ids(1)
    ends = offsets[:-1] + np.minimum(workload.prompt_tokens, 64)
    first_own = ids[ends]
    assert len(workload) > 100
    assert len(np.unique(first_own)) == len(workload)
    assert len(np.unique(ids[ends - 1])) <= 64


def test_closed_loop_turns_wait_for_the_turn_before() -> None:
    planned, closed = play(talk()), play(talk(closed_loop=True))
    assert closed.prompt_tokens.tolist() == planned.prompt_tokens.tolist()
    assert closed.after.tolist() == previous_of(planned)
    for row, before in enumerate(closed.after.tolist()):
        expected = planned.arrival_ns[row] - (planned.arrival_ns[before] if before >= 0 else 0)
        assert closed.arrival_ns[row] == expected
    assert np.all(planned.after == -1)


def test_another_load_holds_the_same_conversations() -> None:
    few, many = draw_turns(talk(), 20, seed=9), draw_turns(talk(), 50, seed=9)
    for name in Turns.__slots__:
        longer = getattr(many, name)[: len(few.turn)]
        assert longer.tolist() == getattr(few, name).tolist()


def test_unknown_growth_is_an_error() -> None:
    with pytest.raises(ValueError, match='choose "append" or "window"'):
        play(talk(growth="shrink"))
