"""Arrival processes: times of requests on [0, horizon), integer nanoseconds, sorted.

Every process is a sequence of unit-rate points whose clock runs at the process's intensity,
so one seed gives the same points at every rate, only denser or sparser.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from synergy_gym.types import NS_PER_S, FloatArray, IntArray

_CHUNK = 4096


def poisson(rng: np.random.Generator, rate_rps: float, horizon_s: float) -> IntArray:
    """Independent exponential gaps (CV 1)."""
    points = _unit_points(rng.standard_exponential, rate_rps * horizon_s)
    return _to_ns(points / rate_rps, horizon_s)


def gamma(rng: np.random.Generator, rate_rps: float, horizon_s: float, *, cv: float) -> IntArray:
    """Independent gamma gaps with coefficient of variation `cv`: bursty above 1.

    The first gap is the residual one of a stationary process, so that the mean number of
    arrivals is rate * horizon.
    """
    shape = 1 / cv**2
    first = rng.random() * rng.standard_gamma(shape + 1) / shape

    def gaps(n: int) -> FloatArray:
        return rng.standard_gamma(shape, n) / shape

    points = _unit_points(gaps, rate_rps * horizon_s, first)
    return _to_ns(points / rate_rps, horizon_s)


def on_off(
    rng: np.random.Generator,
    rate_rps: float,
    horizon_s: float,
    *,
    on_s: float,
    off_s: float,
    quiet_share: float = 0.0,
) -> IntArray:
    """A two-state Markov-modulated Poisson process with mean rate `rate_rps`.

    Bursts and pauses last exponential times of mean `on_s` and `off_s`; the rate in a pause
    is `quiet_share` times the rate in a burst. The first state is drawn in equilibrium.
    """
    share = on_s / (on_s + off_s)
    high = 1 / (share + (1 - share) * quiet_share)
    active = rng.random() < share
    edges, levels = [0.0], []
    while edges[-1] < horizon_s:
        edges.append(edges[-1] + rng.exponential(on_s if active else off_s))
        levels.append(high if active else high * quiet_share)
        active = not active
    cumulative = np.concatenate([[0.0], np.cumsum(np.diff(edges) * levels)])
    return _modulated(rng, rate_rps, horizon_s, np.array(edges), cumulative)


def diurnal(
    rng: np.random.Generator,
    rate_rps: float,
    horizon_s: float,
    *,
    period_s: float = 86_400.0,
    amplitude: float = 0.5,
    peak_s: float = 0.0,
) -> IntArray:
    """Poisson arrivals at rate * (1 + amplitude * cos(2 pi (t - peak_s) / period_s)).

    `rate_rps` is the mean over whole periods.
    """
    omega = 2 * np.pi / period_s
    steps = max(1024, int(np.ceil(1024 * horizon_s / period_s)))
    times = np.linspace(0.0, horizon_s, steps + 1)
    wave = np.sin(omega * (times - peak_s)) - np.sin(-omega * peak_s)
    return _modulated(rng, rate_rps, horizon_s, times, times + amplitude / omega * wave)


def ramp(
    rng: np.random.Generator,
    rate_rps: float,
    horizon_s: float,
    *,
    start_factor: float = 0.0,
    end_factor: float = 2.0,
) -> IntArray:
    """Poisson arrivals whose rate goes linearly from start to end factor times `rate_rps`."""
    times = np.linspace(0.0, horizon_s, 1025)
    slope = (end_factor - start_factor) / horizon_s
    return _modulated(rng, rate_rps, horizon_s, times, times * start_factor + slope * times**2 / 2)


def constant(rng: np.random.Generator, rate_rps: float, horizon_s: float) -> IntArray:
    """Evenly spaced arrivals, the first at 0: a replay at constant rate. Draws nothing."""
    return _to_ns(np.arange(int(np.ceil(rate_rps * horizon_s))) / rate_rps, horizon_s)


def uniform(rng: np.random.Generator, rate_rps: float, horizon_s: float) -> IntArray:
    """Exactly round(rate * horizon) arrivals at independent uniform times."""
    return _to_ns(np.sort(rng.random(round(rate_rps * horizon_s))) * horizon_s, horizon_s)


ARRIVALS: dict[str, Callable[..., IntArray]] = {
    "poisson": poisson,
    "gamma": gamma,
    "on-off": on_off,
    "diurnal": diurnal,
    "ramp": ramp,
    "constant": constant,
    "uniform": uniform,
}
"""Arrival processes by name: `process(rng, rate_rps, horizon_s, *, options)`.

One that is added here can be named in scenario files.
"""


def draw_arrivals(
    kind: str, rng: np.random.Generator, rate_rps: float, horizon_s: float, **options: float
) -> IntArray:
    """Times of the process `kind`, nanoseconds, sorted, in [0, horizon).

    Raises:
        ValueError: the process is unknown, or rate or horizon is not positive and finite.
    """
    if kind not in ARRIVALS:
        raise ValueError(f"unknown arrival process {kind!r}; choose one of {', '.join(ARRIVALS)}")
    for name, value in (("rate_rps", rate_rps), ("horizon_s", horizon_s)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; give a number above 0")
    return ARRIVALS[kind](rng, rate_rps, horizon_s, **options)


def options_of(function: Callable[..., Any]) -> dict[str, bool]:
    """Keyword-only options of a registered function: name -> whether it must be given."""
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _unit_points(
    gaps: Callable[[int], FloatArray], span: float, first: float | None = None
) -> FloatArray:
    """Points of a unit-rate renewal process on [0, span), beginning with `first` if given.

    Gaps come in chunks of fixed size: a longer span extends a shorter one.
    """
    last = 0.0 if first is None else first
    chunks = [np.zeros(0) if first is None else np.array([first])]
    while last < span:
        chunks.append(last + np.cumsum(gaps(_CHUNK)))
        last = float(chunks[-1][-1])
    points: FloatArray = np.concatenate(chunks)
    inside: FloatArray = points[points < span]
    return inside


def _modulated(
    rng: np.random.Generator,
    rate_rps: float,
    horizon_s: float,
    times: FloatArray,
    cumulative: FloatArray,
) -> IntArray:
    """Poisson points under the cumulative intensity `rate_rps * cumulative` at `times`."""
    points = _unit_points(rng.standard_exponential, rate_rps * float(cumulative[-1]))
    # Where intensity is 0, `cumulative` is flat and interp jumps to the right end of the pause.
    arrivals = np.interp(points / rate_rps, cumulative, times)
    return _to_ns(arrivals, horizon_s)


def _to_ns(arrival_s: FloatArray, horizon_s: float) -> IntArray:
    times = np.floor(arrival_s * NS_PER_S).astype(np.int64)
    return times[times < round(horizon_s * NS_PER_S)]
