"""Invariant 2: arrival <= scheduled <= first token <= finish, and all tokens are emitted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from synergy_gym.types import NS_PER_S, Outcome, RequestRecords
from tests.strategies import SIMULATORS, Episode, episodes, play

STAGES = ("arrival_ns", "scheduled_ns", "first_token_ns", "finish_ns")


def check_order(records: RequestRecords) -> None:
    """Stages that were reached are in order, and none is reached before the one before it."""
    for earlier, later in itertools.pairwise(STAGES):
        before, after = getattr(records, earlier), getattr(records, later)
        reached = after >= 0
        assert np.all(before[reached] >= 0), f"{later} without {earlier}"
        assert np.all(before[reached] <= after[reached]), f"{later} before {earlier}"


def check_tokens(records: RequestRecords, episode: Episode) -> None:
    """Output is cut at the model's length or the KV size, whichever is smaller, and only there."""
    done = records.outcome == Outcome.FINISHED
    np.testing.assert_array_equal(records.emitted_tokens[done], records.output_tokens[done])
    assert np.all(records.emitted_tokens <= records.output_tokens)
    assert np.all(records.output_tokens <= episode.workload.output_tokens)
    for index, spec in enumerate(episode.engines):
        here = done & (records.engine == index)
        total = records.prompt_tokens[here] + records.output_tokens[here]
        assert np.all(total <= spec.max_model_len)
        assert np.all(total <= spec.kv_blocks * spec.block_size)
        cut = records.output_tokens[here] < episode.workload.output_tokens[here]
        if not episode.arguments["events"]:
            assert np.all(total[cut] == min(spec.max_model_len, spec.kv_blocks * spec.block_size))


def check_outcomes(records: RequestRecords) -> None:
    """What each end of a life means for its times."""
    finished = records.outcome == Outcome.FINISHED
    np.testing.assert_array_equal(finished, records.finish_ns >= 0)
    assert np.all(records.emitted_tokens[finished] >= 1)
    np.testing.assert_array_equal(records.emitted_tokens > 0, records.first_token_ns >= 0)
    rejected = records.outcome == Outcome.REJECTED
    assert np.all(records.finish_ns[rejected] == -1)
    assert np.all(records.attempts[finished | rejected] >= 1)
    assert np.all((records.arrival_ns >= 0) == (records.attempts >= 1)) or np.all(
        records.outcome[(records.arrival_ns >= 0) & (records.attempts == 0)] == Outcome.UNFINISHED
    )


def check_arrivals(records: RequestRecords, episode: Episode) -> None:
    """A request of the trace arrives when the trace says, and a retried one keeps that time."""
    opened = episode.workload.after < 0
    arrival = episode.workload.arrival_ns[opened]
    np.testing.assert_array_equal(records.arrival_ns[opened], arrival)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_lives_are_legal(simulator: type, episode: Episode) -> None:
    sim = episode.build(simulator)
    if not play(sim, episode.seed):
        return
    records = sim.records()
    check_order(records)
    check_tokens(records, episode)
    check_outcomes(records)
    check_arrivals(records, episode)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_lives_are_legal_while_they_last(simulator: type, episode: Episode) -> None:
    """What records and completions say in the middle of an episode is as legal as its end."""

    def visit(sim: Any, point: int) -> None:
        check_order(sim.records())
        for completion in sim.completions():
            assert completion.ttft_s == -1 or 0 <= completion.ttft_s <= completion.e2e_s
            assert (completion.output_tokens > 0) == (completion.ttft_s >= 0)
            assert completion.now_s <= sim.now_ns / NS_PER_S

    play(episode.build(simulator), episode.seed, visit)
