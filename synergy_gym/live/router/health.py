"""Whether an engine takes requests: healthy, suspect or down, and when to ask it again.

No clock and no network: callers report what happened and when, and ask which engines to probe.
A refused connection takes an engine down at once. Anything else that goes wrong (a timeout, a 5xx,
a broken connection) makes it suspect, which means that it is asked soon but still gets requests;
`DOWN_AFTER` such failures in a row take it down. A good probe lets it in again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from synergy_gym.types import NS_PER_S

DOWN_AFTER = 3

_log = logging.getLogger(__name__)


class Condition(IntEnum):
    """What is believed of an engine."""

    HEALTHY = 0
    SUSPECT = 1
    """Something failed; it still gets requests."""
    DOWN = 2
    """It gets none until a probe succeeds."""


@dataclass(frozen=True, slots=True)
class HealthSpec:
    """How often engines are probed.

    Attributes:
        interval_s: between probes of a healthy engine.
        first_backoff_s: after a failure; doubled with every further probe that fails.
        last_backoff_s: longest backoff.
        timeout_s: a probe without an answer has failed.
    """

    interval_s: float = 5.0
    first_backoff_s: float = 0.25
    last_backoff_s: float = 10.0
    timeout_s: float = 3.0

    def __post_init__(self) -> None:
        """Refuse intervals without end or without pause."""
        for name in ("interval_s", "first_backoff_s", "last_backoff_s", "timeout_s"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"health: {name} is {getattr(self, name)}; give seconds > 0")


@dataclass(slots=True)
class _Engine:
    condition: Condition = Condition.HEALTHY
    failures: int = 0
    """In a row, of requests and probes."""
    probes: int = 0
    """Failed probes in a row."""
    next_probe_ns: int = 0


@dataclass(slots=True)
class HealthTable:
    """The condition of every engine.

    Args:
        names: the engines, for messages.
        spec: probing.
        on_change: called with an engine and whether it takes requests, when that changes.
    """

    names: Sequence[str]
    spec: HealthSpec
    on_change: Callable[[int, bool], None]
    _engines: list[_Engine] = field(init=False)

    def __post_init__(self) -> None:
        """Believe in every engine until it fails."""
        self._engines = [_Engine() for _ in self.names]

    def condition(self, engine: int) -> Condition:
        """What is believed of `engine`."""
        return self._engines[engine].condition

    def due(self, now_ns: int) -> list[int]:
        """Engines to probe now; each is due again only after its probe was reported."""
        due = [i for i, engine in enumerate(self._engines) if engine.next_probe_ns <= now_ns]
        for i in due:
            self._engines[i].next_probe_ns = now_ns + round(2 * self.spec.timeout_s * NS_PER_S)
        return due

    def next_probe_ns(self) -> int:
        """When the next engine is due."""
        return min(engine.next_probe_ns for engine in self._engines)

    def probed(self, engine: int, now_ns: int) -> None:
        """A probe succeeded: the engine is healthy."""
        known = self._engines[engine]
        known.next_probe_ns = now_ns + round(self.spec.interval_s * NS_PER_S)
        self._become_healthy(engine)

    def served(self, engine: int) -> None:
        """A request succeeded: suspicion ends; an engine that is down waits for its probe."""
        if self._engines[engine].condition is Condition.SUSPECT:
            self._become_healthy(engine)

    def failed(
        self,
        engine: int,
        now_ns: int,
        why: str,
        *,
        probe: bool = False,
        refused: bool = False,
        counts: bool = True,
    ) -> None:
        """A probe or a request failed.

        Args:
            engine: where.
            now_ns: the time.
            why: for the log.
            probe: a probe failed, not a request.
            refused: nobody listens there.
            counts: whether it is one of the failures in a row; what may be the request's own
                fault is not, but the engine is asked soon.
        """
        known = self._engines[engine]
        known.failures += counts
        if probe:
            known.probes += 1
            known.next_probe_ns = now_ns + self._backoff_ns(known.probes)
        else:  # many requests fail at once: none of them may put the probe off
            known.next_probe_ns = min(known.next_probe_ns, now_ns + self._backoff_ns(1))
        before = known.condition
        is_down = refused or known.failures >= DOWN_AFTER or before is Condition.DOWN
        known.condition = Condition.DOWN if is_down else Condition.SUSPECT
        changed = "" if known.condition is before else f" is {known.condition.name}"
        _log.warning("engine %s%s: %s", self.names[engine], changed, why)
        if is_down and before is not Condition.DOWN:
            self.on_change(engine, False)

    def _become_healthy(self, engine: int) -> None:
        known = self._engines[engine]
        before, known.condition = known.condition, Condition.HEALTHY
        known.failures = known.probes = 0
        if before is not Condition.HEALTHY:
            _log.warning("engine %s is HEALTHY again", self.names[engine])
        if before is Condition.DOWN:
            self.on_change(engine, True)

    def _backoff_ns(self, probes: int) -> int:
        doubled = self.spec.first_backoff_s * 2.0 ** min(probes - 1, 30)
        return round(min(doubled, self.spec.last_backoff_s) * NS_PER_S)
