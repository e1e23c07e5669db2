"""Ranges that randomised worlds are drawn from: frozen descriptions with one method, `draw`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, isfinite, log
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Range(Protocol):
    """Something that values can be drawn from."""

    def draw(self, rng: np.random.Generator) -> Any:
        """One value."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Real numbers between `low` and `high`, equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the bounds."""
        _check_bounds(self)

    def draw(self, rng: np.random.Generator) -> float:
        """A number in [low, high)."""
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Positive numbers whose logarithm is uniform: half and double are equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the bounds."""
        _check_bounds(self)
        if self.low <= 0:
            raise ValueError(f"LogUniform({self.low}, {self.high}): low must be > 0")

    def draw(self, rng: np.random.Generator) -> float:
        """A number in [low, high)."""
        return exp(rng.uniform(log(self.low), log(self.high)))


@dataclass(frozen=True, slots=True)
class Integers:
    """Whole numbers from `low` to `high`, both included, equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        """Check the bounds."""
        _check_bounds(self)

    def draw(self, rng: np.random.Generator) -> int:
        """A number in {low, ..., high}."""
        return int(rng.integers(self.low, self.high + 1))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of `values`; equally likely without `weights`, which need not sum to 1."""

    values: tuple[Any, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the weights."""
        if not self.values:
            raise ValueError("Choice: there is nothing to choose from; give values")
        if self.weights and len(self.weights) != len(self.values):
            raise ValueError(f"Choice: {len(self.weights)} weights for {len(self.values)} values")
        if self.weights and (min(self.weights) < 0 or not sum(self.weights) > 0):
            raise ValueError(f"Choice: weights={self.weights} must be >= 0, with a sum above 0")

    def draw(self, rng: np.random.Generator) -> Any:
        """One of the values."""
        shares = np.array(self.weights or (1.0,) * len(self.values))
        return self.values[int(rng.choice(len(self.values), p=shares / shares.sum()))]


@dataclass(frozen=True, slots=True)
class Several:
    """A tuple of independent draws from `item`; their number is drawn from `count`."""

    item: Range
    count: Range

    def draw(self, rng: np.random.Generator) -> tuple[Any, ...]:
        """The draws, at least one."""
        return tuple(self.item.draw(rng) for _ in range(max(int(self.count.draw(rng)), 1)))


@dataclass(frozen=True, slots=True)
class Outages:
    """With `probability` one engine is down for a while, else `None`.

    Draws `(engine, start, duration_s)`: which engine and when, as shares in [0, 1) of the
    cluster's engines and of the horizon.
    """

    probability: float
    shortest_s: float
    longest_s: float

    def __post_init__(self) -> None:
        """Check probability and durations."""
        if not 0 <= self.probability <= 1:
            raise ValueError(f"Outages: probability={self.probability} must be a share, 0 to 1")
        if not 0 < self.shortest_s <= self.longest_s < float("inf"):
            raise ValueError(
                f"Outages: give 0 < shortest_s <= longest_s, not {self.shortest_s}, "
                f"{self.longest_s}"
            )

    def draw(self, rng: np.random.Generator) -> tuple[float, float, float] | None:
        """An outage or `None`."""
        happens, engine, start = rng.random(3)
        duration_s = rng.uniform(self.shortest_s, self.longest_s)
        return (float(engine), float(start), duration_s) if happens < self.probability else None


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of `names` that sum to 1, drawn from a symmetric Dirichlet distribution.

    Draws a tuple of (name, share). `concentration` 1: every mix is equally likely; below 1
    one name mostly dominates, above 1 shares are nearly equal.
    """

    names: tuple[str, ...]
    concentration: float = 1.0

    def __post_init__(self) -> None:
        """Check names and concentration."""
        if len(self.names) < 2 or not 0 < self.concentration < float("inf"):
            raise ValueError(
                f"Shares({self.names}, {self.concentration}): give two names or more and a "
                "concentration > 0"
            )

    def draw(self, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
        """The shares, each at least a thousandth."""
        drawn = rng.dirichlet([self.concentration] * len(self.names))
        shares = np.maximum(drawn, 1e-3)
        return tuple(zip(self.names, (shares / shares.sum()).tolist(), strict=True))


def as_range(value: Any) -> Range:
    """A range itself, a `Choice` of a list's or tuple's values, or a constant."""
    if isinstance(value, Range):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Choice(tuple(value))
    return Choice((value,))


def described(item: Range) -> dict[str, Any]:
    """A range as plain values, for manifests: its kind and its fields."""
    fields = {k: getattr(item, k) for k in asdict(item)}  # type: ignore[call-overload]
    plain = {k: described(v) if isinstance(v, Range) else v for k, v in fields.items()}
    return {"kind": type(item).__name__, **plain}


def _check_bounds(item: Uniform | LogUniform | Integers) -> None:
    if not (isfinite(item.low) and isfinite(item.high) and item.low <= item.high):
        raise ValueError(f"{type(item).__name__}({item.low}, {item.high}): give low <= high")
