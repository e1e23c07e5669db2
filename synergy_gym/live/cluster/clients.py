"""Who arrives when, whether or not anybody else has been served: the clients of a live cluster.

Arrivals are absolute deadlines, so a late answer never delays the next request. The rules are
those of `sim.plain.world`; time is given, never read.
"""

from __future__ import annotations

import heapq
from collections import defaultdict

import numpy as np

from synergy_gym.sim.plain.records import RequestTable
from synergy_gym.sim.plain.telemetry import nanoseconds
from synergy_gym.types import ClientSpec, Outcome
from synergy_gym.workload.base import Workload


class OpenLoop:
    """Clients with their arrivals, timeouts and retries; times in nanoseconds of the episode.

    Args:
        workload: the traffic.
        table: one row per request; arrivals, attempts and outcomes are written there.
        client: timeouts and retries.
        horizon_ns: closed-loop requests arrive only before it.

    Attributes:
        left: requests that are gone for good.
        due_ns: when each request's current attempt was due, -1 before the first.
    """

    def __init__(
        self, workload: Workload, table: RequestTable, client: ClientSpec, horizon_ns: int
    ) -> None:
        self.left = 0
        self.due_ns = [-1] * len(workload)
        self._workload = workload
        self._table = table
        self._client = client
        self._horizon_ns = horizon_ns
        self._arrivals = [(at, r) for r, at in enumerate(table.arrival_ns) if workload.after[r] < 0]
        heapq.heapify(self._arrivals)
        self._again: set[int] = set()
        self._tries = [0] * len(workload)
        self._children: dict[int, list[int]] = defaultdict(list)
        for request in np.flatnonzero(workload.after >= 0).tolist():
            self._children[int(workload.after[request])].append(request)

    def next_ns(self) -> int | None:
        """When somebody arrives next; `None`: nobody, as far as is known."""
        return self._arrivals[0][0] if self._arrivals else None

    def deadline_ns(self, request: int) -> int | None:
        """When the client of a request that has arrived gives up; `None`: never."""
        if self._client.timeout_s <= 0:
            return None
        return self.due_ns[request] + nanoseconds(self._client.timeout_s)

    def arrive(self, now_ns: int) -> int | None:
        """The first request that is due at `now_ns`, which has arrived with that; or `None`."""
        if not self._arrivals or self._arrivals[0][0] > now_ns:
            return None
        due_ns, request = heapq.heappop(self._arrivals)
        table = self._table
        table.attempts[request] += 1
        table.engine[request], table.jobs[request] = -1, None
        if request in self._again:
            self._again.discard(request)
            return request
        self._tries[request] += 1
        self.due_ns[request] = due_ns
        if table.arrival_ns[request] < 0:
            table.arrival_ns[request] = due_ns
        return request

    def again(self, request: int, now_ns: int) -> None:
        """The router tries another engine: the request arrives again, its client unaware."""
        self._again.add(request)
        heapq.heappush(self._arrivals, (now_ns, request))

    def leave(self, request: int, outcome: Outcome, now_ns: int) -> bool:
        """A client's attempt ends; returns whether the request is gone for good."""
        retries = outcome in (Outcome.ABORTED, Outcome.FAILED)
        if retries and self._tries[request] <= self._client.max_retries:
            back = now_ns + nanoseconds(self._client.backoff_s)
            heapq.heappush(self._arrivals, (back, request))
            return False
        self._gone(request, outcome)
        for child in self._children.get(request, ()):
            self._release(child, now_ns)
        return True

    def truncate(self) -> None:
        """The episode ends: whoever has not left stays unfinished."""
        for request, outcome in enumerate(self._table.outcome):
            if outcome == Outcome.PENDING:
                self._gone(request, Outcome.UNFINISHED)
        self._arrivals.clear()

    def _gone(self, request: int, outcome: Outcome) -> None:
        self._table.outcome[request] = int(outcome)
        self.left += 1

    def _release(self, child: int, now_ns: int) -> None:
        """A closed-loop request arrives after its think time, or never."""
        at = now_ns + int(self._workload.arrival_ns[child])
        if at < self._horizon_ns:
            heapq.heappush(self._arrivals, (at, child))
            return
        never = [child]
        while never:
            request = never.pop()
            self._gone(request, Outcome.UNFINISHED)
            never += self._children.get(request, ())
