"""The engines of a live cluster, which outlive its episodes."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synergy_gym.live.cluster.event_loop import EventLoop
from synergy_gym.live.cluster.messages import Connection, Patience
from synergy_gym.policies.base import EnginePolicy
from synergy_gym.types import SLO, TelemetrySpec


@dataclass(frozen=True, slots=True, eq=False)
class EngineOrders:
    """What the engines do during an episode.

    Attributes:
        policies: per engine who batches there; not yet reset.
        seed: the episode's; the policies' generators follow from it.
        slos: the request classes.
        telemetry: how often servers are scraped.
    """

    policies: Sequence[EnginePolicy]
    seed: int
    slos: tuple[SLO, ...]
    telemetry: TelemetrySpec


class Fleet(ABC):
    """Connections to engines, and the loop in which they live.

    Attributes:
        hub: where events come from.
        connections: one per engine, in index order.
        tells_steps: whether the engines report every iteration (`transport.StepEnded`).
    """

    tells_steps: bool = False

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.hub = EventLoop()
        self.connections: Sequence[Connection] = ()
        self._tickets = itertools.count(1)

    def new_ticket(self) -> int:
        """A name for an attempt, never given before."""
        return next(self._tickets)

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called."""
        return self.hub.is_open

    @property
    def is_whole(self) -> bool:
        """Whether nothing that was started here is lost for good."""
        return True

    @abstractmethod
    def begin(self, orders: EngineOrders) -> None:
        """Make all engines ready for an episode: empty, under the ordered policies.

        The health of every engine is told again (`transport.HealthChanged`).

        Raises:
            RuntimeError: no engine is up.
        """

    @abstractmethod
    def vocabulary(self) -> int:
        """Token ids that every engine's model knows."""

    @abstractmethod
    def entry(self) -> dict[str, Any]:
        """What the engines are, for manifests."""

    def close(self) -> None:
        """End everything that the fleet has started; a second call does nothing."""
        for connection in self.connections:
            connection.close()
        self.hub.close()
