"""Where every request of a live cluster is, and what becomes of it; nothing here waits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from synergy_gym.live.cluster.clients import OpenLoop
from synergy_gym.live.cluster.episode import NEVER_NS, ClusterEpisode
from synergy_gym.live.cluster.fleet import Fleet
from synergy_gym.live.cluster.messages import (
    AttemptEnded,
    HealthChanged,
    LiveEvent,
    LiveRequest,
    MetricsScraped,
    StatePushed,
    StepEnded,
    TokensCame,
)
from synergy_gym.live.cluster.report import ClusterReport
from synergy_gym.live.cluster.telemetry import step_telemetry
from synergy_gym.live.router.state import RouterState
from synergy_gym.sim.plain.engine import Job
from synergy_gym.sim.plain.records import RequestTable
from synergy_gym.sim.plain.telemetry import nanoseconds
from synergy_gym.types import Event, Outcome, RouterRow


class Dispatcher:
    """Sends requests to engines and takes in what the engines tell.

    An attempt whose engine fails before it streamed anything arrives again at once, with that
    engine shown as down; its client does not notice. One that has streamed fails, and the
    client's own retries apply.

    Args:
        fleet: the engines.
        episode: what is played.

    Attributes:
        now_ns: time of the episode, as `tick` last found it.
    """

    def __init__(self, fleet: Fleet, episode: ClusterEpisode) -> None:
        self.now_ns = 0
        self.report = ClusterReport(len(episode.engines))
        self.table = RequestTable(
            episode.workload,
            episode.slos,
            episode.warmup_ns,
            episode.horizon_ns,
            episode.record_itl,
        )
        self.clients = OpenLoop(episode.workload, self.table, episode.client, episode.horizon_ns)
        self.state = RouterState(episode.engines, told=episode.told, alive=False)
        self.telemetry = step_telemetry(episode, fleet.tells_steps, self.state)
        self._engines = episode.engines
        self._workload = episode.workload
        self._episode = episode
        self._fleet = fleet
        self._events = sorted(episode.events, key=lambda event: event.at_s)
        self._forced_down: set[int] = set()
        self._healthy: set[int] = set()
        self._tickets: dict[int, int] = {}
        self._ticket_of: dict[int, int] = {}
        self._avoid: dict[int, set[int]] = {}
        self._salt = f"{time.time_ns():x}"
        self._cold = itertools.count()
        self._origin_ns = -1
        self._handlers: Mapping[type, Callable[[Any], None]] = {
            TokensCame: self._on_tokens,
            AttemptEnded: self._on_end,
            HealthChanged: self._on_health,
            StepEnded: self._on_step,
            StatePushed: self._on_push,
            MetricsScraped: self._on_scrape,
        }

    @property
    def is_done(self) -> bool:
        """Whether every request has left for good."""
        return self.clients.left == len(self._workload)

    def start(self) -> None:
        """Time begins, unless it has."""
        if self._origin_ns < 0:
            self._origin_ns = time.monotonic_ns()

    def tick(self) -> None:
        """Look at the clock, and let scenario events happen that are due."""
        self.now_ns = max(self.now_ns, self._elapsed_ns())
        while self._events and nanoseconds(self._events[0].at_s) <= self.now_ns:
            self._happen(self._events.pop(0))

    def take_in(self, event: LiveEvent) -> None:
        """An engine told something."""
        self._handlers[type(event)](event)

    def next_ns(self) -> int:
        """When something is due next without anybody telling: an arrival, or an event."""
        arrival = self.clients.next_ns()
        instants = [NEVER_NS if arrival is None else arrival]
        instants += [nanoseconds(event.at_s) for event in self._events[:1]]
        return min(instants)

    def monotonic_ns(self, at_ns: int) -> int:
        """An instant of the episode on the monotonic clock."""
        return self._origin_ns + at_ns

    def avoided(self, request: int) -> set[int]:
        """Engines that have failed a request."""
        return self._avoid.get(request, set())

    def open_to(self, request: int) -> set[int]:
        """Engines that a request may go to now."""
        return set(np.flatnonzero(self.state.alive).tolist()) - self.avoided(request)

    def cut(self) -> None:
        """The episode is over: what is open is aborted, and unfinished in the records."""
        for ticket, request in self._tickets.items():
            self._fleet.connections[self.table.engine[request]].abort(ticket)
            self.state.ended(request, Outcome.UNFINISHED, self.now_ns)
        self._tickets.clear()
        self._ticket_of.clear()
        self.clients.truncate()

    def check(self) -> None:
        """Raise `AssertionError` when a request is lost or counted twice (invariant 1)."""
        gone = sum(outcome != Outcome.PENDING for outcome in self.table.outcome)
        assert gone == self.clients.left, "requests are not conserved"
        assert len(self._tickets) == len(self._ticket_of), "an attempt is lost"
        flying = int(self.state.rows()[:, RouterRow.IN_FLIGHT].sum())
        assert flying == len(self._tickets), "requests in flight are not conserved"

    def fail_unrouted(self, request: int) -> None:
        """No engine that is up would take an arrived request."""
        self.state.refused(
            request,
            int(self._workload.prompt_tokens[request]),
            self.now_ns,
            session=int(self._workload.session[request]),
            arrival_ns=self.table.arrival_ns[request],
        )
        self.report.unrouted += 1
        self._leave(request, Outcome.FAILED, self.now_ns)

    def send(self, request: int, engine: int) -> None:
        """An arrived request goes to `engine`."""
        table, traffic = self.table, self._workload
        prompt = int(traffic.prompt_tokens[request])
        spec = self._engines[engine]
        room = min(spec.max_model_len, spec.kv_blocks * spec.block_size) - prompt
        # A prompt that leaves no room is sent as it is: refusing it is the engine's business.
        output = max(min(int(traffic.output_tokens[request]), room), 1)
        if room > 0:
            table.output[request] = output
        table.engine[request] = engine
        table.jobs[request] = Job(
            request=request,
            prompt=prompt,
            output=output,
            arrival_ns=table.arrival_ns[request],
            priority=int(traffic.priority[request]),
            slo_class=int(traffic.slo_class[request]),
        )
        self.state.routed(
            request,
            engine,
            prompt,
            self.now_ns,
            session=int(traffic.session[request]),
            arrival_ns=table.arrival_ns[request],
        )
        self.telemetry.routed(engine, self.now_ns)
        self.report.sent(self._elapsed_ns() - self.clients.due_ns[request])
        ticket = self._fleet.new_ticket()
        self._tickets[ticket], self._ticket_of[request] = request, ticket
        self._fleet.connections[engine].submit(self._live_request(request, ticket, output))

    def _since(self, at_ns: int) -> int:
        """A stamp of the monotonic clock as time of the episode."""
        return max(at_ns - self._origin_ns, 0)

    def _elapsed_ns(self) -> int:
        return self._since(time.monotonic_ns())

    def _live_request(self, request: int, ticket: int, output: int) -> LiveRequest:
        deadline_ns = self.clients.deadline_ns(request)
        slo_class = int(self._workload.slo_class[request])
        prompt = int(self._workload.prompt_tokens[request])
        tokens = self._episode.tokens(request)
        return LiveRequest(
            ticket=ticket,
            prompt_token_ids=tokens[:prompt],
            output_token_ids=tokens[prompt : prompt + output],
            max_tokens=output,
            slo_class=slo_class,
            slo_name=self._episode.slos[slo_class].name,
            priority=int(self._workload.priority[request]),
            arrival_ns=self._origin_ns + self.table.arrival_ns[request],
            deadline_ns=None if deadline_ns is None else self._origin_ns + deadline_ns,
            cache_salt=self._salt,
        )

    def _leave(self, request: int, outcome: Outcome, at_ns: int) -> None:
        self._avoid.pop(request, None)
        self.clients.leave(request, outcome, at_ns)

    # -- what comes in -------------------------------------------------------------------

    def _on_tokens(self, event: TokensCame) -> None:
        request = self._tickets.get(event.ticket)
        job = None if request is None else self.table.jobs[request]
        if request is None or job is None:
            return
        at_ns = max(self._since(event.at_ns), job.last_token_ns, job.arrival_ns)
        if job.generated == 0:
            job.first_token_ns = at_ns
        for gap_ns in [at_ns - job.last_token_ns, *[0] * (event.tokens - 1)][job.generated == 0 :]:
            self.table.note_gap(request, gap_ns)
        job.generated += event.tokens
        job.last_token_ns = at_ns
        self.state.emitted(request, at_ns, event.tokens)

    def _on_end(self, event: AttemptEnded) -> None:
        request = self._tickets.get(event.ticket)
        if request is None:
            return
        job = self.table.jobs[request]
        assert job is not None
        if event.scheduled_ns >= 0:
            job.scheduled_ns = self._since(event.scheduled_ns)
        job.cached, job.preemptions = event.cached_tokens, event.preemptions
        outcome = event.outcome
        if outcome == Outcome.FINISHED and job.generated == 0:
            outcome = Outcome.FAILED  # a complete answer without a single token is none
        self._over_with(request, event.ticket, outcome, self._since(event.at_ns), event.reason)

    def _over_with(
        self, request: int, ticket: int, outcome: Outcome, at_ns: int, reason: str
    ) -> None:
        """An attempt has ended; finish, try elsewhere, or let its client decide."""
        job = self.table.jobs[request]
        assert job is not None
        del self._tickets[ticket], self._ticket_of[request]
        engine = self.table.engine[request]
        at_ns = max(at_ns, job.last_token_ns, job.arrival_ns)
        self.state.ended(request, outcome, at_ns)
        self.report.ended(engine, outcome, reason, short=job.generated < job.output)
        if outcome == Outcome.FINISHED:
            self.table.finish(request, job.last_token_ns)
            self.telemetry.finished(engine, job)
        elif outcome == Outcome.FAILED and job.generated == 0 and self._elsewhere(request, engine):
            return
        self._leave(request, outcome, at_ns)

    def _elsewhere(self, request: int, engine: int) -> bool:
        """Let another engine serve what `engine` has not begun to; False if there is none."""
        self._avoid.setdefault(request, set()).add(engine)
        deadline_ns = self.clients.deadline_ns(request)
        if deadline_ns is not None and deadline_ns <= self._elapsed_ns():
            return False
        if not self.open_to(request):
            return False
        self.report.retried_elsewhere += 1
        self.clients.again(request, self.now_ns)
        return True

    def _on_health(self, event: HealthChanged) -> None:
        if event.alive:
            self._healthy.add(event.engine)
        else:
            self.report.downs[event.engine] += event.engine in self._healthy
            self._healthy.discard(event.engine)
        self._show_health(event.engine, self._since(event.at_ns))

    def _show_health(self, engine: int, now_ns: int) -> None:
        alive = engine in self._healthy and engine not in self._forced_down
        (self.state.up if alive else self.state.down)(engine)
        self.telemetry.health(engine, alive, now_ns)

    def _on_step(self, event: StepEnded) -> None:
        if event.at_ns >= self._origin_ns:
            self.telemetry.step(event, self._since(event.at_ns))

    def _on_push(self, event: StatePushed) -> None:
        if event.vector[0] >= self._origin_ns:
            self.state.pushed(event.engine, (self._since(event.vector[0]), *event.vector[1:]))

    def _on_scrape(self, event: MetricsScraped) -> None:
        if event.at_ns >= self._origin_ns:
            self.state.scraped(event.engine, (self._since(event.at_ns), *event.values[1:]))

    def _happen(self, event: Event) -> None:
        """A scenario's event: an engine goes down, or comes back with a cold cache."""
        engine = event.engine
        if event.kind == "up":
            self._forced_down.discard(engine)
            self._salt = f"{self._salt.split('-')[0]}-{next(self._cold)}"
        else:
            self._forced_down.add(engine)
            for request in self.state.in_flight(engine):
                ticket = self._ticket_of[request]
                self._fleet.connections[engine].abort(ticket)
                self._fail_at(request, ticket)
        self._show_health(engine, self.now_ns)

    def _fail_at(self, request: int, ticket: int) -> None:
        """As in the simulator: what is on an engine that is taken down fails, streamed or not."""
        del self._tickets[ticket], self._ticket_of[request]
        self.state.ended(request, Outcome.FAILED, self.now_ns)
        self._leave(request, Outcome.FAILED, self.now_ns)
