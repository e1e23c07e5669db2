"""Arguments of vector environments: seeds, masks, and whether actions are whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from synergy_gym.limits import is_integer
from synergy_gym.types import BoolArray

Seeds = int | Sequence[int | None] | None


def are_whole(numbers: Any) -> bool:
    """Whether int64 can hold every entry of an array as it is (a bool is no number)."""
    kind = numbers.dtype.kind
    if kind not in "iuO" or (kind == "O" and not all(map(is_integer, numbers.flat))):
        return False
    return not numbers.size or bool(-(1 << 63) <= numbers.min() <= numbers.max() < 1 << 63)


def one_each(seed: Seeds, count: int) -> list[int | None]:
    """The seed of every sub-environment; see `ServingVectorEnv.reset`."""
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(count)]
    if len(seed) != count:
        raise ValueError(f"{len(seed)} seeds for {count} sub-environments; give one each")
    return list(seed)


def checked_mask(mask: Any, count: int) -> BoolArray:
    """Which sub-environments to reset; see `ServingVectorEnv.reset`."""
    if mask is None:
        return np.ones(count, np.bool_)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"reset_mask must be an array of booleans, it is {mask!r}")
    if mask.shape != (count,) or not mask.any():
        raise ValueError(
            f"reset_mask has shape {mask.shape} and {int(mask.sum())} True; give one value per "
            f"sub-environment ({count}), and at least one True"
        )
    return mask
