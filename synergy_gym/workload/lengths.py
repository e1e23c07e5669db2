"""Token-count distributions as inverse distribution functions of normal scores.

A draw is quantile(Phi(z)) with z standard normal: correlated z (within a conversation,
between prompt and output) give correlated lengths with unchanged distributions, a Gaussian
copula (Nelsen, An Introduction to Copulas, section 2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from synergy_gym.jit import kernel
from synergy_gym.types import FloatArray, IntArray
from synergy_gym.workload.spec import LengthSpec

_BUCKETS = 4096  # a power of two: a share times this is exact

Quantile = Callable[[FloatArray], FloatArray]
"""Maps standard normal scores to real-valued token counts, elementwise, non-decreasing."""

Counts = Callable[[FloatArray], IntArray]
"""Maps standard normal scores to token counts, elementwise."""

Pairs = Callable[[FloatArray], tuple[IntArray, IntArray]]
"""Maps standard normal scores of shape (n, 2) to prompt and output lengths."""


def constant(*, value: int) -> Quantile:
    """Always `value` tokens."""
    return lambda scores: np.full(scores.shape, float(value))


def uniform(*, low: int, high: int) -> Quantile:
    """Whole numbers from `low` to `high`, both included, equally likely."""
    if not 0 < low <= high:
        raise ValueError(f"uniform lengths from {low} to {high}; give 1 <= low <= high")
    return lambda scores: np.minimum(np.floor(low + (high + 1 - low) * _phi(scores)), high)


def lognormal(*, median: float, sigma: float) -> Quantile:
    """exp(N(ln median, sigma^2)) tokens."""
    if median <= 0 or sigma < 0:
        raise ValueError(f"lognormal lengths need median > 0, sigma >= 0, not {median}, {sigma}")
    return lambda scores: median * np.exp(sigma * scores)


def geometric(*, mean: float) -> Quantile:
    """1, 2, ... with P(n) = p (1 - p)^(n - 1), p = 1 / mean: memoryless counts."""
    if mean < 1:
        raise ValueError(f"geometric counts have a mean >= 1, not {mean}")
    if mean == 1:
        return constant(value=1)
    return lambda scores: np.ceil(_log_survival(scores) / np.log1p(-1 / mean))


def empirical(*, values: Sequence[int]) -> Quantile:
    """Observed counts, each equally likely."""
    if len(values) == 0:
        raise ValueError("empirical lengths need at least one observed value")
    ordered = np.sort(np.asarray(values, np.float64))

    def quantile(scores: FloatArray) -> FloatArray:
        index = (_phi(scores) * len(ordered)).astype(np.int64)
        drawn: FloatArray = ordered[np.minimum(index, len(ordered) - 1)]
        return drawn

    return quantile


def quantiles(*, levels: Sequence[float], values: Sequence[int]) -> Quantile:
    """Linear interpolation of a quantile table: `values[i]` at share `levels[i]`."""
    shares = np.asarray(levels, np.float64)
    table = np.asarray(values, np.float64)
    if len(shares) != len(table) or len(shares) < 2:
        raise ValueError(
            f"{len(shares)} levels and {len(table)} values; give >= 2, as many of each"
        )
    if shares[0] != 0 or shares[-1] != 1 or np.any(np.diff(shares) <= 0):
        raise ValueError(f"levels must rise from 0 to 1, they are {list(levels)}")
    if np.any(np.diff(table) < 0):
        raise ValueError(f"values of a quantile table must not fall, they are {list(values)}")
    buckets = np.searchsorted(shares, np.arange(_BUCKETS) / _BUCKETS, side="right") - 1
    slopes = np.diff(table) / np.diff(shares)

    def quantile(scores: FloatArray) -> FloatArray:
        at = _phi(scores)
        drawn = np.empty(at.shape)
        _interpolate(at.reshape(-1), buckets, shares, table, slopes, drawn.reshape(-1))
        return drawn

    return quantile


LENGTHS: dict[str, Callable[..., Quantile]] = {
    "constant": constant,
    "uniform": uniform,
    "lognormal": lognormal,
    "geometric": geometric,
    "empirical": empirical,
    "quantiles": quantiles,
}
"""Distributions by name: factories with keyword options that return a `Quantile`."""


def counts_of(spec: LengthSpec) -> Counts:
    """The token counts of `spec` at normal scores, rounded, within its bounds.

    Raises:
        ValueError: the distribution is unknown or an option is out of range.
    """
    if spec.kind not in LENGTHS:
        raise ValueError(f"unknown lengths {spec.kind!r}; choose one of {', '.join(LENGTHS)}")
    quantile = LENGTHS[spec.kind](**spec.options)
    low, high = spec.minimum, spec.maximum
    return lambda scores: np.rint(np.clip(quantile(scores), low, high)).astype(np.int64)


def pairs_of(prompt: LengthSpec, output: LengthSpec, correlation: float) -> Pairs:
    """Prompt and output lengths at independent normal scores of shape (n, 2).

    `correlation` is that of the two lengths' normal scores, in [-1, 1].

    Raises:
        ValueError: a distribution is unknown, or a number is out of range.
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation is {correlation}; it lies in [-1, 1]")
    rest = np.sqrt(1 - correlation**2)
    prompt_at, output_at = counts_of(prompt), counts_of(output)

    def pairs(scores: FloatArray) -> tuple[IntArray, IntArray]:
        mixed = correlation * scores[:, 0] + rest * scores[:, 1]
        return prompt_at(scores[:, 0]), output_at(mixed)

    return pairs


def lengths_at(spec: LengthSpec, scores: FloatArray) -> IntArray:
    """The token counts that `spec` has at normal scores; see `counts_of`."""
    return counts_of(spec)(scores)


def draw_lengths(spec: LengthSpec, rng: np.random.Generator, n: int) -> IntArray:
    """`n` independent draws; the first ones do not depend on `n`."""
    return lengths_at(spec, rng.standard_normal(n))


def draw_pairs(
    prompt: LengthSpec, output: LengthSpec, correlation: float, rng: np.random.Generator, n: int
) -> tuple[IntArray, IntArray]:
    """`n` pairs of prompt and output lengths; the first ones do not depend on `n`."""
    return pairs_of(prompt, output, correlation)(rng.standard_normal((n, 2)))


def _phi(scores: FloatArray) -> FloatArray:
    from scipy.special import ndtr

    return np.asarray(ndtr(scores), np.float64)


def _log_survival(scores: FloatArray) -> FloatArray:
    from scipy.special import log_ndtr

    return np.asarray(log_ndtr(-scores), np.float64)


def _interpolate_python(
    at: FloatArray,
    buckets: IntArray,
    shares: FloatArray,
    table: FloatArray,
    slopes: FloatArray,
    drawn: FloatArray,
) -> None:
    """`np.interp(at, shares, table)` for numbers in [0, 1], with its arithmetic.

    Where to begin in the table is looked up: `np.interp` takes most of its time for the search.
    """
    for i in range(len(at)):
        share = at[i]
        if not share < 1.0:
            drawn[i] = table[-1] if share == 1.0 else share  # not a number stays that
            continue
        j = buckets[int(share * _BUCKETS)]
        while share >= shares[j + 1]:
            j += 1
        drawn[i] = slopes[j] * (share - shares[j]) + table[j]


_interpolate: Any = kernel(_interpolate_python)
