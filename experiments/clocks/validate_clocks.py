"""Hold the clocks against measurements that nobody fitted them to (docs/clocks.md).

    SYNERGY_GYM_DATA=../shared python -m experiments.clocks.validate_clocks --split    # once
    SYNERGY_GYM_DATA=../shared python -m experiments.clocks.validate_clocks --processes 2
    SYNERGY_GYM_DATA=../shared python -m experiments.clocks.validate_clocks --quick

Every row of every source is to be fitted or to validate, by its id, in `published/clock_split.csv`;
`--split` writes that file and refuses to change it. Variants (asynchronous or synchronous loop,
greedy or top-p sampling) follow from version and client, fixed in `clock_deployments.PROTOCOLS`.

Writes to results/validate_clocks/: `deployments.csv` (one-node deployments, TPOT and TTFT),
`cells.csv`, `totals.csv`, `rank.csv`, `mlenergy.csv`, `mlenergy_cells.csv`, `runs.csv` (arrivals
recorded), `contrasts.csv`, `contrasts_summary.csv`, `held_out_errors.csv` (what the clock `table`
draws from) and a manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.clocks import contrasts as clock_contrasts
from experiments.clocks.deployments import (
    MOE,
    PROTOCOLS,
    contradicted,
    predictions,
    read_deployments,
)
from experiments.clocks.runs import run_rows
from experiments.common import parser, play, show, write_csv, write_manifest
from experiments.replay.eight_h100 import LENS_RR_07, UNSEEN, read_coefficients
from experiments.step_time.fit_engine_overhead import MLENERGY, SAMPLER_MODELS, SAMPLER_TASK
from synergy_gym.latency.kernels.engine import ASYNC, TOP_P
from synergy_gym.latency.kernels.errors import ClockError
from synergy_gym.latency.kernels.hardware import GPUS
from synergy_gym.latency.kernels.make import Request
from synergy_gym.latency.kernels.step import Work

NAME = "validate_clocks"
SPLIT = Path(__file__).parents[1] / "published" / "clock_split.csv"
ENOUGH_ROWS = 10
NEAR = 1.25
"""Pairs of configurations whose measured TPOT is further apart are too easy to rank."""
PROMPT_TOKENS = {"lm-arena-chat": 100, "gpqa": 250, "sourcegraph-fim": 200}
"""ML.ENERGY records no prompt lengths; assumed. Tasks with images are left out."""
ALIASES = {"meta-llama/Llama-3.1-405B-Instruct": "meta-llama/Meta-Llama-3.1-405B"}
MOST_BATCH = 512
"""Beyond, ML.ENERGY's B200 rows wait for something that is no kernel: latency doubles at once."""
QUANTILES = 81
RANKED = (
    (("vllm",), ("dense", "moe")),
    (("vllm",), ("dense",)),
    (("vllm",), ("moe",)),
    (("vllm", "trtllm"), ("dense", "moe")),
)
GOALS = {("dense", "1-2"): 3.0, ("dense", "4-8"): 6.0, ("moe", "1-2"): 12.0, ("moe", "4-8"): 12.0}
P90_GOAL = 12.0


# --- which row is for what ---------------------------------------------------------------------


def split_rows(data: Path) -> pd.DataFrame:
    """Every row of every source: id, and whether it is fitted or validates."""
    rows = [("silicon_sample.csv", d.row_id, "validate") for d in read_deployments()]
    energy = pd.read_csv(data / MLENERGY)
    for at, row in energy.iterrows():
        fit = row.model in SAMPLER_MODELS and row.task == SAMPLER_TASK and row.gpu == "H100"
        rows.append((Path(MLENERGY).name, str(at), "fit" if fit else "validate"))
    rows += [("powertrace counters", gpu, "fit") for gpu in ("h100", "a100")]
    rows += [("8xh100 runs", str(run), "leave one out") for run in _runs()]
    rows.append(("llmservingsim rtxpro6000", "llama-3.1-8b", "validate"))
    return pd.DataFrame(rows, columns=["source", "row_id", "use"])


def _runs() -> list[Any]:
    from experiments.replay.runs import RUNS

    return list(RUNS)


def write_split(data: Path) -> None:
    """Write the split, once.

    Raises:
        SystemExit: it exists and is another.
    """
    table = split_rows(data)
    if SPLIT.is_file():
        if not pd.read_csv(SPLIT, dtype=str).equals(table):
            raise SystemExit(f"{SPLIT}: is another split than this script makes; keep the file")
        return
    write_csv(table, SPLIT)


def validating(source: str) -> set[str]:
    """Ids of a source's rows that validate.

    Raises:
        SystemExit: no split is written yet.
    """
    if not SPLIT.is_file():
        raise SystemExit(f"{SPLIT} not found; run this script with --split first")
    table = pd.read_csv(SPLIT, dtype=str)
    return set(table[(table.source == source) & (table.use == "validate")].row_id)


# --- deployments -------------------------------------------------------------------------------


def deployments(processes: int, quick: bool) -> pd.DataFrame:
    """Measured and simulated TPOT and TTFT of every deployment and variant."""
    allowed = validating("silicon_sample.csv")
    chosen = [d for d in read_deployments() if d.row_id in allowed]
    if quick:
        chosen = chosen[:: max(len(chosen) // 60, 1)]
    each = partial(predictions, contradicted=contradicted(chosen))
    rows = [row for found in play(each, chosen, processes) for row in found]
    table = pd.DataFrame(rows)
    table["tpot_error"] = table.tpot_ms / table.measured_tpot_ms - 1
    table["ttft_error"] = table.ttft_ms / table.measured_ttft_ms - 1
    return table


UNIQUE = [
    "gpu", "model", "family", "engine", "tp", "precision", "cache", "prompt", "output",
    "concurrency", "loop", "sampling", "sustained", "labelled",
]  # fmt: skip


def unique(table: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration and variant: what was measured more than once is averaged."""
    played = table[table.left_out == ""]
    numbers = ["measured_tpot_ms", "measured_ttft_ms", "tpot_ms", "ttft_ms"]
    merged = played.groupby(UNIQUE, sort=False)[numbers].mean().reset_index()
    merged["tpot_error"] = merged.tpot_ms / merged.measured_tpot_ms - 1
    merged["kind"] = np.where(merged.family.isin(MOE), "moe", "dense")
    merged["gpus"] = np.where(merged.tp <= 2, "1-2", "4-8")
    return merged


def cells(merged: pd.DataFrame) -> pd.DataFrame:
    """Bias, median and P90 of the absolute TPOT error by GPU, family, engine and variant, in %."""
    keys = ["gpu", "family", "kind", "engine", "precision", "gpus", "labelled", "loop", "sampling"]
    rows = []
    for key, part in merged.groupby([*keys, "sustained"], sort=True):
        row = dict(zip([*keys, "sustained"], key, strict=True)) | _errors(part.tpot_error)
        counts = row["labelled"] and row["engine"] == "vllm" and len(part) >= ENOUGH_ROWS
        goal = GOALS[row["kind"], row["gpus"]] if counts and row["sustained"] == "fitted" else None
        row["goal_percent"] = goal
        row["within"] = "" if goal is None else _within(row["median_percent"], goal)
        row["p90_within"] = "" if goal is None else _within(row["p90_percent"], P90_GOAL)
        rows.append(row)
    return pd.DataFrame(rows)


def _errors(errors: pd.Series[float]) -> dict[str, Any]:
    """How many, bias (median), median and P90 of the absolute values, in percent."""
    absolute = errors.abs()
    return {
        "rows": len(errors),
        "bias_percent": 100 * errors.median(),
        "median_percent": 100 * absolute.median(),
        "p90_percent": 100 * absolute.quantile(0.9),
    }


def _within(percent: float, goal: float) -> str:
    return "yes" if percent <= goal else "no"


def totals(merged: pd.DataFrame) -> pd.DataFrame:
    """The same over all cells, by engine, kind of model and GPUs, labelled rows only."""
    chosen = merged[merged.labelled & (merged.sustained == "fitted")]
    return pd.DataFrame(
        [
            {"engine": engine, "kind": kind, "gpus": gpus, **_errors(part.tpot_error)}
            for (engine, kind, gpus), part in chosen.groupby(["engine", "kind", "gpus"])
        ]
    )


def rank(merged: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau of configurations at equal model, lengths and concurrency, beside two dummies.

    Only pairs whose measured TPOT lies within `NEAR` of one another count. A dummy knows the
    number of GPUs, the other also their memory bandwidth.
    """
    table = merged[(merged.sustained == "fitted") & merged.labelled]
    bandwidth = {name: gpu.bandwidth_bytes_per_ms for name, gpu in GPUS.items()}
    table = table.assign(
        dummy_tp=1 / table.tp, dummy_bandwidth=1 / (table.tp * table.gpu.map(bandwidth))
    )
    rows = []
    for engines, kinds in RANKED:
        part = table[table.engine.isin(engines) & table.kind.isin(kinds)]
        row: dict[str, Any] = {"engines": " + ".join(engines), "models": " + ".join(kinds)}
        for name in ("tpot_ms", "dummy_tp", "dummy_bandwidth"):
            row["pairs"], row[f"tau_{name}"] = _tau(part, name)
        rows.append(row)
    return pd.DataFrame(rows)


def _tau(table: pd.DataFrame, column: str) -> tuple[int, float]:
    """Pairs, and concordant less discordant ones over them (tied predictions count half)."""
    pairs, score = 0, 0.0
    for _, part in table.groupby(["model", "prompt", "output", "concurrency"]):
        for a, b in combinations(part.to_dict("records"), 2):
            ratio = a["measured_tpot_ms"] / b["measured_tpot_ms"]
            if not 1 / NEAR <= ratio <= NEAR or ratio == 1:
                continue
            pairs += 1
            score += float(np.sign(ratio - 1) * np.sign(a[column] - b[column]))
    return pairs, score / pairs if pairs else float("nan")


def write_deployments(table: pd.DataFrame, out: Path) -> None:
    """Rows, and what they add up to."""
    merged = unique(table)
    write_csv(table, out / "deployments.csv")
    parts = {"cells": cells(merged), "totals": totals(merged), "rank": rank(merged)}
    for name, part in parts.items():
        write_csv(part, out / f"{name}.csv")
        show(f"Deployments: {name}", part)
    write_csv(held_out(merged), out / "held_out_errors.csv")


def held_out(merged: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of the TPOT errors of labelled vLLM deployments, their median taken off."""
    chosen = merged[merged.labelled & (merged.engine == "vllm") & (merged.sustained == "fitted")]
    errors = chosen.tpot_error - chosen.groupby(["gpu", "family"]).tpot_error.transform("median")
    levels = np.linspace(0.05, 0.95, QUANTILES)
    return pd.DataFrame({"level": levels, "relative_error": np.quantile(errors, levels)})


# --- ML.ENERGY -----------------------------------------------------------------------------------


def mlenergy(data: Path) -> pd.DataFrame:
    """Median inter-token latency of models that the sampler was not fitted on."""
    table = pd.read_csv(data / MLENERGY)
    allowed = validating(Path(MLENERGY).name)
    table = table[[str(at) in allowed for at in table.index]]
    table = table[table.task.isin(PROMPT_TOKENS) & (table.dp == 1) & (table.ep == 1)]
    rows = []
    for row in table[table.avg_batch <= MOST_BATCH].itertuples():
        try:
            request = Request(ALIASES.get(row.model, row.model), row.gpu.lower(), int(row.tp))
            kernels = request.kernels()
        except ClockError:
            continue
        batch = max(round(row.avg_batch), 1)
        each = PROMPT_TOKENS[row.task] + row.avg_output_len / 2
        step = kernels.step_ms(Work(batch, int(batch * each))) + ASYNC.ms
        step += TOP_P.step_ms + TOP_P.per_sequence_ms * batch
        head = {"model": row.model, "gpu": row.gpu, "tp": row.tp, "task": row.task}
        head |= {"batch": batch, "measured_itl_p50_ms": row.itl_p50_ms, "itl_ms": step}
        rows.append(head | {"error": step / row.itl_p50_ms - 1})
    return pd.DataFrame(rows)


def mlenergy_cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Errors by model and GPU, in %."""
    grouped = rows.groupby(["model", "gpu"]).error
    table = grouped.agg(rows="size", bias_percent="median").reset_index()
    absolute = rows.assign(error=rows.error.abs()).groupby(["model", "gpu"]).error
    table["median_percent"] = 100 * absolute.median().to_numpy()
    table["p90_percent"] = 100 * absolute.quantile(0.9).to_numpy()
    table.bias_percent *= 100
    return table


# --- all ------------------------------------------------------------------------------------


def policy_contrasts(data: Path, quick: bool, processes: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs of policies, and what they add up to."""
    found = clock_contrasts.read_cells(pd.read_csv(data / clock_contrasts.CELLS))
    if quick:
        found = [cell for cell in found if cell.mode == "timestamp" and cell.upper == 0.5]
    stock = read_coefficients()[str(LENS_RR_07)]
    rows = clock_contrasts.contrasts(found, data, UNSEEN, stock, processes)
    return rows, clock_contrasts.summary(rows)


def _inputs(data: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in names}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__.splitlines()[0], NAME)
    options.add_argument("--split", action="store_true", help="write which row is for what, once")
    options.add_argument("--only", choices=("deployments", "mlenergy", "runs", "contrasts"))
    given = options.parse_args(argv)
    folder = os.environ.get("SYNERGY_GYM_DATA")
    if not folder:
        raise SystemExit("SYNERGY_GYM_DATA is not set; it names the folder with measurements/")
    data, out = Path(folder), given.out
    if given.split:
        write_split(data)
        return
    if given.only in (None, "deployments"):
        write_deployments(deployments(given.processes, given.quick), out)
    if given.only in (None, "mlenergy"):
        rows = mlenergy(data)
        write_csv(rows, out / "mlenergy.csv")
        write_csv(mlenergy_cells(rows), out / "mlenergy_cells.csv")
        show("ML.ENERGY, median inter-token latency", mlenergy_cells(rows))
    if given.only in (None, "runs"):
        runs = run_rows(data)
        write_csv(runs, out / "runs.csv")
        show("Runs whose arrivals are recorded", runs)
    if given.only in (None, "contrasts"):
        rows, signs = policy_contrasts(data, given.quick, given.processes)
        write_csv(rows, out / "contrasts.csv")
        write_csv(signs, out / "contrasts_summary.csv")
        show("Differences between policies", signs)
    names = (MLENERGY, clock_contrasts.CELLS)
    protocols = {name: p.evidence for name, p in PROTOCOLS.items()}
    write_manifest(out, [], [], [], inputs=_inputs(data, names), protocols=protocols)


if __name__ == "__main__":
    main()
