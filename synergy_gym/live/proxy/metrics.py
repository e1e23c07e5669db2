"""What the routing proxy counts, for its own `/metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synergy_gym.live.router.policy import FAILURES
from synergy_gym.live.router.state import RouterState
from synergy_gym.types import NS_PER_S, Outcome, RouterRow

PREFIX = "synergy_gym_router"

_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "attempts": ("Attempts that ended, by engine and outcome.", ("engine", "outcome")),
    "failed_attempts": ("Attempts that failed before the first byte.", ("engine",)),
    "no_engine": ("Requests refused because no engine was up.", ()),
    "policy_failures": ("Decisions that the policy failed to take, by kind.", ("kind",)),
    "estimated_prompts": ("Requests whose prompt length is an estimate from text.", ()),
    "unknown_slo_classes": ("Requests that named an SLO class which the router lacks.", ()),
    "other_requests": ("Requests to other paths, passed to any engine.", ("engine",)),
    "pushes": ("State vectors received.", ("engine",)),
    "unknown_pushes": ("State vectors of engines that are not in the cluster.", ()),
    "scrapes": ("Metrics read.", ("engine",)),
    "scrape_failures": ("Metrics that could not be read.", ("engine",)),
}
_GAUGES: dict[str, str] = {
    "engine_up": "Whether the engine takes requests.",
    "engine_condition": "0 healthy, 1 suspect, 2 down.",
    "in_flight": "Requests routed to the engine that have not ended.",
    "in_flight_prompt_tokens": "Their prompt tokens.",
    "push_age_seconds": "Age of the engine's last pushed state.",
    "engine_policy_failures": "Steps that the engine's own policy failed to decide, as it says.",
}


class RouterMetrics:
    """Counters and gauges of one proxy.

    Args:
        names: the engines.
        policy: label of the policy, shown as `synergy_gym_router_info`.
    """

    def __init__(self, names: Sequence[str], policy: str) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

        self._names = tuple(names)
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"{PREFIX}_{name}", text, labels, registry=self._registry)
            for name, (text, labels) in _COUNTERS.items()
        }
        for kind in FAILURES:  # shown as 0 before the first one
            self._counters["policy_failures"].labels(kind)
        self._gauges = {
            name: Gauge(f"{PREFIX}_{name}", text, ("engine",), registry=self._registry)
            for name, text in _GAUGES.items()
        }
        self._sums = {
            name: Gauge(f"{PREFIX}_{name}", text, registry=self._registry)
            for name, text in (
                ("rejected_pushes", "Datagrams that were no state vectors, so far."),
                ("late_pushes", "State vectors that a newer one had overtaken, so far."),
            )
        }
        self._decisions = Histogram(
            f"{PREFIX}_decision_seconds",
            "Time that the policy took per request.",
            registry=self._registry,
            buckets=[1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.1, 1.0],
        )
        info = Info(PREFIX, "What routes.", registry=self._registry)
        info.info({"policy": policy, "engines": ",".join(names)})

    def count(self, name: str, *labels: str | int, by: int = 1) -> None:
        """Add to a counter; a label that is a number names the engine of that index."""
        texts = [self._names[label] if isinstance(label, int) else label for label in labels]
        counter = self._counters[name]
        (counter.labels(*texts) if texts else counter).inc(by)

    def pushed(self, engine: int, failures: int) -> None:
        """State of `engine` arrived; its policy has failed `failures` times so far."""
        self.count("pushes", engine)
        self._gauges["engine_policy_failures"].labels(self._names[engine]).set(failures)

    def ended(self, engine: int, outcome: Outcome) -> None:
        """An attempt ended."""
        self.count("attempts", engine, outcome.name.lower())

    def decided(self, seconds: float) -> None:
        """The policy took `seconds` for a decision."""
        self._decisions.observe(seconds)

    def text(
        self, state: RouterState, now_ns: int, conditions: Sequence[int], inbox: Any
    ) -> tuple[bytes, str]:
        """The exposition and its content type.

        Args:
            state: the router's table.
            now_ns: the router's time.
            conditions: per engine, as `health.Condition`.
            inbox: the `PushInbox`, or `None`.
        """
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        columns = {
            "engine_up": RouterRow.ALIVE,
            "in_flight": RouterRow.IN_FLIGHT,
            "in_flight_prompt_tokens": RouterRow.IN_FLIGHT_TOKENS,
        }
        for name, row, condition in zip(self._names, state.rows(), conditions, strict=True):
            for gauge, column in columns.items():
                self._gauges[gauge].labels(name).set(int(row[column]))
            self._gauges["engine_condition"].labels(name).set(int(condition))
            age_s = (now_ns - int(row[RouterRow.PUSH_NS])) / NS_PER_S
            self._gauges["push_age_seconds"].labels(name).set(age_s)
        if inbox is not None:
            self._sums["rejected_pushes"].set(inbox.rejected)
            self._sums["late_pushes"].set(inbox.late)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
