"""What an engine adds to its kernels: the loop, the sampler, and a busy GPU; from measurements.

    SYNERGY_GYM_DATA=../shared python -m experiments.step_time.fit_engine_overhead

Each figure is what is measured less the sum of kernels (`synergy_gym/latency/kernels`):

- `sync_ms`: vLLM 0.10.1.1 counters every 0.25 s on one H100 and one A100 (Qwen3-8B; figures of
  grantwilkins/powertrace-sim): windows without new prompts, time per step.
- sampler: ML.ENERGY Benchmark v3 (Apache-2.0; vLLM 0.11.1, asynchronous, default sampling), median
  inter-token latency of Llama-3.1-8B and Qwen3-32B on the H100 by batch. The other models validate
  (experiments/clocks/validate_clocks.py).
- `sustained` of a single H100: the 4,096-token steps of SynergySched's authors (3,058 steps, 104.3
  ms on average, batch 6 to 15, mean context 4,155 tokens; published figures).

Writes `overhead.csv`, `sampler.csv`, `figures.csv` and a manifest to results/fit_engine_overhead/.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import parser, show, write_csv, write_manifest
from synergy_gym.latency.kernels.engine import ASYNC, SYNC
from synergy_gym.latency.kernels.fit import fit_steps, timed_steps
from synergy_gym.latency.kernels.make import Request
from synergy_gym.latency.kernels.step import StepKernels, Work

NAME = "fit_engine_overhead"
COUNTERS = "measurements/powertrace_vllm0101_counters_{gpu}_qwen3-8b.csv"
BLOCKS = {"h100": 25_034, "a100": 25_084}
BLOCK_TOKENS = 16
MOST_PROMPT_TOKENS = 40
"""A window with more new prompt tokens says little of decode steps."""
MLENERGY = "measurements/mlenergy_v3_configurations.csv"
SAMPLER_MODELS = ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B")
SAMPLER_TASK, PROMPT_TOKENS = "lm-arena-chat", 100
"""Prompt lengths are not recorded: short chat prompts, assumed (1,000 tokens more per sequence
would be worth as much as 0.04 ms on an H100 with an 8B model)."""
AUTHORS_STEP_MS, AUTHORS_TOKENS, AUTHORS_BATCH = 104.3, 4096, 10
AUTHORS_CONTEXT, AUTHORS_PAIRS = 4155, 2551
"""Mean context of a decode and mean pairs per prompt token of their FlowGPT log."""


def overhead(data: Path, gpu: str) -> pd.DataFrame:
    """Decode windows of a GPU's counters: measured and summed step time, ms."""
    table = pd.read_csv(data / COUNTERS.format(gpu=gpu))
    kernels = Request("Qwen/Qwen3-8B", gpu).kernels()
    rows = []
    for a, b in zip(table.iloc[:-1].itertuples(), table.iloc[1:].itertuples(), strict=True):
        steps = b.steps_total - a.steps_total
        batch = round((b.gen_total - a.gen_total) / steps)
        prompts = b.prompt_total - a.prompt_total
        if batch < 1 or prompts > MOST_PROMPT_TOKENS:
            continue
        context = BLOCK_TOKENS * BLOCKS[gpu] * (a.kv_usage + b.kv_usage) / 2
        measured = 1e3 * (b.t - a.t) / steps
        summed = kernels.step_ms(Work(batch, int(context)))
        row = {"gpu": gpu, "batch": batch, "measured_ms": measured, "kernels_ms": summed}
        rows.append(row | {"rest_ms": measured - summed})
    return pd.DataFrame(rows)


def decode_kernels(kernels: StepKernels, batch: int, each: float) -> float:
    """Kernels of a decode step with `each` context tokens a sequence, ms."""
    return kernels.step_ms(Work(batch, int(batch * each)))


def sampler(data: Path) -> pd.DataFrame:
    """Inter-token latency by batch less kernels and the asynchronous loop, ms."""
    table = pd.read_csv(data / MLENERGY)
    table = table[table.model.isin(SAMPLER_MODELS) & (table.task == SAMPLER_TASK)]
    table = table[(table.gpu == "H100") & (table.dp == 1) & (table.ep == 1)]
    rows = []
    for row in table.itertuples():
        kernels = Request(row.model, row.gpu.lower(), int(row.tp)).kernels()
        batch = max(round(row.avg_batch), 1)
        summed = decode_kernels(kernels, batch, PROMPT_TOKENS + row.avg_output_len / 2)
        rest = row.itl_p50_ms - summed - ASYNC.ms
        head = {"model": row.model, "tp": row.tp, "batch": batch, "itl_p50_ms": row.itl_p50_ms}
        rows.append(head | {"kernels_ms": summed, "rest_ms": rest})
    return pd.DataFrame(rows)


def sampler_line(rows: pd.DataFrame, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """Line through the rest, relative to the whole step, with bootstrap ranges."""
    rng = np.random.default_rng(seed)

    def line(part: pd.DataFrame) -> Any:
        weights = 1 / part.itl_p50_ms.to_numpy()
        design = np.column_stack([np.ones(len(part)), part.batch]) * weights[:, None]
        return np.linalg.lstsq(design, part.rest_ms.to_numpy() * weights, rcond=None)[0]

    draws = np.array([line(rows.iloc[rng.integers(0, len(rows), len(rows))])
                      for _ in range(resamples)])  # fmt: skip
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    found = line(rows)
    return {
        "sampler_step_ms": (found[0], low[0], high[0]),
        "sampler_per_sequence_ms": (found[1], low[1], high[1]),
    }


def single_gpu_sustained() -> float:
    """Factor of compute-bound work that the authors' 4,096-token steps show."""
    kernels = Request("meta-llama/Llama-3.1-8B-Instruct", "h100").kernels()
    terms = fit_steps(timed_steps(kernels), resamples=0).terms
    decodes = AUTHORS_BATCH - 1
    prompt = AUTHORS_TOKENS - decodes
    context = decodes * AUTHORS_CONTEXT
    fixed = terms["base_ms"] + SYNC.ms + terms["per_sequence_ms"] * AUTHORS_BATCH
    fixed += (terms["per_decode_context_ms"] + terms["per_mixed_context_ms"]) * context
    busy = terms["per_token_ms"] * AUTHORS_TOKENS
    busy += terms["per_prefill_pair_ms"] * AUTHORS_PAIRS * prompt
    return (AUTHORS_STEP_MS - fixed) / busy


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    out = parser(__doc__.splitlines()[0], NAME).parse_args(argv).out
    folder = os.environ.get("SYNERGY_GYM_DATA")
    if not folder:
        raise SystemExit("SYNERGY_GYM_DATA is not set; it names the folder with measurements/")
    data = Path(folder)
    windows = pd.concat([overhead(data, gpu) for gpu in BLOCKS])
    batches = sampler(data)
    figures = []
    for gpu, rest in windows.groupby("gpu").rest_ms:
        error = 1.96 * rest.std()
        figures.append((f"sync_ms {gpu}", rest.mean(), rest.mean() - error, rest.mean() + error))
    figures += [(name, *values) for name, values in sampler_line(batches).items()]
    figures.append(("sustained, single H100", single_gpu_sustained(), np.nan, np.nan))
    table = pd.DataFrame(figures, columns=["figure", "value", "from", "to"])
    show("What an engine adds to its kernels (measured less kernels)", table)
    write_csv(windows, out / "overhead.csv")
    write_csv(batches, out / "sampler.csv")
    write_csv(table, out / "figures.csv")
    names = [COUNTERS.format(gpu=gpu) for gpu in BLOCKS] + [MLENERGY]
    inputs = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in names}
    write_manifest(out, [], [], [], inputs=inputs)


if __name__ == "__main__":
    main()
