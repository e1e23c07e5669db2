"""What the files about single cheaters share: short episodes, the score to beat, one check."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from synergy_gym.evaluation.conduct.examine import BASELINE, STAGES, Examination, Stage
from synergy_gym.evaluation.conduct.verdict import Verdict
from synergy_gym.policies.base import Layer

SHORT = {layer: replace(stage, horizon_s=8.0, warmup_s=1.0) for layer, stage in STAGES.items()}
"""A few hundred decisions in overload, on a test seed."""
SEEDS = (2000, 2001, 2002)


def watched(policy: Any, layer: Layer, **options: Any) -> Examination:
    """A short episode of a policy under observation."""
    return Examination(policy, layer, options.pop("stage", SHORT[layer]), **options)


def attainments(policy: Any, layer: Layer, load: float) -> list[float]:
    """SLO attainment of all offered requests on three seeds."""
    stage = replace(STAGES[layer], load=load)
    return [stage.play(layer, policy, seed).summary["slo_attainment"] for seed in SEEDS]


@cache
def baseline(layer: Layer, load: float) -> list[float]:
    """The same of `vllm-v1` + `round-robin`."""
    return attainments(BASELINE[layer], layer, load)


def loses(policy: Any, layer: Layer, load: float = 1.0) -> bool:
    """Whether a policy ends below `vllm-v1` + `round-robin` on every seed, and by a point."""
    behind = np.subtract(baseline(layer, load), attainments(policy, layer, load))
    return bool((behind > 0).all() and behind.mean() > 0.01)


def rejected(verdict: Verdict, *words: str) -> bool:
    """Whether a verdict failed and its reason says all of `words`."""
    return not verdict.passed and all(word in verdict.reason for word in words)


def stage_of(layer: Layer, load: float = 1.5) -> Stage:
    """Where cheaters that know seeds are watched: the whole window, a test seed."""
    return replace(STAGES[layer], load=load)
