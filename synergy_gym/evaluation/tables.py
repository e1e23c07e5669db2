"""Rows of episodes as CSV files and as rankings."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.capacity import Capacity, capacity_of_curve, mean_capacity
from synergy_gym.evaluation.jobs import KEY_COLUMNS
from synergy_gym.evaluation.statistics import iqm, stratified_interval

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
_SORT = KEY_COLUMNS[1:]


def cell(value: Any) -> str:
    """One CSV cell: nine significant digits, so that it does not depend on the platform."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.9g}"
    return str(value)


def sorted_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows ordered by scenario, load, seed, engine policy and router policy."""
    return sorted(rows, key=lambda row: tuple(row[name] for name in _SORT))


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


def ranking(rows: Sequence[Row], by: str) -> pd.DataFrame:
    """Rank the policies of column `by` by their mean attainment, best first.

    Columns: `rank`, `policy`, `slo_attainment` (mean over scenario x load x seed) with its
    95 % interval `low`..`high` (bootstrap within scenario x load), `iqm`, one `load X`
    column per offered load, `capacity` (mean over scenarios, in units of load; a scenario
    whose lowest load misses counts 0, one whose highest attains that load), `capacity_text`
    (the same with its bounds, as `mean_capacity` writes it), `ttft_p99_s` and `e2e_p99_s`
    (means), `preemptions` (sum), `episodes`. A policy that misses episodes comes after the
    complete ones.
    """
    import pandas as pd

    names = sorted({row[by] for row in rows})
    table = [_rank_row([row for row in rows if row[by] == name], name) for name in names]
    most = max((row["episodes"] for row in table), default=0)
    table.sort(key=lambda row: (row["episodes"] < most, -_number(row["slo_attainment"])))
    return pd.DataFrame([{"rank": i + 1, **row} for i, row in enumerate(table)])


def _number(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _mean(rows: Sequence[Row], column: str) -> float:
    values = [row[column] for row in rows if not math.isnan(row[column])]
    return float(np.mean(values)) if values else float("nan")


def _rank_row(rows: list[Row], name: str) -> Row:
    cells: dict[tuple[str, float], list[float]] = {}
    for row in sorted_rows(rows):
        cells.setdefault((row["scenario"], row["load"]), []).append(row["slo_attainment"])
    low, high = stratified_interval([np.array(scores) for scores in cells.values()])
    loads = sorted({row["load"] for row in rows})
    capacities = list(capacities_of(rows).values())
    return {
        "policy": name,
        "slo_attainment": _mean(rows, "slo_attainment"),
        "low": low,
        "high": high,
        "iqm": iqm([row["slo_attainment"] for row in rows]),
        **{
            f"load {x:g}": _mean([row for row in rows if row["load"] == x], "slo_attainment")
            for x in loads
        },
        "capacity": float(np.mean([capacity.load for capacity in capacities])),
        "capacity_text": mean_capacity(capacities),
        "ttft_p99_s": _mean(rows, "ttft_p99_s"),
        "e2e_p99_s": _mean(rows, "e2e_p99_s"),
        "preemptions": sum(row["preemptions"] for row in rows),
        "episodes": len(rows),
    }


def capacities_of(rows: Sequence[Row]) -> dict[str, Capacity]:
    """Per scenario, the capacity of one policy from the loads it was offered."""
    result = {}
    for scenario in sorted({row["scenario"] for row in rows}):
        part = [row for row in rows if row["scenario"] == scenario]
        loads = sorted({row["load"] for row in part})
        curve = [_mean([r for r in part if r["load"] == x], "slo_attainment") for x in loads]
        result[scenario] = capacity_of_curve(loads, curve)
    return result


def page_table(ranked: pd.DataFrame) -> pd.DataFrame:
    """A ranking with one column `capacity`, bounds included, for people."""
    return ranked.assign(capacity=ranked["capacity_text"]).drop(columns="capacity_text")


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
    if column.endswith("attainment") or column.startswith("load ") or column in _SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if column == "capacity" else f"{value:.3g}"


_SHARES = frozenset({"low", "high", "iqm", "prefix_hit_share"})
