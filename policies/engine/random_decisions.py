"""Random legal decisions: the floor of every ranking, and a fuzzer of the engine.

Source: the random agent of reinforcement-learning benchmarks (Mnih et al., Nature 2015).
Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import EnginePolicy
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import SLO, BatchDecision, EngineSpec, EngineView, IntArray


@engine_policy("random", information="engine")
@dataclass
class RandomDecisions(EnginePolicy):
    """A uniform token budget and admission cap in every iteration.

    `full` also draws chunk caps, orders of both queues (where the engine's scheduling does
    not fix the waiting one), and requests to skip.
    """

    full: bool = False

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Take the generator."""
        self._rng = rng

    def decide(self, engine: EngineView) -> BatchDecision:
        """A legal decision, drawn uniformly."""
        budget = int(self._rng.integers(1, engine.spec.max_num_batched_tokens + 1))
        cap = int(self._rng.integers(1, engine.spec.max_num_seqs + 1))
        if not self.full:
            return BatchDecision(budget, cap)
        sortable = engine.spec.scheduling == "fcfs"
        return BatchDecision(
            budget,
            cap,
            prefill_chunk=int(self._rng.integers(0, engine.spec.max_num_batched_tokens + 1)),
            running_order=self._order(engine.num_running),
            waiting_order=self._order(engine.num_waiting if sortable else 0),
            token_caps=self._skips(engine.num_running + engine.num_waiting),
        )

    def _order(self, length: int) -> IntArray | None:
        return self._rng.permutation(length) if length > 1 and self._rng.random() < 0.2 else None

    def _skips(self, length: int) -> IntArray | None:
        if self._rng.random() >= 0.2:
            return None
        return np.where(self._rng.random(length) < 0.2, 0, -1).astype(np.int64)
