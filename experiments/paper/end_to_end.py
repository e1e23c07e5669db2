"""SynergySched's end-to-end experiment: five workloads on 8 H100, QwQ-32B, simulated.

Command (from the repository root):

    python -m experiments.paper.end_to_end --processes 2

Every line meets the same traffic at the paper's rates, and once more at those rates scaled so
that Sarathi RR fails (90 % within the threshold) where the published Sarathi RR does: the
simulated cluster is not the authors', and above or below the edge all lines look alike.
Attainment is counted at the thresholds of the published panels. Writes `end_to_end.csv`
(simulated beside published), `episodes.csv`, `gains.csv`, `end_to_end.png`, `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.paper import common as pc
from synergy_gym.latency.models.published import StepModelFile

DATASETS = {
    "summarization": "paper-summarization-8xh100",
    "flowgpt-q": "paper-flowgpt-q-8xh100",
    "flowgpt-t": "paper-flowgpt-t-8xh100",
    "sharegpt": "paper-sharegpt-8xh100",
    "coding": "paper-coding-8xh100",
}
LINES = (
    pc.SYNERGY,
    pc.SARATHI_RR,
    pc.SARATHI_SESSION,
    pc.VLLM_RR,
    pc.VLLM_SESSION,
    pc.OURS,
)
BASELINES = ("Sarathi RR", "Sarathi Session", "vLLM RR", "vLLM Session")
THRESHOLDS_S = {"summarization": 20.0, "flowgpt-q": 10.0, "flowgpt-t": 20.0, "sharegpt": 7.0}
"""Suggested thresholds where the published panel has another one (see `published`)."""
VALIDATION_SEEDS = (2000, 2001)
TEST_SEEDS = (3000,)


@dataclass(frozen=True)
class Size:
    """How much is played."""

    datasets: tuple[str, ...]
    rates: slice
    seeds: tuple[int, ...]
    horizon_s: float
    steady_s: tuple[float, float]


FULL = Size(tuple(DATASETS), slice(None), TEST_SEEDS, 130.0, (50.0, 110.0))
QUICK = Size(("flowgpt-q", "coding"), slice(2, None, 2), (3000,), 80.0, (30.0, 60.0))


def factors(datasets: Sequence[str]) -> pd.DataFrame:
    """Where Sarathi RR attains 90 %: simulated, published, and their ratio, per dataset."""
    known = pc.published("end_to_end")
    rows = []
    for dataset in datasets:
        curve = known[(known.dataset == dataset) & (known.line == pc.SARATHI_RR.label)]
        threshold = float(curve.threshold_s.iloc[0])
        edge = pc.curve_capacity(curve.rate_rps.tolist(), (curve.attainment_pct / 100).tolist())
        simulated = pc.sarathi_rate(DATASETS[dataset], threshold, VALIDATION_SEEDS)
        rows.append(
            {
                "dataset": dataset,
                "threshold_s": threshold,
                "published_capacity_rps": edge,
                "simulated_capacity_rps": simulated,
                "factor": simulated / edge,
            }
        )
    return pd.DataFrame(rows)


def cells(size: Size, scale: pd.DataFrame) -> pd.DataFrame:
    """What is played: dataset, published rate, and the rate in the simulator, twice."""
    known = pc.published("end_to_end")
    rows = []
    for row in scale.itertuples():
        rates = sorted(known[known.dataset == row.dataset].rate_rps.unique())[size.rates]
        for rate in rates:
            rows += [
                {"dataset": row.dataset, "published_rate_rps": rate, "set": name, "rate_rps": value}
                for name, value in (("published", rate), ("matched", round(rate * row.factor, 3)))
            ]
    return pd.DataFrame(rows)


def compare(played: pd.DataFrame, plan: pd.DataFrame) -> pd.DataFrame:
    """Simulated means over seeds beside the published figures, per cell and line."""
    names = {scenario: dataset for dataset, scenario in DATASETS.items()}
    played = played.assign(dataset=played.scenario.map(names))
    known = pc.published("end_to_end").rename(columns={"rate_rps": "published_rate_rps"})
    keys = ["dataset", "rate_rps", "line"]
    columns = ["e2e_p50_s", "e2e_p90_s", "ttft_p50_s", "tpot_p50_ms"]
    at = [name for name in played.columns if name.startswith("at_")]
    means = played.groupby(keys, sort=False)[columns + at].mean().reset_index()
    merged = plan.merge(means, on=["dataset", "rate_rps"])
    merged = merged.merge(known, on=["dataset", "published_rate_rps", "line"], how="left",
                          suffixes=("_simulated", "_published"))  # fmt: skip
    thresholds = known.drop_duplicates("dataset").set_index("dataset").threshold_s
    merged["threshold_s"] = merged.dataset.map(thresholds)
    attained = [100 * row[f"at_{row.threshold_s:g}"] for _, row in merged.iterrows()]
    other = merged.dataset.map(THRESHOLDS_S).fillna(merged.threshold_s)
    suggested = [
        100 * row[f"at_{x:g}"] for x, (_, row) in zip(other, merged.iterrows(), strict=True)
    ]
    merged = merged.rename(
        columns={
            "attainment_pct": "attainment_pct_published",
            "decode_p50_s": "decode_p50_s_published",
        }
    )
    return merged.assign(
        attainment_pct_simulated=attained,
        suggested_threshold_s=other,
        attainment_at_suggested_pct_simulated=suggested,
    ).drop(columns=at)


ORDER = [
    "set", "dataset", "published_rate_rps", "rate_rps", "line", "threshold_s",
    "attainment_pct_simulated", "attainment_pct_published",
    "e2e_p50_s_simulated", "e2e_p50_s_published", "e2e_p90_s_simulated", "e2e_p90_s_published",
    "ttft_p50_s_simulated", "ttft_p50_s_published",
    "tpot_p50_ms_simulated", "tpot_p50_ms_published", "decode_p50_s_published",
    "suggested_threshold_s", "attainment_at_suggested_pct_simulated",
]  # fmt: skip


def gains(compared: pd.DataFrame, lines: Sequence[str]) -> pd.DataFrame:
    """Mean gain of each line over the four baselines, in points and relative, per set."""
    rows = []
    wide = compared.pivot_table(
        index=["set", "dataset", "published_rate_rps"],
        columns="line",
        values="attainment_pct_simulated",
    )
    known = compared[(compared.set == "published") & compared.attainment_pct_published.notna()]
    reported = known.pivot_table(
        index=["dataset", "published_rate_rps"], columns="line", values="attainment_pct_published"
    )
    groups = {f"simulated, {name} rates": wide.loc[name] for name in wide.index.levels[0]}
    for name, cells_ in {"published": reported, **groups}.items():
        for line in lines:
            if line in cells_.columns:
                rows.append({"figures": name, "line": line, **_gain(cells_, line)})
    return pd.DataFrame(rows)


def _gain(cells_: pd.DataFrame, line: str) -> dict[str, float]:
    base = cells_[list(BASELINES)]
    points = base.rsub(cells_[line], axis=0)
    return {
        "mean_gain_points": float(points.to_numpy().mean()),
        "over_sarathi_rr_points": float(points["Sarathi RR"].mean()),
        "mean_attainment_pct": float(cells_[line].mean()),
        "relative_gain_pct": float(100 * (cells_[line].mean() / base.to_numpy().mean() - 1)),
        "cells": len(cells_),
    }


def plot(compared: pd.DataFrame, path: Path) -> None:
    """Attainment against rate: published, simulated there, simulated at matched rates."""
    datasets = list(dict.fromkeys(compared.dataset))
    chart, panels = pc.figure(3, len(datasets))
    rows = (
        ("published", "attainment_pct_published", "published"),
        ("published", "attainment_pct_simulated", "simulated, same rates"),
        ("matched", "attainment_pct_simulated", "simulated, matched load"),
    )
    for axes_row, (name, column, text) in zip(panels, rows, strict=True):
        for axes, dataset in zip(axes_row, datasets, strict=True):
            part = compared[(compared.set == name) & (compared.dataset == dataset)]
            for line, curve in part.groupby("line", sort=False):
                axes.plot(curve.rate_rps, curve[column], marker="o", ms=3, lw=1.2, label=line,
                          color=pc.COLOURS[str(line)])  # fmt: skip
            axes.set_ylim(-3, 103)
            if name == "published" and column.endswith("published"):
                axes.set_title(f"{dataset}, {part.threshold_s.iloc[0]:g} s")
        axes_row[0].set_ylabel(f"{text}\nwithin the threshold, %")
    for axes in panels[-1]:
        axes.set_xlabel("requests/s")
    handles, labels = panels[1][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    pc.save(chart, path)


def run(
    size: Size, out: Path, processes: int, step_model: StepModelFile = "engine"
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Play, compare and write; returns the comparison, the gains and the capacities."""
    lines = pc.available(LINES, step_model)
    thresholds = {*THRESHOLDS_S.values(), *pc.published("end_to_end").threshold_s.unique()}
    windows = (pc.Window("steady", *size.steady_s), pc.Window("full", 0.0, size.steady_s[1]))
    measure = pc.Measure(windows, tuple(sorted(float(x) for x in thresholds)))
    scale = factors(size.datasets)
    plan = cells(size, scale)
    jobs = pc.grid(
        "paper-end-to-end",
        [(DATASETS[row.dataset], row.rate_rps) for row in plan.itertuples()],
        size.seeds,
        lines,
        measure,
        size.horizon_s,
    )
    results = pc.play_grid(jobs, measure, out, processes)
    played = pc.table(results, lines)
    compared = compare(played, plan)[ORDER]
    summary = gains(compared, [line.label for line in lines if line.label not in BASELINES])
    pc.write_csv(played, out / "episodes.csv")
    pc.write_csv(compared, out / "end_to_end.csv")
    pc.write_csv(summary, out / "gains.csv")
    pc.write_csv(scale, out / "capacities.csv")
    plot(compared, out / "end_to_end.png")
    pc.write_manifest(out, results, lines, ("end_to_end",))
    return compared, summary, scale


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = pc.arguments("SynergySched's end-to-end experiment", "paper_end_to_end", argv)
    compared, summary, scale = run(
        QUICK if given.quick else FULL, given.out, given.processes, given.step_model
    )
    pc.show("Where Sarathi RR attains 90 %", scale)
    for name in ("published", "matched"):
        part = compared[compared.set == name]
        wide = part.pivot_table(
            index=["dataset", "rate_rps"], columns="line", values="attainment_pct_simulated",
            sort=False,
        )  # fmt: skip
        pc.show(f"Attainment in percent (simulated, {name} rates)", wide.round(1).reset_index())
    pc.show("Gain over the four baselines", summary)


if __name__ == "__main__":
    main()
