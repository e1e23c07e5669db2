"""Episodes whose log hashes an environment's version stands for.

`experiments/leaderboard/versions.json` holds, per environment id with its version, the hash of
each reference episode. Other hashes under the same id mean that the simulator computes something
else under an old name: rows of that version could no longer be compared.

The policies take whole numbers only (compiled rules, counts, a seeded generator), so that the
hashes are the same on every platform; all that a table's policies compute beyond that is checked
by its own rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gymnasium

from synergy_gym.evaluation.jobs import Job, run_job
from synergy_gym.evaluation.manifest import environment_ids, write_json

VERSIONS_FILE = "versions.json"
RESULTS_CHANGED = "results changed: raise the environment's version and renew the rows"


@dataclass(frozen=True, slots=True)
class ReferenceEpisode:
    """One reference episode, `horizon_s` seconds of arrivals from the start."""

    scenario: str
    load: float
    engine_policy: str
    router_policy: str
    horizon_s: float = 20.0

    def __str__(self) -> str:
        window = f"{self.horizon_s:g} s of {self.scenario} at load {self.load:g}"
        return f"{window}, {self.engine_policy} + {self.router_policy}"

    def played(self, season: int) -> dict[str, str]:
        """Hashes of its log and of its scenario in a season, played on seed 0."""
        key = ("reference", self.scenario, self.load, 0, self.engine_policy, self.router_policy)
        row = run_job(Job(*key, self.horizon_s, 0.0, season=season)).row
        return {name: str(row[name]) for name in ("log_hash", "scenario_hash")}


EPISODES: Mapping[str, tuple[ReferenceEpisode, ...]] = MappingProxyType(
    {
        "SynergyGym/EngineBatching": (
            ReferenceEpisode("chat-h100", 1.2, "vllm-v1", "round-robin"),
            ReferenceEpisode("code-a100", 1.0, "earliest-deadline", "round-robin"),
            ReferenceEpisode("summarization-h100", 1.2, "sarathi-512", "round-robin"),
            ReferenceEpisode("two-class-h100", 1.2, "vllm-v0", "round-robin"),
            ReferenceEpisode("chat-a6000", 1.0, "random", "round-robin"),
        ),
        "SynergyGym/ClusterRouting": (
            ReferenceEpisode("hetero-3", 1.5, "vllm-v1", "least-outstanding"),
            ReferenceEpisode("flowgpt-8xh100", 1.2, "vllm-v1", "session"),
            ReferenceEpisode("long-context-4xh100", 1.0, "vllm-v1", "round-robin"),
        ),
        "SynergyGym/CrossLayer": (
            ReferenceEpisode("hetero-3", 1.5, "random", "random"),
            ReferenceEpisode("flowgpt-8xh100-llama8b", 1.2, "static-256", "least-outstanding"),
        ),
    }
)
"""By environment id without its version."""


Versions = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Hashes by environment id, version included, and by reference episode."""


def played_versions() -> Versions:
    """The reference episodes of every environment id, played now in the season of its version."""
    seasons = {name: gymnasium.spec(name).kwargs["season"] for name in environment_ids()}
    return {
        name: {str(one): one.played(season) for one in EPISODES[name.rpartition("-v")[0]]}
        for name, season in seasons.items()
    }


def version_problems(known: Versions, played: Versions) -> Iterator[str]:
    """One line per environment or episode without a record, or with other hashes than it."""
    for name, episodes in played.items():
        if name not in known:
            yield f"{name}: has no record; run scripts/renew_versions.py"
            continue
        if missing := sorted(set(episodes) ^ set(known[name])):
            yield f"{name}: {missing[0]}: not on both sides; run scripts/renew_versions.py"
        for episode in sorted(set(episodes) & set(known[name])):
            told, found = known[name][episode], episodes[episode]
            if told["scenario_hash"] != found["scenario_hash"]:
                yield f"{name}: {episode}: its scenario changed; run scripts/renew_versions.py"
            elif told["log_hash"] != found["log_hash"]:
                yield (
                    f"{name}: {episode}: log hash is {found['log_hash']}, recorded is "
                    f"{told['log_hash']}; {RESULTS_CHANGED}"
                )


def renew(path: Path) -> list[str]:
    """Bring the record up to date; returns what was added, or changed with its scenario.

    Raises:
        ValueError: a recorded version has other results now; the record is left as it is.
    """
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    played = played_versions()
    problems = list(version_problems(known, played))
    changed = [problem for problem in problems if problem.endswith(RESULTS_CHANGED)]
    if changed:
        raise ValueError("\n".join(changed))
    write_json(path, {**known, **played})
    return problems
