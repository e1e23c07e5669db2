"""Rankings by the protocol: scores, ties, shares of the gap, oracles, families."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from synergy_gym.evaluation.board.scores import (
    baseline,
    oracle_table,
    page_table,
    ranking,
    score_table,
    tied_ranks,
)
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.jobs import COLUMNS
from synergy_gym.evaluation.statistics import (
    estimate,
    expanded_level,
    gap_closed,
    interquartile_mean,
    paired_estimate,
)
from synergy_gym.types import FloatArray

SEEDS = tuple(range(3000, 3010))
CELLS = (("chat-h100", 0.8), ("chat-h100", 1.0), ("heldout-reasoning-h100", 1.0))


def rows_of(policy: str, scores: FloatArray, router: str = "round-robin") -> list[Row]:
    """Rows of one engine policy with `(seeds, cells)` attainments."""
    return [
        dict.fromkeys(COLUMNS, 0.0)
        | {
            "suite": "s",
            "scenario": scenario,
            "load": load,
            "seed": seed,
            "engine_policy": policy,
            "router_policy": router,
            "slo_attainment": float(scores[i, j]),
            "preemptions": 0,
        }
        for j, (scenario, load) in enumerate(CELLS)
        for i, seed in enumerate(SEEDS)
    ]


def drawn(rng: np.random.Generator, mean: float) -> FloatArray:
    return np.clip(mean + 0.03 * rng.normal(size=(len(SEEDS), len(CELLS))), 0, 1)


def test_a_score_is_scipys_trimmed_mean_with_the_corrected_interval(
    rng: np.random.Generator,
) -> None:
    scores = drawn(rng, 0.8)
    row = ranking(rows_of("vllm-v1", scores), "engine").iloc[0]
    found = estimate(scores, interquartile_mean)
    assert row["iqm"] == pytest.approx(stats.trim_mean(scores.ravel(), 0.25), abs=1e-12)
    assert (row["iqm_low"], row["iqm_high"]) == (found.low, found.high)
    assert row["slo_attainment"] == pytest.approx(scores.mean(), abs=1e-12)
    assert row["iqm held-out"] == pytest.approx(stats.trim_mean(scores[:, 2], 0.25), abs=1e-12)
    assert row["iqm development"] == pytest.approx(
        stats.trim_mean(scores[:, :2].ravel(), 0.25), abs=1e-12
    )


def test_rows_of_seeds_are_matched_by_seed_and_cell(rng: np.random.Generator) -> None:
    scores = drawn(rng, 0.5)
    rows = rows_of("a", scores)
    rng.shuffle(rows)
    assert score_table(rows, "engine").of["a"] == pytest.approx(scores, abs=0)


def test_who_cannot_be_told_from_the_best_of_a_rank_shares_it(rng: np.random.Generator) -> None:
    traffic = drawn(rng, 0.7)
    policies = {
        "best": traffic + 0.1,
        "alike": traffic + 0.1 + 0.005 * rng.normal(size=traffic.shape),
        "third": traffic + 0.05,
        "twin": traffic + 0.05,
        "last": traffic - 0.2,
    }
    table = ranking([r for name, x in policies.items() for r in rows_of(name, x)], "engine")
    ranks = dict(zip(table["policy"], table["rank"], strict=True))
    difference = paired_estimate(policies["best"], policies["alike"], interquartile_mean)
    if difference.low <= 0 <= difference.high:  # by chance 5 of 100 pairs are told apart
        assert (ranks["best"], ranks["alike"]) == (1, 1)
    assert (ranks["third"], ranks["twin"], ranks["last"]) == (3, 3, 5)
    # Policies that are alike step by step do not drag one another up: 3 differs from 1.
    steps = [traffic, traffic, traffic - 0.2, traffic - 0.2]
    assert tied_ranks(steps) == [1, 1, 3, 3]
    assert tied_ranks([traffic[:1], traffic[:1]]) == [1, 2]
    assert tied_ranks([traffic, None, None]) == [1, 2, 3]


def test_shares_of_the_gap(rng: np.random.Generator) -> None:
    base, better = drawn(rng, 0.5), drawn(rng, 0.8)
    oracle = np.minimum(better + 0.1, 1.0)
    bounds = {(scenario, load, seed): 1.0 for scenario, load in CELLS for seed in SEEDS}
    rows = rows_of("vllm-v1", base) + rows_of("lens-plus", better) + rows_of("clairvoyant", oracle)
    table = ranking(rows, "engine", bounds).set_index("policy")
    assert "clairvoyant" not in table.index
    assert baseline("engine") == "vllm-v1"
    expected = gap_closed(better, base, np.ones_like(base))
    gap = table.loc["lens-plus", ["gap", "gap_low", "gap_high"]].astype(float)
    assert list(gap) == [expected.value, expected.low, expected.high]
    assert gap["gap"] == pytest.approx((better.mean() - base.mean()) / (1 - base.mean()), abs=1e-12)
    best = np.max([base, better, oracle], axis=0).mean()
    played = (better.mean() - base.mean()) / (best - base.mean())
    assert table.loc["lens-plus", "gap_played"] == pytest.approx(played, abs=1e-12)
    assert table.loc["vllm-v1", "gap"] == 0.0
    shown = oracle_table(rows, "engine", bounds).set_index("policy")
    assert list(shown.index) == ["clairvoyant", "in hindsight", "bound"]
    assert shown.loc["bound", "gap"] == 1.0
    assert shown.loc["in hindsight", "slo_attainment"] == pytest.approx(best, abs=1e-12)


def test_without_bounds_or_baseline_there_is_no_gap(rng: np.random.Generator) -> None:
    rows = rows_of("lens-plus", drawn(rng, 0.8)) + rows_of("static-256", drawn(rng, 0.4))
    table = ranking(rows, "engine")
    assert table["gap"].isna().all()
    assert table["gap_played"].isna().all()
    assert "gap closed" not in page_table(table).columns


def test_missing_episodes_and_one_seed_have_no_interval(rng: np.random.Generator) -> None:
    whole, part = rows_of("whole", drawn(rng, 0.2)), rows_of("part", drawn(rng, 0.9))[:-1]
    table = ranking([*whole, *part], "engine").set_index("policy")
    assert list(table.index) == ["whole", "part"]
    assert list(table["rank"]) == [1, 2]
    assert math.isnan(table.loc["part", "iqm_low"])
    one = [row for row in whole if row["seed"] == SEEDS[0]]
    assert math.isnan(ranking(one, "engine").loc[0, "iqm_low"])


def test_cells_tell_the_other_layer_apart(rng: np.random.Generator) -> None:
    scores = drawn(rng, 0.6)
    rows = [*rows_of("a", scores), *rows_of("a", scores - 0.1, "session")]
    table = score_table(rows, "engine")
    assert len(table.cells) == 2 * len(CELLS)
    assert set(score_table(rows, "joint").of) == {"a + round-robin", "a + session"}


def test_a_page_shows_intervals_beside_their_figures(rng: np.random.Generator) -> None:
    scores = drawn(rng, 0.8)
    shown = page_table(ranking(rows_of("vllm-v1", scores), "engine"))
    found = estimate(scores, interquartile_mean)
    text = f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
    assert shown.loc[0, "score (IQM)"] == text
    assert expanded_level(scores, "seeds", 0.95) > 0.95
