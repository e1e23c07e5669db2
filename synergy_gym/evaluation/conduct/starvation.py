"""The starvation rule: lost requests may wait, but not for ever.

A request is lost when it is twice as late as one of its objectives allows. Letting lost
requests wait while others can still be on time is what a good policy does in overload; never
serving them is a cheat: the score does not see it, their users do. The rule is a deficit account
per engine (after Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin",
IEEE/ACM Transactions on Networking 4, 1996): while lost requests are pending, `SHARE` of the work
that the engine completes is owed to them. A debt above the largest of those that are pending is
starvation: a policy that serves them at all, one by one, with that share, never reaches it.

There are two accounts, of prompt tokens until the first token and of output tokens after it. Both
need only the records of an episode.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from synergy_gym.evaluation.conduct.verdict import Verdict
from synergy_gym.types import NS_PER_S, SLO, BoolArray, IntArray, RequestRecords

SHARE = 0.005
"""Of an engine's completed work, owed to lost requests while some are pending there."""
FAIR = 0.1
"""Part of a fair share that is owed where that is less: k of n pending requests have k / n."""
LATE = 2.0
"""A request is lost when this multiple of an objective has passed. One that is served while its
objective passes is no lost request that waits."""
NEVER_NS = 2**62


@dataclass(frozen=True)
class Debt:
    """The largest debt of one account on one engine.

    Attributes:
        account: "first token" or "output".
        engine: index.
        at_s: when it stood highest against what is allowed.
        tokens: how much was owed to lost requests then.
        allowed_tokens: the largest of those that were pending.
        pending: how many were.
    """

    account: str
    engine: int
    at_s: float
    tokens: float
    allowed_tokens: int
    pending: int

    @property
    def ratio(self) -> float:
        """Debt over what is allowed; above 1 is starvation."""
        return float(self.tokens / self.allowed_tokens) if self.allowed_tokens else 0.0


def lost_ns(records: RequestRecords, slos: Sequence[SLO]) -> IntArray:
    """Per request the instant at which it was twice as late as it may be; `NEVER_NS`: it never was.

    The first of its objectives that was missed by the objective again; in hindsight, because the
    TPOT objective takes its true output length.
    """
    first = np.where(records.first_token_ns < 0, NEVER_NS, records.first_token_ns)
    finish = np.where(records.finish_ns < 0, NEVER_NS, records.finish_ns)
    arrival, gaps = records.arrival_ns, np.maximum(records.output_tokens - 1, 0)
    lost = np.full(len(records), NEVER_NS, np.int64)
    for index, slo in enumerate(slos):
        mine = records.slo_class == index
        for limit_s, start, weight, end in (
            (slo.ttft_s, arrival, 1, first),
            (slo.e2e_s, arrival, 1, finish),
            (slo.tpot_s, first, gaps, finish),
        ):
            if limit_s is None:
                continue
            allowed = np.minimum(LATE * limit_s * NS_PER_S * weight, float(NEVER_NS // 2))
            due = start + allowed.astype(np.int64)
            missed = mine & (end > due)
            lost[missed] = np.minimum(lost[missed], due[missed])
    return lost


def debts(records: RequestRecords, slos: Sequence[SLO]) -> list[Debt]:
    """The largest debt of every engine and account; a request belongs to its last engine."""
    lost = lost_ns(records, slos)
    found = []
    for engine in np.unique(records.engine[records.engine >= 0]).tolist():
        on = np.flatnonzero((records.engine == engine) & (records.arrival_ns >= 0))
        first, finish = records.first_token_ns[on], records.finish_ns[on]
        left = np.where(finish < 0, NEVER_NS, finish)
        begun = np.where(first < 0, left, first)
        prompt, output = records.prompt_tokens[on], np.maximum(records.output_tokens[on], 1)
        since = np.maximum(lost[on], records.arrival_ns[on])
        work = _Work(records.arrival_ns[on], since, begun, first >= 0, prompt)
        found.append(_worst("first token", engine, work))
        since = np.maximum(lost[on], first)
        streams = _Work(first, since, left, finish >= 0, output).select(first >= 0)
        found.append(_worst("output", engine, streams))
    return found


@dataclass(frozen=True)
class _Work:
    """What one account is about, one entry per request.

    `enter` and `until` are when it begins and stops to be pending, `lost` is from when on it is
    lost, `served` whether it was served when it stopped, `tokens` its work.
    """

    enter: IntArray
    lost: IntArray
    until: IntArray
    served: BoolArray
    tokens: IntArray

    def select(self, mask: BoolArray) -> _Work:
        """Some of the requests."""
        return _Work(*(getattr(self, item.name)[mask] for item in fields(self)))

    def events(self) -> list[tuple[int, int, int]]:
        """(instant, kind, request) in time order; services precede what else happens then."""
        lost = np.flatnonzero(self.lost < self.until)
        ends = np.flatnonzero(self.until < NEVER_NS)
        found = [(int(self.until[i]), _LEAVE, int(i)) for i in ends]
        found += [(int(self.enter[i]), _ENTER, i) for i in range(len(self.enter))]
        found += [(int(self.lost[i]), _LOSE, int(i)) for i in lost]
        return sorted(found)


_LEAVE, _ENTER, _LOSE = range(3)


def _worst(name: str, engine: int, work: _Work) -> Debt:
    """The largest debt of one account."""
    book = _Book(work.tokens)
    worst = Debt(name, engine, 0.0, 0.0, 0, 0)
    for at, kind, i in work.events():
        if kind == _ENTER:
            book.present += 1
        elif kind == _LOSE:
            book.lose(i)
        else:
            book.leave(i, bool(work.served[i]))
            now = Debt(name, engine, at / NS_PER_S, book.debt, book.largest(), len(book.pending))
            worst = max(worst, now, key=lambda debt: debt.ratio)
    return worst


class _Book:
    """The account itself.

    Args:
        tokens: work of every request.
    """

    def __init__(self, tokens: IntArray) -> None:
        self.debt = 0.0
        self.present = 0
        self.pending: set[int] = set()
        self._tokens = tokens
        self._heap: list[tuple[int, int]] = []

    def lose(self, i: int) -> None:
        """Request `i`, which is present, is lost from now on."""
        self.pending.add(i)
        heapq.heappush(self._heap, (-int(self._tokens[i]), i))

    def leave(self, i: int, served: bool) -> None:
        """Request `i` leaves, served or not; nothing is saved up, and the last takes the debt."""
        if self.pending and served:
            share = min(SHARE, FAIR * len(self.pending) / self.present)
            paid = self._tokens[i] if i in self.pending else 0
            self.debt = max(self.debt + share * self._tokens[i] - paid, 0.0)
        self.present -= 1
        self.pending.discard(i)
        if not self.pending:
            self.debt = 0.0

    def largest(self) -> int:
        """Work of the largest pending request, 0 without one."""
        while self._heap and self._heap[0][1] not in self.pending:
            heapq.heappop(self._heap)
        return -self._heap[0][0] if self._heap else 0


def starvation(records: RequestRecords, slos: Sequence[SLO]) -> Verdict:
    """Whether an episode kept the rule."""
    found = debts(records, slos)
    worst = max(found, key=lambda debt: debt.ratio, default=None)
    if worst is None or worst.ratio == 0:
        return Verdict("starvation", True, "no lost request was owed anything", {"debt": 0.0})
    figures = {"debt": round(worst.ratio, 4)}
    text = (
        f"engine {worst.engine} at {worst.at_s:.3f} s owed {worst.tokens:.0f} tokens "
        f"({worst.account}) to {worst.pending} lost requests, the largest of {worst.allowed_tokens}"
    )
    if worst.ratio <= 1:
        return Verdict("starvation", True, f"at most, {text}", figures)
    cure = f"give lost requests at least {SHARE:.1%} of the work"
    return Verdict("starvation", False, f"{text}; {cure}", figures)
