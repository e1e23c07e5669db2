"""What the experiments on SynergySched's paper share: lines, grids of episodes, figures, files.

A line is a pair of policies under the paper's label. A grid is played with the library's own
job runner; finished episodes are kept, so that an interrupted run goes on where it stopped.
Latency quantiles count every offered request: one that did not finish has an infinite latency
(written `inf`), which the paper's plots would show outside the axis.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from experiments.common import (
    RESULTS,
    command_line,
    figure,
    parser,
    play_jobs,
    save,
    show,
    write_csv,
)
from synergy_gym.cli import output as cli_tables
from synergy_gym.evaluation.capacity import TARGET, capacity_of_curve, highest_load
from synergy_gym.evaluation.jobs import Job, JobResult
from synergy_gym.evaluation.manifest import software, write_json
from synergy_gym.evaluation.runner import Result, evaluate
from synergy_gym.latency.models.published import StepModelFile
from synergy_gym.metrics import latencies, slo_met
from synergy_gym.policies.lens import Lens
from synergy_gym.policies.prism import Prism
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.scenario import load_scenario
from synergy_gym.types import NS_PER_S, SLO, BoolArray, FloatArray

PUBLISHED = Path(__file__).parents[1] / "published"
Row = dict[str, Any]
__all__ = ["figure", "save", "show", "write_csv"]  # of `common`, for the scripts


# --- lines ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """An engine policy and a router policy under one label."""

    label: str
    engine: str
    router: str


SYNERGY = Line("LENS+PRISM", "lens-ref", "prism-ref")
LENS_RR = Line("LENS RR", "lens-ref", "round-robin")
SARATHI_PRISM = Line("Sarathi PRISM", "vllm-v1", "prism-ref")
SARATHI_RR = Line("Sarathi RR", "vllm-v1", "round-robin")
SARATHI_SESSION = Line("Sarathi Session", "vllm-v1", "session")
VLLM_RR = Line("vLLM RR", "vllm-v0", "round-robin")
VLLM_SESSION = Line("vLLM Session", "vllm-v0", "session")
OURS = Line("ours", "lens-plus", "prism-plus")

COLOURS: Mapping[str, str] = {
    "LENS+PRISM": "#D55E00",
    "ours": "#000000",
    "LENS RR": "#E69F00",
    "Sarathi PRISM": "#CC79A7",
    "Sarathi RR": "#0072B2",
    "Sarathi Session": "#56B4E9",
    "vLLM RR": "#009E73",
    "vLLM Session": "#8FBC8F",
}


def with_step_model(line: Line, file: StepModelFile) -> Line:
    """The line with that file in its LENS and PRISM policies; a LENS that learns loads none."""
    engine, router = make_engine_policy(line.engine), make_router_policy(line.router)
    if file == "engine" or (isinstance(engine, Lens) and engine.mode == "online"):
        return line
    return replace(
        line,
        engine=_with(line.engine, file) if isinstance(engine, Lens) else line.engine,
        router=_with(line.router, file) if isinstance(router, Prism) else line.router,
    )


def _with(policy: str, file: StepModelFile) -> str:
    return f"{policy}{',' if ':' in policy else ':'}step_model={file}"


def available(lines: Iterable[Line], step_model: StepModelFile = "engine") -> list[Line]:
    """The lines whose policies are registered; the others are named on stderr.

    `step_model` is the file that LENS and PRISM plan with, as `with_step_model` says.
    """
    found = []
    for line in lines:
        try:
            make_engine_policy(line.engine)
            make_router_policy(line.router)
        except ValueError as error:
            cli_tables.note(f"SKIPPED line {line.label!r} ({line.engine} + {line.router}): {error}")
        else:
            found.append(with_step_model(line, step_model))
    return found


# --- one episode ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Requests that arrive in [start_s, end_s) are measured."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Measure:
    """What is taken from an episode.

    Attributes:
        windows: the requests to look at; arrivals may go on after the last one.
        thresholds_s: E2E latencies at which attainment is counted.
        slice_s: length of the slices of the time series.
    """

    windows: tuple[Window, ...]
    thresholds_s: tuple[float, ...]
    slice_s: float = 60.0


def measured(result: Result, measure: Measure) -> Row:
    """Figures per window, and the time series, of one episode."""
    records = result.records
    values = latencies(records)
    seconds = {
        name: np.where(np.isnan(column), np.inf, column)
        for name, column in (
            ("ttft", values.ttft_s),
            ("tpot", values.tpot_s),
            ("e2e", values.e2e_s),
        )
    }
    met = slo_met(records, result.slos).slo
    arrival_s = records.arrival_ns / NS_PER_S
    engines = len(result.summary["engines"])
    end_s = max(window.end_s for window in measure.windows)
    edges = np.arange(0.0, end_s + 1e-9, measure.slice_s)
    cached, prompt = records.cached_tokens, records.prompt_tokens

    def share(mask: BoolArray) -> list[float]:
        counts = np.bincount(records.engine[mask & (records.engine >= 0)], minlength=engines)
        return (counts / max(int(mask.sum()), 1)).tolist()

    windows = {}
    for window in measure.windows:
        mask = (arrival_s >= window.start_s) & (arrival_s < window.end_s)
        windows[window.name] = {
            **figures({name: column[mask] for name, column in seconds.items()}, measure),
            "slo": _mean(met[mask]),
            "prefix_hit_share": float(np.minimum(cached, prompt)[mask].sum() / prompt[mask].sum()),
            "preemptions": int(records.preemptions[mask].sum()),
            "shares": share(mask),
        }
    slices = [(arrival_s >= a) & (arrival_s < b) for a, b in pairwise(edges)]
    return {
        "windows": windows,
        "slice_e2e_p50_s": [quantile(seconds["e2e"][mask], 0.5) for mask in slices],
        "slice_shares": [share(mask) for mask in slices],
    }


def figures(seconds: Mapping[str, FloatArray], measure: Measure) -> Row:
    """Counts, quantiles and attainment of the requests of one window."""
    e2e = seconds["e2e"]
    return {
        "offered": len(e2e),
        "unfinished": int(np.isinf(e2e).sum()),
        "ttft_p50_s": quantile(seconds["ttft"], 0.5),
        "ttft_p90_s": quantile(seconds["ttft"], 0.9),
        "tpot_p50_ms": 1e3 * quantile(seconds["tpot"], 0.5),
        "e2e_p50_s": quantile(e2e, 0.5),
        "e2e_p90_s": quantile(e2e, 0.9),
        "e2e_p99_s": quantile(e2e, 0.99),
        "ttft_1s": _mean(seconds["ttft"] <= 1.0),
        "ttft_30s": _mean(seconds["ttft"] <= 30.0),
        "tpot_50ms": _mean(seconds["tpot"] <= 0.05),
        "tpot_100ms": _mean(seconds["tpot"] <= 0.1),
        "attainment": {f"{x:g}": _mean(e2e <= x) for x in measure.thresholds_s},
    }


def quantile(values: FloatArray, level: float) -> float:
    """An order statistic, so that infinite latencies need no interpolation; NaN without values."""
    return float(np.quantile(values, level, method="inverted_cdf")) if len(values) else float("nan")


def _mean(values: BoolArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def play(measure: Measure, job: Job) -> JobResult:
    """Play one job and measure it; runs in worker processes."""
    result = evaluate(
        job.scenario,
        job.engine_policy,
        job.router_policy,
        job.load,
        job.seed,
        horizon_s=job.horizon_s,
        warmup_s=job.warmup_s,
        record_itl=False,
    )
    row = {
        "scenario": job.scenario,
        "rate_rps": rate_of(job),
        "seed": job.seed,
        "engine_policy": job.engine_policy,
        "router_policy": job.router_policy,
        "log_hash": result.log_hash,
        "scenario_hash": result.manifest["scenario_hash"],
        **measured(result, measure),
    }
    policies = {name: result.manifest[f"{name}_policy"] for name in ("engine", "router")}
    return JobResult(row=row, timing=dict(result.timings), histograms={}, policies=policies)


# --- grids ----------------------------------------------------------------------------------


@lru_cache
def _scenario_rate(name: str) -> float:
    return load_scenario(name).rate_rps


def rate_of(job: Job) -> float:
    """Requests per second of a job."""
    return round(job.load * _scenario_rate(str(job.scenario)), 6)


def grid(
    experiment: str,
    cells: Iterable[tuple[str, float]],
    seeds: Sequence[int],
    lines: Sequence[Line],
    measure: Measure,
    horizon_s: float,
) -> list[Job]:
    """Every line at every (scenario, requests per second), with common seeds."""
    # The name carries what the library's own hashes do not cover: how episodes are measured.
    text = repr(measure) + Path(__file__).read_text(encoding="utf-8")
    suite = f"{experiment}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    jobs = [
        Job(
            suite=suite,
            scenario=scenario,
            load=rate / _scenario_rate(scenario),
            seed=seed,
            engine_policy=line.engine,
            router_policy=line.router,
            horizon_s=horizon_s,
            warmup_s=0.0,
        )
        for scenario, rate in cells
        for seed in seeds
        for line in lines
    ]
    return list(dict.fromkeys(jobs))


def play_grid(jobs: Sequence[Job], measure: Measure, out: Path, processes: int) -> list[JobResult]:
    """Results of all jobs, in their order; finished ones are read from an earlier run.

    Raises:
        SystemExit: an episode failed; the others are kept.
    """
    return play_jobs(jobs, out, processes, partial(play, measure))


def table(
    results: Iterable[JobResult], lines: Iterable[Line], window: str = "steady"
) -> pd.DataFrame:
    """One row per episode: scenario, rate_rps, seed, line, figures; `at_X`: share within X s."""
    labels = {(line.engine, line.router): line.label for line in lines}
    rows = []
    for row in (result.row for result in results):
        values = dict(row["windows"][window])
        attainment = {f"at_{x}": share for x, share in values.pop("attainment").items()}
        key = {name: row[name] for name in ("scenario", "rate_rps", "seed")}
        line = labels[row["engine_policy"], row["router_policy"]]
        extra = {name: row[name] for name in ("engine_policy", "router_policy", "log_hash")}
        rows.append({**key, "line": line, **attainment, **values, **extra})
    return pd.DataFrame(rows)


# --- the load at which the plain baseline fails -----------------------------------------------


def sarathi_rate(
    scenario: str, threshold_s: float, seeds: Sequence[int], target: float = TARGET
) -> float:
    """Requests per second at which Sarathi RR attains `target` within a threshold (simulated)."""
    world = load_scenario(scenario)
    world = replace(world, slos=(SLO(world.slos[0].name, e2e_s=threshold_s),))

    def attainment(load: float) -> float:
        shares = [
            evaluate(
                world, SARATHI_RR.engine, SARATHI_RR.router, load, seed,
                horizon_s=120.0, warmup_s=40.0, record_itl=False,
            ).summary["slo_attainment"]
            for seed in seeds
        ]  # fmt: skip
        return float(np.mean(shares))

    return highest_load(attainment, target=target, tolerance=0.01)[0] * world.rate_rps


def curve_capacity(rates: Sequence[float], shares: Sequence[float]) -> float:
    """Requests per second at which a curve falls below 90 %; its last rate when it never does."""
    return capacity_of_curve(list(rates), list(shares), TARGET).load


# --- published figures ----------------------------------------------------------------------


def published(name: str) -> pd.DataFrame:
    """A table of published figures; what lies outside the axis ("off") is NaN."""
    return pd.read_csv(PUBLISHED / f"{name}.csv", na_values=["off"])


# --- files ----------------------------------------------------------------------------------


def arguments(description: str, name: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that all scripts have; a variant writes to a folder of its own."""
    options = parser(description, name)
    options.add_argument(
        "--step-model",
        choices=get_args(StepModelFile),
        default="engine",
        help="the authors' file that LENS and PRISM plan with (docs/policies.md)",
    )
    given = options.parse_args(argv)
    if given.out == options.get_default("out"):
        variant = "" if given.step_model == "engine" else f"-{given.step_model}"
        given.out = RESULTS / f"{name}{variant}{'-quick' if given.quick else ''}"
    return given


def write_manifest(
    out: Path,
    results: Sequence[JobResult],
    lines: Sequence[Line],
    inputs: Sequence[str],
    **more: Any,
) -> None:
    """What the results were made from; the progress of an interrupted run is done with."""
    used = {entry["policy"]: entry for result in results for entry in result.policies.values()}
    rows = [result.row for result in results]
    names = [PUBLISHED / f"{name}.csv" for name in inputs]
    content = {
        "command": command_line(),
        "episodes": len(rows),
        "seeds": sorted({row["seed"] for row in rows}),
        "scenarios": {row["scenario"]: row["scenario_hash"] for row in rows},
        "lines": [asdict(line) for line in lines],
        "policies": used,
        "published_inputs": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in names},
        **more,
        **software(),
    }
    write_json(out / "manifest.json", content)
    (out / "progress.jsonl").unlink(missing_ok=True)
