"""Checks of boards, by their files and by playing."""

from synergy_gym.evaluation.verify.boards import Options, Verdict, boards_in, verify

__all__ = ["Options", "Verdict", "boards_in", "verify"]
