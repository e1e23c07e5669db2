"""Runs that are killed: at every byte of the progress file, and at every file operation."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation import leaderboard
from synergy_gym.evaluation.board.journal import (
    LOCK_FILE,
    PROGRESS_FILE,
    FolderInUseError,
    ProgressLog,
)
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.decision_log import decisions_name
from synergy_gym.evaluation.jobs import Job, JobResult
from synergy_gym.evaluation.leaderboard import run_leaderboard, to_record

SHORT: dict[str, Any] = {"loads": (1.0, 1.3), "seeds": 2, "horizon_s": 3.0, "warmup_s": 1.0}
TINY = Suite(
    "tiny",
    "a few short episodes",
    (Part("engine", ("chat-h100",), ("vllm-v1", "random"), ("round-robin",), **SHORT),),
)
JOBS = TINY.jobs()


def _result(job: Job, decisions: bytes | None = None) -> JobResult:
    return JobResult({"seed": job.seed}, {}, {}, {}, decisions, "" if decisions is None else "x")


def test_a_file_cut_off_at_any_byte_loses_its_last_line_only(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / PROGRESS_FILE)
    ends = [0]
    for job in JOBS[:3]:
        log.append(job, _result(job))
        ends.append(log.path.stat().st_size)
    whole = log.path.read_bytes()
    for size in range(len(whole) + 1):
        log.path.write_bytes(whole[:size])
        # A whole line whose line end is missing has everything that it says.
        kept = sum(size >= end - 1 for end in ends[1:])
        assert list(log.load(JOBS)) == JOBS[:kept]
        log.append(JOBS[3], _result(JOBS[3]))  # what is written next does not join a torn line
        assert list(log.load(JOBS)) == [*JOBS[:kept], JOBS[3]]


def test_a_damaged_byte_costs_one_line(tmp_path: Path, rng: np.random.Generator) -> None:
    log = ProgressLog(tmp_path / PROGRESS_FILE)
    for job in JOBS[:3]:
        log.append(job, _result(job))
    whole = log.path.read_bytes()
    line = len(whole) // 3
    for _ in range(100):
        at = int(rng.integers(line + 1, 2 * line - 1))
        log.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert list(log.load(JOBS)) == [JOBS[0], JOBS[2]]
        assert log.path.read_bytes() == whole[:line] + whole[2 * line :]


def test_the_lines_are_json(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / PROGRESS_FILE)
    log.append(JOBS[0], _result(JOBS[0]))
    assert set(json.loads(log.path.read_text())) == {"check", "job", "result"}


def test_a_recorded_job_needs_its_decisions(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / PROGRESS_FILE)
    (job,) = to_record(JOBS[:1], "all")
    log.append(job, _result(job))
    assert log.load([job]) == {}
    data = b"decisions"
    result = JobResult({}, {}, {}, {}, data, hashlib.sha256(data).hexdigest())
    log.append(job, result)
    assert list(log.load([job])) == [job]
    path = tmp_path / "decisions" / decisions_name(job.key)
    assert path.read_bytes() == data
    path.write_bytes(data[:-1])
    assert log.load([job]) == {}
    assert list(log.load(JOBS[:1])) == [job]  # a run that records nothing has no need of them


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    first = ProgressLog(tmp_path / PROGRESS_FILE)
    with first.locked(), pytest.raises(FolderInUseError, match="another run writes here; wait"):
        run_leaderboard(TINY, tmp_path)
    with first.locked():  # free again
        assert (tmp_path / LOCK_FILE).exists()


def test_the_sample_is_the_first_seed_at_the_load_nearest_to_one() -> None:
    marked = [(job.load, job.seed) for job in to_record(JOBS, "sample") if job.record]
    assert set(marked) == {(1.0, min(job.seed for job in JOBS))}
    assert len(marked) == 2  # both policies
    assert [job.record for job in to_record(JOBS, "all")] == [True] * len(JOBS)
    assert not any(job.record for job in to_record(JOBS, "none"))


# --- real kills -------------------------------------------------------------------------------

WRITING = frozenset({"os.rename", "os.remove", "os.mkdir", "shutil.rmtree"})


def _run_until(out: Path, operation: int) -> None:
    """Play, and be killed before the given operation on a file of the folder."""
    count = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event in WRITING or (event == "open" and arguments[1] not in ("r", "rb", None))
        if writes and str(arguments[0]).startswith(str(out)):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    leaderboard.render_board = lambda board: None  # plots are made from the tables
    sys.addaudithook(on_event)
    run_leaderboard(TINY, out, record="all")


def _killed(out: Path, operation: int) -> bool:
    """Run in a process of its own; whether it was killed."""
    process = multiprocessing.get_context("fork").Process(target=_run_until, args=(out, operation))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _known(out: Path) -> set[Job]:
    return set(ProgressLog(out / PROGRESS_FILE).load(to_record(JOBS, "all")))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked copy of this process")
@pytest.mark.parametrize("first", [1, 2])
def test_a_run_that_is_killed_at_every_file_operation_goes_on(tmp_path: Path, first: int) -> None:
    """Each run goes on where the last was killed, one operation later; no row lost or doubled."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert not _killed(whole, 0)
    operation, rows, kills = first, set[Job](), 0
    while _killed(out, operation):
        kills += 1
        operation += 2
        known = _known(out)
        assert rows <= known, "a row was lost"
        rows = known
        assert kills < 100
    assert kills >= 5
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) == names
    for name in ("results.csv", "latency.csv", "manifest.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    played = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert len(played) == len(JOBS)
    assert len({row["log_hash"] for row in played}) == len(JOBS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked copy of this process")
def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    assert _killed(tmp_path, 3)
    with ProgressLog(tmp_path / PROGRESS_FILE).locked():
        pass
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / LOCK_FILE).unlink()
