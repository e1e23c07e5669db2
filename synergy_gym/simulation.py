"""What plays an episode: a simulator, compiled or plain, or real engines."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from synergy_gym.types import (
    BatchDecision,
    ClusterView,
    CompletionView,
    EngineView,
    IntArray,
    RequestRecords,
    RequestView,
    StepReport,
)


class Simulation(Protocol):
    """An episode that stops wherever somebody must decide.

    `advance()` goes on to the next decision point and tells its kind (`sim.points`): BATCH, an
    engine wants to begin an iteration; ROUTE, a request has arrived; DONE. Times are nanoseconds
    since the episode began. A view is of the present point and is not kept beyond the next
    `advance()`.
    """

    @property
    def now_ns(self) -> int:
        """Time of the present point."""

    @property
    def point_engine(self) -> int:
        """Index of the engine of a BATCH point."""

    @property
    def point_request(self) -> int:
        """Number of the request of a ROUTE point."""

    def advance(self) -> int:
        """Go on to the next decision point; its kind."""

    def batch(self, decision: BatchDecision) -> None:
        """Decide a BATCH point.

        Raises:
            ValueError: the decision is not allowed.
        """

    def route(self, engine: int) -> None:
        """Decide a ROUTE point.

        Raises:
            ValueError: there is no such engine, or it is down.
        """

    def engine_view(self, engine: int) -> EngineView:
        """What an engine policy may see."""

    def request_view(self) -> RequestView:
        """What a router may see of the request of a ROUTE point."""

    def cluster_view(self, rng: np.random.Generator, information: frozenset[str]) -> ClusterView:
        """What a router of these information classes may see of the engines."""

    def router_rows(self) -> IntArray:
        """The router's table, `(engines, columns)` (`types.RouterRow`)."""

    def completions(self) -> list[CompletionView]:
        """Requests that have left since the last call."""

    def last_step(self, engine: int) -> StepReport | None:
        """The last iteration that an engine has finished."""

    def met(self) -> int:
        """Scored requests that have met all their SLOs so far."""

    def met_by_engine(self) -> IntArray:
        """The same by engine."""

    def records(self) -> RequestRecords:
        """What has happened to every offered request."""

    def itl(self) -> tuple[IntArray, IntArray]:
        """Pooled inter-token gaps: (gap in ns, how often)."""

    def log_hash(self) -> str:
        """Hash of all decisions and token times so far."""

    def snapshot(self) -> object:
        """The whole state, to be given to `restore`."""

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot of this episode."""

    def check(self) -> None:
        """Raise `AssertionError` where an invariant is broken."""
