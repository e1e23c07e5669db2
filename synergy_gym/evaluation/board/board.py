"""A board: the folder of a played suite. Reads its data, and writes the pages made from them.

Data are `results.csv`, `timings.csv`, `latency.csv` and `manifest.json`. Everything else,
`leaderboard.md`, `report.html`, `results.parquet` and `plots/`, is made from those four, so
that it can be made again on any machine.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.board.bounds_file import BOUNDS_FILE, read_bounds
from synergy_gym.evaluation.board.scores import Bounds, ranking
from synergy_gym.evaluation.board.suites import Part, Suite
from synergy_gym.evaluation.board.tables import Row, cell
from synergy_gym.evaluation.jobs import CDF_EDGES_S, COLUMNS, JobResult
from synergy_gym.evaluation.manifest import write_whole
from synergy_gym.seasons import FILES
from synergy_gym.types import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

RESULTS_FILE, TIMINGS_FILE, LATENCY_FILE = "results.csv", "timings.csv", "latency.csv"
MANIFEST_FILE, PAGE_FILE, HTML_FILE = "manifest.json", "leaderboard.md", "report.html"
PARQUET_FILE, PLOTS_FOLDER = "results.parquet", "plots"

TEXT_COLUMNS = frozenset(
    {"suite", "scenario", "engine_policy", "router_policy", "log_hash", "scenario_hash", "figure"}
)
WHOLE_COLUMNS = frozenset(
    {
        "seed",
        *("offered", "finished", "rejected", "aborted", "failed", "unfinished", "retries"),
        *("preemptions", "cached_tokens", "full_offered", "full_finished", "compiled_engines"),
        *("engine_decisions", "router_decisions", "first_bin"),
    }
)
"""Columns that hold whole numbers; those in neither set hold floats, empty for NaN."""

FIRST_SEASON = 1
"""Of boards whose manifest names none: they are older than seasons."""

LATENCY_FIGURES = ("ttft", "e2e")
LATENCY_COLUMNS = (
    "scenario",
    "load",
    "engine_policy",
    "router_policy",
    "figure",
    "offered",
    "first_bin",
    "counts",
)
LatencyKey = tuple[str, float, str, str, str]
"""Scenario, load, engine policy, router policy, and one of `LATENCY_FIGURES`."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Latencies of scored requests, summed over seeds.

    `offered` counts all of them; `counts` those that finished, per bin of `CDF_EDGES_S`, one
    bin below and one above.
    """

    offered: int
    counts: IntArray

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.offered + other.offered, self.counts + other.counts)

    @property
    def shares(self) -> FloatArray:
        """Share of all offered requests that finished in less than each of `CDF_EDGES_S`."""
        shares: FloatArray = np.cumsum(self.counts)[:-1] / max(self.offered, 1)
        return shares


class BoardError(ValueError):
    """A folder is no board, or one of its files is damaged."""


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
        """One ranking per part of the suite that has rows."""
        return suite_rankings(self.suite, self.rows, self.bounds)

    @property
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BoardError(
            f"{path}: missing; a board is written by `synergy-gym leaderboard --out FOLDER`"
        ) from None
    except UnicodeDecodeError as error:
        raise BoardError(f"{path}: no UTF-8 text ({error}); restore the file") from None


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


def read_rows(path: Path, columns: Iterable[str] = ()) -> list[Row]:
    """Rows of a CSV file of a board, typed by column.

    Args:
        path: `results.csv`, `timings.csv` or `latency.csv`.
        columns: columns that must be there.

    Raises:
        BoardError: no such file, cut off, a column or a cell missing, or a cell that is no number.
    """
    text = _text(path)
    if not text.endswith("\n"):
        raise BoardError(f"{path}: ends within a line; restore the file")
    reader = csv.reader(io.StringIO(text))
    header = next(reader, [])
    missing = [name for name in columns if name not in header]
    if missing:
        raise BoardError(f"{path}: has no column {missing[0]!r}; restore the file")
    types = [_type(name) for name in header]
    return [_row(path, reader.line_num, header, types, cells) for cells in reader]


def _type(column: str) -> Callable[[str], Any]:
    if column in TEXT_COLUMNS or column == "counts":
        return str
    return int if column in WHOLE_COLUMNS else _float


def _float(text: str) -> float:
    return float(text or "nan")


def _row(
    path: Path, line: int, header: list[str], types: list[Callable[[str], Any]], cells: list[str]
) -> Row:
    if len(cells) != len(header):
        raise BoardError(
            f"{path}:{line}: {len(cells)} cells instead of {len(header)}; restore the file"
        )
    row = {}
    for name, kind, text in zip(header, types, cells, strict=True):
        try:
            row[name] = kind(text)
        except ValueError:
            raise BoardError(
                f"{path}:{line}: {name} is {text!r}, no number; restore the file"
            ) from None
    return row


# -- latency.csv -----------------------------------------------------------------------


def pooled_latency(results: Iterable[JobResult]) -> dict[LatencyKey, Histogram]:
    """Latency histograms of episodes, summed over seeds."""
    found: dict[LatencyKey, Histogram] = {}
    for result in results:
        row = result.row
        for figure, counts in result.histograms.items():
            key = (row["scenario"], row["load"], row["engine_policy"], row["router_policy"], figure)
            one = Histogram(row["offered"], np.array(counts, np.int64))
            found[key] = found[key] + one if key in found else one
    return found


def latency_text(latency: Mapping[LatencyKey, Histogram]) -> str:
    """`latency.csv`: per histogram its first used bin, and the counts from there to the last."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(LATENCY_COLUMNS)
    for key, histogram in sorted(latency.items(), key=lambda item: item[0]):
        used = np.flatnonzero(histogram.counts)
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        counts = " ".join(map(str, histogram.counts[first:end].tolist()))
        writer.writerow(map(cell, (*key, histogram.offered, first, counts)))
    return buffer.getvalue()


def read_latency(path: Path) -> dict[LatencyKey, Histogram]:
    """The histograms of `latency.csv`; none where a board has no such file.

    Raises:
        BoardError: a histogram does not fit the bins.
    """
    if not path.is_file():
        return {}
    found = {}
    for row in read_rows(path, LATENCY_COLUMNS):
        key = (row["scenario"], row["load"], row["engine_policy"], row["router_policy"])
        found[*key, row["figure"]] = _histogram(path, row)
    return found


def _histogram(path: Path, row: Row) -> Histogram:
    counts = np.zeros(len(CDF_EDGES_S) + 1, np.int64)
    try:
        used = np.array([int(text) for text in row["counts"].split()], np.int64)
        first = row["first_bin"]
        if first < 0 or np.any(used < 0):
            raise ValueError("negative")
        counts[first : first + len(used)] = used
    except ValueError as error:
        raise BoardError(
            f"{path}: counts of {row['scenario']} {row['engine_policy']} + "
            f"{row['router_policy']} cannot be read ({error}); restore the file"
        ) from None
    return Histogram(row["offered"], counts)


# -- pages -----------------------------------------------------------------------------


def render_board(board: Board) -> None:
    """Write `leaderboard.md`, `plots/` and `report.html` of a board into its folder."""
    from synergy_gym.evaluation.report.html import report_html
    from synergy_gym.evaluation.report.markdown import leaderboard_text
    from synergy_gym.evaluation.report.png import write_plots

    out = board.folder
    plots = write_plots(board, out / PLOTS_FOLDER)
    text = leaderboard_text(board, [path.relative_to(out).as_posix() for path in plots])
    write_whole(out / PAGE_FILE, text)
    write_whole(out / HTML_FILE, report_html(board))


def write_parquet(board: Board) -> bool:
    """Write `results.parquet`, the rows of `results.csv` with their types; needs pyarrow.

    Returns:
        False, and nothing is written, where pyarrow is not installed.
    """
    from importlib.util import find_spec

    import pandas as pd

    if find_spec("pyarrow") is None:
        return False
    pd.DataFrame(board.rows).to_parquet(board.folder / PARQUET_FILE, engine="pyarrow", index=False)
    return True
