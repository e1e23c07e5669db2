"""How the simulator's kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` for flat arrays and integer offsets.

    `_nrt=False` drops the reference counts of array views, four fifths of the run time of a
    plain build. It is a private option of numba: a version without it gets the plain build,
    with equal results.
    """
    try:
        compiled: Callable[..., Any] = numba.njit(
            cache=True, error_model="numpy", boundscheck=False, _nrt=False
        )(function)
    except (KeyError, TypeError, NameError):
        compiled = numba.njit(cache=True, error_model="numpy", boundscheck=False)(function)
    return compiled
