"""The command line, a file per command."""

from synergy_gym.cli.app import main

__all__ = ["main"]
