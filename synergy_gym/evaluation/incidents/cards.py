"""The card of a policy: which incidents, rebuilt from public reports, it passes.

An incident is played twice per seed: in its world, and in the world without it (same traffic, same
policies). Criteria compare the two, or count requests. A criterion is met when its median over the
seeds keeps the limit; a policy passes an incident when it meets every criterion. The card stands
beside the score: it does not enter it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from synergy_gym.evaluation.board.incident_library import INCIDENTS, Criterion, find_incident
from synergy_gym.evaluation.board.incident_library import Incident as Incident
from synergy_gym.evaluation.board.tables import cell
from synergy_gym.evaluation.incidents.measures import MEASURES, PlayedIncident
from synergy_gym.evaluation.jobs import (
    KEY_COLUMNS,
    Job,
    JobResult,
    episode_row,
    latency_histograms,
)
from synergy_gym.evaluation.runner import EnginePolicySpec, Result, RouterPolicySpec, evaluate
from synergy_gym.evaluation.workers.executor import Executor, OnResult
from synergy_gym.evaluation.workers.run import run_jobs
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.seasons import SEASON
from synergy_gym.types import TelemetrySpec

SUITE = "incidents"
CARDS_FILE = "incidents.csv"
PAGE_FILE = "incidents.md"
AMPLE = 4
"""A cache without pressure: this many times the scenario's."""


class CardRow(NamedTuple):
    """A line of `incidents.csv`: one criterion, one seed.

    `log_hash` is that of the episode with the incident, as in `results.csv`; `calm_log_hash` that
    of the one without it, empty where there is none.
    """

    incident: str
    layer: str
    load: float
    engine_policy: str
    router_policy: str
    seed: int
    measure: str
    value: float
    limit: float
    met: bool
    log_hash: str
    calm_log_hash: str


@dataclass(frozen=True, slots=True)
class IncidentVerdict:
    """One criterion over all seeds: `value` is the median, `worst` the worst seed."""

    criterion: Criterion
    value: float
    worst: float
    seeds: int
    met: bool


@dataclass(frozen=True, slots=True)
class Card:
    """What one pair of policies made of one incident."""

    incident: Incident
    engine_policy: str
    router_policy: str
    verdicts: tuple[IncidentVerdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every criterion is met."""
        return all(verdict.met for verdict in self.verdicts)


@dataclass(frozen=True)
class IncidentResult(JobResult):
    """A played incident: the row of the episode with it, and its lines of `incidents.csv`."""

    card_rows: tuple[CardRow, ...] = ()


def _without_events(world: Scenario) -> Scenario:
    return replace(world, events=())


def _with_telemetry(world: Scenario) -> Scenario:
    return replace(world, telemetry=TelemetrySpec(scrape_interval_s=1.0))


def _with_ample_cache(world: Scenario) -> Scenario:
    engines = tuple(replace(e, kv_blocks=AMPLE * e.kv_blocks) for e in world.engines)
    return replace(world, engines=engines)


CALM: Mapping[str, Callable[[Scenario], Scenario]] = MappingProxyType(
    {"events": _without_events, "telemetry": _with_telemetry, "cache": _with_ample_cache}
)
"""How the world without an incident is made: no events; pushes every 0.2 s and scrapes every
second; a KV cache without pressure."""


def calm_world(incident: Incident, world: Scenario) -> Scenario | None:
    """The incident's scenario without what makes it one; `None` if that is in the traffic."""
    return None if incident.calm is None else CALM[incident.calm](world)


def play_incident(job: Job) -> IncidentResult:
    """Play a job of the suite `incidents`, with and without its incident.

    Raises:
        PolicyError, ScenarioError, ValueError: as `evaluate`.
    """
    incident = find_incident(job.scenario, job.season)
    world = job.world()
    calm = calm_world(incident, world)
    policies = (job.engine_policy, job.router_policy, job.load, job.seed)
    result = evaluate(world, *policies)
    calm_result = None if calm is None else evaluate(calm, *policies)
    key = dict(zip(KEY_COLUMNS, job.key, strict=True))
    return IncidentResult(
        row={**key, **episode_row(result)},
        timing={**key, **result.timings},
        histograms=latency_histograms(result),
        policies={name: result.manifest[f"{name}_policy"] for name in ("engine", "router")},
        card_rows=tuple(_judged(job, incident, result, calm_result)),
    )


def _judged(job: Job, incident: Incident, result: Result, calm: Result | None) -> Iterable[CardRow]:
    """A line per criterion; values as the file holds them, so that reading changes none."""
    hashes = (result.log_hash, "" if calm is None else calm.log_hash)
    for criterion in incident.criteria:
        measure, limit = MEASURES[criterion.measure], criterion.limit
        value = measure.compute(PlayedIncident(result, calm, criterion.window_s))
        value = float(cell(value) or "nan")
        head = (incident.name, incident.layer, job.load, *job.key[4:], job.seed)
        yield CardRow(*head, criterion.measure, value, limit, measure.meets(value, limit), *hashes)


def incident_jobs(
    pairs: Sequence[tuple[EnginePolicySpec, RouterPolicySpec]],
    incidents: Iterable[Incident] = INCIDENTS,
    seeds: int = 3,
) -> list[Job]:
    """A job per incident, pair of policies and test seed (the first `seeds`)."""
    return [
        Job(SUITE, incident.name, incident.load, seed, *pair, season=incident.season)
        for incident in incidents
        for seed in load_scenario(incident.name, incident.season).test_seeds[:seeds]
        for pair in pairs
    ]


def play_cards(
    jobs: Sequence[Job],
    processes: int = 1,
    on_result: OnResult | None = None,
    executor: Executor | None = None,
) -> tuple[list[CardRow], dict[Job, str]]:
    """Play jobs of the suite; the lines of `incidents.csv`, sorted, and the errors by job."""
    batch = run_jobs(jobs, processes, on_result, play_incident, executor)
    rows = [row for result in batch.results.values() for row in _card_rows(result)]
    return sorted(rows), batch.failures


def _card_rows(result: JobResult) -> tuple[CardRow, ...]:
    assert isinstance(result, IncidentResult)
    return result.card_rows


def cards(rows: Iterable[CardRow], season: int = SEASON) -> list[Card]:
    """The cards that lines of `incidents.csv` make, by incident, then by policies.

    Args:
        rows: the lines.
        season: in which they were played.

    Raises:
        ValueError: an unknown incident, or lines that are not those of its criteria.
    """
    ordered = sorted(rows, key=_card_key)
    return [_card(key, list(group), season) for key, group in groupby(ordered, _card_key)]


def _card_key(row: CardRow) -> tuple[str, str, str]:
    return (row.incident, row.engine_policy, row.router_policy)


def _card(key: tuple[str, str, str], rows: Sequence[CardRow], season: int) -> Card:
    incident = find_incident(key[0], season)
    verdicts = []
    for criterion in incident.criteria:
        mine = [row for row in rows if (row.measure, row.limit) == criterion.key]
        if not mine or len({row.seed for row in mine}) != len(mine):
            raise ValueError(
                f"{' '.join(key)}: {len(mine)} lines of {criterion.measure} with limit "
                f"{criterion.limit:g}; give one per seed, as `synergy-gym incidents` writes them"
            )
        verdicts.append(_verdict(criterion, [row.value for row in mine]))
    if len(rows) != sum(verdict.seeds for verdict in verdicts):
        raise ValueError(f"{' '.join(key)}: lines of other criteria; write the cards again")
    return Card(incident, *key[1:], tuple(verdicts))


def _verdict(criterion: Criterion, values: Sequence[float]) -> IncidentVerdict:
    measure = MEASURES[criterion.measure]
    middle = float(np.median(values))
    worst = float(np.min(values) if measure.higher_is_better else np.max(values))
    met = measure.meets(middle, criterion.limit)
    return IncidentVerdict(criterion, middle, worst, len(values), met)


def write_cards(path: Path, rows: Sequence[CardRow]) -> None:
    """Write `incidents.csv`, sorted; values are read back bit for bit."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CardRow._fields)
        writer.writerows(map(cell, row) for row in sorted(rows))


def read_cards(path: Path) -> list[CardRow]:
    """The lines of an `incidents.csv`.

    Raises:
        ValueError: other columns, or a value of another kind; names file, line and cure.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    if not lines or tuple(lines[0]) != CardRow._fields:
        raise ValueError(f"{path}: the columns are not {', '.join(CardRow._fields)}; write it anew")
    return [_read_row(path, number, line) for number, line in enumerate(lines[1:], 2)]


_TRUTH = {"True": True, "False": False}


def _read_row(path: Path, number: int, line: Sequence[str]) -> CardRow:
    try:
        text = CardRow(*line)  # type: ignore[arg-type]
        return text._replace(
            load=float(text.load),
            seed=int(text.seed),
            value=float(text.value or "nan"),
            limit=float(text.limit),
            met=_TRUTH[str(text.met)],
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}:{number}: {error!r} in {line}; write the file anew") from error


def rule(criterion: Criterion) -> str:
    """A criterion in words, with its window."""
    measure = MEASURES[criterion.measure]
    bound = "at least" if measure.higher_is_better else "at most"
    begin_s, end_s = criterion.window_s
    limit = figure(criterion, criterion.limit)
    return f"{measure.text}, arrivals from {begin_s:g} to {end_s:g} s: {bound} {limit}"


def figure(criterion: Criterion, value: float) -> str:
    """A value of a criterion's measure with its unit; infinite: never, NaN: nothing to compare."""
    if np.isnan(value):
        return "nothing without the incident either"
    if np.isinf(value):
        return "never"
    return f"{value:.3g} {MEASURES[criterion.measure].unit}".rstrip()
