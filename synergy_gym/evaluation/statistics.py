"""Statistics over episodes: robust aggregates, intervals, comparisons of two policies.

Scores form an array `(seeds, cells)`: a row per episode seed, a column per cell (scenario and
load), every policy with the same seeds. Aggregates, stratified bootstrap, probability of
improvement and performance profiles are those of Agarwal et al., "Deep Reinforcement Learning at
the Edge of the Statistical Precipice" (NeurIPS 2021) and its package rliable.

Two things are different here, and both make intervals wider:

- A percentile bootstrap of few seeds is too narrow: it divides by n instead of n - 1 and knows no
  Student t. `expanded_level` corrects that (Hesterberg, "What Teachers Should Know About the
  Bootstrap", The American Statistician 69, 2015, section 4.1: the expanded percentile interval).
  How often the corrected intervals hold: `evaluation/coverage.py`.
- One seed draws the traffic of all its cells, so cells are not independent. Rows are therefore
  resampled as a whole (`resample="seeds"`); "cells" is rliable's independent resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from synergy_gym.types import FloatArray, IntArray

Statistic = Callable[[FloatArray], FloatArray]
"""Maps `(..., seeds, cells)` to `(...)`."""
Resample = Literal["seeds", "cells"]
Method = Literal["expanded", "percentile"]

RESAMPLES = 2000
LARGEST_FLIPS = 14
"""Sign-flip tests of up to so many pairs list every assignment; larger ones draw some."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two policies on the same seeds (common random numbers): the first less the second.

    Attributes:
        difference: mean over cells and seeds, with its Student t interval over seeds.
        wins: share of the (seed, cell) pairs in which the first is better, ties counted half.
        p_value: two-sided sign-flip test of the seeds' mean differences.
    """

    difference: Estimate
    wins: float
    p_value: float


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter.

    `scipy.stats.trim_mean(values, 0.25)`, as in rliable (Agarwal et al., NeurIPS 2021).
    NaN without values.
    """
    array = np.asarray(values, np.float64).ravel()
    return float(interquartile_mean(array[:, None])) if len(array) else float("nan")


def interquartile_mean(scores: FloatArray) -> FloatArray:
    """IQM over all seeds and cells of `(..., seeds, cells)`."""
    from scipy.stats import trim_mean

    flat = scores.reshape(*scores.shape[:-2], -1)
    return np.asarray(trim_mean(flat, 0.25, axis=-1), np.float64)


def grand_mean(scores: FloatArray) -> FloatArray:
    """Mean over cells of the mean over seeds."""
    result: FloatArray = scores.mean(axis=(-2, -1))
    return result


def median_of_means(scores: FloatArray) -> FloatArray:
    """Median over cells of the mean over seeds (rliable's `aggregate_median`)."""
    result: FloatArray = np.median(scores.mean(axis=-2), axis=-1)
    return result


def optimality_gap(scores: FloatArray, target: float = 1.0) -> FloatArray:
    """By how much scores fall short of `target` on average: target - mean(min(score, target))."""
    result: FloatArray = target - np.minimum(scores, target).mean(axis=(-2, -1))
    return result


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "mean": grand_mean,
        "median": median_of_means,
        "iqm": interquartile_mean,
        "optimality_gap": optimality_gap,
    }
)
"""The aggregates by name."""


def checked_scores(scores: ArrayLike, least: int = 2) -> FloatArray:
    """Scores as a finite `(seeds, cells)` array; one dimension is taken as one cell.

    Raises:
        ValueError: another shape, fewer than `least` seeds, or a value that is not finite.
    """
    array = np.asarray(scores, np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[0] < least or array.shape[1] < 1:
        raise ValueError(
            f"scores have shape {np.shape(scores)}; give (seeds, cells) with at least {least} "
            "seeds and one cell"
        )
    if not np.isfinite(array).all():
        seed, cell = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"score of seed row {seed}, cell column {cell} is {array[seed, cell]}; play the "
            "missing episode or leave the cell out for every policy"
        )
    return array


def resampled_rows(
    shape: tuple[int, int], resample: Resample, samples: int, rng: np.random.Generator
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Row indices of every bootstrap sample, `(samples, seeds, cells or 1)`."""
    seeds, cells = shape
    columns = cells if resample == "cells" else 1
    return rng.integers(0, seeds, (samples, seeds, columns))


def resampled(
    scores: FloatArray, rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]], statistic: Statistic
) -> FloatArray:
    """A statistic of every bootstrap sample; `rows` as `resampled_rows` draws them."""
    whole = rows.shape[2] == 1
    if whole and statistic is interquartile_mean:
        return iqm_of_counts(scores, seed_counts(rows[..., 0]))
    return statistic(scores[rows, np.arange(scores.shape[1])])


def seed_counts(rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> IntArray:
    """How often each seed is in each sample: `(samples, seeds)` from `(samples, seeds)` indices."""
    samples, seeds = rows.shape
    flat = (rows + np.arange(samples)[:, None] * seeds).ravel()
    counts: IntArray = np.bincount(flat, minlength=samples * seeds).reshape(samples, seeds)
    return counts


def iqm_of_counts(scores: FloatArray, counts: IntArray) -> FloatArray:
    """`interquartile_mean` of samples that hold each seed's row so many times, without sorting.

    Args:
        scores: `(seeds, cells)`.
        counts: `(samples, seeds)`, every row with the sum `seeds`.
    """
    order = scores.ravel().argsort(kind="stable")
    values, size = scores.ravel()[order], scores.size
    upto = counts[:, order // scores.shape[1]].cumsum(axis=1)
    cut = int(0.25 * size)  # as scipy.stats.trim_mean
    kept = np.diff(np.clip(upto, cut, size - cut), prepend=cut, axis=1)
    means: FloatArray = kept @ values / (size - 2 * cut)
    return means


def expanded_level(scores: FloatArray, resample: Resample, confidence: float) -> float:
    """Confidence at which percentiles have the width of a Student t interval.

    Twice Phi(sqrt(n / (n - 1)) t) - 1 with the quantile t of n - 1 degrees of freedom. With
    independent cells the degrees of freedom are Welch and Satterthwaite's for a mean of cell
    means, which for equal spreads is cells x (n - 1).
    """
    from scipy.stats import norm, t

    seeds = scores.shape[0]
    freedom = float(seeds - 1)
    if resample == "cells":
        spread = scores.var(axis=0, ddof=1)
        if spread.any():
            freedom *= float(spread.sum() ** 2 / (spread**2).sum())
    reach = np.sqrt(seeds / (seeds - 1)) * t.ppf(0.5 + confidence / 2, freedom)
    return float(2 * norm.cdf(reach) - 1)


def estimate(
    scores: ArrayLike,
    statistic: Statistic = grand_mean,
    *,
    confidence: float = 0.95,
    resample: Resample = "seeds",
    method: Method = "expanded",
    samples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic of `(seeds, cells)` scores with its bootstrap interval.

    Args:
        scores: one row per seed, one column per cell.
        statistic: one of `STATISTICS`, or another map of `(..., seeds, cells)` to `(...)`.
        confidence: nominal coverage.
        resample: whole "seeds", or each of the "cells" by itself.
        method: "expanded" percentiles, or the plain "percentile" ones of rliable.
        samples: bootstrap resamples.
        seed: of the resampling, so that equal scores give equal intervals.

    Raises:
        ValueError: as `checked_scores`.
    """
    array = checked_scores(scores)
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = resampled_rows(array.shape, resample, samples, rng)
    drawn = resampled(array, rows, statistic)
    level = confidence if method == "percentile" else expanded_level(array, resample, confidence)
    low, high = _middle(drawn, level)
    return Estimate(float(statistic(array)), float(low), float(high))


def _middle(drawn: FloatArray, level: float) -> FloatArray:
    """Ends of the middle `level` of resampled values, along the last axis."""
    ends: FloatArray = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=-1)
    return ends


def paired_estimate(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = 0.95,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic of the first less that of the second, both resampled with the same seeds.

    Unlike `paired_comparison` the difference is that of two aggregates, not an aggregate of
    differences: what separates two ranks of a table that is sorted by that aggregate.

    Raises:
        ValueError: as `checked_scores`, or the shapes differ.
    """
    one, two = _pair(first, second)
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = resampled_rows(one.shape, "seeds", samples, rng)
    drawn = resampled(one, rows, statistic) - resampled(two, rows, statistic)
    low, high = _middle(drawn, expanded_level(one, "seeds", confidence))
    return Estimate(float(statistic(one) - statistic(two)), float(low), float(high))


def probability_of_improvement(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = 0.95,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """P(a run of the first beats one of the second), mean over cells; ties count half.

    Agarwal et al. (NeurIPS 2021): the Mann-Whitney statistic U / (n m) of each cell. Rows of
    both are resampled together, because they met the same traffic.

    Raises:
        ValueError: as `checked_scores`, or the shapes differ.
    """
    one, two = _pair(first, second)
    wins = (one[:, None] > two[None]) + 0.5 * (one[:, None] == two[None])
    chances = wins.mean(axis=2)  # (seed of the first, seed of the second)
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = resampled_rows(one.shape, "seeds", samples, rng)[..., 0]
    drawn = chances[rows[:, :, None], rows[:, None, :]].mean(axis=(1, 2))
    level = expanded_level(one, "seeds", confidence)
    low, high = _middle(drawn, level)
    return Estimate(float(chances.mean()), float(low), float(high))


def paired_comparison(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> PairedComparison:
    """Compare two policies that met the same traffic, row by row.

    Differences are averaged over the cells of a seed; the seeds' values are independent, and
    their Student t interval is the one whose coverage holds for few of them.

    Raises:
        ValueError: as `checked_scores`, or the shapes differ.
    """
    one, two = _pair(first, second)
    wins = float(np.mean((one > two) + 0.5 * (one == two)))
    differences = (one - two).mean(axis=1)
    return PairedComparison(
        student_interval(differences, confidence), wins, sign_flip_p(differences, seed=seed)
    )


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[FloatArray, FloatArray]:
    one, two = checked_scores(first), checked_scores(second)
    if one.shape != two.shape:
        raise ValueError(
            f"paired scores have shapes {one.shape} and {two.shape}; give both policies the same "
            "seeds and cells"
        )
    return one, two


def student_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of independent values with its Student t interval.

    Raises:
        ValueError: as `checked_scores`.
    """
    from scipy.stats import t

    array = checked_scores(values).ravel()
    mean, error = float(array.mean()), float(array.std(ddof=1)) / len(array) ** 0.5
    reach = float(t.ppf(0.5 + confidence / 2, len(array) - 1)) * error
    return Estimate(mean, mean - reach, mean + reach)


def sign_flip_p(differences: ArrayLike, *, samples: int = 20_000, seed: int = 0) -> float:
    """Two-sided P that random signs give a mean at least as far from 0.

    Exact over all 2^n signs for n <= `LARGEST_FLIPS`; more differences draw `samples` of them
    and count the observed one too (Phipson and Smyth, 2010).
    """
    values = np.asarray(differences, np.float64).ravel()
    n = len(values)
    seen = abs(values.sum()) * (1 - 1e-12)
    if n <= LARGEST_FLIPS:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ values) >= seen))
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = np.abs((1 - 2 * rng.integers(0, 2, (samples, n))) @ values) >= seen
    return float((drawn.sum() + 1) / (samples + 1))


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> FloatArray:
    """Share of runs above each threshold (the run-score distribution of Agarwal et al.).

    Every cell counts equally; the area under the profile over [0, 1] is the mean score.
    """
    array = checked_scores(scores, least=1)
    above = array[None] > np.asarray(thresholds, np.float64)[:, None, None]
    shares: FloatArray = above.mean(axis=(1, 2))
    return shares


def profile_band(
    scores: ArrayLike,
    thresholds: ArrayLike,
    *,
    confidence: float = 0.95,
    samples: int = 500,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Pointwise bootstrap band of `performance_profile`, seeds resampled: (low, high)."""
    array = checked_scores(scores)
    rng = np.random.Generator(np.random.PCG64(seed))
    rows = resampled_rows(array.shape, "seeds", samples, rng)[..., 0]
    above = array[None] > np.asarray(thresholds, np.float64)[:, None, None]
    by_seed = above.mean(axis=2)  # (thresholds, seeds)
    drawn = by_seed[:, rows].mean(axis=2)
    level = expanded_level(array, "seeds", confidence)
    low, high = _middle(drawn, level)
    return low, high


def gap_closed(
    scores: ArrayLike,
    baseline: ArrayLike,
    bound: ArrayLike,
    *,
    confidence: float = 0.95,
    samples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Share of the way from a baseline to a bound that a policy goes: a ratio of means.

    (mean score - mean baseline) / (mean bound - mean baseline), all on the same seeds and cells;
    below 0 where the policy is worse than the baseline. NaN where there is no gap.

    Raises:
        ValueError: as `checked_scores`, or the shapes differ.
    """
    one, low_end = _pair(scores, baseline)
    _, high_end = _pair(scores, bound)
    gains = np.stack([(one - low_end).mean(axis=1), (high_end - low_end).mean(axis=1)], axis=1)
    if not gains[:, 1].mean() > 0:
        return Estimate(float("nan"), float("nan"), float("nan"))

    def ratio(sample: FloatArray) -> FloatArray:
        means = sample.mean(axis=-2)
        with np.errstate(divide="ignore", invalid="ignore"):
            share: FloatArray = np.where(means[..., 1] > 0, means[..., 0] / means[..., 1], 0.0)
        return share

    return estimate(gains, ratio, confidence=confidence, samples=samples, seed=seed)
