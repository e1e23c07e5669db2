"""How long must an episode be? Attainment and ranks of policies as the window doubles (simulated).

    python -m experiments.studies.window_doubling --processes 2
    python -m experiments.studies.window_doubling --quick

A window is long enough when doubling it moves no policy by more than two places or three points.
Plays every cell in windows of 120 s after 30 s (season 1's), 300 after 60, 600 after 60 and, on one
engine, 1,200 after 60, on validation seeds. Above its capacity an engine's queue grows for as long
as the arrivals last, so there points fall with every second and only the order can settle.

Writes to results/window_doubling/: `episodes.csv`, `table.csv` (mean attainment by cell, policy
and window), `moves.csv` (the largest move of any policy by cell and doubling), a manifest and
`window_doubling.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.common import figure, parser, play_jobs, save, show, write_csv, write_manifest
from synergy_gym.evaluation.jobs import Job
from synergy_gym.scenario import load_scenario

WINDOWS = {"120/30": (120.0, 30.0), "300/60": (300.0, 60.0), "600/60": (600.0, 60.0),
           "1200/60": (1200.0, 60.0)}  # fmt: skip
"""Horizon and warm-up in seconds."""
LOADS = (1.0, 1.2)
ENGINES = ("chat-h100", "chat-a6000", "heldout-reasoning-h100")
ENGINE_SEEDS = tuple(range(2000, 2006))
ENGINE_PAIRS = tuple(
    (name, "round-robin")
    for name in ("vllm-v1", "sarathi-512", "static-1024", "lens-ref", "lens-guarded", "lens-plus")
)
CLUSTERS = ("hetero-3", "flowgpt-8xh100-llama8b")
CLUSTER_SEEDS = ENGINE_SEEDS[:3]
CLUSTER_WINDOWS = tuple(WINDOWS)[:3]
CLUSTER_PAIRS = (
    ("vllm-v1", "round-robin"),
    ("vllm-v1", "least-outstanding"),
    ("vllm-v1", "prism-ref"),
    ("lens-ref", "round-robin"),
    ("lens-ref", "prism-ref"),
    ("sarathi-512", "prism-plus"),
)
PLACES, POINTS = 2, 3.0
KEYS = ["scenario", "load", "policies"]


def jobs(quick: bool) -> list[Job]:
    """Every episode."""
    if quick:
        return _grid(ENGINES[:1], LOADS[:1], ENGINE_SEEDS[:1], tuple(WINDOWS)[:2], ENGINE_PAIRS)
    engines = _grid(ENGINES, LOADS, ENGINE_SEEDS, tuple(WINDOWS), ENGINE_PAIRS)
    return engines + _grid(CLUSTERS, LOADS, CLUSTER_SEEDS, CLUSTER_WINDOWS, CLUSTER_PAIRS)


def _grid(
    scenarios: Sequence[str],
    loads: Sequence[float],
    seeds: Sequence[int],
    windows: Sequence[str],
    pairs: Sequence[tuple[str, str]],
) -> list[Job]:
    """Every combination; a job's suite is its window."""
    return [
        Job(window, scenario, load, seed, *pair, *WINDOWS[window])
        for scenario, load, seed, window, pair in product(scenarios, loads, seeds, windows, pairs)
    ]


def table_of(episodes: pd.DataFrame) -> pd.DataFrame:
    """Mean attainment in percent: a row per cell and policy, a column per window."""
    windows = [name for name in WINDOWS if name in set(episodes.window)]
    wide = 100 * episodes.pivot_table(index=KEYS, columns="window", values="slo_attainment")
    return wide[windows].reset_index()


def moves_of(table: pd.DataFrame) -> pd.DataFrame:
    """The largest move of any policy at each doubling: in points and in places.

    Policies within half a point of each other share their place: whose turn it is there is chance.
    """
    rows = []
    windows = [name for name in WINDOWS if name in table]
    for (scenario, load), cell in table.groupby(["scenario", "load"], sort=False):
        for short, long in pairwise(windows):
            if cell[long].isna().all():
                continue
            points = (cell[long] - cell[short]).abs().max()
            places = (_places(cell[long]) - _places(cell[short])).abs().max()
            rows.append(
                {
                    "scenario": scenario, "load": load, "from": short, "to": long,
                    "points": points, "places": places,
                    "settled": bool(points <= POINTS or places <= PLACES),
                    "both": bool(points <= POINTS and places <= PLACES),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _places(values: pd.Series[float]) -> pd.Series[float]:
    """Place of each policy, 1 for the best; ties share the better place."""
    return (2 * values).round().rank(ascending=False, method="min")


def plot(table: pd.DataFrame, path: Path) -> None:
    """Attainment by length of the window: a panel per scenario and load."""
    scenarios, loads = list(dict.fromkeys(table.scenario)), sorted(set(table.load))
    windows = [name for name in WINDOWS if name in table]
    lengths = [WINDOWS[name][0] for name in windows]
    chart, panels = figure(len(scenarios), len(loads), width=2.6, height=2.0)
    for row, scenario in enumerate(scenarios):
        for column, load in enumerate(loads):
            axes = panels[row][column]
            cell = table[(table.scenario == scenario) & (table.load == load)]
            for _, line in cell.iterrows():
                label = line.policies.removesuffix(" + round-robin")
                axes.plot(lengths, [line[name] for name in windows], marker="o", label=label)
            axes.set_xscale("log")
            axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
            axes.minorticks_off()
            axes.set_ylim(-3, 103)
            axes.set_title(f"{scenario}, load {load:g}", fontsize=8)
            if column == len(loads) - 1:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=6)
    panels[-1][0].set_xlabel("window, s")
    panels[0][0].set_ylabel("requests that met\nevery objective, %")
    save(chart, path)


def main() -> None:
    """Command line."""
    options = parser("How long must an episode be?", "window_doubling").parse_args()
    chosen = jobs(options.quick)
    results = play_jobs(chosen, options.out, options.processes)
    columns = ["scenario", "load", "seed", "slo_attainment", "e2e_attainment", "log_hash"]
    rows: list[dict[str, Any]] = [
        {
            "window": job.suite, **{name: result.row[name] for name in columns},
            "policies": f"{job.engine_policy} + {job.router_policy}",
        }
        for job, result in zip(chosen, results, strict=True)
    ]  # fmt: skip
    episodes = pd.DataFrame(rows)
    table = table_of(episodes)
    moves = moves_of(table)
    for name, frame in (("episodes", episodes), ("table", table), ("moves", moves)):
        write_csv(frame, options.out / f"{name}.csv")
    pairs = {(str(job.engine_policy), str(job.router_policy)) for job in chosen}
    write_manifest(
        options.out, [load_scenario(name) for name in dict.fromkeys(episodes.scenario)],
        sorted({engine for engine, _ in pairs}), sorted({router for _, router in pairs}),
        windows=WINDOWS, loads=sorted(set(episodes.load)), seeds=sorted(set(episodes.seed)),
        episodes=len(episodes),
    )  # fmt: skip
    plot(table, options.out / "window_doubling.png")
    show("Largest move of any policy when the window doubles (simulated)", moves)


if __name__ == "__main__":
    main()
