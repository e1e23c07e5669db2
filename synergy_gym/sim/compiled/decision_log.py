"""The decision log's hash: one chained 64-bit value per engine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from synergy_gym.jit import inner, kernel
from synergy_gym.latency.clock import _mix, _mix_kernel
from synergy_gym.types import IntArray

MASK = (1 << 64) - 1
# Odd multipliers (xxHash's primes) keep the three parts of an iteration apart.
K_START = 0x9E3779B185EBCA87
K_DECISION = 0xC2B2AE3D27D4EB4F
K_RESULT = 0x165667B19E3779F9


def chain_iteration(
    value: int,
    start_ns: int,
    decision: tuple[int, int, int],
    sequences: int,
    tokens: int,
    duration_ns: int,
) -> int:
    """The next hash after an iteration; `decision` is (token budget, max running, chunk)."""
    budget, cap, chunk = decision
    said = budget ^ cap << 21 ^ chunk << 42
    led_to = sequences ^ tokens << 20 ^ duration_ns << 40
    mixed = (start_ns * K_START ^ said * K_DECISION ^ (led_to & MASK) * K_RESULT) & MASK
    return _mix(value ^ mixed)


def chain_lists(value: int, lists: Iterable[IntArray | None]) -> int:
    """The next hash after a decision that names requests (orders and caps), if it does."""
    arrays = list(lists)
    if all(array is None for array in arrays):
        return value
    for array in arrays:
        items = [] if array is None else [len(array) + 1, *array.tolist()]
        for item in items or [0]:
            value = _mix(value ^ (item & MASK))
    return value


@kernel
def chain_arrays(value, running, waiting, caps, present):  # type: ignore[no-untyped-def]
    """`chain_lists` compiled; bits of `present` say which of the three the decision has."""
    value = _chain_array(value, running, present & 1)
    value = _chain_array(value, waiting, present & 2)
    return _chain_array(value, caps, present & 4)


@inner
def _chain_array(value, items, present):  # type: ignore[no-untyped-def]
    if present == 0:
        return np.int64(_mix_kernel(np.uint64(value)))
    value = np.int64(_mix_kernel(np.uint64(value) ^ np.uint64(len(items) + 1)))
    for i in range(len(items)):
        value = np.int64(_mix_kernel(np.uint64(value) ^ np.uint64(items[i])))
    return value
