"""The largest numbers that an episode can be configured with, and the check that refuses others.

Simulations count whole nanoseconds and tokens in int64 and in narrower fields of records. Within
these limits every sum and product stays there; beyond them it would wrap to a wrong number.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import fields
from typing import Any

import numpy as np

MOST_S = 315_360_000.0
"""Ten years: the longest time in seconds."""
MOST_NS = int(MOST_S) * 10**9
"""The same in nanoseconds."""
ENDLESS_NS = 1 << 62
"""The latest instant: an end that never comes."""
MOST_FACTOR = 1e6
"""The largest factor of a slowdown or a straggler."""
MOST_RETRIES = (1 << 16) - 2
MOST_TOKENS = 1 << 30
"""Longest prompt or output, and widest priority."""
MOST_COUNT = (1 << 31) - 1
"""The most KV blocks, and the longest context."""
MOST_BLOCK_TOKENS = 1 << 20
MOST_PER_STEP = (1 << 21) - 1
"""The most requests and tokens of an iteration."""
MOST_ENGINES = (1 << 15) - 1
MOST_CLASSES = 1 << 8

SECONDS = f"seconds up to {MOST_S:,.0f} (ten years)"
"""How messages describe a time."""


def is_integer(value: object) -> bool:
    """Whether `value` is a whole number, Python's or NumPy's (a bool is not)."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is a finite real number, Python's or NumPy's (a bool is not)."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def check_number(
    where: str, value: Any, least: float, most: float, cure: str, *, whole: bool = False
) -> None:
    """Raise `ValueError` naming place, value and cure when a number lies outside its range.

    Args:
        where: place and field.
        value: what was given.
        least: the smallest legal value.
        most: the largest one.
        cure: what to give instead.
        whole: whether it must be a whole number.
    """
    fits = is_integer(value) if whole else is_number(value)
    if not (fits and least <= value <= most):
        raise ValueError(f"{where} is {value!r}; give {cure}")


def check_seconds(record: object, where: str, *names: str) -> None:
    """Raise `ValueError` unless these fields are times from 0 to `MOST_S`."""
    for name in names:
        cure = f"0 or more {SECONDS}"
        check_number(f"{where}: {name}", getattr(record, name), 0, MOST_S, cure)


def make_plain(record: Any) -> None:
    """Turn NumPy scalars in the fields of a frozen record into Python's numbers.

    Those of few bits would overflow in what is computed from them.
    """
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, np.generic):
            object.__setattr__(record, item.name, value.item())
