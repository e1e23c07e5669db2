"""A router policy in front of real engines: it decides, and its failures cost no request."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from synergy_gym.live.log import is_loud
from synergy_gym.live.router.state import RouterState
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.seats import RouterSeat
from synergy_gym.types import SLO, ClusterView, CompletionView, RequestView

_log = logging.getLogger(__name__)
RAISED = "raised"
ILLEGAL = "illegal"
OBSERVE = "observe"
FAILURES = (RAISED, ILLEGAL, OBSERVE)
"""How a policy can fail: `route` raised, it chose what is not allowed, or `observe` raised."""


class NoEngineError(RuntimeError):
    """No engine can take the request."""


@dataclass(eq=False)
class LiveRouter:
    """A policy, the table that it reads, and round-robin for when it fails.

    Args:
        policy: a router policy; it is reset here.
        state: the router's table.
        slos: classes that requests refer to.
        rng: the policy's generator.
        loud: log failures, beside counting them.

    Attributes:
        failures: how often the policy failed, by kind (`FAILURES`).
    """

    policy: RouterPolicy
    state: RouterState
    slos: tuple[SLO, ...]
    rng: np.random.Generator
    loud: bool = True
    failures: Counter[str] = field(default_factory=Counter, init=False)
    _next: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Start the policy."""
        self._seat = RouterSeat(self.policy)
        self._seat.reset(self.rng, self.state.engines, self.slos)

    def choose(
        self, request: RequestView, now_ns: int, *, avoid: Collection[int] = ()
    ) -> tuple[int, bool]:
        """The engine for a request, and whether the policy chose it.

        Completions since the last call are shown to the policy first, as in the simulator.

        Args:
            request: what has arrived.
            now_ns: the router's time.
            avoid: engines where this request has failed already.

        Raises:
            NoEngineError: every engine is down or to be avoided.
        """
        completions = self.state.completions()
        view = self.state.cluster_view(
            now_ns,
            rng=self.rng,
            session=request.session,
            information=self._seat.information,
            avoid=avoid,
        )
        if not view.alive.any():
            self._observe(completions)
            raise NoEngineError(f"none of {view.num_engines} engines is up")
        self._observe(completions)
        try:
            choice = self._seat.choice(request, view)
        except Exception as error:
            return self._failed(RAISED, f"raised {type(error).__name__}: {error}", view), False
        if not _is_legal(choice, view):
            return self._failed(ILLEGAL, f"chose {choice!r}", view), False
        return int(choice), True

    def round_robin(self) -> int:
        """The next engine that is up, for requests that no policy is asked about.

        Raises:
            NoEngineError: every engine is down.
        """
        alive = self.state.alive
        if not alive.any():
            raise NoEngineError(f"none of {len(alive)} engines is up")
        return self._turn(alive.tolist())

    def _observe(self, completions: list[CompletionView]) -> None:
        for completion in completions:
            try:
                self._seat.observe(completion)
            except Exception as error:
                self._note(OBSERVE, f"raised {type(error).__name__}: {error} in observe")

    def _failed(self, kind: str, what: str, view: ClusterView) -> int:
        choice = self._turn(view.alive.tolist())
        self._note(kind, f"{what}; the request goes to engine {choice} by round-robin")
        return choice

    def _turn(self, alive: list[bool]) -> int:
        while not alive[self._next % len(alive)]:
            self._next += 1
        choice = self._next % len(alive)
        self._next += 1
        return choice

    def _note(self, kind: str, text: str) -> None:
        self.failures[kind] += 1
        count = self.failures.total()
        if self.loud and is_loud(count):
            _log.error(
                "router policy %r %s (%d failures so far)",
                self.policy.label,
                text,
                count,
                exc_info=kind != ILLEGAL,
            )


def _is_legal(choice: object, view: ClusterView) -> bool:
    if isinstance(choice, bool) or not isinstance(choice, int | np.integer):
        return False
    return bool(0 <= choice < view.num_engines and view.alive[choice])
