"""Prefix-aware routing with an approximate, router-local map of what engines have cached.

SGLang's cache-aware load balancer (sgl-model-gateway/src/policies/cache_aware.rs; Zheng et
al., "SGLang: Efficient Execution of Structured Language Model Programs", NeurIPS 2024) with
its defaults: the longest known prefix while load is balanced, the shortest queue otherwise.
The map remembers block hashes of routed prompts; nothing is asked from the engines.
Information class: router.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.prefix_memory import PrefixMap
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import SLO, ClusterView, EngineSpec, IntArray, RequestView


@router_policy("prefix-aware", information="router")
@dataclass
class PrefixAware(RouterPolicy):
    """The engine with the longest known prefix, unless load is out of balance.

    Load (requests in flight) is out of balance when max - min > `balance_abs` and
    max > `balance_rel` * min. A prefix counts when it covers more than `cache_threshold` of
    the prompt's blocks. Per engine the last `memory_blocks` blocks are remembered (0: as
    many as the engine's KV cache holds).
    """

    cache_threshold: float = 0.3
    balance_abs: int = 64
    balance_rel: float = 1.5
    memory_blocks: int = 0

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Forget every prefix."""
        self._known = PrefixMap(engines, self.memory_blocks)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The longest match if it is worth it, else the fewest requests in flight."""
        self._known.forget(~cluster.alive)
        blocks: list[int] = request.block_hashes.tolist()
        load = cluster.in_flight
        choice = cluster.argmin(load)
        if blocks and not self._out_of_balance(load[cluster.alive]):
            matches = self._known.matches(blocks)
            if matches[cluster.alive].max() > self.cache_threshold * len(blocks):
                best = matches == matches[cluster.alive].max()
                choice = cluster.argmin(np.where(best, load, np.inf))
        self._known.insert(choice, blocks)
        return choice

    def _out_of_balance(self, load: IntArray) -> bool:
        low, high = int(load.min()), int(load.max())
        return high - low > self.balance_abs and high > self.balance_rel * low
