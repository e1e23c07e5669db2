"""A clock for an RTX PRO 6000 from measured kernels, and a real vLLM run that it has not seen.

    SYNERGY_GYM_DATA=../shared python -m experiments.step_time.fit_kernel_profile

Kernels (casys-kaist/LLMServingSim, MIT; Llama-3.1-8B): time of every dense layer by tokens, of the
head by sequences, of attention by (prefill chunk, its context, decodes, their context). The layers
of a step are added up, then the simulator's terms are fitted by relative least squares. The check:
300 requests that were sent to vLLM 0.19 on that GPU, sent to the simulated engine. Writes
`profile.toml`, `coefficients.csv` (terms, errors), `check.csv` (measured against simulated) and a
manifest.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments import common
from synergy_gym.evaluation import evaluate
from synergy_gym.evaluation.manifest import software, write_json
from synergy_gym.latency.clock import StepTerms
from synergy_gym.latency.fitting import relative_nnls
from synergy_gym.latency.profile_writer import profile_text, write_profile
from synergy_gym.scenario import load_scenario
from synergy_gym.workload.base import Workload, make_workload

Floats = NDArray[np.float64]
LAYERS = 32
PER_MODEL = ("embedding", "final_layernorm")
"""Dense layers that run once per step; the others run in each of the model's layers."""
NORMS_PER_LAYER = 2
SMALL_TOKENS = 128
"""Up to here a step streams the weights, whatever the batch."""
PATIENCE_S = 1e4
"""An objective so late that the simulated run goes on to its end."""
SOURCE = "kernels measured by casys-kaist/LLMServingSim (MIT): experiments/fit_kernel_profile.py"
HEAD = (
    "One RTX PRO 6000 (Blackwell, 96 GB), bf16: terms fitted on measured kernels whose times are",
    "added up to steps of up to 2048 tokens, contexts up to 16,384 tokens; beyond, extrapolated.",
    "results/fit_kernel_profile/check.csv: a real vLLM 0.19 run, simulated TPOT 4 % shorter, E2E",
    "9 % shorter than measured. What a server's CPU adds to a step is not in it.",
)
RUN_SEQUENCES, RUN_TOKENS = 128, 2048
"""The run's limits: never more than 128 requests at once; vLLM's default budget of tokens."""


def folder() -> Path:
    """Where the measurements are."""
    if "SYNERGY_GYM_DATA" not in os.environ:
        raise SystemExit("set SYNERGY_GYM_DATA to the folder that holds measurements/")
    return Path(os.environ["SYNERGY_GYM_DATA"]) / "measurements"


def linear_ms(root: Path) -> pd.Series:
    """Time of a step without attention and sampling, by tokens, in ms."""
    dense = pd.read_csv(root / "llmservingsim_rtxpro6000_llama31_8b_dense.csv")
    table = dense.pivot_table("time_us", "tokens", "layer")
    table["layernorm"] *= NORMS_PER_LAYER
    once = table[list(PER_MODEL)].sum(axis=1)
    total: pd.Series = (LAYERS * table.drop(columns=list(PER_MODEL)).sum(axis=1) + once) / 1e3
    return total


def head_ms(root: Path) -> pd.Series:
    """Time of head and sampler, by sequences, in ms."""
    head = pd.read_csv(root / "llmservingsim_rtxpro6000_llama31_8b_per_sequence.csv")
    return head.pivot_table("time_us", "sequences", "layer").sum(axis=1) / 1e3


def steps(root: Path) -> pd.DataFrame:
    """Whole steps: every measured attention with the dense layers of its tokens."""
    rows = pd.read_csv(root / "llmservingsim_rtxpro6000_llama31_8b_attention.csv")
    dense, head = linear_ms(root), head_ms(root)
    tokens = rows.prefill_chunk + rows.n_decode
    sequences = rows.n_decode + (rows.prefill_chunk > 0)
    rows = rows.assign(tokens=tokens, sequences=sequences)[tokens.between(1, dense.index.max())]
    step = np.interp(rows.tokens, dense.index, dense) + LAYERS * rows.time_us / 1e3
    rows["step_ms"] = step + np.interp(rows.sequences, head.index, head)
    rows["context"] = rows.n_decode * rows.kv_decode
    rows["mixed"] = rows.context * (rows.prefill_chunk > 0)
    chunk = rows.prefill_chunk
    rows["pairs"] = chunk * rows.kv_prefill + chunk * (chunk + 1) / 2
    return rows.reset_index(drop=True)


COLUMNS = ("base", "sequences", "tokens", "context", "pairs", "mixed")


def fit(rows: pd.DataFrame, floor_ms: float) -> tuple[Floats, Floats]:
    """Coefficients in the order of `COLUMNS`, and the relative errors of the steps."""
    large = rows.tokens > SMALL_TOKENS
    design = rows.assign(base=1.0)[list(COLUMNS)].to_numpy(float)
    measured = rows.step_ms.to_numpy(float)
    found, _ = relative_nnls(design[large], measured[large])
    linear = np.maximum(design[:, :3] @ found[:3], floor_ms)
    predicted = linear + design[:, 3:] @ found[3:]
    return found, predicted / measured - 1


def terms(found: Floats, floor_ms: float) -> StepTerms:
    """The simulator's clock."""
    base, sequence, token, context, pair, mixed = found.tolist()
    return StepTerms(
        base_ms=base,
        per_sequence_ms=sequence,
        per_token_ms=token,
        per_decode_context_ms=context,
        per_prefill_pair_ms=pair,
        per_mixed_context_ms=mixed,
        floor_ms=floor_ms,
        noise_sd=0.03,
    )


def measured_run(root: Path) -> tuple[Workload, pd.DataFrame]:
    """The requests of the real run, and its latencies."""
    run = pd.read_json(root / "llmservingsim_vllm_run_rtxpro6000_llama-3.1-8b.jsonl", lines=True)
    run = run.sort_values("queued_ts", kind="stable")
    arrival_ns = ((run.queued_ts - run.queued_ts.min()) * 1e9).round().astype(np.int64)
    lengths = (run.input_toks.to_numpy(), run.output_toks.to_numpy())
    workload = make_workload(arrival_ns.to_numpy(), *lengths)
    gaps = (run.output_toks - 1).clip(lower=1)
    latencies = pd.DataFrame(
        {
            "ttft_s": run.first_token_ts - run.queued_ts,
            "tpot_s": (run.last_token_ts - run.first_token_ts) / gaps,
            "e2e_s": run.last_token_ts - run.queued_ts,
        }
    )
    return workload, latencies


def check(root: Path, clock: StepTerms) -> pd.DataFrame:
    """Quantiles of the real run beside those of the same requests in the simulator."""
    workload, measured = measured_run(root)
    base = load_scenario("chat-h100")
    engine = replace(base.engines[0], max_num_seqs=RUN_SEQUENCES, max_num_batched_tokens=RUN_TOKENS)
    slo = replace(base.slos[0], e2e_s=PATIENCE_S)
    world = replace(base, engines=(engine,), terms=(clock,), slos=(slo,))
    simulated = evaluate(world, "vllm-v1", workload=workload).requests
    table = []
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        for share in (0.5, 0.9):
            real, sim = measured[name].quantile(share), simulated[name].quantile(share)
            row = {"figure": name, "quantile": share, "measured": real, "simulated": sim}
            table.append({**row, "error": sim / real - 1})
    return pd.DataFrame(table)


def main() -> None:
    """Command line."""
    given = common.parser("A clock from measured kernels", "fit_kernel_profile").parse_args()
    root = folder()
    rows = steps(root)
    floor_ms = float(linear_ms(root).loc[:16].mean() + head_ms(root).loc[1])
    found, errors = fit(rows, floor_ms)
    clock = terms(found, floor_ms)
    mape, worst = float(np.abs(errors).mean()), float(np.quantile(np.abs(errors), 0.95))
    values = {**dict(zip(COLUMNS, found.tolist(), strict=True)), "floor": floor_ms}
    coefficients = pd.DataFrame([{**values, "steps": len(rows), "mape": mape, "p95": worst}])
    table = check(root, clock)
    common.write_csv(coefficients, given.out / "coefficients.csv")
    common.write_csv(table, given.out / "check.csv")
    text = profile_text(
        gpu="1xRTX-PRO-6000",
        model="meta-llama/Llama-3.1-8B-Instruct",
        source=SOURCE,
        terms=clock,
        head=[*HEAD, f"Fitted on {len(rows)} steps: MAPE {100 * mape:.1f} %."],
        comments={"noise_sd": "not measured; the lower end of 3 to 5 %"},
    )
    write_profile(given.out / "profile.toml", text)
    write_json(given.out / "manifest.json", {"command": common.command_line(), **software()})
    common.show("Terms in ms per unit, and errors of the steps", coefficients)
    common.show("A real vLLM run against its simulation", table)


if __name__ == "__main__":
    main()
