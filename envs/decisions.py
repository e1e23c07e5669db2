"""From actions to decisions: what each layer's action stands for, and whether it exists."""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any

import numpy as np
from gymnasium import spaces

from synergy_gym.actions import DEFAULT_GRID, ORDERS, EngineGrid, batch_decision
from synergy_gym.scenario import checked_seconds
from synergy_gym.types import NS_PER_S, BatchDecision, BoolArray, EngineSpec, EngineView

ACTIONS = ("limits", "full", "grid")
_NAMES = ("token budget", "max running", "chunk cap", "order rule")
_ENDLESS_NS = 1 << 62


class EngineActions:
    """The actions of one engine, in the form that an environment's `action=` names.

    Args:
        action: `"limits"` (token budget, max running), `"full"` (also chunk cap and order rule),
            `"grid"` (`DEFAULT_GRID`) or a grid.
        spec: the engine.

    Attributes:
        sizes: how many values each number of an action has.
        space: `MultiDiscrete(sizes)`.
        grid: the grid, or `None`.

    Raises:
        ValueError: an unknown form.
    """

    def __init__(self, action: str | EngineGrid, spec: EngineSpec) -> None:
        self.grid = _grid(action)
        self.is_full = action == "full"
        self.sizes = self._sizes(spec)
        self.names = _NAMES[: len(self.sizes)] if self.grid is None else self.grid.axes
        self.space = spaces.MultiDiscrete(self.sizes)

    def _sizes(self, spec: EngineSpec) -> list[int]:
        if self.grid is not None:
            return list(self.grid.shape)
        budgets = spec.max_num_batched_tokens
        sizes = [budgets, spec.max_num_seqs]
        return [*sizes, budgets + 1, len(ORDERS)] if self.is_full else sizes

    def values(self, action: Any) -> list[int]:
        """The numbers of an action.

        Raises:
            ValueError: it lies outside the space.
        """
        values = listed(action)
        if type(values) is not list or len(values) != len(self.sizes):
            raise ValueError(f"action {action!r} must hold {len(self.sizes)} integers")
        for value, size in zip(values, self.sizes, strict=True):
            if type(value) is not int or not 0 <= value < size:
                raise ValueError(self._complaint(values))
        return values

    def decision(self, values: list[int], view: Callable[[], EngineView]) -> BatchDecision:
        """The decision that checked values stand for; `view()` is asked only where it matters."""
        if self.grid is not None:
            return self.grid.decide(values, view())
        if not self.is_full:
            return BatchDecision(values[0] + 1, values[1] + 1)
        budget, most, chunk, order = values
        return batch_decision((budget + 1, most + 1, chunk, order, 0), view())

    def _complaint(self, values: list[Any]) -> str:
        parts = zip(self.names, self.sizes, strict=True)
        ranges = ", ".join(f"{name} 0..{size - 1}" for name, size in parts)
        return f"action {values} is outside {self.space}: integers of {ranges}"


def _grid(action: str | EngineGrid) -> EngineGrid | None:
    if isinstance(action, EngineGrid):
        return action
    if action not in ACTIONS:
        raise ValueError(
            f"action={action!r} is unknown; choose one of {list(ACTIONS)} or an EngineGrid"
        )
    return DEFAULT_GRID if action == "grid" else None


def listed(action: Any) -> Any:
    """The numbers of an action as a list of Python's; a bool among integers stays one."""
    if isinstance(action, list | tuple):
        return [_plain(value) for value in action]
    array = np.asarray(action)
    if array.dtype.kind == "O" and array.ndim == 1:
        return listed(array.tolist())
    return array.tolist() if array.dtype.kind not in "mM" else None  # instants look whole


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    try:
        return index(value)
    except TypeError:
        return value


def checked_interval_ns(decision_interval_s: float | None) -> int:
    """How long a decision holds, in nanoseconds; 0 for `None`, a decision before every iteration.

    Raises:
        ValueError: it is no finite number of seconds above 0.
    """
    if decision_interval_s is None:
        return 0
    cure = "None asks before every iteration"
    interval_s = checked_seconds("decision_interval_s", decision_interval_s, cure)
    return min(round(interval_s * NS_PER_S), _ENDLESS_NS)


def checked_engine(action: Any, engines: int, alive: BoolArray | None, now_ns: int) -> int:
    """The engine that a routing action names.

    Args:
        action: an integer.
        engines: how many there are.
        alive: which of them are up; `None`: all.
        now_ns: the present, for the message.

    Raises:
        ValueError: there is no such engine, or it is down.
    """
    engine = _plain(action)
    if type(engine) is not int or not 0 <= engine < engines:
        raise ValueError(f"action {engine!r} is no engine; give an integer in 0..{engines - 1}")
    if alive is not None and not alive[engine]:
        raise ValueError(
            f"engine {engine} is down at {now_ns / NS_PER_S} s; choose one that "
            'info["action_mask"] allows, or wrap the environment in RerouteIllegal'
        )
    return engine
