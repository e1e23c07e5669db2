"""What lies in a simulation's memory, and how Python sees it."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from synergy_gym.scenario import load_scenario
from synergy_gym.sim.build import build_simulator
from synergy_gym.sim.compiled import layout as L
from synergy_gym.sim.memory import LINE
from synergy_gym.sim.points import DONE, ROUTE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import DecisionRule
from synergy_gym.workload.base import make_workload
from tests.strategies import SIMULATORS


def begun(points: int) -> Simulator:
    scenario = load_scenario("smoke-cluster")
    rules = [DecisionRule(spec.max_num_batched_tokens) for spec in scenario.engines]
    sim: Simulator = build_simulator(scenario, seed=2, rules=rules, cls=Simulator)
    for _ in range(points):
        if sim.advance() == ROUTE:
            sim.route(0)
    return sim


def test_a_request_is_one_cache_line() -> None:
    assert L.REQUEST.size == LINE
    memory = begun(5).memory
    for records in (memory.requests, memory.engines, memory.details):
        assert records.ctypes.data % LINE == 0
    assert memory.address % LINE == 0


def test_places_lie_inside_and_apart() -> None:
    """Regions that the world names do not overlap."""
    memory = begun(0).memory
    world, size = memory.world, len(memory.bytes())
    ends = {
        "engines": (L.ENGINE, world["num_engines"]),
        "requests": (L.REQUEST, world["num_requests"]),
        "details": (L.DETAIL, world["num_requests"]),
        "rows": (L.ROW, world["num_engines"]),
        "session_places": (L.SESSION, 1),
        "completions": (L.COMPLETION, world["num_requests"]),
    }
    places = sorted((int(world[n]), int(world[n]) + k.size * int(c)) for n, (k, c) in ends.items())
    assert places[0][0] >= L.WORLD.size
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    assert places[-1][1] <= size


def test_every_record_is_explained() -> None:
    """The page of records names every layout that it makes once, and no field twice."""
    text = Path(L.__file__).read_text(encoding="utf-8")
    names = re.findall(r'Layout\(\s*"(\w+)"', text)
    assert len(names) == len(set(names)) >= 25


@pytest.mark.parametrize("way", [copy.deepcopy, lambda sim: pickle.loads(pickle.dumps(sim))])
def test_a_copy_of_a_simulator_is_whole(way: object) -> None:
    sim = begun(40)
    other: Simulator = way(sim)  # type: ignore[operator]
    assert other.memory.address != sim.memory.address
    for one in (sim, other):
        while (point := one.advance()) != DONE:
            assert point == ROUTE
            one.route(int(one.now_ns % 2))
    assert other.log_hash() == sim.log_hash()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt_tokens", 1 << 31),
        ("output_tokens", 1 << 40),
        ("priority", -(1 << 33)),
        ("priority", -(1 << 63)),  # whose absolute value is negative
        ("slo_class", -1),
        ("arrival_ns", (1 << 63) - 1),
    ],
)
def test_numbers_that_do_not_fit_are_refused(column: str, value: int) -> None:
    scenario = load_scenario("smoke")
    given = {"arrival_ns": 0, "prompt_tokens": 5, "output_tokens": 5, column: value}
    columns = {name: np.array([number]) for name, number in given.items()}
    said = f"workload row 0: {column} is {value}[;,]"
    with pytest.raises(ValueError, match=said):
        make_workload(**columns)
    one = make_workload(np.array([0]), np.array([5]), np.array([5]))
    for simulator in SIMULATORS:
        with pytest.raises(ValueError, match=said):
            build_simulator(scenario, workload=replace(one, **columns), cls=simulator)
