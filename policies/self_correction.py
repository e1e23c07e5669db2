"""How a router corrects its predictions by what became of them.

A step model that was fitted elsewhere, or outside its range, makes every engine look lost (or
idle), and the requests go to one of them. Pushes say how long steps really were, completions how
long requests really took.
Information class: pushed, router.
"""

from __future__ import annotations

import math

import numpy as np

from synergy_gym.arrays import BoolArray
from synergy_gym.types import (
    ADVERT_TERMS,
    ClusterView,
    CompletionView,
    FloatArray,
    PushedState,
)

BIAS = (0.25, 4.0)
"""How far an engine's steps may be from its model before they are taken for something else."""
TRUST = 0.5
"""Share of the logarithm of that bias which is corrected. Pushes do not tell how a step was made
up, so part of what differs is no fault of the model; on validation seeds the half of it kept the
gain where models are wrong and lost nothing where they are right."""
JUDGED = 1.5
"""Predictions beyond this are of lost requests, where being right matters little."""
LEAST_SOFTNESS = 0.03
MOST_PROMISES = 8192
"""A live router may lose sight of a request; the oldest promise is forgotten then."""


class StepCorrection:
    """Step models as told, moved towards the measured step times of every engine.

    Args:
        engines: how many.
        memory: share of an engine's mean step that one push moves.
    """

    def __init__(self, engines: int, *, memory: float) -> None:
        self._memory = memory
        self._then_pushed_s: FloatArray = np.full(engines, -np.inf)
        self._seen_s: FloatArray = np.zeros(engines)
        self._foreseen_s: FloatArray = np.zeros(engines)

    def __call__(self, told_ms: FloatArray, cluster: ClusterView, length: float) -> FloatArray:
        """The corrected models, `(engines, len(ADVERT_TERMS))`, ms.

        Args:
            told_ms: the models as told last; a row of zeros before.
            cluster: the moment.
            length: output tokens to expect of a request.
        """
        state = cluster.pushed
        pushed_s = cluster.now_s - state.age_s
        news = (pushed_s > self._then_pushed_s + 1e-9) & (state.running > 0) & (state.step_s > 0)
        news &= told_ms.any(axis=1)
        if news.any():
            self._learn(told_ms, cluster, length, news)
            self._then_pushed_s = pushed_s
        known = self._foreseen_s > 0
        bias = np.where(known, self._seen_s / np.where(known, self._foreseen_s, 1.0), 1.0)
        corrected: FloatArray = told_ms * (np.clip(bias, *BIAS) ** TRUST)[:, None]
        return corrected

    def _learn(
        self, told_ms: FloatArray, cluster: ClusterView, length: float, news: BoolArray
    ) -> None:
        state = cluster.pushed
        context = cluster.in_flight_tokens + cluster.in_flight * length / 2
        foreseen_s = _foreseen_s(told_ms, state, context)
        self._seen_s[news] += self._memory * (state.step_s - self._seen_s)[news]
        self._foreseen_s[news] += self._memory * (foreseen_s - self._foreseen_s)[news]


def _foreseen_s(step_ms: FloatArray, state: PushedState, context: FloatArray) -> FloatArray:
    """What the models say of the steps that the pushes report, seconds."""
    m = dict(zip(ADVERT_TERMS, step_ms.T, strict=True))
    linear = m["base_ms"] + m["per_sequence_ms"] * state.running
    linear = np.maximum(linear + m["per_token_ms"] * state.step_tokens, m["floor_ms"])
    mixed = state.step_tokens > state.running
    extra = (m["per_decode_context_ms"] + m["per_mixed_context_ms"] * mixed) * context
    foreseen: FloatArray = (linear + extra + m["prefill_step_ms"] * mixed) / 1e3
    return foreseen


class Certainty:
    """How far predictions of used objectives are off.

    Attributes:
        softness: scale of the error as a share of the objective.

    Args:
        softness: before anything is known, and at most.
        memory: share that one finished request moves.
    """

    def __init__(self, softness: float, *, memory: float) -> None:
        self.softness = softness
        self._most, self._memory = softness, memory
        self._promises: dict[tuple[int, int], tuple[float, tuple[float, float, float]]] = {}

    def promise(
        self, engine: int, now_s: float, pressure: float, limits: tuple[float, float, float]
    ) -> None:
        """A new request goes to `engine`, predicted to use the share `pressure` of `limits`.

        `limits` are its TTFT, TPOT and E2E objectives, seconds.
        """
        if 0 < pressure < JUDGED:
            self._promises[engine, round(now_s * 1e6)] = pressure, limits
            if len(self._promises) > MOST_PROMISES:
                del self._promises[next(iter(self._promises))]

    def judge(self, completion: CompletionView, *, finished: bool) -> None:
        """A request has left; where it was promised something and finished, learn from it.

        The mean error of a logistic distribution is 2 ln 2 times its scale.
        """
        key = completion.engine, round((completion.now_s - completion.e2e_s) * 1e6)
        promise = self._promises.pop(key, None)
        if promise is None or not finished:
            return
        promised, limits = promise
        gaps = max(completion.output_tokens - 1, 1)
        tpot_s = (completion.e2e_s - completion.ttft_s) / gaps
        times = (completion.ttft_s, tpot_s, completion.e2e_s)
        used = max(time / limit for time, limit in zip(times, limits, strict=True))
        error = min(abs(used - promised), 1.0) / (2 * math.log(2))
        self.softness += self._memory * (error - self.softness)
        self.softness = min(max(self.softness, LEAST_SOFTNESS), self._most)
