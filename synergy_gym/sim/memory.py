"""The memory of one simulation, seen as structured arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.compiled.clock import load
from synergy_gym.sim.compiled.records import Layout
from synergy_gym.types import IntArray, RouterRow

Records = NDArray[np.void]
LINE = 64
"""Bytes of a cache line."""


class Memory:
    """One simulation's memory; see `sim/compiled/layout.py`.

    A copy (`copy.deepcopy`, pickle) has memory of its own, whole and independent, because what lies
    in it is found by places and not by addresses.

    Args:
        block: the bytes; copied unless they begin at a cache line.

    Attributes:
        address: where it lies; valid as long as this object.
        world: the `WORLD` record, writable.
        engines: `ENGINE` records.
        requests: `REQUEST` records.
        details: `DETAIL` records.
        rows: the router's table, int64 `(engines, len(RouterRow))`.
    """

    def __init__(self, block: NDArray[np.uint8]) -> None:
        load()  # whoever has the address can run kernels, also after it came from another process
        self._block = block if block.ctypes.data % LINE == 0 else _aligned(block)
        self.address: int = self._block.ctypes.data
        self.world: Any = self.records(L.WORLD, 0, 1)[0]
        engines, requests = int(self.world["num_engines"]), int(self.world["num_requests"])
        self.engines = self.records(L.ENGINE, self.world["engines"], engines)
        self.requests = self.records(L.REQUEST, self.world["requests"], requests)
        self.details = self.records(L.DETAIL, self.world["details"], requests)
        flat = self.numbers(int(self.world["rows"]), engines * len(RouterRow))
        self.rows = flat.reshape(engines, len(RouterRow))

    def records(self, layout: Layout, place: int, count: int) -> Records:
        """`count` records that begin `place` bytes from the start, as they are (no copy)."""
        end = int(place) + count * layout.size
        return self._block[int(place) : end].view(layout.dtype)

    def numbers(self, place: int, count: int) -> IntArray:
        """`count` int64 numbers that begin `place` bytes from the start (no copy)."""
        return self._block[place : place + 8 * count].view(np.int64)

    def part(self, engine: int, field: str = "") -> int:
        """Bytes from the start to an engine, or to a record inside it."""
        inside = L.ENGINE.place(field) if field else 0
        return int(self.world["engines"]) + engine * L.ENGINE.size + inside

    def bytes(self) -> NDArray[np.uint8]:
        """A copy of all of it, for `overwrite`."""
        return self._block.copy()

    def overwrite(self, block: NDArray[np.uint8]) -> None:
        """Return to what `bytes()` gave.

        Raises:
            ValueError: it is that of another episode.
        """
        if block.shape != self._block.shape:
            raise ValueError(
                f"the snapshot has {block.size} bytes, this episode {self._block.size}; take one "
                "from a simulator of the same episode"
            )
        self._block[:] = block

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return Memory(_aligned(self._block))

    def __reduce__(self) -> tuple[type[Memory], tuple[NDArray[np.uint8]]]:
        return Memory, (self._block,)


def _aligned(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    copied = empty_block(len(block))
    copied[:] = block
    return copied


def empty_block(size: int) -> NDArray[np.uint8]:
    """Zeros that begin at a cache line."""
    room: NDArray[np.uint8] = np.zeros(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size]
