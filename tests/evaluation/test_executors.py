"""Executors: lost workers on this machine, and what each executor refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from synergy_gym.evaluation.jobs import Job, JobResult
from synergy_gym.evaluation.workers.executor import MAX_LOSSES
from synergy_gym.evaluation.workers.local import LocalExecutor
from synergy_gym.evaluation.workers.run import make_executor, run_jobs
from tests.evaluation.losable import deadly

ROOT = Path(__file__).parents[2]
JOBS = [
    Job("tiny", "chat-h100", 1.0, seed, "vllm-v1", "round-robin", 2.0, 0.5) for seed in range(4)
]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))  # workers load tests/evaluation/losable.py


def test_a_lost_worker_costs_no_row(tmp_path: Path) -> None:
    seen: list[Job] = []

    def on_result(job: Job, outcome: JobResult | str) -> None:
        seen.append(job)

    deaths = tmp_path / "deaths"
    batch = run_jobs(JOBS, 2, on_result, deadly(deaths, MAX_LOSSES - 1))
    assert batch.failures == {}
    assert sorted(job.key for job in seen) == sorted(job.key for job in JOBS)
    here = run_jobs(JOBS)
    assert {job: result.row for job, result in batch.results.items()} == {
        job: result.row for job, result in here.results.items()
    }
    assert len(list(deaths.iterdir())) == MAX_LOSSES - 1


def test_a_job_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    batch = run_jobs(JOBS, 2, play=deadly(deaths, 100))
    assert set(batch.failures) == {job for job in JOBS if job.seed == 1}
    assert set(batch.results) == {job for job in JOBS if job.seed != 1}
    assert len(list(deaths.iterdir())) == MAX_LOSSES
    assert all(f"lost its worker {MAX_LOSSES} times" in text for text in batch.failures.values())


def test_workers_that_cannot_start_are_one_error(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from synergy_gym.evaluation.workers.run import run_jobs\n"
        "from synergy_gym.evaluation.jobs import Job\n"
        "jobs = [Job('tiny', 'chat-h100', 1.0, s, 'vllm-v1', 'round-robin', 2.0, 0.5)"
        " for s in range(40)]\n"
        "run_jobs(jobs, 2)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "ExecutorError" in last
    assert '`if __name__ == "__main__":`' in last


def test_options_of_the_other_executor_are_refused() -> None:
    assert make_executor("local", 3) == LocalExecutor(3)
    with pytest.raises(ValueError, match="choose one of local, ray"):
        make_executor("slurm")
    with pytest.raises(ValueError, match="needs --executor ray"):
        make_executor("local", ray_address="host:6379")
    with pytest.raises(ValueError, match="for --executor local"):
        make_executor("ray", processes=2)
