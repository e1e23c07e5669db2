"""Fit the simulator's clock on measured vLLM steps and compare it with simpler forms.

Command (from the repository root; SYNERGY_GYM_DATA names the folder that holds
`measurements/profiling_steps.csv`):

    SYNERGY_GYM_DATA=../shared .venv/bin/python -m experiments.step_time.fit_step_latency

Every page of the log (a contiguous stretch of steps) is predicted by a model that was fitted
on the other pages. Writes `comparison.csv`, `predictions.csv`, `coefficients.csv`,
`measured_vs_fitted.png` and `manifest.json` beside this script in `results/fit_step_latency/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from synergy_gym.latency.fitting import relative_nnls
from synergy_gym.latency.models.saturation_fit import Form, fit_saturation

Floats = NDArray[np.float64]
Model = Callable[[pd.DataFrame], Floats]
Fit = Callable[[pd.DataFrame], Model]

COMMAND = "SYNERGY_GYM_DATA=../shared .venv/bin/python -m experiments.step_time.fit_step_latency"
OUT = Path(__file__).parents[1] / "results" / "fit_step_latency"
INPUT = "measurements/profiling_steps.csv"
WARM_UP_STEPS = (0, 25016, 11154)
"""`batch_id`s that the data's own description marks as warm-up outliers."""
SINGLE_GAP = 1000
"""The single-sequence log is one page; a jump of its step number starts another stretch."""
SINGLE_SETTLED = 5
"""Its first decodes take 11.8, 7.7, 7.5, 7.4 ms, then 7.2: warm-up up to this step number."""
CROSSINGS = tuple(range(129))
"""Candidate token counts at which the linear part rises above its floor."""


def read_steps(path: Path) -> pd.DataFrame:
    """The measured steps without warm-up outliers, one row per step, with derived columns."""
    steps = pd.read_csv(path)
    steps = steps[~steps.batch_id.isin(WARM_UP_STEPS)].reset_index(drop=True)
    prefill = steps.n_prefill_chunks > 0
    mixed = prefill & (steps.n_decode > 0)
    steps["mixed_context"] = steps.computed_tokens_decode * mixed
    steps["group"] = steps.file.str.rsplit("/").str[-1] + ":" + steps.page
    single = steps.gpu != "A6000"
    stretch = (steps.batch_id.diff().abs() > SINGLE_GAP).cumsum().astype(str)
    steps.loc[single, "group"] += ":" + stretch[single]
    return steps


# --- the clock: max(floor, base + per_sequence*B + per_token*S) + context terms ------------

TERMS = {
    "base_ms": None,
    "per_sequence_ms": "batch_size",
    "per_token_ms": "scheduled_tokens",
    "per_decode_context_ms": "computed_tokens_decode",
    "per_prefill_pair_ms": "prefill_attn_pairs",
    "per_prefill_context_ms": "computed_tokens_prefill",
    "per_mixed_context_ms": "mixed_context",
}
CLOCK = tuple(n for n in TERMS if n not in ("per_sequence_ms", "per_prefill_context_ms"))
"""The packaged profile's terms: the two others do not lower the held-out error."""


def _design(steps: pd.DataFrame, names: tuple[str, ...], crossing: int) -> Floats:
    columns = []
    for name in names:
        source = TERMS[name]
        column = np.ones(len(steps)) if source is None else steps[source].to_numpy(float)
        columns.append(np.maximum(column, crossing) if name == "per_token_ms" else column)
    return np.column_stack(columns)


def fit_clock(
    steps: pd.DataFrame, names: tuple[str, ...] = CLOCK, crossings: tuple[int, ...] = CROSSINGS
) -> dict[str, float]:
    """Coefficients in ms, all >= 0, `floor_ms` included.

    max(floor, base + c*S) equals base + c*max(S, S0), so for each crossing S0 the fit is an
    exact linear problem; the best crossing wins.
    """
    target = steps.model_run_ms.to_numpy(float)
    fits = [relative_nnls(_design(steps, names, s0), target) for s0 in crossings]
    best = min(range(len(fits)), key=lambda index: fits[index][1])
    result = dict(zip(names, fits[best][0].tolist(), strict=True))
    floor = result["base_ms"] + result.get("per_token_ms", 0.0) * crossings[best]
    return result | {"floor_ms": floor}


def clock_ms(terms: dict[str, float], steps: pd.DataFrame) -> Floats:
    """Step times in ms by the simulator's formula (`synergy_gym.latency.clock`)."""
    linear = np.full(len(steps), terms["base_ms"])
    context = np.zeros(len(steps))
    for name, source in TERMS.items():
        if source is not None and name in terms:
            part = linear if name in ("per_sequence_ms", "per_token_ms") else context
            part += terms[name] * steps[source].to_numpy(float)
    return np.asarray(np.maximum(linear, terms["floor_ms"]) + context)


def _clock_fit(names: tuple[str, ...], crossings: tuple[int, ...] = CROSSINGS) -> Fit:
    def fit(train: pd.DataFrame) -> Model:
        terms = fit_clock(train, names, crossings)
        return lambda steps: clock_ms(terms, steps)

    return fit


def _fit_linear(columns: tuple[str, ...], relative: bool) -> Fit:
    """Fit a + sum(c_i * column_i), ordinary (or relative) least squares."""

    def fit(train: pd.DataFrame) -> Model:
        target = train.model_run_ms.to_numpy(float)
        weight = 1 / target if relative else np.ones(len(train))
        design = _columns(train, columns)
        solution = np.linalg.lstsq(design * weight[:, None], target * weight, rcond=None)[0]
        return lambda steps: np.asarray(_columns(steps, columns) @ solution)

    return fit


def _columns(steps: pd.DataFrame, columns: tuple[str, ...]) -> Floats:
    return np.column_stack([np.ones(len(steps)), steps[list(columns)].to_numpy(float)])


def _fit_decode_line(train: pd.DataFrame) -> Model:
    """Fit floor + c * context: all that a log of single-sequence decodes can show."""
    return _clock_fit(("base_ms", "per_decode_context_ms"))(train)


# --- SynergySched's T(B, S): forms, bounds and staged fits as the authors' code has them ----

AUTHORS_SCALES = (7.0, 9.0)
"""B_sc, S_sc of the authors' own 2xA6000 fit. With the medians of this sample (S_sc = 256)
their parameter bounds would cut off the true slope."""
SIX_SCALES = (5.0, 7.0)
"""The six-parameter form needs smaller ones: with the authors', tB of the plane through this sample
is 11.2 ms, above its bound of 10, and the fit is refused as by their code."""


def _fit_saturation(form: Form) -> Fit:
    def fit(train: pd.DataFrame) -> Model:
        columns = (train.batch_size, train.scheduled_tokens, train.model_run_ms)
        scales = SIX_SCALES if form == "six" else AUTHORS_SCALES
        model = fit_saturation(form, *columns, scales=scales).model
        return lambda steps: model.predict_many_ms(steps.batch_size, steps.scheduled_tokens)

    return fit


FULL = tuple(TERMS)
A6000_FITS: dict[str, Fit] = {
    "clock (packaged profile)": _clock_fit(CLOCK),
    "clock, all terms": _clock_fit(FULL),
    "clock without its floor": _clock_fit(CLOCK, (0,)),
    "affine a+b*B+c*S, least squares": _fit_linear(("batch_size", "scheduled_tokens"), False),
    "affine a+b*B+c*S, relative": _fit_linear(("batch_size", "scheduled_tokens"), True),
    "T(B,S) stable": _fit_saturation("stable"),
    "T(B,S) six parameters": _fit_saturation("six"),
}
SHOWN = [name for name in A6000_FITS if name not in ("clock, all terms", "clock without its floor")]
SINGLE_FITS: dict[str, Fit] = {
    "clock: floor + decode context": _fit_decode_line,
    "constant": _fit_linear((), True),
}


# --- comparison ----------------------------------------------------------------------------


def held_out(steps: pd.DataFrame, fit: Fit) -> Floats:
    """Each page predicted by a model that never saw it, in ms."""
    predicted = np.empty(len(steps))
    for group in sorted(steps.group.unique()):
        test = (steps.group == group).to_numpy()
        predicted[test] = fit(steps[~test])(steps[test])
    return predicted


def scores(measured: Floats, predicted: Floats) -> dict[str, float]:
    """MAPE in percent, R2, RMSE in ms and the relative spread of the errors."""
    error = predicted - measured
    spread = float(((measured - measured.mean()) ** 2).sum())
    return {
        "mape_percent": 100 * float(np.mean(np.abs(error) / measured)),
        "r2": 1 - float((error**2).sum()) / spread,
        "rmse_ms": float(np.sqrt((error**2).mean())),
        "relative_sd": float((error / measured).std()),
    }


def compare(steps: pd.DataFrame, fits: dict[str, Fit]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores per model, and the held-out prediction of every step."""
    measured = steps.model_run_ms.to_numpy(float)
    predictions = steps[["gpu", "group", "batch_id", "batch_size", "scheduled_tokens"]].copy()
    predictions["measured_ms"] = measured
    rows = []
    for name, fit in fits.items():
        predictions[name] = held_out(steps, fit)
        inside = scores(measured, fit(steps)(steps))
        row = scores(measured, predictions[name].to_numpy(float))
        rows.append({"model": name, "steps": len(steps), **row, "in_sample_r2": inside["r2"]})
    return pd.DataFrame(rows), predictions


def plot(predictions: pd.DataFrame, models: list[str], path: Path) -> None:
    """Held-out fitted against measured step time, one panel per model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(models), figsize=(3.1 * len(models), 3.3), sharey=True)
    limits = [10, 500]
    for axis, model in zip(axes, models, strict=True):
        for group, rows in predictions.groupby("group"):
            label = str(group).removeprefix("scheduler_profiling_")
            axis.scatter(rows.measured_ms, rows[model], s=8, label=label)
        axis.plot(limits, limits, color="black", linewidth=0.7)
        axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits, title=model)
        axis.set_xlabel("measured step (ms)")
    axes[0].set_ylabel("fitted on the other pages (ms)")
    axes[0].legend(fontsize=5.5)
    figure.suptitle("2xA6000, Llama-3.1-8B: measured and fitted step time, each page held out")
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)


def manifest(path: Path) -> dict[str, object]:
    """What the results were made from."""
    packages = ("matplotlib", "numpy", "pandas", "scipy")
    return {
        "command": COMMAND,
        "inputs": {INPUT: hashlib.sha256(path.read_bytes()).hexdigest()},
        "dropped_batch_ids": list(WARM_UP_STEPS),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def input_file() -> Path:
    """The measured steps; exits with the cure where they are not found."""
    folder = os.environ.get("SYNERGY_GYM_DATA")
    if not folder:
        raise SystemExit(f"SYNERGY_GYM_DATA is not set; run: {COMMAND}")
    path = Path(folder) / INPUT
    if not path.is_file():
        raise SystemExit(f"{path} not found; point SYNERGY_GYM_DATA at the folder with {INPUT}")
    return path


def run(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Comparison, held-out predictions and the clock's coefficients for all logs."""
    steps = read_steps(path)
    pair, single = steps[steps.gpu == "A6000"], steps[steps.gpu != "A6000"]
    settled = single[single.batch_id >= SINGLE_SETTLED]
    results = {
        "2xA6000": compare(pair, A6000_FITS),
        "unknown (H100-class), decodes of one sequence": compare(single, SINGLE_FITS),
        "the same without its first 4 decodes": compare(settled, SINGLE_FITS),
    }
    comparison = pd.concat({name: table for name, (table, _) in results.items()}, names=["log"])
    predictions = pd.concat([table for _, table in list(results.values())[:2]])
    terms = {
        "2xA6000": fit_clock(pair),
        "unknown (H100-class)": fit_clock(settled, ("base_ms", "per_decode_context_ms")),
    }
    coefficients = pd.DataFrame(terms).T.rename_axis("gpu")
    return comparison.reset_index(level=0), predictions, coefficients


def write(out: Path, path: Path) -> None:
    """Run everything, print the comparison and write the result files."""
    comparison, predictions, coefficients = run(path)
    for log, table in comparison.groupby("log", sort=False):
        print(f"\n{log}: measured against fitted on the other pages")
        print(table.drop(columns="log").to_string(index=False, float_format="{:.4f}".format))
    print("\ncoefficients of the clock (ms per unit), fitted on all pages")
    print(coefficients.T.to_string(float_format="{:.6g}".format))
    out.mkdir(parents=True, exist_ok=True)
    comparison.to_csv(out / "comparison.csv", index=False, float_format="%.5f")
    predictions.to_csv(out / "predictions.csv", index=False, float_format="%.3f")
    coefficients.to_csv(out / "coefficients.csv", float_format="%.8g")
    shown = predictions[predictions.gpu == "A6000"]
    plot(shown, SHOWN, out / "measured_vs_fitted.png")
    (out / "manifest.json").write_text(json.dumps(manifest(path), indent=2) + "\n")
    print(f"\nwritten to {out}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fit and compare step-latency models.")
    parser.add_argument("--out", type=Path, default=OUT, help="where the results go")
    write(parser.parse_args().out, input_file())


if __name__ == "__main__":
    main()
