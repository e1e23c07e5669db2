"""Cold start: what a fresh installation pays until its first result, with an empty cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import synergy_gym
from synergy_gym.bench.row import FULL, Effort, Row, best, child
from synergy_gym.sim.readiness import VARIABLE as PLAIN_FIRST

CACHE = "NUMBA_CACHE_DIR"
_RESULT = """
from synergy_gym.evaluation import evaluate
evaluate("smoke")
print("result", flush=True)
"""
# What compiles in the background would disturb whatever is measured next.
_PLAIN_RESULT = f"""{_RESULT}
from synergy_gym.sim.readiness import background
background().end()
"""
_STEP = """
import gymnasium, synergy_gym
env = gymnasium.make("SynergyGym/EngineBatching-v1")
env.reset(seed=0)
env.step(env.action_space.sample())
"""
_BEFORE_S = {"evaluate": 33.5, "EngineBatching": 45.3}
"""Processor seconds at commit 1efdedf on a two-core machine: another run, so only for the notes."""


def cold_rows(effort: Effort = FULL, folder: Path | None = None) -> Iterator[Row]:
    """Processes that compile, and one that plays in plain Python while another compiles.

    Args:
        effort: how often; a third of it, since a compilation takes long and varies little.
        folder: keep machine code here, where it may be already; by default an empty folder for
            each repetition.
    """
    repeats = max(effort.repeats // 3, 1)
    runs = [_compiled_s(folder) for _ in range(repeats)]
    first, step = (min(column) for column in zip(*runs, strict=True))
    note = "processor time of a process; {} s at commit 1efdedf, in a run of its own"
    before = note.format(_BEFORE_S["evaluate"])
    yield Row('cold: evaluate("smoke"), compiled', first, "s", None, False, before)
    before = note.format(_BEFORE_S["EngineBatching"])
    yield Row("cold: a first EngineBatching-v1 step after that", step, "s", None, False, before)
    wall = best(lambda: _plain_wall_s(folder), repeats)
    name = 'cold: evaluate("smoke") in plain Python meanwhile, wall time'
    yield Row(name, wall, "s", 5.0, False, "wall time, beside the compilation")


@contextmanager
def _cache(folder: Path | None) -> Iterator[dict[str, str]]:
    """The environment of a process that keeps machine code in a folder.

    Without one it runs a copy of the sources, since the cache beside them is always looked at.
    """
    if folder is not None:
        yield {**os.environ, CACHE: str(folder)}
        return
    with tempfile.TemporaryDirectory() as path:
        sources = _copied_sources(Path(path) / "sources")
        yield {**os.environ, CACHE: f"{path}/code", "PYTHONPATH": str(sources)}


def _copied_sources(to: Path) -> Path:
    """The package without any machine code, for the front of the import path."""
    package = Path(synergy_gym.__file__).parent
    beside = package.parent
    parts = [package]
    if (beside / "envs").is_dir():  # a checkout
        parts += [beside / "envs", beside / "policies"]
        to.mkdir(parents=True)
        shutil.copy(beside / "pyproject.toml", to)
    for part in parts:
        shutil.copytree(part, to / part.name, ignore=shutil.ignore_patterns("__pycache__"))
    return to


def _compiled_s(folder: Path | None) -> tuple[float, float]:
    """Processor seconds of a first evaluation, and of a first step in another process after it."""
    with _cache(folder) as variables:
        variables[PLAIN_FIRST] = "0"
        first, step = (
            child([sys.executable, "-P", "-c", code], variables)[0] for code in (_RESULT, _STEP)
        )
    return first, step


def _plain_wall_s(folder: Path | None) -> float:
    """Wall seconds from the start of a process to its result, played in plain Python."""
    with _cache(folder) as variables:
        variables[PLAIN_FIRST] = "1"
        begin = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-P", "-c", _PLAIN_RESULT],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            seconds = time.perf_counter() - begin
            process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"a first evaluation failed with code {process.returncode}")
    return seconds
