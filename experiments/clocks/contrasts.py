"""Do simulated policies differ as measured ones do? Pairs of 8xH100 runs at equal mode and rate.

A cell is a measured run of `e2e_cells.csv` (22 runs; trimmed by 30 s at both ends). Its requests
are those of a run whose log exists: the same slices of the same FlowGPT log, as many clients as
give the cell's rate. A pair of policies is played with a clock that saw no run of either: pairs
with stock vLLM with the kernels' clock alone, pairs without with what is fitted on stock vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import play
from experiments.replay.fit import Coefficients
from experiments.replay.runs import NATIVE_07, PACED_07, Run, add_wait, read_run, simulate

CELLS = "measurements/e2e_cells.csv"
TRIM_S = 30.0
SLO_E2E_S, SLO_TTFT_S, SLO_TPOT_MS = 5.0, 1.0, 50.0
CLIENT_RPS = 5.0
NEAR_POINTS = 5.0
"""Pairs whose attainment differs by less say nothing about a sign."""
FIGURES = ("att_e2e_5s", "att_ttft_1s", "att_tpot_50ms", "e2e_s_p50", "e2e_s_p90")
UNSEEN = "saw no run"
STOCK = ("native", "sarathi")
"""Labels of stock vLLM: `sarathi` is chunked prefill, which is vLLM V1's default."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured run."""

    experiment: str
    mode: str
    engine: str
    router: str
    upper: float
    measured: Mapping[str, float]

    @property
    def policy(self) -> str:
        """Engine and router label."""
        return f"{self.engine} {self.router}"

    @property
    def where(self) -> tuple[str, str, float]:
        """What pairs have in common."""
        return (self.experiment, self.mode, self.upper)

    @property
    def run(self) -> Run:
        """What plays it."""
        engine = "native" if self.engine in STOCK else self.engine
        return Run(self.mode, engine, self.router, self.upper)


def read_cells(table: pd.DataFrame) -> list[Cell]:
    """The trimmed rows."""
    return [
        Cell(
            row["set"], row.arrival_mode, row.engine, row.router, row.sample_upper,
            {name: float(row[name]) for name in (*FIGURES, "offered_rps", "n_requests")},
        )
        for _, row in table[table.trimmed == 1].iterrows()
    ]  # fmt: skip


def arrivals(cell: Cell, logs: Mapping[Run, pd.DataFrame]) -> pd.DataFrame:
    """Requests at the cell's rate: clients of a logged run; beyond its seven a first one again."""
    log = logs[PACED_07 if cell.mode == "qps" else NATIVE_07]
    wanted = round(cell.measured["offered_rps"] / CLIENT_RPS)
    own = sorted(log.client.unique())
    parts = []
    for index in range(wanted):
        part = log[log.client == own[index % len(own)]]
        if index >= len(own):
            shift = 10.0 * (index - index % len(own))
            session = part.session_id + 10**6
            part = part.assign(send_s=part.send_s + shift, client=index, session_id=session)
        parts.append(part)
    return pd.concat(parts).sort_values("send_s", kind="stable").reset_index(drop=True)


def figures(requests: pd.DataFrame, latencies: pd.DataFrame) -> dict[str, float]:
    """What the cells hold, for each client without its first and last 30 s."""
    first = requests.groupby("client").send_s.transform("min") + TRIM_S
    last = requests.groupby("client").send_s.transform("max") - TRIM_S
    kept = latencies[((requests.send_s >= first) & (requests.send_s <= last)).to_numpy()]
    return {
        "att_e2e_5s": 100 * float((kept.e2e_s <= SLO_E2E_S).mean()),
        "att_ttft_1s": 100 * float((kept.ttft_s <= SLO_TTFT_S).mean()),
        "att_tpot_50ms": 100 * float((kept.tpot_ms <= SLO_TPOT_MS).mean()),
        "e2e_s_p50": float(np.percentile(kept.e2e_s, 50)),
        "e2e_s_p90": float(np.percentile(kept.e2e_s, 90)),
    }


@dataclass(frozen=True, slots=True)
class Task:
    """A cell under a clock."""

    cell: Cell
    clock: str
    sustained: str
    coefficients: Coefficients

    def __str__(self) -> str:
        return f"{self.cell.where} {self.cell.policy}, sustained {self.sustained}"

    @property
    def key(self) -> tuple[Any, ...]:
        """What names it among the tasks."""
        return (self.cell.where, self.cell.policy, self.clock, self.sustained)


def simulated(data: Path, task: Task) -> dict[str, float]:
    """The task's figures in the simulator; runs in worker processes."""
    logs = {run: read_run(data / run.file) for run in (NATIVE_07, PACED_07)}
    requests = arrivals(task.cell, logs)
    played = simulate(task.cell.run, requests, task.coefficients.terms)
    wait = task.coefficients.overhead.of(requests.tokens_in.to_numpy(float))
    return figures(requests, add_wait(played, wait))


def contrasts(
    cells: list[Cell], data: Path, unseen: Coefficients, stock: Coefficients, processes: int
) -> pd.DataFrame:
    """A row per pair of policies at equal experiment, mode and rate, and per factor `sustained`.

    Args:
        cells: the measured runs.
        data: folder that holds `measurements/`.
        unseen: a clock that saw no run.
        stock: a clock fitted on runs of stock vLLM only.
        processes: workers.
    """
    pairs = [(a, b) for a, b in combinations(cells, 2) if a.where == b.where]
    tasks = {
        task.key: task
        for pair in pairs
        for cell in pair
        for task in _tasks(cell, _clock(*pair), unseen, stock)
    }
    outcomes = play(partial(simulated, data), list(tasks.values()), processes)
    played = dict(zip(tasks, outcomes, strict=True))
    return pd.DataFrame(
        [_row(a, b, factor, played) for factor in ("fitted", "1.0") for a, b in pairs]
    )


def _tasks(cell: Cell, clock: str, unseen: Coefficients, stock: Coefficients) -> Iterator[Task]:
    fitted = unseen if clock == UNSEEN else stock
    yield Task(cell, clock, "fitted", fitted)
    yield Task(cell, clock, "1.0", replace(fitted, sustained=1.0))


def _row(
    a: Cell, b: Cell, factor: str, played: Mapping[tuple[Any, ...], Mapping[str, float]]
) -> dict[str, Any]:
    clock = _clock(a, b)
    one, other = (played[c.where, c.policy, clock, factor] for c in (a, b))
    row: dict[str, Any] = {
        "sustained": factor, "set": a.experiment, "mode": a.mode, "sample_upper": a.upper,
        "offered_rps": a.measured["offered_rps"], "first": a.policy, "second": b.policy,
        "clock": clock,
    }  # fmt: skip
    for name in FIGURES:
        row[f"{name}_measured"] = a.measured[name] - b.measured[name]
        row[f"{name}_simulated"] = one[name] - other[name]
    return row


def _clock(a: Cell, b: Cell) -> str:
    return UNSEEN if a.engine in STOCK or b.engine in STOCK else "fitted on stock vLLM"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Signs and errors of the differences, per figure and factor `sustained`."""
    found = []
    for (factor, part), name in product(rows.groupby("sustained", sort=False), FIGURES):
        measured, played = part[f"{name}_measured"], part[f"{name}_simulated"]
        points = name.startswith("att")
        far = measured.abs() >= (NEAR_POINTS if points else 0.1)
        found.append(
            {
                "sustained": factor,
                "figure": name,
                "pairs": len(part),
                "that differ": int(far.sum()),
                "sign right": int((np.sign(measured) == np.sign(played))[far].sum()),
                "mean absolute error": float((played - measured).abs().mean()),
                "unit": "points" if points else "s",
            }
        )
    return pd.DataFrame(found)
