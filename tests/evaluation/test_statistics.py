"""Aggregates, intervals, comparisons and profiles, against published formulas and examples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from synergy_gym.evaluation.statistics import (
    STATISTICS,
    estimate,
    expanded_level,
    gap_closed,
    interquartile_mean,
    iqm,
    optimality_gap,
    paired_comparison,
    paired_estimate,
    performance_profile,
    probability_of_improvement,
    profile_band,
    resampled,
    resampled_rows,
    sign_flip_p,
    student_interval,
)

EXAMPLE = np.array([[0.1, 0.5], [0.2, 0.7], [0.3, 0.9], [0.4, 1.1]])
"""Four seeds, two cells."""


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3, 4], 2.5), ([0, 5, 6, 100], 5.5), ([7], 7.0), (list(range(8)), 3.5)],
)
def test_iqm_drops_a_quarter_at_each_end(values: list[float], expected: float) -> None:
    assert iqm(values) == pytest.approx(expected, abs=1e-12)


def test_iqm_without_values() -> None:
    assert math.isnan(iqm([]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Cell means 0.25 and 0.8; 0.1 0.2 | 0.3 0.4 0.5 0.7 | 0.9 1.1; 1 - mean(min(x, 1)).
        ("mean", 0.525),
        ("median", 0.525),
        ("iqm", 0.475),
        ("optimality_gap", 1 - 4.1 / 8),
    ],
)
def test_aggregates_of_the_example(name: str, expected: float) -> None:
    assert float(STATISTICS[name](EXAMPLE)) == pytest.approx(expected, abs=1e-12)


def test_optimality_gap_does_not_reward_more_than_the_target() -> None:
    assert float(optimality_gap(EXAMPLE, 0.5)) == pytest.approx(0.5 - 3.0 / 8, abs=1e-12)


def test_the_median_is_over_cells() -> None:
    skewed = np.array([[0.0, 0.4, 0.5], [1.0, 0.6, 0.9]])
    assert float(STATISTICS["median"](skewed)) == pytest.approx(0.5, abs=1e-12)


def test_aggregates_take_many_samples_at_once(rng: np.random.Generator) -> None:
    many = rng.random((5, 7, 3))
    for statistic in STATISTICS.values():
        one_by_one = [float(statistic(sample)) for sample in many]
        assert statistic(many) == pytest.approx(one_by_one, abs=1e-12)


def test_percentile_interval_is_the_published_stratified_bootstrap() -> None:
    rows = np.random.Generator(np.random.PCG64(0)).integers(0, 4, (500, 4, 2))
    means = EXAMPLE[rows, np.arange(2)].mean(axis=(1, 2))
    found = estimate(EXAMPLE, method="percentile", resample="cells", samples=500)
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)
    assert found.value == pytest.approx(0.525, abs=1e-12)


def test_percentile_interval_of_one_cell_is_scipys(rng: np.random.Generator) -> None:
    values = rng.normal(size=12)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=800, method="percentile",
        rng=np.random.Generator(np.random.PCG64(0)),
    ).confidence_interval  # fmt: skip
    found = estimate(values, method="percentile", samples=800)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_the_expanded_interval_is_a_wider_percentile_interval(rng: np.random.Generator) -> None:
    scores = rng.random((10, 3))
    level = expanded_level(scores, "seeds", 0.95)
    wider = estimate(scores, method="percentile", confidence=level)
    assert estimate(scores) == wider
    assert level == pytest.approx(0.98290, abs=1e-5)  # Hesterberg (2015), n = 10


def test_counts_give_the_trimmed_means_of_resamples(rng: np.random.Generator) -> None:
    scores = rng.integers(0, 4, (7, 5)) / 3  # ties too
    rows = resampled_rows(scores.shape, "seeds", 50, rng)
    found = resampled(scores, rows, interquartile_mean)
    expected = [stats.trim_mean(scores[r[:, 0]].ravel(), 0.25) for r in rows]
    assert found == pytest.approx(expected, abs=1e-12)


def test_paired_estimate_is_the_difference_of_aggregates(rng: np.random.Generator) -> None:
    one, two = rng.random((2, 9, 4))
    found = paired_estimate(one, two)
    expected = stats.trim_mean(one.ravel(), 0.25) - stats.trim_mean(two.ravel(), 0.25)
    assert found.value == pytest.approx(expected, abs=1e-12)
    rows = np.random.Generator(np.random.PCG64(0)).integers(0, 9, (2000, 9))
    drawn = [
        stats.trim_mean(one[r].ravel(), 0.25) - stats.trim_mean(two[r].ravel(), 0.25) for r in rows
    ]
    level = expanded_level(one, "seeds", 0.95)
    ends = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=1e-12)
    same = paired_estimate(one + 0.2, one)
    assert (same.low, same.high) == pytest.approx((0.2, 0.2), abs=1e-12)


def test_seeds_are_resampled_with_all_their_cells() -> None:
    opposed = np.array([[0.0, 1.0], [0.3, 0.7], [0.9, 0.1]])  # every seed has the mean 0.5
    assert estimate(opposed).low == estimate(opposed).high == pytest.approx(0.5, abs=1e-12)
    apart = estimate(opposed, resample="cells")
    assert apart.low < 0.45 < 0.55 < apart.high


def test_expanded_level_of_ten_seeds() -> None:
    # t(9) = 2.2621571628, times sqrt(10 / 9) = 2.3845241; 2 Phi(2.3845241) - 1.
    scores = np.arange(10.0)[:, None]
    reach = 2.2621571627409915 * math.sqrt(10 / 9)
    assert expanded_level(scores, "seeds", 0.95) == pytest.approx(
        math.erf(reach / math.sqrt(2)), abs=1e-9
    )
    even = np.tile(scores, (1, 4))  # Welch-Satterthwaite: 4 x 9 degrees of freedom
    reach = stats.t.ppf(0.975, 36) * math.sqrt(10 / 9)
    assert expanded_level(even, "cells", 0.95) == pytest.approx(
        math.erf(reach / math.sqrt(2)), abs=1e-12
    )


def test_student_interval_is_scipys(rng: np.random.Generator) -> None:
    values = rng.normal(size=9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = student_interval(values, 0.9)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_probability_of_improvement_is_the_mann_whitney_share(rng: np.random.Generator) -> None:
    first, second = rng.integers(0, 5, (2, 8, 3)).astype(float)
    expected = np.mean(
        [stats.mannwhitneyu(first[:, c], second[:, c]).statistic / 64 for c in range(3)]
    )
    found = probability_of_improvement(first, second)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low <= found.value <= found.high
    assert probability_of_improvement(first, first).value == pytest.approx(0.5, abs=1e-12)


def test_probability_of_improvement_example() -> None:
    # 1 beats nobody, 2 ties with 2, 5 beats all three.
    found = probability_of_improvement([1.0, 2.0, 5.0], [2.0, 4.0, 4.0])
    assert found.value == pytest.approx((0 + 0.5 + 3) / 9, abs=1e-12)


def test_paired_comparison_sees_what_common_traffic_hides(rng: np.random.Generator) -> None:
    traffic = rng.normal(size=(10, 4))
    better = paired_comparison(traffic + 0.01 + 0.001 * rng.normal(size=(10, 4)), traffic)
    assert better.difference.low > 0
    assert better.wins == 1.0
    assert better.p_value == pytest.approx(2 / 2**10, abs=1e-12)
    assert better.difference.value == pytest.approx(0.01, abs=0.002)


def test_paired_comparison_of_equals() -> None:
    same = paired_comparison(EXAMPLE, EXAMPLE)
    assert (same.difference.value, same.wins, same.p_value) == (0.0, 0.5, 1.0)


def test_sign_flips_are_exact_and_agree_with_scipy(rng: np.random.Generator) -> None:
    values = rng.normal(0.5, 1, 8)
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue, abs=1e-12)
    many = rng.normal(0.5, 1, 16)
    every = 1 - 2 * (np.arange(2**16)[:, None] >> np.arange(16) & 1)
    exact = np.mean(np.abs(every @ many) >= abs(many.sum()) - 1e-9)
    assert sign_flip_p(many) == pytest.approx(exact, abs=0.02)


def test_profile_is_the_share_of_runs_above() -> None:
    profile = performance_profile(EXAMPLE, [0.0, 0.3, 0.5, 1.1])
    assert profile == pytest.approx([1.0, 5 / 8, 3 / 8, 0.0], abs=1e-12)
    low, high = profile_band(EXAMPLE, [0.3])
    assert low[0] <= 5 / 8 <= high[0]
    area = np.mean(performance_profile(EXAMPLE[:, :1], (np.arange(10_000) + 0.5) / 10_000))
    assert area == pytest.approx(EXAMPLE[:, 0].mean(), abs=1e-3)


def test_profile_is_scipys_survival_function(rng: np.random.Generator) -> None:
    scores, thresholds = rng.integers(0, 6, (8, 3)) / 5, np.linspace(0, 1, 11)
    expected = 1 - stats.ecdf(scores.ravel()).cdf.evaluate(thresholds)
    assert performance_profile(scores, thresholds) == pytest.approx(expected, abs=1e-12)


def test_gap_closed_example() -> None:
    base, bound = np.array([0.2, 0.4, 0.3]), np.array([0.8, 1.0, 0.9])
    half = gap_closed(base + 0.3, base, bound)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)
    assert gap_closed(base - 0.06, base, bound).value == pytest.approx(-0.1, abs=1e-12)
    assert math.isnan(gap_closed(base, base, base).value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: estimate([[0.5]]), "at least 2"),
        (lambda: estimate([[0.5], [math.nan]]), "seed row 1, cell column 0 is nan"),
        (lambda: paired_comparison([0.1, 0.2], [0.1, 0.2, 0.3]), "same seeds and cells"),
    ],
)
def test_errors_name_the_value_and_the_cure(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_small_samples_are_covered_as_often_as_claimed(rng: np.random.Generator) -> None:
    """Of 10 normal scores: the plain percentile bootstrap falls short, the two others do not."""
    covered = {"percentile": 0, "expanded": 0, "student": 0}
    rounds = 1000
    for index in range(rounds):
        values = rng.normal(size=10)
        found = {
            "percentile": estimate(values, method="percentile", samples=400, seed=index),
            "expanded": estimate(values, samples=400, seed=index),
            "student": student_interval(values),
        }
        for name, interval in found.items():
            covered[name] += interval.low <= 0 <= interval.high
    assert covered["percentile"] < 0.945 * rounds
    # 4.6 standard deviations of a count around 950 of 1000.
    assert abs(covered["expanded"] - 0.945 * rounds) < 33
    assert abs(covered["student"] - 0.95 * rounds) < 32
