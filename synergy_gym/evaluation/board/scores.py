"""Rankings by the protocol (docs/protocol.md): scores with intervals, ties, shares of a gap.

A cell is a scenario, a load and the policy of the layer that does not compete; every competitor
has one episode per cell and seed. A score is the interquartile mean of `slo_attainment` over all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER, family_of
from synergy_gym.evaluation.board.tables import Row, by_competitor, capacities_of, mean_of
from synergy_gym.evaluation.capacity import mean_capacity
from synergy_gym.evaluation.clairvoyant import ORACLE
from synergy_gym.evaluation.jobs import TRACK_LAYERS, Track, competitor
from synergy_gym.evaluation.statistics import (
    Estimate,
    estimate,
    gap_closed,
    interquartile_mean,
    iqm,
    paired_estimate,
)
from synergy_gym.seasons import SEASON
from synergy_gym.types import FloatArray

if TYPE_CHECKING:
    import pandas as pd

Episode = tuple[str, float, int]
"""Scenario, load and seed."""
Bounds = Mapping[Episode, float]
"""Proven bounds on attainment, by episode."""
NOTHING = Estimate(float("nan"), float("nan"), float("nan"))
NO_BOUNDS: Bounds = MappingProxyType({})


def is_oracle(row: Mapping[str, Any]) -> bool:
    """Whether a policy of this row sees the future; such rows are shown and never ranked."""
    return ORACLE in (row["engine_policy"], row["router_policy"])


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Attainments of all competitors on the same cells and seeds.

    Attributes:
        of: per complete competitor its scores, `(seeds, cells)`; seeds in the order of their
            numbers within each scenario.
        oracles: the same of oracles.
        cells: scenario, load and the other layer's policies of every column.
        bound: proven bounds, `(seeds, cells)`; `None` where some are not known.
    """

    of: dict[str, FloatArray]
    oracles: dict[str, FloatArray]
    cells: tuple[tuple[str, float, str], ...]
    bound: FloatArray | None

    def best(self) -> FloatArray | None:
        """The best that anybody, oracles included, attained in each episode; `None`: nobody."""
        played = [*self.of.values(), *self.oracles.values()]
        return np.max(played, axis=0) if played else None


def score_table(rows: Sequence[Row], track: Track, bounds: Bounds = NO_BOUNDS) -> ScoreTable:
    """Scores as arrays. Cells in which nobody was offered anything are left out."""
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["scenario"], set()).add(row["seed"])
    order = {name: sorted(found) for name, found in seeds.items()}
    offered = [row for row in rows if row["slo_attainment"] == row["slo_attainment"]]
    cells = tuple(sorted({_cell(row, track) for row in offered}))
    shape = (max(map(len, order.values()), default=0), len(cells))
    columns = {cell: i for i, cell in enumerate(cells)}
    competing: dict[str, FloatArray] = {}
    oracles: dict[str, FloatArray] = {}
    for name, found in by_competitor(track, offered).items():
        scores = np.full(shape, np.nan)
        for row in found:
            place = order[row["scenario"]].index(row["seed"])
            scores[place, columns[_cell(row, track)]] = row["slo_attainment"]
        if scores.size and np.isfinite(scores).all():
            (oracles if is_oracle(found[0]) else competing)[name] = scores
    return ScoreTable(competing, oracles, cells, _bound_table(bounds, cells, order, shape))


def _cell(row: Row, track: Track) -> tuple[str, float, str]:
    others = [row[f"{x}_policy"] for x in ("engine", "router") if x not in TRACK_LAYERS[track]]
    return row["scenario"], row["load"], " + ".join(others)


def _bound_table(
    bounds: Bounds,
    cells: Sequence[tuple[str, float, str]],
    order: Mapping[str, Sequence[int]],
    shape: tuple[int, int],
) -> FloatArray | None:
    found = np.full(shape, np.nan)
    for column, (scenario, load, _) in enumerate(cells):
        for place, seed in enumerate(order[scenario]):
            found[place, column] = bounds.get((scenario, load, seed), np.nan)
    return found if found.size and np.isfinite(found).all() else None


def ranking(
    rows: Sequence[Row], track: Track, bounds: Bounds = NO_BOUNDS, *, season: int = SEASON
) -> pd.DataFrame:
    """Rank the policies (or pairs) that compete on `track` by their score, best first.

    Columns: `rank` (equal for ties, see `tied_ranks`), `policy`, `iqm` (the score: interquartile
    mean over scenario x load x seed) with its 95 % interval `iqm_low`..`iqm_high`,
    `slo_attainment` (the mean) with `low`..`high`, `gap` (share of the way from `vllm-v1` +
    `round-robin` to the proven bound, with `gap_low`..`gap_high`; NaN without `bounds`),
    `gap_played` (the same to the best played episode, oracles included), `iqm FAMILY` per
    scenario family where there are several, one `load X` column per offered load (means),
    `capacity` (mean over scenarios, in units of load; a scenario whose lowest load misses counts
    0, one whose highest attains that load), `capacity_text` (the same with its bounds, as
    `mean_capacity` writes it), `ttft_p99_s` and `e2e_p99_s` (means), `preemptions` (sum),
    `episodes`.

    Intervals are bootstrapped over seeds (`statistics.estimate`) and need two of them. Oracles are
    not ranked. A policy that misses episodes comes after the complete ones, without intervals.

    Args:
        rows: rows of `results.csv`.
        track: who competes.
        bounds: as `evaluation.board.bounds_file` reads them.
        season: that of the scenarios, for their families.
    """
    import pandas as pd

    table = score_table(rows, track, bounds)
    found = by_competitor(track, [row for row in rows if not is_oracle(row)])
    entries = [_entry(name, chosen, table, track, season) for name, chosen in found.items()]
    entries.sort(key=lambda entry: (entry["policy"] not in table.of, -_number(entry["iqm"])))
    ranks = tied_ranks([table.of.get(entry["policy"]) for entry in entries])
    return pd.DataFrame(
        [{"rank": rank, **entry} for rank, entry in zip(ranks, entries, strict=True)]
    )


def _number(value: float) -> float:
    return -1.0 if value != value else value


def tied_ranks(scores: Iterable[FloatArray | None]) -> list[int]:
    """Ranks of sorted competitors: who cannot be told from the best of a rank shares it.

    The best of a rank is the first in it. A competitor shares its rank when the 95 % interval of
    the paired difference of their scores contains 0; else it has the rank of its place (1, 1, 3).
    Who misses episodes, or has one seed, is compared with nobody.
    """
    ranks: list[int] = []
    best: FloatArray | None = None
    for place, one in enumerate(scores, start=1):
        if one is not None and best is not None and len(one) > 1 and _alike(best, one):
            ranks.append(ranks[-1])
            continue
        best = one
        ranks.append(place)
    return ranks


def _alike(best: FloatArray, one: FloatArray) -> bool:
    difference = paired_estimate(best, one, interquartile_mean)
    return difference.low <= 0 <= difference.high


def _entry(name: str, rows: list[Row], table: ScoreTable, track: Track, season: int) -> Row:
    scores = table.of.get(name)
    score = _interval(scores, interquartile_mean)
    mean = _interval(scores)
    capacities = list(capacities_of(rows).values())
    return {
        "policy": name,
        "iqm": iqm([x for x in (row["slo_attainment"] for row in rows) if x == x]),
        "iqm_low": score.low,
        "iqm_high": score.high,
        "slo_attainment": mean_of(rows, "slo_attainment"),
        "low": mean.low,
        "high": mean.high,
        **_gaps(scores, table, track),
        **_families(rows, season),
        **_loads(rows),
        "capacity": float(np.mean([capacity.load for capacity in capacities])),
        "capacity_text": mean_capacity(capacities),
        "ttft_p99_s": mean_of(rows, "ttft_p99_s"),
        "e2e_p99_s": mean_of(rows, "e2e_p99_s"),
        "preemptions": sum(row["preemptions"] for row in rows),
        "episodes": len(rows),
    }


def _interval(scores: FloatArray | None, *statistic: Any) -> Estimate:
    """An estimate; nothing for one seed or missing episodes."""
    return NOTHING if scores is None or len(scores) < 2 else estimate(scores, *statistic)


def _gaps(scores: FloatArray | None, table: ScoreTable, track: Track) -> Row:
    """Shares of the way from the baseline to the proven bound and to the best played."""
    bound = gap_of(scores, table, track, table.bound)
    played = gap_of(scores, table, track, table.best())
    return {
        "gap": bound.value,
        "gap_low": bound.low,
        "gap_high": bound.high,
        "gap_played": played.value,
    }


def gap_of(
    scores: FloatArray | None, table: ScoreTable, track: Track, end: FloatArray | None
) -> Estimate:
    """Share of the way from the track's baseline to `end`; nothing where one of them is missing."""
    base = table.of.get(baseline(track))
    if scores is None or base is None or end is None or len(scores) < 2:
        return NOTHING
    return gap_closed(scores, base, end)


def baseline(track: Track) -> str:
    """Who a gap is measured from: `vllm-v1` + `round-robin`, as the track names them."""
    row = {"engine_policy": DEFAULT_ENGINE, "router_policy": DEFAULT_ROUTER}
    return competitor(track, row)


def _families(rows: Sequence[Row], season: int) -> Row:
    """IQM per scenario family, where there are several."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["slo_attainment"] == row["slo_attainment"]:
            family = family_of(row["scenario"], season)
            groups.setdefault(family, []).append(row["slo_attainment"])
    if len(groups) < 2:
        return {}
    return {f"iqm {name}": iqm(groups[name]) for name in sorted(groups)}


def _loads(rows: Sequence[Row]) -> Row:
    loads = sorted({row["load"] for row in rows})
    return {
        f"load {x:g}": mean_of([row for row in rows if row["load"] == x], "slo_attainment")
        for x in loads
    }


def oracle_table(rows: Sequence[Row], track: Track, bounds: Bounds = NO_BOUNDS) -> pd.DataFrame:
    """Oracles and what nobody can exceed: `policy`, `iqm`, `slo_attainment`, `gap`.

    The row `in hindsight` is the best that anybody attained in each episode, `bound` the proven
    bound. Empty without oracles, bounds and a second competitor.
    """
    import pandas as pd

    table = score_table(rows, track, bounds)
    lines = dict(table.oracles)
    best = table.best()
    if best is not None and len(table.of) + len(lines) > 1:
        lines["in hindsight"] = best
    if table.bound is not None:
        lines["bound"] = table.bound
    return pd.DataFrame(
        [
            {
                "policy": name,
                "iqm": float(interquartile_mean(scores)),
                "slo_attainment": float(scores.mean()),
                "gap": gap_of(scores, table, track, table.bound).value,
            }
            for name, scores in lines.items()
        ]
    )


def page_table(ranked: pd.DataFrame) -> pd.DataFrame:
    """A ranking for people: intervals beside their figures, one column `capacity` with bounds."""
    import pandas as pd

    shown: dict[str, Any] = {name: ranked[name] for name in ("rank", "policy")}
    shown["score (IQM)"] = _with_interval(ranked, "iqm", "iqm_low", "iqm_high")
    shown["mean"] = _with_interval(ranked, "slo_attainment", "low", "high")
    if ranked["gap"].notna().any():
        shown["gap closed"] = _with_interval(ranked, "gap", "gap_low", "gap_high")
    shown["gap to best played"] = [_percent(x) for x in ranked["gap_played"]]
    hidden = {"capacity_text", *(c for c in ranked.columns if c.startswith("gap"))}
    hidden |= {"rank", "policy", "iqm", "iqm_low", "iqm_high", "slo_attainment", "low", "high"}
    for name in ranked.columns:
        if name not in hidden:
            shown[str(name)] = ranked["capacity_text" if name == "capacity" else name]
    return pd.DataFrame(shown)


def _with_interval(ranked: pd.DataFrame, value: str, low: str, high: str) -> list[str]:
    ends = zip(ranked[value], ranked[low], ranked[high], strict=True)
    return [
        _percent(x) if a != a else f"{_percent(x)} ({100 * a:.1f} to {100 * b:.1f})"
        for x, a, b in ends
    ]


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f} %"
