"""SynergySched's warm-up: does the ranking of the first four minutes hold later? Simulated.

Command (from the repository root):

    python -m experiments.paper.warmup --processes 2

The paper's runs are 8 rounds of 60 s; its plots use the last ones. In the authors' data the
lines rank one way in rounds 1 to 4 and another way in rounds 5 to 8. Here the same lines play
480 s; a figure is the mean over rounds of the round's median E2E, requests by arrival. `LENS
online + PRISM` begins without a model and learns T(B,S) while it serves. Writes `warmup.csv`
(simulated beside published), `rounds.csv`, `ranking.csv`, `warmup.png`, `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.paper import common as pc
from synergy_gym.evaluation.jobs import JobResult
from synergy_gym.latency.models.published import StepModelFile

SCENARIOS = {"flowgpt-q": "paper-flowgpt-q-8xh100", "flowgpt-t": "paper-flowgpt-t-8xh100"}
ONLINE = pc.Line("LENS online + PRISM", "lens-ref:mode=online", "prism-ref")
LINES = (
    pc.SYNERGY,
    ONLINE,
    pc.LENS_RR,
    pc.SARATHI_PRISM,
    pc.SARATHI_RR,
    pc.SARATHI_SESSION,
)
RIVAL = "Sarathi RR"
ROUND_S = 60.0
COOLDOWN_S = 40.0
"""Arrivals after the last round, so that what it left waiting is seen to finish."""


@dataclass(frozen=True)
class Size:
    """How much is played: dataset, rates; seeds; rounds."""

    cells: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...]
    rounds: int
    lines: tuple[pc.Line, ...] = LINES


FULL = Size(
    (*(("flowgpt-q", rate) for rate in (14.0, 15.0, 16.0, 17.0, 18.0)), ("flowgpt-t", 18.0)),
    (3000,),
    8,
)
QUICK = Size((("flowgpt-q", 16.0),), (3000,), 4, (pc.SYNERGY, ONLINE, pc.SARATHI_RR))


def rounds(results: Sequence[JobResult], lines: Sequence[pc.Line]) -> pd.DataFrame:
    """One row per cell, line and round: its median E2E."""
    labels = {(line.engine, line.router): line.label for line in lines}
    names = {scenario: dataset for dataset, scenario in SCENARIOS.items()}
    rows = []
    for row in (result.row for result in results):
        key = {
            "dataset": names[row["scenario"]],
            "rate_rps": row["rate_rps"],
            "seed": row["seed"],
            "line": labels[row["engine_policy"], row["router_policy"]],
        }
        for number, value in enumerate(row["slice_e2e_p50_s"], start=1):
            rows.append({**key, "round": number, "e2e_p50_s": value})
    return pd.DataFrame(rows)


def halves(by_round: pd.DataFrame) -> pd.DataFrame:
    """Means of the early and the late rounds beside the published ones."""
    middle = by_round["round"].max() / 2
    keys = ["dataset", "rate_rps", "line"]
    half = np.where(by_round["round"] <= middle, "early_p50_s", "late_p50_s")
    table = by_round.assign(half=half).pivot_table(
        index=keys, columns="half", values="e2e_p50_s", sort=False
    )
    known = pc.published("warmup")
    return table.reset_index().merge(
        known, on=keys, how="left", suffixes=("_simulated", "_published")
    )


def ranking(table: pd.DataFrame) -> pd.DataFrame:
    """LENS+PRISM against Sarathi RR in both halves (seconds ahead), and the lines in order."""
    rows = []
    for (dataset, rate), cell in table.groupby(["dataset", "rate_rps"], sort=False):
        for figures in ("simulated", "published"):
            early, late = (f"{half}_p50_s_{figures}" for half in ("early", "late"))
            known = cell[cell[late].notna() & (cell.line != ONLINE.label)].set_index("line")
            if known.empty or pc.SYNERGY.label not in known.index:
                continue
            ahead = {h: known.loc[RIVAL, h] - known.loc[pc.SYNERGY.label, h] for h in (early, late)}
            rows.append(
                {
                    "dataset": dataset,
                    "rate_rps": rate,
                    "figures": figures,
                    "synergy_ahead_early_s": ahead[early],
                    "synergy_ahead_late_s": ahead[late],
                    "flips": bool(ahead[early] < 0 < ahead[late]),
                    "early_order": " < ".join(known[early].sort_values().index),
                    "late_order": " < ".join(known[late].sort_values().index),
                }
            )
    return pd.DataFrame(rows)


def plot(by_round: pd.DataFrame, path: Path) -> None:
    """Median E2E per round, one panel per cell."""
    cells = list(by_round.groupby(["dataset", "rate_rps"], sort=False))
    columns = min(3, len(cells))
    chart, panels = pc.figure(-(-len(cells) // columns), columns, width=3.4, height=2.5)
    for axes, ((dataset, rate), cell) in zip(panels.flat, cells, strict=False):
        for line, curve in cell.groupby("line", sort=False):
            means = curve.groupby("round").e2e_p50_s.mean()
            axes.plot(means.index, means, marker="o", ms=3, lw=1.2, label=line,
                      color=pc.COLOURS.get(str(line), "#7A1F1F"),
                      ls="--" if line == ONLINE.label else "-")  # fmt: skip
        axes.set(title=f"{dataset}, {rate:g} requests/s", xlabel="round of 60 s", ylim=(0, None))
    for axes_row in panels:
        axes_row[0].set_ylabel("median E2E, s (simulated)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    pc.save(chart, path)


def run(
    size: Size, out: Path, processes: int, step_model: StepModelFile = "engine"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Play and write; returns the halves and the ranking."""
    lines = pc.available(size.lines, step_model)
    end_s = size.rounds * ROUND_S
    windows = (pc.Window("full", 0.0, end_s), pc.Window("steady", end_s / 2, end_s))
    measure = pc.Measure(windows, (10.0, 12.0), ROUND_S)
    cells = [(SCENARIOS[dataset], rate) for dataset, rate in size.cells]
    jobs = pc.grid("paper-warmup", cells, size.seeds, lines, measure, end_s + COOLDOWN_S)
    results = pc.play_grid(jobs, measure, out, processes)
    by_round = rounds(results, lines)
    table = halves(by_round)
    ranked = ranking(table)
    windows_ = [pc.table(results, lines, w.name).assign(window=w.name) for w in windows]
    pc.write_csv(pd.concat(windows_), out / "episodes.csv")
    pc.write_csv(by_round, out / "rounds.csv")
    pc.write_csv(table, out / "warmup.csv")
    pc.write_csv(ranked, out / "ranking.csv")
    plot(by_round, out / "warmup.png")
    pc.write_manifest(out, results, lines, ("warmup",))
    return table, ranked


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = pc.arguments("SynergySched's warm-up", "paper_warmup", argv)
    table, ranked = run(
        QUICK if given.quick else FULL, given.out, given.processes, given.step_model
    )
    pc.show("Mean over rounds of the median E2E", table)
    pc.show("LENS+PRISM against Sarathi RR", ranked)


if __name__ == "__main__":
    main()
