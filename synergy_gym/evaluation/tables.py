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
from synergy_gym.evaluation.jobs import KEY_COLUMNS, TRACK_LAYERS, Track, competitor
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


def ranking(rows: Sequence[Row], track: Track) -> pd.DataFrame:
    """Rank the policies (or pairs) that compete on `track` by their mean attainment, best first.

    Columns: `rank`, `policy`, `slo_attainment` (mean over scenario x load x seed) with its
    95 % interval `low`..`high` (bootstrap within scenario x load), `iqm`, one `load X`
    column per offered load, `capacity` (mean over scenarios, in units of load; a scenario
    whose lowest load misses counts 0, one whose highest attains that load), `capacity_text`
    (the same with its bounds, as `mean_capacity` writes it), `ttft_p99_s` and `e2e_p99_s`
    (means), `preemptions` (sum), `episodes`. A policy that misses episodes comes after the
    complete ones.
    """
    import pandas as pd

    table = [_rank_row(chosen, name) for name, chosen in by_competitor(track, rows).items()]
    most = max((row["episodes"] for row in table), default=0)
    table.sort(key=lambda row: (row["episodes"] < most, -_number(row["slo_attainment"])))
    return pd.DataFrame([{"rank": i + 1, **row} for i, row in enumerate(table)])


def by_competitor(track: Track, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each policy or pair that competes on `track`, by name in sorted order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(competitor(track, row), []).append(row)
    return dict(sorted(found.items()))


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
                entry[f"{layer}_{figure}"] = _mean(asked, f"{layer}_decision_{figure}")
        table.append(entry)
    return pd.DataFrame(table)


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
