"""What an incident does to an episode, as figures: each compares, counts or times requests.

All requests that first arrive in the judged window count, whatever became of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from synergy_gym.evaluation.runner import Result
from synergy_gym.metrics import slo_met
from synergy_gym.types import NS_PER_S, BoolArray, FloatArray

BIN_S = 5.0
"""Recovery is seen in slices of this length: some 60 requests at the incidents' rates."""
RECOVERED = 0.8
"""A slice has recovered when it meets this share of what it meets without the incident."""


@dataclass(frozen=True, slots=True, eq=False)
class PlayedIncident:
    """One incident as it went.

    Attributes:
        incident: the episode with the incident.
        calm: the same traffic, seed and policies in the world without it; `None` where the
            incident lies in the traffic itself.
        window_s: requests that first arrive in [begin, end) are judged, seconds.
    """

    incident: Result
    calm: Result | None
    window_s: tuple[float, float]

    def calm_result(self) -> Result:
        """The episode without the incident.

        Raises:
            ValueError: there is none.
        """
        if self.calm is None:
            raise ValueError("this measure compares with a calm world, and the incident has none")
        return self.calm


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a played incident: how it is computed, and which way is better."""

    compute: Callable[[PlayedIncident], float]
    higher_is_better: bool
    needs_calm: bool
    text: str
    unit: str = ""

    def meets(self, value: float, limit: float) -> bool:
        """Whether a value keeps the limit; NaN never does."""
        return value >= limit if self.higher_is_better else value <= limit


def _inside(result: Result, begin_s: float, end_s: float) -> BoolArray:
    arrival = result.records.arrival_ns
    inside: BoolArray = (arrival >= begin_s * NS_PER_S) & (arrival < end_s * NS_PER_S)
    return inside


def _met_share(result: Result, begin_s: float, end_s: float) -> float:
    met = slo_met(result.records, result.slos).slo[_inside(result, begin_s, end_s)]
    return float(met.mean()) if len(met) else float("nan")


def _kept(played: PlayedIncident, begin_s: float, end_s: float) -> float:
    calm = _met_share(played.calm_result(), begin_s, end_s)
    return _met_share(played.incident, begin_s, end_s) / calm if calm > 0 else float("nan")


def attainment(played: PlayedIncident) -> float:
    """Share of the judged requests that met all their objectives."""
    return _met_share(played.incident, *played.window_s)


def attainment_kept(played: PlayedIncident) -> float:
    """The same, over what it is without the incident; NaN where that is 0."""
    return _kept(played, *played.window_s)


def recovery_s(played: PlayedIncident) -> float:
    """From the window's begin to the end of its last slice that has not recovered.

    0: every slice has; infinite: the last one has not. A slice that is empty, or meets nothing
    without the incident either, says nothing; NaN if that holds for all.
    """
    begin_s, end_s = played.window_s
    starts = np.arange(begin_s, end_s - BIN_S / 2, BIN_S)
    kept = np.array([_kept(played, start, start + BIN_S) for start in starts.tolist()])
    if np.isnan(kept).all():
        return float("nan")
    late = np.flatnonzero(kept < RECOVERED)
    if not len(late):
        return 0.0
    return float("inf") if late[-1] == len(starts) - 1 else float((late[-1] + 1) * BIN_S)


def largest_share(played: PlayedIncident) -> float:
    """Share of the judged requests that the engine with most of them got (their last attempt)."""
    engine = played.incident.records.engine[_inside(played.incident, *played.window_s)]
    return float(np.bincount(engine[engine >= 0], minlength=1).max() / len(engine))


def retries_per_request(played: PlayedIncident) -> float:
    """How often a judged request was sent again, on average."""
    attempts = played.incident.records.attempts[_inside(played.incident, *played.window_s)]
    return float(np.maximum(attempts - 1, 0).mean())


def ttft_p99_ratio(played: PlayedIncident) -> float:
    """P99 of TTFT over that without the incident; a request without a token counts as infinite."""
    return _ttft_p99_s(played.incident, played) / _ttft_p99_s(played.calm_result(), played)


def _ttft_p99_s(result: Result, played: PlayedIncident) -> float:
    records, inside = result.records, _inside(result, *played.window_s)
    waits: FloatArray = np.where(
        records.first_token_ns >= 0,
        (records.first_token_ns - records.arrival_ns) / NS_PER_S,
        np.inf,
    )
    return float(np.quantile(waits[inside], 0.99, method="higher"))


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "attainment": Measure(
            attainment, True, False, "share of requests that met their objectives"
        ),
        "attainment_kept": Measure(
            attainment_kept, True, True, "attainment over that without the incident"
        ),
        "recovery_s": Measure(recovery_s, False, True, "time to recover", "s"),
        "largest_share": Measure(
            largest_share, False, False, "share of requests at the busiest engine"
        ),
        "retries_per_request": Measure(
            retries_per_request, False, False, "times a request was sent again"
        ),
        "ttft_p99_ratio": Measure(
            ttft_p99_ratio, False, True, "P99 of TTFT over that without the incident"
        ),
    }
)
"""Measures by name, as criteria name them."""
