"""`bounds.csv`: bounds of a suite's episodes, kept while their scenario is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from synergy_gym.evaluation.board.bounds_file import read_bounds, write_bounds
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.bound import attainment_bound
from synergy_gym.scenario import load_scenario

PART = Part(
    "engine", ("smoke",), ("vllm-v1",), ("round-robin",), (2.0,), 2, horizon_s=6.0, warmup_s=1.0
)
SUITE = Suite("s", "", (PART,))


def test_bounds_are_those_of_the_played_window(tmp_path: Path) -> None:
    found = write_bounds(tmp_path / "bounds.csv", SUITE)
    world = replace(load_scenario("smoke"), horizon_s=6.0, warmup_s=1.0)
    expected = {
        ("smoke", 2.0, seed): attainment_bound(world, 2.0, seed).attainment
        for seed in world.test_seeds[:2]
    }
    assert found == pytest.approx(expected, rel=1e-8)
    assert read_bounds(tmp_path / "bounds.csv") == found


def test_bounds_are_kept_until_their_scenario_changes(tmp_path: Path) -> None:
    path = tmp_path / "bounds.csv"
    write_bounds(path, SUITE)
    lines = path.read_text().splitlines()
    marked = lines[1].split(",")
    marked[3] = "0.125"
    path.write_text("\n".join([lines[0], ",".join(marked), *lines[2:]]) + "\n")
    assert 0.125 in write_bounds(path, SUITE).values()
    longer = replace(SUITE, parts=(replace(PART, horizon_s=7.0),))
    assert 0.125 not in write_bounds(path, longer).values()


def test_who_cannot_be_bounded_is_left_out(tmp_path: Path) -> None:
    other = replace(PART, scenarios=("smoke@saturation",))
    assert write_bounds(tmp_path / "bounds.csv", Suite("s", "", (other,))) == {}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bounds.csv"
    path.write_text("scenario,load,seed,bound,world\nsmoke,1,x,0.9,a\n")
    with pytest.raises(ValueError, match=r"bounds\.csv:2: no bound"):
        read_bounds(path)
    assert read_bounds(tmp_path / "none.csv") == {}
