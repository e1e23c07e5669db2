"""LENS as its authors submitted it: target latency by queue length, stable step model.

SynergySched's engine layer (arXiv 2509.23384; KevinCheung2259/vllm, branch exp-v0.9.1), with the
parameters published for the engine's GPU and model. Its known defects are kept: when decodes
alone exceed the target, the inversion returns one token and all decodes but one starve; prompts
are cut to 512 tokens per step however idle the engine is; TTFT SLOs and deadlines play no part.
Caps of single requests above zero have no live hook. Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from synergy_gym.policies.lens import RampLens
from synergy_gym.policies.registry import engine_policy


@engine_policy("lens-ref", information="engine")
@dataclass
class LensRef(RampLens):
    """SynergySched's LENS, submission version: the batch nearest to a target latency."""
