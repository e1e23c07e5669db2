"""Interquartile mean and stratified bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synergy_gym.evaluation.statistics import iqm, stratified_interval


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3, 4], 2.5), ([0, 5, 6, 100], 5.5), ([7], 7.0), (list(range(8)), 3.5)],
)
def test_iqm_drops_a_quarter_at_each_end(values: list[float], expected: float) -> None:
    assert iqm(values) == pytest.approx(expected, abs=1e-12)


def test_iqm_without_values() -> None:
    assert math.isnan(iqm([]))


def test_interval_covers_only_the_spread_between_seeds() -> None:
    constant = [np.array([0.2, 0.2]), np.array([0.9, 0.9])]
    assert stratified_interval(constant) == pytest.approx((0.55, 0.55))
    low, high = stratified_interval([np.array([0.0, 1.0]), np.array([0.5, 0.5])])
    assert (low, high) == (0.25, 0.75)


def test_interval_is_repeatable() -> None:
    scores = [np.random.default_rng(5).random(20)]
    assert stratified_interval(scores) == stratified_interval(scores)
    assert all(math.isnan(x) for x in stratified_interval([]))


def test_interval_has_the_width_of_the_mean() -> None:
    scores = np.random.default_rng(3).normal(size=400)
    low, high = stratified_interval([scores], samples=4000)
    expected = 2 * 1.96 * scores.std() / np.sqrt(len(scores))
    assert high - low == pytest.approx(expected, rel=0.1)
