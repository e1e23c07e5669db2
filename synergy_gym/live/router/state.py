"""What a real router knows of its engines: the same table that the simulator's routers see.

No threads and no clock: whoever feeds it says what time it is, so tests play it in virtual time.
The definitions are the simulator's (`router_table.RouterRow`, `sim/plain/telemetry.py`); a
conformance test plays both side by side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from synergy_gym.sim.compiled.layout import ADVERT_SIZE
from synergy_gym.sim.plain.telemetry import (
    PUSH_COLUMNS,
    SCRAPE_COLUMNS,
    first_vector,
    received,
)
from synergy_gym.types import (
    INFORMATION_CLASSES,
    NS_PER_S,
    BoolArray,
    ClusterView,
    CompletionView,
    EngineSpec,
    IntArray,
    Outcome,
    RouterRow,
)

PUSH_SIZE = len(PUSH_COLUMNS)
"""Numbers in a state vector that says everything."""
HEARTBEAT_SIZE = PUSH_SIZE - ADVERT_SIZE + 1
"""Numbers in a heartbeat: all but what the engine says about its model."""
SCRAPE_SIZE = SCRAPE_COLUMNS.stop - SCRAPE_COLUMNS.start
"""Numbers in a scrape: time, gauges, window means, finished requests."""
EVERYTHING = frozenset(INFORMATION_CLASSES)
MAX_SESSIONS = 1_000_000

_PUSH = np.array(PUSH_COLUMNS, np.int64)


@dataclass(slots=True)
class Attempt:
    """A request in flight, as its router knows it; times in nanoseconds of the router's clock."""

    engine: int
    prompt_tokens: int
    session: int
    arrival_ns: int
    first_token_ns: int = -1
    output_tokens: int = 0


class RouterState:
    """The router's table (`RouterRow`), sessions and requests in flight.

    Args:
        engines: the cluster, in index order.
        told: per engine what it says about itself before its first push (`adverts.published`);
            zeros by default.
        alive: whether engines take requests before anybody said so.
        max_sessions: the session routed longest ago is forgotten beyond this many.
    """

    def __init__(
        self,
        engines: Sequence[EngineSpec],
        *,
        told: Sequence[Sequence[int]] | None = None,
        alive: bool = True,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        if not engines:
            raise ValueError("a router needs at least one engine; give one EngineSpec each")
        self.engines = tuple(engines)
        self._rows: IntArray = np.zeros((len(self.engines), len(RouterRow)), np.int64)
        self._rows[:, RouterRow.ALIVE] = alive
        start = [[0] * ADVERT_SIZE] * len(self.engines) if told is None else told
        self._visible = [
            first_vector(spec.kv_blocks, words)
            for spec, words in zip(self.engines, start, strict=True)
        ]
        self._rows[:, _PUSH] = self._visible
        self._sessions: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._max_sessions = max_sessions
        self._flights: dict[int, Attempt] = {}
        self._completions: list[tuple[int, int, int, CompletionView]] = []

    @property
    def alive(self) -> BoolArray:
        """Engines that take requests."""
        up: BoolArray = self._rows[:, RouterRow.ALIVE] != 0
        return up

    def rows(self) -> IntArray:
        """The table, int64 `(engines, len(RouterRow))`; a copy."""
        return self._rows.copy()

    def in_flight(self, engine: int) -> list[int]:
        """Requests on `engine`, in the order in which they were routed."""
        return [request for request, a in self._flights.items() if a.engine == engine]

    def cluster_view(
        self,
        now_ns: int,
        *,
        rng: np.random.Generator,
        session: int = -1,
        information: frozenset[str] = EVERYTHING,
        avoid: Collection[int] = (),
    ) -> ClusterView:
        """What a router policy sees when a request of `session` arrives.

        Args:
            now_ns: the router's time.
            rng: the policy's generator.
            session: the request's session, or -1.
            information: classes that the policy declares.
            avoid: engines shown as down, because this request has failed there already.
        """
        rows = self.rows()
        rows[list(avoid), RouterRow.ALIVE] = 0
        engine, since = self._sessions.get(session, (-1, 0))
        return ClusterView(
            now_ns=now_ns,
            engines=self.engines,
            rows=rows,
            session_engine=engine,
            session_age_s=(now_ns - since) / NS_PER_S if engine >= 0 else float("inf"),
            rng=rng,
            information=information,
        )

    def routed(
        self,
        request: int,
        engine: int,
        prompt_tokens: int,
        now_ns: int,
        *,
        session: int = -1,
        arrival_ns: int | None = None,
    ) -> None:
        """A request goes to `engine`.

        Args:
            request: the caller's number of it; a retry may use the same one.
            engine: where it goes; must be up.
            prompt_tokens: its length.
            now_ns: the router's time.
            session: its session, or -1.
            arrival_ns: when the request first arrived, `now_ns` by default; latencies count
                from there.

        Raises:
            ValueError: no such engine, it is down, or the request is in flight already.
        """
        self._check(engine)
        if not self._rows[engine, RouterRow.ALIVE]:
            raise ValueError(f"engine {engine} is down; choose one that is alive")
        if request in self._flights:
            raise ValueError(f"request {request} is in flight already; end its attempt first")
        since = now_ns if arrival_ns is None else arrival_ns
        self._flights[request] = Attempt(engine, prompt_tokens, session, since)
        row = self._rows[engine]
        row[RouterRow.IN_FLIGHT] += 1
        row[RouterRow.IN_FLIGHT_TOKENS] += prompt_tokens
        row[RouterRow.ROUTED_SINCE_PUSH] += prompt_tokens
        if session >= 0:
            self._note_session(session, engine, now_ns)

    def emitted(self, request: int, now_ns: int, tokens: int = 1) -> None:
        """Output tokens of a request came back at `now_ns`."""
        attempt = self._flights[request]
        if attempt.first_token_ns < 0:
            attempt.first_token_ns = now_ns
        attempt.output_tokens += tokens

    def ended(
        self, request: int, outcome: Outcome, now_ns: int, *, output_tokens: int | None = None
    ) -> CompletionView:
        """An attempt ended, for whatever reason; the view is kept for `completions` too.

        Args:
            request: a request in flight.
            outcome: what became of the attempt.
            now_ns: the router's time.
            output_tokens: its output, where the engine said so; what `emitted` counted by
                default.

        Raises:
            KeyError: the request is not in flight.
        """
        attempt = self._flights.pop(request)
        row = self._rows[attempt.engine]
        row[RouterRow.IN_FLIGHT] -= 1
        row[RouterRow.IN_FLIGHT_TOKENS] -= attempt.prompt_tokens
        if output_tokens is not None:
            attempt.output_tokens = output_tokens
        return self._report(request, attempt, outcome, now_ns)

    def refused(
        self,
        request: int,
        prompt_tokens: int,
        now_ns: int,
        *,
        session: int = -1,
        arrival_ns: int | None = None,
    ) -> CompletionView:
        """A request reached no engine, because none is up: it failed."""
        since = now_ns if arrival_ns is None else arrival_ns
        return self._report(
            request, Attempt(-1, prompt_tokens, session, since), Outcome.FAILED, now_ns
        )

    def completions(self) -> list[CompletionView]:
        """Attempts that ended since the last call, by (time, engine, request)."""
        ended, self._completions = sorted(self._completions, key=lambda item: item[:3]), []
        return [view for *_, view in ended]

    def pushed(self, engine: int, vector: Sequence[int]) -> None:
        """A state vector of `engine` arrived, or its heartbeat.

        Args:
            engine: whose state it is.
            vector: `PUSH_SIZE` numbers in the order of `PUSH_COLUMNS`, or the first
                `HEARTBEAT_SIZE`; the first is the snapshot's time on the router's clock.

        Raises:
            ValueError: the vector has another length.
        """
        self._check(engine)
        if len(vector) not in (PUSH_SIZE, HEARTBEAT_SIZE):
            raise ValueError(
                f"a state vector of {len(vector)} numbers for engine {engine}; send {PUSH_SIZE}, "
                f"or {HEARTBEAT_SIZE} as a heartbeat"
            )
        self._visible[engine] = received(vector, self._visible[engine])
        self._rows[engine, _PUSH] = self._visible[engine]
        self._rows[engine, RouterRow.ROUTED_SINCE_PUSH] = 0

    def scraped(self, engine: int, values: Sequence[int]) -> None:
        """Metrics of `engine` were read.

        Args:
            engine: whose metrics they are.
            values: `SCRAPE_SIZE` numbers in the order of the table; the first is the time.

        Raises:
            ValueError: there are more or fewer.
        """
        self._check(engine)
        if len(values) != SCRAPE_SIZE:
            raise ValueError(
                f"a scrape of {len(values)} numbers for engine {engine}; give {SCRAPE_SIZE}"
            )
        self._rows[engine, SCRAPE_COLUMNS] = values

    def down(self, engine: int) -> None:
        """`engine` takes no more requests; the caller ends those that it holds."""
        self._check(engine)
        self._rows[engine, RouterRow.ALIVE] = 0

    def up(self, engine: int) -> None:
        """`engine` takes requests again."""
        self._check(engine)
        self._rows[engine, RouterRow.ALIVE] = 1

    def _check(self, engine: int) -> None:
        if not 0 <= engine < len(self.engines):
            raise ValueError(f"engine {engine} does not exist; choose 0..{len(self.engines) - 1}")

    def _note_session(self, session: int, engine: int, now_ns: int) -> None:
        self._sessions[session] = (engine, now_ns)
        self._sessions.move_to_end(session)
        if len(self._sessions) > self._max_sessions:
            self._sessions.popitem(last=False)

    def _report(
        self, request: int, attempt: Attempt, outcome: Outcome, now_ns: int
    ) -> CompletionView:
        first, since = attempt.first_token_ns, attempt.arrival_ns
        view = CompletionView(
            now_s=now_ns / NS_PER_S,
            engine=attempt.engine,
            session=attempt.session,
            prompt_tokens=attempt.prompt_tokens,
            output_tokens=attempt.output_tokens,
            ttft_s=(first - since) / NS_PER_S if first >= 0 else -1.0,
            e2e_s=(now_ns - since) / NS_PER_S,
            outcome=outcome,
        )
        self._completions.append((now_ns, attempt.engine, request, view))
        return view
