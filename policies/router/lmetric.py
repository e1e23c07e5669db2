"""LMetric: new prefill tokens times batch size (Zhang et al., arXiv 2603.15202).

The paper multiplies the prompt tokens that an engine would have to compute by its batch size; the
product needs no weights. Here the first factor comes from a router-local map of the blocks sent to
each engine (the paper reads the engines' caches), the second is the router's own requests in
flight plus this one. Ties go to the first engine. Information class: router.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.prefix_memory import PrefixMap
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import SLO, ClusterView, EngineSpec, RequestView


@router_policy("lmetric", information="router")
@dataclass
class LMetric(RouterPolicy):
    """The smallest product of uncached prompt tokens and (requests in flight + 1).

    Per engine the last `memory_blocks` blocks are remembered (0: as many as its KV cache holds).
    """

    memory_blocks: int = 0

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Forget every prefix."""
        self._known = PrefixMap(engines, self.memory_blocks)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """One product per engine."""
        self._known.forget(~cluster.alive)
        blocks: list[int] = request.block_hashes.tolist()
        uncached = self._known.uncached_tokens(request.prompt_tokens, blocks)
        choice = cluster.argmin(uncached * (cluster.in_flight + 1))
        self._known.insert(choice, blocks)
        return choice
