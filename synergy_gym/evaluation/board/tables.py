"""Rows of episodes as CSV files and as tables; rankings: `evaluation/board/scores.py`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.capacity import Capacity, capacity_of_curve
from synergy_gym.evaluation.jobs import KEY_COLUMNS, TRACK_LAYERS, Track, competitor

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
_SORT = KEY_COLUMNS[1:]


def cell(value: Any) -> str:
    """One CSV cell: nine significant digits, so that it does not depend on the platform."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    return str(value)


def row_key(row: Row) -> tuple[Any, ...]:
    """Scenario, load, seed, engine policy and router policy: one row each per suite."""
    return tuple(row[name] for name in _SORT)


def sorted_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows ordered by `row_key`."""
    return sorted(rows, key=row_key)


def csv_text(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Sorted rows as CSV with LF line ends; equal rows give equal bytes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in sorted_rows(rows):
        writer.writerow([cell(row[name]) for name in columns])
    return buffer.getvalue()


def write_csv(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Write `csv_text` to a file."""
    path.write_text(csv_text(rows, columns), encoding="utf-8", newline="\n")


def by_competitor(track: Track, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each policy or pair that competes on `track`, by name in sorted order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(competitor(track, row), []).append(row)
    return dict(sorted(found.items()))


def mean_of(rows: Sequence[Row], column: str) -> float:
    """Mean of a column over the rows that have a value; NaN without any."""
    values = [row[column] for row in rows if not math.isnan(row[column])]
    return float(np.mean(values)) if values else float("nan")


def capacities_of(rows: Sequence[Row]) -> dict[str, Capacity]:
    """Per scenario, the capacity of one policy from the loads it was offered."""
    result = {}
    for scenario in sorted({row["scenario"] for row in rows}):
        part = [row for row in rows if row["scenario"] == scenario]
        loads = sorted({row["load"] for row in part})
        curve = [mean_of([r for r in part if r["load"] == x], "slo_attainment") for x in loads]
        result[scenario] = capacity_of_curve(loads, curve)
    return result


def decision_times(timings: Sequence[Row], track: Track, policies: Sequence[str]) -> pd.DataFrame:
    """Decision times from rows of `timings.csv`, in microseconds of processor time.

    One row per competitor in the order of `policies`; per competing layer `decisions` (sum),
    `mean_us` (mean of the episodes' means) and `p99_us` (mean of their P99), NaN where the
    simulator carried out a compiled rule and nobody was asked.
    """
    import pandas as pd

    found, table = by_competitor(track, timings), []
    for policy in policies:
        entry: Row = {"policy": policy}
        for layer in TRACK_LAYERS[track]:
            asked = [row for row in found[policy] if row[f"{layer}_decisions"]]
            entry[f"{layer}_decisions"] = sum(row[f"{layer}_decisions"] for row in asked)
            for figure in ("mean_us", "p99_us"):
                entry[f"{layer}_{figure}"] = mean_of(asked, f"{layer}_decision_{figure}")
        table.append(entry)
    return pd.DataFrame(table)


def markdown(table: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table, figures with `figure`."""
    columns = [str(name) for name in table.columns]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    body = [
        "| " + " | ".join(figure(c, v) for c, v in zip(columns, row, strict=True)) + " |"
        for row in table.itertuples(index=False, name=None)
    ]
    return "\n".join([*head, *body]) + "\n"


def figure(column: str, value: Any) -> str:
    """A figure for people: shares in percent, seconds to three digits."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "-"
    if column.endswith("attainment") or column.startswith(_SHARES):
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if column == "capacity" else f"{value:.3g}"


_SHARES = ("load ", "iqm", "gap", "low", "high", "bound", "prefix_hit_share")
