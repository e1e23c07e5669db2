"""The clock's form and the packaged A6000 profile against measured steps (needs the data)."""

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from synergy_gym.latency.clock import NOISE, step_ns
from synergy_gym.latency.profiles import load_profile
from tests.loading import load_script

DATA = os.environ.get("SYNERGY_GYM_DATA")
STEPS = Path(DATA or ".") / "measurements" / "profiling_steps.csv"

pytestmark = pytest.mark.skipif(
    not (DATA and STEPS.is_file()),
    reason="SYNERGY_GYM_DATA has no measurements/profiling_steps.csv",
)


@pytest.fixture(scope="module")
def fit() -> ModuleType:
    return load_script("experiments/step_time/fit_step_latency.py")


@pytest.fixture(scope="module")
def pair(fit: ModuleType) -> pd.DataFrame:
    steps: pd.DataFrame = fit.read_steps(STEPS)
    return steps[steps.gpu == "A6000"].reset_index(drop=True)


def _simulated_ms(steps: pd.DataFrame) -> np.ndarray:
    clock = load_profile("2xa6000-llama-3.1-8b").terms.clock()
    clock[NOISE] = 0
    times = []
    for row in steps.itertuples():
        prefill = int(row.n_prefill_chunks > 0)
        mixed = int(prefill and row.n_decode > 0)
        context, pairs = int(row.computed_tokens_decode), int(row.prefill_attn_pairs)
        size, tokens = int(row.batch_size), int(row.scheduled_tokens)
        prefill_context = int(row.computed_tokens_prefill)
        args = (0, size, tokens, context, pairs, prefill_context, prefill, mixed)
        times.append(step_ns(clock, *args) / 1e6)
    return np.array(times)


def test_each_page_is_predicted_from_the_others(fit: ModuleType, pair: pd.DataFrame) -> None:
    predicted = fit.held_out(pair, fit.A6000_FITS["clock (packaged profile)"])
    scores = fit.scores(pair.model_run_ms.to_numpy(float), predicted)
    assert scores["mape_percent"] <= 3
    assert scores["r2"] >= 0.99


def test_the_packaged_profile_is_that_fit(fit: ModuleType, pair: pd.DataFrame) -> None:
    terms = load_profile("2xa6000-llama-3.1-8b").terms
    for name, value in fit.fit_clock(pair).items():
        assert getattr(terms, name) == pytest.approx(value, rel=1e-3), name


def test_the_simulators_clock_reproduces_measured_steps(
    fit: ModuleType, pair: pd.DataFrame
) -> None:
    scores = fit.scores(pair.model_run_ms.to_numpy(float), _simulated_ms(pair))
    assert scores["mape_percent"] <= 3
    assert scores["r2"] >= 0.99


def test_the_clock_beats_simpler_forms(fit: ModuleType, pair: pd.DataFrame) -> None:
    measured = pair.model_run_ms.to_numpy(float)
    error = {
        name: fit.scores(measured, fit.held_out(pair, model))["mape_percent"]
        for name, model in fit.A6000_FITS.items()
    }
    best = error.pop("clock (packaged profile)")
    assert best < min(error.values())
