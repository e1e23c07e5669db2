"""Interaction effects of a router and an engine policy, against a two-way layout by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from synergy_gym.evaluation.interaction import (
    complete_matrix,
    interaction_effect,
    interaction_matrix,
)


def test_worked_example_of_a_difference_of_differences() -> None:
    # Two seeds, one cell: (0.9 - 0.5) - (0.6 - 0.4) = 0.2 and (0.8 - 0.5) - (0.5 - 0.4) = 0.2.
    found = interaction_effect([0.4, 0.4], [0.6, 0.5], [0.5, 0.5], [0.9, 0.8])
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2), abs=1e-12)


def test_effect_is_scipys_t_test_of_the_contrast(rng: np.random.Generator) -> None:
    old, engine, router, both = rng.random((4, 8, 3))
    found = interaction_effect(old, engine, router, both)
    contrast = (both - router - engine + old).mean(axis=1)
    expected = stats.ttest_1samp(contrast, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(contrast.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_matrix_is_what_least_squares_leaves_over(rng: np.random.Generator) -> None:
    scores = rng.random((6, 3, 4))
    found = interaction_matrix(scores)
    means = scores.mean(axis=0)
    engines, routers = np.divmod(np.arange(12), 4)
    design = np.column_stack([np.eye(3)[engines], np.eye(4)[routers]])
    fitted = design @ np.linalg.lstsq(design, means.ravel(), rcond=None)[0]
    assert found.pair.ravel() == pytest.approx(means.ravel() - fitted, abs=1e-12)
    assert found.engine == pytest.approx(means.mean(axis=1) - means.mean(), abs=1e-12)
    assert found.pair.sum(axis=0) == pytest.approx(np.zeros(4), abs=1e-12)
    whole = ((means - means.mean()) ** 2).sum()
    assert found.share == pytest.approx((found.pair**2).sum() / whole, abs=1e-12)
    left = scores - scores.mean(axis=2, keepdims=True) - scores.mean(axis=1, keepdims=True)
    left += scores.mean(axis=(1, 2), keepdims=True)
    expected = stats.ttest_1samp(left[:, 1, 2], 0).confidence_interval(0.95)
    assert (found.low[1, 2], found.high[1, 2]) == pytest.approx(tuple(expected), abs=1e-12)


def test_of_two_by_two_the_matrix_holds_a_quarter_of_the_effect(rng: np.random.Generator) -> None:
    scores = rng.random((5, 2, 2))
    old, router, engine, both = scores[:, 0, 0], scores[:, 0, 1], scores[:, 1, 0], scores[:, 1, 1]
    effect = interaction_effect(old, engine, router, both)
    assert interaction_matrix(scores).pair[1, 1] == pytest.approx(effect.value / 4, abs=1e-12)


def test_additive_policies_do_not_interact(rng: np.random.Generator) -> None:
    engine, router, seed = rng.random((3, 1)), rng.random(4), rng.random((6, 1, 1))
    found = interaction_matrix(engine + router + seed)
    assert np.abs(found.pair).max() < 1e-12
    assert found.share < 1e-20
    assert np.isnan(interaction_matrix(np.ones((2, 2, 2))).share)


def test_the_largest_complete_matrix() -> None:
    pairs = [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x"), ("b", "z"), ("c", "y")]
    assert complete_matrix(pairs) == (("a", "b"), ("x", "z"))
    assert complete_matrix(pairs[:3]) == ((), ())
    assert complete_matrix([("a", "x"), ("b", "y")]) == ((), ())
    square = [(e, r) for e in "abc" for r in "xy"]
    assert complete_matrix([*square, ("d", "x")]) == (("a", "b", "c"), ("x", "y"))


def test_errors_name_the_shape_and_the_cure() -> None:
    with pytest.raises(ValueError, match="at least two of each"):
        interaction_matrix(np.ones((5, 1, 3)))
    with pytest.raises(ValueError, match="same seeds and cells"):
        interaction_effect([0.1, 0.2], [0.1, 0.2], [0.1, 0.2], [0.1, 0.2, 0.3])
