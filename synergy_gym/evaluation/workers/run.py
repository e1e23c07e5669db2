"""Choosing an executor, and playing jobs on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from synergy_gym.evaluation.jobs import Job, JobResult, run_job
from synergy_gym.evaluation.workers.executor import Batch, Executor, OnResult, Play
from synergy_gym.evaluation.workers.local import LocalExecutor


def run_jobs(
    jobs: Sequence[Job],
    processes: int = 1,
    on_result: OnResult | None = None,
    play: Play | None = None,
    executor: Executor | None = None,
) -> Batch:
    """Play jobs; one that fails does not stop the others.

    Args:
        jobs: what to play.
        processes: worker processes on this machine; 1 plays in this one.
        on_result: called in this process as each job ends, with its result or its error.
        play: plays one job, `run_job` unless given; workers need one that can be pickled.
        executor: plays them instead of `processes`.

    Raises:
        ExecutorError: as `Executor.run`.
    """
    batch = Batch()

    def finish(job: Job, outcome: JobResult | str) -> None:
        if isinstance(outcome, str):
            batch.failures[job] = outcome
        else:
            batch.results[job] = outcome
        if on_result is not None:
            on_result(job, outcome)

    (executor or LocalExecutor(processes)).run(jobs, play or run_job, finish)
    return batch


def make_executor(
    name: str, processes: int | None = None, ray_address: str | None = None
) -> Executor:
    """The executor of that name.

    Args:
        name: "local" or "ray".
        processes: worker processes of the local one; 1 unless given.
        ray_address: `host:port` of the cluster, "auto" unless given.

    Raises:
        ValueError: no such executor, or an option of the other one.
    """
    if name not in EXECUTORS:
        raise ValueError(f"unknown executor {name!r}; choose one of {', '.join(EXECUTORS)}")
    return EXECUTORS[name](processes, ray_address)


def _local(processes: int | None, ray_address: str | None) -> Executor:
    if ray_address is not None:
        raise ValueError(f"--ray-address {ray_address} needs --executor ray")
    return LocalExecutor(processes or 1)


def _ray(processes: int | None, ray_address: str | None) -> Executor:
    if processes is not None:
        raise ValueError(
            f"--jobs {processes} is for --executor local; a Ray cluster plays one job per CPU"
        )
    from synergy_gym.evaluation.workers.ray import RayExecutor

    return RayExecutor(ray_address or "auto")


EXECUTORS: Mapping[str, Callable[[int | None, str | None], Executor]] = MappingProxyType(
    {"local": _local, "ray": _ray}
)
"""Makers of executors by name, from the number of processes and the address of a cluster."""
