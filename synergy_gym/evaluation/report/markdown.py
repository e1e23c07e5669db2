"""The Markdown page of a leaderboard: rankings, capacities, decision times, plots, failures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from synergy_gym.evaluation.board.pairs import interaction_of
from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER, Part, family_of
from synergy_gym.evaluation.board.scores import Bounds, oracle_table, page_table
from synergy_gym.evaluation.board.tables import (
    Row,
    by_competitor,
    capacities_of,
    decision_times,
    markdown,
)
from synergy_gym.evaluation.clairvoyant import ORACLE
from synergy_gym.evaluation.coverage import coverage_text
from synergy_gym.evaluation.interaction import (
    interaction_effect,
)
from synergy_gym.evaluation.jobs import TRACK_LAYERS, Track, pair_label
from synergy_gym.types import FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from synergy_gym.evaluation.board.board import Board

NOTE = (
    "Everything on this page is simulated: engines are clocked by a step-latency model, no GPU "
    "was used. A request that was rejected, dropped, failed, cut off or late is a miss."
)

SCORE_NOTE = (
    "The score is the interquartile mean (IQM) of the share of offered requests that met every "
    "SLO, over scenario x load x seed; `mean` is their mean. In brackets: 95 % intervals, "
    "bootstrapped over whole seeds and corrected for their number. Competitors share a rank when "
    "the interval of their paired difference from its first contains 0. `gap closed` is the share "
    "of the way from `vllm-v1` + `round-robin` to the proven bound, `gap to best played` to the "
    "best that anybody attained in each episode. `capacity` is the highest load with at least "
    "90 % attainment, interpolated between the offered loads: `< 0.6` when even the lowest misses, "
    "`>= 1.5` when the highest attains, `0.45..0.6` for a mean that contains a scenario whose "
    "lowest load misses. Seconds are means of the episodes' P99, over requests that finished."
)

REACHED: Mapping[str, str] = MappingProxyType(
    {
        ORACLE: f"`{ORACLE}` was played and knows every output length",
        "in hindsight": (
            "`in hindsight` is the best that anybody attained, chosen per episode once it is over"
        ),
        "bound": "`bound` is proven, no policy exceeds it on average",
    }
)
"""What the rows of `scores.oracle_table` are."""


def leaderboard_text(report: Board, plots: Sequence[str]) -> str:
    """The Markdown page: one ranking per part, oracles, capacities, plots and failures."""
    lines = [f"# Leaderboard, suite `{report.suite.name}`", "", report.suite.description, "", NOTE]
    for part, table in report.rankings():
        rows = part.rows(report.rows)
        lines += ["", *_part_text(part, table, rows)]
        lines += ["", *_oracle_text(part, rows, report.bounds)]
        lines += ["", *_interaction_text(part, rows)]
        lines += ["", *_times_text(part, table, part.rows(report.timings))]
    lines += ["", "## Plots", "", *(f"![{Path(p).stem}]({p})" for p in plots if p.endswith(".png"))]
    if report.failures:
        lines += ["", "## Failed episodes", ""]
        lines += [f"- {job}: {text}" for job, text in report.failures.items()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _part_text(part: Part, table: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    return [
        f"## {part.title}",
        "",
        _played_text(part, rows),
        "",
        SCORE_NOTE + _interval_text(rows),
        "",
        markdown(page_table(table)).rstrip("\n"),
        *(_capacity_text(part, table, rows) if len({row["scenario"] for row in rows}) > 1 else []),
    ]


def _played_text(part: Part, rows: Sequence[Row]) -> str:
    families: dict[str, list[str]] = {}
    for name in part.scenarios:
        families.setdefault(family_of(name, part.season), []).append(name)
    scenarios = "; ".join(f"{family}: {', '.join(names)}" for family, names in families.items())
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    window = ""
    if part.horizon_s is not None:
        window = f"; arrivals of {part.horizon_s:g} s"
        window += f", the first {part.warmup_s or 0:g} s not scored" if part.warmup_s else ""
    return (
        f"Scenarios by family: {scenarios}. Loads {_loads_text(rows)}; test seeds {seeds}{window}; "
        f"{_others_text(part)}."
    )


def _interval_text(rows: Sequence[Row]) -> str:
    """How trustworthy the intervals are with as many seeds as there are."""
    by_scenario: dict[str, set[int]] = {}
    for row in rows:
        by_scenario.setdefault(row["scenario"], set()).add(row["seed"])
    seeds = min(map(len, by_scenario.values()))
    return f" Measured: {coverage_text(seeds)}."


def _oracle_text(part: Part, rows: Sequence[Row], bounds: Bounds) -> list[str]:
    """What could be reached: oracles that were played, hindsight, and the proven bound."""
    table = oracle_table(rows, part.track, bounds)
    if table.empty:
        return []
    shown = [text for name, text in REACHED.items() if table["policy"].str.contains(name).any()]
    return [
        f"Not ranked: {'; '.join(shown)}.",
        "",
        markdown(table).rstrip("\n"),
    ]


def _interaction_text(part: Part, rows: Sequence[Row]) -> list[str]:
    """How the two layers interact, where pairs were played."""
    interaction = interaction_of(part, rows)
    if interaction is None:
        return []
    engines, routers, found = interaction.engines, interaction.routers, interaction.effects
    lines = [
        f"Interaction of the layers, {len(engines)} x {len(routers)} pairs: "
        f"{100 * found.share:.0f} % of the sum of squares of mean attainments is due to the pair "
        "and not to one of its policies. Points that a pair attains beyond what the additive "
        "model of both policies says, with Student's 95 % interval over seeds:",
        "",
        "| engine policy | " + " | ".join(routers) + " |",
        "|---" * (len(routers) + 1) + "|",
    ]
    for i, engine in enumerate(engines):
        cells = [
            f"{100 * found.pair[i, j]:+.1f} ({100 * found.low[i, j]:+.1f} to "
            f"{100 * found.high[i, j]:+.1f})"
            for j in range(len(routers))
        ]
        lines.append(f"| {engine} | " + " | ".join(cells) + " |")
    return [*lines, *_two_by_two(engines, routers, interaction.scores)]


def _two_by_two(
    engines: Sequence[str], routers: Sequence[str], scores: Mapping[str, FloatArray]
) -> list[str]:
    """Differences of differences from `vllm-v1` + `round-robin`."""
    if DEFAULT_ENGINE not in engines or DEFAULT_ROUTER not in routers:
        return []
    lines = [
        "",
        f"From `{DEFAULT_ENGINE}` + `{DEFAULT_ROUTER}`, what both gain less what each gains alone:",
        "",
    ]
    for engine in engines:
        for router in routers:
            if engine != DEFAULT_ENGINE and router != DEFAULT_ROUTER:
                four = product((DEFAULT_ROUTER, router), (DEFAULT_ENGINE, engine))
                effect = interaction_effect(*(scores[pair_label((e, r))] for r, e in four))
                lines.append(
                    f"- {engine} x {router}: {100 * effect.value:+.1f} points "
                    f"({100 * effect.low:+.1f} to {100 * effect.high:+.1f})"
                )
    return lines


def _others_text(part: Part) -> str:
    """Who plays the layers that do not compete."""
    others = {"engine": part.engine_policies, "router": part.router_policies}
    names = [p for x in others if x not in TRACK_LAYERS[part.track] for p in others[x]]
    return f"the other layer is {', '.join(names)}" if names else "engine + router policy compete"


def _times_text(part: Part, table: pd.DataFrame, timings: Sequence[Row]) -> list[str]:
    """Decision times of the competitors, in the order of their ranking."""
    times = decision_times(timings, part.track, list(table["policy"]))
    return [
        "Decision time, microseconds of processor time on the machine that ran this suite (not "
        "part of the simulated results): mean of the episodes' means and of their P99, `observe` "
        "included, making the view not; `-`: a rule that the simulator carries out in compiled "
        "code.",
        "",
        markdown(times).rstrip("\n"),
    ]


def _capacity_text(part: Part, table: pd.DataFrame, rows: Sequence[Row]) -> list[str]:
    found = capacity_table(rows, part.track, list(table["policy"]))
    return ["", "Capacity per scenario:", "", markdown(found).rstrip("\n")]


def _loads_text(rows: Sequence[Row]) -> str:
    """The offered loads; those of some scenarios only say so."""
    every = {row["scenario"] for row in rows}
    texts = []
    for load in sorted({row["load"] for row in rows}):
        names = {row["scenario"] for row in rows if row["load"] == load}
        only = f" ({', '.join(sorted(names))} only)" if names != every else ""
        texts.append(f"{load:g}{only}")
    return ", ".join(texts)


def capacity_table(rows: Sequence[Row], track: Track, policies: Sequence[str]) -> pd.DataFrame:
    """Capacity of each competitor in each scenario, as text."""
    import pandas as pd

    table, of = [], by_competitor(track, rows)
    for policy in policies:
        found = capacities_of(of.get(policy, []))
        table.append({"policy": policy, **{name: str(value) for name, value in found.items()}})
    return pd.DataFrame(table).fillna("-")
