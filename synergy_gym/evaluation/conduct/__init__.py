"""Conduct: what a policy must not do, whatever it scores."""

from synergy_gym.evaluation.conduct.examine import (
    Examination,
    Stage,
    changed,
    examine,
    fresh_seeds,
    surroundings,
)

__all__ = ["Examination", "Stage", "changed", "examine", "fresh_seeds", "surroundings"]
