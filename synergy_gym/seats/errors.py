"""How a policy's failure is told."""

from __future__ import annotations

from synergy_gym.types import NS_PER_S


class PolicyError(RuntimeError):
    """A policy failed at a decision point, or answered it with what is not allowed there."""


def raised(where: str, error: Exception) -> PolicyError:
    """The error for an exception that came out of a policy."""
    text = f"{type(error).__name__}: {error}"
    return PolicyError(f"{where}: raised {text}; correct the policy")


def at(label: str, layer: str, now_ns: int, engine: int | None = None) -> str:
    """Who failed, where and when."""
    on = "" if engine is None else f" (engine {engine})"
    return f"{layer} policy {label!r}{on} at {now_ns / NS_PER_S:.6f} s"
