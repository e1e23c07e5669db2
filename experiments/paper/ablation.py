"""SynergySched's ablation: LENS or Sarathi engines under PRISM or round-robin, simulated.

Command (from the repository root):

    python -m experiments.paper.ablation --processes 2

The 2 x 2 design of the paper at its rates, and once more at the rates where the simulated
Sarathi RR attains what the published one does (the simulated cluster is not the authors'). All
four lines of a seed meet the same traffic. Per seed, in percentage
points of attainment y[engine, router]:

    engine effect = mean over routers of y[LENS, .] - y[Sarathi, .]
    router effect = mean over engines of y[., PRISM] - y[., RR]
    interaction   = (y[LENS, PRISM] - y[LENS, RR]) - (y[Sarathi, PRISM] - y[Sarathi, RR])
    whole         = y[LENS, PRISM] - y[Sarathi, RR]
    synergy       = min(interaction, whole)

The whole is more than its parts where the interaction is positive and the whole is worth
something: where LENS takes both lines to 0 %, the interaction alone is positive as well.
Intervals: 95 % bootstrap over whole seeds, corrected for their number. Writes `effects.csv`,
`ablation.csv` (simulated beside published), `variants.csv` (attainment in percent, first seed),
`episodes.csv`, `ablation.png`, `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.paper import common as pc
from experiments.paper.end_to_end import DATASETS, VALIDATION_SEEDS
from synergy_gym.evaluation.statistics import estimate
from synergy_gym.latency.models.published import StepModelFile

LINES = (pc.SYNERGY, pc.LENS_RR, pc.SARATHI_PRISM, pc.SARATHI_RR)
DESIGN = tuple(line.label for line in LINES)
VARIANTS = (
    pc.Line("LENS guarded + PRISM", "lens-guarded", "prism-ref"),
    pc.Line("LENS e2e + PRISM", "lens-e2e", "prism-ref"),
    pc.Line("LENS guarded + prism-fixed", "lens-guarded", "prism-fixed"),
    pc.OURS,
)
"""Outside the design, first seed only: what single defects of LENS and PRISM cost."""
EFFECTS = ("engine", "router", "interaction", "whole", "synergy")


@dataclass(frozen=True)
class Size:
    """How much is played."""

    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    horizon_s: float
    steady_s: tuple[float, float]
    sets: tuple[str, ...] = ("published", "matched")
    variants: tuple[pc.Line, ...] = VARIANTS


FULL = Size(tuple(DATASETS), (3000, 3001, 3002), 130.0, (50.0, 110.0))
QUICK = Size(("flowgpt-q", "coding"), (3000, 3001), 80.0, (30.0, 60.0), ("matched",), ())


def plan(size: Size) -> pd.DataFrame:
    """Dataset, published rate and threshold, and the rates in the simulator."""
    known = pc.published("ablation").set_index(["dataset", "line"])
    rows = []
    for dataset in size.datasets:
        cell = known.loc[(dataset, pc.SARATHI_RR.label)]
        target, threshold = cell.attainment_pct / 100, float(cell.threshold_s)
        for name in size.sets:
            rate = float(cell.rate_rps)
            if name == "matched":
                scenario = DATASETS[dataset]
                rate = pc.sarathi_rate(scenario, threshold, VALIDATION_SEEDS, target)
            rows.append(
                {
                    "set": name,
                    "dataset": dataset,
                    "published_rate_rps": float(cell.rate_rps),
                    "rate_rps": round(rate, 3),
                    "threshold_s": threshold,
                }
            )
    return pd.DataFrame(rows)


def effects_of(y: pd.DataFrame) -> pd.DataFrame:
    """The `EFFECTS` per row of a table with the four lines of `DESIGN`, in that order."""
    both, engine, router, none = (y[name] for name in y.columns)
    interaction, whole = both - engine - router + none, both - none
    return pd.DataFrame(
        {
            "engine": ((both + engine) - (router + none)) / 2,
            "router": ((both + router) - (engine + none)) / 2,
            "interaction": interaction,
            "whole": whole,
            "synergy": np.minimum(interaction, whole),
        }
    )


def attained(played: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Attainment in percent: one row per set, dataset and seed, one column per line."""
    names = {scenario: dataset for dataset, scenario in DATASETS.items()}
    played = played.assign(dataset=played.scenario.map(names))
    merged = cells.merge(played, on=["dataset", "rate_rps"])
    share = [100 * row[f"at_{row.threshold_s:g}"] for _, row in merged.iterrows()]
    return merged.assign(share=share).pivot_table(
        index=["set", "dataset", "seed"], columns="line", values="share", sort=False
    )


def summarise(y: pd.DataFrame) -> pd.DataFrame:
    """Effects with intervals per set and dataset, and over all datasets of a set."""
    effects = effects_of(y)
    rows = []
    for name in effects.index.unique("set"):
        part = effects.loc[name]
        groups = {d: [d] for d in part.index.unique("dataset")}
        groups["all"] = list(groups)
        for label, members in groups.items():
            for effect in EFFECTS:
                scores = np.stack([part.loc[member, effect] for member in members], axis=1)
                found = estimate(scores.astype(float))
                key = {"figures": f"simulated, {name} rates", "dataset": label, "effect": effect}
                interval = {"interval_low": found.low, "interval_high": found.high}
                rows.append({**key, "points": found.value, **interval})
    return pd.DataFrame(rows)


def published_effects(datasets: Sequence[str]) -> pd.DataFrame:
    """The same effects of the published attainments; one run each, so no interval."""
    y = pc.published("ablation").pivot_table(index="dataset", columns="line",
                                             values="attainment_pct")  # fmt: skip
    y = y.loc[list(datasets), list(DESIGN)]
    effects = effects_of(y)
    effects.loc["all"] = effects.mean()
    rows = effects.reset_index().melt("dataset", var_name="effect", value_name="points")
    return rows.assign(figures="published", interval_low=np.nan, interval_high=np.nan)


def plot(y: pd.DataFrame, table: pd.DataFrame, datasets: Sequence[str], path: Path) -> None:
    """Attainment of the four lines beside the published one, and the interactions."""
    sets = list(y.index.unique("set"))
    chart, panels = pc.figure(1, len(sets) + 2, width=3.4, height=3.0)
    known = pc.published("ablation").pivot_table(index="dataset", columns="line",
                                                 values="attainment_pct")  # fmt: skip
    shown = {"published": known.loc[list(datasets), list(DESIGN)]}
    shown |= {f"simulated, {s} rates": y.loc[s].groupby("dataset", sort=False).mean() for s in sets}
    places = np.arange(len(datasets))
    for axes, (title, values) in zip(panels[0], shown.items(), strict=False):
        for i, line in enumerate(DESIGN):
            axes.bar(places + 0.2 * (i - 1.5), values.loc[list(datasets), line], 0.19, label=line,
                     color=pc.COLOURS[line])  # fmt: skip
        axes.set(title=title, ylim=(0, 104))
        axes.set_xticks(places, datasets, rotation=30)
    panels[0][0].set_ylabel("within the threshold, %")
    _interactions(panels[0][-1], table, [*datasets, "all"])
    handles, labels = panels[0][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside upper center", ncols=4)
    pc.save(chart, path)


def _interactions(axes: object, table: pd.DataFrame, datasets: list[str]) -> None:
    looks = ("0.3", "#0072B2", "#D55E00")
    for i, (name, part) in enumerate(table[table.effect == "interaction"].groupby("figures")):
        rows = part.set_index("dataset").loc[datasets]
        ends = rows[["interval_low", "interval_high"]]
        error = np.abs(ends.sub(rows.points, axis=0)).fillna(0).T
        axes.errorbar(np.arange(len(datasets)) + 0.18 * (i - 1), rows.points, error, fmt="o", ms=4,
                      capsize=2, color=looks[i], label=name)  # fmt: skip
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(title="interaction engine x router", ylabel="percentage points")
    axes.set_ylim(top=1.5 * axes.get_ylim()[1])  # room for the legend
    axes.set_xticks(np.arange(len(datasets)), datasets, rotation=30)
    axes.legend()


def run(
    size: Size, out: Path, processes: int, step_model: StepModelFile = "engine"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Play the design and write it; returns attainment per seed and the effects."""
    lines = pc.available(LINES, step_model)
    if len(lines) < len(LINES):
        raise SystemExit("the ablation needs all four lines; see the message above")
    cells = plan(size)
    windows = (pc.Window("steady", *size.steady_s), pc.Window("full", 0.0, size.steady_s[1]))
    measure = pc.Measure(windows, tuple(sorted(set(cells.threshold_s))))
    places = [(DATASETS[row.dataset], row.rate_rps) for row in cells.itertuples()]
    jobs = pc.grid("paper-ablation", places, size.seeds, lines, measure, size.horizon_s)
    variants = pc.available(size.variants, step_model)
    jobs += pc.grid("paper-ablation", places, size.seeds[:1], variants, measure, size.horizon_s)
    lines += variants
    results = pc.play_grid(jobs, measure, out, processes)
    played = pc.table(results, lines)
    by_line = attained(played, cells)
    y = by_line[list(DESIGN)]
    table = pd.concat([published_effects(size.datasets), summarise(y)], ignore_index=True)
    pc.write_csv(played, out / "episodes.csv")
    pc.write_csv(beside(y, cells), out / "ablation.csv")
    if variants:
        first = by_line.xs(size.seeds[0], level="seed").reset_index()
        pc.write_csv(first, out / "variants.csv")
    pc.write_csv(table[["figures", "dataset", "effect", "points", "interval_low", "interval_high"]],
                 out / "effects.csv")  # fmt: skip
    plot(y, table, size.datasets, out / "ablation.png")
    pc.write_manifest(out, results, lines, ("ablation",))
    return y, table


def beside(y: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Mean simulated attainment beside the published one, per cell and line."""
    means = y.groupby(["set", "dataset"], sort=False).mean().reset_index()
    simulated = means.melt(["set", "dataset"], var_name="line",
                           value_name="attainment_pct_simulated")  # fmt: skip
    known = pc.published("ablation")[["dataset", "line", "attainment_pct"]]
    known = known.rename(columns={"attainment_pct": "attainment_pct_published"})
    return cells.merge(simulated, on=["set", "dataset"]).merge(known, on=["dataset", "line"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = pc.arguments("SynergySched's ablation", "paper_ablation", argv)
    y, table = run(QUICK if given.quick else FULL, given.out, given.processes, given.step_model)
    means = y.groupby(["set", "dataset"], sort=False).mean().round(1)
    pc.show("Attainment in percent, means over seeds (simulated)", means.reset_index())
    pc.show("Effects in percentage points", table)


if __name__ == "__main__":
    main()
