"""SynergySched's step-latency model T(B, S) and its staged fits to measured steps.

The forms, the inversion and the linear fallback stand in `saturation_model`; everything public
can be imported from here. Fits follow the authors' engine code (arXiv 2509.23384;
KevinCheung2259/vllm, branch exp-v0.9.1, and commit 1b47cdc for the six-parameter form).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from synergy_gym.latency.models.saturation import FALLBACK_BASE_MS as FALLBACK_BASE_MS
from synergy_gym.latency.models.saturation import FALLBACK_PER_TOKEN_MS as FALLBACK_PER_TOKEN_MS
from synergy_gym.latency.models.saturation import (
    FLOOR_MS,
    GAIN_FLOOR,
    OFFSET,
    T_B,
    T_S,
    THROUGHPUT_FLOOR,
    WORK,
    WORK_PER_S,
    gains,
    terms,
)
from synergy_gym.latency.models.saturation import FORMS as FORMS
from synergy_gym.latency.models.saturation import INVERT_LIMIT as INVERT_LIMIT
from synergy_gym.latency.models.saturation import Form as Form
from synergy_gym.latency.models.saturation import SaturationModel as SaturationModel
from synergy_gym.latency.models.saturation import fallback_invert as fallback_invert
from synergy_gym.latency.models.saturation import fallback_ms as fallback_ms
from synergy_gym.types import FloatArray

MIN_ROWS = 20
MAX_STEP_MS = 300.0
"""Rows with longer steps are dropped before a fit."""
PROFILING_TRIM_ROWS = 10
"""The authors' profiling loader drops this many rows at both ends of each log (`trim`)."""
MIN_BUSY_ROWS = 10


class FitError(ValueError):
    """Steps from which no model can be fitted; the message names the reason and the cure.

    Attributes:
        overwritten: parameters that the authors' model object has taken over from the rows by
            then, `b_scale` and `s_scale` (stable: `pmax` too); empty where the fit did not begin.
    """

    def __init__(self, message: str, overwritten: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.overwritten = dict(overwritten or {})


@dataclass(frozen=True, slots=True)
class SaturationFit:
    """A model and how well it describes the steps that it was fitted on.

    Attributes:
        model: the fitted model.
        r2: in-sample coefficient of determination. mape: mean absolute relative error, a
            share (0.1 = 10 %). rmse_ms: root of the mean squared error.
        rows: steps that were used. dropped: steps that were left out.
        notes: what the data could not identify, in words.
    """

    model: SaturationModel
    r2: float
    mape: float
    rmse_ms: float
    rows: int
    dropped: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Steps:
    """Training rows on normalised inputs."""

    b: FloatArray
    s: FloatArray
    ms: FloatArray
    b_scale: float
    s_scale: float
    dropped: int
    notes: tuple[str, ...]

    @property
    def rate(self) -> FloatArray:
        """Normalised tokens per ms."""
        return self.s / self.ms

    def peak(self, busy_percentile: float, percentile: float) -> float:
        """That percentile of the rate among busy steps, of all if fewer than 10 are busy."""
        busy = self.b >= np.percentile(self.b, busy_percentile)
        busy &= self.s >= np.percentile(self.s, busy_percentile)
        rate = self.rate[busy] if np.count_nonzero(busy) >= MIN_BUSY_ROWS else self.rate
        return float(np.percentile(rate, percentile))

    def slope(self) -> float:
        """Least-squares slope of T over s, at least 1e-9: where w1 starts."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", np.exceptions.RankWarning)  # S may be constant
            return max(float(np.polyfit(self.s, self.ms, 1)[0]), 1e-9)

    def plane(self) -> FloatArray:
        """Ordinary least squares T = a + tB b + tS s, as (a, tB, tS)."""
        design = np.column_stack([np.ones(len(self.ms)), self.b, self.s])
        return np.asarray(np.linalg.lstsq(design, self.ms, rcond=None)[0])

    def model(self, form: Form, **parameters: float) -> SaturationModel:
        values = {name: float(value) for name, value in parameters.items()}
        return SaturationModel(form=form, b_scale=self.b_scale, s_scale=self.s_scale, **values)


def fit_saturation(
    form: Form,
    sequences: ArrayLike,
    tokens: ArrayLike,
    step_ms: ArrayLike,
    *,
    scales: tuple[float, float] | None = None,
    trim: int = 0,
) -> SaturationFit:
    """Fit one form to measured steps, staged, initialised and bounded as the authors do.

    Rows that are not finite and positive, or last 300 ms and longer, are dropped and counted.
    Where B (or S) never varies, its terms are not identified; the fit says so in `notes`. It
    also says where a slope ends at its upper bound: the bounds are in normalised units, so a
    log whose median S is some hundred tokens cannot express its true slope. The six-parameter
    form starts at the slopes of a plane, and cannot be fitted at all where those lie beyond
    the bounds: the authors' code raises there, and so does this.

    Args:
        form: which formula.
        sequences: B of each step.
        tokens: S of each step.
        step_ms: measured duration of each step.
        scales: b_scale and s_scale (default: the medians of the rows, at least 1).
        trim: rows to drop at both ends first (the authors' profiling loader: 10).

    Raises:
        FitError: fewer than 20 usable rows, nothing that varies, a start outside its bounds, or
            no convergence.
        ValueError: an unknown form.
    """
    if form not in FITS:
        raise ValueError(f"unknown form {form!r} of the latency model; use {', '.join(FITS)}")
    steps = _usable(_columns(sequences, tokens, step_ms, trim), scales, trim)
    overwritten = {"b_scale": steps.b_scale, "s_scale": steps.s_scale}
    if form == "stable":
        overwritten["pmax"] = steps.peak(*STABLE_PEAK)
    return _scored(_guarded(FITS[form], steps, overwritten), steps)


def refit_fast(
    model: SaturationModel, sequences: ArrayLike, tokens: ArrayLike, step_ms: ArrayLike
) -> SaturationFit:
    """Fit the fast parameters again, with scales and saturation (Pmax, kB, kS) frozen.

    These are w1, tB and tS of the six- and eight-parameter forms, and Tbase, tB and tS of the
    stable form, within the bounds of the full fit. The six-parameter one is the authors' partial
    fit, which iterates from the present values. The authors have none for the others; T is
    linear in these parameters, so there the fit is exact.

    Raises:
        FitError: as `fit_saturation`.
    """
    steps = _usable(_columns(sequences, tokens, step_ms), (model.b_scale, model.s_scale))
    return _scored(_guarded(lambda rows: _refit_fast(model, rows), steps), steps)


def _columns(
    sequences: ArrayLike, tokens: ArrayLike, step_ms: ArrayLike, trim: int = 0
) -> tuple[FloatArray, ...]:
    columns = tuple(np.asarray(c, np.float64).ravel() for c in (sequences, tokens, step_ms))
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise FitError(
            f"{lengths[0]} batch sizes, {lengths[1]} token counts and {lengths[2]} step times; "
            "pass one of each per step"
        )
    return tuple(column[trim : len(column) - trim] for column in columns)


def _usable(
    columns: tuple[FloatArray, ...], scales: tuple[float, float] | None, trim: int = 0
) -> _Steps:
    whole = np.logical_and.reduce([np.isfinite(column) & (column > 0) for column in columns])
    kept = whole & (columns[2] < MAX_STEP_MS)
    sequences, tokens, ms = (column[kept] for column in columns)
    broken = int(np.count_nonzero(~whole))
    if broken:
        _log().warning("%d of %d steps are not finite and positive: left out", broken, len(kept))
    if len(ms) < MIN_ROWS:
        raise FitError(
            f"{len(ms)} usable steps of {len(kept)} ({broken} not finite and positive, "
            f"{len(kept) - broken - len(ms)} of {MAX_STEP_MS:g} ms or longer); a fit needs "
            f"{MIN_ROWS}: record more steps"
        )
    notes = _identified(sequences, tokens, ms)
    b_scale, s_scale = scales or (max(np.median(sequences), 1.0), max(np.median(tokens), 1.0))
    dropped = len(kept) - len(ms) + 2 * trim
    b, s = sequences / b_scale, tokens / s_scale
    return _Steps(b, s, ms, float(b_scale), float(s_scale), dropped, notes)


def _identified(sequences: FloatArray, tokens: FloatArray, ms: FloatArray) -> tuple[str, ...]:
    """What the rows leave open; refuses rows in which nothing varies."""
    if np.ptp(ms) == 0:
        raise FitError(
            f"all {len(ms)} steps took {ms[0]:g} ms, so no fit can explain a difference; "
            "record steps of other sizes, or measured instead of rounded times"
        )
    fixed = {"B": sequences, "S": tokens}
    notes = tuple(
        f"{name} is {values[0]:g} in every step: its terms are not identified, predictions "
        f"hold for that {name} only"
        for name, values in fixed.items()
        if np.ptp(values) == 0
    )
    if len(notes) == len(fixed):
        raise FitError(
            f"every step has B = {sequences[0]:g} and S = {tokens[0]:g}; record steps of other "
            "sizes"
        )
    for note in notes:
        _log().warning("%s", note)
    return notes


def _guarded(
    fit: Callable[[_Steps], SaturationModel],
    steps: _Steps,
    overwritten: Mapping[str, float] | None = None,
) -> SaturationModel:
    try:
        return fit(steps)
    except _StartError as error:
        raise FitError(
            f"{error}, as the authors' code refuses it; pass smaller `scales` than "
            f"({steps.b_scale:g}, {steps.s_scale:g}) or use the stable form",
            overwritten,
        ) from error
    except RuntimeError as error:
        raise FitError(
            f"the fit on {len(steps.ms)} steps did not converge ({error}); record steps of more "
            "sizes or use the stable form",
            overwritten,
        ) from error


def _scored(model: SaturationModel, steps: _Steps) -> SaturationFit:
    predicted = np.maximum(terms(model.vector(), steps.b, steps.s), FLOOR_MS)
    error = predicted - steps.ms
    spread = float(((steps.ms - steps.ms.mean()) ** 2).sum())
    return SaturationFit(
        model=model,
        r2=1.0 - float((error**2).sum()) / spread,
        mape=float((np.abs(error) / steps.ms).mean()),
        rmse_ms=float(np.sqrt((error**2).mean())),
        rows=len(steps.ms),
        dropped=steps.dropped,
        notes=(*steps.notes, *_cut_off(model)),
    )


def _cut_off(model: SaturationModel) -> tuple[str, ...]:
    """Slopes that end at their upper bound."""
    bounds = STABLE_BOUNDS if model.form == "stable" else WORK_BOUNDS
    return tuple(
        f"{name} is at its bound {bounds[name][1]:g}: steeper steps are cut off; pass smaller "
        f"`scales` than ({model.b_scale:g}, {model.s_scale:g})"
        for name in ("t_b", "t_s")
        if getattr(model, name) > 0.99 * bounds[name][1]
    )


def _curve_fit(
    predict: Callable[..., FloatArray],
    steps: _Steps,
    target: FloatArray,
    bounds: dict[str, tuple[float, float, float]],
    maxfev: int,
) -> dict[str, float]:
    """Bounded least squares; `bounds` gives start, lower and upper bound per parameter.

    Raises:
        _StartError: a start outside its bounds, which SciPy calls infeasible.
        RuntimeError: no convergence.
    """
    from scipy.optimize import curve_fit

    for name, (first, low, high) in bounds.items():
        if not low <= first <= high:
            raise _StartError(f"{name} starts at {first:g}, outside its bounds {low:g} to {high:g}")
    start, lower, upper = (np.array(column) for column in zip(*bounds.values(), strict=True))
    found, _ = curve_fit(
        lambda _, *values: predict(steps.b, steps.s, *values),
        steps.s,
        target,
        p0=start,
        bounds=(lower, upper),
        maxfev=maxfev,
    )
    return dict(zip(bounds, found.tolist(), strict=True))


class _StartError(ValueError):
    """A parameter would start outside its bounds."""


STABLE_PEAK = (80, 90)
"""Percentiles of B and S that make a step busy, and of their rates: Pmax of the stable form."""
STABLE_BOUNDS = MappingProxyType({"base_ms": (0.1, 200.0), "t_b": (0.0, 20.0), "t_s": (0.0, 2.0)})
WORK_BOUNDS = MappingProxyType({"w1": (1e-9, 100.0), "t_b": (0.0, 10.0), "t_s": (0.0, 10.0)})
"""Bounds of the fast parameters; the full fits use the same."""


def _fit_stable(steps: _Steps) -> SaturationModel:
    """Two stages: Pmax from busy steps, then the five parameters of T."""

    def predict(b: FloatArray, s: FloatArray, *p: float) -> FloatArray:
        v = (1.0, 1.0, p[0], p[1], p[2], p[3], 0.0, p[4], 0.0, 1.0, GAIN_FLOOR, 0.0)
        return terms(v, b, s)

    bounds = {
        "k_b": (0.5, 0.01, 5.0),
        "k_s": (0.2, 0.001, 2.0),
        "t_b": (1.0, *STABLE_BOUNDS["t_b"]),
        "t_s": (0.1, *STABLE_BOUNDS["t_s"]),
        "base_ms": (0.5 * float(np.median(steps.ms)), *STABLE_BOUNDS["base_ms"]),
    }
    found = _curve_fit(predict, steps, steps.ms, bounds, maxfev=15000)
    return steps.model("stable", pmax=steps.peak(*STABLE_PEAK), **found)


def _fit_six(steps: _Steps) -> SaturationModel:
    """Three stages: Pmax, tB, tS by formula; kB, kS, w1 on the rest; then w1, tB, tS again."""
    pmax = steps.peak(75, 95)
    t_b, t_s = np.maximum(steps.plane()[1:], 0.0).tolist()
    rest = np.maximum(steps.ms - t_b * steps.b - t_s * steps.s, 1e-6)

    def predict(b: FloatArray, s: FloatArray, *p: float) -> FloatArray:
        v = (1.0, 1.0, p[0], p[1], 0.0, 0.0, 0.0, 0.0, p[2], pmax, 0.0, THROUGHPUT_FLOOR)
        return terms(v, b, s)

    bounds = {
        "k_b": (0.1, 1e-6, 10.0),
        "k_s": (0.01, 1e-6, 10.0),
        "w1": (steps.slope(), *WORK_BOUNDS["w1"]),
    }
    found = _curve_fit(predict, steps, rest, bounds, maxfev=20000)
    start = found.pop("w1"), t_b, t_s
    return _refit_six(steps.model("six", pmax=pmax, t_b=0, t_s=0, **found), steps, start)


def _fit_eight(steps: _Steps) -> SaturationModel:
    """One stage with all eight parameters; Pmax, w0 and w1 are not identified one by one."""

    def predict(b: FloatArray, s: FloatArray, *p: float) -> FloatArray:
        pmax, k_b, k_s, w0, w1, t0, t_b, t_s = p
        v = (1.0, 1.0, k_b, k_s, t_b, t_s, t0, w0, w1, pmax, 0.0, THROUGHPUT_FLOOR)
        return terms(v, b, s)

    bounds = {
        "pmax": (max(float(np.percentile(steps.rate, 95)), 1e-3), 1e-6, 1e6),
        "k_b": (0.1, 1e-6, 10.0),
        "k_s": (0.01, 1e-6, 10.0),
        "w0": (0.1, 0.0, 1e3),
        "w1": (steps.slope(), *WORK_BOUNDS["w1"]),
        "base_ms": (0.5 * float(steps.ms.min()), 0.0, 1e3),
        "t_b": (1e-3, *WORK_BOUNDS["t_b"]),
        "t_s": (1e-3, *WORK_BOUNDS["t_s"]),
    }
    found = _curve_fit(predict, steps, steps.ms, bounds, maxfev=20000)
    return steps.model("eight", **found)


def _refit_fast(model: SaturationModel, steps: _Steps) -> SaturationModel:
    """w1 (or Tbase), tB and tS with the rest of `model`."""
    if model.form == "six":
        start = (model.w1 or 0.01, model.t_b or 1e-3, model.t_s or 1e-3)
        return _refit_six(model, steps, start)
    return _refit_exactly(model, steps)


def _refit_six(
    model: SaturationModel, steps: _Steps, start: tuple[float, float, float]
) -> SaturationModel:
    """w1, tB and tS by the authors' iteration from `start`; it ends a little inside a bound."""
    v = model.vector()

    def predict(b: FloatArray, s: FloatArray, *p: float) -> FloatArray:
        v[WORK_PER_S], v[T_B], v[T_S] = p
        return terms(v, b, s)

    bounds = {
        name: (first, *WORK_BOUNDS[name]) for name, first in zip(WORK_BOUNDS, start, strict=True)
    }
    found = _curve_fit(predict, steps, steps.ms, bounds, maxfev=20000)
    return replace(model, form=model.form, **found)


def _refit_exactly(model: SaturationModel, steps: _Steps) -> SaturationModel:
    """w1 or Tbase, tB and tS: T is linear in them, one exact solution."""
    from scipy.optimize import lsq_linear

    v, stable = model.vector(), model.form == "stable"
    gain = gains(v, steps.b, steps.s)
    design = np.column_stack([(1.0 if stable else steps.s) / gain, steps.b, steps.s])
    fixed = 0.0 if stable else v[OFFSET] + v[WORK] / gain
    bounds = STABLE_BOUNDS if stable else WORK_BOUNDS
    limits = np.array(list(bounds.values())).T
    found = lsq_linear(design, steps.ms - fixed, bounds=(limits[0], limits[1]), method="bvls")
    inside = np.clip(found.x, limits[0], limits[1])  # bvls may miss a bound by a rounding error
    values = dict(zip(bounds, inside.tolist(), strict=True))
    return replace(model, form=model.form, **values)


def _log() -> logging.Logger:
    return logging.getLogger(__name__)


FITS: MappingProxyType[str, Callable[[_Steps], SaturationModel]] = MappingProxyType(
    {"stable": _fit_stable, "six": _fit_six, "eight": _fit_eight}
)
"""How each form is fitted."""
