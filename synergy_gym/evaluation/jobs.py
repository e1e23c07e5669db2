"""One episode of a table: what to play, and the row that it yields."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from synergy_gym.evaluation.clairvoyant import ORACLE, clairvoyant_pair
from synergy_gym.evaluation.decision_log import DecisionLog, Recording, packed
from synergy_gym.evaluation.runner import (
    EnginePolicySpec,
    Result,
    RouterPolicySpec,
    evaluate,
)
from synergy_gym.evaluation.timed import Charge, Charging
from synergy_gym.metrics import latencies, scored, select
from synergy_gym.scenario import Scenario, load_scenario, windowed
from synergy_gym.seasons import SEASON
from synergy_gym.seats import Observer

Track = Literal["engine", "router", "joint"]
"""Which layer competes; on the joint track pairs of an engine and a router policy do."""
TRACK_LAYERS: Mapping[Track, tuple[str, ...]] = MappingProxyType(
    {"engine": ("engine",), "router": ("router",), "joint": ("engine", "router")}
)
KEY_COLUMNS = ("suite", "scenario", "load", "seed", "engine_policy", "router_policy")
SUMMARY_COLUMNS = (
    "offered",
    "finished",
    "rejected",
    "aborted",
    "failed",
    "slo_attainment",
    "e2e_attainment",
    "ttft_attainment",
    "tpot_attainment",
    "goodput_rps",
    "throughput_tps",
    *(f"{name}_p{p}_s" for name in ("ttft", "tpot", "e2e") for p in (50, 90, 99)),
    "preemptions",
    "cached_tokens",
)
EXTRA_COLUMNS = (
    "unfinished",
    "retries",
    "goodput_tps",
    "throughput_rps",
    "total_throughput_tps",
    "ttft_mean_s",
    "tpot_mean_s",
    "e2e_mean_s",
    "ttft_p95_s",
    "tpot_p95_s",
    "e2e_p95_s",
    "itl_mean_s",
    "itl_p50_s",
    "itl_p90_s",
    "itl_p95_s",
    "itl_p99_s",
    "prefix_hit_share",
    "jain_engines",
    "jain_classes",
    "window_s",
    "duration_s",
)
FULL_COLUMNS = (
    "offered",
    "finished",
    "slo_attainment",
    "throughput_tps",
    "ttft_p99_s",
    "e2e_p99_s",
)
COLUMNS = (
    *KEY_COLUMNS,
    *SUMMARY_COLUMNS,
    "log_hash",
    *EXTRA_COLUMNS,
    *(f"full_{name}" for name in FULL_COLUMNS),
    "scenario_hash",
)
"""Columns of `results.csv`; `full_*` cover the whole run, the others its scored window."""

CDF_EDGES_S = np.geomspace(1e-3, 1e4, 281)
"""Bin edges of the latency histograms: 40 per decade from 1 ms on."""


@dataclass(frozen=True)
class Job:
    """One episode of a table. Policies are names, or objects when played in this process.

    `record` keeps its decisions; it changes nothing in the row. `season` is that of the scenario.
    """

    suite: str
    scenario: str
    load: float
    seed: int
    engine_policy: EnginePolicySpec
    router_policy: RouterPolicySpec
    horizon_s: float | None = None
    warmup_s: float | None = None
    record: bool = field(default=False, compare=False)
    charge: Charge | None = None
    season: int = SEASON

    def world(self) -> Scenario:
        """The scenario, in this job's window.

        Raises:
            ScenarioError: there is none of that name.
            ValueError: no scored window is left.
        """
        return windowed(load_scenario(self.scenario, self.season), self.warmup_s, self.horizon_s)

    @property
    def key(self) -> tuple[str, str, float, int, str, str]:
        """The values of `KEY_COLUMNS`; rows are sorted by it."""
        engine, router = label(self.engine_policy), label(self.router_policy)
        return (self.suite, self.scenario, self.load, self.seed, engine, router)

    def __str__(self) -> str:
        _, scenario, load, seed, engine, router = self.key
        return f"{scenario} load {load:g} seed {seed} {pair_label((engine, router))}"


def pair_label(policies: Sequence[str]) -> str:
    """How tables name policies that play together."""
    return " + ".join(policies)


def competitor(track: Track, row: Mapping[str, Any]) -> str:
    """Who competes in a row of `results.csv` or `timings.csv`: a policy, or a pair of them."""
    return pair_label([row[f"{layer}_policy"] for layer in TRACK_LAYERS[track]])


@dataclass(frozen=True)
class JobResult:
    """What one job yields: a row of each table, its latency histograms and its policies' entries.

    `decisions` is the file of its decisions (`evaluation/decision_log.py`) where they were
    recorded; `decisions_sha256` the hash of that file, empty without one.
    """

    row: dict[str, Any]
    timing: dict[str, Any]
    histograms: dict[str, list[int]]
    policies: dict[str, dict[str, Any]]
    decisions: bytes | None = None
    decisions_sha256: str = ""


def label(policy: Any) -> str:
    """How a table names a policy: the text that made it, or would make it."""
    if isinstance(policy, str):
        return policy
    made = policy() if isinstance(policy, type) else policy
    # A spawned worker knows the caller's script by another name.
    return str(made.label).replace("__mp_main__:", "__main__:")


def run_job(job: Job) -> JobResult:
    """Play one job.

    Raises:
        PolicyError, ScenarioError, ValueError: as `evaluate`.
    """
    log = DecisionLog() if job.record else None
    world = job.world()
    players = _players(job, world)
    result = evaluate(world, *players, job.load, job.seed, observers=job_observers(job, log))
    decisions = None if log is None else packed(log, job.key)
    key = dict(zip(KEY_COLUMNS, job.key, strict=True))
    return JobResult(
        row={**key, **episode_row(result)},
        timing={**key, **result.timings},
        histograms=latency_histograms(result),
        policies={name: result.manifest[f"{name}_policy"] for name in ("engine", "router")},
        decisions=decisions,
        decisions_sha256="" if decisions is None else hashlib.sha256(decisions).hexdigest(),
    )


def _players(job: Job, world: Scenario) -> tuple[EnginePolicySpec, RouterPolicySpec]:
    """The policies of a job; oracles are made for its traffic."""
    given = (job.engine_policy, job.router_policy)
    if ORACLE not in given:
        return given
    return clairvoyant_pair(world, *given, job.load, job.seed)


def job_observers(job: Job, log: DecisionLog | None = None) -> list[Observer]:
    """Who looks on: what decisions cost is charged, and `log` gets them."""
    charging = [] if job.charge is None else [Charging(job.charge)]
    return [*charging, *([] if log is None else [Recording(log)])]


def episode_row(result: Result) -> dict[str, Any]:
    """The columns of `results.csv` that follow the key."""
    summary = result.summary
    return {
        **{name: summary[name] for name in SUMMARY_COLUMNS},
        "log_hash": result.log_hash,
        **{name: summary[name] for name in EXTRA_COLUMNS},
        **{f"full_{name}": summary["full"][name] for name in FULL_COLUMNS},
        "scenario_hash": result.manifest["scenario_hash"],
    }


def latency_histograms(result: Result) -> dict[str, list[int]]:
    """Scored finished requests per bin of `CDF_EDGES_S`, one bin below and one above."""
    records = select(result.records, scored(result.records, *result.window_ns))
    values = latencies(records)
    bins = np.concatenate([[-np.inf], CDF_EDGES_S, [np.inf]])
    return {
        name: np.histogram(seconds[np.isfinite(seconds)], bins)[0].tolist()
        for name, seconds in (("ttft", values.ttft_s), ("e2e", values.e2e_s))
    }


def describe(error: BaseException) -> str:
    """An error in one line: its type, message and notes."""
    notes = "; ".join(getattr(error, "__notes__", ()))
    text = f"{type(error).__name__}: {error}" + (f" ({notes})" if notes else "")
    return " ".join(text.split())
