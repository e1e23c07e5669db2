"""What a check of a policy says, as manifests record it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check of one policy.

    Attributes:
        check: what was checked, e.g. `two-futures`.
        passed: whether the policy may compete as far as this check can tell.
        reason: one line: what was found where and, when it failed, the cure.
        figures: what was measured, by name; plain numbers and text.
    """

    check: str
    passed: bool
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {
            "check": self.check,
            "passed": self.passed,
            "reason": self.reason,
            "figures": dict(self.figures),
        }

    def __str__(self) -> str:
        return f"{self.check}: {'passed' if self.passed else 'FAILED'}, {self.reason}"


def one_line(value: object, most: int = 300) -> str:
    """Text of a value in one line of at most `most` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."
