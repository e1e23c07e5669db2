"""Latencies of a board's policies, pooled over episodes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synergy_gym.evaluation.board.files import BoardError, read_rows
from synergy_gym.evaluation.board.tables import Row, cell
from synergy_gym.evaluation.jobs import CDF_EDGES_S, JobResult
from synergy_gym.types import FloatArray, IntArray

LATENCY_FIGURES = ("ttft", "e2e")


LATENCY_COLUMNS = (
    "scenario",
    "load",
    "engine_policy",
    "router_policy",
    "figure",
    "offered",
    "first_bin",
    "counts",
)


LatencyKey = tuple[str, float, str, str, str]
"""Scenario, load, engine policy, router policy, and one of `LATENCY_FIGURES`."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Latencies of scored requests, summed over seeds.

    `offered` counts all of them; `counts` those that finished, per bin of `CDF_EDGES_S`, one
    bin below and one above.
    """

    offered: int
    counts: IntArray

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.offered + other.offered, self.counts + other.counts)

    @property
    def shares(self) -> FloatArray:
        """Share of all offered requests that finished in less than each of `CDF_EDGES_S`."""
        shares: FloatArray = np.cumsum(self.counts)[:-1] / max(self.offered, 1)
        return shares


def pooled_latency(results: Iterable[JobResult]) -> dict[LatencyKey, Histogram]:
    """Latency histograms of episodes, summed over seeds."""
    found: dict[LatencyKey, Histogram] = {}
    for result in results:
        row = result.row
        for figure, counts in result.histograms.items():
            key = (row["scenario"], row["load"], row["engine_policy"], row["router_policy"], figure)
            one = Histogram(row["offered"], np.array(counts, np.int64))
            found[key] = found[key] + one if key in found else one
    return found


def latency_text(latency: Mapping[LatencyKey, Histogram]) -> str:
    """`latency.csv`: per histogram its first used bin, and the counts from there to the last."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(LATENCY_COLUMNS)
    for key, histogram in sorted(latency.items(), key=lambda item: item[0]):
        used = np.flatnonzero(histogram.counts)
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        counts = " ".join(map(str, histogram.counts[first:end].tolist()))
        writer.writerow(map(cell, (*key, histogram.offered, first, counts)))
    return buffer.getvalue()


def read_latency(path: Path) -> dict[LatencyKey, Histogram]:
    """The histograms of `latency.csv`; none where a board has no such file.

    Raises:
        BoardError: a histogram does not fit the bins.
    """
    if not path.is_file():
        return {}
    found = {}
    for row in read_rows(path, LATENCY_COLUMNS):
        key = (row["scenario"], row["load"], row["engine_policy"], row["router_policy"])
        found[*key, row["figure"]] = _histogram(path, row)
    return found


def _histogram(path: Path, row: Row) -> Histogram:
    counts = np.zeros(len(CDF_EDGES_S) + 1, np.int64)
    try:
        used = np.array([int(text) for text in row["counts"].split()], np.int64)
        first = row["first_bin"]
        if first < 0 or np.any(used < 0):
            raise ValueError("negative")
        counts[first : first + len(used)] = used
    except ValueError as error:
        raise BoardError(
            f"{path}: counts of {row['scenario']} {row['engine_policy']} + "
            f"{row['router_policy']} cannot be read ({error}); restore the file"
        ) from None
    return Histogram(row["offered"], counts)
