"""The SynergySched authors' own later comparison on 8 H100 (2026), simulated.

Command (from the repository root):

    python -m experiments.paper.later --processes 2

FlowGPT-Q at 14 requests/s, judged at 10 s. Their diary has plain engines and simple routers
ahead of LENS + PRISM on a homogeneous cluster, the reverse of the paper. The same lines play at
14 requests/s and at the rate where the simulated Sarathi RR attains what theirs did (75.2 %).
Writes `later.csv` (simulated beside the diary), `episodes.csv`, `later.png`, `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.paper import common as pc
from experiments.paper.end_to_end import VALIDATION_SEEDS
from synergy_gym.latency.models.published import StepModelFile

SCENARIO = "paper-flowgpt-q-8xh100"
THRESHOLD_S = 10.0
LINES = (
    pc.Line("RR veto + Sarathi", "vllm-v1", "rr-veto"),
    pc.SARATHI_RR,
    pc.Line("LMetric + Sarathi", "vllm-v1", "lmetric"),
    pc.Line("PRISM with in-flight term + Sarathi", "vllm-v1", "prism-fixed"),
    pc.SARATHI_SESSION,
    pc.Line("LENS+PRISM with in-flight term", "lens-ref", "prism-fixed"),
    pc.SYNERGY,
    pc.Line("prism-plus + Sarathi", "vllm-v1", "prism-plus"),
    pc.OURS,
)
"""`prism-fixed` stands for their in-flight term, whose formula is not public."""


@dataclass(frozen=True)
class Size:
    """How much is played."""

    seeds: tuple[int, ...]
    horizon_s: float
    steady_s: tuple[float, float]
    sets: tuple[str, ...] = ("published", "matched")


FULL = Size((3000, 3001), 220.0, (80.0, 200.0))
QUICK = Size((3000,), 80.0, (30.0, 60.0), ("matched",))


def rates(size: Size) -> dict[str, float]:
    """Requests per second of each set."""
    known = pc.published("later_measurements").set_index("line").loc[pc.SARATHI_RR.label]
    found = {"published": float(known.rate_rps)}
    if "matched" in size.sets:
        target = known.attainment_pct / 100
        found["matched"] = pc.sarathi_rate(SCENARIO, THRESHOLD_S, VALIDATION_SEEDS, target)
    return {name: round(found[name], 3) for name in size.sets}


def compare(played: pd.DataFrame, by_set: dict[str, float]) -> pd.DataFrame:
    """Simulated means over seeds beside the diary's figures."""
    columns = ["attainment_pct", "e2e_p50_s", "e2e_p90_s", "ttft_p50_s", "tpot_p50_ms"]
    played = played.assign(attainment_pct=100 * played[f"at_{THRESHOLD_S:g}"])
    means = played.groupby(["rate_rps", "line"], sort=False)[columns].mean().reset_index()
    sets = pd.DataFrame({"set": list(by_set), "rate_rps": list(by_set.values())})
    known = pc.published("later_measurements").drop(columns=["dataset", "rate_rps", "threshold_s"])
    table = sets.merge(means, on="rate_rps").merge(known, on="line", how="left",
                                                   suffixes=("_simulated", "_diary"))  # fmt: skip
    return table.rename(columns={"e2e_p99_s": "e2e_p99_s_diary"})


def plot(table: pd.DataFrame, path: Path) -> None:
    """Attainment per line: the diary's beside each simulated set."""
    sets = list(dict.fromkeys(table.set))
    lines = list(dict.fromkeys(table.line))
    chart, panels = pc.figure(1, 1, width=7.0, height=3.4)
    axes, places = panels[0][0], np.arange(len(lines))
    bars = {"authors' diary": table[table.set == sets[0]].set_index("line").attainment_pct_diary}
    for name in sets:
        part = table[table.set == name].set_index("line")
        text = f"simulated, {part.rate_rps.iloc[0]:g} requests/s"
        bars[text] = part.attainment_pct_simulated
    for i, (name, values) in enumerate(bars.items()):
        axes.barh(places + 0.27 * (i - 1), values.reindex(lines), 0.25, label=name,
                  color=("0.4", "#56B4E9", "#0072B2")[i])  # fmt: skip
    axes.set_yticks(places, lines)
    axes.invert_yaxis()
    axes.set_xlabel("requests within 10 s, %")
    chart.legend(loc="outside upper center", ncols=3)
    pc.save(chart, path)


def run(
    size: Size, out: Path, processes: int, step_model: StepModelFile = "engine"
) -> tuple[pd.DataFrame]:
    """Play, compare and write; returns the comparison."""
    lines = pc.available(LINES, step_model)
    measure = pc.Measure((pc.Window("steady", *size.steady_s),), (THRESHOLD_S,))
    by_set = rates(size)
    cells = [(SCENARIO, rate) for rate in by_set.values()]
    jobs = pc.grid("paper-later", cells, size.seeds, lines, measure, size.horizon_s)
    results = pc.play_grid(jobs, measure, out, processes)
    played = pc.table(results, lines)
    table = compare(played, by_set)
    pc.write_csv(played, out / "episodes.csv")
    pc.write_csv(table, out / "later.csv")
    plot(table, out / "later.png")
    pc.write_manifest(out, results, lines, ("later_measurements",))
    return (table,)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = pc.arguments("The authors' later comparison", "paper_later", argv)
    (table,) = run(QUICK if given.quick else FULL, given.out, given.processes, given.step_model)
    pc.show("Within 10 s, in percent", table)


if __name__ == "__main__":
    main()
