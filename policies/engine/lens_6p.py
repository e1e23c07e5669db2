"""LENS with the six-parameter step model, which its authors' project calls the paper's form.

T = w1 s / Thr + tB b + tS s grows with the tokens of a step, so a starved step of one token is at
least predicted right (11 ms, where the stable form says 90). Decodes starve all the same once
they alone exceed the target. KevinCheung2259/vllm, commit 1b47cdc; the only published parameters
are those of an H100 with Llama-3.1-8B. Other engines learn online, by fits that are refused, as by
the authors' code, where a slope per median step is above 10 ms; LENS is bypassed until one is
accepted. Information class: engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from synergy_gym.latency.models.saturation import Form
from synergy_gym.policies.lens import RampLens
from synergy_gym.policies.registry import engine_policy


@engine_policy("lens-6p", information="engine")
@dataclass
class LensSix(RampLens):
    """LENS with the six-parameter form of T(B, S), monotone in the tokens."""

    version: ClassVar[int] = 2
    form: ClassVar[Form] = "six"
