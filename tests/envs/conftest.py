"""Short scenarios for the environments: real engines and profiles, small fixed traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import Event
from synergy_gym.workload.base import Workload, make_workload


def traffic(load: float, seed: int) -> Workload:
    """Forty requests in two seconds, ten sessions."""
    rng = np.random.default_rng(seed)
    n = round(40 * load)
    return make_workload(
        np.sort(rng.integers(0, 2 * 10**9, n)),
        rng.integers(20, 1500, n),
        rng.integers(1, 40, n),
        session=rng.integers(0, 10, n),
    )


@pytest.fixture(scope="session")
def short_engine() -> Scenario:
    """One H100, everything scored."""
    return replace(load_scenario("chat-h100"), warmup_s=0.0, horizon_s=2.0, events=())


@pytest.fixture(scope="session")
def short_cluster() -> Scenario:
    """Three unlike engines, everything scored."""
    return replace(load_scenario("hetero-3"), warmup_s=0.0, horizon_s=2.0, events=())


@pytest.fixture(scope="session")
def failing_cluster(short_cluster: Scenario) -> Scenario:
    """Engine 1 is down between 0.5 s and 1.5 s."""
    events = (Event(0.5, "down", 1), Event(1.5, "up", 1))
    return replace(short_cluster, events=events)


@pytest.fixture(scope="session")
def small_traffic() -> Callable[[float, int], Workload]:
    """Traffic as a function of (load, seed)."""
    return traffic
