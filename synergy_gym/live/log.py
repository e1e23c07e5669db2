"""How often something that keeps happening is logged."""

from __future__ import annotations


def is_loud(count: int) -> bool:
    """Whether the `count`-th time is logged: the 1st, 2nd, 4th, 8th ... is."""
    return count & (count - 1) == 0
