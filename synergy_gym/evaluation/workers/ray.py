"""Plays jobs on an existing Ray cluster (extra `[ray]`); `docs/cluster_runs.md` tells how.

One task per job and CPU. The rows are those of a local run: a job's result depends on nothing
but the job, and a node with other sources or other packages is refused.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import pickle
import socket
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy_gym.evaluation.dynamics import dynamics_hash
from synergy_gym.evaluation.jobs import Job, JobResult, describe
from synergy_gym.evaluation.manifest import platform_entry
from synergy_gym.evaluation.workers.executor import ExecutorError, Losses, OnResult, Play, attempt
from synergy_gym.evaluation.workers.shipping import needed_files, stage

TASKS_PER_CPU = 2
"""Tasks that wait or run per CPU of the cluster, so that no CPU is idle between two jobs."""
POLL_S = 5.0
CONNECT_S = 10.0
PATIENCE_S = 300.0
"""How long a cluster may be without any CPU before the run is given up."""
LOST = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
"""Ray's errors (and those derived from them) after which another worker plays the job again."""
WEIGHTY = ("gymnasium", "llvmlite", "numba", "numpy", "scipy")
"""Packages whose version can change a row."""


@dataclass(frozen=True)
class RayExecutor:
    """Plays on every CPU of a running Ray cluster; nodes may come and go.

    `address` is `host:port` of the cluster; `auto` takes RAY_ADDRESS, else the one that runs on
    this machine.
    """

    address: str = "auto"
    patience_s: float = PATIENCE_S

    def run(self, jobs: Sequence[Job], play: Play, finish: OnResult) -> None:
        """As `Executor.run`.

        Raises:
            ExecutorError: no Ray, no cluster, one without a CPU, or a node that would play
                other episodes than this process.
        """
        if not jobs:
            return
        with _connection(self.address, needed_files(jobs)) as ray:
            _Run(ray, play, finish, self.patience_s).play(deque(jobs))


@contextmanager
def _connection(address: str, files: dict[str, Path]) -> Iterator[Any]:
    """Ray, connected, with `files` in the working directory of every worker."""
    ray = _ray()
    if ray.is_initialized():
        raise ExecutorError("this process uses a Ray cluster already; call ray.shutdown() first")
    try:
        _reach(address)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about GPUs
            stage(files, Path(folder))
            ray.init(
                address=address,
                runtime_env={"working_dir": folder} if files else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:
        raise ExecutorError(
            f"no Ray cluster at {address!r} ({describe(error)}); start one with "
            "`ray start --head`, and give its host:port with --ray-address"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Connect once, because Ray tries a wrong address for many minutes."""
    place = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = place.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ExecutorError(
            f"the executor ray needs Ray ({error}); pip install 'synergy-gym[ray]'"
        ) from error


class _Run:
    """The jobs of one run that are on the cluster."""

    def __init__(self, ray: Any, play: Play, finish: OnResult, patience_s: float) -> None:
        self.ray = ray
        self.play_job = play
        self.finish = finish
        self.patience_s = patience_s
        self.losses = Losses()
        self.busy: dict[Any, Job] = {}
        self.task = ray.remote(num_cpus=1, max_retries=0)(_task())
        self.lost = tuple(getattr(ray.exceptions, name) for name in LOST)
        self.expected = ray.put(fingerprint())
        self.cpus = 0
        self.asked_s = -math.inf
        self.cpu_seen_s = time.monotonic()

    def play(self, waiting: deque[Job]) -> None:
        while waiting or self.busy:
            room = TASKS_PER_CPU * max(1, self._cpus()) - len(self.busy)
            for _ in range(min(room, len(waiting))):
                job = waiting.popleft()
                packed = self.ray.cloudpickle.dumps((self.play_job, job))
                self.busy[self.task.remote(packed, self.expected)] = job
            for task in self._done():
                self._end(task, waiting)

    def _done(self) -> list[Any]:
        """Every task that has ended, or none after `POLL_S`."""
        tasks = list(self.busy)
        if self.ray.wait(tasks, timeout=POLL_S)[0]:
            return list(self.ray.wait(tasks, num_returns=len(tasks), timeout=0)[0])
        return []

    def _cpus(self) -> int:
        """CPUs of the cluster, asked for every `POLL_S`.

        Raises:
            ExecutorError: there has been none for `patience_s`.
        """
        now = time.monotonic()
        if now - self.asked_s >= POLL_S:
            self.asked_s = now
            self.cpus = int(self.ray.cluster_resources().get("CPU", 0))
            self.cpu_seen_s = now if self.cpus else self.cpu_seen_s
        if now - self.cpu_seen_s > self.patience_s:
            raise ExecutorError(
                f"the Ray cluster has had no CPU for {self.patience_s:g} s; add a node with "
                "`ray start --address` and repeat the command, which goes on from here"
            )
        return self.cpus

    def _end(self, task: Any, waiting: deque[Job]) -> None:
        """Take what one task yields, or put its job back."""
        job = self.busy.pop(task)
        try:
            outcome = self.ray.get(task)
        except self.lost as error:
            failure = self.losses.failure(job, type(error).__name__)
            waiting.append(job) if failure is None else self.finish(job, failure)
        except self.ray.exceptions.RuntimeEnvSetupError as error:
            raise ExecutorError(
                f"a node cannot unpack the policies' files ({describe(error)})"
            ) from error
        except self.ray.exceptions.RayError as error:
            self.finish(job, describe(getattr(error, "cause", None) or error))
        else:
            if isinstance(outcome, Refusal):
                raise ExecutorError(outcome.text)
            self.finish(job, outcome)


@dataclass(frozen=True)
class Refusal:
    """Why a node may not play."""

    text: str


def _task() -> Callable[[bytes, Mapping[str, str]], Any]:
    """What a worker runs. It travels by value, so that a node without this package can say so."""

    def play_packed(packed: bytes, expected: Mapping[str, str]) -> Any:
        from synergy_gym.evaluation.workers.ray import play_here

        return play_here(packed, expected)

    return play_packed


def play_here(packed: bytes, expected: Mapping[str, str]) -> JobResult | str | Refusal:
    """In a worker: play a pickled (`play`, job), if this node's software is the caller's."""
    differences = [
        f"{name} is {value}, not {expected[name]}"
        for name, value in fingerprint().items()
        if value != expected[name]
    ]
    if differences:
        return Refusal(
            f"node {socket.gethostname()} would play other episodes: {'; '.join(differences)}; "
            "install the same versions on every node, and use processors of one kind"
        )
    try:
        play, job = pickle.loads(packed)
    except Exception as error:  # a policy's module that this node lacks
        return describe(error)
    return attempt(play, job)


def fingerprint() -> dict[str, str]:
    """What must be equal where rows are to be identical, to the last bit of a policy's floats."""
    entry = platform_entry()
    packages = {name: entry["packages"][name] for name in WEIGHTY}
    names = ("python", "machine", "simd")
    return {"dynamics": dynamics_hash(), **{name: entry[name] for name in names}, **packages}
