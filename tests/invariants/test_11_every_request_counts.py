"""Invariant 11: scores count every offered request, whatever became of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.metrics import scored, slo_met, summarize
from synergy_gym.types import Outcome, RequestRecords
from tests.strategies import SEEDS, SIMULATORS, SLOS, Episode, episodes, play

MISSES = [outcome for outcome in Outcome if outcome != Outcome.FINISHED]


def played(episode: Episode, simulator: type = SIMULATORS[0]) -> tuple[RequestRecords, int]:
    sim = episode.build(simulator)
    play(sim, episode.seed)
    return sim.records(), sim.met()


def window(episode: Episode) -> dict[str, int]:
    return {name: episode.arguments[name] for name in ("warmup_ns", "horizon_ns")}


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_attainment_is_a_share_of_all(simulator: type, episode: Episode) -> None:
    """Of every request that arrived in the window; the simulator's own count agrees."""
    records, met = played(episode, simulator)
    summary = summarize(records, SLOS, **window(episode))
    inside = scored(records, **window(episode))
    assert summary["offered"] == int(inside.sum())
    parts = ("finished", "rejected", "aborted", "failed", "unfinished")
    assert sum(summary[part] for part in parts) == summary["offered"]
    assert summary["full"]["offered"] == len(episode.workload)
    if summary["offered"]:
        assert summary["slo_attainment"] == met / summary["offered"]
        assert summary["slo_attainment"] <= summary["finished"] / summary["offered"]


@given(episode=episodes())
def test_whoever_did_not_finish_is_a_miss(episode: Episode) -> None:
    """Of every single objective, declared by the class or not met by chance."""
    records, _ = played(episode)
    met = slo_met(records, SLOS)
    late = records.outcome != Outcome.FINISHED
    for verdicts in (met.slo, met.ttft, met.tpot, met.e2e):
        assert not np.any(verdicts[late])


@given(episode=episodes(), outcome=st.sampled_from(MISSES), seed=SEEDS)
def test_losing_a_request_never_helps(episode: Episode, outcome: Outcome, seed: int) -> None:
    """Dropping, failing or cutting finished requests keeps the denominator, lowers the rest."""
    records, _ = played(episode)
    lost = np.random.default_rng(seed).random(len(records)) < 0.5
    done = records.outcome == Outcome.FINISHED
    worse = replace(
        records,
        outcome=np.where(lost & done, int(outcome), records.outcome),
        finish_ns=np.where(lost & done, -1, records.finish_ns),
    )
    before, after = (summarize(r, SLOS, **window(episode)) for r in (records, worse))
    assert after["offered"] == before["offered"]
    for name in ("slo", "ttft", "tpot", "e2e"):
        a, b = after[f"{name}_attainment"], before[f"{name}_attainment"]
        assert np.isnan(b) or a <= b


def test_a_late_request_is_a_miss() -> None:
    """Finished, but one nanosecond after its deadline."""
    column = np.zeros(2, np.int64)
    first = np.array([200_000_000, 200_000_001])
    records = RequestRecords(
        arrival_ns=column,
        scheduled_ns=column,
        first_token_ns=first,
        finish_ns=first,
        prompt_tokens=column + 1,
        output_tokens=column + 1,
        emitted_tokens=column + 1,
        cached_tokens=column,
        preemptions=column,
        engine=column,
        outcome=column + int(Outcome.FINISHED),
        slo_class=column,
        session=column - 1,
        attempts=column + 1,
    )
    assert slo_met(records, SLOS).slo.tolist() == [True, False]
    assert summarize(records, SLOS)["slo_attainment"] == 0.5
