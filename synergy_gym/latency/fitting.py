"""Fit `StepTerms` on measured steps: non-negative coefficients, relative errors.

A step's linear part is max(floor, base + c*S) = base + c*max(S, S0), so for each candidate
crossing S0 the fit is an exact linear problem; the best crossing wins. At that crossing the
absolute instead of the squared errors are made small, because what disturbs a step on a busy
machine only ever makes it longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from synergy_gym.arrays import BoolArray, FloatArray
from synergy_gym.latency.clock import StepTerms
from synergy_gym.types import StepReport

OUTLIER_SDS = 5.0
"""A step this many deviations above its prediction is a straggler, not noise."""
MAX_NOISE_SD = 0.25
"""`StepTerms` bound: above it a step could vanish."""
ROUNDS = 30
"""Reweighted least squares, each a step towards least absolute errors."""
SMALLEST_ERROR = 0.01
"""Relative error below which a step's weight grows no further."""


@dataclass(frozen=True, slots=True, eq=False)
class StepColumns:
    """Measured steps as columns, one entry per step.

    `sequences`, `tokens`, `decodes`, `decode_context`, `prefill_pairs` and `prefill_context`
    mean what they mean in `StepFeatures`; `step_ms` is the measured duration.
    """

    sequences: FloatArray
    tokens: FloatArray
    decodes: FloatArray
    decode_context: FloatArray
    prefill_pairs: FloatArray
    prefill_context: FloatArray
    step_ms: FloatArray

    @classmethod
    def of(cls, reports: Sequence[StepReport]) -> StepColumns:
        """The columns of finished steps."""
        sources = ("sequences", "tokens", "decodes", "context_tokens", "prefill_pairs")
        names = (*sources, "prefill_context_tokens", "step_s")
        table = np.array([[getattr(r, name) for name in names] for r in reports], float)
        b, s, d, c, a, p, seconds = table.reshape(-1, len(names)).T
        return cls(b, s, d, c, a, p, 1e3 * seconds)

    def __len__(self) -> int:
        return len(self.step_ms)

    @property
    def prefill(self) -> FloatArray:
        """1.0 where a prefill chunk is in the step."""
        return (self.tokens > self.decodes).astype(float)

    @property
    def mixed_context(self) -> FloatArray:
        """Context of the decodes in steps that also prefill."""
        return self.decode_context * self.prefill

    def take(self, rows: BoolArray) -> StepColumns:
        """The chosen rows."""
        return StepColumns(*(getattr(self, name)[rows] for name in self.__slots__))


COLUMNS: Mapping[str, Callable[[StepColumns], FloatArray]] = MappingProxyType(
    {
        "base_ms": lambda s: np.ones(len(s)),
        "per_sequence_ms": lambda s: s.sequences,
        "per_token_ms": lambda s: s.tokens,
        "per_decode_context_ms": lambda s: s.decode_context,
        "per_prefill_pair_ms": lambda s: s.prefill_pairs,
        "per_prefill_context_ms": lambda s: s.prefill_context,
        "prefill_step_ms": lambda s: s.prefill,
        "per_mixed_context_ms": lambda s: s.mixed_context,
    }
)
"""What each coefficient of `StepTerms` is multiplied with."""
ALL_TERMS = tuple(COLUMNS)
FLOOR_TERMS = tuple(name for name in ALL_TERMS if name != "per_sequence_ms")
"""The terms beside which a floor can be fitted: it bounds a part that depends on tokens alone."""


def relative_nnls(
    design: FloatArray, target: FloatArray, aim: FloatArray | None = None
) -> tuple[FloatArray, float]:
    """Non-negative least squares of relative errors; returns solution and residual norm.

    Columns are scaled for conditioning. `aim` is what design / target should be, by default 1.
    """
    from scipy.optimize import nnls

    weighted = design / target[:, None]
    scale = np.maximum(np.linalg.norm(weighted, axis=0), 1e-300)
    solution, residual = nnls(weighted / scale, np.ones(len(target)) if aim is None else aim)
    return np.asarray(solution / scale), float(residual)


def fit_terms(
    steps: StepColumns,
    names: Sequence[str] = ALL_TERMS,
    crossings: Sequence[int] = (0,),
    surcharge: FloatArray | None = None,
) -> tuple[dict[str, float], float]:
    """Coefficients in ms, all >= 0, `floor_ms` included; and the surcharge in ms.

    Args:
        steps: measured steps.
        names: the terms that may differ from zero; keys of `COLUMNS`.
        crossings: candidate token counts at which the linear part rises above its floor; others
            than 0 need `FLOOR_TERMS`.
        surcharge: 1.0 for steps that may cost more than the others by a constant, 0.0 for
            the others; the constant joins `base_ms` and `floor_ms`.

    Raises:
        ValueError: a floor is asked for beside a term per sequence.
    """
    if any(crossings) and "per_sequence_ms" in names:
        raise ValueError("a floor cannot be fitted beside per_sequence_ms; use FLOOR_TERMS")
    extra = [] if surcharge is None else [surcharge]
    design = np.column_stack([*(COLUMNS[name](steps) for name in names), *extra])
    at = list(names).index("per_token_ms") if "per_token_ms" in names else None
    fits = [
        (relative_nnls(_crossed(design, at, crossing), steps.step_ms)[1], crossing)
        for crossing in (crossings if at is not None else (0,))
    ]
    crossing = min(fits)[1]
    solved = _least_absolute(_crossed(design, at, crossing), steps.step_ms).tolist()
    result: dict[str, float] = dict(zip(names, solved, strict=False))
    more: float = solved[-1] if extra else 0.0
    result["base_ms"] += more
    floor = result["base_ms"] + result.get("per_token_ms", 0.0) * crossing
    return result | {"floor_ms": floor}, more


def best_terms(
    steps: StepColumns, crossings: Sequence[int], surcharge: FloatArray | None = None
) -> dict[str, float]:
    """The better of two fits: with a term per sequence, or with a floor instead.

    A CPU pays for each sequence, a GPU streams its weights in small steps as in larger ones.
    Arguments are those of `fit_terms`.
    """
    error, best = np.inf, {}
    for names, candidates in ((ALL_TERMS, (0,)), (FLOOR_TERMS, crossings)):
        terms, more = fit_terms(steps, names, candidates, surcharge)
        lower = 0.0 if surcharge is None else more * (1 - surcharge)
        found = float(np.abs((predict_ms(terms, steps) - lower) / steps.step_ms - 1).mean())
        if found < error:
            error, best = found, terms
    return best


def _crossed(design: FloatArray, column: int | None, crossing: int) -> FloatArray:
    """The design with one column raised to `crossing` where it is below."""
    if column is None or not crossing:
        return design
    raised = design.copy()
    raised[:, column] = np.maximum(raised[:, column], crossing)
    return raised


def _least_absolute(design: FloatArray, target: FloatArray) -> FloatArray:
    """Non-negative least absolute relative errors, by reweighted least squares."""
    weights = np.ones(len(target))
    for _ in range(ROUNDS):
        root = np.sqrt(weights)[:, None]
        solution, _ = relative_nnls(design * root, target, np.sqrt(weights))
        error = np.abs(design @ solution / target - 1)
        weights = 1 / np.maximum(error, SMALLEST_ERROR)
    return solution


def predict_ms(terms: Mapping[str, float], steps: StepColumns) -> FloatArray:
    """Step times in ms by the formula of `latency.clock`, without noise and stragglers."""
    linear, context = np.zeros(len(steps)), np.zeros(len(steps))
    for name, column in COLUMNS.items():
        part = linear if name in ("base_ms", "per_sequence_ms", "per_token_ms") else context
        part += terms.get(name, 0.0) * column(steps)
    return np.asarray(np.maximum(linear, terms["floor_ms"]) + context)


def with_noise(terms: Mapping[str, float], steps: StepColumns) -> StepTerms:
    """A whole clock: terms scaled to the total time of `steps`, with their noise and stragglers.

    Steps far above their prediction (`OUTLIER_SDS`) are the stragglers; the spread of the others
    is the noise.

    Raises:
        ValueError: no steps.
    """
    if not len(steps):
        raise ValueError("no steps to take the noise from; measure some")
    ratio = steps.step_ms / predict_ms(terms, steps)
    spread, middle = OUTLIER_SDS * _robust_sd(ratio), float(np.median(ratio))
    core = ratio[np.abs(ratio - middle) <= spread]
    slow = ratio[ratio > middle + spread]
    share = len(slow) / len(ratio)
    factor = float(slow.mean() / core.mean()) if len(slow) else 1.0
    total = float(steps.step_ms.sum() / predict_ms(terms, steps).sum())
    scale = total / (1 + share * (factor - 1))
    values: dict[str, Any] = {name: value * scale for name, value in terms.items()}
    return StepTerms(
        **values,
        noise_sd=min(float(core.std() / core.mean()), MAX_NOISE_SD),
        straggler_probability=share,
        straggler_factor=factor,
    )


def _robust_sd(values: FloatArray) -> float:
    """1.4826 times the median absolute deviation; at least 1e-6."""
    return max(1.4826 * float(np.median(np.abs(values - np.median(values)))), 1e-6)


@dataclass(frozen=True, slots=True)
class FitQuality:
    """How well a clock tells the mean duration of steps that it was not fitted on.

    Attributes:
        steps: how many.
        mape_percent: mean absolute error relative to the measured step.
        r2: explained variance of the step times in ms.
        bias_percent: error of the summed time; over a whole episode only this stays.
        noise_sd: robust relative spread of measured over predicted.
    """

    steps: int
    mape_percent: float
    r2: float
    bias_percent: float
    noise_sd: float


def quality(terms: StepTerms, steps: StepColumns) -> FitQuality:
    """Score `terms` on `steps`, stragglers counted at their expectation."""
    plain = {name: getattr(terms, name) for name in (*ALL_TERMS, "floor_ms")}
    expected = 1 + terms.straggler_probability * (terms.straggler_factor - 1)
    predicted = predict_ms(plain, steps)
    error = predicted - steps.step_ms
    spread = float(((steps.step_ms - steps.step_ms.mean()) ** 2).sum())
    return FitQuality(
        steps=len(steps),
        mape_percent=100 * float(np.mean(np.abs(error) / steps.step_ms)),
        r2=1 - float((error**2).sum()) / spread if spread > 0 else float("nan"),
        bias_percent=100 * (expected * float(predicted.sum()) / float(steps.step_ms.sum()) - 1),
        noise_sd=_robust_sd(steps.step_ms / predicted),
    )
