"""Measured runs whose arrivals and lengths are recorded: TTFT, TPOT and E2E, nothing fitted.

One RTX PRO 6000 (casys-kaist/LLMServingSim, MIT): 300 ShareGPT requests sent to vLLM 0.19, whose
scheduling is asynchronous by default. The 8xH100 runs are in replay_8xh100.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.step_time.fit_kernel_profile import (
    PATIENCE_S,
    RUN_SEQUENCES,
    RUN_TOKENS,
    measured_run,
)
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.profiles import load_profile
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import EngineSpec

PROFILE = "rtxpro6000-llama-3.1-8b"
GOALS = {"ttft_s": 20.0, "tpot_s": 8.0}
PERCENTILES = (50, 90, 99)


def world() -> Scenario:
    """One engine with the run's limits."""
    profile = load_profile(PROFILE)
    base = load_scenario("chat-h100")
    spec = EngineSpec(
        name="rtxpro6000",
        gpu=profile.gpu,
        model=profile.model,
        profile=PROFILE,
        max_num_seqs=RUN_SEQUENCES,
        max_num_batched_tokens=RUN_TOKENS,
        max_model_len=8192,
        kv_blocks=40_000,
    )
    terms = profile.timed("async")
    slos = tuple(replace(slo, e2e_s=PATIENCE_S) for slo in base.slos)
    return replace(
        base, engines=(spec,), terms=(terms,), measured_terms=(terms,), slos=slos, warmup_s=0.0,
        horizon_s=PATIENCE_S,
    )  # fmt: skip


def run_rows(data: Path) -> pd.DataFrame:
    """A row per metric and quantile."""
    workload, measured = measured_run(data / "measurements")
    result = evaluate(world(), "vllm-v1", workload=workload, record_itl=False)
    rows: list[dict[str, Any]] = []
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        for percentile in PERCENTILES:
            real = float(np.percentile(measured[name], percentile))
            played = float(np.percentile(result.requests[name], percentile))
            error = 100 * (played / real - 1)
            goal = GOALS.get(name) if percentile == 50 else None
            rows.append(
                {
                    "run": "1xRTX PRO 6000, vLLM 0.19", "metric": name,
                    "quantile": f"P{percentile}", "measured": real, "simulated": played,
                    "error_percent": error, "goal_percent": goal,
                    "within": "" if goal is None else "yes" if abs(error) <= goal else "no",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
