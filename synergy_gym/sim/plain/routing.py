"""A declarative router in plain Python: the definition of every `RouterRule`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from synergy_gym.sim.arguments import ring_place
from synergy_gym.types import IntArray, RouterRow, RouterRule


class RuledRouter:
    """Chooses engines as a rule says.

    Args:
        rule: what it says.
        rng: the router policy's generator.
    """

    def __init__(self, rule: RouterRule, rng: np.random.Generator) -> None:
        self._rule, self._rng = rule, rng
        self._turn = 0

    def choose(self, rows: IntArray, session: int) -> int:
        """The engine of a request of this session (-1: none); `rows` is the router's table."""
        up = np.flatnonzero(rows[:, RouterRow.ALIVE])
        in_flight = rows[:, RouterRow.IN_FLIGHT]
        match self._rule.kind:
            case "round-robin":
                self._turn += 1
                return int(up[(self._turn - 1) % len(up)])
            case "random":
                return int(up[self._rng.integers(len(up))])
            case "weighted":
                return self._weighted(up)
            case "session" if session >= 0:
                return self._owner(rows, session)
            case "session" | "least-outstanding":
                return int(up[in_flight[up].argmin()])
            case "power-of-two":
                return self._better_of_two(up, in_flight)
            case "least-kv":
                used, total = RouterRow.PUSH_USED_BLOCKS, RouterRow.PUSH_TOTAL_BLOCKS
                return self._smallest(up, rows[:, used] / np.maximum(rows[:, total], 1))
            case "least-loaded":
                return self._smallest(up, rows[:, RouterRow.SCRAPE_WAITING])

    def _weighted(self, up: IntArray) -> int:
        edges = np.array(self._rule.weights)[up].cumsum()
        place = edges.searchsorted(self._rng.random() * edges[-1], side="right")
        return int(up[min(int(place), len(up) - 1)])

    def _owner(self, rows: IntArray, session: int) -> int:
        """The first engine on the ring, from the session's place on, that is up."""
        owners, place = self._rule.owners, ring_place(self._rule, session)
        while not rows[owners[place % len(owners)], RouterRow.ALIVE]:
            place += 1
        return owners[place % len(owners)]

    def _better_of_two(self, up: IntArray, in_flight: IntArray) -> int:
        if len(up) == 1:
            return int(up[0])
        first = int(self._rng.integers(len(up)))
        second = (first + 1 + int(self._rng.integers(len(up) - 1))) % len(up)
        one, two = int(up[first]), int(up[second])
        return two if in_flight[two] < in_flight[one] else one

    def _smallest(self, up: IntArray, values: NDArray[Any]) -> int:
        """The smallest value; a draw among equal ones."""
        tied = up[values[up] == values[up].min()]
        return int(tied[self._rng.integers(len(tied))]) if len(tied) > 1 else int(tied[0])
