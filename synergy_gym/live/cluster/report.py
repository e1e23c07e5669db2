"""What a live cluster counted beside the records: lateness, failures, retries."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np

from synergy_gym.types import NS_PER_S, Outcome

_log = logging.getLogger(__name__)
LATE_S = 0.05
"""A sender that is later than this at P99 is worth a warning."""
REASONS = 20
_EXCERPT = 160
_REFUSED = "rejected: "


class ClusterReport:
    """Counts of one episode.

    Attributes:
        retried_elsewhere: attempts that failed before they streamed and were tried elsewhere.
        unrouted: arrivals that met no engine that was up.
        short: answers that were complete with fewer tokens than were asked for.
        downs: per engine, how often it went down.
    """

    def __init__(self, engines: int) -> None:
        self.retried_elsewhere = 0
        self.unrouted = 0
        self.short = 0
        self.downs = [0] * engines
        self._late_ns: list[int] = []
        self._failed = [0] * engines
        self._reasons: Counter[str] = Counter()

    def sent(self, late_ns: int) -> None:
        """A request was sent so long after it was due."""
        self._late_ns.append(late_ns)

    def ended(self, engine: int, outcome: Outcome, reason: str, *, short: bool) -> None:
        """An attempt on `engine` ended; `short`: with fewer tokens than were asked for."""
        if outcome == Outcome.FAILED:
            self._failed[engine] += 1
        if reason:
            self._reasons[f"{outcome.name.lower()}: {reason[:_EXCERPT]}"] += 1
        self.short += outcome == Outcome.FINISHED and short

    def late_s(self, share: float) -> float:
        """Quantile of the lateness of the sender, seconds; 0 when nothing was sent."""
        return float(np.quantile(self._late_ns, share)) / NS_PER_S if self._late_ns else 0.0

    def tell(self) -> None:
        """Log what makes the figures of the episode doubtful."""
        if self.late_s(0.99) > LATE_S:
            _log.warning(
                "requests left %.3f s (P99) after they were due, because the decisions took so "
                "long or the machine is busy; latencies count from when they were due",
                self.late_s(0.99),
            )
        refused = [reason for reason in self._reasons if reason.startswith(_REFUSED)]
        if refused:
            count = sum(self._reasons[reason] for reason in refused)
            _log.warning("%d requests were refused, such as: %s", count, refused[0])
        if self.short:
            _log.warning("%d answers were shorter than asked for (no `ignore_eos`?)", self.short)

    def entry(self) -> dict[str, Any]:
        """The counts, as plain values."""
        return {
            "sent": len(self._late_ns),
            "late_p50_s": self.late_s(0.5),
            "late_p99_s": self.late_s(0.99),
            "late_max_s": self.late_s(1.0),
            "retried_elsewhere": self.retried_elsewhere,
            "unrouted": self.unrouted,
            "short_answers": self.short,
            "downs": list(self.downs),
            "failed_attempts": list(self._failed),
            "reasons": dict(self._reasons.most_common(REASONS)),
        }
