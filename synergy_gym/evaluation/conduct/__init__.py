"""Conduct: what a policy must not do, whatever it scores."""

from synergy_gym.evaluation.conduct.examine import (
    Stage,
    Watched,
    changed,
    examine,
    fresh_seeds,
    surroundings,
)

__all__ = ["Stage", "Watched", "changed", "examine", "fresh_seeds", "surroundings"]
