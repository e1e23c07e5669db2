"""Play a suite and write its tables, plots and manifest; resumes an interrupted run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from synergy_gym.evaluation.board.board import read_board, suite_rankings
from synergy_gym.evaluation.board.bounds_file import BOUNDS_FILE, read_bounds, write_bounds
from synergy_gym.evaluation.board.files import (
    LATENCY_FILE,
    MANIFEST_FILE,
    RESULTS_FILE,
    TIMINGS_FILE,
)
from synergy_gym.evaluation.board.journal import PROGRESS_FILE, ProgressLog
from synergy_gym.evaluation.board.latency import latency_text, pooled_latency
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.tables import Row, csv_text, sorted_rows
from synergy_gym.evaluation.decision_log import DECISIONS, FORMAT, decisions_name
from synergy_gym.evaluation.jobs import COLUMNS, KEY_COLUMNS, Job, JobResult
from synergy_gym.evaluation.manifest import software, write_json, write_whole
from synergy_gym.evaluation.report.render import render_board
from synergy_gym.evaluation.workers.executor import Batch, Executor, Play
from synergy_gym.evaluation.workers.run import run_jobs

if TYPE_CHECKING:
    import pandas as pd

Record = Literal["none", "sample", "all"]
RECORD_RULES: Mapping[Record, str] = MappingProxyType(
    {
        "none": "no row has its decisions recorded",
        "sample": (
            "every row at a scenario's first seed and the load nearest to 1.0 has its decisions "
            "recorded"
        ),
        "all": "every row has its decisions recorded",
    }
)
"""Which rows keep their decisions, by the word that asks for it."""
TIMING_COLUMNS = (
    *KEY_COLUMNS,
    "build_s",
    "play_s",
    "compiled_engines",
    *(
        f"{layer}_{name}"
        for layer in ("engine", "router")
        for name in ("decisions", "decision_mean_us", "decision_p99_us")
    ),
)
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class LeaderboardRun:
    """What a suite yielded: results by job, error lines by job, and where the files are."""

    suite: Suite
    out: Path
    results: dict[Job, JobResult]
    failures: dict[Job, str]
    record: Record = "sample"

    @property
    def rows(self) -> list[Row]:
        """The rows of `results.csv`, sorted."""
        return sorted_rows(result.row for result in self.results.values())

    def rankings(self) -> list[tuple[Part, pd.DataFrame]]:
        """One ranking per part of the suite that has rows."""
        return suite_rankings(self.suite, self.rows, read_bounds(self.out / BOUNDS_FILE))

    @property
    def timings(self) -> list[Row]:
        """The rows of `timings.csv`, sorted."""
        return sorted_rows(result.timing for result in self.results.values())


def run_leaderboard(
    suite: Suite,
    out: Path,
    *,
    processes: int = 1,
    command: str = "",
    on_progress: OnProgress | None = None,
    play: Play | None = None,
    record: Record = "sample",
    executor: Executor | None = None,
) -> LeaderboardRun:
    """Play every job of a suite and write its files into `out`.

    Finished jobs are kept in `out/progress.jsonl` until all are done, so the same call
    after an interruption, however sudden, plays only what is missing. `results.csv` does not
    depend on who plays: processes, executor or machine.

    Args:
        suite: what to play.
        out: folder for the files; made when missing.
        processes: worker processes; 1 plays in this one.
        command: recorded in the manifest.
        on_progress: called with (finished, all, text) at the start and after each job.
        play: as `run_jobs`.
        record: which rows keep their decisions (`RECORD_RULES`).
        executor: as `run_jobs`.

    Raises:
        FolderInUseError: another run writes into `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = ProgressLog(out / PROGRESS_FILE)
    with log.locked():
        jobs = to_record(suite.jobs(), record)
        results = log.load(jobs)
        batch = _play_missing(
            jobs,
            results,
            log,
            on_progress,
            partial(run_jobs, processes=processes, play=play, executor=executor),
        )
        report = LeaderboardRun(suite, out, {**results, **batch.results}, batch.failures, record)
        write_report(report, command, processes)
        if not report.failures:
            log.remove()
    return report


def _play_missing(
    jobs: Sequence[Job],
    known: dict[Job, JobResult],
    log: ProgressLog,
    on_progress: OnProgress | None,
    run: Callable[..., Batch],
) -> Batch:
    done = len(known)
    tell = on_progress or (lambda done, total, text: None)

    def on_result(job: Job, outcome: JobResult | str) -> None:
        nonlocal done
        done += 1
        if isinstance(outcome, JobResult):
            log.append(job, outcome)
        tell(done, len(jobs), str(job))

    tell(done, len(jobs), f"{done} rows of an earlier run" if done else "starting")
    return run([job for job in jobs if job not in known], on_result=on_result)


def to_record(jobs: Sequence[Job], record: Record) -> list[Job]:
    """The same jobs, those that `record` chooses marked to keep their decisions."""
    if record != "sample":
        return [replace(job, record=record == "all") for job in jobs]
    cells: dict[tuple[Any, ...], tuple[float, int]] = {}
    for job in jobs:
        world = (job.scenario, job.horizon_s, job.warmup_s)
        cell = (abs(job.load - 1.0), job.seed)
        cells[world] = min(cells.get(world, cell), cell)
    return [
        replace(
            job,
            record=cells[job.scenario, job.horizon_s, job.warmup_s]
            == (abs(job.load - 1.0), job.seed),
        )
        for job in jobs
    ]


def write_report(report: LeaderboardRun, command: str, processes: int = 1) -> None:
    """Write the data of a board, then the pages that are made from them."""
    out = report.out
    remove_old_decisions(report)
    write_whole(out / RESULTS_FILE, csv_text(report.rows, COLUMNS))
    write_whole(out / TIMINGS_FILE, csv_text(report.timings, TIMING_COLUMNS))
    write_whole(out / LATENCY_FILE, latency_text(pooled_latency(report.results.values())))
    write_json(out / MANIFEST_FILE, leaderboard_manifest(report, command))
    write_bounds(out / BOUNDS_FILE, report.suite, processes)
    render_board(read_board(out))


def remove_old_decisions(report: LeaderboardRun) -> None:
    """Remove files of decisions that belong to no row of the report."""
    names = {decisions_name(job.key) for job, r in report.results.items() if r.decisions_sha256}
    for path in (report.out / DECISIONS).glob("*"):
        if path.name not in names:
            path.unlink()


def leaderboard_manifest(report: LeaderboardRun, command: str) -> dict[str, Any]:
    """Scenario hashes, policies with parameter hashes, seeds, loads, software, command."""
    rows = report.rows
    policies: dict[str, dict[str, Any]] = {"engine": {}, "router": {}}
    for _, result in sorted(report.results.items(), key=lambda item: item[0].key):
        for layer, entry in result.policies.items():
            policies[layer].setdefault(result.row[f"{layer}_policy"], entry)
    return {
        "season": report.suite.season,
        "suite": report.suite.name,
        "description": report.suite.description,
        "parts": [part.entry() for part in report.suite.parts],
        "command": command,
        "scenarios": {row["scenario"]: row["scenario_hash"] for row in rows},
        "policies": policies,
        "loads": sorted({row["load"] for row in rows}),
        "seeds": sorted({row["seed"] for row in rows}),
        "episodes": len(rows),
        "failures": {str(job): text for job, text in report.failures.items()},
        "decisions": decisions_entry(report),
        **charged_entry(report.suite),
        **software(),
    }


def charged_entry(suite: Suite) -> dict[str, Any]:
    """Of the timed variant: what a decision costs, seconds by layer and policy."""
    if suite.decision_s is None:
        return {}
    layers = suite.decision_s.items()
    return {"decision_s": {layer: dict(times) for layer, times in layers}}


def decisions_entry(report: LeaderboardRun) -> dict[str, Any]:
    """Which rows have their decisions recorded, and the hashes of those files."""
    files = {
        decisions_name(job.key): {"key": list(job.key), "sha256": result.decisions_sha256}
        for job, result in report.results.items()
        if result.decisions_sha256
    }
    return {
        "format": FORMAT,
        "recorded": report.record,
        "rule": RECORD_RULES[report.record],
        "files": dict(sorted(files.items())),
    }
