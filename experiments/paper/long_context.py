"""SynergySched with long contexts: `long-context-4xh100` (up to 131,072 tokens), simulated.

Command (from the repository root):

    python -m experiments.paper.long_context --processes 2

The paper claims up to 3x the throughput "in long-context scenarios" and gives no workload for
it. Here: Mooncake-like traffic on four H100, judged by the scenario's own limits (TTFT 30 s,
TPOT 100 ms) and by each of them alone. Throughput at equal attainment is the rate at which a
line falls below 90 %, interpolated between the rates played. Writes `capacities.csv`,
`curves.csv`, `episodes.csv`, `long_context.png`, `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from experiments.paper import common as pc
from synergy_gym.latency.models.published import StepModelFile
from synergy_gym.scenario import load_scenario

SCENARIO = "long-context-4xh100"
LINES = (
    pc.SYNERGY,
    pc.Line("LENS guarded + PRISM", "lens-guarded", "prism-ref"),
    pc.LENS_RR,
    pc.SARATHI_PRISM,
    pc.SARATHI_RR,
    pc.SARATHI_SESSION,
    pc.Line("Sarathi prefix-aware", "vllm-v1", "prefix-aware"),
    pc.VLLM_RR,
    pc.Line("lens-plus RR", "lens-plus", "round-robin"),
    pc.Line("Sarathi prism-plus", "vllm-v1", "prism-plus"),
    pc.OURS,
)
BASELINE = "Sarathi RR"
JUDGES = {"slo": "both limits", "ttft": "TTFT 30 s", "tpot": "TPOT 100 ms"}


@dataclass(frozen=True)
class Size:
    """How much is played."""

    loads: tuple[float, ...]
    seeds: tuple[int, ...]
    horizon_s: float
    steady_s: tuple[float, float]


FULL = Size((0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8), (3000,), 220.0, (60.0, 200.0))
QUICK = Size((0.4, 0.8, 1.2), (3000,), 120.0, (40.0, 100.0))


def curves(played: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds per rate and line; shares by each judge."""
    columns = ["slo", "ttft_30s", "tpot_100ms", "ttft_p50_s", "ttft_p90_s", "tpot_p50_ms",
               "e2e_p50_s", "prefix_hit_share", "preemptions"]  # fmt: skip
    means = played.groupby(["rate_rps", "line"], sort=False)[columns].mean().reset_index()
    return means.rename(columns={"ttft_30s": "ttft", "tpot_100ms": "tpot"})


def capacities(table: pd.DataFrame) -> pd.DataFrame:
    """Rate at 90 % per line and judge, and its ratio to Sarathi RR's."""
    rows = []
    for judge in JUDGES:
        found = {
            str(line): pc.curve_capacity(curve.rate_rps.tolist(), curve[judge].tolist())
            for line, curve in table.groupby("line", sort=False)
        }
        base = found[BASELINE]
        rows += [
            {
                "judged_by": JUDGES[judge],
                "line": line,
                "capacity_rps": capacity,
                "ratio_to_sarathi_rr": capacity / base if base else float("nan"),
            }
            for line, capacity in found.items()
        ]
    return pd.DataFrame(rows)


def plot(table: pd.DataFrame, path: Path) -> None:
    """Share against rate, one panel per judge."""
    chart, panels = pc.figure(1, len(JUDGES), width=3.6, height=3.0)
    spare = {"LENS guarded + PRISM": "#F0A070", "Sarathi prefix-aware": "#332288",
             "lens-plus RR": "0.45", "Sarathi prism-plus": "0.7"}  # fmt: skip
    for axes, (judge, text) in zip(panels[0], JUDGES.items(), strict=True):
        for line, curve in table.groupby("line", sort=False):
            colour = pc.COLOURS.get(str(line)) or spare[str(line)]
            axes.plot(curve.rate_rps, 100 * curve[judge], marker="o", ms=3, lw=1.2, label=line,
                      color=colour)  # fmt: skip
        axes.axhline(90, color="0.7", lw=0.8)
        axes.set(ylim=(-3, 103), title=text, xlabel="requests/s")
    panels[0][0].set_ylabel("within the limit, % (simulated)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside upper center", ncols=6)
    pc.save(chart, path)


def run(
    size: Size, out: Path, processes: int, step_model: StepModelFile = "engine"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Play and write; returns the curves and the capacities."""
    lines = pc.available(LINES, step_model)
    measure = pc.Measure((pc.Window("steady", *size.steady_s),), ())
    rate = load_scenario(SCENARIO).rate_rps
    cells = [(SCENARIO, round(load * rate, 3)) for load in size.loads]
    jobs = pc.grid("paper-long-context", cells, size.seeds, lines, measure, size.horizon_s)
    results = pc.play_grid(jobs, measure, out, processes)
    played = pc.table(results, lines)
    table = curves(played)
    found = capacities(table)
    pc.write_csv(played, out / "episodes.csv")
    pc.write_csv(table, out / "curves.csv")
    pc.write_csv(found, out / "capacities.csv")
    plot(table, out / "long_context.png")
    pc.write_manifest(out, results, lines, ("headline",))
    return table, found


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = pc.arguments("SynergySched with long contexts", "paper_long_context", argv)
    table, found = run(QUICK if given.quick else FULL, given.out, given.processes, given.step_model)
    wide = table.pivot_table(index="rate_rps", columns="line", values="slo", sort=False)
    pc.show("Share within both limits (simulated)", wide.round(3).reset_index())
    pc.show("Requests per second at 90 % (simulated)", found)


if __name__ == "__main__":
    main()
