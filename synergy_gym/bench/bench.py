"""The speed goals of the project, measured here and now; each is printed beside its goal.

All times are processor time, the best of several repetitions, unless a row says wall time. Ratios
are between two things measured in turns. Both make the figures less dependent on what else the
machine does, not independent: repeat on a quiet one before drawing conclusions.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from synergy_gym.bench.row import FULL, BenchPart, Effort, Row

FIELDS = tuple(field.name for field in fields(Row))
"""Columns of the CSV file, followed by `met`, machine and date; no goal, no verdict."""


def parts(effort: Effort = FULL) -> list[BenchPart]:
    """What is measured, in this order."""
    from synergy_gym.bench import cold as bench_cold
    from synergy_gym.bench import envs as bench_envs
    from synergy_gym.bench import kernel as bench_kernel
    from synergy_gym.bench import vector as bench_vector
    from synergy_gym.bench.evaluate import evaluate_rows

    def growth() -> Iterator[Row]:
        yield bench_kernel.growth_row(effort)

    measures: dict[str, Callable[[], Iterator[Row]]] = {
        "kernel": partial(bench_kernel.kernel_rows, effort),
        "batch size": growth,
        "prefix caching": partial(bench_kernel.caching_rows, effort),
        "a million requests": partial(bench_kernel.million_rows, effort),
        "EngineBatching": partial(bench_envs.engine_rows, effort),
        "ClusterRouting": partial(bench_envs.routing_rows, effort),
        "CrossLayer": partial(bench_envs.joint_rows, effort),
        "beginnings and ends": partial(bench_envs.ends_rows, effort),
        "vector environments": partial(bench_vector.vector_rows, effort),
        "evaluate": partial(evaluate_rows, effort),
        "cold start": partial(bench_cold.cold_rows, effort),
    }
    if find_spec("stable_baselines3"):
        measures["PPO"] = partial(bench_vector.training_rows, effort)
    return [BenchPart(label, measure) for label, measure in measures.items()]


def run_bench(out: Path | None = None, chosen: list[BenchPart] | None = None) -> list[Row]:
    """Measure all rows, print them on stdout, and write `out` (CSV) if given.

    An interrupted run prints and writes the rows that it has, and raises `KeyboardInterrupt`.
    """
    rows: list[Row] = []
    console = Console(stderr=True)
    if chosen is None and not find_spec("stable_baselines3"):
        console.print("PPO's rows left out: they need stable-baselines3 (extra rl)")
    try:
        for row in _measured(parts() if chosen is None else chosen, console):
            rows.append(row)
    finally:
        print_rows(rows)
        if out is not None:
            write_rows(rows, out)
    return rows


def _measured(chosen: list[BenchPart], console: Console) -> Iterator[Row]:
    with _progress(console) as bar:
        task = bar.add_task("measuring", total=len(chosen))
        for part in chosen:
            bar.update(task, description=part.label)
            if bar.disable:
                console.print(f"measuring {part.label}")
            yield from part.measure()
            bar.advance(task)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, lines elsewhere."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}")
    with Progress(*columns, text, console=console, disable=not console.is_terminal) as bar:
        yield bar


def write_rows(rows: list[Row], out: Path) -> None:
    """Write rows to a CSV file, each with the machine and the day that it was measured on."""
    import pandas as pd

    where = {"machine": machine(), "date": datetime.now(UTC).date().isoformat()}
    table = [{name: getattr(row, name) for name in (*FIELDS, "met")} | where for row in rows]
    pd.DataFrame(table, columns=[*FIELDS, "met", *where]).to_csv(out, index=False)


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file that `write_rows` wrote."""
    import pandas as pd

    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    return [
        Row(
            name=line["name"],
            value=float(line["value"]),
            unit=line["unit"],
            goal=float(line["goal"]) if line["goal"] else None,
            at_least=line["at_least"] == "True",
            note=line["note"],
        )
        for line in table.to_dict("records")
    ]


def machine() -> str:
    """The processor's name, if the system tells it, and how many cores this process may use."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        info = ""
    named = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    name = named[1].strip() if named else platform.processor() or platform.machine()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return f"{name}, {cores} cores"


def print_rows(rows: list[Row]) -> None:
    """Print the measured figures beside their goals."""
    table = Table(title=f"Speed, measured in this run ({machine()})")
    for heading in ("what", "measured", "goal", "", "note"):
        table.add_column(heading, justify="right" if heading in ("measured", "goal") else "left")
    verdicts = {True: "met", False: "MISSED", None: ""}
    for row in rows:
        table.add_row(row.name, row.measured, row.target, verdicts[row.met], row.note)
    Console().print(table)
