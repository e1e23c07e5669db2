"""The HTML report of a board: one file without network access, made from the board's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.pairs import interaction_of
from synergy_gym.evaluation.board.part import Part
from synergy_gym.evaluation.board.scores import baseline, oracle_table
from synergy_gym.evaluation.board.tables import Row
from synergy_gym.evaluation.capacity import TARGET
from synergy_gym.evaluation.coverage import coverage_text
from synergy_gym.evaluation.jobs import CDF_EDGES_S, TRACK_LAYERS
from synergy_gym.evaluation.report.curves import LatencyCurves, attainment_curves, latency_curves
from synergy_gym.evaluation.report.html_incidents import (
    board_cards,
    card_sections,
    passed,
    passed_cell,
)
from synergy_gym.evaluation.report.html_tables import (
    HtmlCell,
    HtmlTable,
    html_ranking,
    interaction_table,
    oracle_rows,
    pair_heat,
    scenario_heat,
    scenario_table,
    text_table,
)
from synergy_gym.evaluation.report.markdown import NOTE, SCORE_NOTE
from synergy_gym.evaluation.report.svg import (
    Points,
    line_chart,
    load_axis,
    percent_axis,
    seconds_axis,
)
from synergy_gym.types import FloatArray

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).with_name("templates")
COLOURS = 6
"""Lines that a chart shows in colour at once."""
TOP = 3
"""How many of the best policies are coloured when the page opens, beside the baseline."""


@dataclass(frozen=True)
class ScenarioSection:
    """Charts and table of one scenario; without kept histograms, no latency charts."""

    name: str
    description: str
    charts: Sequence[tuple[str, str]]
    table: HtmlTable


@dataclass(frozen=True)
class PartSection:
    """One ranking and everything that belongs to it."""

    anchor: str
    title: str
    summary: str
    marked: Mapping[str, int]
    policies: Sequence[str]
    oracles: Sequence[str]
    ranking: HtmlTable
    others: Sequence[HtmlTable]
    reading: str
    scenarios: Sequence[ScenarioSection]


def report_html(board: Board) -> str:
    """The report as HTML; equal data give equal bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cards = board_cards(board)
    counts = passed(cards)
    parts = [
        _part_section(board, index, part, table, counts)
        for index, (part, table) in enumerate(board.rankings())
    ]
    return environment.get_template("report.html.j2").render(
        title=f"Leaderboard, suite {board.suite.name}",
        description=board.suite.description,
        note=NOTE,
        facts=_facts(board),
        parts=parts,
        cards=card_sections(cards),
        failures=board.failures,
        run=_run_facts(board),
        tables=[_policy_table(board.manifest), _scenario_table(board.manifest)],
        colours=COLOURS,
    )


def _part_section(
    board: Board,
    index: int,
    part: Part,
    ranked: pd.DataFrame,
    counts: Mapping[tuple[str, str], tuple[int, int]],
) -> PartSection:
    rows = part.rows(board.rows)
    policies = [str(name) for name in ranked["policy"]]
    marked = marked_policies(part, policies)
    names = [name for name in part.scenarios if any(row["scenario"] == name for row in rows)]
    heats = [pair_heat(part, rows)] if len(TRACK_LAYERS[part.track]) > 1 else []
    if len(names) > 1:
        heats.append(scenario_heat(part, rows, policies))
    return PartSection(
        anchor=f"{part.track}-{index}",
        title=part.title,
        summary=_summary(part, rows),
        marked=marked,
        policies=policies,
        oracles=part.oracle_names(),
        ranking=html_ranking(part.title, ranked, _card_column(part, policies, counts)),
        others=[*_others(board, part, rows), *heats],
        reading=f"{SCORE_NOTE} Measured: {coverage_text(_fewest_seeds(rows))}.",
        scenarios=[_scenario_section(board, part, name, rows, marked) for name in names],
    )


def _card_column(
    part: Part, policies: Sequence[str], counts: Mapping[tuple[str, str], tuple[int, int]]
) -> dict[str, dict[str, HtmlCell]]:
    """The column that shows how many incidents each competitor passes, if any was on trial."""
    found = {name: counts.get((part.track, name)) for name in policies}
    if not any(found.values()):
        return {}
    return {"incidents passed": {name: passed_cell(count) for name, count in found.items()}}


def _others(board: Board, part: Part, rows: Sequence[Row]) -> list[HtmlTable]:
    """What could be reached, and how the layers interact; each where it is known."""
    tables = []
    reached = oracle_table(rows, part.track, board.bounds)
    if not reached.empty:
        tables.append(oracle_rows(reached))
    interaction = interaction_of(part, rows)
    if interaction is not None:
        tables.append(interaction_table(interaction))
    return tables


def _fewest_seeds(rows: Sequence[Row]) -> int:
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["scenario"], set()).add(row["seed"])
    return min(map(len, seeds.values()))


def marked_policies(part: Part, ranked: Sequence[str]) -> dict[str, int]:
    """The policies that are coloured at first, with the numbers of their colours."""
    base = baseline(part.track)
    chosen = [*ranked[:TOP], *([base] if base in ranked[TOP:] else [])]
    return {name: index + 1 for index, name in enumerate(chosen)}


def _summary(part: Part, rows: Sequence[Row]) -> str:
    loads = ", ".join(f"{load:g}" for load in sorted({row["load"] for row in rows}))
    counts = {
        "scenario": len({row["scenario"] for row in rows}),
        "test seed": len({row["seed"] for row in rows}),
        "episode": len(rows),
    }
    texts = [f"{count:,} {name}{'s' * (count != 1)}" for name, count in counts.items()]
    return f"{', '.join(texts)}; loads {loads}"


# -- one scenario ----------------------------------------------------------------------


def _scenario_section(
    board: Board, part: Part, name: str, rows: Sequence[Row], marked: Mapping[str, int]
) -> ScenarioSection:
    chosen = [row for row in rows if row["scenario"] == name]
    loads = sorted({row["load"] for row in chosen})
    load = min(loads, key=lambda x: (abs(x - 1), x))
    charts = [_attainment_chart(part, name, chosen, marked)]
    curves = latency_curves(part, chosen, board.latency)
    if curves is not None:
        charts += [_latency_chart(part, name, curves, figure, marked) for figure in ("ttft", "e2e")]
    table = scenario_table(part, name, chosen, load)
    return ScenarioSection(name, _description(name, part.season), charts, table)


def _description(scenario: str, season: int) -> str:
    from synergy_gym.scenario import load_scenario

    return load_scenario(scenario, season).description


def _attainment_chart(
    part: Part, name: str, rows: Sequence[Row], marked: Mapping[str, int]
) -> tuple[str, str]:
    curves = attainment_curves(part, rows)
    series = {policy: list(points.items()) for policy, points in curves.items()}
    chart = line_chart(
        f"Attainment against load, {name}",
        series,
        load_axis(sorted({row["load"] for row in rows}), "load (1.0: baseline attains 90 %)"),
        percent_axis(""),
        marked=marked,
        bounds=part.oracle_names(),
        level=TARGET,
        markers=True,
    )
    return "Requests that met every SLO, %", chart


def _latency_chart(
    part: Part, name: str, curves: LatencyCurves, figure: str, marked: Mapping[str, int]
) -> tuple[str, str]:
    low_s, high_s = curves.limits_s[figure]
    series = {
        policy: _cdf_points(shares, low_s, high_s)
        for policy, shares in curves.shares[figure].items()
    }
    title = "TTFT" if figure == "ttft" else "E2E latency"
    chart = line_chart(
        f"{title} distribution at load {curves.load:g}, {name}",
        series,
        seconds_axis(low_s, high_s, f"{title}, s"),
        percent_axis(""),
        marked=marked,
        bounds=part.oracle_names(),
    )
    return f"{title} at load {curves.load:g}: offered requests at or below, %", chart


def _cdf_points(shares: FloatArray, low_s: float, high_s: float) -> Points:
    """The curve inside the drawn range, without points on straight pieces."""
    first, last = (int(np.abs(CDF_EDGES_S - end).argmin()) for end in (low_s, high_s))
    inside = np.arange(first, last + 1)
    values = np.round(shares[inside], 4)
    flat = np.zeros(len(inside), bool)
    flat[1:-1] = (values[1:-1] == values[:-2]) & (values[1:-1] == values[2:])
    return [
        (float(CDF_EDGES_S[index]), float(value))
        for index, value, skip in zip(inside, values, flat, strict=True)
        if not skip
    ]


# -- what was run ----------------------------------------------------------------------


def _facts(board: Board) -> list[tuple[str, str]]:
    rows = board.rows
    layers = {layer: {row[f"{layer}_policy"] for row in rows} for layer in ("engine", "router")}
    return [
        (f"{len(rows):,}", "episodes"),
        (f"{len(layers['engine'])} + {len(layers['router'])}", "engine + router policies"),
        (str(len({row["scenario"] for row in rows})), "scenarios"),
        (f"{sum(row['offered'] for row in rows):,}", "scored requests"),
    ]


def _run_facts(board: Board) -> list[tuple[str, str]]:
    manifest = board.manifest
    played_s = sum(row["play_s"] + row["build_s"] for row in board.timings)
    packages = manifest.get("packages", {})
    known = (
        ("Command", manifest.get("command", "")),
        ("synergy-gym", manifest.get("synergy_gym", "")),
        ("Environments", _text(manifest.get("environments", ""))),
        ("Sources, SHA-256", manifest.get("source_sha256", "")),
        ("Deciding sources, SHA-256", manifest.get("dynamics_sha256", "")),
        ("Seeds", ", ".join(map(str, manifest.get("seeds", [])))),
        ("Loads", ", ".join(f"{load:g}" for load in manifest.get("loads", []))),
        ("Machine", _text(manifest.get("machine", ""))),
        ("Time of all episodes", f"{played_s:,.0f} s of one core, wall clock of the machine above"),
        ("Python", manifest.get("python", "")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    )
    return [(name, str(value)) for name, value in known if value]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def _policy_table(manifest: Mapping[str, Any]) -> HtmlTable:
    rows = [
        (
            name,
            layer,
            str(entry.get("version", 1)),
            ", ".join(entry.get("information", [])),
            _text(entry.get("parameters", {})) or "-",
            str(entry.get("sha256", ""))[:12],
        )
        for layer, policies in manifest.get("policies", {}).items()
        for name, entry in sorted(policies.items())
    ]
    heads = ("policy", "layer", "version", "information", "parameters", "SHA-256")
    return text_table("Policies", heads, rows)


def _scenario_table(manifest: Mapping[str, Any]) -> HtmlTable:
    rows = [(name, sha[:12]) for name, sha in sorted(manifest.get("scenarios", {}).items())]
    return text_table("Scenarios", ("scenario", "SHA-256"), rows)
