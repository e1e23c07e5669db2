"""LENS whose budget covers all decodes, and a prefill chunk while prompts wait.

The guard that LENS's authors tried later against starvation ("E10" of their experiment diary,
KevinCheung2259/vllm, commit abd3dc6): Sc is at least the number of decodes, plus 256 tokens
while anything is left to prefill. Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from synergy_gym.policies.lens import RampLens
from synergy_gym.policies.lens_search import SearchSettings
from synergy_gym.policies.registry import engine_policy
from synergy_gym.types import EngineSpec


@engine_policy("lens-guarded", information="engine")
@dataclass
class LensGuarded(RampLens):
    """LENS without starvation: every decode is served, prefill keeps `backlog_tokens`."""

    backlog_tokens: int = 256

    def search_settings(self, spec: EngineSpec) -> SearchSettings:
        """The shared settings, guarded."""
        shared = super().search_settings(spec)
        return replace(shared, cover_decodes=True, backlog_tokens=self.backlog_tokens)
