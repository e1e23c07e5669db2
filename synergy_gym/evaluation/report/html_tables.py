"""The tables of an HTML report: what each cell says, and by what it is sorted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.board.part import Part
from synergy_gym.evaluation.board.tables import Row, by_competitor, capacities_of, figure
from synergy_gym.evaluation.jobs import pair_label

if TYPE_CHECKING:
    import pandas as pd

    from synergy_gym.evaluation.board.pairs import Interaction

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "slo_attainment": "mean attainment",
        "iqm": "score (IQM)",
        "gap": "gap closed",
        "gap_played": "gap to best played",
        "ttft_p99_s": "TTFT P99, s",
        "tpot_p99_s": "TPOT P99, s",
        "e2e_p99_s": "E2E P99, s",
    }
)
"""Heads of columns that do not just spell their name."""
SCORE = "iqm"
INTERVALS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "iqm": ("iqm_low", "iqm_high"),
        "slo_attainment": ("low", "high"),
        "gap": ("gap_low", "gap_high"),
    }
)
"""Figures of a ranking that have an interval, and the columns of its ends."""
LATENCIES = ("ttft_p99_s", "tpot_p99_s", "e2e_p99_s")


@dataclass(frozen=True)
class HtmlCell:
    """One cell.

    Attributes:
        text: what it shows.
        sort: by what its column is sorted, "" last.
        hint: shown while the pointer rests on it.
        heat: a share that colours its background.
        passed: whether it says that something was passed or met.
        interval: low end, score and high end, as shares of the drawn range.
    """

    text: str
    sort: float | str = ""
    hint: str = ""
    heat: float | None = None
    passed: bool | None = None
    interval: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class HtmlTable:
    """A table that readers sort and filter; `lead` says what it shows, if its name does not.

    The first cell of a row is its head.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[HtmlCell]]
    numeric: bool = True
    lead: str = ""


def text_table(name: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> HtmlTable:
    """A table of texts."""
    return HtmlTable(name, columns, [[HtmlCell(t, t) for t in row] for row in rows], numeric=False)


def value_cell(column: str, value: Any) -> HtmlCell:
    """A figure, written as the Markdown page writes it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return HtmlCell(figure(column, value), "" if math.isnan(value) else value)
    return HtmlCell(str(value), value if isinstance(value, int) else str(value))


def heat_cell(value: float) -> HtmlCell:
    """A share on a background that shows it; empty where nothing was played."""
    if math.isnan(value):
        return HtmlCell("")
    return HtmlCell(f"{100 * value:.1f}", value, heat=value)


def html_ranking(
    name: str, ranked: pd.DataFrame, extra: Mapping[str, Mapping[str, HtmlCell]]
) -> HtmlTable:
    """A ranking; the score's interval is drawn, those of other figures stand beside them.

    Args:
        name: of the table.
        ranked: as `scores.ranking` makes it.
        extra: further columns by head, each with the cell of every policy.
    """
    hidden = {"policy", "rank", "capacity_text", *(c for pair in INTERVALS.values() for c in pair)}
    columns = [str(c) for c in ranked.columns if c not in hidden]
    columns = [c for c in columns if not ranked[c].isna().all()]
    span = interval_range(ranked)
    heads = ["policy", "rank", *extra, *(_head(c) for c in columns)]
    if span is not None:
        heads.insert(2, f"score on {100 * span[0]:.0f} to {100 * span[1]:.0f} %")
    rows = []
    for row in ranked.to_dict("records"):
        cells = [value_cell("policy", row["policy"]), value_cell("rank", row["rank"])]
        cells += [] if span is None else [_interval_cell(row, span)]
        cells += [column[str(row["policy"])] for column in extra.values()]
        rows.append([*cells, *(_ranking_cell(c, row) for c in columns)])
    return HtmlTable(name, heads, rows)


def _head(column: str) -> str:
    """A column's head; `iqm FAMILY` is a family's score, `load 1.2` does not break."""
    if column.startswith("iqm "):
        return f"score, {column.removeprefix('iqm ')}"
    return LABELS.get(column) or column.replace("_", " ").replace("load ", "load\N{NO-BREAK SPACE}")


def _ranking_cell(column: str, row: Mapping[Any, Any]) -> HtmlCell:
    if column == "capacity" and "capacity_text" in row:
        return HtmlCell(str(row["capacity_text"]), float(row["capacity"]))
    cell = value_cell(column, row[column])
    low, high = (float(row.get(c, math.nan)) for c in INTERVALS.get(column, ("", "")))
    if math.isnan(low):
        return cell
    if column == SCORE:
        return replace(cell, text=f"{cell.text} {_ends(low, high)}")
    return replace(cell, hint=f"95 % interval {_ends(low, high)}")


def _ends(low: float, high: float) -> str:
    return f"({100 * low:.1f} to {100 * high:.1f})"


def interval_range(ranked: pd.DataFrame) -> tuple[float, float] | None:
    """The range in which scores are drawn: tenths around all intervals; None without any."""
    low_name, high_name = INTERVALS[SCORE]
    if ranked[low_name].isna().all():
        return None
    low = math.floor(10 * float(ranked[low_name].min())) / 10
    high = math.ceil(10 * float(ranked[high_name].max())) / 10
    return low, max(high, low + 0.1)


def _interval_cell(row: Mapping[Any, Any], span: tuple[float, float]) -> HtmlCell:
    low, high = (float(row[name]) for name in INTERVALS[SCORE])
    if math.isnan(low):
        return HtmlCell("-")
    score = float(row[SCORE])
    places = [(x - span[0]) / (span[1] - span[0]) for x in (low, score, high)]
    text = f"{100 * score:.1f} % {_ends(low, high)}"
    return HtmlCell(text, score, interval=(places[0], places[1], places[2]))


def scenario_table(part: Part, scenario: str, rows: Sequence[Row], load: float) -> HtmlTable:
    """One scenario: attainment by load, capacity, and latencies at one load."""
    loads = sorted({row["load"] for row in rows})
    heads = ["policy", *(f"load {x:g}" for x in loads), "capacity"]
    heads += [f"{LABELS[name]} at {load:g}" for name in LATENCIES]
    table = []
    for name, found in by_competitor(part.track, rows).items():
        at = {x: [row for row in found if row["load"] == x] for x in loads}
        text = f"{name} (oracle)" if name in part.oracle_names() else name
        cells = [HtmlCell(text, text), *(heat_cell(mean(at[x], "slo_attainment")) for x in loads)]
        capacity = capacities_of(found)[scenario]
        cells.append(HtmlCell(str(capacity), capacity.load))
        table.append([*cells, *(value_cell(x, mean(at[load], x)) for x in LATENCIES)])
    return HtmlTable(f"{scenario}, {part.track} track", heads, table)


def mean(rows: Sequence[Row], column: str) -> float:
    """Mean of a column over the rows that have it; NaN without any."""
    values = [row[column] for row in rows if not math.isnan(row[column])]
    return float(np.mean(values)) if values else math.nan


def scenario_heat(part: Part, rows: Sequence[Row], policies: Sequence[str]) -> HtmlTable:
    """Mean attainment of each competitor in each scenario."""
    names = [name for name in part.scenarios if any(row["scenario"] == name for row in rows)]
    found = by_competitor(part.track, rows)
    return heat_table(
        f"Attainment by scenario, {part.track} track",
        "policy",
        [*policies, *(name for name in part.oracle_names() if name in found)],
        names,
        lambda policy, name: [row for row in found[policy] if row["scenario"] == name],
    )


def pair_heat(part: Part, rows: Sequence[Row]) -> HtmlTable:
    """Mean attainment of each router policy (across) with each engine policy (down)."""
    engines = list(dict.fromkeys(engine for engine, _ in part.matchups()))
    routers = list(dict.fromkeys(router for _, router in part.matchups()))
    found = by_competitor("joint", rows)
    return heat_table(
        "Router x engine",
        "engine policy",
        engines,
        routers,
        lambda engine, router: found.get(pair_label((engine, router)), []),
    )


def heat_table(
    name: str,
    corner: str,
    down: Sequence[str],
    across: Sequence[str],
    rows_of: Callable[[str, str], Sequence[Row]],
) -> HtmlTable:
    """Mean attainment over the rows of each (down, across), in percent."""
    table = [
        [
            HtmlCell(one, one),
            *(heat_cell(mean(rows_of(one, other), "slo_attainment")) for other in across),
        ]
        for one in down
    ]
    lead = "Mean attainment, %, over loads and seeds; empty: not played."
    return HtmlTable(name, [corner, *across], table, lead=lead)


def interaction_table(interaction: Interaction) -> HtmlTable:
    """Points that each pair attains beyond its policies' own effects, with intervals."""
    found = interaction.effects
    rows = [
        [
            HtmlCell(engine, engine),
            *(
                _points_cell(found.pair[i, j], found.low[i, j], found.high[i, j])
                for j in range(len(interaction.routers))
            ),
        ]
        for i, engine in enumerate(interaction.engines)
    ]
    lead = (
        "Points of mean attainment that a pair gains beyond the effects of its two policies alone, "
        f"with 95 % intervals over seeds. The interaction is {100 * found.share:.0f} % of the sum "
        "of squares of all effects."
    )
    heads = ["engine policy", *interaction.routers]
    return HtmlTable("Interaction of the layers", heads, rows, lead=lead)


def _points_cell(value: float, low: float, high: float) -> HtmlCell:
    text = f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return HtmlCell(text, float(value))


def oracle_rows(table: pd.DataFrame) -> HtmlTable:
    """What could be reached: played oracles, hindsight and the proven bound; not ranked."""
    columns = [str(c) for c in table.columns if not table[c].isna().all()]
    rows = [[value_cell(c, row[c]) for c in columns] for row in table.to_dict("records")]
    lead = (
        "Not ranked. Oracles were played and know the future; in hindsight is the best that "
        "anybody attained, chosen per episode once it is over; a bound is proven."
    )
    return HtmlTable("What could be reached", [_head(c) for c in columns], rows, lead=lead)
