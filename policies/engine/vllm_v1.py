"""vLLM's V1 scheduler as its server starts it (vLLM 0.32.0, v1/core/sched/scheduler.py).

Chunked prefill with decodes first; the budget is the server's default, 8192 tokens on H100
class GPUs and 2048 elsewhere (vllm/engine/arg_utils.py). Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import SLO, BatchDecision, DecisionRule, EngineSpec, EngineView


@engine_policy("vllm-v1", information="engine")
@dataclass
class VllmV1(EnginePolicy):
    """Chunked prefill with the server's default token budget."""

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Read the server's budget."""
        self._budget = spec.max_num_batched_tokens

    def decide(self, engine: EngineView) -> BatchDecision:
        """Everything that the server's limits allow."""
        return BatchDecision(token_budget=engine.spec.max_num_batched_tokens)

    def rule(self) -> DecisionRule:
        """The same decision, compiled."""
        return DecisionRule(token_budget=self._budget)
