"""The files of a board, and its tables as rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from synergy_gym.evaluation.board.tables import Row

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


class BoardError(ValueError):
    """A folder is no board, or one of its files is damaged."""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BoardError(
            f"{path}: missing; a board is written by `synergy-gym leaderboard --out FOLDER`"
        ) from None
    except UnicodeDecodeError as error:
        raise BoardError(f"{path}: no UTF-8 text ({error}); restore the file") from None


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
