"""Batching actions: order rules, grids of limits, and the decisions that they stand for.

Environments, learned policies and training share this file, so that an index means the same
decision in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    BoolArray,
    EngineSpec,
    EngineView,
    IntArray,
)

ORDERS = ("queue", "shortest-prompt", "earliest-deadline", "late-last", "late-last-shortest")
"""Order rules of the waiting queue, by action value."""
LATE_SHARE = 0.7
"""Share of the TTFT objective after which a waiting request is late: prefill takes time too."""

Limits = tuple[int, int, int, int, int]
"""(token budget, max running, chunk cap, index of the order rule, 1 to hold late requests back)."""

_NEVER_NS = 1 << 62


def deadlines_ns(slos: Sequence[SLO]) -> IntArray:
    """TTFT objective per class in nanoseconds; 2^62 for a class without one."""
    limits = [_NEVER_NS if slo.ttft_s is None else round(slo.ttft_s * NS_PER_S) for slo in slos]
    return np.array(limits, np.int64)


def late_after_ns(slos: Sequence[SLO]) -> IntArray:
    """Waiting time per class after which a request is late, in nanoseconds; 2^62: never."""
    limits = [slo.ttft_s for slo in slos]
    return np.array(
        [_NEVER_NS if s is None else round(LATE_SHARE * s * NS_PER_S) for s in limits], np.int64
    )


def late(view: EngineView) -> BoolArray:
    """Which waiting requests are late: without a first token after `late_after_ns`.

    A preempted request that streams already is not.
    """
    waiting = view.waiting
    # Whole nanoseconds: a difference of floats could swap deadlines 1 ns apart.
    waited_ns = np.rint(waiting.waited_s * NS_PER_S).astype(np.int64)
    return (waited_ns > late_after_ns(view.slos)[waiting.slo_class]) & (
        waiting.first_token_age_s < 0
    )


def waiting_order(rule: str, view: EngineView) -> IntArray | None:
    """The waiting queue in the order of a rule of `ORDERS`, as indices; `None` leaves it.

    | rule                 | order (all stable)                                                   |
    |----------------------|----------------------------------------------------------------------|
    | `queue`              | as it is                                                             |
    | `shortest-prompt`    | by prompt tokens                                                     |
    | `earliest-deadline`  | by arrival + TTFT objective of the class; classes without one last   |
    | `late-last`          | late requests (`late`) behind the others                             |
    | `late-last-shortest` | late requests behind the others, both by tokens still to compute     |
    """
    if rule == "queue" or view.num_waiting < 2:
        return None
    waiting = view.waiting
    if rule == "shortest-prompt":
        return np.argsort(waiting.prompt_tokens, kind="stable")
    if rule == "earliest-deadline":
        waited_ns = np.rint(waiting.waited_s * NS_PER_S).astype(np.int64)
        slack_ns = deadlines_ns(view.slos)[waiting.slo_class] - waited_ns
        return np.argsort(slack_ns, kind="stable")
    is_late = late(view)
    if rule == "late-last":
        return np.argsort(is_late, kind="stable") if bool(is_late.any()) else None
    order: IntArray = np.lexsort((waiting.remaining_prefill_tokens, is_late))
    return order


def batch_decision(limits: Limits, view: EngineView) -> BatchDecision:
    """The decision of five action values; priority scheduling keeps its own order.

    With the last one set only as many requests may run as run now or wait and are not late.
    """
    budget, most, chunk, order, hold = limits
    rule = "queue" if view.spec.scheduling == "priority" else ORDERS[order]
    if hold and view.num_waiting:
        punctual = int(np.count_nonzero(~late(view)))
        most = max(min(most, view.num_running + punctual), 1)
    return BatchDecision(budget, most, chunk, waiting_order=waiting_order(rule, view))


@dataclass(frozen=True)
class EngineGrid:
    """A grid of batching decisions: a choice each of budget, cap, chunk cap, order rule and hold.

    The same grid fits engines with other limits: what exceeds a limit stands for the limit.

    Attributes:
        budgets: tokens of the next iteration, >= 0, ascending.
        caps: largest number of running requests, as a share of `max_num_seqs` in (0, 1].
        chunks: most prompt tokens of one request and iteration; 0: no cap.
        orders: rules of `ORDERS`.
        holds: True holds late requests back: none is admitted while this is chosen.
        cover_decodes: budgets count prompt tokens beside one token per running decode, so that
            no budget starves a decode; False: they count all tokens.

    Raises:
        ValueError: an axis is empty or has a value that does not exist.
    """

    budgets: tuple[int, ...] = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    caps: tuple[float, ...] = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
    chunks: tuple[int, ...] = (0,)
    orders: tuple[str, ...] = ("queue", "late-last-shortest")
    holds: tuple[bool, ...] = (False, True)
    cover_decodes: bool = True

    def __post_init__(self) -> None:
        """Check every axis."""
        for name, legal, meaning in (
            ("budgets", lambda v: isinstance(v, int) and v >= 0, "integers >= 0"),
            ("caps", lambda v: 0 < v <= 1, "shares in (0, 1]"),
            ("chunks", lambda v: isinstance(v, int) and v >= 0, "integers >= 0"),
            ("orders", lambda v: v in ORDERS, f"of {list(ORDERS)}"),
            ("holds", lambda v: isinstance(v, bool), "booleans"),
        ):
            values = getattr(self, name)
            if not values or not all(legal(value) for value in values):
                raise ValueError(f"EngineGrid: {name}={values!r} must be one or more {meaning}")
            if len(set(values)) != len(values):
                raise ValueError(f"EngineGrid: {name}={values!r} names a value twice")

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes with more than one value: those that an action chooses."""
        return tuple(name for name in AXES if len(getattr(self, name)) > 1)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """How many values each of `axes` has."""
        return tuple(len(getattr(self, name)) for name in self.axes)

    def choices(self, indices: Sequence[int]) -> tuple[int, float, int, str, bool]:
        """(budget, cap, chunk, order, hold) at these indices, one per axis of `axes`.

        Raises:
            ValueError: too many or too few indices, or one outside its axis.
        """
        if len(indices) != len(self.shape):
            raise ValueError(f"action {list(indices)} must hold {len(self.shape)} integers")
        given = dict(zip(self.axes, indices, strict=True))
        for name, index in given.items():
            if not 0 <= index < len(getattr(self, name)):
                last = len(getattr(self, name)) - 1
                raise ValueError(f"action {list(indices)}: {name} has no index {index}, 0..{last}")
        at = given.get
        return (
            self.budgets[at("budgets", 0)],
            self.caps[at("caps", 0)],
            self.chunks[at("chunks", 0)],
            self.orders[at("orders", 0)],
            self.holds[at("holds", 0)],
        )

    def limits(self, indices: Sequence[int], spec: EngineSpec, decodes: int) -> Limits:
        """What these indices mean on an engine that runs `decodes` decodes now."""
        budget, cap, chunk, order, hold = self.choices(indices)
        return (self.tokens(budget, spec, decodes), *self._others(cap, chunk, order, hold, spec))

    @staticmethod
    def _others(
        cap: float, chunk: int, order: str, hold: bool, spec: EngineSpec
    ) -> tuple[int, int, int, int]:
        most = max(round(cap * spec.max_num_seqs), 1)
        return most, min(chunk, spec.max_num_batched_tokens), ORDERS.index(order), int(hold)

    def table(self, spec: EngineSpec) -> IntArray:
        """int64 `(product of shape, 5)`: budget, cap, chunk, order and hold of every cell.

        Cells are in the order of `np.ndindex(*shape)`. Budgets are those of the grid, not
        bounded and without decodes.
        """
        cells = [self.choices(cell) for cell in np.ndindex(*self.shape)]
        rows = [(cell[0], *self._others(*cell[1:], spec)) for cell in cells]
        return np.array(rows, np.int64).reshape(-1, 5)

    def decide(self, indices: Sequence[int], view: EngineView) -> BatchDecision:
        """The decision of these indices on this engine now."""
        return batch_decision(self.limits(indices, view.spec, view.num_decodes), view)

    def nearest(self, decision: BatchDecision, view: EngineView) -> tuple[int, ...]:
        """Indices of the cell whose budget and cap come closest to a decision (for imitation).

        Budgets are compared by the logarithm of the tokens that they allow now, caps by their
        logarithm. A decision that reorders the queue is the grid's last order, one that admits
        fewer than it could holds late requests back.
        """
        spec, decodes = view.spec, view.num_decodes
        asked = min(decision.token_budget, spec.max_num_batched_tokens)
        budgets = [self.tokens(b, spec, decodes) for b in self.budgets]
        most = spec.max_num_seqs if decision.max_running is None else decision.max_running
        caps = [cap * spec.max_num_seqs for cap in self.caps]
        held = decision.max_running is not None and most < view.num_running + view.num_waiting
        found = {
            "budgets": _closest(budgets, asked),
            "caps": _closest(caps, spec.max_num_seqs if held else most),
            "chunks": _closest([c + 1 for c in self.chunks], decision.prefill_chunk + 1),
            "orders": 0 if decision.waiting_order is None else len(self.orders) - 1,
            "holds": self.holds.index(held) if held in self.holds else 0,
        }
        return tuple(found[name] for name in self.axes)

    def tokens(self, budget: int, spec: EngineSpec, decodes: int) -> int:
        """Tokens that a budget of the grid allows on an engine with `decodes` decodes."""
        tokens = budget + decodes if self.cover_decodes else budget
        return min(max(tokens, 1), spec.max_num_batched_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> EngineGrid:
        """What `to_dict` gave.

        Raises:
            ValueError: an unknown or missing entry, or a wrong value.
        """
        try:
            given: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
            }
            return EngineGrid(**given)
        except TypeError as error:
            raise ValueError(f"a grid has {list(AXES)} and cover_decodes: {error}") from None


AXES = ("budgets", "caps", "chunks", "orders", "holds")
"""The axes of a grid, in the order of an action."""


def _closest(values: Sequence[float], asked: float) -> int:
    distances = np.abs(np.log(np.array(values, np.float64)) - np.log(max(asked, 1)))
    return int(distances.argmin())


DEFAULT_GRID = EngineGrid()
"""The grid of `action="grid"`."""
