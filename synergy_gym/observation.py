"""Where the numbers of a flat observation sit, what they are called and how they are bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Slot:
    """One observed number: its name, its bounds, and how it is computed."""

    name: str
    formula: str
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring numbers of an observation; `repeat` > 1: one copy of `slots` per engine."""

    name: str
    slots: tuple[Slot, ...]
    repeat: int = 1

    @property
    def size(self) -> int:
        """How many numbers the group holds."""
        return len(self.slots) * self.repeat


class ObservationLayout(Mapping[str, slice]):
    """Where everything sits in a flat observation: group name -> slice, in order.

    `names()` lists one name per number (`kv.free`, `engines[3].pushed.running`), `index(name)`
    finds one of them, `low` and `high` are the bounds.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(groups)
        stops = np.cumsum([group.size for group in groups]).tolist()
        starts = [0, *stops[:-1]]
        self._slices = {
            group.name: slice(start, stop)
            for group, start, stop in zip(groups, starts, stops, strict=True)
        }
        self.size: int = stops[-1]

    def __getitem__(self, name: str) -> slice:
        return self._slices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)

    def __repr__(self) -> str:
        body = ", ".join(f"{name}={part.start}:{part.stop}" for name, part in self.items())
        return f"ObservationLayout({body})"

    def names(self) -> list[str]:
        """One name per number, in order."""
        return [name for group in self.groups for name in _slot_names(group)]

    def index(self, name: str) -> int:
        """Position of the number called `name`.

        Raises:
            KeyError: there is none; the message shows some names that exist.
        """
        names = self.names()
        if name not in names:
            raise KeyError(f"no feature {name!r}; there are {names[:6]} ... {names[-1]!r}")
        return names.index(name)

    @property
    def low(self) -> Float32Array:
        """Smallest value of each number."""
        return self._bounds("low")

    @property
    def high(self) -> Float32Array:
        """Largest value of each number."""
        return self._bounds("high")

    def _bounds(self, side: str) -> Float32Array:
        parts = [np.tile([getattr(s, side) for s in g.slots], g.repeat) for g in self.groups]
        bounds: Float32Array = np.concatenate(parts).astype(np.float32)
        return bounds


def _slot_names(group: Group) -> list[str]:
    if group.repeat == 1:
        return [f"{group.name}.{slot.name}" for slot in group.slots]
    return [f"{group.name}[{i}].{slot.name}" for i in range(group.repeat) for slot in group.slots]
