"""NumPy's default generator in compiled code: the same draws from the same state.

PCG64 (O'Neill, "PCG: a family of simple fast space-efficient statistically good algorithms for
random number generation", HMC-CS-2014-0905: XSL-RR 128/64). Bounded draws are Lemire's ("Fast
random integer generation in an interval", ACM TOMACS 29, 2019) on halves of a draw, as NumPy's are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from synergy_gym.jit import inner

MULTIPLIER_HIGH, MULTIPLIER_LOW = 0x2360ED051FC65DA4, 0x4385DF649FCCF645
HALF = 0xFFFFFFFF
_SCALE = 1.0 / (1 << 53)


def write_state(record: Any, generator: np.random.Generator) -> None:
    """Put the state of a generator into a `ROUTER` record.

    Raises:
        ValueError: it is no PCG64.
    """
    state: Any = generator.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise ValueError(f"a declarative router draws from PCG64, not {state['bit_generator']}")
    mask = (1 << 64) - 1
    for name, value in (("state", state["state"]["state"]), ("increment", state["state"]["inc"])):
        record[f"{name}_high"] = np.uint64(value >> 64).astype(np.int64)
        record[f"{name}_low"] = np.uint64(value & mask).astype(np.int64)
    record["has_spare"], record["spare"] = state["has_uint32"], state["uinteger"]


@inner
def _high_product(x, y):  # type: ignore[no-untyped-def]
    """Upper half of the 128-bit product of two uint64 numbers."""
    shift, half = np.uint64(32), np.uint64(HALF)
    x_high, x_low, y_high, y_low = x >> shift, x & half, y >> shift, y & half
    middle = x_high * y_low + ((x_low * y_low) >> shift)
    other = x_low * y_high + (middle & half)
    return x_high * y_high + (middle >> shift) + (other >> shift)


@inner
def draw_64(router):  # type: ignore[no-untyped-def]
    """The next 64 bits, uint64."""
    high, low = np.uint64(router.state_high), np.uint64(router.state_low)
    times_high, times_low = np.uint64(MULTIPLIER_HIGH), np.uint64(MULTIPLIER_LOW)
    step_low = np.uint64(router.increment_low)
    product = low * times_low
    high = high * times_low + low * times_high + _high_product(low, times_low)
    low = product + step_low
    high += np.uint64(router.increment_high) + np.uint64(1 if low < product else 0)
    router.state_high, router.state_low = np.int64(high), np.int64(low)
    mixed, turn = high ^ low, high >> np.uint64(58)
    back = (np.uint64(64) - turn) & np.uint64(63)
    return (mixed >> turn) | (mixed << back)


@inner
def _draw_32(router):  # type: ignore[no-untyped-def]
    if router.has_spare:
        router.has_spare = False
        return np.uint64(router.spare)
    drawn = draw_64(router)
    router.has_spare = True
    router.spare = np.int64(drawn >> np.uint64(32))
    return drawn & np.uint64(HALF)


@inner
def draw_float(router):  # type: ignore[no-untyped-def]
    """`Generator.random()`."""
    return np.float64(np.int64(draw_64(router) >> np.uint64(11))) * _SCALE


@inner
def draw_below(router, bound):  # type: ignore[no-untyped-def]
    """`Generator.integers(bound)` for bounds below 2^32; a bound of 1 draws nothing."""
    if bound == 1:
        return np.int64(0)
    wide, half = np.uint64(bound), np.uint64(HALF)
    product = _draw_32(router) * wide
    if (product & half) < wide:
        threshold = (half - wide + np.uint64(1)) % wide
        while (product & half) < threshold:
            product = _draw_32(router) * wide
    return np.int64(product >> np.uint64(32))
