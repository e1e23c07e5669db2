"""LENS with the end-to-end objective that its authors moved to after the paper.

Per batch size the budget is solved for `slo_tpot_ms`; the batch that minimises
T(b', b') * output_tokens * (1 + queue_weight * U) wins, U being the waiting requests that it
leaves out, and the step may take what was allocated (KevinCheung2259/vllm, commit 1b47cdc).
Its authors judged it no better than the submission's ramp. Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from synergy_gym.policies.lens import Lens
from synergy_gym.policies.lens_search import SearchSettings
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import EngineSpec


@engine_policy("lens-e2e", information="engine")
@dataclass
class LensE2E(Lens):
    """LENS with a proxy of the end-to-end latency instead of a target latency.

    `batch_floor` bounds the smallest batch size that is tried, min(1 + 2 * waiting, floor); 1
    switches the bound off.
    """

    slo_tpot_ms: float = 100.0
    output_tokens: int = 256
    queue_weight: float = 1.0
    batch_floor: int = 1

    def search_settings(self, spec: EngineSpec) -> SearchSettings:
        """The shared settings with this objective."""
        return replace(
            super().search_settings(spec),
            objective="e2e",
            output_tokens=self.output_tokens,
            queue_weight=self.queue_weight,
            batch_floor=self.batch_floor,
        )
