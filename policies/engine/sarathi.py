"""Sarathi-Serve: stall-free batching with a fixed chunk of tokens.

Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
OSDI 2024; 512 tokens is its budget for strict SLOs. Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import EnginePolicy, checked_budget
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import SLO, BatchDecision, DecisionRule, EngineSpec, EngineView


@engine_policy("sarathi-512", information="engine")
@dataclass
class Sarathi(EnginePolicy):
    """Every iteration takes all decodes and fills up to `chunk_tokens` with prefill."""

    chunk_tokens: int = 512

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Check the chunk against the server's limit."""
        checked_budget(self.chunk_tokens, spec, self.label)

    def decide(self, engine: EngineView) -> BatchDecision:
        """The chunk, or one token for each decode where these are more."""
        return BatchDecision(token_budget=max(self.chunk_tokens, engine.num_decodes))

    def rule(self) -> DecisionRule:
        """The same decision, compiled."""
        return DecisionRule(token_budget=self.chunk_tokens, cover_decodes=True)
