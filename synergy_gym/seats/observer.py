"""Who looks on while policies decide: recorders, examiners, timelines, charges for time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from synergy_gym.types import DecisionRule, RequestRecords

if TYPE_CHECKING:
    from synergy_gym.seats.engine import EngineSeat
    from synergy_gym.seats.router import RouterSeat
    from synergy_gym.simulation import Simulation

    Seat: TypeAlias = "EngineSeat | RouterSeat"


class Observer:
    """Is told what happens at the seats of an episode; this one does nothing.

    Attributes:
        asks_engines: engine policies decide in Python, also those with a compiled rule.
        asks_router: the same for the router policy.
    """

    asks_engines: bool = False
    asks_router: bool = False

    def prepared(self, episode: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the simulator is made from, changed or not."""
        return episode

    def began(self, sim: Simulation, rules: Sequence[DecisionRule | None]) -> None:
        """An episode begins; engines with a rule are not asked."""

    def reset(
        self, seat: Seat, rng: np.random.Generator, given: tuple[Any, ...]
    ) -> np.random.Generator:
        """A policy is about to be reset with these arguments; the generator that it gets."""
        return rng

    def observed(self, seat: Seat, seen: Any) -> None:
        """A policy is shown a step report or a completion."""

    def deciding(self, seat: Seat, *views: Any) -> AbstractContextManager[None]:
        """What is around a decision."""
        return nullcontext()

    def decided(self, seat: Seat, answer: Any, *views: Any) -> None:
        """A policy has answered; nothing is checked or carried out yet."""

    def before(self, sim: Simulation, engine: int | None, answer: Any) -> None:
        """An answer is about to be carried out: for an engine, or of the router (`None`)."""

    def after(self, sim: Simulation, engine: int | None, answer: Any) -> None:
        """It was allowed, and has been carried out."""

    def scored(self, records: RequestRecords) -> RequestRecords:
        """What the episode is scored by, changed or not."""
        return records
