"""Play a suite and write its tables, plots and manifest; resumes an interrupted run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synergy_gym.evaluation.jobs import (
    COLUMNS,
    KEY_COLUMNS,
    Job,
    JobResult,
    run_jobs,
)
from synergy_gym.evaluation.manifest import software, source_hash, write_json
from synergy_gym.evaluation.suites import Part, Suite
from synergy_gym.evaluation.tables import Row, ranking, sorted_rows, write_csv
from synergy_gym.scenario import load_scenario

if TYPE_CHECKING:
    import pandas as pd

PROGRESS_FILE = "progress.jsonl"
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
class Report:
    """What a suite yielded: results by job, error lines by job, and where the files are."""

    suite: Suite
    out: Path
    results: dict[Job, JobResult]
    failures: dict[Job, str]

    @property
    def rows(self) -> list[Row]:
        """The rows of `results.csv`, sorted."""
        return sorted_rows(result.row for result in self.results.values())

    def rankings(self) -> list[tuple[Part, pd.DataFrame]]:
        """One ranking per part of the suite that has rows."""
        pairs = []
        for part in self.suite.parts:
            rows = part.rows(self.rows)
            if rows:
                pairs.append((part, ranking(rows, part.track)))
        return pairs

    @property
    def timings(self) -> list[Row]:
        """The rows of `timings.csv`, sorted."""
        return sorted_rows(result.timing for result in self.results.values())


class ProgressLog:
    """Finished jobs on disk, one JSON line each, written as they finish.

    A line counts only for the same job, scenario content, package sources and version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = source_hash()
        self._hashes: dict[str, str] = {}

    def load(self, jobs: Sequence[Job]) -> dict[Job, JobResult]:
        """Results of earlier runs that still hold."""
        wanted = {self._stamp(job): job for job in jobs}
        found = {}
        for line in self._lines():
            job = wanted.get(json.dumps(line["job"]))
            if job is not None:
                found[job] = JobResult(**line["result"])
        return found

    def append(self, job: Job, result: JobResult) -> None:
        """Add one finished job; the line is on disk when this returns."""
        line = json.dumps({"job": json.loads(self._stamp(job)), "result": asdict(result)})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines; a last one that was cut off is removed from the file."""
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        return [json.loads(line) for line in whole.splitlines()]

    def _stamp(self, job: Job) -> str:
        if job.scenario not in self._hashes:
            self._hashes[job.scenario] = load_scenario(job.scenario).hash()
        window = (job.horizon_s, job.warmup_s)
        return json.dumps([*job.key, *window, self._hashes[job.scenario], self.version])


def run_leaderboard(
    suite: Suite,
    out: Path,
    *,
    processes: int = 1,
    command: str = "",
    on_progress: OnProgress | None = None,
) -> Report:
    """Play every job of a suite and write its files into `out`.

    Finished jobs are kept in `out/progress.jsonl` until all are done, so the same call
    after an interruption plays only what is missing. `results.csv` does not depend on
    the number of processes.

    Args:
        suite: what to play.
        out: folder for the files; made when missing.
        processes: worker processes; 1 plays in this one.
        command: recorded in the manifest.
        on_progress: called with (finished, all, text) at the start and after each job.
    """
    out.mkdir(parents=True, exist_ok=True)
    jobs = suite.jobs()
    log = ProgressLog(out / PROGRESS_FILE)
    results = log.load(jobs)
    missing = [job for job in jobs if job not in results]
    done = len(results)

    def on_result(job: Job, outcome: JobResult | str) -> None:
        nonlocal done
        done += 1
        if isinstance(outcome, JobResult):
            log.append(job, outcome)
        if on_progress is not None:
            on_progress(done, len(jobs), str(job))

    if on_progress is not None:
        on_progress(done, len(jobs), f"{done} rows of an earlier run" if done else "starting")
    batch = run_jobs(missing, processes, on_result)
    report = Report(suite, out, {**results, **batch.results}, batch.failures)
    write_report(report, command)
    if not report.failures:
        log.path.unlink(missing_ok=True)
    return report


def write_report(report: Report, command: str) -> None:
    """Write results.csv, timings.csv, leaderboard.md, plots and manifest.json."""
    from synergy_gym.evaluation.page import leaderboard_text
    from synergy_gym.evaluation.plots import write_plots

    out = report.out
    write_csv(out / "results.csv", report.rows, COLUMNS)
    write_csv(out / "timings.csv", report.timings, TIMING_COLUMNS)
    write_json(out / "manifest.json", leaderboard_manifest(report, command))
    plots = write_plots(report, out / "plots")
    text = leaderboard_text(report, [path.relative_to(out).as_posix() for path in plots])
    (out / "leaderboard.md").write_text(text, encoding="utf-8")


def leaderboard_manifest(report: Report, command: str) -> dict[str, Any]:
    """Scenario hashes, policies with parameter hashes, seeds, loads, software, command."""
    rows = report.rows
    policies: dict[str, dict[str, Any]] = {"engine": {}, "router": {}}
    for result in report.results.values():
        for layer, entry in result.policies.items():
            policies[layer][result.row[f"{layer}_policy"]] = entry
    return {
        "suite": report.suite.name,
        "parts": [asdict(part) for part in report.suite.parts],
        "command": command,
        "scenarios": {row["scenario"]: row["scenario_hash"] for row in rows},
        "policies": policies,
        "loads": sorted({row["load"] for row in rows}),
        "seeds": sorted({row["seed"] for row in rows}),
        "episodes": len(rows),
        "failures": {str(job): text for job, text in report.failures.items()},
        **software(),
    }
