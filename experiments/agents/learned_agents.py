"""Trained agents on traffic, clusters and GPUs that they have not seen, beside every reference.

    SYNERGY_GYM_DATA=../shared nice python -m experiments.agents.learned_agents --processes 2

Test seeds only, common to all policies. The row `test` has the loads and scenarios that agents were
trained on; every other row shifts something: load, traffic mix, cluster size, GPU, or everything,
to a real trace (read from SYNERGY_GYM_DATA, cut into one window per seed; left out without it).
Everything is simulated. Beside the policies stand two oracles, which know every output length: a
policy that is played (`clairvoyant`) and an upper bound that is proven (`bound`).

Finished episodes are kept: the same call after an interruption, or with further agents, plays only
what is missing or has changed. Writes `episodes.csv`, `summary.csv`, `comparisons.csv`,
`scenarios.csv`, `table.md`, three plots and `manifest.json` to `results/learned_agents/`;
docs/evaluation.md says how the figures are made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import common
from experiments.agents import learned_tables
from synergy_gym.behaviour import Behaviour, package_modules
from synergy_gym.cli import output as cli_tables
from synergy_gym.evaluation import evaluate
from synergy_gym.evaluation.bound import attainment_bound
from synergy_gym.evaluation.clairvoyant import ClairvoyantEngine, ClairvoyantRouter, OutputOracle
from synergy_gym.evaluation.dynamics import dynamics_hash
from synergy_gym.evaluation.jobs import describe
from synergy_gym.evaluation.runner import trace_window
from synergy_gym.policies.agent_file import packaged_agents
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.workload.base import Workload
from synergy_gym.workload.traces.load import load_trace

BOUND, CLAIRVOYANT = learned_tables.BOUND, learned_tables.CLAIRVOYANT
BASE = {"engine": "vllm-v1", "router": "round-robin"}
REFERENCES = {
    "engine": ("vllm-v1", "lens-ref", "lens-plus"),
    "router": (
        "round-robin", "least-outstanding", "rr-veto", "prism-ref", "prism-plus",
    ),
}  # fmt: skip
SEEDS = 10


@dataclass(frozen=True)
class Trace:
    """A real trace below SYNERGY_GYM_DATA, and how it is read."""

    file: str
    format: str
    jitter_s: float = 0.0

    @property
    def path(self) -> Path | None:
        """The file, if it is there."""
        path = Path(os.environ.get("SYNERGY_GYM_DATA", ".")) / "traces" / self.file
        return path if "SYNERGY_GYM_DATA" in os.environ and path.is_file() else None


@dataclass(frozen=True)
class Row:
    """One row of the tables: cells that are averaged.

    Attributes:
        track: which layer competes; the other plays `BASE`.
        name: of the row.
        scenarios: played at every load of `loads`.
        horizon_s: shorter episodes than the scenario's, with `warmup_s`.
        trace: instead of generated traffic; load 1 is then the scenario's rate on average.
    """

    track: str
    name: str
    scenarios: tuple[str, ...]
    loads: tuple[float, ...]
    horizon_s: float | None = None
    warmup_s: float | None = None
    trace: Trace | None = None


ENGINE_SCENARIOS = ("chat-h100", "code-a100", "summarization-h100", "two-class-h100")
ROUTER_SCENARIOS = ("hetero-3", "flowgpt-8xh100", "flowgpt-8xh100-llama8b")
SHORT: dict[str, Any] = {"horizon_s": 180.0, "warmup_s": 60.0}
LIGHT: dict[str, Any] = {"horizon_s": 120.0, "warmup_s": 30.0}
ROWS = (
    Row("engine", "test", ENGINE_SCENARIOS, (1.0, 1.2)),
    Row("engine", "load 0.6", ENGINE_SCENARIOS, (0.6,), **LIGHT),
    Row("engine", "load 1.5", ENGINE_SCENARIOS, (1.5,), **SHORT),
    Row("engine", "GPU and mix: chat-a6000", ("chat-a6000",), (1.0, 1.2), **SHORT),
    Row("engine", "mix: heldout-reasoning-h100", ("heldout-reasoning-h100",), (1.0, 1.2), **SHORT),
    Row("engine", "trace: Azure conversation", ("chat-h100",), (1.0,),
        trace=Trace("azure_2023_conv.csv", "azure")),
    Row("engine", "trace: Azure code", ("code-a100",), (1.0,),
        trace=Trace("azure_2023_code.csv", "azure")),
    Row("router", "test", ROUTER_SCENARIOS, (1.0, 1.2)),
    Row("router", "load 0.6", ROUTER_SCENARIOS, (0.6,), **LIGHT),
    Row("router", "load 1.5", ROUTER_SCENARIOS, (1.5,), **SHORT),
    Row("router", "load 2.0: hetero-3", ("hetero-3",), (2.0,), **SHORT),
    Row("router", "size and mix: long-context-4xh100", ("long-context-4xh100",), (1.0, 1.2)),
    Row("router", "size: heldout-flowgpt-12xh100", ("heldout-flowgpt-12xh100",), (1.0, 1.2),
        **LIGHT),
    Row("router", "GPU: heldout-rtxpro-3", ("heldout-rtxpro-3",), (1.0, 1.2), **SHORT),
    Row("router", "trace: FlowGPT", ("flowgpt-8xh100-llama8b",), (1.0,),
        trace=Trace("flowgpt_8xh100_timestamp_0.5.csv.gz", "flowgpt")),
    Row("router", "trace: Mooncake", ("long-context-4xh100",), (1.0,),
        trace=Trace("mooncake_conversation_trace.jsonl.gz", "mooncake", jitter_s=3.0)),
)  # fmt: skip
"""The first row of each track is the one that agents have to win."""
WITHOUT_ORACLES = frozenset({"load 0.6", "trace: FlowGPT"})
"""No oracles: nothing to gain at low load; that trace's later turns arrive when earlier ones end,
so that nobody can know their times beforehand, and the bound is proven for given times only."""
QUICK: dict[str, Any] = {"horizon_s": 40.0, "warmup_s": 10.0}
QUICK_SEEDS = 2
"""Sources whose change makes every kept episode void."""
AGENT_WORLD = ("features", "observation", "actions")
ORACLE_WORLD = ("evaluation.clairvoyant", "evaluation.bound", "evaluation.minimal_work")


@dataclass(frozen=True)
class Cell:
    """One episode, or one bound."""

    row: Row
    scenario: str
    load: float
    seed: int
    policy: str

    def __str__(self) -> str:
        where = f"{self.row.track} {self.row.name}: {self.scenario} load {self.load:g}"
        return f"{where} seed {self.seed} {self.policy}"


@lru_cache
def world(name: str, horizon_s: float | None, warmup_s: float | None) -> Scenario:
    """The scenario with the row's window."""
    scenario = load_scenario(name)
    changes = {"horizon_s": horizon_s, "warmup_s": warmup_s}
    return replace(scenario, **{k: v for k, v in changes.items() if v is not None})


@lru_cache
def world_hash(name: str, horizon_s: float | None, warmup_s: float | None) -> str:
    """Of `world`."""
    return world(name, horizon_s, warmup_s).hash()


@lru_cache(maxsize=2)
def trace_span_rps(trace: Trace) -> tuple[float, float]:
    """Length of a trace in seconds and its mean rate."""
    workload = load_trace(_path(trace), trace.format, jitter_s=trace.jitter_s, zero_output="one")
    span_s = float(workload.arrival_ns[-1]) / 1e9
    return span_s, len(workload) / span_s


@lru_cache(maxsize=4)
def traffic(cell: Cell) -> Workload:
    """The window of the trace that belongs to the seed, at the scenario's rate on average."""
    row, scenario = cell.row, load_scenario(cell.scenario)
    assert row.trace is not None
    span_s, rate_rps = trace_span_rps(row.trace)
    place = scenario.test_seeds.index(cell.seed)
    windows = len(scenario.test_seeds)
    return load_trace(
        _path(row.trace), row.trace.format, jitter_s=row.trace.jitter_s, zero_output="one",
        rate_scale=scenario.rate_rps * cell.load / rate_rps,
        start_s=place * span_s / windows, end_s=(place + 1) * span_s / windows,
    )  # fmt: skip


def _path(trace: Trace) -> Path:
    if trace.path is None:
        raise ValueError(f"{trace.file} is not below SYNERGY_GYM_DATA/traces")
    return trace.path


def play(cell: Cell) -> dict[str, Any]:
    """Requests offered and requests that met every SLO; of the bound, the most there can be."""
    scenario = world(cell.scenario, cell.row.horizon_s, cell.row.warmup_s)
    given = None
    if cell.row.trace is not None:
        given = traffic(replace(cell, policy=""))
        scenario = trace_window(scenario, given)
    if cell.policy == BOUND:
        best = attainment_bound(scenario, cell.load, cell.seed, workload=given)
        return {"offered": best.offered, "met": best.attainment * best.offered, "log_hash": ""}
    engine, router = _policies(cell, scenario, given)
    result = evaluate(
        scenario, engine, router, cell.load, cell.seed, workload=given, record_itl=False
    )
    offered = result.summary["offered"]
    met = round(result.summary["slo_attainment"] * offered)
    return {"offered": offered, "met": met, "log_hash": result.log_hash[:16]}


def _policies(cell: Cell, scenario: Scenario, given: Workload | None) -> tuple[Any, Any]:
    pair: dict[str, Any] = {**BASE, cell.row.track: cell.policy}
    if cell.policy == CLAIRVOYANT:
        oracle = OutputOracle(scenario.workload(cell.load, cell.seed) if given is None else given)
        made = {"engine": ClairvoyantEngine, "router": ClairvoyantRouter}[cell.row.track]
        pair[cell.row.track] = made(oracle)
    return pair["engine"], pair["router"]


@lru_cache
def sources(names: tuple[str, ...]) -> str:
    """Hash of what modules of the package compute."""
    return Behaviour(package_modules()).of([(f"synergy_gym.{name}", "") for name in names])


@lru_cache
def fingerprint(track: str, policy: str) -> str:
    """What a policy decides with."""
    make = {"engine": make_engine_policy, "router": make_router_policy}[track]
    if policy in (BOUND, CLAIRVOYANT):
        parent = make({"engine": "lens-plus", "router": "prism-plus"}[track]).policy_hash()
        return sources(ORACLE_WORLD) + (parent if policy == CLAIRVOYANT else "")
    text = make(policy).policy_hash()
    return text + (sources(AGENT_WORLD) if policy.startswith("agent:") else "")


def stamp(cell: Cell) -> str:
    """Equal for episodes that cannot differ: policies, scenario, window, seed and simulator."""
    content = world_hash(cell.scenario, cell.row.horizon_s, cell.row.warmup_s)
    other = {"engine": "router", "router": "engine"}[cell.row.track]
    parts = [
        cell.row.track, fingerprint(cell.row.track, cell.policy), fingerprint(other, BASE[other]),
        content, cell.load, cell.seed, dynamics_hash(),
        None if cell.row.trace is None else asdict(cell.row.trace),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def attempt(cell: Cell, store: Path) -> dict[str, Any]:
    """Play a cell; its outcome is on disk when this returns. A failure costs only itself."""
    try:
        outcome = {**play(cell), "error": ""}
    except Exception as error:  # another policy's episodes are worth keeping
        outcome = {"error": describe(error)}
    if not outcome["error"]:
        with store.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stamp": stamp(cell), **outcome}) + "\n")
    return outcome


def kept(store: Path, table: Path) -> dict[str, dict[str, Any]]:
    """Outcomes of earlier runs by stamp."""
    found: dict[str, dict[str, Any]] = {}
    if table.is_file():
        frame = pd.read_csv(table, keep_default_na=False)
        for row in frame[["stamp", "offered", "met", "log_hash"]].to_dict("records"):
            found[str(row["stamp"])] = {**row, "error": ""}
    if store.is_file():
        for line in store.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # the last line of a killed run may be cut off
                row = json.loads(line)
                found[row["stamp"]] = row
    return found


def policies(row: Row, agents: dict[str, Sequence[str]]) -> Iterator[str]:
    """Who plays a row, oracles last."""
    yield from dict.fromkeys([*REFERENCES[row.track], *agents[row.track]])
    if row.name not in WITHOUT_ORACLES:
        yield from (CLAIRVOYANT, BOUND)


def cells(
    rows: Sequence[Row], agents: dict[str, Sequence[str]], seeds: int = SEEDS
) -> Iterator[Cell]:
    """Every episode; the policies of one episode's traffic follow one another."""
    for row in rows:
        for name, load, place in product(row.scenarios, row.loads, range(seeds)):
            seed = load_scenario(name).test_seeds[place]
            for policy in policies(row, agents):
                yield Cell(row, name, load, seed, policy)


def available(rows: Sequence[Row]) -> list[Row]:
    """The rows whose data are there; the others are named on stderr."""
    for row in rows:
        if row.trace is not None and row.trace.path is None:
            cli_tables.note(f"left out, no SYNERGY_GYM_DATA/traces/{row.trace.file}: {row.name}")
    return [row for row in rows if row.trace is None or row.trace.path is not None]


def quick(rows: Sequence[Row]) -> list[Row]:
    """Short episodes of the rows with generated traffic."""
    return [replace(row, **QUICK) for row in rows if row.trace is None]


def play_all(played: Sequence[Cell], out: Path, processes: int) -> pd.DataFrame:
    """Every cell with its outcome, from earlier runs where it still holds."""
    out.mkdir(parents=True, exist_ok=True)
    store = out / "progress.jsonl"
    stamps = [stamp(cell) for cell in played]
    known = kept(store, out / "episodes.csv")
    missing = [cell for cell, mark in zip(played, stamps, strict=True) if mark not in known]
    cli_tables.note(f"{len(played) - len(missing)} of {len(played)} from an earlier run")
    if missing:
        fresh = common.play(partial(attempt, store=store), missing, processes)
        known |= {stamp(cell): result for cell, result in zip(missing, fresh, strict=True)}
    rows = [
        {**_key(cell), **{k: v for k, v in known[mark].items() if k != "stamp"}, "stamp": mark}
        for cell, mark in zip(played, stamps, strict=True)
    ]
    return pd.DataFrame(rows)


def _key(cell: Cell) -> dict[str, Any]:
    key = {name: getattr(cell, name) for name in ("scenario", "load", "seed", "policy")}
    return {"track": cell.row.track, "row": cell.row.name, **key}


def chosen_agents(names: Sequence[str] | None) -> dict[str, Sequence[str]]:
    """Agents per track: those named as `engine=NAME` or `router=NAME`, else the packaged ones."""
    if names is None:
        return {kind: [f"agent:{n}" for n in packaged_agents(kind)] for kind in REFERENCES}
    pairs = [name.partition("=")[::2] for name in names]
    return {kind: [policy for track, policy in pairs if track == kind] for kind in REFERENCES}


def finish(
    episodes: pd.DataFrame, rows: Sequence[Row], agents: dict[str, Sequence[str]], out: Path
) -> int:
    """Write every file; the number of failed episodes."""
    failed = episodes[episodes.error != ""]
    for row in failed.itertuples():
        cli_tables.note(f"failed: {row.track} {row.row} {row.scenario} {row.policy}: {row.error}")
    good = episodes[episodes.error == ""].drop(columns="error").astype({"offered": np.int64})
    good = good.astype({"met": float})
    common.write_csv(good, out / "episodes.csv")
    if not len(failed):
        (out / "progress.jsonl").unlink(missing_ok=True)
    learned_tables.write(good, BASE, agents, out)
    names = {row.track: dict.fromkeys(p for p in policies(row, agents)) for row in rows}
    competing = {k: [p for p in v if p not in (BOUND, CLAIRVOYANT)] for k, v in names.items()}
    scenarios = dict.fromkeys(name for row in rows for name in row.scenarios)
    common.write_manifest(
        out, [load_scenario(name) for name in scenarios],
        competing.get("engine", []), competing.get("router", []),
        rows=[asdict(row) for row in rows], agents=agents, base=BASE,
        seeds=sorted({int(seed) for seed in good.seed}), episodes=len(good),
        failures=[f"{row.row}: {row.policy}: {row.error}" for row in failed.itertuples()],
    )  # fmt: skip
    return len(failed)


def only(rows: Sequence[Row], names: Sequence[str] | None) -> tuple[Row, ...]:
    """The rows whose track and name begin with one of `names`; all without names."""
    for name in names or ():
        if not any(f"{row.track} {row.name}".startswith(name) for row in rows):
            known = ", ".join(f"{row.track} {row.name}" for row in rows)
            raise SystemExit(f"error: no row begins with {name!r}; there are {known}")
    wanted = tuple(names or ("",))
    return tuple(row for row in rows if f"{row.track} {row.name}".startswith(wanted))


def main() -> None:
    """Command line."""
    options = common.parser("Trained agents on unseen traffic and clusters", "learned_agents")
    options.add_argument(
        "--agents", nargs="+", metavar="TRACK=POLICY",
        help="instead of the packaged agents, e.g. engine=agent:runs/a/agent.npz",
    )  # fmt: skip
    options.add_argument(
        "--rows", nargs="+", metavar="ROW",
        help="only rows whose 'TRACK NAME' begins so, e.g. 'engine test'; the table has no others",
    )  # fmt: skip
    given = options.parse_args()
    agents = chosen_agents(given.agents)
    rows = only(quick(ROWS) if given.quick else available(ROWS), given.rows)
    played = list(cells(rows, agents, QUICK_SEEDS if given.quick else SEEDS))
    episodes = play_all(played, given.out, given.processes)
    if finish(episodes, rows, agents, given.out):
        raise SystemExit("some episodes failed (see above); the tables are made without them")
    print((given.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
