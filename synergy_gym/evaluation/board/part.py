"""What a suite is made of: parts with scenarios, policies, loads and seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from types import MappingProxyType
from typing import Any

from synergy_gym.evaluation.board.tables import Row, row_key
from synergy_gym.evaluation.jobs import TRACK_LAYERS, Job, Track, competitor
from synergy_gym.evaluation.timed import charge_of
from synergy_gym.scenario import load_scenario
from synergy_gym.seasons import SEASON, full_name, season_files, split_name

DEFAULT_ENGINE = "vllm-v1"


DEFAULT_ROUTER = "round-robin"


FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        r"heldout-.*": "held-out",
        r"paper-.*": "paper",
        r"incident-.*": "incident",
        r".*": "development",
    }
)
"""Scenario families: a pattern of names, and the family of the first that matches."""


def family_of(scenario: str, season: int = SEASON) -> str:
    """The family of a scenario of a season; docs/protocol.md says what each is for."""
    season, name = split_name(scenario, season)
    families = FAMILIES if season == SEASON else _archive(season)["families"]
    return next(family for pattern, family in families.items() if re.fullmatch(pattern, name))


@dataclass(frozen=True, slots=True)
class Part:
    """One ranking of a suite.

    `track` says who competes. Played is every combination of `engine_policies` and
    `router_policies`, or just `pairs` of (engine policy, router policy) where given. `loads`
    empty means the scenario's own, and `loads_of` names other ones for single scenarios; `seeds`
    counts the scenario's test seeds; `horizon_s` and `warmup_s` shorten the episodes. `oracles`
    are pairs that are played and shown, but not ranked. `season` is that of the scenarios.
    """

    track: Track
    scenarios: tuple[str, ...]
    engine_policies: tuple[str, ...] = ()
    router_policies: tuple[str, ...] = ()
    loads: tuple[float, ...] = ()
    seeds: int = 3
    horizon_s: float | None = None
    warmup_s: float | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    loads_of: tuple[tuple[str, tuple[float, ...]], ...] = ()
    oracles: tuple[tuple[str, str], ...] = ()
    season: int = SEASON

    @property
    def title(self) -> str:
        """Who is ranked, for headings."""
        layers = TRACK_LAYERS[self.track]
        return "Pairs of policies" if len(layers) > 1 else f"{layers[0].capitalize()} policies"

    def matchups(self) -> tuple[tuple[str, str], ...]:
        """Every (engine policy, router policy) that is played and ranked."""
        return self.pairs or tuple(product(self.engine_policies, self.router_policies))

    def competitors(self) -> tuple[str, ...]:
        """Names of the policies or pairs that are ranked, in the order given."""
        return self._names(self.matchups())

    def oracle_names(self) -> tuple[str, ...]:
        """Names of the policies or pairs that are shown and not ranked."""
        return self._names(self.oracles)

    def _names(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        rows = [{"engine_policy": e, "router_policy": r} for e, r in pairs]
        return tuple(dict.fromkeys(competitor(self.track, row) for row in rows))

    def cells(self) -> Iterator[tuple[str, float, int]]:
        """Every (scenario, load, seed) that is played."""
        own = dict(self.loads_of)
        for name in self.scenarios:
            scenario = load_scenario(name, self.season)
            seeds = scenario.test_seeds[: self.seeds]
            for load, seed in product(own.get(name) or self.loads or scenario.loads, seeds):
                yield name, load, seed

    def jobs(self, suite: str) -> Iterator[Job]:
        """The episodes of this part, scenario by scenario."""
        for cell, pair in product(self.cells(), (*self.matchups(), *self.oracles)):
            yield Job(suite, *cell, *pair, self.horizon_s, self.warmup_s, season=self.season)

    def keys(self) -> frozenset[tuple[Any, ...]]:
        """The `row_key` of every row that this part asks for."""
        return frozenset(job.key[1:] for job in self.jobs(""))

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Those of a suite's rows (results or timings) that this part asked for."""
        keys = self.keys()
        return [row for row in rows if row_key(row) in keys]

    def entry(self) -> dict[str, Any]:
        """The part as files hold it; they say the season once, for all parts."""
        return {name: value for name, value in asdict(self).items() if name != "season"}

    @staticmethod
    def from_entry(entry: Mapping[str, Any], season: int) -> Part:
        """What `entry` gave, also after a way through JSON.

        Raises:
            TypeError, AttributeError: the entry has other fields than a part, or is no mapping.
        """
        return Part(**{name: _tuples(value) for name, value in entry.items()}, season=season)


@dataclass(frozen=True, slots=True)
class Suite:
    """A named set of parts."""

    name: str
    description: str
    parts: tuple[Part, ...]
    decision_s: Mapping[str, Mapping[str, float]] | None = None
    """Timed variant: seconds that a decision costs, by layer and policy (`evaluation/timed.py`)."""

    @property
    def season(self) -> int:
        """Whose scenarios its parts play."""
        return self.parts[0].season if self.parts else SEASON

    @property
    def label(self) -> str:
        """What `find_suite` takes: the name, after `season1/` for an archived suite."""
        return full_name(self.name, self.season)

    def jobs(self) -> list[Job]:
        """Every episode once, in the order in which they are started.

        Raises:
            ValueError: timed, and no decision time is known for a policy.
        """
        jobs = dict.fromkeys(job for part in self.parts for job in part.jobs(self.name))
        return list(jobs) if self.decision_s is None else [self._charged(job) for job in jobs]

    def _charged(self, job: Job) -> Job:
        times = self.decision_s or {}
        return replace(job, charge=charge_of(times, str(job.engine_policy), str(job.router_policy)))

    def timed(self, decision_s: Mapping[str, Mapping[str, float]]) -> Suite:
        """The suite `NAME-timed`, in which decisions take time; without oracles.

        Args:
            decision_s: as `evaluation.timed.decision_times` gives them.
        """
        parts = tuple(replace(part, oracles=()) for part in self.parts)
        name = f"{self.name}-timed"
        return replace(self, name=name, parts=parts, decision_s=decision_s)

    def only(self, track: str) -> Suite:
        """The suite with its parts of one track.

        Raises:
            ValueError: it has none.
        """
        parts = tuple(part for part in self.parts if part.track == track)
        if not parts:
            tracks = ", ".join(dict.fromkeys(part.track for part in self.parts))
            raise ValueError(f"suite {self.name!r} has no track {track!r}; choose one of {tracks}")
        return replace(self, parts=parts)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@cache  # files of the package
def _archive(season: int) -> Any:
    """What an archived season's file says of its suites and families."""
    path = season_files(season).suites
    assert path is not None
    return json.loads(path.read_text(encoding="utf-8"))
