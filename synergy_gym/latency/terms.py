"""The simulator's clock: how long one engine step takes, in exact integer arithmetic.

Coefficients are floats in milliseconds outside and whole femtoseconds inside, so a step
lasts the same number of nanoseconds on every platform, in Python and in compiled code:

    T = max(floor, base + per_sequence*B + per_token*S)
        + per_decode_context*C + per_prefill_pair*A + per_prefill_context*P
        + prefill_step*[prefill] + per_mixed_context*C*[prefill and decodes]

with B sequences, S tokens, C context tokens of the decodes, P context tokens of the
prefill chunks and A = sum(chunk*computed + chunk*(chunk+1)/2) over prefill chunks. The form
is an affine + KV model with the mixed-batch term that measured steps need. The floor bounds the
linear layers alone (a small step still streams all weights); attention comes on top of it, as
measured (experiments/fit_step_latency.py: 1.9 % held-out error, 4.4 % without a floor).

A clock vector may carry two tables, f(B) and g(S), whose product joins the affine part under
the floor. That is how SynergySched's T(B,S) becomes the world (`latency/saturation_terms.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from synergy_gym.arrays import FS_PER_MS as FS_PER_MS
from synergy_gym.jit import hot
from synergy_gym.types import EngineSpec, IntArray

FS_PER_NS = 10**6
FS_PER_PS = 1000
UNIT = 1 << 20
"""Fixed-point one of noise, straggler and slowdown factors, and of the table over sequences."""

NUM_TERMS = 8
FLOOR_NS, NOISE, STRAGGLER_P, STRAGGLER_FACTOR, SEED, SLOW = 8, 9, 10, 11, 12, 13
BY_SEQUENCES, BY_TOKENS = 14, 15
"""Positions of the two tables in the array that holds the clock; 0: no tables.

The first is indexed by B (in 1/`UNIT`), the second by S (in picoseconds); the second begins
where the first ends.
"""
CLOCK_SIZE = 16
"""Values at the head of a clock vector; tables follow."""


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

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"StepTerms.{item.name} is {value}; it must be finite and >= 0")
        if self.noise_sd > 0.25:
            raise ValueError(
                f"StepTerms.noise_sd is {self.noise_sd}; above 0.25 a step could vanish"
            )
        if self.straggler_probability > 1:
            raise ValueError(
                f"StepTerms.straggler_probability is {self.straggler_probability}; use 0..1"
            )

    def clock(self, seed: int = 0) -> IntArray:
        """The fixed-point vector (`CLOCK_SIZE` int64) that `step_ns` reads."""
        vector = clock_head(seed, self.floor_ms, self.noise_sd)
        for index, item in enumerate(fields(self)[:NUM_TERMS]):
            vector[index] = round(getattr(self, item.name) * FS_PER_MS)
        vector[STRAGGLER_P] = round(self.straggler_probability * (1 << 32))
        vector[STRAGGLER_FACTOR] = round(self.straggler_factor * UNIT)
        return vector


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
    if not clock[BY_SEQUENCES]:
        return
    reach = (
        ("max_num_seqs", int(clock[BY_TOKENS] - clock[BY_SEQUENCES]) - 1),
        ("max_num_batched_tokens", len(clock) - int(clock[BY_TOKENS]) - 1),
    )
    for name, last in reach:
        if getattr(spec, name) > last:
            raise ValueError(
                f"engine {spec.name!r}: {name} is {getattr(spec, name)}, but its clock's table "
                f"ends at {last}; make the clock for this engine"
            )


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
    fs = c[0] + c[1] * sequences + c[2] * tokens
    if c[BY_SEQUENCES]:
        product = int(clock[c[BY_SEQUENCES] + sequences]) * int(clock[c[BY_TOKENS] + tokens])
        fs += (product >> 20) * FS_PER_PS
    fs = max(fs, c[FLOOR_NS] * FS_PER_NS)
    fs += c[3] * decode_context + c[4] * prefill_pairs + c[5] * prefill_context + c[6] * has_prefill
    fs += c[7] * decode_context * mixed
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


@hot
def _mix_kernel(value):  # type: ignore[no-untyped-def]
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@hot
def step_ns_kernel(  # type: ignore[no-untyped-def]
    a, o, step, sequences, tokens, context, pairs, prefill_context, has_prefill, mixed
):
    """`step_ns` over the clock vector at `a[o:]`; equal bit for bit.

    Tables are read at their positions in `a`, wherever the head lies.
    """
    fs = a[o] + a[o + 1] * sequences + a[o + 2] * tokens
    if a[o + BY_SEQUENCES] != 0:
        product = a[a[o + BY_SEQUENCES] + sequences] * a[a[o + BY_TOKENS] + tokens]
        fs += (product >> 20) * FS_PER_PS
    fs = max(fs, a[o + FLOOR_NS] * FS_PER_NS)
    fs += (
        a[o + 3] * context + a[o + 4] * pairs + a[o + 5] * prefill_context + a[o + 6] * has_prefill
    )
    fs += a[o + 7] * context * mixed
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
            ns = (ns * a[o + STRAGGLER_FACTOR]) >> 20
    if a[o + SLOW] != UNIT:
        ns = (ns * a[o + SLOW]) >> 20
    return max(ns, 1)
