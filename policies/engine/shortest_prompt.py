"""Shortest prompt first: the waiting queue sorted by the prefill work that is left.

Shortest-job-first on the only part of a job that is known (Schrage, Operations Research
1968; for LLM serving e.g. Wu et al., "Fast Distributed Inference Serving for LLMs", 2023).
Long prompts can starve under load. Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import EnginePolicy, checked_order
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import SLO, BatchDecision, DecisionRule, EngineSpec, EngineView


@engine_policy("shortest-prompt", information="engine")
@dataclass
class ShortestPrompt(EnginePolicy):
    """The server's budget, spent on the shortest waiting prompts first (ties: queue order).

    A preempted request counts with the output that it has to compute again.
    """

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Read the server's budget."""
        checked_order(spec, self.label)
        self._budget = spec.max_num_batched_tokens

    def decide(self, engine: EngineView) -> BatchDecision:
        """Everything that the server's limits allow, in sorted order."""
        order = None
        if engine.num_waiting > 1:
            order = engine.waiting.remaining_prefill_tokens.argsort(kind="stable")
        return BatchDecision(engine.spec.max_num_batched_tokens, waiting_order=order)

    def rule(self) -> DecisionRule:
        """The same decision, compiled."""
        return DecisionRule(token_budget=self._budget, order="shortest-prompt")
