"""Decisions of engines that hold for an interval of simulated time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from synergy_gym.envs.compiled.joint import HELD_ACTION, HELD_UNTIL
from synergy_gym.envs.decisions import EngineActions
from synergy_gym.types import BatchDecision, EngineView, IntArray


class HeldDecisions:
    """What every engine of a cluster has decided, and until when that holds.

    A decision holds for the iterations that begin before its interval has passed, as that of a
    trained agent with an `interval_s` does.

    Args:
        actions: the actions of each engine.
        interval_ns: how long a decision holds; 0: for one iteration.

    Attributes:
        interval_ns: as given.
        table: int64 `(engines, 1 + numbers of an action)`, see `HELD_UNTIL` and `HELD_ACTION`;
            the compiled step reads it.
    """

    def __init__(self, actions: Sequence[EngineActions], interval_ns: int) -> None:
        self._actions = actions
        self.interval_ns = interval_ns
        self.table: IntArray = np.zeros((len(actions), 1 + len(actions[0].sizes)), np.int64)

    def take(self, engine: int, action: Any, now_ns: int) -> None:
        """An engine decides.

        Raises:
            ValueError: the action lies outside the engine's space.
        """
        values = self._actions[engine].values(action)
        self.table[engine] = [now_ns + self.interval_ns, *values]

    def holds(self, engine: int, now_ns: int) -> bool:
        """Whether an iteration that begins now goes by the engine's last decision."""
        return bool(now_ns < self.table[engine, HELD_UNTIL])

    def decision(self, engine: int, view: Callable[[], EngineView]) -> BatchDecision:
        """What the engine's last decision means now."""
        return self._actions[engine].decision(self.table[engine, HELD_ACTION:].tolist(), view)
