"""Engines of other processes, kept between episodes: starting them takes longer than playing."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Hashable

from synergy_gym.live.cluster.fleet import Fleet


class FleetPool:
    """Keeps one fleet for the next episode that asks for the same; use it as a context manager."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._fleet: Fleet | None = None

    def lease(self, key: Hashable, start: Callable[[], Fleet]) -> Fleet:
        """The fleet of this key: the one that is kept, or a new one in its place.

        Args:
            key: equal for fleets that are interchangeable.
            start: makes a fleet.
        """
        fleet = self._fleet
        if fleet is not None and self._key == key and fleet.is_open and fleet.is_whole:
            return fleet
        self.close()
        self._fleet, self._key = start(), key
        return self._fleet

    def close(self) -> None:
        """End the fleet; the pool can be used again."""
        fleet, self._fleet, self._key = self._fleet, None, None
        if fleet is not None:
            fleet.close()

    def __enter__(self) -> FleetPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fleet_pool() -> FleetPool:
    """The pool of this process, closed when it exits; a forked child has one of its own."""
    return _pool_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _pool_of(pid: int) -> FleetPool:
    pool = FleetPool()
    atexit.register(pool.close)
    return pool
