"""Fit the simulator's clock on sums of kernel times.

Steps of three kinds are timed by their kernels: decodes, prefills and both together, over the range
that serving meets. The form of `latency/clock.py` is fitted on relative errors, each kind with
the same weight. The maximum of two lines makes the problem non-convex, so several crossings are
tried and the best kept. Ranges are percentiles of a bootstrap over the steps of each kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synergy_gym.arrays import FloatArray
from synergy_gym.latency.kernels.step import StepKernels, Work

TERMS = (
    "base_ms",
    "per_sequence_ms",
    "per_token_ms",
    "floor_ms",
    "floor_per_token_ms",
    "per_decode_context_ms",
    "per_prefill_pair_ms",
    "per_prefill_context_ms",
    "per_mixed_context_ms",
)
"""What is fitted, fields of `latency.clock.StepTerms`."""
KINDS = ("decode", "prefill", "mixed")
SMALL = "65 to 700 tokens"
"""Steps with prompt tokens of the size that SynergySched's LENS chooses."""
SMALL_TOKENS = (65, 700)
MOST_CONTEXT = 1_000_000
"""Context tokens of a step; a larger KV cache fits no GPU here."""
STARTS = (0.15, 0.4, 0.7)
"""Shares of the floor at which the search for `base_ms` begins."""
RESAMPLES = 120
RANGE = (2.5, 97.5)
"""Percentiles of a 95 % range."""
EXPERT_KNOTS = (
    *(0, 1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024),
    *(1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768),
)  # fmt: skip

_DECODES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_CONTEXTS = (64, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHUNKS = (
    *(65, 96, 128, 160, 200, 256, 320, 400, 512, 640, 768, 1024, 1536, 2048, 3072, 4096),
    *(6144, 8192),
)  # fmt: skip
_HISTORIES = (0, 1024, 4096)
_MIXED_DECODES, _MIXED_CONTEXTS = (4, 16, 32, 64, 128), (512, 2048, 4096, 8192)
_MIXED_TOKENS = (65, 128, 192, 256, 384, 512, 700, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Steps with their kernel times.

    Attributes:
        kind: of each step, one of `KINDS`.
        features: (n, 6): B, S, C, A, P and C beside prefills.
        experts_ms: time of the experts of each.
        step_ms: time of each.
    """

    kind: tuple[str, ...]
    features: FloatArray
    experts_ms: FloatArray
    step_ms: FloatArray

    def of_kind(self, kind: str) -> FloatArray:
        """Mask of a kind's steps, or of the `SMALL` ones."""
        kinds = np.array(self.kind)
        if kind != SMALL:
            return np.asarray(kinds == kind)
        tokens = self.features[:, 1]
        low, high = SMALL_TOKENS
        return np.asarray((kinds != "decode") & (tokens >= low) & (tokens <= high))


@dataclass(frozen=True, slots=True)
class Fit:
    """What a fit finds.

    Attributes:
        terms: coefficient by name, ms per unit.
        ranges: 95 % range by name.
        errors: mean absolute relative error by kind of step, `SMALL` included.
    """

    terms: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    errors: Mapping[str, float]


def works() -> Iterator[tuple[str, Work]]:
    """The steps that are timed, with their kind."""
    for decodes in _DECODES:
        for each in _CONTEXTS:
            if decodes * each <= MOST_CONTEXT:
                yield "decode", Work(decodes, decodes * each)
    for chunk in _CHUNKS:
        for history in _HISTORIES:
            yield "prefill", Work(chunks=((chunk, history),))
        if chunk >= 1024:
            yield "prefill", Work(chunks=((512, 0),) * (chunk // 512))
    for decodes in _MIXED_DECODES:
        for each in _MIXED_CONTEXTS:
            for tokens in _MIXED_TOKENS:
                for history in (0, 2048):
                    if tokens - decodes >= 16 and decodes * each <= MOST_CONTEXT:
                        beside = (tokens - decodes, history)
                        yield "mixed", Work(decodes, decodes * each, (beside,))


def timed_steps(kernels: StepKernels) -> Steps:
    """The steps of `works` with their kernel times."""
    kinds, chosen = zip(*works(), strict=True)
    features = [
        (w.sequences, w.tokens, w.context, w.pairs, w.prefill_context, w.context * bool(w.chunks))
        for w in chosen
    ]
    return Steps(
        kinds,
        np.array(features, float),
        np.array([kernels.experts_ms(w.tokens) for w in chosen]),
        np.array([kernels.step_ms(w) for w in chosen]),
    )


def predicted_ms(terms: FloatArray, steps: Steps) -> FloatArray:
    """The form at coefficients in the order of `TERMS`, ms."""
    base, sequence, token, floor, floor_token, *rest = terms
    b, s = steps.features[:, 0], steps.features[:, 1]
    linear = np.maximum(floor + floor_token * s, base + sequence * b + token * s)
    return np.asarray(linear + steps.experts_ms + steps.features[:, 2:] @ np.array(rest))


def fit_steps(steps: Steps, seed: int = 0, resamples: int = RESAMPLES) -> Fit:
    """Fit the form.

    Args:
        steps: with their kernel times.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    weights = _weights(steps)
    scale = _start(steps)
    tried = [_search(steps, weights, scale, _with_base(share)) for share in STARTS]
    best = min(tried, key=lambda found: found[1])[0]
    rng = np.random.default_rng(seed)
    draws = [
        _search(steps, _resampled(steps, weights, rng), scale, best)[0] for _ in range(resamples)
    ]
    low, high = np.percentile(np.array(draws or [best]) * scale, RANGE, axis=0)
    found = best * scale
    errors = np.abs(predicted_ms(found, steps) / steps.step_ms - 1)
    return Fit(
        {name: float(v) for name, v in zip(TERMS, found, strict=True)},
        {name: (float(a), float(b)) for name, a, b in zip(TERMS, low, high, strict=True)},
        {kind: float(errors[steps.of_kind(kind)].mean()) for kind in (*KINDS, SMALL)},
    )


def _weights(steps: Steps) -> FloatArray:
    kinds = np.array(steps.kind)
    counts = {kind: (kinds == kind).sum() for kind in KINDS}
    return np.array([1 / counts[kind] for kind in steps.kind])


def _resampled(steps: Steps, weights: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Weights of a bootstrap sample: each kind's steps are drawn with replacement."""
    counts = np.zeros(len(weights))
    for kind in KINDS:
        rows = np.flatnonzero(steps.of_kind(kind))
        np.add.at(counts, rng.choice(rows, len(rows)), 1)
    return np.asarray(weights * counts)


def _start(steps: Steps) -> FloatArray:
    """Sizes that the coefficients are near."""
    rest = steps.step_ms - steps.experts_ms
    decode, prefill = steps.of_kind("decode"), steps.of_kind("prefill")
    floor = float(rest[decode].min())
    large = np.logical_and(prefill, steps.features[:, 1] >= 2048)
    token = float(np.median(rest[large] / steps.features[large, 1]))
    busy = np.logical_and(decode, steps.features[:, 2] >= 100_000)
    context = float(np.median((rest[busy] - floor) / steps.features[busy, 2]))
    context = max(context, 1e-7)
    pair = token * 5e-5
    return np.array(
        [floor, floor * 1e-3, token, floor, token / 2, context, pair, pair * 10, context / 2]
    )


def _with_base(share: float) -> FloatArray:
    start = np.ones(len(TERMS))
    start[0] = share
    return start


def _search(
    steps: Steps, weights: FloatArray, scale: FloatArray, start: FloatArray
) -> tuple[FloatArray, float]:
    """Best scaled coefficients near a start, and their cost."""
    from scipy.optimize import least_squares

    roots, target = np.sqrt(weights), np.log(steps.step_ms)

    def errors(scaled: FloatArray) -> FloatArray:
        return np.asarray(roots * (np.log(predicted_ms(scaled * scale, steps)) - target))

    def slopes(scaled: FloatArray) -> FloatArray:
        return roots[:, None] * _slopes(scaled * scale, steps) * scale

    inside = np.maximum(start, 1e-9)
    found = least_squares(errors, inside, slopes, bounds=(0, np.inf), x_scale=1.0, max_nfev=200)
    return np.asarray(found.x), float(found.cost)


def _slopes(terms: FloatArray, steps: Steps) -> FloatArray:
    """Derivatives of the logarithm of the form by its coefficients, (n, len(TERMS))."""
    base, sequence, token, floor, floor_token = terms[:5]
    b, s = steps.features[:, 0], steps.features[:, 1]
    above = (base + sequence * b + token * s > floor + floor_token * s).astype(float)
    columns = [above, above * b, above * s, 1 - above, (1 - above) * s]
    full = np.column_stack([*columns, steps.features[:, 2:]])
    return np.asarray(full / predicted_ms(terms, steps)[:, None])


def expert_knots(kernels: StepKernels) -> Sequence[tuple[int, float]]:
    """Knots (tokens, ms) of the experts' times; empty for a dense model."""
    if not kernels.expert_tokens():
        return ()
    return [(n, kernels.experts_ms(max(n, 1))) for n in EXPERT_KNOTS]
