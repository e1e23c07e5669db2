"""Does the paper's claim hold on its own cluster, and does the verdict depend on the clock?

    python -m experiments.clocks.verdict --processes 2
    python -m experiments.clocks.verdict --quick

FlowGPT on eight H100 with Llama-3.1-8B (`flowgpt-8xh100-llama8b`), in the scenario's own window of
300 s after 60 s, test seeds 3000 to 3009, at loads 0.8, 1.0 and 1.2. Load 1.0 is the rate at which
stock vLLM with round-robin attains 90 % under `sync`; the same rates are played under each clock:

- `sync`: the authors' vLLM 0.9, which measured runs bear out best (docs/clocks.md),
- `async`: vLLM 0.32's default,
- `table`: kernel tables bent by held-out residuals, a form that no policy's model has.

Judged by all objectives and by E2E alone, as the paper does. The tuned static budget is the best of
`BUDGETS` under `sync` on validation seeds, by all objectives. All figures are simulated.

Writes to results/clock_verdict/: `episodes.csv`, `tuning.csv`, `table.csv` (attainment by clock,
load and pair), `verdict.csv` (means over loads, with paired 95 % intervals against stock and
against the tuned budget), a manifest and `clock_verdict.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from experiments.common import (
    figure,
    paired_interval,
    parser,
    play_jobs,
    save,
    show,
    write_csv,
    write_manifest,
)
from experiments.paper.common import Line
from synergy_gym.evaluation.jobs import Job, JobResult
from synergy_gym.scenario import load_scenario

SCENARIO = "flowgpt-8xh100-llama8b"
CLOCKS = {"sync": SCENARIO, "async": f"{SCENARIO}@async", "table": f"{SCENARIO}@table"}
LOADS = (0.8, 1.0, 1.2)
SEEDS = tuple(range(3000, 3010))
BUDGETS = (256, 384, 512, 768, 1024, 2048, 4096)
TUNING_SEEDS = (2000, 2001, 2002, 2003)
JUDGED = {"all": "slo_attainment", "e2e": "e2e_attainment"}
NAME = "clock_verdict"


STOCK = Line("stock vLLM", "vllm-v1", "round-robin")
TUNED = "tuned static budget"


def pairs(budget: int) -> tuple[Line, ...]:
    """Who is compared; `budget` is the tuned one."""
    static = f"static-{budget}"
    return (
        STOCK,
        Line("Sarathi 512", "sarathi-512", "round-robin"),
        Line(TUNED, static, "round-robin"),
        Line("LENS", "lens-ref", "round-robin"),
        Line("stock vLLM + PRISM", "vllm-v1", "prism-ref"),
        Line("LENS + PRISM", "lens-ref", "prism-ref"),
        Line("LENS + PRISM, compensated", "lens-ref", "prism-ref:compensation=True"),
        Line("guarded LENS + fixed PRISM", "lens-guarded", "prism-fixed"),
        Line("lens-plus (ours)", "lens-plus", "round-robin"),
        Line("lens-plus + prism-plus (ours)", "lens-plus", "prism-plus"),
        Line("Sarathi 512 + prism-plus", "sarathi-512", "prism-plus"),
        Line("tuned static budget + prism-plus", static, "prism-plus"),
    )


def tuning_jobs(quick: bool) -> list[Job]:
    """Static budgets under `sync`, on seeds that the verdict does not see."""
    seeds = TUNING_SEEDS[:1] if quick else TUNING_SEEDS
    return [
        Job("tuning", SCENARIO, load, seed, f"static-{budget}", "round-robin")
        for load, seed, budget in product(LOADS, seeds, BUDGETS)
    ]


def tuned(results: Sequence[JobResult]) -> pd.DataFrame:
    """Mean attainment by budget in percent, best first."""
    rows = pd.DataFrame([result.row for result in results])
    rows["budget"] = rows.engine_policy.str.removeprefix("static-").astype(int)
    means = 100 * rows.groupby("budget")[list(JUDGED.values())].mean()
    return means.sort_values("slo_attainment", ascending=False).reset_index()


def verdict_jobs(compared: Sequence[Line], quick: bool) -> list[Job]:
    """Every episode of the comparison, the loads that part policies first; a suite is a clock."""
    seeds = SEEDS[:1] if quick else SEEDS
    clocks = {"sync": CLOCKS["sync"]} if quick else CLOCKS
    loads = LOADS[1:2] if quick else sorted(LOADS, key=(1.0, 1.2, 0.8).index)
    return [
        Job(clock, scenario, load, seed, pair.engine, pair.router)
        for load, (clock, scenario), seed, pair in product(loads, clocks.items(), seeds, compared)
    ]


def episodes_of(
    jobs: Sequence[Job], results: Sequence[JobResult], compared: Sequence[Line]
) -> pd.DataFrame:
    """One row per episode, attainments in percent."""
    labels = {(pair.engine, pair.router): pair.label for pair in compared}
    rows = []
    for job, result in zip(jobs, results, strict=True):
        row = {name: 100 * result.row[column] for name, column in JUDGED.items()}
        latencies = {f"e2e_p{p}_s": result.row[f"e2e_p{p}_s"] for p in (50, 90, 99)}
        pair = labels[str(job.engine_policy), str(job.router_policy)]
        key = {"clock": job.suite, "load": job.load, "seed": job.seed, "pair": pair}
        rows.append({**key, **row, **latencies, "log_hash": result.row["log_hash"]})
    episodes = pd.DataFrame(rows)
    order = episodes.clock.map(list(CLOCKS).index)
    return (
        episodes.assign(order=order)
        .sort_values(["order", "load", "seed"], kind="stable")
        .drop(columns="order")
    )


def verdict_of(episodes: pd.DataFrame) -> pd.DataFrame:
    """Means over loads and seeds by clock and pair; differences are paired by seed."""
    by_seed = episodes.groupby(["clock", "pair", "seed"])[list(JUDGED)].mean()
    rows = []
    for clock, pair in dict.fromkeys(zip(episodes.clock, episodes.pair, strict=True)):
        own = by_seed.loc[clock, pair]
        row = {"clock": clock, "pair": pair, **own.mean()}
        for other in (STOCK.label, TUNED):
            for name in JUDGED:
                differences = (own[name] - by_seed.loc[clock, other][name]).to_numpy()
                low, high = paired_interval(differences)
                label = f"{name} - {other}"
                row |= {label: differences.mean(), f"{label} low": low, f"{label} high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def plot(episodes: pd.DataFrame, path: Path) -> None:
    """Attainment by load: a row per judgement, a column per clock."""
    clocks = list(dict.fromkeys(episodes.clock))
    chart, panels = figure(len(JUDGED), len(clocks), width=3.2, height=2.8)
    titles = {"all": "every objective", "e2e": "E2E alone"}
    means = episodes.groupby(["clock", "pair", "load"])[list(JUDGED)].mean()
    for row, name in enumerate(JUDGED):
        for column, clock in enumerate(clocks):
            axes = panels[row][column]
            for place, pair in enumerate(dict.fromkeys(episodes.pair)):
                line = means.loc[clock, pair][name]
                style = "-" if place < 10 else "--"
                axes.plot(line.index, line, style, marker="o", markersize=3, label=pair,
                          color=f"C{place % 10}")  # fmt: skip
            axes.set_title(f"{clock}: {titles[name]}")
            axes.set_ylim(-3, 103)
            axes.set_xticks(sorted(set(episodes.load)))
    panels[0][0].set_ylabel("requests, % (simulated)")
    panels[-1][0].set_xlabel("load")
    handles, labels = panels[0][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside right center", fontsize=7)
    save(chart, path)


def main() -> None:
    """Command line."""
    options = parser("The paper's claim on its own cluster, by clock", NAME).parse_args()
    tuning = tuned(play_jobs(tuning_jobs(options.quick), options.out, options.processes))
    compared = pairs(int(tuning.budget.iloc[0]))
    jobs = verdict_jobs(compared, options.quick)
    episodes = episodes_of(jobs, play_jobs(jobs, options.out, options.processes), compared)
    table = episodes.groupby(["clock", "load", "pair"], sort=False)[list(JUDGED)].mean()
    verdict = verdict_of(episodes)
    for name, frame in (
        ("tuning", tuning), ("episodes", episodes), ("table", table.reset_index()),
        ("verdict", verdict),
    ):  # fmt: skip
        write_csv(frame, options.out / f"{name}.csv")
    write_manifest(
        options.out, [load_scenario(name) for name in CLOCKS.values()],
        sorted({pair.engine for pair in compared}), sorted({pair.router for pair in compared}),
        loads=LOADS, seeds=sorted(set(episodes.seed)), tuning_seeds=TUNING_SEEDS,
        budgets=BUDGETS, episodes=len(episodes),
    )  # fmt: skip
    plot(episodes, options.out / f"{NAME}.png")
    show(
        "Mean over loads of the requests that met their objectives, % (simulated)",
        verdict[["clock", "pair", *JUDGED]],
    )


if __name__ == "__main__":
    main()
