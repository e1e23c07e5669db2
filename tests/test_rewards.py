"""Reward terms: names, potentials, the shaping identity."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym import rewards
from synergy_gym.types import EngineSpec, EngineStateField, RouterRow

SPEC = EngineSpec("e", "H100", "m", "p", 10, 100, 1000, 50)


def test_names() -> None:
    assert rewards.engine_potentials() == ["backlog", "waiting"]
    assert rewards.router_potentials() == ["imbalance", "in-flight"]
    with pytest.raises(ValueError, match="backlog"):
        rewards.find_engine_potential("in-flight")
    with pytest.raises(ValueError, match="imbalance"):
        rewards.find_router_potential("backlog")


def test_engine_potentials() -> None:
    state = np.zeros(len(EngineStateField), np.int64)
    state[EngineStateField.WAITING] = 5
    state[EngineStateField.PREFILL_TOKENS] = 30
    state[EngineStateField.WAITING_TOKENS] = 20
    assert rewards.find_engine_potential("waiting")(state, SPEC) == -0.5
    assert rewards.find_engine_potential("backlog")(state, SPEC) == -0.5


def test_router_potentials() -> None:
    rows = np.zeros((3, len(RouterRow)), np.int64)
    rows[:, RouterRow.IN_FLIGHT] = [8, 2, 5]
    assert rewards.find_router_potential("in-flight")(rows, (SPEC,) * 3) == -0.5
    imbalance = rewards.find_router_potential("imbalance")
    assert imbalance(rows, (SPEC,) * 3) == 0.0
    rows[:2, RouterRow.ALIVE] = 1
    assert imbalance(rows, (SPEC,) * 3) == pytest.approx(-0.6)


@given(
    st.lists(st.tuples(st.floats(-10, 0), st.floats(0, 5)), min_size=1, max_size=20),
    st.floats(-10, 0),
    st.floats(0, 2),
    st.floats(-3, 3),
)
def test_the_discounted_sum_depends_on_the_start_only(
    steps: list[tuple[float, float]], start: float, beta: float, weight: float
) -> None:
    shaping = rewards.PotentialShaping(weight, beta)
    shaping.start(start)
    total = elapsed = 0.0
    for i, (potential, dt_s) in enumerate(steps):
        reward = shaping.step(0.0 if i == len(steps) - 1 else potential, dt_s)
        total += exp(-beta * elapsed) * reward
        elapsed += dt_s
    assert total == pytest.approx(-weight * start, abs=1e-9)


@pytest.mark.parametrize(
    ("weight", "beta"), [(float("nan"), 0.0), (1.0, -1.0), (1.0, float("inf"))]
)
def test_weight_and_rate_are_checked(weight: float, beta: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        rewards.PotentialShaping(weight, beta)
