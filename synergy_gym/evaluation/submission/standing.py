"""Where a submission stands among the committed rows of its suite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import synergy_gym
from synergy_gym.evaluation.board.board import Board, read_board
from synergy_gym.evaluation.board.files import MANIFEST_FILE
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.scores import NO_BOUNDS, Bounds, ranking, score_table
from synergy_gym.evaluation.board.suites import find_suite
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.jobs import Track, competitor
from synergy_gym.evaluation.statistics import interquartile_mean
from synergy_gym.scenario import load_scenario, windowed
from synergy_gym.seasons import FILES, full_name
from synergy_gym.types import FloatArray

if TYPE_CHECKING:
    import pandas as pd

BOARDS = Path(synergy_gym.__file__).parent.parent / "experiments" / "leaderboard"
"""The committed boards, season by season, where the package runs from a checkout."""
SUBMISSIONS = "submissions"
"""Folder of accepted submissions beside the boards of a season."""
RESAMPLES = 2000
TOLERANCE = 1e-12
"""Means that differ by less differ by the order of their sum."""


@dataclass(frozen=True)
class Standing:
    """A submission among the competitors of one part of a suite.

    Attributes:
        part: of the suite.
        policy: the competitor's name.
        rank: as in `table`; 1 is best, ties share one.
        of: number of competitors.
        score: interquartile mean over scenario x load x seed of the share of offered requests
            that met every SLO.
        low: lower end of the score's 95 % interval.
        high: upper end.
        gap: share of the way from `vllm-v1` + `round-robin` to the proven bound; NaN: no bound.
        ranks: the middle 95 % of its places when whole seeds are drawn again.
        table: the ranking of all.
    """

    part: Part
    policy: str
    rank: int
    of: int
    score: float
    low: float
    high: float
    gap: float
    ranks: tuple[int, int]
    table: pd.DataFrame

    def __str__(self) -> str:
        scenarios = ", ".join(self.part.scenarios)
        gap = "" if math.isnan(self.gap) else f"; {100 * self.gap:.0f} % of the gap closed"
        return (
            f"{self.policy}: rank {self.rank} of {self.of} (95 %: {self.ranks[0]} to "
            f"{self.ranks[1]}) on {scenarios}; score {100 * self.score:.1f} % "
            f"({100 * self.low:.1f} to {100 * self.high:.1f} %){gap}"
        )


def board_folder(suite: Suite, boards: Path = BOARDS) -> Path:
    """Where the committed board of a suite lies."""
    return boards / _season_folder(suite.season) / suite.name


def _season_folder(season: int) -> str:
    return f"season{season}"


def committed_rows(suite: str, track: Track, boards: Path = BOARDS, without: str = "") -> list[Row]:
    """Rows of the committed board of a suite, and of accepted submissions on its track.

    Args:
        suite: name of the suite, as `find_suite` takes it.
        track: whose rows.
        boards: folder of the boards.
        without: an accepted submission that is left out, because it is played again.

    Raises:
        ValueError: there is no such board, or it was played in other worlds than these.
    """
    played = find_suite(suite)
    folder = committed_board(played, boards)
    parts = played.only(track).parts
    board = read_board(folder)
    rows = [row for part in parts for row in checked_worlds(part, part.rows(board.rows), folder)]
    for accepted in _accepted(folder.parent / SUBMISSIONS, played.name, track, without):
        for part in accepted.suite.parts:
            rows += checked_worlds(part, part.rows(accepted.rows), accepted.folder)
    return rows


def committed_board(suite: Suite, boards: Path = BOARDS) -> Path:
    """The folder of the committed board of a suite.

    Raises:
        ValueError: there is none; names the seasons that have one.
    """
    folder = board_folder(suite, boards)
    if (folder / MANIFEST_FILE).is_file():
        return folder
    played = [
        full_name(suite.name, season)
        for season in FILES
        if (boards / _season_folder(season) / suite.name / MANIFEST_FILE).is_file()
    ]
    there = f"choose --suite {' or '.join(played)}, or " if played else ""
    raise ValueError(
        f"season {suite.season} has no committed rows of suite {suite.name!r} in {boards}; {there}"
        "pass --boards with the folder experiments/leaderboard of a clone that has them"
    )


def _accepted(folder: Path, suite: str, track: Track, without: str) -> list[Board]:
    paths = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}"))
    found = [read_board(path) for path in paths if path.name != without]
    return [
        board
        for board in found
        if board.suite.name == suite and {part.track for part in board.suite.parts} == {track}
    ]


def checked_worlds(part: Part, rows: list[Row], folder: Path) -> list[Row]:
    """The rows of a part, if they were played in the worlds of this installation.

    Raises:
        ValueError: a scenario that has changed, or is unknown here.
    """
    window = (part.warmup_s, part.horizon_s)
    worlds = {name: load_scenario(name, part.season) for name in part.scenarios}
    hashes = {name: windowed(world, *window).hash() for name, world in worlds.items()}
    for row in rows:
        if row["scenario_hash"] != hashes[row["scenario"]]:
            raise ValueError(
                f"{folder}: was played with another scenario {row['scenario']!r} than this one; "
                "use the version of synergy-gym that the board names, or renew the board"
            )
    return rows


def standings(
    suite: Suite,
    track: Track,
    rows: Sequence[Row],
    committed: Sequence[Row],
    bounds: Bounds = NO_BOUNDS,
) -> list[Standing]:
    """One standing per part of a submission's suite.

    Args:
        suite: of the submission, as `entry_suite` makes it.
        track: of the submission.
        rows: of the submission.
        committed: as `committed_rows` gives them.
        bounds: proven ones, as `ranking` takes them.
    """
    found = []
    for part in suite.parts:
        own = part.rows(rows)
        cells = {_cell(track, row) for row in own}
        rivals = [row for row in committed if _cell(track, row) in cells]
        found.append(_standing(part, [*rivals, *own], competitor(track, own[0]), bounds))
    return found


def _cell(track: Track, row: Row) -> tuple[str, float, int, str]:
    """What competitors of one ranking share: scenario, load, seed and the other layer's policy."""
    other = {"engine": row["router_policy"], "router": row["engine_policy"], "joint": ""}[track]
    return (row["scenario"], row["load"], row["seed"], other)


def _standing(part: Part, rows: list[Row], policy: str, bounds: Bounds) -> Standing:
    table = ranking(rows, part.track, bounds, season=part.season)
    own = table[table["policy"] == policy].iloc[0]
    return Standing(
        part=part,
        policy=policy,
        rank=int(own["rank"]),
        of=len(table),
        score=float(own["iqm"]),
        low=float(own["iqm_low"]),
        high=float(own["iqm_high"]),
        gap=float(own["gap"]),
        ranks=rank_interval(score_table(rows, part.track).of, policy),
        table=table,
    )


def rank_interval(
    scores: Mapping[str, FloatArray], policy: str, *, confidence: float = 0.95, seed: int = 0
) -> tuple[int, int]:
    """The middle places of a policy when whole seeds are drawn again with replacement.

    All policies meet the same drawn seeds, as they met the same traffic. With few seeds the
    interval is too narrow, as every plain bootstrap; the table's intervals are corrected.

    Args:
        scores: `(seeds, cells)` by competitor, as `score_table` has them.
        policy: one of them.
        confidence: share of the places that lie in the interval.
        seed: of the resampling, so that equal scores give equal intervals.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    count = len(scores[policy])
    drawn = rng.integers(0, count, (RESAMPLES, count))
    means = {name: interquartile_mean(values[drawn]) for name, values in scores.items()}
    ahead = [found > means[policy] + TOLERANCE for found in means.values()]
    tail = (1 - confidence) / 2
    ends = np.quantile(1 + np.sum(ahead, axis=0), [tail, 1 - tail], method="closest_observation")
    return int(ends[0]), int(ends[1])
