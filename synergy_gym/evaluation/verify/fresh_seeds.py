"""Whether scores hold on seeds that nobody can have seen.

Fresh seeds come from NumPy's `SeedSequence([entropy, FRESH_STREAM])`, as whole numbers in
[2^40, 2^41): no scenario's train, validation or test seed is that large. The entropy is drawn anew
for every check, and printed, so that a check can be repeated.

A competitor's score on a seed is its mean attainment over the cells (scenario, load) that are
checked. Its n committed and m fresh seeds are two samples of one distribution if nothing was
tuned to the seeds. Their means then differ by less than

    t * s * sqrt(1/n + 1/m),   s^2 = pooled variance of both samples,

where t is Student's quantile with n + m - 2 degrees of freedom: the prediction interval of the
mean of m further values (Hahn and Meeker, Statistical Intervals, 1991, section 4.7, with s from
both samples). The quantile leaves a false alarm in `ALARM` of all checks of one board, whatever
the number of its competitors (Bonferroni).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.files import RESULTS_FILE
from synergy_gym.evaluation.board.tables import Row, row_key
from synergy_gym.evaluation.jobs import Job, pair_label
from synergy_gym.evaluation.verify.play import Checked, OnProgress, counted_run, not_run, player
from synergy_gym.evaluation.verify.policy_versions import decidable
from synergy_gym.types import FloatArray

FRESH_STREAM = 6
"""Beside the streams of `synergy_gym.seeding`."""
FIRST_FRESH = 2**40
ALARM = 1e-4
"""Share of the checks of honest boards that raise an alarm."""
FRESH_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where the mean of fresh seeds must lie, and where it does."""

    low: float
    high: float
    committed: float
    fresh: float

    @property
    def holds(self) -> bool:
        """Whether the fresh mean lies inside."""
        return self.low <= self.fresh <= self.high


def fresh_seeds(count: int, entropy: int) -> list[int]:
    """`count` different seeds that no scenario has in a split."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([entropy, FRESH_STREAM])))
    return [FIRST_FRESH + int(value) for value in rng.choice(2**32, count, replace=False)]


def predicted(committed: FloatArray, fresh: FloatArray, grain: float, alarm: float) -> Prediction:
    """Compare the scores of committed and of fresh seeds of one competitor.

    Args:
        committed: scores of n seeds.
        fresh: scores of m seeds.
        grain: smallest standard deviation to assume: what one request is worth.
        alarm: share of honest competitors that the interval may miss.

    Raises:
        ValueError: fewer than three seeds in all, which leave no spread to judge by.
    """
    from scipy import stats

    n, m = len(committed), len(fresh)
    if n < 1 or m < 1 or n + m < 3:
        raise ValueError(f"{n} committed and {m} fresh seeds; give at least three in all")
    squares = float(np.sum((committed - committed.mean()) ** 2))
    squares += float(np.sum((fresh - fresh.mean()) ** 2))
    spread = max(np.sqrt(squares / (n + m - 2)), grain)
    half = float(stats.t.ppf(1 - alarm / 2, n + m - 2) * spread * np.sqrt(1 / n + 1 / m))
    middle = float(committed.mean())
    return Prediction(middle - half, middle + half, middle, float(fresh.mean()))


def check_fresh(
    board: Board,
    jobs: Mapping[tuple[Any, ...], Job],
    count: int | None,
    processes: int = 1,
    on_progress: OnProgress | None = None,
    run_code: bool = False,
    entropy: int | None = None,
) -> Checked:
    """Play fresh seeds and compare each competitor's score with its committed one.

    Args:
        board: whose rows.
        jobs: its episodes by `row_key`.
        count: how many competitors to check, drawn by the entropy; `None`: all.
        processes: worker processes.
        on_progress: called with (finished, all, text) after each episode.
        run_code: run a submission's own code.
        entropy: of the seeds; drawn when not given.
    """
    entropy = secrets.randbits(64) if entropy is None else entropy
    seeds = fresh_seeds(FRESH_SEEDS, entropy)
    rows, left_out = decidable(board)
    pairs = _chosen(rows, count, entropy)
    fresh = _fresh_jobs(rows, jobs, pairs, seeds)
    with player(board, run_code) as play:
        if play is None:
            return not_run("fresh-seeds", board)
        batch = counted_run(fresh, play, processes, on_progress)
    problems = [f"{job}: {text}" for job, text in batch.failures.items()]
    if not problems:
        played = [result.row for result in batch.results.values()]
        problems = _compared(board, pairs, played, ALARM / max(len(pairs), 1))
    notes = (f"fresh seeds {seeds}; repeat with --entropy {entropy}", *left_out)
    return Checked("fresh-seeds", len(fresh), tuple(problems), notes)


def _chosen(rows: Sequence[Row], count: int | None, entropy: int) -> list[tuple[str, str]]:
    pairs = sorted({(row["engine_policy"], row["router_policy"]) for row in rows})
    if count is None or count >= len(pairs):
        return pairs
    rng = np.random.default_rng([entropy, FRESH_STREAM, 1])
    return [pairs[i] for i in sorted(rng.choice(len(pairs), count, replace=False))]


def _fresh_jobs(
    rows: Sequence[Row],
    jobs: Mapping[tuple[Any, ...], Job],
    pairs: Sequence[tuple[str, str]],
    seeds: Sequence[int],
) -> list[Job]:
    found: dict[Job, None] = {}
    for row in rows:
        if (row["engine_policy"], row["router_policy"]) in pairs:
            job = jobs[row_key(row)]
            scenario = job.world()
            splits = {*scenario.train_seeds, *scenario.validation_seeds, *scenario.test_seeds}
            assert splits.isdisjoint(seeds), f"{row['scenario']}: a split holds a fresh seed"
            for seed in seeds:
                found[replace(job, seed=seed, record=False)] = None
    return list(found)


def _compared(
    board: Board, pairs: Sequence[tuple[str, str]], fresh: Sequence[Row], alarm: float
) -> list[str]:
    problems = []
    for pair in pairs:
        old, grain = _scores(board.rows, pair)
        new, _ = _scores(fresh, pair)
        found = predicted(old, new, grain, alarm)
        if not found.holds:
            problems.append(
                f"{board.folder / RESULTS_FILE}: {pair_label(pair)} attains {found.fresh:.4f} on "
                f"fresh seeds, outside {found.low:.4f}..{found.high:.4f} that its rows "
                f"({found.committed:.4f}) predict; a policy must not know its seeds"
            )
    return problems


def _scores(rows: Sequence[Row], pair: tuple[str, str]) -> tuple[FloatArray, float]:
    """Mean attainment by seed, and what a request is worth in it.

    A seed counts in so far as every cell has it: cells with other seeds give means of their own
    positions (first seed, second seed, ...).
    """
    cells: dict[tuple[str, float], dict[int, float]] = {}
    offered = 0
    for row in rows:
        if (row["engine_policy"], row["router_policy"]) == pair:
            cells.setdefault((row["scenario"], row["load"]), {})[row["seed"]] = row[
                "slo_attainment"
            ]
            offered = max(offered, row["offered"])
    columns = [[scores[seed] for seed in sorted(scores)] for scores in cells.values()]
    length = min(map(len, columns))
    table = np.array([column[:length] for column in columns])
    return table.mean(axis=0), 1 / max(offered, 1)
