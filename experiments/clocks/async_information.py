"""How far off is a policy's information under asynchronous scheduling, and what does that cost?

    nice .venv/bin/python -m experiments.clocks.async_information

The simulator's `async` clock changes how long a step takes; policies still decide on a step when
the one before it has ended. vLLM decides when that one begins (`async_simulator.py` says what is
known by then). Policies meet the same traffic (validation seeds) with either information, and at
load 1.0 with its parts. All is simulated. `errors.csv` compares what is shown with what is so;
`episodes.csv` has a row per episode, the others the paired differences: `effects.csv` per cell,
`summary.csv` over all loads, `parts.csv` at load 1.0.

| information | a policy decides | arrivals join | reports |
|---|---|---|---|
| exact | when the step before has ended | at once | at once |
| vllm | when it begins, its tokens counted | a step late | a step late |
| decision, arrivals, reports | `vllm` in this one respect | | |
| uncounted | when it begins, nothing of it counted | a step late | a step late |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from experiments import common
from experiments.clocks.async_simulator import EXACT, VLLM, AsyncSimulator, Information
from synergy_gym.evaluation.report.png import COLOURS
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.scenario import load_scenario
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import EngineStateField, EngineView, IntArray

KINDS: Mapping[str, Information] = MappingProxyType(
    {
        "exact": EXACT,
        "vllm": VLLM,
        "decision": Information("planned"),
        "arrivals": Information(late_arrivals=True),
        "reports": Information(late_reports=True),
        "uncounted": Information("before", late_arrivals=True, late_reports=True),
    }
)
WHOLE = ("exact", "vllm")
PARTS = ("decision", "arrivals", "reports")
STATIC = ("vllm-v1", "sarathi-512")
"""They decide the same whatever they know: only the lateness of arrivals touches them."""
STEERED = ("lens-ref", "lens-guarded", "lens-plus", "agent:engine-ppo-v1")
POLICIES = (*STATIC, *STEERED)
SCENARIOS = ("chat-h100", "code-a100", "summarization-h100")
LOADS = (0.8, 1.0, 1.2)
SEEDS = (2000, 2001, 2002, 2003, 2004)
UNCOUNTED_SEEDS = SEEDS[:2]
"""Fewer: LENS is unstable there, and its steps are tiny."""
ROUTER = "round-robin"
CLUSTER, CLUSTER_ROUTERS, CLUSTER_ENGINES = (
    "hetero-3",
    ("round-robin", "prism-ref"),
    ("vllm-v1", "lens-ref"),
)
PROBED = ("vllm-v1", "lens-ref")
QUICK_HORIZON_S = 90.0
SHARES = ("slo_attainment", "e2e_attainment", "ttft_attainment", "tpot_attainment")
TIMES = tuple(f"{name}_{q}_s" for name in ("ttft", "tpot", "e2e") for q in ("p50", "p90", "p99"))
HEAD = ["engine_policy", "slo_attainment_exact", "slo_attainment_vllm"]
SHOWN = [
    *(f"{name}_points{end}" for name in ("slo", "e2e") for end in ("", "_low", "_high")),
    *("ttft_p50_ms", "ttft_p50_%", "ttft_p99_%", "tpot_p50_%", "tpot_p99_%"),
    *("e2e_p50_%", "e2e_p99_%"),
]
"""Columns of the printed tables."""
CELL = ["scenario", "load", "router_policy", "engine_policy"]


@dataclass(frozen=True)
class Cell:
    """One episode; `information` names one of `KINDS`."""

    scenario: str
    load: float
    router_policy: str
    engine_policy: str
    information: str
    seed: int
    horizon_s: float | None = None

    def __str__(self) -> str:
        policies = f"{self.engine_policy} {self.router_policy}"
        return f"{self.scenario} {self.load:g} seed {self.seed} {policies} {self.information}"


class Probe(AsyncSimulator):
    """Notes at every decision what a policy is shown of an engine's state, and what is so."""

    def __init__(self, information: Information, **episode: Any) -> None:
        super().__init__(information, **episode)
        self.shown: list[IntArray] = []
        self.so: list[IntArray] = []

    def engine_view(self, engine: int) -> EngineView:
        """As `AsyncSimulator.engine_view`."""
        view = super().engine_view(engine)
        self.shown.append(view.state)
        self.so.append(Simulator.engine_view(self, engine).state)
        return view


def run(cell: Cell, simulator: type[AsyncSimulator] = AsyncSimulator) -> tuple[Any, Any]:
    """The cell's result and the simulator that played it."""
    made = []

    def build(**episode: Any) -> AsyncSimulator:
        made.append(simulator(KINDS[cell.information], **episode))
        return made[0]

    result = evaluate(
        cell.scenario, cell.engine_policy, cell.router_policy, cell.load, cell.seed,
        horizon_s=cell.horizon_s, record_itl=False, simulator=build,
    )  # fmt: skip
    return result, made[0]


def play(cell: Cell) -> dict[str, Any]:
    """One row of episodes.csv."""
    result, sim = run(cell)
    summary = result.summary
    return {
        **{name: value for name, value in asdict(cell).items() if name != "horizon_s"},
        **{name: summary[name] for name in ("offered", *SHARES, *TIMES, "preemptions")},
        "steps": sum(sim.steps(engine) for engine in range(len(sim.engines))),
        "empty_steps": sim.empty_steps,
        "tight_steps": sim.tight_steps,
        "log_hash": result.log_hash,
    }


def probe(cell: Cell) -> list[dict[str, Any]]:
    """Rows of errors.csv: how far what is shown is from what is so, over all decisions."""
    _, sim = run(cell, Probe)
    shown, so = (_quantities(np.array(states)) for states in (sim.shown, sim.so))
    rows = []
    for name, true in so.items():
        error = np.abs(shown[name] - true)
        rows.append(
            {
                "scenario": cell.scenario,
                "load": cell.load,
                "engine_policy": cell.engine_policy,
                "information": cell.information,
                "quantity": name,
                "mean": true.mean() if name != "age_ms" else np.nan,
                "mean_error": error.mean(),
                "p99_error": np.quantile(error, 0.99),
                "share_wrong": (error > 0).mean(),
            }
        )
    return rows


def _quantities(states: IntArray) -> dict[str, Any]:
    """What matters of state vectors, one column each."""
    s = {field: states[:, field] for field in EngineStateField}
    prefill = s[EngineStateField.PREFILL_TOKENS] + s[EngineStateField.WAITING_TOKENS]
    return {
        "age_ms": s[EngineStateField.NOW_NS] / 1e6,
        "waiting": s[EngineStateField.WAITING],
        "decodes": s[EngineStateField.DECODES],
        "prefill_tokens": prefill,
        "kv_free_blocks": s[EngineStateField.KV_FREE_BLOCKS],
    }


def cells(quick: bool) -> Iterator[Cell]:
    """Every episode; all kinds of information meet the same traffic."""
    horizon_s, seeds = (QUICK_HORIZON_S, SEEDS[:1]) if quick else (None, SEEDS)
    for scenario in SCENARIOS[:1] if quick else SCENARIOS:
        for load in (1.0,) if quick else LOADS:
            for policy in POLICIES:
                kinds = WHOLE
                if load == 1.0 and policy in STEERED:
                    kinds = tuple(KINDS)
                for kind in kinds:
                    for seed in UNCOUNTED_SEEDS if kind == "uncounted" else seeds:
                        if seed in seeds:
                            yield Cell(scenario, load, ROUTER, policy, kind, seed, horizon_s)
    for router in CLUSTER_ROUTERS:
        for policy in CLUSTER_ENGINES:
            for kind in WHOLE:
                for seed in seeds:
                    yield Cell(CLUSTER, 1.0, router, policy, kind, seed, horizon_s)


def probed(quick: bool) -> list[Cell]:
    """The episodes whose views are compared with the truth."""
    horizon_s = QUICK_HORIZON_S if quick else None
    return [
        Cell(scenario, 1.0, ROUTER, policy, kind, SEEDS[0], horizon_s)
        for scenario in (SCENARIOS[:1] if quick else SCENARIOS)
        for policy in PROBED
        for kind in ("vllm", "uncounted")
    ]


def paired(episodes: pd.DataFrame) -> pd.DataFrame:
    """Per episode with other information, its differences to the exact one of the same traffic.

    Attainments as `*_points`; latencies as `*_ms` and, relative to the exact one, `*_%`.
    """
    keys = [*CELL, "seed"]
    exact = episodes[episodes.information == "exact"].set_index(keys)
    other = episodes[episodes.information != "exact"].set_index(keys)
    base = exact.loc[other.index]
    found = pd.DataFrame({"information": other.information.to_numpy()}, index=other.index)
    for name in SHARES:
        found[_points(name)] = 100 * (other[name] - base[name])
    for name in TIMES:
        found[name.removesuffix("s") + "ms"] = 1000 * (other[name] - base[name])
        found[name.removesuffix("s") + "%"] = 100 * (other[name] / base[name] - 1)
    return found.reset_index()


def _points(share: str) -> str:
    return share.replace("attainment", "points")


def table(differences: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means of the paired differences, attainments with the 95 % interval over seeds.

    An interval is the bootstrap's over the means per seed.
    """
    rows = []
    for key, part in differences.groupby([*by, "information"], sort=False):
        row = dict(zip([*by, "information"], key, strict=True)) | {"episodes": len(part)}
        row |= part[[name for name in part if name.endswith(("_points", "_ms", "_%"))]].mean()
        for name in map(_points, SHARES[:2]):
            low, high = common.paired_interval(part.groupby("seed")[name].mean().to_list())
            row |= {f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def levels(episodes: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean attainments with either information; `tight_%` of vLLM's steps are not quite its own."""
    part = episodes[episodes.information.isin(WHOLE)]
    wide = part.pivot_table(SHARES[:2], by, "information", sort=False)
    wide.columns = [f"{name}_{kind}" for name, kind in wide.columns]
    steps = part[part.information == "vllm"].groupby(by, sort=False)[["steps", "tight_steps"]].sum()
    wide["tight_%"] = 100 * steps.tight_steps / steps.steps
    return wide.reset_index()


def plot(episodes: pd.DataFrame) -> Any:
    """Attainment against load, exact and as in vLLM, one panel per scenario."""
    single = episodes[episodes.information.isin(WHOLE) & (episodes.scenario != CLUSTER)]
    names = list(dict.fromkeys(single.scenario))
    chart, panels = common.figure(1, len(names))
    for axes, name in zip(panels[0], names, strict=True):
        for index, policy in enumerate(POLICIES):
            chosen = single[(single.scenario == name) & (single.engine_policy == policy)]
            for kind, style in zip(WHOLE, ("-", "--"), strict=True):
                mean = chosen[chosen.information == kind].groupby("load").slo_attainment.mean()
                label = policy if kind == "exact" else None
                axes.plot(mean.index, 100 * mean, style, color=COLOURS[index], lw=1.4, label=label)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("load")
        axes.set_ylim(-2, 102)
    panels[0][0].set_ylabel("requests that met every SLO, %")
    handles, labels = panels[0][0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside right upper")
    chart.suptitle("Exact information (solid), vLLM's (dashed), simulated", fontsize=10)
    return chart


def main() -> None:
    """Command line."""
    given = common.parser("What does a step-old view cost?", "async_information").parse_args()
    played = list(cells(given.quick))
    episodes = pd.DataFrame(common.play(play, played, given.processes))
    found = common.play(probe, probed(given.quick), given.processes)
    errors = pd.DataFrame([row for rows in found for row in rows])
    differences = paired(episodes)
    effects = table(differences, CELL)
    single = differences[differences.scenario != CLUSTER]
    summary = table(single[single.information == "vllm"], ["engine_policy"])
    parts = table(single[single.load == 1.0], ["engine_policy"])
    reached = levels(episodes[episodes.scenario != CLUSTER], ["engine_policy"])
    summary = reached.merge(summary, on="engine_policy")
    common.write_csv(episodes, given.out / "episodes.csv")
    common.write_csv(errors, given.out / "errors.csv")
    common.write_csv(levels(episodes, CELL).merge(effects, on=CELL), given.out / "effects.csv")
    common.write_csv(summary, given.out / "summary.csv")
    common.write_csv(parts, given.out / "parts.csv")
    common.save(plot(episodes), given.out / "async_information.png")
    common.write_manifest(
        given.out, [load_scenario(name) for name in (*SCENARIOS, CLUSTER)], POLICIES,
        CLUSTER_ROUTERS, loads=LOADS, seeds=SEEDS, episodes=len(episodes),
        information={name: asdict(kind) for name, kind in KINDS.items()},
    )  # fmt: skip
    cluster = effects[effects.scenario == CLUSTER]
    common.show("What a policy is shown against what is so (simulated)", errors)
    common.show("vLLM's information less exact, all loads (simulated)", summary[[*HEAD, *SHOWN]])
    common.show("Its parts, load 1.0 (simulated)", parts[["engine_policy", "information", *SHOWN]])
    common.show("The cluster (simulated)", cluster[["router_policy", "engine_policy", *SHOWN]])


if __name__ == "__main__":
    main()
