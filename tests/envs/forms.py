"""Arguments that several tests give to the environments with batching decisions."""

from __future__ import annotations

from typing import Any

EVERY_ITERATION: dict[str, Any] = {"decision_interval_s": None}
LIMITS: dict[str, Any] = {"action": "limits", **EVERY_ITERATION}
"""What `EngineBatching-v0` plays."""
