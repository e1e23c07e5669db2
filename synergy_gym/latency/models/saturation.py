"""SynergySched's step-latency model T(B, S): three forms and their inversion (see `saturation`).

B counts the sequences of a step, S its scheduled tokens; every form works on b = B / b_scale
and s = S / s_scale. With the throughput Thr = Pmax (1 - exp(-kB b)) (1 - exp(-kS s)):

    eight   T = t0 + (w0 + w1 s) / max(Thr, 1e-9) + tB b + tS s
    six     T = w1 s / max(Thr, 1e-9) + tB b + tS s
    stable  T = Tbase / (eB eS) + tB b + tS s,  e = max(1 - exp(-k x), 1e-6)

Sources: arXiv 2509.23384 and the engine code of its authors (KevinCheung2259/vllm, branch
exp-v0.9.1, v1/core/sched/sla_aware: eight and stable, the deployed one; commit 1b47cdc: six,
which the project calls the paper's). T depends on neither context nor batch composition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from synergy_gym.types import ADVERT_TERMS, FloatArray

Form = Literal["stable", "six", "eight"]
FORMS: tuple[Form, ...] = get_args(Form)

FLOOR_MS = 0.1
"""No prediction is below this."""
INVERT_LIMIT = 8192
"""Largest token count that `SaturationModel.invert` answers."""
INVERT_STEPS = 20
INVERT_TOLERANCE_MS = 1.0
GAIN_FLOOR = 1e-6
THROUGHPUT_FLOOR = 1e-9
FALLBACK_BASE_MS = 8.7
FALLBACK_PER_TOKEN_MS = 0.0215

B_SCALE, S_SCALE, K_B, K_S, T_B, T_S, OFFSET, WORK, WORK_PER_S, PEAK, MIN_GAIN, MIN_PEAK = range(12)
"""Slots of `SaturationModel.vector`: all forms are OFFSET + (WORK + WORK_PER_S s) /
max(PEAK gB gS, MIN_PEAK) + T_B b + T_S s, with g = max(1 - exp(-k x), MIN_GAIN)."""


def fallback_ms(tokens: float) -> float:
    """Step time that is assumed while no model is ready: 8.7 + 0.0215 S (B is ignored)."""
    return max(FALLBACK_BASE_MS + FALLBACK_PER_TOKEN_MS * tokens, FLOOR_MS)


def fallback_invert(target_ms: float) -> int:
    """Most tokens whose `fallback_ms` is at most `target_ms`; at least 1."""
    return max(1, math.floor((target_ms - FALLBACK_BASE_MS) / FALLBACK_PER_TOKEN_MS))


def bisect_tokens(
    predict_ms: Callable[[int], float], target_ms: float, limit: int = INVERT_LIMIT
) -> int:
    """Tokens whose predicted step takes about `target_ms`.

    The authors' bisection, to the letter: integers 1..`limit`, at most 20 halvings, the first
    midpoint within 1 ms wins, else the last one below the target, else 1. It takes T to increase
    with S, which the stable form does not do for small S.
    """
    low, high, found = 1, limit, 1
    for _ in range(INVERT_STEPS):
        if low > high:
            break
        middle = (low + high) // 2
        predicted = predict_ms(middle)
        if abs(predicted - target_ms) < INVERT_TOLERANCE_MS:
            return middle
        if predicted < target_ms:
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return min(max(found, 1), limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturationModel:
    """One fitted T(B, S); parameters are the authors', in normalised units.

    Attributes:
        form: the formula (see the module).
        b_scale: sequences per unit of b, the median B of the training steps, >= 1.
        s_scale: tokens per unit of s, their median S, >= 1.
        pmax: peak throughput in units of s per ms; in the stable form it is not part of T.
        k_b: saturation rate over b. k_s: over s.
        t_b: ms per unit of b. t_s: ms per unit of s.
        base_ms: Tbase of the stable form, t0 of the eight-parameter form.
        w0: work per step (eight). w1: work per unit of s (six, eight).

    Raises:
        ValueError: an unknown form, a scale below 1, a negative or non-finite parameter.
    """

    form: Form
    b_scale: float
    s_scale: float
    pmax: float
    k_b: float
    k_s: float
    t_b: float
    t_s: float
    base_ms: float = 0.0
    w0: float = 0.0
    w1: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(
                f"SaturationModel.form is {self.form!r}; use one of {', '.join(FORMS)}"
            )
        for name in self.__slots__[1:]:
            value = getattr(self, name)
            least = 1.0 if name.endswith("_scale") else 0.0
            if not (math.isfinite(value) and value >= least):
                raise ValueError(
                    f"SaturationModel.{name} is {value}; it must be finite and at least {least:g}"
                )

    def predict_ms(self, sequences: int, tokens: int) -> float:
        """Duration of a step of `sequences` >= 1 requests and `tokens` >= 1 tokens, in ms.

        Raises:
            ValueError: an empty step, for which the form has no value.
        """
        if sequences < 1 or tokens < 1:
            raise ValueError(
                f"predict_ms({sequences}, {tokens}): the model has no value for an empty step; "
                "pass at least one sequence and one token"
            )
        v = self._parameters()
        b, s = sequences / v[B_SCALE], tokens / v[S_SCALE]
        gain_b = max(1.0 - math.exp(-v[K_B] * b), v[MIN_GAIN])
        gain_s = max(1.0 - math.exp(-v[K_S] * s), v[MIN_GAIN])
        work = (v[WORK] + v[WORK_PER_S] * s) / max(v[PEAK] * gain_b * gain_s, v[MIN_PEAK])
        return max(v[OFFSET] + work + v[T_B] * b + v[T_S] * s, FLOOR_MS)

    def predict_many_ms(self, sequences: ArrayLike, tokens: ArrayLike) -> FloatArray:
        """`predict_ms` for arrays (broadcast), without the check for empty steps."""
        v = self.vector()
        b, s = np.asarray(sequences) / v[B_SCALE], np.asarray(tokens) / v[S_SCALE]
        return np.asarray(np.maximum(terms(v, b, s), FLOOR_MS))

    def invert(self, sequences: int, target_ms: float, limit: int = INVERT_LIMIT) -> int:
        """Tokens of a step of `sequences` requests that takes about `target_ms`."""
        return bisect_tokens(partial(self.predict_ms, sequences), target_ms, limit)

    def capacity(self, units: Literal["code", "physical"] = "code") -> float:
        """Peak throughput in tokens per second.

        `code` is what the authors' engines publish, Pmax * 1000: Pmax is per *normalised*
        token, so it is too small by `s_scale`, about ten times. `physical` corrects that.
        """
        if units not in ("code", "physical"):
            raise ValueError(f"capacity units {units!r}; use 'code' or 'physical'")
        return self.pmax * 1000 * (self.s_scale if units == "physical" else 1.0)

    def linear_ms(self) -> tuple[float, ...]:
        """Affine limit for large B and S, in ms per unit of `types.ADVERT_TERMS`.

        Where kS is so small that tokens do not saturate within `INVERT_LIMIT`, the limit is
        that of 1 - exp(-kS s) = kS s, which turns the work per token into a constant.
        """
        v = self._parameters()
        most = INVERT_LIMIT / v[S_SCALE]
        base = v[OFFSET] + v[WORK] / (v[PEAK] * max(1.0 - math.exp(-v[K_S] * most), v[MIN_GAIN]))
        per_s = v[T_S]
        if v[K_S] * most > 1:
            per_s += v[WORK_PER_S] / v[PEAK]
        elif v[WORK_PER_S]:
            base += v[WORK_PER_S] / (v[PEAK] * v[K_S])
        limit = dict.fromkeys(ADVERT_TERMS, 0.0) | {
            "base_ms": base,
            "per_sequence_ms": v[T_B] / v[B_SCALE],
            "per_token_ms": per_s / v[S_SCALE],
            "floor_ms": FLOOR_MS,
        }
        return tuple(limit.values())

    def vector(self) -> FloatArray:
        """The twelve numbers that compiled code reads (see `B_SCALE` and its neighbours)."""
        return np.array(self._parameters())

    def _parameters(self) -> tuple[float, ...]:
        shared = (self.b_scale, self.s_scale, self.k_b, self.k_s, self.t_b, self.t_s)
        if self.form == "stable":
            return (*shared, 0.0, self.base_ms, 0.0, 1.0, GAIN_FLOOR, 0.0)
        return (*shared, self.base_ms, self.w0, self.w1, self.pmax, 0.0, THROUGHPUT_FLOOR)


def gains(v: Any, b: FloatArray, s: FloatArray) -> FloatArray:
    """Throughput at normalised inputs, clamped, for the vector `v` of a model."""
    gain_b = np.maximum(1.0 - np.exp(-v[K_B] * b), v[MIN_GAIN])
    gain_s = np.maximum(1.0 - np.exp(-v[K_S] * s), v[MIN_GAIN])
    return np.asarray(np.maximum(v[PEAK] * gain_b * gain_s, v[MIN_PEAK]))


def terms(v: Any, b: FloatArray, s: FloatArray) -> FloatArray:
    """The unfloored formula on normalised inputs, for the vector `v` of a model."""
    work = (v[WORK] + v[WORK_PER_S] * s) / gains(v, b, s)
    return np.asarray(v[OFFSET] + work + v[T_B] * b + v[T_S] * s)
