"""A constant token budget: vLLM's `--max-num-batched-tokens N` with everything else default.

Source: the knob that vLLM's tuning guide names first (docs, "Optimization and Tuning").
Where more than N requests decode, the tail of the running list waits a step, as in vLLM.
Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import EnginePolicy, checked_budget
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import SLO, BatchDecision, DecisionRule, EngineSpec, EngineView


@engine_policy("static-N", information="engine", family="token_budget", examples=(256, 1024, 2048))
@dataclass
class Static(EnginePolicy):
    """Every iteration takes at most N tokens."""

    token_budget: int

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Check the budget against the server's limit."""
        checked_budget(self.token_budget, spec, self.label)

    def decide(self, engine: EngineView) -> BatchDecision:
        """N tokens, whatever waits."""
        return BatchDecision(token_budget=self.token_budget)

    def rule(self) -> DecisionRule:
        """The same decision, compiled."""
        return DecisionRule(token_budget=self.token_budget)
