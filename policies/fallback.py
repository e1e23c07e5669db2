"""Counting and reporting what a policy does in place of its rule."""

from __future__ import annotations

import logging


class Fallback:
    """Counts how often a policy had to leave its rule; the first time is logged.

    Args:
        logger: name of the policy's module.
        message: what is missing and what is done instead.

    Attributes:
        count: times that it happened.
    """

    def __init__(self, logger: str, message: str) -> None:
        self._logger = logger
        self._message = message
        self.count = 0

    def note(self) -> None:
        """It has happened again."""
        self.count += 1
        if self.count == 1:
            logging.getLogger(self._logger).warning("%s", self._message)
