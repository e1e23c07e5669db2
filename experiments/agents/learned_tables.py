"""Tables and plots of experiments/agents/learned_agents.py, made from its episodes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import common
from synergy_gym.cli import output as cli_tables
from synergy_gym.evaluation.board.tables import markdown
from synergy_gym.evaluation.report.png import COLOURS, MARKERS
from synergy_gym.evaluation.statistics import (
    STATISTICS,
    Estimate,
    estimate,
    gap_closed,
    paired_comparison,
    performance_profile,
    probability_of_improvement,
    profile_band,
)
from synergy_gym.types import FloatArray

BOUND, CLAIRVOYANT = "bound", "clairvoyant"
ORACLES = (CLAIRVOYANT, BOUND)
TEST = "test"
THRESHOLDS = np.linspace(0, 1, 101)
NOTE = """\
Everything here is simulated; no GPU was used. Figures are shares of all offered requests that met
every objective, in percent, with 95 % intervals over seeds (docs/evaluation.md). `bound` (no policy
exceeds it on average, proven) and `clairvoyant` (played) are oracles that know every output length;
`in hindsight` is the best of all played policies, chosen per episode once it is over.
"""
Scores = dict[str, FloatArray]
"""Attainment per policy, `(seeds, cells)`."""


def scores(episodes: pd.DataFrame, track: str, row: str) -> Scores:
    """The complete policies of one row; others are named on stderr and left out."""
    part = episodes[(episodes.track == track) & (episodes.row == row)]
    part = part.assign(attainment=part.met / part.offered)
    grids = {
        str(policy): group.pivot_table("attainment", "seed", ["scenario", "load"])
        for policy, group in part.groupby("policy", sort=False)
    }
    shape = max((grid.shape for grid in grids.values()), default=(0, 0))
    whole = {}
    for policy, grid in grids.items():
        if grid.shape != shape or grid.isna().any().any():
            cli_tables.note(f"left out, episodes are missing: {track} {row}: {policy}")
        else:
            whole[policy] = grid.to_numpy(float)
    return whole


def rows_of(episodes: pd.DataFrame) -> Iterator[tuple[str, str, Scores]]:
    """Every row as (track, name, scores), in the order played."""
    for track, name in dict.fromkeys(zip(episodes.track, episodes.row, strict=True)):
        yield track, name, scores(episodes, track, name)


def hindsight(found: Scores) -> FloatArray:
    """The best played policy of every episode."""
    return np.max([grid for name, grid in found.items() if name != BOUND], axis=0)


def summary(episodes: pd.DataFrame, base: Mapping[str, str]) -> pd.DataFrame:
    """Mean, IQM, optimality gap and share of the gap closed, per row and policy, with intervals."""
    table = []
    for track, row, found in rows_of(episodes):
        best = hindsight(found)
        for policy, grid in found.items():
            entry: dict[str, Any] = {"track": track, "row": row, "policy": policy}
            entry |= {"episodes": grid.size}
            for name, statistic in STATISTICS.items():
                entry |= _columns(name, estimate(grid, statistic))
            if base[track] in found and policy not in (base[track], BOUND):
                to_bound = found.get(BOUND, best)
                entry |= _columns("gap_closed", gap_closed(grid, found[base[track]], to_bound))
                reached = gap_closed(grid, found[base[track]], best)
                entry |= _columns("gap_to_hindsight_closed", reached)
            table.append(entry)
        best_row = {"track": track, "row": row, "policy": "in hindsight", "episodes": best.size}
        table.append(best_row | _columns("mean", estimate(best)))
    return pd.DataFrame(table)


def _columns(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def comparisons(episodes: pd.DataFrame, agents: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every agent against every other policy: paired differences, wins, probability to improve."""
    table = []
    for track, row, found in rows_of(episodes):
        rivals = [name for name in found if name != BOUND]
        pairs = [(a, r) for a in agents[track] if a in found for r in rivals if r != a]
        for agent, rival in pairs:
            paired = paired_comparison(found[agent], found[rival])
            chance = probability_of_improvement(found[agent], found[rival])
            table.append(
                {
                    "track": track,
                    "row": row,
                    "agent": agent,
                    "rival": rival,
                    **_columns("difference", paired.difference),
                    "better": paired.difference.low > 0,
                    "worse": paired.difference.high < 0,
                    "wins": paired.wins,
                    "p_value": paired.p_value,
                    **_columns("probability_of_improvement", chance),
                }
            )
    return pd.DataFrame(table)


def by_scenario(episodes: pd.DataFrame) -> pd.DataFrame:
    """Mean attainment in percent per row, scenario and load, one column per policy."""
    part = episodes.assign(attainment=100 * episodes.met / episodes.offered)
    order = list(dict.fromkeys(part.policy))
    table = part.pivot_table(
        "attainment", ["track", "row", "scenario", "load"], "policy", sort=False
    )
    return table[order].reset_index()


def _percent(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _wide(table: pd.DataFrame, track: str, name: str) -> pd.DataFrame:
    """One line per row, one column per policy: value and interval in percent."""
    part = table[(table.track == track) & table[name].notna()]
    lines = []
    for row, group in part.groupby("row", sort=False):
        cells = zip(
            group.policy, group[name], group[f"{name}_low"], group[f"{name}_high"], strict=True
        )
        lines.append({"row": row, **{str(p): _percent(*values) for p, *values in cells}})
    return pd.DataFrame(lines).fillna("-")


def _versus(table: pd.DataFrame, track: str, agent: str) -> pd.DataFrame:
    """Paired differences of one agent in points: one line per row, one column per rival."""
    part = table[(table.track == track) & (table.agent == agent)]
    lines = []
    for row, group in part.groupby("row", sort=False):
        line: dict[str, Any] = {"row": row}
        for item in group.itertuples():
            text = _percent(item.difference, item.difference_low, item.difference_high)
            line[str(item.rival)] = f"**{text}**" if item.better else text
        lines.append(line)
    return pd.DataFrame(lines).fillna("-")


def text(
    found: pd.DataFrame, pairs: pd.DataFrame, scenarios: pd.DataFrame, tracks: Sequence[str]
) -> str:
    """The page."""
    lines = ["# Trained agents on unseen traffic", "", NOTE]
    for track in tracks:
        lines += [f"## {track.capitalize()} track", "", "Requests that met every objective, %:", ""]
        lines += [markdown(_wide(found, track, "mean"))]
        lines += ["Interquartile mean, %:", "", markdown(_wide(found, track, "iqm"))]
        for name, what in (
            ("gap_closed", "the bound"),
            ("gap_to_hindsight_closed", "the best policy in hindsight"),
        ):
            if name in found:
                lines += [f"Share of the gap from `vllm-v1` + `round-robin` to {what} closed, %:"]
                lines += ["", markdown(_wide(found, track, name))]
        agents = dict.fromkeys(pairs[pairs.track == track].agent) if len(pairs) else {}
        for agent in agents:
            lines += [f"`{agent}` less each rival, paired, points (bold: interval above 0):", ""]
            lines += [markdown(_versus(pairs, track, agent))]
        part = scenarios[scenarios.track == track].dropna(axis=1, how="all").round(1)
        lines += ["By scenario and load, %:", "", markdown(part.drop(columns="track"))]
    return "\n".join(lines)


def _look(policies: Sequence[str]) -> dict[str, dict[str, Any]]:
    plain = [name for name in policies if name not in ORACLES]
    looks = {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(plain)
    }
    oracle = {CLAIRVOYANT: {"color": "0.5", "marker": "*"}, BOUND: {"color": "0.5", "marker": "|"}}
    return looks | oracle


def attainment_plot(found: pd.DataFrame, tracks: Sequence[str]) -> Any:
    """Every policy's mean attainment with its interval, one line per row."""
    most = max(found[found.track == t].row.nunique() for t in tracks)
    chart, panels = common.figure(1, len(tracks), width=6.2, height=0.62 * most + 0.9)
    for axes, track in zip(panels[0], tracks, strict=True):
        part = found[(found.track == track) & (found.policy != "in hindsight")]
        names, policies = list(dict.fromkeys(part.row)), list(dict.fromkeys(part.policy))
        look = _look(policies)
        for index, policy in enumerate(policies):
            mine = part[part.policy == policy]
            offset = (index - (len(policies) - 1) / 2) * 0.8 / len(policies)
            y = [names.index(row) + offset for row in mine.row]
            reach = [mine["mean"] - mine.mean_low, mine.mean_high - mine["mean"]]
            axes.errorbar(
                100 * mine["mean"], y, xerr=100 * np.maximum(np.array(reach), 0), fmt="none",
                ecolor=look[policy]["color"], lw=1.2,
            )  # fmt: skip
            axes.plot(100 * mine["mean"], y, ls="none", ms=5, label=policy, **look[policy])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-2, 102)
        axes.set_title(f"{track} track (simulated)")
        axes.set_xlabel("requests that met every objective, %")
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=3, fontsize=8)
    return chart


def differences_plot(pairs: pd.DataFrame) -> Any:
    """Paired differences of every agent against its rivals, with Student intervals."""
    agents = list(dict.fromkeys(zip(pairs.track, pairs.agent, strict=True)))
    most = max(pairs[pairs.agent == agent].row.nunique() for _, agent in agents)
    chart, panels = common.figure(1, len(agents), width=5.4, height=0.55 * most + 0.9)
    for axes, (track, agent) in zip(panels[0], agents, strict=True):
        part = pairs[(pairs.track == track) & (pairs.agent == agent)]
        names, rivals = list(dict.fromkeys(part.row)), list(dict.fromkeys(part.rival))
        look = _look(rivals)
        for index, rival in enumerate(rivals):
            mine = part[part.rival == rival]
            y = [names.index(row) + (index - (len(rivals) - 1) / 2) * 0.8 / len(rivals)
                 for row in mine.row]  # fmt: skip
            reach = 100 * (mine.difference_high - mine.difference)
            axes.errorbar(100 * mine.difference, y, xerr=reach, fmt=look[rival]["marker"],
                          color=look[rival]["color"], ms=4, lw=1.2, label=rival)  # fmt: skip
        axes.axvline(0, color="0.4", lw=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("points more than the rival (right: the agent is better)")
        axes.set_title(f"{agent} (simulated)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=3, fontsize=8)
    return chart


def profiles_plot(episodes: pd.DataFrame, tracks: Sequence[str]) -> Any:
    """Share of episodes with more than a given attainment: the test row, and all others."""
    chart, panels = common.figure(len(tracks), 2, width=3.9)
    for line, track in zip(panels, tracks, strict=True):
        every = [(row, found) for t, row, found in rows_of(episodes) if t == track]
        groups = (
            ("test", [f for row, f in every if row == TEST]),
            ("held out", [f for row, f in every if row != TEST]),
        )
        for axes, (title, found) in zip(line, groups, strict=True):
            _profiles(axes, found)
            axes.set_title(f"{track} track, {title} (simulated)", fontsize=9)
            axes.set_xlabel("requests that met every objective, %")
        line[0].set_ylabel("episodes above, %")
        named = line[0].get_legend_handles_labels()
        line[1].legend(*named, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return chart


def _profiles(axes: Any, found: Sequence[Scores]) -> None:
    common_names = [n for n in (found[0] if found else {}) if all(n in f for f in found)]
    look = _look(common_names)
    for name in common_names:
        if name in ORACLES:
            continue
        grid = np.concatenate([f[name] for f in found], axis=1)
        colour = look[name]["color"]
        axes.step(100 * THRESHOLDS, 100 * performance_profile(grid, THRESHOLDS), where="post",
                  color=colour, lw=1.3, label=name)  # fmt: skip
        low, high = profile_band(grid, THRESHOLDS)
        axes.fill_between(100 * THRESHOLDS, 100 * low, 100 * high, color=colour, alpha=0.12, lw=0)
    axes.set_ylim(-2, 102)


def write(
    episodes: pd.DataFrame,
    base: Mapping[str, str],
    agents: Mapping[str, Sequence[str]],
    out: Path,
) -> None:
    """Write the tables, the page and the plots."""
    tracks = list(dict.fromkeys(episodes.track))
    found, pairs = summary(episodes, base), comparisons(episodes, agents)
    scenarios = by_scenario(episodes)
    common.write_csv(found, out / "summary.csv")
    common.write_csv(pairs, out / "comparisons.csv")
    common.write_csv(scenarios, out / "scenarios.csv")
    page = text(found, pairs, scenarios, tracks)
    (out / "table.md").write_text(page, encoding="utf-8")
    common.save(attainment_plot(found, tracks), out / "attainment.png")
    common.save(profiles_plot(episodes, tracks), out / "profiles.png")
    if len(pairs):
        common.save(differences_plot(pairs), out / "differences.png")
