"""Plans: what they refuse, how they are written, what a resumed run may change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from synergy_gym.actions import EngineGrid
from synergy_gym.learning.plan import TrainingPlan
from tests.learning.conftest import small_plan


def test_a_plan_survives_json() -> None:
    plan = small_plan(grid=EngineGrid(budgets=(0, 512)), vary={"output_scale": (0.5, 2.0)})
    again = TrainingPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again.to_dict() == plan.to_dict()
    assert again.grid == plan.grid


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("engine", {"scenarios": ("smoke-cluster",)}, "needs one engine"),
        ("router", {"scenarios": ("smoke",)}, "needs a cluster"),
        ("router", {"frames": 2}, "for engine agents"),
        ("engine", {"timesteps": 0}, "timesteps=0 must be at least 1"),
        ("engine", {"loads": ()}, "loads is empty"),
        ("engine", {"loads": (0.0,)}, "must be positive"),
        ("engine", {"eval_seeds": 99}, "lower --eval-seeds"),
        ("engine", {"vary": {"output_scale": (1.0,)}}, "lowest and the highest"),
        ("engine", {"prior": (0, 9)}, "must hold 4 integers"),
        ("engine", {"vary": {"nonsense": (1.0, 2.0)}}, "nonsense"),
        ("router", {"vary": {"engines": (1.0, 2.0)}}, "cannot change engines"),
    ],
)
def test_what_does_not_fit_is_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_plan(kind, **changes)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind 'gpu' is unknown; choose one of"):
        replace(small_plan(), kind="gpu")  # type: ignore[arg-type]


def test_only_the_length_of_a_run_may_change() -> None:
    plan = small_plan()
    replace(plan, timesteps=10_000, patience=3).check_resumes(plan)
    with pytest.raises(ValueError, match="begun with seed=0, not 1"):
        replace(plan, seed=1).check_resumes(plan)


def test_unknown_entries_are_named() -> None:
    with pytest.raises(ValueError, match="speed"):
        TrainingPlan.from_dict({**small_plan().to_dict(), "speed": 3})
