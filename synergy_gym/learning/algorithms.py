"""Training algorithms by name.

An algorithm is a function from a plan and a run folder to trained agents on disk. Those of
stable-baselines3 and sb3-contrib share one (`sb3_training`); others register their own:

    @algorithm("dqn-authors", kinds=("engine",), summary="...")
    def train(run: Run) -> None: ...
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from synergy_gym.learning.plan import KINDS, Kind

if TYPE_CHECKING:
    from synergy_gym.learning.plan import TrainingPlan
    from synergy_gym.learning.run import Run

_MODULES = ("synergy_gym.learning.sb3.algorithms", "synergy_gym.learning.authors_dqn.algorithm")
"""Modules that register algorithms when they are imported."""

Train = Callable[["Run"], None]
Suggest = Callable[[Any, Kind], dict[str, Any]]
"""`(optuna trial, kind)` -> arguments of the algorithm to try."""


@dataclass(frozen=True)
class Algorithm:
    """A training algorithm.

    Attributes:
        name: what `--algo` calls it.
        summary: one line for people.
        train: runs a plan; writes checkpoints, evaluations and agents through the run.
        kinds: layers that it trains for.
        defaults: its arguments per kind, before those of the plan.
        suggest: draws arguments for `--tune`; None: it cannot be tuned.
        imitates: whether it can begin from a cloned policy.
        fixed: entries of a plan that it has no choice of, by name.
    """

    name: str
    summary: str
    train: Train
    kinds: tuple[Kind, ...] = KINDS
    defaults: Mapping[Kind, Mapping[str, Any]] = field(default_factory=dict)
    suggest: Suggest | None = None
    imitates: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def check(self, plan: TrainingPlan) -> None:
        """Refuse a plan that asks for what the algorithm does not do.

        Raises:
            ValueError: an entry of `fixed` differs; names the first one.
        """
        for name, value in self.fixed.items():
            if getattr(plan, name) != value:
                raise ValueError(
                    f"{self.name} trains with {name}={value!r} only, not {getattr(plan, name)!r}; "
                    "leave that option out"
                )

    def arguments(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
        """Its arguments for one kind, those given before its defaults."""
        return {**self.defaults.get(kind, {}), **given}


_ALGORITHMS: dict[str, Algorithm] = {}


def algorithm(
    name: str,
    *,
    summary: str,
    kinds: Sequence[Kind] = KINDS,
    defaults: Mapping[Kind, Mapping[str, Any]] | None = None,
    suggest: Suggest | None = None,
    imitates: bool = False,
    fixed: Mapping[str, Any] | None = None,
) -> Callable[[Train], Train]:
    """Register a training function under `name`; the arguments are those of `Algorithm`."""

    def register(function: Train) -> Train:
        _ALGORITHMS[name] = Algorithm(
            name=name,
            summary=summary,
            train=function,
            kinds=tuple(kinds),
            defaults=defaults or {},
            suggest=suggest,
            imitates=imitates,
            fixed=fixed or {},
        )
        return function

    return register


def algorithms() -> list[Algorithm]:
    """All registered algorithms, by name.

    Raises:
        ImportError: the extra `rl` is missing.
    """
    for module in _MODULES:
        importlib.import_module(module)
    return [_ALGORITHMS[name] for name in sorted(_ALGORITHMS)]


def find_algorithm(name: str, kind: Kind) -> Algorithm:
    """The algorithm of that name, for a kind of agent.

    Raises:
        ValueError: there is none, or it trains agents of the other kind.
    """
    known = {found.name: found for found in algorithms()}
    if name not in known:
        raise ValueError(f"unknown algorithm {name!r}; choose one of {', '.join(known)}")
    if kind not in known[name].kinds:
        fitting = ", ".join(found.name for found in known.values() if kind in found.kinds)
        raise ValueError(f"{name} does not train agents of kind {kind!r}; choose one of {fitting}")
    return known[name]
