"""Which routers suffer from old information? SynergySched's "decision lag", simulated.

    nice .venv/bin/python -m experiments.studies.information_age --processes 2

Engines run vllm-v1. Two sweeps of age A from 0 to 10 s: in `interval` engines push and are
scraped every A seconds, so what a router sees is between 0 and A old; in `delay` they push every
100 ms and each push is A seconds under way, so it is always at least A old (scrapes have no
delay: routers that read only them are left out). Routers that read their own counts alone are
controls: their lines must be flat. All meet the same traffic (common seeds).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from experiments import common
from synergy_gym.cli import output as cli_tables
from synergy_gym.evaluation.report.png import COLOURS
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.policies.registry import make_router_policy, router_policies
from synergy_gym.policies.router.round_robin import RoundRobin
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import ClusterView, RequestView, TelemetrySpec

ENGINE = "vllm-v1"
ROUTERS = (
    "round-robin",
    "least-outstanding",
    "rr-veto",
    "lmetric",
    "least-kv",
    "least-loaded",
    "latency-based",
    "block",
    "prism-ref",
    "prism-fixed",
    "prism-plus",
)
"""Those that are not registered are left out, with a note."""
LOADS = {"hetero-3": 1.5, "flowgpt-8xh100": 1.0}
"""The scenarios, each at a load that the better routers still carry with fresh information."""
AGES_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
FRESH_S = 0.001
"""Age 0: engines push after every iteration, and are scraped each millisecond."""
DELAYED_INTERVAL_S = 0.1
SWEEPS = ("interval", "delay")
SEEDS = 5
QUICK: dict[str, Any] = {"ages": (0.0, 1.0, 10.0), "seeds": 1, "horizon_s": 90.0}


@dataclass(frozen=True)
class Cell:
    """One episode."""

    scenario: str
    sweep: str
    age_s: float
    router: str
    seed: int
    horizon_s: float | None

    def __str__(self) -> str:
        return f"{self.scenario} {self.sweep} {self.age_s:g} s seed {self.seed} {self.router}"


def telemetry(base: TelemetrySpec, sweep: str, age_s: float) -> TelemetrySpec:
    """The scenario's telemetry with another age."""
    if sweep == "delay":
        fast = replace(base, push_interval_s=DELAYED_INTERVAL_S, push_delay_s=age_s)
        return replace(fast, scrape_interval_s=DELAYED_INTERVAL_S)
    every_s = max(age_s, FRESH_S)
    return replace(base, push_interval_s=every_s, push_delay_s=0.0, scrape_interval_s=every_s)


@lru_cache
def world(name: str, sweep: str, age_s: float) -> Scenario:
    """The scenario with that age of information."""
    scenario = load_scenario(name)
    return replace(scenario, telemetry=telemetry(scenario.telemetry, sweep, age_s))


def play(cell: Cell) -> dict[str, Any]:
    """One row of episodes.csv."""
    result = evaluate(
        world(cell.scenario, cell.sweep, cell.age_s), ENGINE, cell.router,
        LOADS[cell.scenario], cell.seed, horizon_s=cell.horizon_s, record_itl=False,
    )  # fmt: skip
    shares = [engine["request_share"] for engine in result.summary["engines"]]
    columns = ("offered", "slo_attainment", "ttft_attainment", "tpot_attainment", "e2e_attainment")
    return {
        "scenario": cell.scenario,
        "load": LOADS[cell.scenario],
        "sweep": cell.sweep,
        "age_s": cell.age_s,
        "router_policy": cell.router,
        "seed": cell.seed,
        **{name: result.summary[name] for name in (*columns, "ttft_p99_s", "e2e_p99_s")},
        "largest_share": max(shares),
        "log_hash": result.log_hash,
    }


def probe(cell: Cell) -> dict[str, Any]:
    """One row of ages.csv: how old the information was when requests arrived."""
    pushed: list[float] = []
    scraped: list[float] = []

    class Probe(RoundRobin):
        """Round-robin that notes the age of what it could have read."""

        information = frozenset({"router", "pushed", "scraped"})

        def route(self, request: RequestView, cluster: ClusterView) -> int:
            """The next engine in turn."""
            pushed.extend(cluster.pushed.age_s.tolist())
            scraped.extend(cluster.scraped.age_s.tolist())
            return super().route(request, cluster)

    evaluate(
        world(cell.scenario, cell.sweep, cell.age_s), ENGINE, Probe(),
        LOADS[cell.scenario], cell.seed, horizon_s=cell.horizon_s, record_itl=False,
    )  # fmt: skip
    return {
        "scenario": cell.scenario,
        "sweep": cell.sweep,
        "age_s": cell.age_s,
        "pushed_mean_s": float(np.mean(pushed)),
        "pushed_p99_s": float(np.quantile(pushed, 0.99)),
        "scraped_mean_s": float(np.mean(scraped)),
    }


def information(router: str) -> str:
    """The oldest class of information that a router reads, as the tables name it."""
    classes = make_router_policy(router).information
    return next((name for name in ("scraped", "pushed") if name in classes), "own counts")


def available(names: Sequence[str]) -> list[str]:
    """The registered ones; the others are named on stderr."""
    known = set(router_policies())
    for name in names:
        if name not in known:
            cli_tables.note(f"left out, not registered: {name}")
    return [name for name in names if name in known]


def cells(routers: Sequence[str], quick: bool) -> Iterator[Cell]:
    """Every episode, with common seeds."""
    ages, seeds, horizon_s = AGES_S, SEEDS, None
    if quick:
        ages, seeds, horizon_s = QUICK["ages"], QUICK["seeds"], QUICK["horizon_s"]
    for name in LOADS:
        chosen = load_scenario(name).test_seeds[:seeds]
        for sweep, age_s, seed, router in product(SWEEPS, ages, chosen, routers):
            if sweep == "interval" or information(router) != "scraped":
                yield Cell(name, sweep, age_s, router, seed, horizon_s)


def table(episodes: pd.DataFrame) -> pd.DataFrame:
    """Mean attainment per scenario, sweep and router at each age, and what 10 s cost.

    `loss` is the attainment at the first age less that at the last, in points, with the 95 %
    bootstrap interval of the mean over seeds (paired: the traffic is the same).
    """
    rows = []
    for (scenario, sweep, router), part in episodes.groupby(
        ["scenario", "sweep", "router_policy"], sort=False
    ):
        grid = 100 * part.pivot_table("slo_attainment", "seed", "age_s")
        loss = grid.iloc[:, 0] - grid.iloc[:, -1]
        low, high = common.paired_interval(loss.to_list())
        rows.append(
            {
                "scenario": scenario,
                "sweep": sweep,
                "router": router,
                "reads": information(str(router)),
                **{f"{age:g} s": round(value, 1) for age, value in grid.mean().items()},
                "loss": round(loss.mean(), 1),
                "loss_low": round(low, 1),
                "loss_high": round(high, 1),
            }
        )
    order = ["scenario", "sweep", "loss"]
    return pd.DataFrame(rows).sort_values(order, ascending=[False, False, True], kind="stable")


STYLES = {"own counts": ":", "pushed": "-", "scraped": "--"}


def plot(episodes: pd.DataFrame) -> Any:
    """Attainment against age, one panel per scenario and sweep; bands span the seeds."""
    names, routers = list(LOADS), list(dict.fromkeys(episodes.router_policy))
    chart, panels = common.figure(len(names), len(SWEEPS), width=4.0)
    for (row, name), (column, sweep) in product(enumerate(names), enumerate(SWEEPS)):
        axes = panels[row][column]
        for index, router in enumerate(routers):
            chosen = episodes[(episodes.scenario == name) & (episodes.sweep == sweep)]
            chosen = chosen[chosen.router_policy == router]
            if len(chosen):
                _line(axes, chosen, router, COLOURS[index % len(COLOURS)])
        axes.set_xscale("symlog", linthresh=0.1, linscale=0.5)
        axes.set_xticks([0, 0.1, 1, 10], ["0", "0.1", "1", "10"])
        axes.set_ylim(-2, 102)
        axes.set_title(f"{name}, load {LOADS[name]:g} ({sweep})", fontsize=9)
        axes.set_xlabel("pushed and scraped every, s" if not column else "push delay, s")
        if not column:
            axes.set_ylabel("requests that met every SLO, %")
    handles, labels = panels[0][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside right upper")
    chart.suptitle("Attainment by age of the router's information (simulated)", x=0.36, fontsize=10)
    return chart


def _line(axes: Any, chosen: pd.DataFrame, router: str, colour: str) -> None:
    grouped = 100 * chosen.groupby("age_s").slo_attainment.agg(["mean", "min", "max"])
    style = STYLES[information(router)]
    label = f"{router} ({information(router)})"
    axes.plot(grouped.index, grouped["mean"], style, color=colour, lw=1.4, label=label)
    if information(router) != "own counts":
        axes.fill_between(grouped.index, grouped["min"], grouped["max"], color=colour, alpha=0.1)


def main() -> None:
    """Command line."""
    options = common.parser("Which routers suffer from old information?", "information_age")
    options.add_argument("--routers", nargs="+", default=ROUTERS, help="router policies")
    given = options.parse_args()
    routers = available(given.routers)
    played = list(cells(routers, given.quick))
    episodes = pd.DataFrame(common.play(play, played, given.processes))
    probed = [cell for cell in played if cell.router == routers[0]]
    first = {(cell.scenario, cell.sweep, cell.age_s): cell for cell in reversed(probed)}
    ages = pd.DataFrame(common.play(probe, list(reversed(first.values())), 1))
    summary = table(episodes)
    common.write_csv(episodes, given.out / "episodes.csv")
    common.write_csv(ages, given.out / "ages.csv")
    common.write_csv(summary, given.out / "table.csv")
    common.save(plot(episodes), given.out / "information_age.png")
    common.write_manifest(
        given.out, [load_scenario(name) for name in LOADS], [ENGINE], routers,
        loads=LOADS, episodes=len(episodes),
    )  # fmt: skip
    common.show("Attainment by age of information, % (simulated)", summary)
    common.show("How old information was when requests arrived, s (simulated)", ages)


if __name__ == "__main__":
    main()
