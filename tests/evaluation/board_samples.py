"""A small board with invented figures, for tests of what is made from boards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from synergy_gym.evaluation.board.incident_library import INCIDENTS, Incident
from synergy_gym.evaluation.board.latency import Histogram, LatencyKey, latency_text
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.tables import Row, csv_text
from synergy_gym.evaluation.incidents.cards import CARDS_FILE, CardRow, write_cards
from synergy_gym.evaluation.incidents.measures import MEASURES
from synergy_gym.evaluation.jobs import CDF_EDGES_S, COLUMNS, KEY_COLUMNS
from synergy_gym.evaluation.leaderboard import TIMING_COLUMNS
from synergy_gym.evaluation.manifest import write_json

HOSTILE = "<script>document.title='taken'</script>"
"""A policy name that would be run by a page that does not escape it."""
ENGINES = Part(
    "engine",
    ("chat-h100", "two-class-h100"),
    ("vllm-v1", "vllm-v0", "static-256", "lens-ref", "lens-plus", "random", HOSTILE),
    ("round-robin",),
    loads=(0.8, 1.0, 1.2),
    seeds=2,
)
PAIRS = Part(
    "joint",
    ("hetero-3",),
    pairs=(("vllm-v1", "round-robin"), ("lens-plus", "prism-plus"), ("vllm-v1", "prism-ref")),
    loads=(1.2,),
    seeds=2,
)
SUITE = Suite("sample", "invented figures", (ENGINES, PAIRS))


def write_sample_board(folder: Path, rng: np.random.Generator) -> Suite:
    """Write the data files of a board of `SUITE`."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [dict(zip(KEY_COLUMNS, job.key, strict=True)) for job in SUITE.jobs()]
    rows = [_row(key, rng) for key in keys]
    timings = [{**dict.fromkeys(TIMING_COLUMNS, 1), **key, "play_s": 0.5} for key in keys]
    (folder / "results.csv").write_text(csv_text(rows, COLUMNS))
    (folder / "timings.csv").write_text(csv_text(timings, TIMING_COLUMNS))
    (folder / "latency.csv").write_text(latency_text(sample_latency(rows, rng)))
    manifest = {
        "season": SUITE.season,
        "suite": SUITE.name,
        "description": SUITE.description,
        "failures": {},
    }
    manifest |= {"parts": [part.entry() for part in SUITE.parts], "command": "none"}
    write_json(folder / "manifest.json", manifest)
    write_cards(folder / CARDS_FILE, sample_cards(rng))
    return SUITE


def _row(key: Row, rng: np.random.Generator) -> Row:
    offered = int(rng.integers(200, 400))
    figures: Row = {name: float(rng.random()) for name in COLUMNS if name not in key}
    figures |= {name: int(rng.integers(0, 9)) for name in ("preemptions", "retries", "unfinished")}
    figures |= {name: 0 for name in ("rejected", "aborted", "failed", "cached_tokens")}
    figures |= {"full_offered": offered, "full_finished": offered}
    figures |= {"log_hash": "0" * 16, "scenario_hash": "1" * 64, "itl_p99_s": float("nan")}
    return {**key, **figures, "offered": offered, "finished": offered}


def sample_latency(rows: list[Row], rng: np.random.Generator) -> dict[LatencyKey, Histogram]:
    """A histogram per scenario, load, pair of policies and figure."""
    found: dict[LatencyKey, Histogram] = {}
    bins = np.concatenate([[-np.inf], CDF_EDGES_S, [np.inf]])
    for row in rows:
        for figure, median_s in (("ttft", 0.2), ("e2e", 5.0)):
            key = (row["scenario"], row["load"], row["engine_policy"], row["router_policy"], figure)
            seconds = rng.lognormal(np.log(median_s), 0.7, row["offered"])
            one = Histogram(row["offered"], np.histogram(seconds, bins)[0])
            found[key] = found[key] + one if key in found else one
    return found


def sample_cards(rng: np.random.Generator) -> list[CardRow]:
    """Cards of two policies per layer: all criteria kept by the first, all broken by the other."""
    rivals = {"engine": ("lens-plus", "vllm-v0"), "router": ("prism-plus", "random")}
    return [
        row
        for incident in INCIDENTS
        for kept, policy in zip((True, False), rivals[incident.layer], strict=True)
        for row in _card_rows(incident, policy, kept, rng)
    ]


def _card_rows(
    incident: Incident, policy: str, kept: bool, rng: np.random.Generator
) -> Iterator[CardRow]:
    engine, router = (policy, "round-robin") if incident.layer == "engine" else ("vllm-v1", policy)
    for criterion in incident.criteria:
        higher = MEASURES[criterion.measure].higher_is_better
        for seed in (3000, 3001):
            distance = float(rng.uniform(0.05, 0.5)) * max(criterion.limit, 1.0)
            value = criterion.limit + (distance if higher == kept else -distance)
            head = (incident.name, incident.layer, incident.load, engine, router, seed)
            yield CardRow(*head, criterion.measure, value, criterion.limit, kept, "0" * 16, "")
