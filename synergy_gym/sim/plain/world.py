"""The world of the reference simulator: traffic, clients, events and engines on one clock.

One instant is handled in this order: iterations that end, world events, client timeouts,
arrivals, and then the iterations that start.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from synergy_gym.sim.plain.engine import Job
from synergy_gym.sim.plain.records import RequestTable
from synergy_gym.sim.plain.server import Server
from synergy_gym.sim.plain.telemetry import nanoseconds
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import (
    NS_PER_S,
    BatchDecision,
    ClientSpec,
    CompletionView,
    Event,
    Outcome,
)
from synergy_gym.workload.base import Workload

_NEVER_NS = (1 << 62) + 1


class World:
    """Everything that changes during an episode, advanced one happening at a time.

    Args:
        servers: the engines.
        workload: the traffic.
        table: one row per request.
        client: timeouts and retries.
        events: changes of the world.
        horizon_ns: closed-loop requests arrive only before it.
        auto_route: arrivals go to the only engine.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        workload: Workload,
        table: RequestTable,
        client: ClientSpec,
        events: Sequence[Event],
        horizon_ns: int,
        auto_route: bool,
    ) -> None:
        self.servers = list(servers)
        self.workload = workload
        self.table = table
        self.now_ns = 0
        self.point_request = -1
        self.point_engine = -1
        self.left = 0
        """Requests that are gone for good."""
        self.live: dict[int, Server] = {}
        """Where each request in flight is."""
        self.sessions: dict[int, tuple[int, int]] = {}
        """Engine that last got each session, and when."""
        self.completions: list[tuple[int, int, int, CompletionView]] = []
        self._client = client
        self._events = sorted(events, key=lambda event: nanoseconds(event.at_s))
        self._next_event = 0
        self._horizon_ns = horizon_ns
        self._auto_route = auto_route
        self._arrivals = [(at, r) for r, at in enumerate(table.arrival_ns) if workload.after[r] < 0]
        self._timeouts: list[tuple[int, int, int]] = []
        self._children: dict[int, list[int]] = defaultdict(list)
        for request in np.flatnonzero(workload.after >= 0).tolist():
            self._children[int(workload.after[request])].append(request)
        specs = [server.engine.spec for server in servers]
        needed = workload.content is not None
        sizes = {spec.block_size for spec in specs if spec.prefix_caching or needed}
        self.block_ids = {size: workload.block_ids(size) for size in sizes}

    @property
    def is_iterating(self) -> bool:
        """Whether an iteration is in flight, maybe of requests that have all given up."""
        return any(server.step for server in self.servers)

    def next_instant(self) -> int:
        """When something happens next, nanoseconds."""
        if any(server.is_ready for server in self.servers):
            return self.now_ns
        self._forget_timeouts()
        instants = [server.step.end_ns for server in self.servers if server.step]
        instants += [queue[0][0] for queue in (self._arrivals, self._timeouts) if queue]
        if self._next_event < len(self._events):
            instants.append(nanoseconds(self._events[self._next_event].at_s))
        return min(instants, default=_NEVER_NS)

    def act(self) -> int:
        """Do the first thing that is due now; returns ROUTE or BATCH if it needs a decision."""
        now = self.now_ns
        for server in self.servers:
            if server.step and server.step.end_ns <= now:
                self._commit(server)
                return DONE
        if self._next_event < len(self._events):
            event = self._events[self._next_event]
            if nanoseconds(event.at_s) <= now:
                self._next_event += 1
                self._happen(event)
                return DONE
        if self._timeouts and self._timeouts[0][0] <= now:
            self._time_out(*heapq.heappop(self._timeouts)[1:])
            return DONE
        if self._arrivals and self._arrivals[0][0] <= now:
            return self._arrive(heapq.heappop(self._arrivals)[1])
        return self._plan_next()

    def deliver(self, request: int, server: Server) -> None:
        """Hand an arriving request to its engine; what can never fit is rejected at once."""
        prompt = int(self.workload.prompt_tokens[request])
        self._note_route(request, prompt, server)
        room = server.engine.max_length - prompt
        if room <= 0:
            self._leave(request, Outcome.REJECTED)
            return
        output = min(int(self.workload.output_tokens[request]), room)
        job = Job(
            request=request,
            prompt=prompt,
            output=output,
            arrival_ns=self.table.arrival_ns[request],
            priority=int(self.workload.priority[request]),
            slo_class=int(self.workload.slo_class[request]),
            block_ids=self._ids_of(request, server),
        )
        self.table.output[request] = output
        self.table.jobs[request] = job
        server.receive(job, self.now_ns)
        if self._client.timeout_s > 0:
            due = self.now_ns + nanoseconds(self._client.timeout_s)
            heapq.heappush(self._timeouts, (due, request, self.table.attempts[request]))

    def plan(self, server: Server, decision: BatchDecision) -> None:
        """Start an iteration as a policy decided; `ValueError` when that is illegal."""
        self._reject(server.plan(decision, self.now_ns, self._next_arrival()).rejected)

    def truncate(self) -> None:
        """End the episode: whatever is still in the system stays unfinished."""
        outcome = self.table.outcome
        outcome[:] = [Outcome.UNFINISHED if o == Outcome.PENDING else o for o in outcome]

    def _commit(self, server: Server) -> None:
        outputs = server.commit(self.now_ns)
        for job, gap_ns in outputs.emitted:
            if job.generated > 1:
                self.table.note_gap(job.request, gap_ns)
        for job in outputs.finished:
            self.table.finish(job.request, self.now_ns)
            self._leave(job.request, Outcome.FINISHED)
        for job in outputs.aborted:
            self._leave(job.request, Outcome.ABORTED)

    def _happen(self, event: Event) -> None:
        server = self.servers[event.engine]
        if event.kind == "down" and server.alive:
            for job in server.go_down(self.now_ns):
                self._leave(job.request, Outcome.FAILED)
        elif event.kind == "up" and not server.alive:
            server.come_up(self.now_ns)
        elif event.kind == "slowdown":
            server.slow_down(event.factor)
        elif event.kind == "lose_blocks":
            server.lose_blocks(event.blocks, self.now_ns)

    def _forget_timeouts(self) -> None:
        """Drop what is due next of attempts that have left: nothing happens then."""
        while self._timeouts:
            _, request, attempt = self._timeouts[0]
            if request in self.live and self.table.attempts[request] == attempt:
                return
            heapq.heappop(self._timeouts)

    def _time_out(self, request: int, attempt: int) -> None:
        server = self.live.get(request)
        if server is None or self.table.attempts[request] != attempt:
            return
        job = self.table.jobs[request]
        assert job is not None
        if server.step is not None and job in server.engine.running:
            job.abort_due = True
        else:
            server.engine.remove(job)
            self._leave(request, Outcome.ABORTED)

    def _arrive(self, request: int) -> int:
        table = self.table
        table.attempts[request] += 1
        table.engine[request], table.jobs[request] = -1, None
        if table.arrival_ns[request] < 0:
            table.arrival_ns[request] = self.now_ns
        if not any(server.alive for server in self.servers):
            self._leave(request, Outcome.FAILED)
            return DONE
        if self._auto_route:
            self.deliver(request, self.servers[0])
            return DONE
        self.point_request = request
        return ROUTE

    def _note_route(self, request: int, prompt: int, server: Server) -> None:
        server.sync(self.now_ns)
        server.push.routed_tokens += prompt
        server.in_flight += 1
        server.in_flight_tokens += prompt
        self.live[request] = server
        self.table.engine[request] = server.index
        session = int(self.workload.session[request])
        if session >= 0:
            self.sessions[session] = (server.index, self.now_ns)

    def _plan_next(self) -> int:
        server = next(server for server in self.servers if server.is_ready)
        server.engine.pool.settle()
        if server.rule is None:
            self.point_engine = server.index
            return BATCH
        self._reject(server.plan_by_rule(self.now_ns, self._next_arrival()).rejected)
        return DONE

    def _next_arrival(self) -> int | None:
        return self._arrivals[0][0] if self._arrivals else None

    def _reject(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._leave(job.request, Outcome.REJECTED)

    def _leave(self, request: int, outcome: Outcome) -> None:
        """An attempt ends: the client tries again, or the request has left for good."""
        server = self.live.pop(request, None)
        if server is not None:
            server.in_flight -= 1
            server.in_flight_tokens -= int(self.workload.prompt_tokens[request])
        self._report_end(request, outcome, -1 if server is None else server.index)
        retries = outcome in (Outcome.ABORTED, Outcome.FAILED)
        if retries and self.table.attempts[request] <= self._client.max_retries:
            back = self.now_ns + nanoseconds(self._client.backoff_s)
            heapq.heappush(self._arrivals, (back, request))
            return
        self.table.outcome[request] = int(outcome)
        self.left += 1
        for child in self._children.get(request, ()):
            self._release_child(child)

    def _release_child(self, child: int) -> None:
        """A closed-loop request arrives after its think time, or never."""
        at = self.now_ns + int(self.workload.arrival_ns[child])
        if at < self._horizon_ns:
            heapq.heappush(self._arrivals, (at, child))
            return
        never = [child]
        while never:
            request = never.pop()
            self.table.outcome[request] = int(Outcome.UNFINISHED)
            self.left += 1
            never += self._children.get(request, ())

    def _report_end(self, request: int, outcome: Outcome, engine: int) -> None:
        job = self.table.jobs[request]
        since = self.table.arrival_ns[request]
        first = -1 if job is None else job.first_token_ns
        view = CompletionView(
            now_s=self.now_ns / NS_PER_S,
            engine=engine,
            session=int(self.workload.session[request]),
            prompt_tokens=int(self.workload.prompt_tokens[request]),
            output_tokens=0 if job is None else job.generated,
            ttft_s=(first - since) / NS_PER_S if first >= 0 else -1.0,
            e2e_s=(self.now_ns - since) / NS_PER_S,
            outcome=outcome,
        )
        self.completions.append((self.now_ns, engine, request, view))

    def _ids_of(self, request: int, server: Server) -> list[int]:
        spec = server.engine.spec
        if not spec.prefix_caching:
            return []
        offsets, ids = self.block_ids[spec.block_size]
        result: list[int] = ids[offsets[request] : offsets[request + 1]].tolist()
        return result
