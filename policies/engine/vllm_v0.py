"""vLLM's V0 scheduler: prompts first and whole, never mixed with decodes.

Source: `_schedule_default` and `_schedule_prefills` of vllm/core/scheduler.py up to vLLM
0.10 (Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", SOSP
2023), without swapping. Its batch limit is taken as 2048 to 8192 tokens, the server's
default here. Information class: engine.

Only the budget, the admission cap and skips of running requests are used, so a live V1
engine can take every decision. Two differences remain. V0 refuses prompts above the budget
(it needs a budget of at least `max_model_len`); here such a prompt is chunked, alone. And
prefix hits are known only at admission, so prompts count in full when the batch is formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import EnginePolicy, checked_budget
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import SLO, BatchDecision, EngineSpec, EngineView, IntArray


@engine_policy("vllm-v0", information="engine")
@dataclass
class VllmV0(EnginePolicy):
    """While a prompt can be admitted, decodes wait; prompts are never mixed with decodes.

    `token_budget` is the most tokens of one prefill batch (0: the server's limit).
    """

    token_budget: int = 0

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Check the budget against the server's limit."""
        if self.token_budget:
            checked_budget(self.token_budget, spec, self.label)

    def decide(self, engine: EngineView) -> BatchDecision:
        """A batch of whole prompts if one is possible, else all decodes."""
        limit = engine.spec.max_num_batched_tokens
        budget = self.token_budget or limit
        if engine.num_running > engine.num_decodes:  # a long prompt is on its way: alone
            return BatchDecision(budget, engine.num_running, token_caps=_pause_decodes(engine))
        admitted = _whole_prompts(engine, budget)
        if admitted:
            cap = engine.num_running + admitted
            return BatchDecision(budget, cap, token_caps=_pause_decodes(engine))
        return BatchDecision(limit, max(1, engine.num_running))


def _pause_decodes(engine: EngineView) -> IntArray | None:
    if not engine.num_decodes:
        return None
    caps = np.full(engine.num_running + engine.num_waiting, -1, np.int64)
    caps[: engine.num_running][engine.running.is_decode] = 0
    return caps


def _whole_prompts(engine: EngineView, budget: int) -> int:
    """How many requests from the head of the queue form the next prefill batch."""
    spec = engine.spec
    slots = spec.max_num_seqs - engine.num_running
    if slots <= 0 or not engine.num_waiting:
        return 0
    tokens = engine.waiting.remaining_prefill_tokens[:slots]
    blocks = -(-tokens // spec.block_size)
    free = engine.kv_free_blocks - spec.watermark_blocks
    count = np.count_nonzero((tokens.cumsum() <= budget) & (blocks.cumsum() <= free))
    if count:
        return int(count)
    # On an empty engine the scheduler itself admits or rejects the head of the queue.
    return int(bool(blocks[0] <= free) or engine.num_running == 0)
