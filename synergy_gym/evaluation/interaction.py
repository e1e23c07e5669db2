"""Do a router policy and an engine policy help each other? Interaction effects with intervals.

Two layers interact when what one of them gains depends on the other. With attainments s of an
engine policy (row) and a router policy (column), the interaction effect of a 2 x 2 design is the
difference of differences

    I = (s[new engine, new router] - s[old engine, new router])
        - (s[new engine, old router] - s[old engine, old router])

(Montgomery, "Design and Analysis of Experiments", section 6.2; there halved, which is convention).
Above 0 the pair gains more than both policies gain alone. For whole matrices the effect of a pair
is what the additive model mean + engine + router leaves over (double-centred scores).

All pairs met the same traffic, so effects are taken per seed, averaged over cells, and given with
Student's interval over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from synergy_gym.evaluation.statistics import Estimate, checked_scores, student_interval
from synergy_gym.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class InteractionMatrix:
    """Additive effects of engines and routers, and what each pair adds to them.

    Attributes:
        mean: over all pairs.
        engine: per engine policy its mean effect; they sum to 0.
        router: per router policy likewise.
        pair: `(engines, routers)` interaction effects; rows and columns sum to 0.
        low: lower ends of their intervals.
        high: upper ends.
        share: sum of squares of the interaction as a share of that of all three effects; NaN
            where all pairs are equal.
    """

    mean: float
    engine: FloatArray
    router: FloatArray
    pair: FloatArray
    low: FloatArray
    high: FloatArray
    share: float


def interaction_effect(
    old: ArrayLike,
    new_engine: ArrayLike,
    new_router: ArrayLike,
    both: ArrayLike,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """Interaction effect of a 2 x 2 design: `both - new_router - new_engine + old`.

    Args:
        old: scores `(seeds, cells)` of the pair that both changes start from.
        new_engine: of the pair with the new engine policy alone.
        new_router: of the pair with the new router policy alone.
        both: of the pair with both.
        confidence: nominal coverage.

    Raises:
        ValueError: as `checked_scores`, or the shapes differ.
    """
    parts = [checked_scores(scores) for scores in (old, new_engine, new_router, both)]
    _same_shape(parts)
    effect = (parts[3] - parts[2] - parts[1] + parts[0]).mean(axis=1)
    return student_interval(effect, confidence)


def interaction_matrix(scores: ArrayLike, *, confidence: float = 0.95) -> InteractionMatrix:
    """Effects of a whole matrix of pairs.

    Args:
        scores: `(seeds, engines, routers)`, each the mean over cells.
        confidence: nominal coverage of every single interval.

    Raises:
        ValueError: another shape, fewer than two seeds, engines or routers, or a value that is not
            finite.
    """
    array = np.asarray(scores, np.float64)
    if array.ndim != 3 or min(array.shape) < 2:
        raise ValueError(
            f"scores have shape {array.shape}; give (seeds, engines, routers), at least two of each"
        )
    checked_scores(array.reshape(len(array), -1))
    by_seed = _left_over(array)
    every = [student_interval(values, confidence) for values in by_seed.reshape(len(array), -1).T]
    low = np.reshape([one.low for one in every], array.shape[1:])
    high = np.reshape([one.high for one in every], array.shape[1:])
    means: FloatArray = array.mean(axis=0)
    mean = float(means.mean())
    engine, router = means.mean(axis=1) - mean, means.mean(axis=0) - mean
    pair: FloatArray = by_seed.mean(axis=0)
    return InteractionMatrix(mean, engine, router, pair, low, high, _share(engine, router, pair))


def complete_matrix(
    pairs: Sequence[tuple[str, str]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The largest set of engine and router policies of which every pair is there.

    Both empty where no two engines share two routers; of equally large ones the last.

    Args:
        pairs: (engine policy, router policy).
    """
    routers_of: dict[str, list[str]] = {}
    for engine, router in pairs:
        routers_of.setdefault(engine, []).append(router)
    best: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    for size in range(2, len(routers_of) + 1):
        for engines in combinations(routers_of, size):
            shared = tuple(
                r for r in routers_of[engines[0]] if all(r in routers_of[e] for e in engines)
            )
            if len(shared) > 1 and size * len(shared) >= len(best[0]) * len(best[1]):
                best = (engines, shared)
    return best


def _left_over(scores: FloatArray) -> FloatArray:
    """What the additive model of each seed leaves over."""
    rows, columns = scores.mean(axis=2, keepdims=True), scores.mean(axis=1, keepdims=True)
    left: FloatArray = scores - rows - columns + scores.mean(axis=(1, 2), keepdims=True)
    return left


def _share(engine: FloatArray, router: FloatArray, pair: FloatArray) -> float:
    """Sums of squares of a two-way layout with one value per pair."""
    rows, columns = pair.shape
    parts = (columns * np.sum(engine**2), rows * np.sum(router**2), np.sum(pair**2))
    whole = float(sum(parts))
    return float(parts[2]) / whole if whole > 0 else float("nan")


def _same_shape(parts: list[FloatArray]) -> None:
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"scores of the four pairs have shapes {sorted(shapes)}; give all the same seeds and "
            "cells"
        )
