"""Capacity of a curve, bisection over loads, and writing a calibrated rate."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.evaluation.capacity import (
    Capacity,
    RateCalibration,
    capacity_of_curve,
    highest_load,
    mean_capacity,
    write_rate,
)

LOADS = [0.6, 0.8, 1.0, 1.2, 1.5]


@pytest.mark.parametrize(
    ("attainments", "expected"),
    [
        ([1.0, 1.0, 0.95, 0.85, 0.2], Capacity(1.1, "at")),
        ([1.0, 1.0, 0.9, 0.5, 0.2], Capacity(1.0, "at")),
        ([1.0] * 5, Capacity(1.5, "above")),
        ([0.5] * 5, Capacity(0.0, "below")),
        ([0.95, 0.85, 0.95, 0.5, 0.5], Capacity(0.7, "at")),
        ([0.95, float("nan"), 0.9, 0.9, 0.9], None),
    ],
)
def test_capacity_of_curve(attainments: list[float], expected: Capacity | None) -> None:
    found = capacity_of_curve(LOADS, attainments)
    if expected is None:
        assert found.bound == "at"
        return
    assert found.bound == expected.bound
    assert found.load == pytest.approx(expected.load)


def test_capacity_ignores_the_order_of_the_loads() -> None:
    forward = capacity_of_curve([1, 2], [1.0, 0.0])
    assert capacity_of_curve([2, 1], [0.0, 1.0]) == forward
    assert str(forward) == "1.10"


def test_a_mean_capacity_is_no_more_exact_than_its_parts() -> None:
    at, above, below = (
        Capacity(1.0, "at", 0.6),
        Capacity(1.5, "above", 0.6),
        Capacity(0.0, "below", 0.6),
    )
    assert mean_capacity([at, Capacity(1.2, "at", 0.6)]) == "1.10"
    assert mean_capacity([at, above]) == ">= 1.25"
    assert mean_capacity([at, below]) == "0.50..0.8"
    assert mean_capacity([below, below]) == "< 0.6"
    assert mean_capacity([above, below]) == ">= 0.75"


def test_capacity_texts_and_errors() -> None:
    assert str(capacity_of_curve([0.8, 1.5], [1.0, 1.0])) == ">= 1.5"
    assert str(capacity_of_curve([0.8, 1.5], [0.8, 0.5])) == "< 0.8"
    assert str(Capacity(1.0, "at")) == "1.00"
    with pytest.raises(ValueError, match="matching lists"):
        capacity_of_curve([1.0], [])


@given(st.floats(0.01, 100), st.floats(0.1, 10))
def test_bisection_finds_the_border(border: float, start: float) -> None:
    played: list[float] = []

    def attainment(load: float) -> float:
        played.append(load)
        return 1.0 if load <= border else 0.5

    load, value = highest_load(attainment, start=start, tolerance=0.01)
    assert value == 1.0
    assert load in played
    assert load <= border <= load * 1.0101
    assert len(played) < 25


@pytest.mark.parametrize(("value", "word"), [(1.0, "reaches"), (0.0, "misses")])
def test_bisection_without_a_border(value: float, word: str) -> None:
    with pytest.raises(ValueError, match=f"{word} the target at every load"):
        highest_load(lambda load: value, limit=8)


FILE = """# how the rate was found is below
name = "x"
[traffic]
kind = "poisson"
  rate_rps = 3.0   # a first guess
  rate_source = "a guess"
other_rate_rps = 1
"""


def test_write_rate_changes_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(FILE, encoding="utf-8")
    found = RateCalibration("x", 4.56, 0.9012, (1, 2), 0.9, 0.85, 0.95)
    write_rate(path, found)
    new, old = path.read_text(encoding="utf-8").splitlines(), FILE.splitlines()
    assert [i for i, (a, b) in enumerate(zip(new, old, strict=True)) if a != b] == [4, 5]
    traffic = tomllib.loads("\n".join(new))["traffic"]
    assert traffic["rate_rps"] == 4.56
    assert "synergy-gym calibrate x" in traffic["rate_source"]
    assert "0.901" in traffic["rate_source"]


def test_write_rate_adds_the_source(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "x"\nrate_rps = 1.0\n', encoding="utf-8")
    write_rate(path, RateCalibration("x", 2.0, 0.9, (1,), 0.9, 0.9, 0.9))
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    assert content["rate_rps"] == 2.0
    assert content["rate_source"].endswith("of seed 1; single seeds 0.900 to 0.900")


def test_write_rate_needs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("rate_rps = 1\nrate_rps = 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="one `rate_rps"):
        write_rate(path, RateCalibration("x", 2.0, 0.9, (1,), 0.9, 0.9, 0.9))


def test_the_source_says_how_far_single_seeds_differ() -> None:
    many = RateCalibration("x", 2.0, 0.9, tuple(range(2000, 2020)), 0.9, 0.62, 0.97)
    assert many.source.endswith("mean of seeds 2000 to 2019; single seeds 0.620 to 0.970")
    gap = RateCalibration("x", 2.0, 0.9, (1, 2, 4), 0.9, 0.62, 0.97)
    assert "mean of seeds 1, 2, 4; " in gap.source
