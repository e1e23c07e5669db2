"""Where the jobs of a table are played: in this process, in processes beside it, on a cluster."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess

from synergy_gym.evaluation.jobs import Job, JobResult, describe
from synergy_gym.evaluation.workers.executor import (
    MAX_LOSSES,
    ExecutorError,
    Losses,
    OnResult,
    Play,
    attempt,
)


@dataclass(frozen=True)
class LocalExecutor:
    """Plays in this process, or in spawned ones.

    Each worker process has one job at a time, so that a killed worker costs that job only;
    another worker plays it again.
    """

    processes: int = 1

    def run(self, jobs: Sequence[Job], play: Play, finish: OnResult) -> None:
        """As `Executor.run`."""
        count = min(max(self.processes, 1), max(len(jobs), 1), 4 * (os.cpu_count() or 1))
        if count == 1:
            for job in jobs:
                finish(job, attempt(play, job))
            return
        workers = _Workers(count, play)
        try:
            workers.run(deque(jobs), finish)
        finally:
            workers.close()


class _Worker:
    """A process and the job that it plays."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_follow_parent
        )
        with _interrupts_held_back():
            self.started = self.pool.submit(os.getpid)

    def failed_to_start(self) -> bool:
        return self.started.done() and self.started.exception() is not None

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


class _Workers:
    """Worker processes, replaced as they are lost."""

    def __init__(self, count: int, play: Play) -> None:
        self.play = play
        self.losses = Losses()
        self.failed_starts = 0
        self.free = [_Worker() for _ in range(count)]
        self.busy: dict[Future[JobResult | str], tuple[_Worker, Job]] = {}

    def run(self, waiting: deque[Job], finish: OnResult) -> None:
        while waiting or self.busy:
            while waiting and self.free:
                self._begin(self.free.pop(), waiting)
            for future in wait(self.busy, return_when=FIRST_COMPLETED).done:
                self._end(future, waiting, finish)

    def _begin(self, worker: _Worker, waiting: deque[Job]) -> None:
        try:
            future = worker.pool.submit(attempt, self.play, waiting[0])
        except BrokenProcessPool:  # it was killed between two jobs
            self.free.append(self._replacement(worker))
        else:
            self.busy[future] = worker, waiting.popleft()

    def _end(self, future: Future[JobResult | str], waiting: deque[Job], finish: OnResult) -> None:
        """Take what a worker yields, or replace it and put its job back."""
        worker, job = self.busy.pop(future)
        error = future.exception()
        if not isinstance(error, BrokenProcessPool):
            self.free.append(worker)
            finish(job, describe(error) if error else future.result())
            return
        started = not worker.failed_to_start()
        self.free.append(self._replacement(worker))
        failure = self.losses.failure(job, describe(error)) if started else None
        waiting.append(job) if failure is None else finish(job, failure)

    def _replacement(self, worker: _Worker) -> _Worker:
        """A new worker for one that is lost.

        Raises:
            ExecutorError: workers end before they could play anything.
        """
        self.failed_starts = self.failed_starts + 1 if worker.failed_to_start() else 0
        worker.close()
        if self.failed_starts >= MAX_LOSSES:
            raise ExecutorError(
                f"{MAX_LOSSES} worker processes in a row ended as they started; a script that "
                'plays jobs in several processes needs `if __name__ == "__main__":`, and each '
                "process its memory: see the messages above, or play with one process"
            )
        return _Worker()

    def close(self) -> None:
        for worker in [*self.free, *(worker for worker, _ in self.busy.values())]:
            worker.close()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep Ctrl-C from a worker that is still importing, where it would print a traceback.

    A process that is spawned in here is born with the signal blocked, `_follow_parent` takes
    the block away. This process gets an interrupt that comes meanwhile at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)
