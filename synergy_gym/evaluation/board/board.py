"""A board: the folder of a played suite. Reads its data, and writes the pages made from them.

Data are `results.csv`, `timings.csv`, `latency.csv` and `manifest.json`. Everything else,
`leaderboard.md`, `report.html`, `results.parquet` and `plots/`, is made from those four, so
that it can be made again on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from synergy_gym.evaluation.board.bounds_file import BOUNDS_FILE, read_bounds
from synergy_gym.evaluation.board.files import (
    LATENCY_FILE,
    MANIFEST_FILE,
    RESULTS_FILE,
    TIMINGS_FILE,
    BoardError,
    _text,
    read_rows,
)
from synergy_gym.evaluation.board.latency import Histogram, LatencyKey, read_latency
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.scores import Bounds, ranking
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.jobs import COLUMNS
from synergy_gym.seasons import FILES

if TYPE_CHECKING:
    import pandas as pd


FIRST_SEASON = 1
"""Of boards whose manifest names none: they are older than seasons."""


@dataclass(frozen=True, eq=False)
class Board:
    """What a board's data files hold.

    Attributes:
        folder: where it lies.
        suite: its name, description and parts, from the manifest.
        rows: the rows of `results.csv`.
        timings: the rows of `timings.csv`.
        latency: histograms of `latency.csv`; empty where a board keeps none.
        manifest: the content of `manifest.json`.
    """

    folder: Path
    suite: Suite
    rows: list[Row]
    timings: list[Row]
    latency: Mapping[LatencyKey, Histogram]
    manifest: Mapping[str, Any]

    @property
    def failures(self) -> dict[str, str]:
        """Error lines of episodes that failed, by job."""
        return dict(self.manifest.get("failures", {}))

    def rankings(self) -> list[tuple[Part, pd.DataFrame]]:
        """One ranking per part of the suite that has rows; its bootstrap runs once."""
        return [(part, table.copy()) for part, table in self._rankings]

    @cached_property
    def _rankings(self) -> list[tuple[Part, pd.DataFrame]]:
        return suite_rankings(self.suite, self.rows, self.bounds)

    @cached_property
    def bounds(self) -> Bounds:
        """The proven bounds of `bounds.csv`; empty where a board has none."""
        return read_bounds(self.folder / BOUNDS_FILE)


def suite_rankings(
    suite: Suite, rows: Sequence[Row], bounds: Bounds
) -> list[tuple[Part, pd.DataFrame]]:
    """One ranking per part of a suite that has rows."""
    chosen = ((part, part.rows(rows)) for part in suite.parts)
    return [
        (part, ranking(own, part.track, bounds, season=part.season)) for part, own in chosen if own
    ]


def read_board(folder: Path) -> Board:
    """Read the data of a board.

    Raises:
        BoardError: a file is missing or damaged; names it, and says what to do.
    """
    manifest = _manifest(folder / MANIFEST_FILE)
    return Board(
        folder=folder,
        suite=manifest_suite(manifest, folder / MANIFEST_FILE),
        rows=read_rows(folder / RESULTS_FILE, COLUMNS),
        timings=read_rows(folder / TIMINGS_FILE),
        latency=read_latency(folder / LATENCY_FILE),
        manifest=MappingProxyType(manifest),
    )


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise BoardError(f"{path}: no JSON ({error}); restore the file") from None
    if not isinstance(content, dict):
        raise BoardError(f"{path}: holds {type(content).__name__}, no object; restore the file")
    return content


def manifest_suite(manifest: Mapping[str, Any], path: Path) -> Suite:
    """The suite that a manifest describes; `path` is for the error.

    Raises:
        BoardError: a part that this version cannot read.
    """
    season = manifest_season(manifest, path)
    try:
        parts = tuple(Part.from_entry(part, season) for part in manifest["parts"])
        return Suite(str(manifest["suite"]), str(manifest.get("description", "")), parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise BoardError(
            f"{path}: suite or parts cannot be read ({error}); write the board again with this "
            "version of synergy-gym"
        ) from None


def manifest_season(manifest: Mapping[str, Any], path: Path) -> int:
    """The season that a board was played in; its manifest `path` is for the error.

    Raises:
        BoardError: this version has no such season.
    """
    season = manifest.get("season", FIRST_SEASON)
    if type(season) is not int or season not in FILES:
        raise BoardError(
            f"{path}: season is {season!r}, this version has {', '.join(map(str, FILES))}; use "
            "the version of synergy-gym that wrote the board"
        )
    return season


# -- latency.csv -----------------------------------------------------------------------


# -- pages -----------------------------------------------------------------------------
