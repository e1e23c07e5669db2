"""Earliest deadline first: the waiting queue sorted by when the first token is due.

Liu and Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time
Environment", JACM 1973; the deadline is arrival + TTFT SLO of the request's class.
Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import EnginePolicy, checked_order
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    DecisionRule,
    EngineSpec,
    EngineView,
    IntArray,
)

NO_DEADLINE_NS = 1 << 62


@engine_policy("earliest-deadline", information="engine")
@dataclass
class EarliestDeadline(EnginePolicy):
    """The server's budget, spent on the earliest TTFT deadline first (ties: queue order).

    Classes without a TTFT SLO come after all others, among themselves by arrival.
    """

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Read the server's budget and the TTFT limits."""
        checked_order(spec, self.label)
        self._budget = spec.max_num_batched_tokens
        limits = [slo.ttft_s for slo in slos]
        self._limits_ns = np.array(
            [NO_DEADLINE_NS if s is None else round(s * NS_PER_S) for s in limits], np.int64
        )

    def decide(self, engine: EngineView) -> BatchDecision:
        """Everything that the server's limits allow, in order of slack."""
        order = self._slack_ns(engine).argsort(kind="stable") if engine.num_waiting > 1 else None
        return BatchDecision(engine.spec.max_num_batched_tokens, waiting_order=order)

    def _slack_ns(self, engine: EngineView) -> IntArray:
        # Whole nanoseconds: a difference of floats could swap deadlines 1 ns apart.
        waited_ns = np.rint(engine.waiting.waited_s * NS_PER_S).astype(np.int64)
        slack: IntArray = self._limits_ns[engine.waiting.slo_class] - waited_ns
        return slack

    def rule(self) -> DecisionRule:
        """The same decision, compiled."""
        return DecisionRule(token_budget=self._budget, order="earliest-deadline")
