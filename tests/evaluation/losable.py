"""Policies and plays that lose their worker; tests of executors play them in other processes."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

from synergy_gym.evaluation.jobs import Job, JobResult, run_job


def play_or_die(folder: Path, deaths: int, job: Job) -> JobResult:
    """Play a job; one of seed 1 first kills as many workers, counted in `folder`."""
    number = len(list(folder.iterdir()))
    if job.seed == 1 and number < deaths:
        (folder / str(number)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job)


def deadly(folder: Path, deaths: int) -> partial[JobResult]:
    """`play_or_die` of one job."""
    folder.mkdir()
    return partial(play_or_die, folder, deaths)


def play_or_hang(node: str, marker: Path, job: Job) -> JobResult:
    """Play a job; on that node of a Ray cluster, only say so and hang."""
    import ray

    if ray.get_runtime_context().get_node_id() == node:
        marker.touch()
        time.sleep(3600)
    return run_job(job)
