"""SynergySched's heterogeneous cluster: 1xH100 + 1xA100 + 2xA6000, Llama-3.1-8B, simulated.

Command (from the repository root):

    python -m experiments.paper.heterogeneous --processes 2

The paper's lines at its rates and below them: PRISM routes for LENS engines; what the engines
of the other routers ran is not known, so these are played with Sarathi (`vllm-v1`) and with
LENS engines. Throughput at equal attainment is the rate at which a line falls below 90 %,
interpolated between the rates played. Writes `heterogeneous.csv` (simulated beside published),
`capacities.csv`, `shares.csv`, `episodes.csv`, `heterogeneous.png`, `shares.png`,
`manifest.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.paper import common as pc
from synergy_gym.evaluation.jobs import JobResult
from synergy_gym.latency.models.published import StepModelFile

DATASETS = {
    "sharegpt": "paper-sharegpt-hetero",
    "coder": "paper-coder-hetero",
    "flowgpt-q": "paper-flowgpt-q-hetero",
    "flowgpt-t": "paper-flowgpt-t-hetero",
}
ENGINES = ("h100", "a100", "a6000")
PAPER = {
    "PRISM": "prism-ref",
    "Weighted": "weighted",
    "Least-Loaded": "least-loaded",
    "Latency-Based": "latency-based",
}
LINES = (
    pc.Line("PRISM", "lens-ref", PAPER["PRISM"]),
    *(pc.Line(name, "vllm-v1", PAPER[name]) for name in list(PAPER)[1:]),
    pc.Line("round-robin", "vllm-v1", "round-robin"),
    *(pc.Line(f"{name}, LENS engines", "lens-ref", PAPER[name]) for name in list(PAPER)[1:]),
    pc.Line("PRISM, Sarathi engines", "vllm-v1", "prism-ref"),
    pc.Line("prism-fixed, LENS engines", "lens-ref", "prism-fixed"),
    pc.Line("prism-fixed, Sarathi engines", "vllm-v1", "prism-fixed"),
    pc.Line("ours", "lens-plus", "prism-plus"),
)
LOOKS = {
    "PRISM": "#D55E00",
    "Weighted": "#0072B2",
    "Least-Loaded": "#009E73",
    "Latency-Based": "#CC79A7",
    "round-robin": "0.5",
    "PRISM, Sarathi engines": "#E69F00",
    "prism-fixed, Sarathi engines": "#56B4E9",
    "ours": "#000000",
}


@dataclass(frozen=True)
class Size:
    """How much is played."""

    datasets: tuple[str, ...]
    more_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    horizon_s: float
    steady_s: tuple[float, float]
    lines: tuple[pc.Line, ...] = LINES


FULL = Size(tuple(DATASETS), (2.0, 3.0, 4.0, 6.0, 8.0), (3000,), 220.0, (60.0, 200.0))
QUICK = Size(("sharegpt", "flowgpt-q"), (3.0,), (3000,), 110.0, (40.0, 90.0), LINES[:5])


def rates(size: Size, dataset: str) -> list[float]:
    """The published rates of a dataset, and those that only the simulator plays."""
    known = pc.published("heterogeneous")
    return sorted({*known[known.dataset == dataset].rate_rps, *size.more_rates})


def compare(played: pd.DataFrame) -> pd.DataFrame:
    """Simulated means over seeds beside the published figures."""
    names = {scenario: dataset for dataset, scenario in DATASETS.items()}
    known = pc.published("heterogeneous")
    limits = known.drop_duplicates("dataset").set_index("dataset").threshold_s
    played = played.assign(dataset=played.scenario.map(names))
    played["threshold_s"] = played.dataset.map(limits)
    played["attainment_pct"] = [
        100 * row[f"at_{row.threshold_s:g}"] for _, row in played.iterrows()
    ]
    keys = ["dataset", "rate_rps", "line"]
    columns = ["threshold_s", "attainment_pct", "e2e_p50_s", "e2e_p90_s", "ttft_p50_s",
               "tpot_p50_ms"]  # fmt: skip
    means = played.groupby(keys, sort=False)[columns].mean().reset_index()
    return means.merge(known.drop(columns="threshold_s"), on=keys, how="left",
                       suffixes=("_simulated", "_published"))  # fmt: skip


def capacities(compared: pd.DataFrame) -> pd.DataFrame:
    """Rate at 90 % per line, and how many times that of the paper's PRISM line it is.

    A line that misses 90 % at its lowest rate has a capacity of 0; PRISM's ratio to it is
    counted against that lowest rate, as a lower bound (`at_least`).
    """
    rows = []
    for figures in ("simulated", "published"):
        column = f"attainment_pct_{figures}"
        part = compared[compared[column].notna()]
        for dataset, group in part.groupby("dataset", sort=False):
            found = {
                line: pc.curve_capacity(curve.rate_rps.tolist(), (curve[column] / 100).tolist())
                for line, curve in group.groupby("line", sort=False)
            }
            lowest = float(group.rate_rps.min())
            for line, capacity in found.items():
                rows.append(
                    {
                        "figures": figures,
                        "dataset": dataset,
                        "line": line,
                        "capacity_rps": capacity,
                        "prism_ratio": found["PRISM"] / (capacity or lowest),
                        "at_least": capacity == 0,
                    }
                )
    return pd.DataFrame(rows)


def shares(results: Sequence[JobResult], size: Size, lines: Sequence[pc.Line]) -> pd.DataFrame:
    """Share of requests per engine: mean over the steady window, deviation over 20 s slices."""
    labels = {(line.engine, line.router): line.label for line in lines}
    names = {scenario: dataset for dataset, scenario in DATASETS.items()}
    slices = slice(int(size.steady_s[0] // 20), int(size.steady_s[1] // 20))
    rows: list[dict[str, Any]] = []
    for row in (result.row for result in results):
        over_time = np.array(row["slice_shares"][slices])
        label = labels[row["engine_policy"], row["router_policy"]]
        key = {"dataset": names[row["scenario"]], "rate_rps": row["rate_rps"], "line": label}
        mean, spread = row["windows"]["steady"]["shares"], over_time.std(axis=0)
        for engine, m, s in zip(ENGINES, mean, spread, strict=True):
            rows.append(
                {**key, "engine": engine, "share_pct": 100 * m, "over_time_sd_pct": 100 * s}
            )
    keys = ["dataset", "rate_rps", "line", "engine"]
    table = pd.DataFrame(rows).groupby(keys, sort=False).mean().reset_index()
    return table.merge(_published_shares(), on=["dataset", "line", "engine"], how="left")


def _published_shares() -> pd.DataFrame:
    known = pc.published("heterogeneous_shares").rename(
        columns={f"{engine}_pct": engine for engine in ENGINES}
    )
    return known.melt(["dataset", "line"], var_name="engine", value_name="share_pct_published")


def plot(compared: pd.DataFrame, path: Path) -> None:
    """Attainment against rate, published above simulated."""
    datasets = list(dict.fromkeys(compared.dataset))
    chart, panels = pc.figure(2, len(datasets), width=3.0)
    for axes_row, figures in zip(panels, ("published", "simulated"), strict=True):
        column = f"attainment_pct_{figures}"
        for axes, dataset in zip(axes_row, datasets, strict=True):
            part = compared[(compared.dataset == dataset) & compared[column].notna()]
            for line, colour in LOOKS.items():
                curve = part[part.line == line]
                axes.plot(curve.rate_rps, curve[column], marker="o", ms=3, lw=1.2, color=colour,
                          label=line)  # fmt: skip
            axes.axhline(90, color="0.7", lw=0.8)
            axes.set(ylim=(-3, 103), title=f"{dataset} ({figures})", xlabel="requests/s")
            axes.set_xlim(compared[compared.dataset == dataset].rate_rps.min() - 0.5, None)
        axes_row[0].set_ylabel("within the threshold, %")
    handles, labels = panels[1][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside upper center", ncols=4)
    pc.save(chart, path)


def plot_shares(table: pd.DataFrame, path: Path) -> None:
    """Shares per engine at the highest published rate, with their deviation over time."""
    datasets = list(dict.fromkeys(table.dataset))
    chart, panels = pc.figure(1, len(datasets), width=3.2, height=3.0)
    lines = [line for line in PAPER if line in set(table.line)]
    for axes, dataset in zip(panels[0], datasets, strict=True):
        part = table[table.dataset == dataset]
        part = part[part.rate_rps == part.rate_rps.max()].set_index(["line", "engine"])
        for i, engine in enumerate(ENGINES):
            places = np.arange(len(lines)) + 0.26 * (i - 1)
            rows = part.loc[[(line, engine) for line in lines]]
            axes.bar(places, rows.share_pct, 0.25, yerr=rows.over_time_sd_pct, capsize=2,
                     color=("#0072B2", "#56B4E9", "#E69F00")[i], label=engine)  # fmt: skip
            axes.plot(places, rows.share_pct_published, "k_", ms=9, mew=1.5,
                      label="published" if i == 2 else None)  # fmt: skip
        axes.set_xticks(np.arange(len(lines)), lines, rotation=25)
        axes.set(title=f"{dataset}, {part.rate_rps.iloc[0]:g} requests/s", ylim=(0, 105))
    panels[0][0].set_ylabel("requests per engine, % (simulated)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside upper center", ncols=4)
    pc.save(chart, path)


def run(
    size: Size, out: Path, processes: int, step_model: StepModelFile = "engine"
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Play, compare and write; returns the comparison, the capacities and the shares."""
    lines = pc.available(size.lines, step_model)
    windows = (pc.Window("steady", *size.steady_s), pc.Window("full", 0.0, size.steady_s[1]))
    limits = pc.published("heterogeneous").threshold_s.unique()
    measure = pc.Measure(windows, tuple(sorted(float(x) for x in limits)), slice_s=20.0)
    cells = [(DATASETS[d], rate) for d in size.datasets for rate in rates(size, d)]
    jobs = pc.grid("paper-heterogeneous", cells, size.seeds, lines, measure, size.horizon_s)
    results = pc.play_grid(jobs, measure, out, processes)
    played = pc.table(results, lines)
    compared = compare(played)
    found = capacities(compared)
    by_engine = shares(results, size, lines)
    pc.write_csv(played, out / "episodes.csv")
    pc.write_csv(compared, out / "heterogeneous.csv")
    pc.write_csv(found, out / "capacities.csv")
    pc.write_csv(by_engine, out / "shares.csv")
    plot(compared, out / "heterogeneous.png")
    plot_shares(by_engine, out / "shares.png")
    pc.write_manifest(out, results, lines, ("heterogeneous", "heterogeneous_shares"))
    return compared, found, by_engine


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = pc.arguments("SynergySched's heterogeneous cluster", "paper_heterogeneous", argv)
    compared, found, _ = run(
        QUICK if given.quick else FULL, given.out, given.processes, given.step_model
    )
    wide = compared.pivot_table(
        index=["dataset", "rate_rps"], columns="line", values="attainment_pct_simulated", sort=False
    )
    pc.show("Attainment in percent (simulated)", wide.round(1).reset_index())
    ratios = found.pivot_table(
        index=["figures", "line"], columns="dataset", values="capacity_rps", sort=False
    )
    pc.show("Requests per second at 90 % attainment", ratios.round(2).reset_index())


if __name__ == "__main__":
    main()
