"""Play a measured single-GPU vLLM run again with a clock made of kernel times alone.

Command (from the repository root; SYNERGY_GYM_DATA names the folder that holds
`measurements/llmservingsim_*`):

    SYNERGY_GYM_DATA=../shared .venv/bin/python -m experiments.replay.single_gpu

The run: vLLM 0.19, Llama-3.1-8B on one RTX PRO 6000, 300 ShareGPT requests at 10 per second
(casys-kaist/LLMServingSim). The clock: sums of that project's kernel profile of the same GPU
(attention of mixed batches, linear layers, LM head), to which the simulator's terms are fitted.
Nothing is fitted on the run. Writes `comparison.csv`, `coefficients.csv`, `cdfs.png` and
`manifest.json` to `results/replay_single_gpu/`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import figure, parser, save, show, write_csv, write_manifest
from experiments.step_time.fit_step_latency import TERMS, clock_ms, fit_clock, scores
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.clock import StepTerms
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import NS_PER_S, EngineSpec, FloatArray
from synergy_gym.workload.base import Workload, make_workload

NAME = "replay_single_gpu"
PREFIX = "measurements/llmservingsim_"
RUN = f"{PREFIX}vllm_run_rtxpro6000_llama-3.1-8b.jsonl"
PROFILE = {
    n: f"{PREFIX}rtxpro6000_llama31_8b_{n}.csv" for n in ("attention", "dense", "per_sequence")
}
LAYERS = 32
ONCE = ("embedding", "final_layernorm")
TWICE = "layernorm"
"""Before attention and before the MLP."""
MAX_CONTEXT, MAX_RUNNING = 4096, 128
"""The run's longest sequence, and the most requests that it ever ran at once."""
BUDGETS = (2048, 8192)
"""vLLM's defaults of `max_num_batched_tokens`; which one the run had is not recorded."""
METRICS = ("ttft_s", "tpot_ms", "e2e_s")
PERCENTILES = (50, 90, 99)


# --- the clock ------------------------------------------------------------------------------


def kernel_steps(attention: pd.DataFrame, dense: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """Step times in ms as sums of kernel times, one row per profiled attention batch.

    The columns are those that `fit_step_latency.fit_clock` reads.
    """
    rows = attention[attention[["kv_prefill", "kv_decode"]].max(axis=1) <= MAX_CONTEXT]
    rows = rows[rows.n_decode <= MAX_RUNNING].reset_index(drop=True)
    chunk, decodes, before = (
        rows[n].to_numpy() for n in ("prefill_chunk", "n_decode", "kv_prefill")
    )
    tokens, sequences = chunk + decodes, decodes + (chunk > 0)
    context = rows.n_decode * rows.kv_decode
    per_layer = rows.time_us.to_numpy() + _dense_us(dense, tokens)
    once = sum(_at(dense[dense.layer == name], "tokens", tokens) for name in ONCE)
    once = once + sum(_at(part, "sequences", sequences) for _, part in heads.groupby("layer"))
    return pd.DataFrame(
        {
            "batch_size": sequences,
            "scheduled_tokens": tokens,
            "computed_tokens_decode": context,
            "prefill_attn_pairs": chunk * before + chunk * (chunk + 1) / 2,
            "computed_tokens_prefill": before * (chunk > 0),
            "mixed_context": context * ((chunk > 0) & (decodes > 0)),
            "model_run_ms": (LAYERS * per_layer + once) / 1000,
        }
    )


def _dense_us(dense: pd.DataFrame, tokens: Any) -> FloatArray:
    total = np.zeros(len(tokens))
    for layer, part in dense.groupby("layer"):
        if layer not in ONCE:
            total += _at(part, "tokens", tokens) * (2 if layer == TWICE else 1)
    return total


def _at(part: pd.DataFrame, key: str, where: Any) -> FloatArray:
    part = part.sort_values(key)
    return np.interp(where, part[key].to_numpy(float), part.time_us.to_numpy(float))


# --- the run --------------------------------------------------------------------------------


def read_run(path: Path) -> pd.DataFrame:
    """One row per request in order of arrival at the engine, with its latencies."""
    frame = pd.read_json(path, lines=True, dtype=False)
    frame = frame.sort_values("queued_ts", kind="stable").reset_index(drop=True)
    frame["ttft_s"] = frame.first_token_ts - frame.queued_ts
    frame["e2e_s"] = frame.last_token_ts - frame.queued_ts
    frame["tpot_ms"] = 1000 * (frame.e2e_s - frame.ttft_s) / (frame.output_toks - 1)
    return frame


def to_workload(run: pd.DataFrame) -> Workload:
    """Arrivals and lengths; the prompts have nothing in common."""
    arrival = (run.queued_ts - run.queued_ts.min()).to_numpy() * NS_PER_S
    return make_workload(
        np.round(arrival).astype(np.int64),
        run.input_toks.to_numpy(np.int64),
        run.output_toks.to_numpy(np.int64),
    )


def engine(terms: StepTerms, budget: int) -> Scenario:
    """One engine like the run's. Its KV cache (tens of GiB) never fills: 128 x 5,000 tokens."""
    scenario = load_scenario("chat-h100")
    spec = EngineSpec(
        name="rtxpro6000",
        gpu="1xRTX PRO 6000",
        model="meta-llama/Llama-3.1-8B",
        profile="kernel times",
        max_num_seqs=MAX_RUNNING,
        max_num_batched_tokens=budget,
        max_model_len=8192,
        kv_blocks=40_000,
    )
    slos = tuple(replace(slo, e2e_s=3600.0) for slo in scenario.slos)
    return replace(scenario, engines=(spec,), terms=(terms,), slos=slos, warmup_s=0.0)


def simulate(run: pd.DataFrame, terms: StepTerms, budget: int) -> pd.DataFrame:
    """The same requests on the simulated engine, stock scheduling."""
    result = evaluate(engine(terms, budget), "vllm-v1", workload=to_workload(run), record_itl=False)
    table = result.requests
    return table.assign(tpot_ms=1000 * table.tpot_s)[list(METRICS)]


def compare(run: pd.DataFrame, simulated: pd.DataFrame, budget: int) -> list[dict[str, Any]]:
    """Quantiles, and the median absolute error per request."""
    rows = []
    for metric in METRICS:
        apart = np.abs(simulated[metric] / run[metric] - 1)
        for percentile in PERCENTILES:
            real, played = (float(np.percentile(f[metric], percentile)) for f in (run, simulated))
            row = {"max_num_batched_tokens": budget, "metric": metric, "quantile": f"P{percentile}"}
            row |= {"measured": real, "simulated": played}
            row |= {"error_percent": 100 * (played / real - 1)}
            rows.append(row | {"median_error_per_request_percent": 100 * float(apart.median())})
    return rows


def plot(run: pd.DataFrame, played: dict[int, pd.DataFrame], path: Path) -> None:
    """Distribution of each metric, measured and simulated."""
    chart, axes = figure(1, len(METRICS))
    lines = {"measured": run} | {f"simulated, budget {b}": frame for b, frame in played.items()}
    for axis, metric in zip(axes[0], METRICS, strict=True):
        for (label, frame), style in zip(lines.items(), ("-", "--", ":"), strict=True):
            values = np.sort(frame[metric].to_numpy())
            axis.plot(values, np.linspace(0, 1, len(values)), style, label=label)
        axis.set(xlabel=metric, ylim=(0, 1), xlim=(0, None))
    axes[0][0].set_ylabel("share")
    axes[0][0].legend(fontsize=7)
    chart.suptitle("Llama-3.1-8B on one RTX PRO 6000: measured run, clock from kernel times")
    save(chart, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    out = parser("Replay a single-GPU vLLM run.", NAME).parse_args(argv).out
    folder = os.environ.get("SYNERGY_GYM_DATA")
    if not folder:
        raise SystemExit("SYNERGY_GYM_DATA is not set; it names the folder with measurements/")
    data = Path(folder)
    run = read_run(data / RUN)
    steps = kernel_steps(*(pd.read_csv(data / name) for name in PROFILE.values()))
    found = fit_clock(steps, tuple(TERMS))
    quality = scores(steps.model_run_ms.to_numpy(), clock_ms(found, steps))
    played = {budget: simulate(run, StepTerms(**found), budget) for budget in BUDGETS}
    rows = [row for budget in BUDGETS for row in compare(run, played[budget], budget)]
    coefficients = pd.DataFrame([found | {"steps": len(steps)} | quality])
    show("Clock fitted on sums of kernel times (ms)", coefficients.T.reset_index())
    show("Measured against simulated", pd.DataFrame(rows))
    write_csv(coefficients, out / "coefficients.csv")
    write_csv(pd.DataFrame(rows), out / "comparison.csv")
    plot(run, played, out / "cdfs.png")
    names = (RUN, *PROFILE.values())
    inputs = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in names}
    write_manifest(out, [], ["vllm-v1"], [], inputs=inputs)


if __name__ == "__main__":
    main()
