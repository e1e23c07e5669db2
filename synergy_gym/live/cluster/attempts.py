"""The open attempts of one engine: every one ends exactly once, and none outlives its timeouts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from synergy_gym.live.cluster.event_loop import EventLoop
from synergy_gym.live.cluster.messages import AttemptEnded, LiveRequest, Patience, TokensCame
from synergy_gym.types import NS_PER_S, Outcome

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    """An attempt that has not ended."""

    request: LiveRequest
    cancel: Callable[[], object]
    heard_ns: int
    tokens: int = 0
    deadline: asyncio.TimerHandle | None = None
    silence: asyncio.TimerHandle | None = None


class Attempts:
    """Attempts on one engine; all methods are called in the hub's thread.

    Args:
        engine: its place in the cluster.
        hub: where events go.
        patience: the timeouts.
        on_silence: called when an attempt has failed because nothing was heard of it.
    """

    def __init__(
        self,
        engine: int,
        hub: EventLoop,
        patience: Patience,
        on_silence: Callable[[], object] = lambda: None,
    ) -> None:
        self.engine = engine
        self._hub = hub
        self._patience = patience
        self._on_silence = on_silence
        self._open: dict[int, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request: LiveRequest, cancel: Callable[[], object]) -> None:
        """An attempt begins; `cancel` stops it at the engine when it ends from this side."""
        now_ns = time.monotonic_ns()
        entry = _Open(request, cancel, now_ns)
        self._open[request.ticket] = entry
        if request.deadline_ns is not None:
            wait_s = max(request.deadline_ns - now_ns, 0) / NS_PER_S
            entry.deadline = self._hub.loop.call_later(wait_s, self._give_up, request.ticket)
        self._watch(entry)

    def tokens(self, ticket: int, tokens: int, at_ns: int) -> None:
        """Tokens of an attempt came; none that came after its end counts."""
        entry = self._open.get(ticket)
        if entry is not None:
            entry.tokens += tokens
            entry.heard_ns = time.monotonic_ns()
            self._hub.emit(TokensCame(self.engine, at_ns, ticket, tokens))

    def end(
        self,
        ticket: int,
        outcome: Outcome,
        reason: str = "",
        at_ns: int | None = None,
        stop: bool = False,
        *,
        scheduled_ns: int = -1,
        cached_tokens: int = 0,
        preemptions: int = 0,
    ) -> None:
        """An attempt ends, unless it has; `stop` also tells the engine."""
        entry = self._open.pop(ticket, None)
        if entry is None:
            return
        for timer in (entry.deadline, entry.silence):
            if timer is not None:
                timer.cancel()
        if stop:
            entry.cancel()
        self._hub.emit(
            AttemptEnded(
                engine=self.engine,
                at_ns=time.monotonic_ns() if at_ns is None else at_ns,
                ticket=ticket,
                outcome=outcome,
                reason=reason,
                scheduled_ns=scheduled_ns,
                cached_tokens=cached_tokens,
                preemptions=preemptions,
            )
        )

    def fail_all(self, reason: str) -> None:
        """The engine is gone: whatever is open fails."""
        for ticket in list(self._open):
            self.end(ticket, Outcome.FAILED, reason, stop=True)

    def abort_all(self) -> None:
        """Nobody waits any more: whatever is open is aborted."""
        for ticket in list(self._open):
            self.end(ticket, Outcome.ABORTED, "the episode is over", stop=True)

    def _give_up(self, ticket: int) -> None:
        deadline_ns = self._open[ticket].request.deadline_ns if ticket in self._open else None
        self.end(ticket, Outcome.ABORTED, "client timeout", deadline_ns, stop=True)

    def _limit_s(self, entry: _Open) -> float:
        return self._patience.token_gap_s if entry.tokens else self._patience.first_token_s

    def _watch(self, entry: _Open) -> None:
        waited_s = (time.monotonic_ns() - entry.heard_ns) / NS_PER_S
        left_s = self._limit_s(entry) - waited_s
        # The limit shrinks at the first token: look again soon enough to see that.
        look_s = min(left_s, self._patience.token_gap_s)
        if left_s <= 0:
            self._fall_silent(entry, waited_s)
            return
        entry.silence = self._hub.loop.call_later(look_s, self._watch, entry)

    def _fall_silent(self, entry: _Open, waited_s: float) -> None:
        what = "another token" if entry.tokens else "a first token"
        reason = f"waited {waited_s:.1f} s for {what}"
        _log.warning("engine %d: attempt %d %s", self.engine, entry.request.ticket, reason)
        self.end(entry.request.ticket, Outcome.FAILED, reason, stop=True)
        self._on_silence()
