"""The curves that plots and reports draw: attainment against load, latency distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synergy_gym.evaluation.board.latency import LATENCY_FIGURES, Histogram, LatencyKey
from synergy_gym.evaluation.board.part import Part
from synergy_gym.evaluation.board.tables import Row, by_competitor
from synergy_gym.evaluation.jobs import CDF_EDGES_S
from synergy_gym.types import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class LatencyCurves:
    """Latency distributions of one scenario at one load.

    Attributes:
        load: the offered load that is closest to 1.0.
        shares: per figure of `LATENCY_FIGURES` and policy, the share of all offered
            requests that finished with a latency below each of `CDF_EDGES_S`.
        limits_s: per figure, the range of seconds in which requests finished.
    """

    load: float
    shares: dict[str, dict[str, FloatArray]]
    limits_s: dict[str, tuple[float, float]]


def attainment_curves(part: Part, rows: Sequence[Row]) -> dict[str, dict[float, float]]:
    """Mean attainment by load of each policy with rows: competitors in order, then oracles."""
    found = by_competitor(part.track, rows)
    return {name: _mean_by_load(found[name]) for name in shown(part) if name in found}


def shown(part: Part) -> tuple[str, ...]:
    """Names of the policies or pairs that a part plays: competitors, then oracles."""
    return tuple(dict.fromkeys((*part.competitors(), *part.oracle_names())))


def _mean_by_load(rows: Sequence[Row]) -> dict[float, float]:
    loads: dict[float, list[float]] = {}
    for row in rows:
        loads.setdefault(row["load"], []).append(row["slo_attainment"])
    return {load: float(np.mean(loads[load])) for load in sorted(loads)}


def latency_curves(
    part: Part, rows: Sequence[Row], latency: Mapping[LatencyKey, Histogram]
) -> LatencyCurves | None:
    """Distributions of one scenario's policies; None without histograms."""
    load = min({row["load"] for row in rows}, key=lambda x: (abs(x - 1), x))
    found = by_competitor(part.track, [row for row in rows if row["load"] == load])
    names = [name for name in shown(part) if name in found]
    shares: dict[str, dict[str, FloatArray]] = {}
    limits_s = {}
    for figure in LATENCY_FIGURES:
        kept = {name: _pooled(found[name], figure, latency) for name in names}
        histograms = {name: one for name, one in kept.items() if one is not None}
        if not histograms:
            return None
        shares[figure] = {name: one.shares for name, one in histograms.items()}
        limits_s[figure] = _limits_s(np.sum([one.counts for one in histograms.values()], axis=0))
    return LatencyCurves(load, shares, limits_s)


def _pooled(
    rows: Sequence[Row], figure: str, latency: Mapping[LatencyKey, Histogram]
) -> Histogram | None:
    """Histogram of a competitor's rows, over the policies of the layer that does not compete."""
    keys = {
        (row["scenario"], row["load"], row["engine_policy"], row["router_policy"], figure)
        for row in rows
    }
    parts = [latency[key] for key in sorted(keys) if key in latency]
    return sum(parts[1:], start=parts[0]) if parts else None


def _limits_s(counts: IntArray) -> tuple[float, float]:
    used = np.flatnonzero(counts)
    if not len(used):
        return float(CDF_EDGES_S[0]), float(CDF_EDGES_S[-1])
    last = len(CDF_EDGES_S) - 1
    low, high = max(int(used[0]) - 1, 0), min(int(used[-1]), last)
    return float(CDF_EDGES_S[min(low, last - 1)]), float(CDF_EDGES_S[max(high, low + 1)])
