"""Checks of boards, by their files and by playing."""

from synergy_gym.evaluation.verify.boards import BoardVerdict, Options, boards_in, verify

__all__ = ["BoardVerdict", "Options", "boards_in", "verify"]
