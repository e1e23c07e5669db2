"""A step-time model that sees the context and learns every step: recursive least squares.

SynergySched's T(B, S) knows sequences and tokens only. Measured steps also depend on the KV cache
that they read and on decodes and prefills sharing a step
(experiments/step_time/fit_step_latency.py); `ContextAwareModel` has those terms, predicts with an
interval, and follows an engine whose speed changes within a few steps. `latency.models.rls` has the
method and its sources.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from synergy_gym.jit import direct
from synergy_gym.latency.models import rls
from synergy_gym.latency.models.base import MIN_STEP_MS as MIN_STEP_MS
from synergy_gym.latency.models.base import StepFeatures as StepFeatures
from synergy_gym.latency.models.base import StepModel as StepModel
from synergy_gym.types import ADVERT_TERMS, EngineAdvert, FloatArray

_LOG = logging.getLogger(__name__)

GENERIC_STEP_MS: tuple[float, ...] = (8.7, 0.0, 0.0215, 6e-5, 8e-7, 0.0, 0.0, 0.0, 8.7)
"""Prior for an unknown engine, in the order of `ADVERT_TERMS`: the authors' linear fallback
8.7 + 0.0215*S, with context terms of the size that an H100 with Llama-3.1-8B has."""

_SCALES = {"sequence": 64.0, "tokens": 512.0, "context": 65536.0, "pairs": 2.0**20, "prefill": 4096}
_UNSEEN = {"sequence": 0.25, "context": 0.5, "pairs": 0.25, "prefill_context": 0.1, "prefill": 0.1}
"""A coefficient is at least as uncertain as this share of the base time per scaled unit: a prior
of 0 (T(B, S) has no context terms) must not forbid a term."""
_PEAK_TOKENS = 2048
"""`peak_tps` is the rate of one step that prefills this many fresh tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSettings:
    """Knobs of `ContextAwareModel`.

    Attributes:
        prior_sd: relative standard deviation of the prior's coefficients. The default lets a
            dozen steps overrule it, which costs a good prior nothing after that.
        memory_steps: steps of one kind after which they count half-forgotten (1 / (1 - lambda)).
        noise_sd: first guess of the relative noise of a step; it is learned.
        min_samples: steps until a model without a prior counts as ready.
        max_step_ms: longer steps are rejected as faults of the measurement.
        knots_tokens: where the cost per token may begin or change, ascending. The prior's own
            knee, (floor - base) / per_token, replaces the nearest one.
    """

    prior_sd: float = 1.0
    memory_steps: float = 1000.0
    noise_sd: float = 0.05
    min_samples: int = 32
    max_step_ms: float = 10_000.0
    knots_tokens: tuple[float, ...] = (0.0, 16.0, 32.0, 48.0, 64.0, 128.0)

    def __post_init__(self) -> None:
        positive = (self.memory_steps - 1, self.noise_sd, self.max_step_ms, self.prior_sd)
        if not all(math.isfinite(x) and x > 0 for x in positive):
            raise ValueError(f"{self}: memory_steps > 1, the other times and deviations > 0")
        knots = self.knots_tokens
        if len(knots) != rls.NUM_KNOTS or list(knots) != sorted(set(knots)) or knots[0] < 0:
            raise ValueError(f"knots_tokens {knots}: give {rls.NUM_KNOTS} ascending values >= 0")


DEFAULT_SETTINGS = ContextSettings()


class ContextAwareModel:
    """Step times by the terms of `latency.models.rls`, learned step by step (`StepModel`).

    Predictions are finite, >= `MIN_STEP_MS`, and never fall when a step does more: coefficients
    are >= 0. Steps that cannot be (times of 0, NaN or above `max_step_ms`, negative features) are
    rejected and counted, logged once; steps without work say nothing and are skipped.

    Args:
        step_ms: prior coefficients in the order of `types.ADVERT_TERMS`, e.g. what
            `published_advert(spec).step_ms` holds; `None`: `GENERIC_STEP_MS`.
        settings: knobs.

    Raises:
        ValueError: the prior has a wrong length, or a value that is negative or not finite.
    """

    def __init__(
        self,
        step_ms: tuple[float, ...] | None = None,
        settings: ContextSettings = DEFAULT_SETTINGS,
    ) -> None:
        prior = GENERIC_STEP_MS if step_ms is None else tuple(step_ms)
        if len(prior) != len(ADVERT_TERMS) or not all(math.isfinite(x) and x >= 0 for x in prior):
            raise ValueError(f"prior {prior}: {len(ADVERT_TERMS)} finite values >= 0, ADVERT_TERMS")
        self.settings = settings
        self.has_prior = step_ms is not None
        self.state = _initial_state(prior, settings)
        self.rejected_queries = 0
        self._logged: set[str] = set()
        self._observe, self._predict, self._many, self._sd, self._invert = _entries()

    @property
    def ready(self) -> bool:
        """True with a prior, or once `min_samples` steps were learned."""
        return self.has_prior or self.accepted >= self.settings.min_samples

    @property
    def accepted(self) -> int:
        """Steps learned."""
        return int(self.state[rls.ACCEPTED])

    @property
    def rejected(self) -> int:
        """Steps rejected because their time or features cannot be."""
        return int(self.state[rls.REJECTED])

    @property
    def regime_changes(self) -> int:
        """How often the engine's speed was found changed."""
        return int(self.state[rls.REGIMES])

    @property
    def noise_sd(self) -> float:
        """Learned relative standard deviation of a step's time."""
        return math.sqrt(float(self.state[rls.VARIANCE]))

    def predict_ms(self, step: StepFeatures) -> float:
        """Predicted duration in ms; invalid features count as 0, are counted, and logged once."""
        value: float = self._predict(
            self.state,
            step.sequences,
            step.tokens,
            step.decode_context_tokens,
            step.prefill_pairs,
            step.prefill_context_tokens,
            step.decodes,
        )
        if value > 0:
            return value
        self._bad_queries(1, step)
        return -value

    def observe(self, step: StepFeatures, step_ms: float, now_s: float = 0.0) -> None:
        """Learn from a finished step; about a microsecond. `now_s` is not used."""
        code: int = self._observe(
            self.state,
            step.sequences,
            step.tokens,
            step.decode_context_tokens,
            step.prefill_pairs,
            step.prefill_context_tokens,
            step.decodes,
            step_ms,
        )
        if code > rls.IDLE_STEP:
            self._special(code, step, step_ms)

    def predict_many_ms(
        self,
        sequences: ArrayLike,
        tokens: ArrayLike,
        decode_context_tokens: ArrayLike = 0,
        prefill_pairs: ArrayLike = 0,
        prefill_context_tokens: ArrayLike = 0,
        decodes: ArrayLike = 0,
    ) -> FloatArray:
        """`predict_ms` for arrays that broadcast together; the result has their shape."""
        columns = np.broadcast_arrays(
            sequences, tokens, decode_context_tokens, prefill_pairs, prefill_context_tokens, decodes
        )
        rows = np.stack(columns, axis=-1).astype(np.float64)
        out = np.empty(rows.size // 6)
        invalid = self._many(self.state, rows.reshape(-1), out)
        if invalid:
            self._bad_queries(invalid, "an array")
        return out.reshape(rows.shape[:-1])

    def interval_ms(self, step: StepFeatures, coverage: float = 0.9) -> tuple[float, float]:
        """Bounds between which such a step falls with probability `coverage` (0 to 1, open).

        Gaussian, from the learned noise and the uncertainty of the coefficients.
        """
        predicted = self.predict_ms(step)
        half = NormalDist().inv_cdf(0.5 + coverage / 2) * self.relative_sd(step) * predicted
        return max(predicted - half, 0.0), predicted + half

    def relative_sd(self, step: StepFeatures) -> float:
        """Standard deviation of a step's time around its prediction, relative to it."""
        value: float = self._sd(
            self.state,
            step.sequences,
            step.tokens,
            step.decode_context_tokens,
            step.prefill_pairs,
            step.prefill_context_tokens,
            step.decodes,
        )
        return value

    def invert_tokens(
        self,
        decodes: int,
        decode_context_tokens: int,
        target_ms: float,
        prefill_context_tokens: int = 0,
        limit: int = 8192,
    ) -> int:
        """Most prefill tokens beside the decodes so that the predicted step takes <= `target_ms`.

        They count as one chunk of one request with `prefill_context_tokens` in the cache. 0: not
        even one token fits (or the target is NaN). At most `limit`.
        """
        tokens: int = self._invert(
            self.state, decodes, decode_context_tokens, target_ms, prefill_context_tokens, limit
        )
        return tokens

    def coefficients(self) -> FloatArray:
        """Coefficients in ms per unit, `rls.NUM_TERMS` values, in the order of that module."""
        theta = self.state[rls.THETA : rls.THETA + rls.NUM_TERMS]
        scale: FloatArray = self.state[rls.SCALE : rls.SCALE + rls.NUM_TERMS]
        return theta / scale

    def step_ms(self) -> tuple[float, ...]:
        """The model as an engine publishes it, coefficients in the order of `types.ADVERT_TERMS`.

        The hinges become the line that they follow at many tokens, above the floor.
        """
        c = self.coefficients()
        knots = self.state[rls.KNOTS : rls.KNOTS + rls.NUM_KNOTS]
        slopes = c[rls.SLOPE : rls.SLOPE + rls.NUM_KNOTS]
        base = max(float(c[rls.BASE] - slopes @ knots), 0.0)
        values = (base, c[rls.SEQUENCE], slopes.sum(), *c[rls.CONTEXT :], c[rls.BASE])
        return tuple(float(x) for x in values)

    def advert(self) -> EngineAdvert:
        """Coefficients, and the token rate of a 2048-token prefill step as `peak_tps`.

        `capacity` stays as told before: it is in the authors' normalised tokens, a unit that this
        model does not have.
        """
        x = _PEAK_TOKENS
        ms = self.predict_ms(StepFeatures(1, x, 0, x * (x + 1) // 2, 0, 0))
        return EngineAdvert(peak_tps=1000 * x / ms, step_ms=self.step_ms())

    def _bad_queries(self, count: int, what: object) -> None:
        self.rejected_queries += count
        self._once("query", "step features %s are negative or not finite; read as 0", what)

    def _special(self, code: int, step: StepFeatures, step_ms: float) -> None:
        if code == rls.BAD_INPUT:
            text = "step %s of %s ms rejected: times must be > 0 and <= %s ms, features >= 0"
            self._once("step", text, step, step_ms, self.settings.max_step_ms)
        elif code == rls.LOST_COVARIANCE:
            text = "covariance lost at step %s of %s ms; the coefficients count as uncertain again"
            self._once("covariance", text, step, step_ms)
        else:
            _LOG.info("the engine's speed has changed (change %d)", self.regime_changes)

    def _once(self, kind: str, text: str, *values: object) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            _LOG.warning(text + " (logged once, counted)", *values)


@cache
def _entries() -> tuple[Callable[..., Any], ...]:
    """Machine-code entries of the kernels; each is called once to be compiled."""
    state = _initial_state(GENERIC_STEP_MS, DEFAULT_SETTINGS)
    features = (1.0,) * 6
    rls.observe(state, *features, 1.0)
    rls.predict(state, *features)
    rls.predict_many(state, np.ones(6), np.empty(1))
    rls.relative_sd(state, *features)
    rls.invert(state, 1.0, 1.0, 1.0, 1.0, 1)
    kernels = (rls.observe, rls.predict, rls.predict_many, rls.relative_sd, rls.invert)
    return tuple(direct(kernel) for kernel in kernels)


def _initial_state(prior: tuple[float, ...], settings: ContextSettings) -> FloatArray:
    state = np.zeros(rls.STATE_SIZE)
    state[rls.VARIANCE] = settings.noise_sd**2
    state[rls.MEMORY] = 1 - 1 / settings.memory_steps
    state[rls.MAX_MS] = settings.max_step_ms
    state[rls.SURPRISE] = 1.0
    scale = _scales()
    knots, coefficients = _hinges(prior, settings.knots_tokens)
    state[rls.KNOTS : rls.KNOTS + rls.NUM_KNOTS] = knots
    state[rls.SCALE : rls.SCALE + rls.NUM_TERMS] = scale
    theta = coefficients * scale
    state[rls.THETA : rls.THETA + rls.NUM_TERMS] = theta
    uncertain = np.maximum(theta, _least_scale(prior, scale)) / settings.noise_sd
    state[rls.CAP : rls.CAP + rls.NUM_TERMS] = (max(settings.prior_sd, 1.0) * uncertain) ** 2
    state[rls.COVARIANCE : rls.SCRATCH] = np.diag((settings.prior_sd * uncertain) ** 2).ravel()
    return state


def _scales() -> FloatArray:
    s = _SCALES
    tail = (s["context"], s["pairs"], s["prefill"], 1.0, s["context"])
    return np.array([1.0, s["sequence"], *[s["tokens"]] * rls.NUM_KNOTS, *tail])


def _least_scale(prior: tuple[float, ...], scale: FloatArray) -> FloatArray:
    """Smallest prior uncertainty of each scaled coefficient, ms."""
    terms = dict(zip(ADVERT_TERMS, prior, strict=True))
    base = max(terms["base_ms"], terms["floor_ms"], 1.0)
    slope = max(0.25 * terms["per_token_ms"] * scale[rls.SLOPE], 0.1 * base)
    u = _UNSEEN
    tail = (u["context"], u["pairs"], u["prefill_context"], u["prefill"], u["context"])
    shares = np.array([1.0, u["sequence"], *[0.0] * rls.NUM_KNOTS, *tail])
    least: FloatArray = base * shares
    least[rls.SLOPE : rls.SLOPE + rls.NUM_KNOTS] = slope
    return least


def _hinges(prior: tuple[float, ...], knots: tuple[float, ...]) -> tuple[FloatArray, FloatArray]:
    """Knots with the prior's own knee among them, and the prior as coefficients of the terms."""
    terms = dict(zip(ADVERT_TERMS, prior, strict=True))
    slope, gap = terms["per_token_ms"], max(terms["floor_ms"] - terms["base_ms"], 0.0)
    knee = gap / slope if slope > 0 else 0.0
    places = np.array(knots)
    nearest = int(np.argmin(np.abs(places - knee)))
    places[nearest] = knee
    coefficients = np.zeros(rls.NUM_TERMS)
    coefficients[rls.BASE] = terms["base_ms"] + gap
    coefficients[rls.SEQUENCE] = terms["per_sequence_ms"]
    coefficients[rls.SLOPE + nearest] = slope
    coefficients[rls.CONTEXT :] = prior[3:8]
    return places, coefficients
