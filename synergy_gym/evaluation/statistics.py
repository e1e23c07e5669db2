"""Statistics over episodes: interquartile mean and stratified bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from synergy_gym.types import FloatArray


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter.

    `scipy.stats.trim_mean(values, 0.25)`, as in rliable (Agarwal et al., NeurIPS 2021).
    NaN without values.
    """
    from scipy.stats import trim_mean

    array = np.asarray(values, np.float64).ravel()
    return float(trim_mean(array, 0.25)) if len(array) else float("nan")


def stratified_interval(
    strata: Sequence[FloatArray], *, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, resampling within each stratum.

    A stratum holds the seeds of one scenario and load, so the interval covers the spread
    between seeds and not the difference between loads (rliable's stratified bootstrap).

    Args:
        strata: one array of scores per scenario and load.
        confidence: share of resampled means inside the interval.
        samples: bootstrap resamples.
        seed: of the resampling, so that equal scores give equal intervals.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    filled = [np.asarray(s, np.float64) for s in strata if len(s)]
    if not filled:
        return float("nan"), float("nan")
    totals = np.zeros(samples)
    for scores in filled:
        totals += scores[rng.integers(0, len(scores), (samples, len(scores)))].sum(axis=1)
    means = totals / sum(len(s) for s in filled)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
