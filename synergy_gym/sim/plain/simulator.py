"""The simulator in plain Python: the readable definition of what every decision leads to.

An iteration is planned when everything at its start is known, and its effects on requests show
at its end. The iteration itself is defined in `engine`, the KV pool in `cache`, the order of
happenings in `world`, what routers see in `telemetry`, declarative routers in `routing`. The
compiled simulator gives the same results bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from synergy_gym.sim.adverts import started_with
from synergy_gym.sim.arguments import check_engine, check_episode, check_messages, check_times
from synergy_gym.sim.plain.engine import ReferenceEngine
from synergy_gym.sim.plain.records import RequestTable
from synergy_gym.sim.plain.routing import RuledRouter
from synergy_gym.sim.plain.server import Server, request_arrays
from synergy_gym.sim.plain.world import World
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    ClientSpec,
    ClusterView,
    CompletionView,
    DecisionRule,
    EngineAdvert,
    EngineSpec,
    EngineView,
    Event,
    IntArray,
    Outcome,
    RequestRecords,
    RequestView,
    RouterRule,
    StepReport,
    TelemetrySpec,
)
from synergy_gym.workload.base import Workload

__all__ = ["ReferenceEngine", "ReferenceSimulator"]

_FOREVER_NS = 1 << 62


class ReferenceSimulator:
    """A cluster of engines under one clock, with the compiled simulator's interface.

    Args:
        engines: what runs on each engine.
        clocks: step-latency vectors, one per engine (`StepTerms.clock`).
        workload: the traffic.
        slos: objectives per class.
        telemetry: how engine state reaches routers.
        client: timeouts and retries.
        events: changes of the world, in time order.
        warmup_ns: arrivals before this are not scored.
        horizon_ns: end of scoring; closed-loop requests arrive only before it.
        stop_ns: nothing later than this happens.
        rules: per engine the rule that decides its iterations; `None` stops at BATCH points.
        adverts: per engine what it tells routers until a decision's advert says otherwise, or
            `None` for zeros.
        auto_route: send arrivals to the only engine, without ROUTE points.
        record_itl: keep the gaps between tokens of scored requests.
        router: routes by this rule, with this generator, instead of stopping at ROUTE points.
        make_engine: makes what plans and commits the iterations of engine i with this spec; a
            `ReferenceEngine` by default.

    Raises:
        ValueError: lengths disagree, an event or SLO class names something absent, or a rule
            is illegal on its engine.
    """

    def __init__(
        self,
        *,
        engines: Sequence[EngineSpec],
        clocks: Sequence[IntArray],
        workload: Workload,
        slos: Sequence[SLO],
        telemetry: TelemetrySpec = TelemetrySpec(),  # noqa: B008 - frozen
        client: ClientSpec = ClientSpec(),  # noqa: B008 - frozen
        events: Sequence[Event] = (),
        warmup_ns: int = 0,
        horizon_ns: int = _FOREVER_NS,
        stop_ns: int = _FOREVER_NS,
        rules: Sequence[DecisionRule | None] | None = None,
        adverts: Sequence[EngineAdvert | None] | None = None,
        auto_route: bool = False,
        record_itl: bool = False,
        router: tuple[RouterRule, np.random.Generator] | None = None,
        make_engine: Callable[[int, EngineSpec], ReferenceEngine] | None = None,
    ) -> None:
        chosen = [None] * len(engines) if rules is None else list(rules)
        rule = None if router is None else router[0]
        check_episode(engines, clocks, chosen, workload, slos, events, rule, auto_route=auto_route)
        check_times(warmup_ns=warmup_ns, horizon_ns=horizon_ns, stop_ns=stop_ns)
        check_messages(telemetry, clocks)
        self.engines = tuple(engines)
        self.workload = workload
        self.slos = tuple(slos)
        self._point = DONE
        told = started_with(adverts, len(self.engines))
        servers = [
            Server(
                i, spec, clocks[i], telemetry, chosen[i], self.slos, told[i],
                None if make_engine is None else make_engine(i, spec),
            )
            for i, spec in enumerate(engines)
        ]  # fmt: skip
        table = RequestTable(workload, self.slos, warmup_ns, horizon_ns, record_itl)
        self._world = World(servers, workload, table, client, events, horizon_ns, auto_route)
        self._stop_ns = stop_ns
        self._router = None if router is None else RuledRouter(*router)

    @property
    def now_ns(self) -> int:
        """Current time, nanoseconds since the episode began."""
        return self._world.now_ns

    @property
    def point_request(self) -> int:
        """The request at the ROUTE point, else -1."""
        return self._world.point_request

    @property
    def point_engine(self) -> int:
        """The engine at the BATCH point, else -1."""
        return self._world.point_engine

    def advance(self) -> int:
        """Run to the next decision point that no rule answers; returns its kind.

        Raises:
            RuntimeError: the last point is still unanswered.
        """
        if self._point != DONE:
            raise RuntimeError("the last decision point is unanswered; call route() or batch()")
        world = self._world
        while world.left < len(self.workload) or world.is_iterating:
            instant = world.next_instant()
            if instant > self._stop_ns:
                break
            world.now_ns = instant
            self._point = world.act()
            if self._point == ROUTE and self._router is not None:
                session = int(self.workload.session[self.point_request])
                self.route(self._router.choose(self.router_rows(), session))
            elif self._point != DONE:
                return self._point
        world.truncate()
        return DONE

    def route(self, engine: int) -> None:
        """Send the arriving request to `engine`.

        Raises:
            ValueError: no request is at its ROUTE point, or no such engine is up.
        """
        if self._point != ROUTE:
            raise ValueError("route() answers ROUTE points only; call advance() first")
        if not 0 <= engine < len(self.engines):
            raise ValueError(f"engine {engine} does not exist; choose 0..{len(self.engines) - 1}")
        if not self._world.servers[engine].alive:
            raise ValueError(f"engine {engine} is down; choose one that is alive")
        world, self._point = self._world, DONE
        request, world.point_request = world.point_request, -1
        world.deliver(request, self._world.servers[engine])

    def batch(self, decision: BatchDecision) -> None:
        """Start the iteration of the engine at its BATCH point.

        Raises:
            ValueError: no engine is at its BATCH point, or the decision is illegal.
        """
        if self._point != BATCH:
            raise ValueError("batch() answers BATCH points only; call advance() first")
        self._world.plan(self._world.servers[self.point_engine], decision)
        self._world.point_engine, self._point = -1, DONE

    def engine_view(self, engine: int) -> EngineView:
        """What the policy of `engine` sees; meant for its BATCH points."""
        check_engine(engine, len(self.engines))
        server = self._world.servers[engine]
        running = request_arrays(server.engine.running, self.now_ns)
        waiting = request_arrays(server.engine.waiting, self.now_ns)
        return EngineView(
            spec=self.engines[engine],
            slos=self.slos,
            state=server.state(self.now_ns),
            last_step=server.last_report,
            fetch=lambda: (running, waiting),
        )

    def engine_state(self, engine: int) -> IntArray:
        """The state vector of `engine` (`EngineStateField`).

        Raises:
            IndexError: there is no such engine.
        """
        check_engine(engine, len(self.engines))
        return self._world.servers[engine].state(self.now_ns)

    def request_view(self) -> RequestView:
        """The request at the ROUTE point."""
        size = self.engines[0].block_size
        ids = None if self.workload.content is None else (size, *self._world.block_ids[size])
        return self._world.table.view(self.point_request, self.now_ns, ids)

    def router_rows(self) -> IntArray:
        """The router's table (`RouterRow`), one row per engine."""
        for server in self._world.servers:
            server.sync(self.now_ns)
        return np.array([server.router_row() for server in self._world.servers], np.int64)

    def cluster_view(self, rng: np.random.Generator, information: frozenset[str]) -> ClusterView:
        """What a router sees that declares `information`."""
        session = int(self.workload.session[self.point_request]) if self.point_request >= 0 else -1
        engine, since = self._world.sessions.get(session, (-1, 0))
        return ClusterView(
            now_ns=self.now_ns,
            engines=self.engines,
            rows=self.router_rows(),
            session_engine=engine,
            session_age_s=(self.now_ns - since) / NS_PER_S if engine >= 0 else float("inf"),
            rng=rng,
            information=information,
        )

    def completions(self) -> list[CompletionView]:
        """Attempts that ended since the last call, by (time, engine, request)."""
        world = self._world
        ended, world.completions = sorted(world.completions, key=lambda item: item[:3]), []
        return [view for *_, view in ended]

    def last_step(self, engine: int) -> StepReport | None:
        """The last iteration that `engine` has finished."""
        return self._world.servers[engine].last_report

    def records(self) -> RequestRecords:
        """What happened to every request so far."""
        return self._world.table.records()

    def met(self) -> int:
        """Scored requests that met all their objectives so far."""
        return self._world.table.met

    def met_by_engine(self) -> IntArray:
        """`met()` by the engine that served the request to its end, one count per engine."""
        return self._world.table.met_by_engine(len(self.engines))

    def itl(self) -> tuple[IntArray, IntArray]:
        """Gaps between tokens of scored requests (ns), and how often each occurred."""
        return self._world.table.itl()

    def log_hash(self) -> str:
        """Hash of all decisions and of what they led to."""
        return self._world.table.log_hash(server.hash for server in self._world.servers)

    def snapshot(self) -> object:
        """Everything that changes, copied."""
        return copy.deepcopy((self._world, self._point), self._shared())

    def restore(self, snapshot: object) -> None:
        """Return to the moment of `snapshot`, which stays usable."""
        state: Any = copy.deepcopy(snapshot, self._shared())
        self._world, self._point = state

    def check(self) -> None:
        """Raise `AssertionError` naming the invariant that is broken (design, section 4)."""
        for server in self._world.servers:
            server.check()
        open_outcomes = (Outcome.PENDING, Outcome.UNFINISHED)
        ended = sum(outcome not in open_outcomes for outcome in self._world.table.outcome)
        assert ended <= self._world.left <= len(self.workload), "requests are not conserved"
        for request, outcome in enumerate(self._world.table.outcome):
            self._check_life(request, outcome)

    def _check_life(self, request: int, outcome: int) -> None:
        table = self._world.table
        job = table.jobs[request]
        assert (request in self._world.live) <= (outcome in (Outcome.PENDING, Outcome.UNFINISHED))
        if outcome != Outcome.FINISHED:
            return
        assert job is not None, "a finished request was never served"
        times = (table.arrival_ns[request], job.scheduled_ns, job.first_token_ns)
        assert list(times) == sorted(times), "life cycle out of order"
        assert job.first_token_ns <= table.finish_ns[request], "finished before its first token"
        assert job.generated == table.output[request], "emitted tokens != output length"

    def _shared(self) -> dict[int, Any]:
        shared = (self.workload, self.slos, *self.engines, *self._world.block_ids.values())
        return {id(value): value for value in shared}
