"""Rows of the accuracy table of `model_adaptation.py`: published, measured, simulated.

R2 and MAPE over all steps, decode-only steps and mixed steps (any step with a prefill). R2 of
decode-only steps compares with the mean of those steps, so it is far below the R2 of all steps,
whose variance is made by the prefills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.step_time.fit_step_latency import A6000_FITS, held_out, read_steps
from experiments.step_time.step_streams import (
    Stream,
    measured_stream,
    predict,
    record,
    replay,
    single_engine,
)
from synergy_gym.latency.clock import NOISE, StepTerms, step_ns
from synergy_gym.latency.models.online import ContextAwareModel
from synergy_gym.latency.models.published import published_model
from synergy_gym.latency.models.saturation_fit import FitError, Form, fit_saturation
from synergy_gym.types import EngineSpec, FloatArray

Row = dict[str, Any]
FORMS: tuple[Form, ...] = ("stable", "six", "eight")
AUTHORS_SCALES = (7.0, 9.0)
TRAIN_SEED, TEST_SEED = 2000, 2001
"""Two validation seeds of the scenarios."""
LOAD, HORIZON_S = 0.8, 150.0

# Source, model, steps, R2 and MAPE (%) of all steps, the same of decode-only steps.
_IN_PAPER = "paper, range over its GPUs"
_FITS = "authors' stored fits, in-sample"
_LOGS = "authors' logs, evaluated again"
_PUBLISHED: tuple[tuple[str, str, str, int | None, float, float, float, float], ...] = (
    ("published", _IN_PAPER, "T(B,S), lowest", None, 0.95, np.nan, np.nan, np.nan),
    ("published", _IN_PAPER, "T(B,S), highest", None, 0.99, np.nan, np.nan, np.nan),
    ("published", _FITS, "stable, H100 8B", 312_620, 0.99378, np.nan, np.nan, np.nan),
    ("published", _FITS, "stable, A100 8B", 66_495, 0.98179, np.nan, np.nan, np.nan),
    ("published", _FITS, "stable, 2xA6000 8B", 66_328, 0.98399, np.nan, np.nan, np.nan),
    ("published", _FITS, "stable, H100 QwQ-32B", 46_162, 0.97063, np.nan, np.nan, np.nan),
    ("published", _FITS, "eight, H100 8B", 312_620, 0.99523, np.nan, np.nan, np.nan),
    ("published", _FITS, "eight, A100 8B", 66_495, 0.98840, np.nan, np.nan, np.nan),
    ("published", _FITS, "eight, 2xA6000 8B", 64_971, 0.98913, np.nan, np.nan, np.nan),
    ("published", _FITS, "six, H100 8B", 312_620, 0.993, np.nan, np.nan, np.nan),
    ("measured", _LOGS, "stable, H100 QwQ-32B", 34_560, 0.973, 5.8, -0.75, 5.2),
    ("measured", _LOGS, "affine, H100 QwQ-32B", 34_560, 0.975, 4.3, np.nan, np.nan),
    ("measured", _LOGS, "stable, 2xA6000 8B", 51_265, 0.987, 15.8, -1.68, 22.0),
    ("measured", _LOGS, "affine, 2xA6000 8B", 51_265, 0.992, 7.0, np.nan, np.nan),
)


def published_rows() -> list[Row]:
    """What the paper and its authors' files say, and their models on their own logs."""
    names = ("kind", "source", "model", "steps", "r2", "mape_percent", "r2_decode", "mape_decode")
    return [dict(zip(names, row, strict=True)) for row in _PUBLISHED]


def score(measured: FloatArray, predicted: FloatArray, decode_only: np.ndarray) -> Row:
    """R2 and MAPE (%) of all, decode-only and mixed steps."""
    row: Row = {"steps": len(measured)}
    parts = {"": np.full(len(measured), True), "_decode": decode_only, "_mixed": ~decode_only}
    for name, part in parts.items():
        error, truth = (predicted - measured)[part], measured[part]
        spread = ((truth - truth.mean()) ** 2).sum() if len(truth) else 0.0
        row[f"r2{name}"] = 1 - (error**2).sum() / spread if spread > 0 else np.nan
        mape = 100 * np.mean(np.abs(error) / truth) if len(truth) else np.nan
        row["mape_percent" if not name else f"mape{name}"] = mape
    return row


# --- measured steps ------------------------------------------------------------------------------


def measured_rows(path: Path) -> list[Row]:
    """Every form on the measured 2xA6000 steps, each page predicted from the others."""
    steps = read_steps(path)
    pair = steps[steps.gpu == "A6000"].reset_index(drop=True)
    stream = measured_stream(pair)
    fits = dict(A6000_FITS)
    fits["T(B,S) eight parameters"] = _page_fit("eight", AUTHORS_SCALES)
    fits["T(B,S) eight parameters, scales of this log"] = _page_fit("eight", None)
    fits["context-aware, one pass over the other pages"] = _learn_pages
    source = "2xA6000 8B, each page from the others"
    rows = [_row("measured", source, name, stream, held_out(pair, f)) for name, f in fits.items()]
    live = replay(ContextAwareModel(), stream)
    name = "context-aware, live from an unknown engine"
    return [*rows, _row("measured", source, name, stream, live)]


def _page_fit(form: Form, scales: tuple[float, float] | None) -> Callable[..., Any]:
    def fit(train: pd.DataFrame) -> Callable[[pd.DataFrame], FloatArray]:
        columns = (train.batch_size, train.scheduled_tokens, train.model_run_ms)
        model = fit_saturation(form, *columns, scales=scales).model
        return lambda steps: model.predict_many_ms(steps.batch_size, steps.scheduled_tokens)

    return fit


def _learn_pages(train: pd.DataFrame) -> Callable[[pd.DataFrame], FloatArray]:
    model = ContextAwareModel()
    replay(model, measured_stream(train))
    return lambda steps: predict(model, measured_stream(steps))


def _row(kind: str, source: str, model: str, stream: Stream, predicted: FloatArray) -> Row:
    head = {"kind": kind, "source": source, "model": model}
    return head | score(stream.ms, predicted, stream.decode_only)


# --- simulated steps -----------------------------------------------------------------------------


def simulated_rows(scenario: str) -> list[Row]:
    """Every form on another episode of the scenario's first engine than the one it learned."""
    world = single_engine(scenario, HORIZON_S)
    train, test = (record(world, LOAD, seed) for seed in (TRAIN_SEED, TEST_SEED))
    source = f"{scenario}, one engine, load {LOAD:g}"
    models = dict(_models(world.engines[0], world.terms[0], train, test))
    return [_row("simulated", source, name, test, ms) for name, ms in models.items()]


def _models(
    spec: EngineSpec, terms: StepTerms, train: Stream, test: Stream
) -> Iterator[tuple[str, FloatArray]]:
    sizes = (train.table[:, 0], train.table[:, 1])
    for form in FORMS:
        stored = published_model(spec.gpu, spec.model, form)
        if stored is not None:
            yield f"T(B,S) {form}, as published", stored.predict_many_ms(*test.table[:, :2].T)
    for form in FORMS:
        try:
            fitted = fit_saturation(form, *sizes, train.ms).model
        except FitError:
            yield f"T(B,S) {form}, fit failed", np.full(len(test), np.nan)
            continue
        yield f"T(B,S) {form}, fitted", fitted.predict_many_ms(*test.table[:, :2].T)
    design = np.column_stack([np.ones(len(train)), *sizes])
    line = np.linalg.lstsq(design, train.ms, rcond=None)[0]
    yield "affine a+b*B+c*S, fitted", line[0] + test.table[:, :2] @ line[1:]
    model = ContextAwareModel()
    replay(model, train)
    yield "context-aware, learned", predict(model, test)
    yield "context-aware, live from an unknown engine", replay(ContextAwareModel(), test)
    yield "the clock without its noise (bound)", clock_ms(terms, test)


def clock_ms(terms: StepTerms, stream: Stream) -> FloatArray:
    """The simulator's own formula: no model can be better."""
    clock = terms.clock()
    clock[NOISE] = 0
    out = np.empty(len(stream))
    for number, s in enumerate(stream.steps):
        prefill = int(s.tokens > s.decodes)
        size = (s.sequences, s.tokens, s.decode_context_tokens, s.prefill_pairs)
        mixed = int(prefill and s.decodes > 0)
        ns = step_ns(clock, 0, *size, s.prefill_context_tokens, prefill, mixed)
        out[number] = ns / 1e6
    return out
