"""Fidelity as tables: errors per cell and figure, their summary, and the ranking of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.fidelity.compare import Comparison, PlayedPair
from synergy_gym.fidelity.store import EpisodeData
from synergy_gym.types import FloatArray

if TYPE_CHECKING:
    import pandas as pd

METRICS: Mapping[str, str] = MappingProxyType(
    {"step": "step_s", "ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s"}
)
"""Name in the tables -> array of `EpisodeData`."""
FIGURES: tuple[str, ...] = ("mean", "p50", "p90", "p99")
GOALS: Mapping[tuple[str, str], float] = MappingProxyType(
    {("tpot", f): 3.0 for f in FIGURES} | {("e2e", f): 5.0 for f in FIGURES}
    | {("ttft", "p50"): 10.0}
)  # fmt: skip
"""Largest median error over the cells, in percent, that counts as reached."""
TAU_GOAL = 0.9
SCORES: Mapping[str, bool] = MappingProxyType(
    {"slo_attainment": True, "e2e_mean_s": False, "ttft_mean_s": False}
)
"""What policies are ranked by, and whether more is better."""


def figure(values: FloatArray, name: str) -> float:
    """The mean or a percentile (`p90`) of values; NaN without any."""
    if not len(values):
        return float("nan")
    return float(values.mean() if name == "mean" else np.percentile(values, float(name[1:])))


def pooled(episodes: Sequence[EpisodeData], metric: str, name: str) -> float:
    """A figure over all values of several episodes."""
    return figure(np.concatenate([getattr(e, METRICS[metric]) for e in episodes]), name)


def live_difference(values: Sequence[float]) -> float:
    """Mean relative difference of two repeats, over all pairs, in percent."""
    gaps = [abs(a - b) / ((a + b) / 2) for a, b in combinations(values, 2)]
    return 100 * float(np.mean(gaps)) if gaps else float("nan")


def cell_table(comparison: Comparison) -> pd.DataFrame:
    """One row per cell, metric and figure: both worlds, errors, live against live."""
    import pandas as pd

    rows = [
        _row(played, metric, name)
        for played in comparison.cells
        for metric in METRICS
        for name in FIGURES
    ]
    return pd.DataFrame(rows)


def _row(played: PlayedPair, metric: str, name: str) -> dict[str, Any]:
    cell = played.cell
    each = [figure(getattr(e, METRICS[metric]), name) for e in played.live]
    live, sim, matched = (
        pooled(episodes, metric, name) for episodes in (played.live, played.sim, played.matched)
    )
    return {
        "scenario": cell.scenario,
        "load": cell.load,
        "engine_policy": cell.engine_policy,
        "router_policy": cell.router_policy,
        "metric": metric,
        "figure": name,
        "live_s": live,
        "live_min_s": min(each),
        "live_max_s": max(each),
        "sim_s": sim,
        "matched_s": matched,
        "sim_error_percent": 100 * (sim / live - 1),
        "matched_error_percent": 100 * (matched / live - 1),
        "live_difference_percent": live_difference(each),
    }


def summary_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Absolute errors over the cells of a scenario, beside live against live and goals."""
    import pandas as pd

    rows = []
    for (scenario, metric, name), group in cells.groupby(
        ["scenario", "metric", "figure"], sort=False
    ):
        goal = GOALS.get((str(metric), str(name)), float("nan"))
        errors = {k: group[f"{k}_error_percent"].abs() for k in ("sim", "matched")}
        rows.append(
            {
                "scenario": scenario,
                "metric": metric,
                "figure": name,
                "cells": len(group),
                "sim_error_median_percent": errors["sim"].median(),
                "matched_error_median_percent": errors["matched"].median(),
                "sim_error_percent": errors["sim"].mean(),
                "matched_error_percent": errors["matched"].mean(),
                "sim_error_max_percent": errors["sim"].max(),
                "matched_error_max_percent": errors["matched"].max(),
                "sim_bias_percent": group["sim_error_percent"].mean(),
                "matched_bias_percent": group["matched_error_percent"].mean(),
                "live_difference_percent": group["live_difference_percent"].mean(),
                "goal_percent": goal,
            }
        )
    return pd.DataFrame(rows)


def verdict(error_percent: float, goal_percent: float) -> str:
    """Whether an error reaches its goal; empty without a goal."""
    if np.isnan(goal_percent):
        return ""
    return "reached" if error_percent <= goal_percent else "missed"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far simulation ranks policies as real engines do.

    Attributes:
        pairs: pairs of policies whose live intervals are disjoint.
        all_pairs: all pairs.
        tau: Kendall's tau over `pairs`: (agreeing - contradicting) / pairs; a tie in
            simulation counts as neither.
        regret: live score that is lost by taking the policy that simulation ranks first, in
            the score's unit, summed over loads and divided by their number.
    """

    pairs: int
    all_pairs: int
    tau: float
    regret: float


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t interval of the mean of repeats; infinitely wide for one value."""
    from scipy import stats

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return -np.inf, np.inf
    half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
    return mean - half, mean + half


def fidelity_ranking(comparison: Comparison) -> pd.DataFrame:
    """One row per cell and score: live repeats with their interval, and both simulations."""
    import pandas as pd

    rows = []
    for played in comparison.cells:
        for score in SCORES:
            each = [e.summary[score] for e in played.live]
            low, high = interval(each)
            rows.append(
                {
                    "scenario": played.cell.scenario,
                    "load": played.cell.load,
                    "policy": played.policy,
                    "score": score,
                    "live": float(np.mean(each)),
                    "live_low": low,
                    "live_high": high,
                    "sim": float(np.mean([e.summary[score] for e in played.sim])),
                    "matched": float(np.mean([e.summary[score] for e in played.matched])),
                }
            )
    return pd.DataFrame(rows)


def agreement(group: pd.DataFrame, world: str) -> Agreement:
    """Compare the ranking of one world ("sim" or "matched") with the live one.

    Args:
        group: rows of `ranking_table` with one score; loads are compared within themselves.
        world: the column that holds the simulated score.
    """
    better = SCORES[str(group["score"].iloc[0])]
    agree, pairs, total, regrets = 0, 0, 0, []
    for _, rows in group.groupby(["scenario", "load"]):
        records = rows.to_dict("records")
        for a, b in combinations(records, 2):
            total += 1
            if a["live_low"] <= b["live_high"] and b["live_low"] <= a["live_high"]:
                continue
            pairs += 1
            agree += int(np.sign(a["live"] - b["live"]) * np.sign(a[world] - b[world]))
        sign = 1 if better else -1
        chosen = max(records, key=lambda row: sign * row[world])
        best = max(records, key=lambda row: sign * row["live"])
        regrets.append(sign * (best["live"] - chosen["live"]))
    tau = agree / pairs if pairs else float("nan")
    return Agreement(pairs, total, tau, float(np.mean(regrets)))


def agreement_table(ranking: pd.DataFrame) -> pd.DataFrame:
    """Tau and regret per scenario and score, for both simulations."""
    import pandas as pd

    rows = []
    for (scenario, score), group in ranking.groupby(["scenario", "score"], sort=False):
        sim, matched = agreement(group, "sim"), agreement(group, "matched")
        rows.append(
            {
                "scenario": scenario,
                "score": score,
                "policies": group["policy"].nunique(),
                "disjoint_pairs": sim.pairs,
                "all_pairs": sim.all_pairs,
                "sim_tau": sim.tau,
                "matched_tau": matched.tau,
                "sim_regret": sim.regret,
                "matched_regret": matched.regret,
                "tau_goal": TAU_GOAL,
            }
        )
    return pd.DataFrame(rows)


def calibration_table(comparison: Comparison) -> pd.DataFrame:
    """One row per engine: the clock, its quality, and the machine's contention."""
    import pandas as pd

    rows = []
    for scenario, fitted in comparison.calibrations.items():
        for c in fitted:
            terms = {n: getattr(c.terms, n) for n in c.terms.__slots__}
            rows.append(
                {
                    "scenario": scenario,
                    "engine": c.engine.name,
                    "clock": c.clock,
                    "kv_blocks": c.engine.kv_blocks,
                    "fitted_steps": c.fitted.steps,
                    "held_out_steps": c.held_out.steps,
                    "held_out_mape_percent": c.held_out.mape_percent,
                    "held_out_r2": c.held_out.r2,
                    "held_out_bias_percent": c.held_out.bias_percent,
                    "steady_mape_percent": c.held_out_steady.mape_percent,
                    "steady_r2": c.held_out_steady.r2,
                    "steady_bias_percent": c.held_out_steady.bias_percent,
                    "contention_p90_over_p10": c.contention,
                    "wall_over_clock": c.wall_over_clock,
                    **terms,
                }
            )
    return pd.DataFrame(rows)
