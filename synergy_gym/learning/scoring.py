"""Scores of policies on validation seeds, by the evaluator that also makes the leaderboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.learning.plan import TrainingPlan

METRIC = "slo_attainment"
"""Share of the scored requests that met every objective of their class."""


@dataclass(frozen=True)
class Score:
    """How a policy did on the validation seeds of a plan.

    Attributes:
        cells: mean attainment over the seeds, by `SCENARIO@LOAD`.
    """

    cells: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean over scenarios and loads: what early stopping and tuning go by."""
        return float(np.mean(list(self.cells.values())))


def cell_name(scenario: str, load: float) -> str:
    """`SCENARIO@xLOAD`, the name of a cell and of its column in tables."""
    return f"{scenario}@x{load:g}"


def cells(plan: TrainingPlan) -> Iterator[tuple[str, float, tuple[int, ...]]]:
    """The (scenario, load, validation seeds) of a plan's evaluation."""
    for name, world in zip(plan.scenarios, plan.worlds, strict=True):
        for load in plan.eval_loads:
            yield name, load, world.validation_seeds[: plan.eval_seeds]


def score(plan: TrainingPlan, policy: str, progress: Callable[[str], None] | None = None) -> Score:
    """Play a policy on the validation seeds of a plan.

    Args:
        plan: names scenarios, loads and the number of seeds.
        policy: anything that names a policy of the plan's kind, for example `agent:FILE.npz`.
        progress: is told what is being played.
    """
    found: dict[str, float] = {}
    worlds = dict(zip(plan.scenarios, plan.worlds, strict=True))
    pair = (policy, "round-robin") if plan.kind == "engine" else (plan.engine_policy, policy)
    for name, load, seeds in cells(plan):
        if progress is not None:
            progress(f"{policy} on {cell_name(worlds[name].name, load)}")
        shares = [
            evaluate(worlds[name], *pair, load, seed, record_itl=False).summary[METRIC]
            for seed in seeds
        ]
        found[cell_name(worlds[name].name, load)] = float(np.mean(shares))
    return Score(found)
