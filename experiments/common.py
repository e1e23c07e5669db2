"""What the experiment scripts share: options, episodes in worker processes, files, figures.

Scripts run as `python -m experiments.GROUP.NAME` from the root of the repository. Results go to
`results/NAME/`: CSV with six significant digits, PNG, and a manifest of what made them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from synergy_gym.cli import output as cli_tables
from synergy_gym.evaluation.board.journal import ProgressLog
from synergy_gym.evaluation.board.tables import markdown
from synergy_gym.evaluation.jobs import Job, JobResult
from synergy_gym.evaluation.manifest import policy_entry, software, write_json
from synergy_gym.evaluation.workers.executor import Play
from synergy_gym.evaluation.workers.run import run_jobs
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.scenario import Scenario

RESULTS = Path(__file__).parent / "results"
RESAMPLES = 10_000
Cell = TypeVar("Cell")
Outcome = TypeVar("Outcome")


def parser(description: str, name: str) -> argparse.ArgumentParser:
    """The options that all scripts have: --quick, --processes, --out."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--quick", action="store_true", help="a reduced version")
    options.add_argument("--processes", type=int, default=1, help="worker processes")
    options.add_argument("--out", type=Path, default=RESULTS / name, help="where the results go")
    return options


def command_line() -> str:
    """The command as it was typed, with the script relative to the repository."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m`
    script = ["-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    return shlex.join(["python", *script, *sys.argv[1:]])


def play(
    function: Callable[[Cell], Outcome], cells: Sequence[Cell], processes: int = 1
) -> list[Outcome]:
    """`function` of every cell, in order, here or in spawned processes; progress on stderr.

    Args:
        function: picklable where there are several processes.
        cells: what to play.
        processes: workers; 1 plays in this process.
    """
    results = []
    with cli_tables.progress() as bar:
        task = bar.add_task("playing", total=len(cells))
        for cell, outcome in zip(cells, _outcomes(function, cells, processes), strict=True):
            results.append(outcome)
            bar.update(task, advance=1, description=str(cell))
            done, every = len(results), len(cells)
            if bar.disable and done * 10 // every > (done - 1) * 10 // every:
                cli_tables.note(f"{done} of {every}")
    return results


def _outcomes(function: Callable[[Cell], Outcome], cells: Sequence[Cell], processes: int) -> Any:
    if processes <= 1:
        yield from map(function, cells)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, cells)


def play_jobs(
    jobs: Sequence[Job], out: Path, processes: int, function: Play | None = None
) -> list[JobResult]:
    """Results of all jobs, in their order; finished ones are read from an earlier run.

    Args:
        jobs: each once.
        out: folder that keeps them.
        processes: workers; 1 plays in this process.
        function: plays one job; the library's own unless given.

    Raises:
        SystemExit: an episode failed; the others are kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = ProgressLog(out / "progress.jsonl")
    known = log.load(jobs)
    missing = [job for job in jobs if job not in known]
    if known:
        cli_tables.note(f"{len(known)} episodes of an earlier run")
    with cli_tables.progress() as bar:
        task = bar.add_task("playing", total=len(jobs), completed=len(known))

        def on_result(job: Job, outcome: JobResult | str) -> None:
            if isinstance(outcome, JobResult):
                log.append(job, outcome)
            bar.update(task, advance=1, description=str(job))
            done = int(bar.tasks[0].completed)
            if bar.disable and done * 10 // len(jobs) > (done - 1) * 10 // len(jobs):
                cli_tables.note(f"{done} of {len(jobs)} episodes")

        batch = run_jobs(missing, processes, on_result, function)
    for job, text in batch.failures.items():
        cli_tables.error(f"{job}: {text}")
    if batch.failures:
        raise SystemExit(f"{len(batch.failures)} episodes failed; repeat the command to retry them")
    return [{**known, **batch.results}[job] for job in jobs]


def paired_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of paired differences (one per seed or cell)."""
    values = np.asarray(differences, float)
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Six significant digits, LF line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def write_manifest(
    out: Path,
    scenarios: Sequence[Scenario],
    engine_policies: Sequence[str],
    router_policies: Sequence[str],
    **more: Any,
) -> None:
    """What the results were made from: command, scenarios, policies, software."""
    policies = {
        "engine": {name: policy_entry(make_engine_policy(name)) for name in engine_policies},
        "router": {name: policy_entry(make_router_policy(name)) for name in router_policies},
    }
    hashes = {scenario.name: scenario.hash() for scenario in scenarios}
    content: Mapping[str, Any] = {
        "command": command_line(),
        "scenarios": hashes,
        "policies": policies,
        **more,
        **software(),
    }
    write_json(out / "manifest.json", dict(content))


def show(title: str, frame: pd.DataFrame) -> None:
    """Print a table on stdout as Markdown."""
    print(f"\n{title}\n\n{markdown(frame)}")


def figure(rows: int, columns: int, width: float = 3.4, height: float = 2.9) -> tuple[Any, Any]:
    """A figure and its panels, in the style of the leaderboard's plots."""
    import matplotlib as mpl

    from synergy_gym.evaluation.report.png import SETTINGS

    mpl.use("Agg")
    mpl.rcParams.update(SETTINGS)
    import matplotlib.pyplot as plt

    size = (width * columns + 0.4, height * rows + 0.7)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def save(chart: Any, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same data."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(chart)
