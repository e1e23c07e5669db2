"""A third truth: steps timed by interpolated kernel tables, bent by a field of residuals.

Policies that learn exactly the terms of the simulator's clock would be judged by their own
formula. Here no formula holds: layers are interpolated between measured token counts, attention
between measured batches and contexts, and the sum is multiplied by 1 + r(S, C), a piecewise linear
field over tokens and context whose knots are drawn from the relative errors that the clocks make
on measured deployments that they were not fitted to (`held_out_errors.csv`, made by
experiments/clocks/validate_clocks.py). Several draws are several such worlds.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from synergy_gym.latency.clock import CLOCK_SIZE, FS_PER_MS, GRID, PS_PER_MS, StepTerms, clock_head
from synergy_gym.latency.grids import (
    BATCHES,
    CONTEXTS,
    FIELD_CONTEXTS,
    FIELD_TOKENS,
    PAIRS,
    UNIT,
    curve,
)
from synergy_gym.latency.profile_schema import KernelTable
from synergy_gym.latency.profiles import Loop, Profile
from synergy_gym.types import IntArray

ERRORS_FILE = Path(__file__).parent / "held_out_errors.csv"
KNOT_OCTAVES = 3
"""A knot of the field every three doublings of tokens and of context."""
BUSY_TOKENS = 256
"""From here on dense layers are limited by computation: what they grow beyond is slowed down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableTerms:
    """A clock of kernel tables; see the module.

    Attributes:
        tokens: token counts at which `dense_ms` is known, increasing.
        dense_ms: layers without attention, experts included, at those.
        sequences: sequence counts at which `head_ms` is known, increasing.
        head_ms: output head at those, and the sampler if there is one.
        decode_ms: attention; a row per power of two of decodes, a column per power of two of
            context tokens each.
        prefill_ms: attention by powers of two of pairs.
        per_prefill_context_ms: further attention per context token of the prefills.
        mixed: further share of decode attention beside prefills.
        overhead_ms: what the engine adds to every step.
        field: residuals in 1/`UNIT`, rows over tokens, columns over context, at powers of two.
        max_sequences: largest B of a step, the engine's `max_num_seqs`.
        max_tokens: largest S of a step, its `max_num_batched_tokens`.
        noise_sd: relative standard deviation of the multiplicative noise.
    """

    tokens: tuple[int, ...]
    dense_ms: tuple[float, ...]
    sequences: tuple[int, ...]
    head_ms: tuple[float, ...]
    decode_ms: tuple[tuple[float, ...], ...]
    prefill_ms: tuple[float, ...]
    per_prefill_context_ms: float
    mixed: float
    overhead_ms: float
    field: tuple[tuple[int, ...], ...]
    max_sequences: int
    max_tokens: int
    noise_sd: float = 0.0

    def clock(self, seed: int = 0) -> IntArray:
        """The fixed-point vector that `latency.clock.step_ns` reads: head, then the grid block."""
        head = clock_head(seed, 0.0, self.noise_sd)
        head[GRID] = CLOCK_SIZE
        return np.concatenate([head, _block(self)])


@lru_cache(maxsize=64)
def _block(t: TableTerms) -> IntArray:
    """The grid block of `latency/grids.py`; read-only."""
    dense = tuple((n, ms + t.overhead_ms) for n, ms in zip(t.tokens, t.dense_ms, strict=True))
    head = tuple(zip(t.sequences, t.head_ms, strict=True))
    parts = (
        [t.max_tokens, t.max_sequences, round(t.mixed * UNIT)],
        [round(t.per_prefill_context_ms * FS_PER_MS)],
        curve(dense, PS_PER_MS, t.max_tokens),
        curve(head, PS_PER_MS, t.max_sequences),
        _whole(t.decode_ms, (BATCHES, CONTEXTS)).ravel(),
        _whole((t.prefill_ms,), (1, PAIRS)).ravel(),
        np.array(t.field, np.int64).ravel(),
    )
    block = np.concatenate([np.asarray(part, np.int64) for part in parts])
    block.flags.writeable = False
    return block


def _whole(rows: Sequence[Sequence[float]], shape: tuple[int, int]) -> IntArray:
    """Times in ps, doubled on beyond the last entries along both axes."""
    found = np.zeros(shape, np.int64)
    for i in range(shape[0]):
        row = rows[min(i, len(rows) - 1)]
        for j in range(shape[1]):
            over = max(i - len(rows) + 1, 0) + max(j - len(row) + 1, 0)
            found[i, j] = round(row[min(j, len(row) - 1)] * PS_PER_MS) << over
    return found


def table_terms(
    profile: Profile, loop: Loop | None, max_sequences: int, max_tokens: int, draw: int = 0
) -> TableTerms:
    """The kernel tables of a profile as a clock; its terms as tables where it has none.

    Args:
        profile: of the GPU and model.
        loop: the engine's; `None`: asynchronous where the profile knows loops.
        max_sequences: the engine's `max_num_seqs`.
        max_tokens: its `max_num_batched_tokens`.
        draw: number of the residual field.

    Raises:
        ProfileError: the profile has no such loop.
    """
    t = profile.file.table
    overhead_ms = profile.overhead_ms(loop)
    if t is None:
        t, overhead_ms = _tabulated(profile.timed(loop), max_sequences, max_tokens), 0.0
    factor = profile.file.sustained.factor if profile.file.sustained else 1.0
    knee = float(np.interp(BUSY_TOKENS, t.tokens, t.dense_ms))
    dense = tuple(ms + max(ms - knee, 0.0) * (factor - 1) for ms in t.dense_ms)
    return TableTerms(
        tokens=t.tokens,
        dense_ms=dense,
        sequences=t.sequences,
        head_ms=t.head_ms,
        decode_ms=t.decode_ms,
        prefill_ms=tuple(ms * factor for ms in t.prefill_ms),
        per_prefill_context_ms=t.per_prefill_context_ms * factor,
        mixed=t.mixed,
        overhead_ms=overhead_ms,
        field=residual_field(profile.name, draw),
        max_sequences=max_sequences,
        max_tokens=max_tokens,
        noise_sd=profile.file.terms.noise_sd,
    )


def _tabulated(t: StepTerms, max_sequences: int, max_tokens: int) -> KernelTable:
    """Terms of whole measured steps as tables; only the residual field bends them then."""
    tokens = sorted({0, max_tokens, *(n for n in _TOKENS if n < max_tokens)})
    context, mixed = t.per_decode_context_ms, t.per_mixed_context_ms
    return KernelTable(
        tokens=tuple(tokens),
        dense_ms=tuple(
            max(t.floor_ms + t.floor_per_token_ms * n, t.base_ms + t.per_token_ms * n)
            for n in tokens
        ),
        sequences=(0, max_sequences),
        head_ms=(0.0, (t.per_sequence_ms + t.per_sample_ms) * max_sequences),
        decode_ms=tuple(
            tuple(context * float(1 << (i + j)) for j in range(CONTEXTS)) for i in range(BATCHES)
        ),
        prefill_ms=tuple(t.per_prefill_pair_ms * float(1 << i) for i in range(PAIRS)),
        per_prefill_context_ms=t.per_prefill_context_ms,
        mixed=mixed / context if context else 0.0,
    )


_TOKENS = (1, *(1 << i for i in range(1, 15)), *(3 << i for i in range(13)))
"""Where the linear part of terms is put into a table: every half octave."""


@lru_cache(maxsize=1)
def held_out_errors() -> tuple[int, ...]:
    """Relative errors of the clocks on held-out deployments, in 1/`UNIT`, less their median."""
    with ERRORS_FILE.open(encoding="utf-8", newline="") as file:
        return tuple(round(float(row["relative_error"]) * UNIT) for row in csv.DictReader(file))


def residual_field(name: str, draw: int) -> tuple[tuple[int, ...], ...]:
    """A field of residuals for a profile: `FIELD_TOKENS` rows of `FIELD_CONTEXTS` numbers.

    Its knots are drawn independently from `held_out_errors`; between them it is linear in the
    logarithms of tokens and context. The mean over the knots is taken off: a draw makes steps
    longer here and shorter there, not a faster or slower GPU.
    """
    errors = held_out_errors()
    text = hashlib.sha256(f"{name} {draw}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(text[:8], "big")))
    shape = (_knots(FIELD_TOKENS), _knots(FIELD_CONTEXTS))
    drawn = np.array(errors, np.int64)[rng.integers(len(errors), size=shape)]
    drawn -= int(drawn.sum()) // drawn.size
    rows = _spread(_spread(drawn, FIELD_TOKENS).T, FIELD_CONTEXTS).T
    return tuple(tuple(map(int, row)) for row in rows)


def _knots(octaves: int) -> int:
    return -(-(octaves - 1) // KNOT_OCTAVES) + 1


def _spread(knots: IntArray, octaves: int) -> IntArray:
    """Knots along the first axis, filled in at every octave."""
    at = np.arange(octaves)
    low, part = at // KNOT_OCTAVES, (at % KNOT_OCTAVES)[:, None]
    high = np.minimum(low + 1, len(knots) - 1)
    return np.asarray((knots[low] * (KNOT_OCTAVES - part) + knots[high] * part) // KNOT_OCTAVES)
