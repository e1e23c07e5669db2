"""The Markdown page of a leaderboard: rankings, capacities, decision times, plots, failures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from synergy_gym.evaluation.jobs import TRACK_LAYERS, Track
from synergy_gym.evaluation.suites import Part
from synergy_gym.evaluation.tables import (
    Row,
    by_competitor,
    capacities_of,
    decision_times,
    markdown,
    page_table,
)

if TYPE_CHECKING:
    import pandas as pd

    from synergy_gym.evaluation.leaderboard import Report

NOTE = (
    "Everything on this page is simulated: engines are clocked by a step-latency model, no GPU "
    "was used. A request that was rejected, dropped, failed, cut off or late is a miss."
)


def leaderboard_text(report: Report, plots: Sequence[str]) -> str:
    """The Markdown page: one ranking per part, capacities, plots and failures."""
    lines = [f"# Leaderboard, suite `{report.suite.name}`", "", report.suite.description, "", NOTE]
    for part, table in report.rankings():
        lines += ["", *_part_text(part, table, part.rows(report.rows))]
        lines += ["", *_times_text(part, table, part.rows(report.timings))]
    lines += ["", "## Plots", "", *(f"![{Path(p).stem}]({p})" for p in plots if p.endswith(".png"))]
    if report.failures:
        lines += ["", "## Failed episodes", ""]
        lines += [f"- {job}: {text}" for job, text in report.failures.items()]
    return "\n".join(lines) + "\n"


def _part_text(part: Part, table: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    seeds = sorted({row["seed"] for row in rows})
    return [
        f"## {part.title}",
        "",
        f"Scenarios {', '.join(part.scenarios)}; loads {_loads_text(rows)}; test seeds "
        f"{', '.join(map(str, seeds))}; {_others_text(part)}. `slo_attainment` is "
        "the mean share of offered requests that met every SLO, over scenario x load x seed, "
        "`low`..`high` its 95 % bootstrap interval over seeds, `iqm` the interquartile mean; "
        "`capacity` is the highest load with at least 90 % attainment, interpolated between "
        "the offered loads: `< 0.6` when even the lowest misses, `>= 1.5` when the highest "
        "attains, `0.45..0.6` for a mean that contains a scenario whose lowest load misses. "
        "Seconds are means of the episodes' P99, over requests that finished.",
        "",
        markdown(page_table(table)).rstrip("\n"),
        *(_capacity_text(part, table, rows) if len({row["scenario"] for row in rows}) > 1 else []),
    ]


def _others_text(part: Part) -> str:
    """Who plays the layers that do not compete."""
    others = {"engine": part.engine_policies, "router": part.router_policies}
    names = [p for x in others if x not in TRACK_LAYERS[part.track] for p in others[x]]
    return f"the other layer is {', '.join(names)}" if names else "engine + router policy compete"


def _times_text(part: Part, table: pd.DataFrame, timings: Sequence[Row]) -> list[str]:
    """Decision times of the competitors, in the order of their ranking."""
    times = decision_times(timings, part.track, list(table["policy"]))
    return [
        "Decision time, microseconds of processor time on the machine that ran this suite (not "
        "part of the simulated results): mean of the episodes' means and of their P99, `observe` "
        "included, making the view not; `-`: a rule that the simulator carries out in compiled "
        "code.",
        "",
        markdown(times).rstrip("\n"),
    ]


def _capacity_text(part: Part, table: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    found = capacity_table(rows, part.track, list(table["policy"]))
    return ["", "Capacity per scenario:", "", markdown(found).rstrip("\n")]


def _loads_text(rows: Sequence[Row]) -> str:
    """The offered loads; those of some scenarios only say so."""
    every = {row["scenario"] for row in rows}
    texts = []
    for load in sorted({row["load"] for row in rows}):
        names = {row["scenario"] for row in rows if row["load"] == load}
        only = f" ({', '.join(sorted(names))} only)" if names != every else ""
        texts.append(f"{load:g}{only}")
    return ", ".join(texts)


def capacity_table(rows: Sequence[Row], track: Track, policies: Sequence[str]) -> pd.DataFrame:
    """Capacity of each competitor in each scenario, as text."""
    import pandas as pd

    table, of = [], by_competitor(track, rows)
    for policy in policies:
        found = capacities_of(of.get(policy, []))
        table.append({"policy": policy, **{name: str(value) for name, value in found.items()}})
    return pd.DataFrame(table).fillna("-")
