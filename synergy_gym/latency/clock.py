"""The simulator's clock: how long one engine step takes, in exact integer arithmetic.

Coefficients are floats in milliseconds outside and whole femtoseconds inside, so a step
lasts the same number of nanoseconds on every platform, in Python and in compiled code:

    T = max(floor + floor_per_token*S, base + per_sequence*B + per_token*S) + experts(S)
        + per_sample*B
        + per_decode_context*C + per_prefill_pair*A + per_prefill_context*P
        + prefill_step*[prefill] + per_mixed_context*C*[prefill and decodes]

with B sequences, S tokens, C context tokens of the decodes, P context tokens of the
prefill chunks and A = sum(chunk*computed + chunk*(chunk+1)/2) over prefill chunks. The form
is an affine + KV model with the mixed-batch term that measured steps need. The floor bounds the
linear layers alone (a small step still streams all weights, a little longer for each token);
attention comes on top of it, as measured (experiments/step_time/fit_step_latency.py: 1.9 % held-out
error, 4.4 % without a floor). `experts` is the time of a mixture-of-experts model's experts, a
table: it is concave, and the best line through it is 16 to 37 % off. `per_sample` is the sampler's.

A clock vector may carry two tables, f(B) and g(S), whose product joins the affine part under
the floor. That is how SynergySched's T(B,S) becomes the world (`latency/clock_saturation.py`).
Or a grid block times the whole step instead of the terms (`latency/clock_table.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import numpy as np

from synergy_gym.arrays import FS_PER_MS as FS_PER_MS
from synergy_gym.jit import inner
from synergy_gym.latency.grids import FS_PER_PS as FS_PER_PS
from synergy_gym.latency.grids import (
    MAX_SEQUENCES,
    MAX_TOKENS,
    curve,
    grid_ns,
    grid_ns_kernel,
    longest_grid_ns,
)
from synergy_gym.latency.grids import UNIT as UNIT
from synergy_gym.limits import MOST_FACTOR, MOST_NS
from synergy_gym.types import EngineSpec, IntArray

FS_PER_NS = 10**6
PS_PER_MS = 10**9

NUM_TERMS = 8
FLOOR_NS, NOISE, STRAGGLER_P, STRAGGLER_FACTOR, SEED, SLOW = 8, 9, 10, 11, 12, 13
BY_SEQUENCES, BY_TOKENS = 14, 15
"""Positions of the two tables in the array that holds the clock; 0: no tables.

The first is indexed by B (in 1/`UNIT`), the second by S (in picoseconds); the second begins
where the first ends.
"""
FLOOR_PER_TOKEN, PER_SAMPLE = 16, 17
"""Positions of the floor's slope and of the sampler's time per sequence, both in fs."""
EXPERTS, GRID = 18, 19
"""Positions of the experts' times (largest S, then ps for S = 0, 1, ...) and of a grid block."""
CLOCK_SIZE = 20
"""Values at the head of a clock vector; tables follow."""
MOST_STEP_NS = 3600 * 10**9
"""The longest iteration before noise, stragglers and slowdowns: an hour."""
_MOST_TERM_MS = MOST_STEP_NS / 10**6
TABLES = (BY_SEQUENCES, BY_TOKENS, EXPERTS, GRID)
"""Head entries that are positions of tables in the same array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTerms:
    """Coefficients of the step-latency model, in milliseconds per unit of each term."""

    base_ms: float
    per_sequence_ms: float = 0.0
    per_token_ms: float = 0.0
    per_decode_context_ms: float = 0.0
    per_prefill_pair_ms: float = 0.0
    per_prefill_context_ms: float = 0.0
    prefill_step_ms: float = 0.0
    per_mixed_context_ms: float = 0.0
    floor_ms: float = 0.0
    noise_sd: float = 0.0
    """Relative standard deviation of the multiplicative noise (mean exactly 1)."""
    straggler_probability: float = 0.0
    straggler_factor: float = 1.0
    floor_per_token_ms: float = 0.0
    per_sample_ms: float = 0.0
    experts_ms: tuple[tuple[int, float], ...] = ()
    """Knots (tokens, ms) of the experts' time, increasing in tokens; straight lines between."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "experts_ms" and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"StepTerms.{item.name} is {value}; it must be finite and >= 0")
            if item.name.endswith("_ms") and item.name != "experts_ms" and value > _MOST_TERM_MS:
                raise ValueError(
                    f"StepTerms.{item.name} is {value}; an iteration lasts at most "
                    f"{_MOST_TERM_MS:,.0f} ms, give less"
                )
        check_knots("StepTerms.experts_ms", self.experts_ms)
        if self.noise_sd > 0.25:
            raise ValueError(
                f"StepTerms.noise_sd is {self.noise_sd}; above 0.25 a step could vanish"
            )
        if self.straggler_probability > 1:
            raise ValueError(
                f"StepTerms.straggler_probability is {self.straggler_probability}; use 0..1"
            )
        if self.straggler_factor > MOST_FACTOR:
            raise ValueError(
                f"StepTerms.straggler_factor is {self.straggler_factor}; use at most "
                f"{MOST_FACTOR:,.0f}"
            )

    def scaled(self, factor: float) -> StepTerms:
        """The clock of an engine that takes `factor` times as long for everything."""
        times = {
            item.name: getattr(self, item.name) * factor
            for item in fields(self)
            if item.name.endswith("_ms") and item.name != "experts_ms"
        }
        experts = tuple((tokens, ms * factor) for tokens, ms in self.experts_ms)
        return replace(self, **times, experts_ms=experts)

    def clock(self, seed: int = 0) -> IntArray:
        """The fixed-point vector (`CLOCK_SIZE` int64, then tables) that `step_ns` reads."""
        vector = clock_head(seed, self.floor_ms, self.noise_sd)
        for index, item in enumerate(fields(self)[:NUM_TERMS]):
            vector[index] = round(getattr(self, item.name) * FS_PER_MS)
        vector[STRAGGLER_P] = round(self.straggler_probability * (1 << 32))
        vector[STRAGGLER_FACTOR] = round(self.straggler_factor * UNIT)
        vector[FLOOR_PER_TOKEN] = round(self.floor_per_token_ms * FS_PER_MS)
        vector[PER_SAMPLE] = round(self.per_sample_ms * FS_PER_MS)
        if not self.experts_ms:
            return vector
        vector[EXPERTS] = CLOCK_SIZE
        last = self.experts_ms[-1][0]
        return np.concatenate([vector, [last], curve(self.experts_ms, PS_PER_MS, last)])


LATER_TERMS: Mapping[str, object] = MappingProxyType(
    {"floor_per_token_ms": 0.0, "per_sample_ms": 0.0, "experts_ms": ()}
)
"""Terms that profiles of season 1 do not have, with what they are there."""


def check_knots(name: str, knots: Sequence[tuple[int, float]]) -> None:
    """Raise `ValueError` when knots (tokens, ms) do not increase in tokens or are no times."""
    tokens = [at for at, _ in knots]
    if tokens != sorted(set(tokens)) or any(at < 0 for at in tokens):
        raise ValueError(f"{name}: tokens are {tokens}; they must be >= 0 and increase")
    wrong = [ms for _, ms in knots if not (np.isfinite(ms) and ms >= 0)]
    if wrong:
        raise ValueError(f"{name}: has the time {wrong[0]}; times must be finite and >= 0")


def clock_head(seed: int, floor_ms: float, noise_sd: float) -> IntArray:
    """A clock vector without terms, stragglers and tables."""
    vector = np.zeros(CLOCK_SIZE, np.int64)
    vector[FLOOR_NS] = round(floor_ms * 1e6)
    vector[NOISE] = round(noise_sd * UNIT)
    vector[SEED] = seed & ((1 << 62) - 1)
    vector[SLOW] = UNIT
    return vector


def check_reach(clock: IntArray, spec: EngineSpec) -> None:
    """Raise `ValueError` when a clock's tables end below what an engine may schedule."""
    for name, last in _reach(clock):
        if getattr(spec, name) > last:
            raise ValueError(
                f"engine {spec.name!r}: {name} is {getattr(spec, name)}, but its clock's table "
                f"ends at {last}; make the clock for this engine"
            )


def check_durations(clock: IntArray, spec: EngineSpec, longest: int, slowdown: float) -> None:
    """Raise `ValueError` when an iteration could last longer than the simulator can count.

    Args:
        clock: of the engine.
        spec: the engine.
        longest: most tokens of a request, prompt and output.
        slowdown: the largest factor of an event.
    """
    plain_ns = _longest_ns(clock, spec, longest)
    worst_ns = plain_ns * (UNIT + (131070 * int(clock[NOISE]) * 29059002 >> 40)) >> 20
    if clock[STRAGGLER_P]:
        worst_ns = worst_ns * max(int(clock[STRAGGLER_FACTOR]), UNIT) >> 20
    worst_ns = worst_ns * max(round(slowdown * UNIT), UNIT) >> 20
    if plain_ns > MOST_STEP_NS:
        raise ValueError(
            f"engine {spec.name!r}: by its clock an iteration can last {plain_ns / 1e9:.3g} s, "
            f"more than {MOST_STEP_NS // 10**9:,} s; lower the clock's terms, or the engine's "
            "max_num_seqs, max_num_batched_tokens or max_model_len"
        )
    if worst_ns > MOST_NS:
        raise ValueError(
            f"engine {spec.name!r}: with its stragglers and a slowdown of factor {slowdown:g} an "
            f"iteration can last {worst_ns / 1e9:.3g} s, more than ten years; lower the factor"
        )


def _longest_ns(clock: IntArray, spec: EngineSpec, longest: int) -> int:
    """An upper bound of what `step_ns` gives before noise; exact integers."""
    c = [int(x) for x in clock[:CLOCK_SIZE]]
    sequences, tokens = spec.max_num_seqs, spec.max_num_batched_tokens
    length = min(spec.max_model_len, spec.kv_blocks * spec.block_size, longest)
    context, pairs = sequences * length, tokens * length
    if c[GRID]:
        return longest_grid_ns(clock, c[GRID], context, pairs)
    fs = c[0] + c[1] * sequences + c[2] * tokens
    if c[BY_SEQUENCES]:
        by_sequences = int(clock[c[BY_SEQUENCES] : c[BY_TOKENS]].max())
        by_tokens = int(clock[c[BY_TOKENS] :].max())
        fs += (by_sequences * by_tokens >> 20) * FS_PER_PS
    fs = max(fs, c[FLOOR_NS] * FS_PER_NS + c[FLOOR_PER_TOKEN] * tokens)
    if c[EXPERTS]:
        fs += int(clock[c[EXPERTS] + 1 :].max()) * FS_PER_PS
    fs += c[PER_SAMPLE] * sequences + (c[3] + c[5] + c[7]) * context + c[4] * pairs + c[6]
    return fs // FS_PER_NS


def _reach(clock: IntArray) -> Iterator[tuple[str, int]]:
    """(limit of an engine, largest value of it that the clock's tables hold)."""
    if clock[BY_SEQUENCES]:
        yield "max_num_seqs", int(clock[BY_TOKENS] - clock[BY_SEQUENCES]) - 1
        yield "max_num_batched_tokens", len(clock) - int(clock[BY_TOKENS]) - 1
    if clock[EXPERTS]:
        yield "max_num_batched_tokens", int(clock[clock[EXPERTS]])
    if clock[GRID]:
        yield "max_num_batched_tokens", int(clock[clock[GRID] + MAX_TOKENS])
        yield "max_num_seqs", int(clock[clock[GRID] + MAX_SEQUENCES])


_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def step_ns(
    clock: Sequence[int] | IntArray,
    step: int,
    sequences: int,
    tokens: int,
    decode_context: int,
    prefill_pairs: int,
    prefill_context: int,
    has_prefill: int,
    mixed: int,
) -> int:
    """Duration of step number `step` of an engine, in nanoseconds (plain Python).

    Noise and stragglers are drawn from a hash of (seed, step), so they do not depend on
    how steps are batched or in which order engines are simulated. Noise is a sum of four
    16-bit uniforms (Irwin-Hall), bounded by 3.47 standard deviations.
    """
    c = [int(x) for x in clock[:CLOCK_SIZE]]
    if c[GRID]:
        features = (sequences, tokens, decode_context, prefill_pairs, prefill_context, mixed)
        ns = grid_ns(clock, c[GRID], *features)
    else:
        fs = c[0] + c[1] * sequences + c[2] * tokens
        if c[BY_SEQUENCES]:
            product = int(clock[c[BY_SEQUENCES] + sequences]) * int(clock[c[BY_TOKENS] + tokens])
            fs += (product >> 20) * FS_PER_PS
        fs = max(fs, c[FLOOR_NS] * FS_PER_NS + c[FLOOR_PER_TOKEN] * tokens)
        if c[EXPERTS]:
            fs += int(clock[c[EXPERTS] + 1 + tokens]) * FS_PER_PS
        fs += c[PER_SAMPLE] * sequences + c[3] * decode_context + c[4] * prefill_pairs
        fs += c[5] * prefill_context + c[6] * has_prefill + c[7] * decode_context * mixed
        ns = max(fs // FS_PER_NS, 1)
    if c[NOISE]:
        bits = _mix((c[SEED] + step) & _MASK)
        total = (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48)
        # sqrt(3) / 65536 in 2^-40 turns the centred sum (sd 65536/sqrt(3)) into sd 1.
        deviation = (total - 131070) * c[NOISE] * 29059002 >> 40
        ns = ns * (UNIT + deviation) >> 20
    if c[STRAGGLER_P] and _mix((c[SEED] + step) ^ 0x5DEECE66D5DEECE6) >> 32 < c[STRAGGLER_P]:
        ns = ns * c[STRAGGLER_FACTOR] >> 20
    if c[SLOW] != UNIT:
        ns = ns * c[SLOW] >> 20
    return max(ns, 1)


@inner
def _mix_kernel(value):  # type: ignore[no-untyped-def]
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@inner
def _times_kernel(ns, factor):  # type: ignore[no-untyped-def]
    """`ns * factor >> 20`, where the product would not fit."""
    return (ns >> 20) * factor + (((ns & (UNIT - 1)) * factor) >> 20)


@inner
def step_ns_kernel(  # type: ignore[no-untyped-def]
    a, o, step, sequences, tokens, context, pairs, prefill_context, has_prefill, mixed
):
    """`step_ns` over the clock vector at `a[o:]`; equal bit for bit.

    Tables are read at their positions in `a`, wherever the head lies.
    """
    if a[o + GRID] != 0:
        ns = grid_ns_kernel(
            a, a[o + GRID], sequences, tokens, context, pairs, prefill_context, mixed
        )
    else:
        fs = a[o] + a[o + 1] * sequences + a[o + 2] * tokens
        if a[o + BY_SEQUENCES] != 0:
            product = a[a[o + BY_SEQUENCES] + sequences] * a[a[o + BY_TOKENS] + tokens]
            fs += (product >> 20) * FS_PER_PS
        fs = max(fs, a[o + FLOOR_NS] * FS_PER_NS + a[o + FLOOR_PER_TOKEN] * tokens)
        if a[o + EXPERTS] != 0:
            fs += a[a[o + EXPERTS] + 1 + tokens] * FS_PER_PS
        fs += a[o + PER_SAMPLE] * sequences + a[o + 3] * context + a[o + 4] * pairs
        fs += a[o + 5] * prefill_context + a[o + 6] * has_prefill + a[o + 7] * context * mixed
        ns = max(fs // FS_PER_NS, 1)
    if a[o + NOISE] != 0:
        bits = _mix_kernel(a[o + SEED] + step)
        low = np.uint64(0xFFFF)
        total = np.int64(
            (bits & low)
            + ((bits >> np.uint64(16)) & low)
            + ((bits >> np.uint64(32)) & low)
            + (bits >> np.uint64(48))
        )
        deviation = ((total - 131070) * a[o + NOISE] * 29059002) >> 40
        ns = (ns * (UNIT + deviation)) >> 20
    if a[o + STRAGGLER_P] != 0:
        draw = _mix_kernel((a[o + SEED] + step) ^ 0x5DEECE66D5DEECE6)
        if np.int64(draw >> np.uint64(32)) < a[o + STRAGGLER_P]:
            ns = _times_kernel(ns, a[o + STRAGGLER_FACTOR])
    if a[o + SLOW] != UNIT:
        ns = _times_kernel(ns, a[o + SLOW])
    return max(ns, 1)
