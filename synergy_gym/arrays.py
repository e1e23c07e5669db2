"""Names of the array types that every layer uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

NS_PER_S = 1_000_000_000
FS_PER_MS = 10**12
"""Femtoseconds, in which step-latency coefficients are kept, per millisecond."""
