"""How often 95 % intervals of few seeds hold what they claim, on synthetic scores.

    python -m experiments.studies.interval_coverage

Scores are drawn from distributions whose mean is known: normal, attainments that crowd below
100 % (Beta(8, 1.2)), and differences with a long tail (exponential). Methods: the plain percentile
bootstrap, SciPy's BCa bootstrap, the expanded percentile bootstrap and Student's t
(`synergy_gym.evaluation.statistics`). Rows `suite` are those of a ranking: interquartile means of
8 cells that share their seeds (`synergy_gym.evaluation.coverage`). Writes `coverage.csv` and a
manifest; the rows `suite` also stand in the constant `MEASURED` of that module.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap

from experiments import common
from synergy_gym.evaluation.coverage import coverage as interval_coverage
from synergy_gym.evaluation.coverage import suite_scores
from synergy_gym.evaluation.manifest import software, write_json
from synergy_gym.evaluation.statistics import (
    Estimate,
    estimate,
    interquartile_mean,
    student_interval,
)

Scores = NDArray[np.float64]
SEEDS = (3, 5, 10, 20, 50)
SUITE_SEEDS = (2, *SEEDS)
ROUNDS, QUICK_ROUNDS = 2000, 200
RESAMPLES = 1000
DISTRIBUTIONS = ("normal", "attainment", "exponential")


def draw(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Scores, float]:
    """Scores and their true mean."""
    if name == "normal":
        return rng.normal(size=shape), 0.0
    if name == "attainment":
        return rng.beta(8.0, 1.2, shape), 8.0 / 9.2
    return rng.exponential(size=shape), 1.0


def intervals(scores: Scores, seed: int) -> dict[str, Estimate]:
    """Every method's interval."""
    options = {"samples": RESAMPLES, "seed": seed}
    accelerated = bootstrap(
        (scores,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return {
        "percentile": estimate(scores, method="percentile", **options),
        "BCa": Estimate(float(scores.mean()), float(accelerated.low), float(accelerated.high)),
        "expanded": estimate(scores, **options),
        "Student t": student_interval(scores),
    }


def coverage(name: str, seeds: int, rounds: int) -> pd.DataFrame:
    """Share of rounds in which each interval holds the true mean, and its mean width."""
    scores, truth = draw(name, (rounds, seeds), np.random.default_rng(seeds))
    rows = [
        {"method": method, "covers": found.low <= truth <= found.high,
         "width": found.high - found.low}
        for index, sample in enumerate(scores)
        for method, found in intervals(sample, index).items()
    ]  # fmt: skip
    table = pd.DataFrame(rows).groupby("method", sort=False).mean().reset_index()
    return table.assign(distribution=name, seeds=seeds)


def suite_truth() -> float:
    """The interquartile mean of a suite with endlessly many seeds, to about 1e-4."""
    return float(interquartile_mean(suite_scores(np.random.default_rng(0), 200_000)))


def suite_coverage(seeds: int, rounds: int, truth: float) -> pd.DataFrame:
    """The same for the score of a ranking; no widths."""
    held = interval_coverage(suite_scores, truth, seeds, rounds, np.random.default_rng(seeds))
    row = {"method": "expanded", "covers": held, "width": np.nan}
    return pd.DataFrame([{**row, "distribution": "suite", "seeds": seeds}])


def main() -> None:
    """Command line."""
    given = common.parser("Coverage of intervals of few seeds", "interval_coverage").parse_args()
    rounds = QUICK_ROUNDS if given.quick else ROUNDS
    parts = [coverage(name, seeds, rounds) for name, seeds in product(DISTRIBUTIONS, SEEDS)]
    truth = suite_truth()
    parts += [suite_coverage(seeds, rounds, truth) for seeds in SUITE_SEEDS]
    table = pd.concat(parts, ignore_index=True)
    order = ["distribution", "seeds"]
    shown = 100 * table.pivot_table("covers", order, "method", sort=False)
    common.write_csv(table[[*order, "method", "covers", "width"]], given.out / "coverage.csv")
    content = {"command": common.command_line(), "rounds": rounds, **software()}
    write_json(given.out / "manifest.json", content)
    common.show("Intervals that hold the true mean, % (nominal 95)", shown.round(1).reset_index())


if __name__ == "__main__":
    main()
