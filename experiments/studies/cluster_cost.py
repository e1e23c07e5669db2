"""What a suite costs on more cores, up to a hundred times its size.

    python -m experiments.studies.cluster_cost --ray-address auto

Measured here: what handing out one job costs the process that runs the suite, with jobs that do
nothing (`dispatch.csv`), and the seconds of a committed board's episodes (its `timings.csv`, wall
clock of one core each). Extrapolated from them, not measured: duration and price on more cores
(`cost.csv`). Without `--ray-address` only the local executor is measured.
"""

from __future__ import annotations

import pickle
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from experiments import common
from synergy_gym.evaluation.board.journal import ProgressLog
from synergy_gym.evaluation.jobs import Job, JobResult, run_job
from synergy_gym.evaluation.manifest import software, write_json
from synergy_gym.evaluation.workers.run import make_executor, run_jobs

BOARD = Path(__file__).parents[1] / "leaderboard" / "season1" / "full"
SIZES = (1, 100)
CORES = (2, 16, 64, 256, 1024)
PRICE_USD = 0.04
"""Assumed price of a core for an hour; clouds ask between 0.01 (preemptible) and 0.05."""
JOBS, QUICK_JOBS = 2000, 50
ROWS = 200
JOB = Job("cost", "chat-h100", 1.0, 0, "vllm-v1", "round-robin", 2.0, 0.5)


def answer(result: JobResult, job: Job) -> JobResult:
    """Plays nothing, and returns that result."""
    return replace(result, row={**result.row, "seed": job.seed})


def dispatch(
    executor: str, count: int, result: JobResult, address: str | None, folder: Path
) -> dict[str, float]:
    """Per job, milliseconds of this process and of the clock once the workers have started.

    Each row is written into `folder`, as a suite writes it.
    """
    log = ProgressLog(folder / f"{executor}.jsonl")
    ends: list[tuple[float, float]] = []

    def on_result(job: Job, outcome: JobResult | str) -> None:
        if isinstance(outcome, str):
            raise RuntimeError(outcome)
        log.append(job, outcome)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        ends.append((usage.ru_utime + usage.ru_stime, time.perf_counter()))

    processes = 2 if executor == "local" else None
    jobs = [replace(JOB, seed=seed) for seed in range(count)]
    there = make_executor(executor, processes, address)
    run_jobs(jobs, on_result=on_result, play=partial(answer, result), executor=there)
    half = len(ends) // 2
    cpu, wall = (np.subtract(ends[-1], ends[half]) / (len(ends) - 1 - half)).tolist()
    return {"jobs": count, "process_ms": 1e3 * cpu, "wall_ms": 1e3 * wall}


def row_bytes(result: JobResult) -> float:
    """Memory of one finished row in the process that runs the suite."""
    packed = pickle.dumps(result)
    tracemalloc.start()
    kept = [pickle.loads(packed) for _ in range(ROWS)]
    size = tracemalloc.get_traced_memory()[0] / len(kept)
    tracemalloc.stop()
    return size


def cost(timings: pd.DataFrame, dispatch_s: float, row_size: float, price: float) -> pd.DataFrame:
    """Extrapolated: per size of the suite and number of cores, hours, price and memory.

    A suite takes as long as its work on every core, its longest episode, or handing out its
    jobs, whichever is longest.
    """
    seconds = timings["build_s"] + timings["play_s"]
    rows = []
    for size in SIZES:
        core_s, episodes = size * seconds.sum(), size * len(timings)
        for cores in CORES:
            bounds = {
                "work": core_s / cores,
                "longest episode": seconds.max(),
                "handing out": episodes * dispatch_s,
            }
            limit = max(bounds, key=lambda name: bounds[name])
            rows.append(
                {
                    "size": f"{size}x",
                    "episodes": episodes,
                    "core_hours": core_s / 3600,
                    "usd": price * core_s / 3600,
                    "memory_gb": episodes * row_size / 1e9,
                    "cores": cores,
                    "hours": bounds[limit] / 3600,
                    "limit": limit,
                }
            )
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, extrapolate, print and write."""
    options = common.parser(__doc__ or "", "cluster_cost")
    options.add_argument("--board", type=Path, default=BOARD, help="folder with timings.csv")
    options.add_argument("--ray-address", help="also measure on this cluster; auto: the local one")
    options.add_argument("--price", type=float, default=PRICE_USD, help="USD per core and hour")
    given = options.parse_args(arguments)
    timings = pd.read_csv(given.board / "timings.csv")
    result = run_job(JOB)
    addresses = {"local": None, **({"ray": given.ray_address} if given.ray_address else {})}
    count = QUICK_JOBS if given.quick else JOBS
    with tempfile.TemporaryDirectory() as folder:
        rates = pd.DataFrame(
            [
                {"executor": name, **dispatch(name, count, result, address, Path(folder))}
                for name, address in addresses.items()
            ]
        )
    common.show("Handing out jobs that do nothing (measured)", rates)
    slowest_s = rates["process_ms"].max() / 1e3
    table = cost(timings, slowest_s, row_bytes(result), given.price)
    common.show(f"Cost of {given.board.name} (extrapolated, {given.price} USD/core h)", table)
    common.write_csv(rates, given.out / "dispatch.csv")
    common.write_csv(table, given.out / "cost.csv")
    content = {"command": common.command_line(), "board": given.board.name, "price": given.price}
    write_json(given.out / "manifest.json", {**content, **software()})


if __name__ == "__main__":
    main()
