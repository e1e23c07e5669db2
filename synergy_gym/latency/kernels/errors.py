"""The one error of this package."""

from __future__ import annotations


class ClockError(ValueError):
    """A profile cannot be made; the message names what is asked for, why, and a cure."""
