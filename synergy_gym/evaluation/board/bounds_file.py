"""`bounds.csv` of a board: what no policy can exceed in each of its episodes, proven.

The bound (`evaluation/bound.py`) depends on traffic, engines and objectives, not on policies. A
linear program proposes it, so its last digits may differ between platforms; `results.csv`, which is
bit-exact, therefore does not hold it. A figure is used again while its scenario is the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from synergy_gym.evaluation.board.part import Suite
from synergy_gym.evaluation.board.scores import Bounds
from synergy_gym.evaluation.board.tables import cell
from synergy_gym.evaluation.bound import attainment_bound
from synergy_gym.evaluation.manifest import write_whole
from synergy_gym.scenario import Scenario, load_scenario, windowed

BOUNDS_FILE = "bounds.csv"
COLUMNS = ("scenario", "load", "seed", "bound", "world")
World = tuple[str, float, int, float | None, float | None, int]
"""Scenario, load, seed, horizon, warm-up and season of an episode."""


def write_bounds(path: Path, suite: Suite, processes: int = 1) -> Bounds:
    """Write the bounds of a suite's episodes; those that the file has are kept.

    Episodes for which none can be proven (`attainment_bound` says which) are left out.

    Args:
        path: the file.
        suite: whose episodes.
        processes: worker processes.
    """
    worlds = sorted({episode: mark for episode, mark in _episodes(suite)}.items(), key=str)
    kept = {(*row[:3], row[4]): row[3] for row in _lines(path)}
    missing = [world for world, mark in worlds if (*world[:3], mark) not in kept]
    found = dict(zip(missing, _bounds(missing, processes), strict=True))
    rows = []
    for world, mark in worlds:
        value = found[world] if world in found else kept[(*world[:3], mark)]
        if value is not None:
            rows.append((*world[:3], value, mark))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([COLUMNS, *([cell(value) for value in row] for row in sorted(rows))])
    write_whole(path, buffer.getvalue())
    return read_bounds(path)


def read_bounds(path: Path) -> Bounds:
    """Bounds by scenario, load and seed; empty without the file.

    Raises:
        ValueError: the file is damaged; names it and its line.
    """
    return {(scenario, load, seed): bound for scenario, load, seed, bound, _ in _lines(path)}


def _lines(path: Path) -> list[tuple[str, float, int, float, str]]:
    if not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                key = (row["scenario"], float(row["load"]), int(row["seed"]))
                rows.append((*key, float(row["bound"]), row["world"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}:{number}: no bound ({error}); remove the file, it is made again"
                ) from None
    return rows


def _episodes(suite: Suite) -> Iterable[tuple[World, str]]:
    """Every episode, and the beginning of its scenario's hash, window included."""
    marks: dict[tuple[str, float | None, float | None], str] = {}
    for part in suite.parts:
        for name, load, seed in part.cells():
            window = (part.horizon_s, part.warmup_s)
            if (name, *window) not in marks:
                marks[name, *window] = _world(name, *window, part.season).hash()[:16]
            yield (name, load, seed, *window, part.season), marks[name, *window]


def _world(name: str, horizon_s: float | None, warmup_s: float | None, season: int) -> Scenario:
    return windowed(load_scenario(name, season), warmup_s, horizon_s)


def _bounds(worlds: Sequence[World], processes: int) -> list[float | None]:
    if min(processes, len(worlds)) <= 1:
        return [_bound(world) for world in worlds]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_bound, worlds, chunksize=4))


def _bound(world: World) -> float | None:
    name, load, seed, horizon_s, warmup_s, season = world
    try:
        found = attainment_bound(_world(name, horizon_s, warmup_s, season), load, seed)
        return found.attainment
    except ValueError:  # closed loop, another clock, an engine that becomes faster, no request
        return None
