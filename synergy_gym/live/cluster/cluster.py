"""A cluster of real engines in real time, with the interface of the simulators.

`advance()` returns when the next request is due, `route()` sends it, and meanwhile tokens, state,
metrics and failures come in from the engines. Nothing is simulated: the clock is the wall clock.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from synergy_gym.live.cluster.dispatcher import Dispatcher
from synergy_gym.live.cluster.episode import ClusterEpisode
from synergy_gym.live.cluster.fleet import Fleet
from synergy_gym.sim.points import DONE, ROUTE
from synergy_gym.types import (
    BatchDecision,
    ClusterView,
    CompletionView,
    EngineView,
    IntArray,
    RequestRecords,
    RequestView,
    RouterRow,
    StepReport,
)


class LiveCluster:
    """Real engines behind a router, from one arrival to the next.

    Time begins with the first `advance()`, and goes on while the caller decides. There are no
    BATCH points: engines of other processes batch by their own policies. What becomes of requests
    whose engine fails is said in `Dispatcher`.

    Args:
        fleet: the engines, after `Fleet.begin`; one cluster at a time.
        episode: what is played.
    """

    def __init__(self, fleet: Fleet, episode: ClusterEpisode) -> None:
        self.engines = episode.engines
        self.workload = episode.workload
        self.slos = episode.slos
        self._episode = episode
        self._fleet = fleet
        self._closed = False
        self._desk = Dispatcher(fleet, episode)
        self._blocks: tuple[int, IntArray, IntArray] | None = None
        if episode.workload.content is not None:
            size = episode.engines[0].block_size
            self._blocks = size, *episode.workload.block_ids(size)
        self._point = DONE
        self._request = -1
        self._over = False

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the episode began, at the last decision point."""
        return self._desk.now_ns

    @property
    def point_request(self) -> int:
        """The request at the ROUTE point, else -1."""
        return self._request

    @property
    def point_engine(self) -> int:
        """-1: there are no BATCH points."""
        return -1

    def advance(self) -> int:
        """Wait for the next arrival (ROUTE), or for the end of the episode (DONE).

        Raises:
            RuntimeError: the last point is still unanswered, or the cluster is closed.
        """
        if self._point != DONE:
            raise RuntimeError("the last decision point is unanswered; call route()")
        if self._closed:
            raise RuntimeError("this live cluster is closed; build a new one")
        desk = self._desk
        desk.start()
        while not self._over:
            self._take_in(0)
            desk.tick()
            if desk.is_done or desk.now_ns >= self._episode.stop_ns:
                self._end()
            elif (request := desk.clients.arrive(desk.now_ns)) is None:
                self._take_in(min(desk.next_ns(), self._episode.stop_ns))
            elif self._needs_route(request):
                self._point, self._request = ROUTE, request
                return ROUTE
        return DONE

    def route(self, engine: int) -> None:
        """Send the arriving request to `engine`.

        Raises:
            ValueError: no request is at its ROUTE point, or no such engine accepts it.
        """
        if self._point != ROUTE:
            raise ValueError("route() answers ROUTE points only; call advance() first")
        if not 0 <= engine < len(self.engines):
            raise ValueError(f"engine {engine} does not exist; choose 0..{len(self.engines) - 1}")
        if engine not in self._desk.open_to(self._request):
            raise ValueError(f"engine {engine} is down; choose one that is alive")
        request, self._request, self._point = self._request, -1, DONE
        self._desk.send(request, engine)

    def batch(self, decision: BatchDecision) -> NoReturn:
        """Refused: there are no BATCH points.

        Raises:
            ValueError: always.
        """
        raise ValueError("engines of other processes batch by themselves; there is no BATCH point")

    def request_view(self) -> RequestView:
        """The request at the ROUTE point."""
        return self._desk.table.view(self._request, self.now_ns, self._blocks)

    def router_rows(self) -> IntArray:
        """The router's table (`RouterRow`); engines that failed the request are down in it."""
        self._desk.telemetry.sync(self.now_ns)
        rows = self._desk.state.rows()
        rows[list(self._desk.avoided(self._request)), RouterRow.ALIVE] = 0
        return rows

    def cluster_view(self, rng: np.random.Generator, information: frozenset[str]) -> ClusterView:
        """What a router sees that declares `information`."""
        desk = self._desk
        desk.telemetry.sync(self.now_ns)
        session = int(self.workload.session[self._request]) if self._request >= 0 else -1
        return desk.state.cluster_view(
            self.now_ns,
            rng=rng,
            session=session,
            information=information,
            avoid=desk.avoided(self._request),
        )

    def engine_view(self, engine: int) -> EngineView:
        """Refused: only the engine's own policy sees its queues.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"the queues of engine {engine} are in another process; see router_rows()")

    def completions(self) -> list[CompletionView]:
        """Attempts that ended since the last call, by (time, engine, request)."""
        return self._desk.state.completions()

    def last_step(self, engine: int) -> StepReport | None:
        """The last iteration that `engine` told of; `None` where engines do not tell."""
        return self._desk.telemetry.last_step(engine)

    def records(self) -> RequestRecords:
        """What happened to every request so far."""
        return self._desk.table.records()

    def met(self) -> int:
        """Scored requests that met all their objectives so far."""
        return self._desk.table.met

    def met_by_engine(self) -> IntArray:
        """`met()` by the engine that served the request to its end, one count per engine."""
        return self._desk.table.met_by_engine(len(self.engines))

    def itl(self) -> tuple[IntArray, IntArray]:
        """Gaps between tokens of scored requests (ns), and how often each occurred."""
        return self._desk.table.itl()

    def log_hash(self) -> str:
        """Hash of where requests went and of when they were served; it hardly ever repeats."""
        return self._desk.table.log_hash(())

    def live_report(self) -> dict[str, Any]:
        """Options, and what was counted beside the records: lateness, failures, down engines."""
        counted = self._desk.report.entry()
        return {**self._episode.options, **counted, "engines": self._fleet.entry()}

    def snapshot(self) -> object:
        """Refused.

        Raises:
            NotImplementedError: always: real engines cannot go back in time.
        """
        raise NotImplementedError(
            "real engines cannot go back in time; use backend='sim' for snapshots"
        )

    def restore(self, snapshot: object) -> None:
        """Refused, as `snapshot` is.

        Raises:
            NotImplementedError: always.
        """
        self.snapshot()

    def check(self) -> None:
        """Raise `AssertionError` when a request is lost or counted twice (invariant 1)."""
        self._desk.check()

    def close(self) -> None:
        """End the episode, so that the engines can play another; may be repeated."""
        self._closed = True
        self._end()

    def _take_in(self, until_ns: int) -> None:
        """Everything that engines have told; waits until `until_ns` when there is nothing."""
        wait_ns = self._desk.monotonic_ns(until_ns)
        while (event := self._fleet.hub.next_event(wait_ns)) is not None:
            self._desk.take_in(event)
            wait_ns = 0

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._desk.cut()
            self._desk.report.tell()

    def _needs_route(self, request: int) -> bool:
        """Whether an arrived request needs a decision; else it has been dealt with."""
        if not self._desk.open_to(request):
            self._desk.fail_unrouted(request)
            return False
        if self._episode.auto_route:
            self._desk.send(request, 0)
            return False
        return True
