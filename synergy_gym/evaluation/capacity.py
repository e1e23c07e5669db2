"""How much load a policy carries: capacity, and the rate that a scenario calls load 1.0."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from synergy_gym.evaluation.runner import (
    EnginePolicySpec,
    RouterPolicySpec,
    ScenarioSpec,
    evaluate,
    resolve_scenario,
)

TARGET = 0.9
"""Attainment that a load must reach to be carried."""
CALIBRATION_ENGINE = "vllm-v1"
CALIBRATION_ROUTER = "round-robin"
Progress = Callable[[float, float], None]


@dataclass(frozen=True, slots=True)
class Capacity:
    """Highest load with the target attainment.

    `bound` is "at" when the load lies inside the offered range, "above" when even the
    highest offered load attains (`load` is that one), "below" when the lowest does not
    (`load` is 0). `lowest` is the lowest load that was offered.
    """

    load: float
    bound: Literal["at", "above", "below"]
    lowest: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return mean_capacity([self])


def mean_capacity(capacities: Sequence[Capacity]) -> str:
    """The mean of several capacities as text, no more exact than they are.

    `1.02`, `< 0.6` when no lowest load attains, `>= 1.5` when a highest one does, and
    `0.45..0.6` when some lowest load misses: that capacity lies between 0 and it.
    """
    low = float(np.mean([c.load for c in capacities]))
    high = float(np.mean([max(c.load, c.lowest if c.bound == "below" else 0) for c in capacities]))
    bounds = {c.bound for c in capacities}
    if "above" in bounds:
        return f">= {round(low, 2):g}"
    if bounds == {"below"}:
        return f"< {round(high, 2):g}"
    return f"{low:.2f}..{round(high, 2):g}" if "below" in bounds else f"{low:.2f}"


def capacity_of_curve(
    loads: Sequence[float], attainments: Sequence[float], target: float = TARGET
) -> Capacity:
    """Capacity from the offered loads: where the attainment first falls below the target.

    Between the last load that attains and the next one, linear interpolation. A load
    that attains again beyond a failing one does not count.

    Raises:
        ValueError: no loads, or lists of different lengths.
    """
    if not len(loads) or len(loads) != len(attainments):
        raise ValueError(f"capacity needs matching lists, got {len(loads)} and {len(attainments)}")
    order = np.argsort(loads)
    x, y = np.asarray(loads, float)[order], np.asarray(attainments, float)[order]
    failing = np.flatnonzero(~(y >= target))
    if not len(failing):
        return Capacity(float(x[-1]), "above", float(x[0]))
    first = int(failing[0])
    if first == 0:
        return Capacity(0.0, "below", float(x[0]))
    fall = y[first - 1] - y[first]
    share = (y[first - 1] - target) / fall if fall > 0 else 0.0  # NaN: nothing was offered
    load = float(x[first - 1] + share * (x[first] - x[first - 1]))
    return Capacity(load, "at", float(x[0]))


def highest_load(
    attainment: Callable[[float], float],
    *,
    target: float = TARGET,
    start: float = 1.0,
    tolerance: float = 0.005,
    limit: float = 1024.0,
) -> tuple[float, float]:
    """Bisect for the highest load whose attainment reaches the target.

    Doubles or halves `start` until one load attains and the next does not, then halves
    the interval until its ends differ by less than `tolerance`, relatively.

    Returns:
        (load, its attainment): a load that was played and attains.

    Raises:
        ValueError: no load between `start / limit` and `start * limit` is a border.
    """
    seen: dict[float, float] = {}

    def attains(load: float) -> bool:
        seen[load] = attainment(load)
        return seen[load] >= target

    low, high = _bracket(attains, start, limit)
    while high / low > 1 + tolerance:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if attains(middle) else (low, middle)
    return low, seen[low]


def _bracket(attains: Callable[[float], bool], start: float, limit: float) -> tuple[float, float]:
    load, up = start, attains(start)
    while start / limit <= load <= start * limit:
        following = load * 2 if up else load / 2
        if attains(following) != up:
            return min(load, following), max(load, following)
        load = following
    side = "reaches" if up else "misses"
    raise ValueError(
        f"attainment {side} the target at every load from {start:g} to {load:g}; "
        "check the scenario's SLOs, lengths and horizon"
    )


def attainments(
    scenario: ScenarioSpec,
    engine_policy: EnginePolicySpec,
    router_policy: RouterPolicySpec,
    load: float,
    seeds: Sequence[int],
) -> list[float]:
    """SLO attainment of each seed at one load."""
    world = resolve_scenario(scenario)
    scores = [
        evaluate(world, engine_policy, router_policy, load, seed, record_itl=False).summary
        for seed in seeds
    ]
    return [float(score["slo_attainment"]) for score in scores]


def mean_attainment(
    scenario: ScenarioSpec,
    engine_policy: EnginePolicySpec,
    router_policy: RouterPolicySpec,
    load: float,
    seeds: Sequence[int],
) -> float:
    """Mean SLO attainment over the seeds at one load."""
    return float(np.mean(attainments(scenario, engine_policy, router_policy, load, seeds)))


def find_capacity(
    scenario: ScenarioSpec,
    engine_policy: EnginePolicySpec = CALIBRATION_ENGINE,
    router_policy: RouterPolicySpec = CALIBRATION_ROUTER,
    *,
    seeds: Sequence[int],
    target: float = TARGET,
    tolerance: float = 0.01,
    progress: Progress | None = None,
) -> Capacity:
    """Highest load with the target attainment, by bisection over played episodes.

    Args:
        scenario: name, path or `Scenario`.
        engine_policy: as in `evaluate`.
        router_policy: as in `evaluate`.
        seeds: episodes to average at each load.
        target: attainment to reach.
        tolerance: relative width at which the bisection stops.
        progress: called with (load, attainment) after each load.

    Raises:
        ValueError: no load in reach is a border.
    """
    world = resolve_scenario(scenario)

    def attainment(load: float) -> float:
        value = mean_attainment(world, engine_policy, router_policy, load, seeds)
        if progress is not None:
            progress(load, value)
        return value

    load, _ = highest_load(attainment, target=target, tolerance=tolerance)
    return Capacity(load, "at")


@dataclass(frozen=True, slots=True)
class RateCalibration:
    """The rate that a scenario should call load 1.0, and how it was found.

    `attainment` is the mean over the seeds at that rate, `lowest` and `highest` those of one.
    """

    scenario: str
    rate_rps: float
    attainment: float
    seeds: tuple[int, ...]
    target: float
    lowest: float
    highest: float

    @property
    def command(self) -> str:
        """The command that finds this rate again."""
        return f"synergy-gym calibrate {self.scenario}"

    @property
    def source(self) -> str:
        """The text for the scenario's `rate_source`."""
        return (
            f"`{self.command}`: {CALIBRATION_ENGINE} + {CALIBRATION_ROUTER} attain "
            f"{self.attainment:.3f} (target {self.target:g}) as the mean of {_listed(self.seeds)}; "
            f"single seeds {self.lowest:.3f} to {self.highest:.3f}"
        )


def _listed(seeds: Sequence[int]) -> str:
    """Seeds as a range where they are one."""
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 2 and list(seeds) == list(range(first, last + 1)):
        return f"seeds {first} to {last}"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def calibrate_rate(
    scenario: ScenarioSpec,
    *,
    seeds: Sequence[int] | None = None,
    target: float = TARGET,
    tolerance: float = 0.005,
    progress: Progress | None = None,
) -> RateCalibration:
    """Find the rate at which `vllm-v1` + `round-robin` attain the target (design: load 1.0).

    The rate is rounded down to three significant digits before it is played for the figure
    that `Calibration.attainment` reports.

    Args:
        scenario: name, path or `Scenario`; its present rate is the first guess.
        seeds: episodes to average; by default the scenario's validation seeds, so that
            the test seeds stay unseen.
        target: attainment to reach.
        tolerance: relative width at which the bisection stops.
        progress: called with (rate in requests/s, attainment) after each rate.

    Raises:
        ValueError: no rate in reach is a border.
    """
    world = resolve_scenario(scenario)
    chosen = tuple(world.validation_seeds if seeds is None else seeds)

    def attainment(rate: float) -> float:
        load = rate / world.rate_rps
        value = mean_attainment(world, CALIBRATION_ENGINE, CALIBRATION_ROUTER, load, chosen)
        if progress is not None:
            progress(rate, value)
        return value

    rate, _ = highest_load(attainment, target=target, start=world.rate_rps, tolerance=tolerance)
    rounded = _floor(rate)
    load = rounded / world.rate_rps
    each = attainments(world, CALIBRATION_ENGINE, CALIBRATION_ROUTER, load, chosen)
    mean = float(np.mean(each))
    return RateCalibration(world.label, rounded, mean, chosen, target, min(each), max(each))


def _floor(rate: float) -> float:
    """Three significant digits, rounded down."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 2)
    return float(f"{math.floor(rate / unit * (1 + 1e-12)) * unit:.3g}")


_RATE_LINE = re.compile(r"^(?P<indent>[ \t]*)(?P<key>rate_rps|rate_source)[ \t]*=.*$", re.MULTILINE)


def write_rate(path: Path, calibration: RateCalibration) -> None:
    """Rewrite the `rate_rps` and `rate_source` lines of a scenario file, nothing else.

    Raises:
        ValueError: the file has not exactly one `rate_rps` line.
    """
    text = path.read_text(encoding="utf-8")
    keys = [match["key"] for match in _RATE_LINE.finditer(text)]
    if keys.count("rate_rps") != 1 or keys.count("rate_source") > 1:
        raise ValueError(
            f"{path}: expected one `rate_rps = ...` line and at most one `rate_source = ...` line, "
            f"found {keys.count('rate_rps')} and {keys.count('rate_source')}; add or remove lines"
        )
    source = f'rate_source = "{calibration.source}"'
    lines = {"rate_rps": f"rate_rps = {calibration.rate_rps:g}", "rate_source": source}
    if "rate_source" not in keys:
        lines["rate_rps"] += "\n" + source
    text = _RATE_LINE.sub(lambda match: match["indent"] + lines[match["key"]], text)
    path.write_text(text, encoding="utf-8")
