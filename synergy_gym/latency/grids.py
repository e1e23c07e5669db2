"""Tables that time a step: between their knots straight lines, in whole numbers.

Two kinds of table join the clock vector of `latency/clock.py`. A *curve* gives a time for every
number of tokens (experts of a mixture-of-experts model: concave, no line fits it). A *grid* block
times the whole step by interpolated kernel measurements and bends the result by a residual field;
it is the truth that no policy's formula has (`latency/clock_table.py`). All entries are integers
and all arithmetic is exact, so that Python and compiled code agree bit for bit.

A grid block at position g of a clock vector:

    g + MAX_TOKENS, g + MAX_SEQUENCES   largest S and B
    g + MIXED                           further share of decode attention beside prefills, 1/UNIT
    g + PREFILL_CONTEXT                 fs per context token of the prefills
    g + HEADER ...                      dense layers by S = 0..max_tokens, ps
    then                                head and sampler by B = 0..max_sequences, ps
    then                                decode attention, ps: B at powers of two x tokens per decode
    then                                prefill attention by pairs at powers of two, ps
    then                                residual in 1/UNIT: S x context at powers of two
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from synergy_gym.jit import inner
from synergy_gym.types import IntArray

UNIT = 1 << 20
FRACTION_BITS = 16
"""Resolution between two knots; the product with a time in ps stays below 2^63."""
FS_PER_PS = 1000
MAX_TOKENS, MAX_SEQUENCES, MIXED, PREFILL_CONTEXT = 0, 1, 2, 3
HEADER = 4
BATCHES = 13
"""Powers of two of the decodes: 1 to 4,096."""
CONTEXTS = 18
"""Powers of two of the context of a decode: 1 to 131,072 tokens."""
PAIRS = 34
"""Powers of two of the prefill pairs: 1 to 2^33 (a prompt of 131,072 tokens)."""
FIELD_TOKENS, FIELD_CONTEXTS = 15, 24
"""Powers of two of S and of the whole context (of decodes and prefills) in the residual field."""


def curve(knots: Sequence[tuple[int, float]], per_ms: int, last: int) -> IntArray:
    """Times for 0..`last` tokens from knots (tokens, ms); below the first knot its time.

    Args:
        knots: increasing in tokens; at least one.
        per_ms: units of the result in a millisecond.
        last: largest number of tokens; beyond the last knot the last slope goes on.
    """
    x = np.array([tokens for tokens, _ in knots], np.int64)
    y = np.array([round(ms * per_ms) for _, ms in knots], np.int64)
    if len(x) == 1:
        return np.full(last + 1, y[0])
    tokens = np.arange(last + 1)
    at = np.clip(np.searchsorted(x, tokens, side="right") - 1, 0, len(x) - 2)
    run, rise = np.diff(x)[at], np.diff(y)[at]
    found: IntArray = np.maximum(y[at] + rise * np.maximum(tokens - x[at], 0) // run, 0)
    return found


def log2_floor(value: int, most: int) -> int:
    """Largest i <= `most` with 2^i <= `value` (>= 1)."""
    return min(value.bit_length() - 1, most)


def between(low: int, high: int, value: int, power: int) -> int:
    """On the line from `low` at 2^power to `high` at 2^(power + 1); `high` beyond."""
    over = min(value - (1 << power), 1 << power)
    bits = min(power, FRACTION_BITS)
    return low + ((high - low) * (over >> (power - bits)) >> bits)


def on_curve(values: Sequence[int] | IntArray, at: int, size: int, x: int) -> int:
    """A table over powers of two at `x` >= 0; 0 gives the first entry's share of it, 0."""
    if x <= 0:
        return 0
    i = log2_floor(x, size - 2)
    return between(int(values[at + i]), int(values[at + i + 1]), x, i)


def on_grid(
    values: Sequence[int] | IntArray, at: int, shape: tuple[int, int], x: int, y: int
) -> int:
    """A table over two powers of two at (x, y), both >= 1."""
    i, j = log2_floor(x, shape[0] - 2), log2_floor(y, shape[1] - 2)
    row = at + i * shape[1] + j
    low = between(int(values[row]), int(values[row + 1]), y, j)
    row += shape[1]
    return between(low, between(int(values[row]), int(values[row + 1]), y, j), x, i)


def grid_ns(
    values: Sequence[int] | IntArray,
    g: int,
    sequences: int,
    tokens: int,
    context: int,
    pairs: int,
    prefill_context: int,
    mixed: int,
) -> int:
    """Duration of a step by the grid block at `g`, in ns; features as in `terms.step_ns`."""
    head = g + HEADER + int(values[g + MAX_TOKENS]) + 1
    decode = head + int(values[g + MAX_SEQUENCES]) + 1
    attention = decode + BATCHES * CONTEXTS
    field = attention + PAIRS
    ps = int(values[g + HEADER + tokens]) + int(values[head + sequences])
    if context > 0:
        decodes = max(sequences - mixed, 1)
        shape = (BATCHES, CONTEXTS)
        time = on_grid(values, decode, shape, decodes, max(context // decodes, 1))
        ps += time + (time * int(values[g + MIXED]) * mixed >> 20)
    ps += on_curve(values, attention, PAIRS, pairs)
    ps += int(values[g + PREFILL_CONTEXT]) * prefill_context // FS_PER_PS
    shape = (FIELD_TOKENS, FIELD_CONTEXTS)
    bend = on_grid(values, field, shape, max(tokens, 1), context + prefill_context + 1)
    return max((ps // 1000) * (UNIT + bend) >> 20, 1)


def longest_grid_ns(values: IntArray, g: int, context: int, pairs: int) -> int:
    """An upper bound of `grid_ns` up to so much context and so many pairs."""
    head = g + HEADER + int(values[g + MAX_TOKENS]) + 1
    decode = head + int(values[g + MAX_SEQUENCES]) + 1
    attention = decode + BATCHES * CONTEXTS
    field = attention + PAIRS
    parts = (g + HEADER, head, decode, attention, field, field + FIELD_TOKENS * FIELD_CONTEXTS)
    highest = [int(values[one:end].max()) for one, end in pairwise(parts)]
    by_tokens, by_sequences, decodes, _, bend = highest
    ps = by_tokens + by_sequences + decodes + (decodes * int(values[g + MIXED]) >> 20)
    ps += on_curve(values, attention, PAIRS, pairs)
    ps += int(values[g + PREFILL_CONTEXT]) * context // FS_PER_PS
    return (ps // 1000) * (UNIT + max(bend, 0)) >> 20


@inner
def _log2_kernel(value, most):  # type: ignore[no-untyped-def]
    found = np.int64(0)
    while found < most and value >> (found + 1) > 0:
        found += 1
    return found


@inner
def _between_kernel(low, high, value, power):  # type: ignore[no-untyped-def]
    over = min(value - (np.int64(1) << power), np.int64(1) << power)
    bits = min(power, np.int64(FRACTION_BITS))
    return low + (((high - low) * (over >> (power - bits))) >> bits)


@inner
def _on_grid_kernel(a, at, rows, columns, x, y):  # type: ignore[no-untyped-def]
    i = _log2_kernel(x, rows - 2)
    j = _log2_kernel(y, columns - 2)
    row = at + i * columns + j
    low = _between_kernel(a[row], a[row + 1], y, j)
    row += columns
    return _between_kernel(low, _between_kernel(a[row], a[row + 1], y, j), x, i)


@inner
def grid_ns_kernel(  # type: ignore[no-untyped-def]
    a, g, sequences, tokens, context, pairs, prefill_context, mixed
):
    """`grid_ns` over `a`; equal bit for bit."""
    head = g + HEADER + a[g + MAX_TOKENS] + 1
    decode = head + a[g + MAX_SEQUENCES] + 1
    attention = decode + BATCHES * CONTEXTS
    field = attention + PAIRS
    ps = a[g + HEADER + tokens] + a[head + sequences]
    if context > 0:
        decodes = max(sequences - mixed, np.int64(1))
        each = max(context // decodes, np.int64(1))
        time = _on_grid_kernel(a, decode, np.int64(BATCHES), np.int64(CONTEXTS), decodes, each)
        ps += time + ((time * a[g + MIXED] * mixed) >> 20)
    if pairs > 0:
        i = _log2_kernel(pairs, np.int64(PAIRS - 2))
        ps += _between_kernel(a[attention + i], a[attention + i + 1], pairs, i)
    ps += a[g + PREFILL_CONTEXT] * prefill_context // FS_PER_PS
    bend = _on_grid_kernel(
        a,
        field,
        np.int64(FIELD_TOKENS),
        np.int64(FIELD_CONTEXTS),
        max(tokens, np.int64(1)),
        context + prefill_context + 1,
    )
    return max(((ps // 1000) * (UNIT + bend)) >> 20, np.int64(1))
