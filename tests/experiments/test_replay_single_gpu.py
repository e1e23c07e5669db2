"""A clock from kernel times, and the measured single-GPU run that it is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.replay import single_gpu as sg
from experiments.step_time.fit_step_latency import fit_clock
from synergy_gym.latency.clock import StepTerms


def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Layers of 2 us + 0.5 us per token (norms 1 us), heads of 100 us + 1 us per sequence."""
    tokens = np.array([1, 4096])
    layers = [
        pd.DataFrame({"layer": name, "tokens": tokens, "time_us": 2 + 0.5 * tokens})
        for name in ("qkv_proj", "down_proj", "embedding")
    ]
    norms = pd.DataFrame({"layer": "layernorm", "tokens": tokens, "time_us": 1.0})
    final = pd.DataFrame({"layer": "final_layernorm", "tokens": tokens, "time_us": 0.0})
    heads = pd.DataFrame({"layer": "lm_head", "sequences": [1, 128], "time_us": [101.0, 228.0]})
    batches = [(0, 0, 4, 1000), (512, 256, 0, 0), (512, 256, 4, 1000), (0, 0, 4, 8192)]
    names = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"]
    attention = pd.DataFrame(batches, columns=names).assign(time_us=10.0)
    return attention, pd.concat([*layers, norms, final]), heads


def test_a_step_is_the_sum_of_its_kernels() -> None:
    steps = sg.kernel_steps(*tables())
    assert steps.batch_size.tolist() == [4, 1, 5]
    assert steps.scheduled_tokens.tolist() == [4, 512, 516]
    assert steps.computed_tokens_decode.tolist() == [4000, 0, 4000]
    assert steps.mixed_context.tolist() == [0, 0, 4000]
    assert steps.computed_tokens_prefill.tolist() == [0, 256, 256]
    assert steps.prefill_attn_pairs.tolist() == [0, *[512 * 256 + 512 * 513 / 2] * 2]
    # 32 x (attention 10, two layers, two norms), then embedding and head.
    decode_us = 32 * (10 + 2 * 4.0 + 2 * 1.0) + 4.0 + 104.0
    assert steps.model_run_ms[0] == pytest.approx(decode_us / 1000)


def test_latencies_of_a_run_are_the_engines_own(tmp_path: Path) -> None:
    row = {"input_toks": 10, "output_toks": 11, "queued_ts": 5.0, "first_token_ts": 5.5}
    rows = [row | {"last_token_ts": 6.5}, row | {"queued_ts": 4.0, "last_token_ts": 7.5}]
    pd.DataFrame(rows).to_json(tmp_path / "run.jsonl", orient="records", lines=True)
    run = sg.read_run(tmp_path / "run.jsonl")
    np.testing.assert_allclose(run.ttft_s, [1.5, 0.5])
    np.testing.assert_allclose(run.tpot_ms, [200.0, 100.0])
    assert sg.to_workload(run).arrival_ns.tolist() == [0, 10**9]


def test_kernel_times_alone_predict_the_run(data_dir: Path) -> None:
    """Nothing is fitted on the run: TPOT within 5 %, E2E within 9 %, both too low."""
    run = sg.read_run(data_dir / sg.RUN)
    steps = sg.kernel_steps(*(pd.read_csv(data_dir / name) for name in sg.PROFILE.values()))
    found = fit_clock(steps, tuple(sg.TERMS))
    rows = sg.compare(run, sg.simulate(run, StepTerms(**found), 8192), 8192)
    errors = {(row["metric"], row["quantile"]): row["error_percent"] for row in rows}
    for quantile in ("P50", "P90", "P99"):
        assert -5 < errors["tpot_ms", quantile] < 0
        assert -9 < errors["e2e_s", quantile] < 0
