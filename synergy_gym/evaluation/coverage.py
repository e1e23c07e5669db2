"""How often the intervals of `evaluation/statistics.py` hold the true value, on synthetic scores.

An interval of nominally 95 % is honest when it holds the true value in 95 of 100 experiments. That
can only be measured where the truth is known, so scores are drawn from distributions: normal ones,
attainments that crowd below 100 % (Beta(8, 1.2)), and those of a suite, in which a seed shifts all
its cells and cells differ in difficulty. `experiments/studies/interval_coverage.py` measures; what
it found for the intervals of a ranking stands in `MEASURED`, and a test measures some of it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from synergy_gym.evaluation.statistics import (
    Statistic,
    expanded_level,
    interquartile_mean,
    resampled,
    resampled_rows,
    seed_counts,
)
from synergy_gym.types import FloatArray

Draw = Callable[[np.random.Generator, int], FloatArray]
"""Draws `(seeds, cells)` scores, given how many seeds."""

SUITE_CELLS, SAMPLES = 8, 500
"""Cells of the synthetic suite, from an easy one to one that nobody masters, and resamples."""
MEASURED: Mapping[int, float] = MappingProxyType(
    {2: 0.5215, 3: 0.748, 5: 0.9235, 10: 0.9365, 20: 0.9385, 50: 0.943}
)
"""Measured coverage of the nominal 95 % interval of a suite's IQM, by the number of seeds.

Rows `suite` of `experiments/results/interval_coverage/coverage.csv`.
"""


def suite_scores(rng: np.random.Generator, seeds: int) -> FloatArray:
    """Scores of a synthetic suite: a seed's traffic is heavy or light in all its cells.

    A cell's score is 1 / (1 + exp(-(difficulty + 0.5 z_seed + 0.5 z))), both z standard normal.
    """
    difficulty = np.linspace(4.0, -1.0, SUITE_CELLS)
    common, own = rng.normal(size=(seeds, 1)), rng.normal(size=(seeds, SUITE_CELLS))
    scores: FloatArray = 1 / (1 + np.exp(-(difficulty + 0.5 * common + 0.5 * own)))
    return scores


def coverage(
    draw: Draw,
    truth: float,
    seeds: int,
    rounds: int,
    rng: np.random.Generator,
    statistic: Statistic = interquartile_mean,
) -> float:
    """Share of rounds in which `estimate`'s 95 % interval of a statistic holds the truth."""
    held = 0
    for _ in range(rounds):
        scores = draw(rng, seeds)
        rows = resampled_rows((seeds, scores.shape[1]), "seeds", SAMPLES, rng)
        drawn = resampled(scores, rows, statistic)
        level = expanded_level(scores, "seeds", 0.95)
        low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
        held += int(low <= truth <= high)
    return held / rounds


def mean_coverage(
    scores: FloatArray, truth: float, rng: np.random.Generator, samples: int = 4 * SAMPLES
) -> float:
    """The same for means of one cell, many experiments at once.

    Args:
        scores: `(rounds, seeds)`, one experiment a row; all share their resamples.
        truth: the true mean.
        rng: of the resampling.
        samples: bootstrap resamples.
    """
    seeds = scores.shape[1]
    weights = seed_counts(resampled_rows((seeds, 1), "seeds", samples, rng)[..., 0]) / seeds
    level = expanded_level(scores[:1].T, "seeds", 0.95)
    ends = np.quantile(weights @ scores.T, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return float(np.mean((ends[0] <= truth) & (truth <= ends[1])))


def coverage_text(seeds: int) -> str:
    """What a page says of its intervals, given the number of seeds behind them."""
    if seeds in MEASURED:
        return (
            f"nominal 95 % intervals of {seeds} seeds held the true value of a synthetic suite in "
            f"{100 * MEASURED[seeds]:.1f} % of experiments"
        )
    known = ", ".join(map(str, MEASURED))
    return f"the coverage of intervals of {seeds} seeds is not measured (it is for {known})"
