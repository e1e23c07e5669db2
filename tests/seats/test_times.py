"""Decision times: exact means, quantiles as exact as their bins, bounded memory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synergy_gym.seats.times import DecisionTimes


def times_of(durations_ns: list[int]) -> DecisionTimes:
    times = DecisionTimes()
    for duration in durations_ns:
        times.add(duration)
    return times


def test_nothing_decided() -> None:
    times = DecisionTimes()
    assert times.count == 0
    assert math.isnan(times.mean_us())
    assert math.isnan(times.quantile_us(0.99))


def test_the_first_decision_is_the_mean_only_when_it_is_alone() -> None:
    assert times_of([5000]).mean_us() == 5.0
    assert times_of([5000, 1000, 3000]).mean_us() == 2.0


def test_small_durations_are_exact() -> None:
    times = times_of(list(range(100)))
    assert times.mean_us() == pytest.approx(50e-3)  # of 1..99: the first does not count
    assert times.quantile_us(0.99) == pytest.approx(98e-3)
    assert times.quantile_us(1.0) == pytest.approx(99e-3)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_within_one_percent(rng: np.random.Generator, share: float) -> None:
    durations = np.exp(rng.normal(11, 2, 3000)).astype(np.int64)
    times = times_of(durations.tolist())
    assert times.mean_us() == pytest.approx(durations[1:].mean() / 1e3)
    exact = np.quantile(durations, share, method="inverted_cdf") / 1e3
    assert times.quantile_us(share) == pytest.approx(exact, rel=0.008, abs=1e-3)


def test_every_duration_has_a_bin() -> None:
    powers = [0, *(1 << bit for bit in range(63)), (1 << 63) - 1]
    times = times_of(powers)
    size = len(times._bins)
    for power in powers:
        only = times_of([power])
        assert only.quantile_us(0.5) == pytest.approx(power / 1e3, rel=0.008)
    assert sum(times._bins) == times.count == len(powers)
    assert len(times._bins) == size
