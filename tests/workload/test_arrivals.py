"""Arrival processes: range, rate, burstiness, and equal points at every rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.types import NS_PER_S, IntArray
from synergy_gym.workload.arrivals import ARRIVALS, draw_arrivals, options_of

OPTIONS: dict[str, dict[str, float]] = {
    "gamma": {"cv": 3.0},
    "on-off": {"on_s": 4.0, "off_s": 12.0, "quiet_share": 0.1},
    "diurnal": {"period_s": 50.0, "amplitude": 0.9, "peak_s": 10.0},
    "ramp": {"start_factor": 0.2, "end_factor": 1.8},
}
RANDOM = [name for name in ARRIVALS if name != "constant"]


def draw(kind: str, rate: float, horizon: float, seed: int, **options: Any) -> IntArray:
    chosen = options or OPTIONS.get(kind, {})
    return draw_arrivals(kind, np.random.default_rng(seed), rate, horizon, **chosen)


def gap_cv(times: IntArray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("kind", ARRIVALS)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(0.01, 200.0),
    horizon=st.floats(0.001, 60.0),
)
def test_arrivals_are_sorted_and_inside_the_horizon(
    kind: str, seed: int, rate: float, horizon: float
) -> None:
    times = draw(kind, rate, horizon, seed)
    assert times.dtype == np.int64
    assert np.all(np.diff(times) >= 0)
    if len(times):
        assert times[0] >= 0
        assert times[-1] < round(horizon * NS_PER_S)


@pytest.mark.parametrize("kind", ARRIVALS)
def test_mean_rate_is_the_wished_one(kind: str) -> None:
    seeds = range(200)
    counts = [len(draw(kind, 5.0, 100.0, seed)) for seed in seeds]
    error = np.std(counts) / np.sqrt(len(counts))
    print(f"seeds 0-199: mean {np.mean(counts)}, standard error {error}")
    assert abs(np.mean(counts) - 500) <= 4 * error + 1


@pytest.mark.parametrize("kind", ARRIVALS)
def test_one_seed_is_one_realisation(kind: str) -> None:
    assert draw(kind, 7.0, 50.0, 3).tolist() == draw(kind, 7.0, 50.0, 3).tolist()


@pytest.mark.parametrize("kind", ["poisson", "gamma"])
def test_another_rate_scales_the_same_points(kind: str) -> None:
    slow, fast = draw(kind, 2.0, 100.0, 5), draw(kind, 4.0, 100.0, 5)
    assert len(fast) > len(slow)
    assert np.allclose(slow, 2 * fast[: len(slow)], atol=2)


@pytest.mark.parametrize(("kind", "cv"), [("poisson", 1.0), ("gamma", 0.5), ("gamma", 2.0)])
def test_gaps_have_their_coefficient_of_variation(kind: str, cv: float) -> None:
    options = {"cv": cv} if kind == "gamma" else {}
    times = draw_arrivals(kind, np.random.default_rng(11), 100.0, 1000.0, **options)
    assert gap_cv(times) == pytest.approx(cv, rel=0.03)


def test_on_off_gaps_follow_the_formula() -> None:
    on_s, off_s, rate = 2.0, 6.0, 10.0
    times = draw("on-off", rate, 40_000.0, 1, on_s=on_s, off_s=off_s)
    burst, leave, back = rate * (on_s + off_s) / on_s, 1 / on_s, 1 / off_s
    expected = np.sqrt(1 + 2 * burst * leave / (leave + back) ** 2)
    assert gap_cv(times) == pytest.approx(expected, rel=0.05)


def test_nothing_arrives_in_a_silent_pause() -> None:
    times = draw("on-off", 50.0, 500.0, 2, on_s=1.0, off_s=20.0) / NS_PER_S
    gaps = np.diff(times)
    assert gaps.max() > 10
    assert np.median(gaps) < 0.01


def test_diurnal_peaks_where_it_says() -> None:
    times = draw("diurnal", 200.0, 100.0, 4) / NS_PER_S
    phase = np.histogram(times % 50, bins=10, range=(0, 50))[0]
    assert phase.argmax() in (1, 2)
    assert phase.min() < 0.2 * phase.max()


def test_ramp_rises_linearly() -> None:
    times = draw("ramp", 200.0, 100.0, 4, start_factor=0.0, end_factor=2.0) / NS_PER_S
    assert (times < 50).mean() == pytest.approx(0.25, abs=0.02)


def test_constant_is_evenly_spaced() -> None:
    assert draw("constant", 4.0, 1.0, 0).tolist() == [0, 250_000_000, 500_000_000, 750_000_000]


@pytest.mark.parametrize("kind", RANDOM)
def test_seeds_differ(kind: str) -> None:
    assert draw(kind, 5.0, 50.0, 0).tolist() != draw(kind, 5.0, 50.0, 1).tolist()


def test_options_are_known_with_their_need() -> None:
    assert options_of(ARRIVALS["on-off"]) == {"on_s": True, "off_s": True, "quiet_share": False}
    assert options_of(ARRIVALS["poisson"]) == {}


@pytest.mark.parametrize(
    ("kind", "rate", "horizon", "message"),
    [
        ("weibull", 1.0, 1.0, "unknown arrival process 'weibull'; choose one of poisson"),
        ("poisson", 0.0, 1.0, "rate_rps is 0.0; give a number above 0"),
        ("poisson", 1.0, float("inf"), "horizon_s is inf"),
    ],
)
def test_wrong_arguments_are_errors(kind: str, rate: float, horizon: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(kind, rate, horizon, 0)
