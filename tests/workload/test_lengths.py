"""Length distributions: bounds, moments, correlation, and draws that do not depend on n."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import norm, rankdata

from synergy_gym.workload.lengths import LENGTHS, draw_lengths, draw_pairs, quantiles
from synergy_gym.workload.spec import LengthSpec

OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {"value": 7},
    "uniform": {"low": 3, "high": 9},
    "lognormal": {"median": 100.0, "sigma": 1.0},
    "geometric": {"mean": 4.8},
    "empirical": {"values": (5, 1, 1, 30)},
    "quantiles": {"levels": (0.0, 0.5, 1.0), "values": (10, 20, 100)},
}


def spec(kind: str, minimum: int = 1, maximum: int = 2**31) -> LengthSpec:
    return LengthSpec(kind, OPTIONS[kind], minimum, maximum)


def sample(kind: str, n: int = 100_000, **bounds: int) -> Any:
    return draw_lengths(spec(kind, **bounds), np.random.default_rng(0), n)


def test_every_distribution_is_tested() -> None:
    assert OPTIONS.keys() == LENGTHS.keys()


@pytest.mark.parametrize("kind", LENGTHS)
@given(seed=st.integers(0, 2**32), low=st.integers(1, 50), width=st.integers(0, 50))
def test_draws_are_whole_and_within_bounds(kind: str, seed: int, low: int, width: int) -> None:
    drawn = draw_lengths(spec(kind, low, low + width), np.random.default_rng(seed), 50)
    assert drawn.dtype == np.int64
    assert drawn.min() >= low
    assert drawn.max() <= low + width


@pytest.mark.parametrize("kind", LENGTHS)
def test_first_draws_do_not_depend_on_the_number(kind: str) -> None:
    assert sample(kind, 1000)[:10].tolist() == sample(kind, 10).tolist()


def test_constant() -> None:
    assert set(sample("constant", 10).tolist()) == {7}


def test_uniform_reaches_both_ends_equally() -> None:
    counts = np.bincount(sample("uniform"), minlength=10)[3:]
    assert counts == pytest.approx(100_000 / 7, rel=0.05)


def test_lognormal_moments() -> None:
    drawn = sample("lognormal")
    assert np.median(drawn) == pytest.approx(100, rel=0.02)
    assert drawn.mean() == pytest.approx(100 * np.exp(0.5), rel=0.02)


def test_geometric_moments() -> None:
    drawn = sample("geometric")
    assert drawn.min() == 1
    assert drawn.mean() == pytest.approx(4.8, rel=0.02)
    assert (drawn == 1).mean() == pytest.approx(1 / 4.8, abs=0.005)


def test_empirical_shares() -> None:
    values, counts = np.unique(sample("empirical"), return_counts=True)
    assert values.tolist() == [1, 5, 30]
    assert counts / 100_000 == pytest.approx([0.5, 0.25, 0.25], abs=0.01)


def test_quantile_table() -> None:
    found = np.quantile(sample("quantiles"), [0.25, 0.5, 0.75])
    assert found == pytest.approx([15, 20, 60], rel=0.03)


@given(
    shares=st.lists(st.floats(1e-9, 1 - 1e-9), max_size=20, unique=True),
    values=st.lists(st.integers(1, 10**6), min_size=22, max_size=22),
    scores=st.lists(st.floats(-40, 40) | st.just(float("nan")), max_size=30),
)
def test_a_quantile_table_is_interpolated(
    shares: list[float], values: list[int], scores: list[float]
) -> None:
    levels, table = [0.0, *sorted(shares), 1.0], sorted(values)[: len(shares) + 2]
    at = np.array(scores)
    for given_scores in (at, at.reshape(-1, 1)):
        found = quantiles(levels=levels, values=table)(given_scores)
        expected = np.interp(ndtr(given_scores), levels, table)
        assert np.array_equal(found, expected, equal_nan=True)


def test_a_cap_keeps_its_mass() -> None:
    drawn = sample("lognormal", maximum=200)
    assert (drawn == 200).mean() == pytest.approx(norm.sf(np.log(2)), abs=0.01)


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.8])
def test_pairs_have_their_correlation_and_margins(correlation: float) -> None:
    rng = np.random.default_rng(1)
    prompt, output = draw_pairs(spec("lognormal"), spec("lognormal"), correlation, rng, 50_000)
    scores = [norm.ppf(rankdata(v) / (len(v) + 1)) for v in (prompt, output)]
    assert np.corrcoef(scores)[0, 1] == pytest.approx(correlation, abs=0.02)
    assert np.median(output) == pytest.approx(100, rel=0.03)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (LengthSpec("zipf"), "unknown lengths 'zipf'"),
        (LengthSpec("uniform", {"low": 5, "high": 4}), "give 1 <= low <= high"),
        (LengthSpec("lognormal", {"median": 0.0, "sigma": 1.0}), "median > 0"),
        (LengthSpec("geometric", {"mean": 0.5}), "mean >= 1"),
        (LengthSpec("empirical", {"values": ()}), "at least one"),
        (LengthSpec("quantiles", {"levels": (0.0, 1.0), "values": (1,)}), "as many of each"),
        (LengthSpec("quantiles", {"levels": (0.1, 1.0), "values": (1, 2)}), "rise from 0 to 1"),
        (LengthSpec("quantiles", {"levels": (0.0, 1.0), "values": (3, 2)}), "must not fall"),
    ],
)
def test_wrong_options_are_errors(wrong: LengthSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_lengths(wrong, np.random.default_rng(0), 1)


def test_wrong_correlation_is_an_error() -> None:
    with pytest.raises(ValueError, match="correlation is 2"):
        draw_pairs(spec("constant"), spec("constant"), 2, np.random.default_rng(0), 1)
