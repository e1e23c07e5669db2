"""One worker process as an engine of a live cluster, from its parent's side."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from synergy_gym.live.cluster.attempts import Attempts
from synergy_gym.live.cluster.event_loop import EventLoop, EventLoopClosedError
from synergy_gym.live.cluster.messages import HealthChanged, LiveRequest, Patience
from synergy_gym.live.cluster.workers.messages import (
    Abort,
    Add,
    Begin,
    Begun,
    Broken,
    Ready,
    Start,
    Stepped,
    ToWorker,
)
from synergy_gym.live.vllm.version import ENVIRONMENT, python_path
from synergy_gym.types import NS_PER_S, Outcome

_log = logging.getLogger(__name__)
LOG_LINES = 20

Listener = Callable[["WorkerProcess", Any], None]
Gone = Callable[["WorkerProcess"], None]


class WorkerError(RuntimeError):
    """A worker process did not start, or has ended; the message holds its last words."""


class WorkerProcess:
    """A process and its pipe; what it says is handed to the loop of a hub.

    It is a fresh interpreter, not a fork, and it does not load the caller's main module. It ends
    when the pipe is closed, so it never outlives this process.

    Args:
        start: what it is told first.
        hub: in whose loop `say` and `gone` are called.
        say: takes every message, with this process.
        gone: told once that the process has ended.
        log: file that what it writes is added to.
        threads: with which it computes.
    """

    def __init__(
        self, start: Start, hub: EventLoop, say: Listener, gone: Gone, log: Path, threads: int
    ) -> None:
        self._hub = hub
        self._outbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = _popen(theirs, log, threads)
        self._threads = [
            threading.Thread(target=self._read, args=(say, gone), daemon=True),
            threading.Thread(target=self._write, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.send(start)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: ToWorker) -> None:
        """Tell it something; never waits, also when the process is stopped."""
        self._outbox.put(message)

    def end(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        self._process.wait()
        self._outbox.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(5.0)
        self._pipe.close()

    def _read(self, say: Listener, gone: Gone) -> None:
        try:
            while True:
                self._hub.call(say, self, self._pipe.recv())
        except (EOFError, OSError):
            self._process.wait()
            try:
                self._hub.call(gone, self)
            except EventLoopClosedError:
                return
        except EventLoopClosedError:
            return

    def _write(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self._pipe.send(message)
        except OSError:
            return  # the reader notices, too, that it is gone


class WorkerEngine:
    """A `transport.Connection` to a worker; it starts it again when it has died.

    Args:
        start: the engine.
        hub: where its events go.
        patience: the timeouts.
        log: file that gets what the worker writes.
        threads: with which the worker computes.

    Attributes:
        patience: the timeouts; may be changed.
        ready: what the worker said of its engine, once it is started.
        restarts: how often a new process took the place of a dead one.
        failures: how often the policy failed in this episode.
        dropped_caps: token caps above zero that vLLM could not obey in this episode.
    """

    def __init__(
        self, start: Start, hub: EventLoop, patience: Patience, log: Path, threads: int
    ) -> None:
        self.ready: Ready | None = None
        self.restarts = 0
        self.failures = 0
        self.dropped_caps = 0
        self._start = start
        self._hub = hub
        self.patience = patience
        self._log_file = log
        self._threads = threads
        self._attempts = Attempts(start.engine, hub, patience)
        self._orders: Begin | None = None
        self._alive = False
        self._closed = False
        self._begun = False
        self._heard_ns = time.monotonic_ns()
        self._trouble = ""
        self._change = asyncio.Event()
        self._process: WorkerProcess | None = None
        self._watch = hub.spawn(self._watch_silence())
        self._launch()

    @property
    def pid(self) -> int:
        """Id of the process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether it takes requests."""
        return self._alive

    # -- from the caller's thread ----------------------------------------------------------

    def submit(self, request: LiveRequest) -> None:
        """Start an attempt; it ends with exactly one `AttemptEnded`."""
        self._hub.call(self._add, request)

    def abort(self, ticket: int) -> None:
        """Take an attempt out of the engine."""
        why = "not wanted any more"
        self._hub.call(self._attempts.end, ticket, Outcome.ABORTED, why, None, True)

    def close(self) -> None:
        """End the process."""
        if self._closed:
            return
        self._closed = True
        if self._hub.is_open:
            self._hub.ask(self._shut())
        if self._process is not None:
            self._process.end()

    # -- in the hub's loop -------------------------------------------------------------------

    async def begin(self, orders: Begin) -> None:
        """Be ready for an episode: the engine empty and cold, health told anew.

        Raises:
            WorkerError: the process did not start in time, or has died.
        """
        self._orders = orders
        self._attempts.abort_all()
        self._begun = False
        self._turn(False, "an episode begins")
        self.failures = self.dropped_caps = 0
        if self._process is None:
            self._launch()
        elif self.ready is not None:
            self._process.send(orders)
        try:
            async with asyncio.timeout(self.patience.start_s):
                while not self._alive:
                    if self._process is None:
                        raise WorkerError(self._say(f"has ended: {self._trouble}"))
                    self._change.clear()
                    await self._change.wait()
        except TimeoutError:
            late = f"is not ready after {self.patience.start_s:g} s"
            raise WorkerError(self._say(late)) from None

    def _add(self, request: LiveRequest) -> None:
        self._attempts.open(request, lambda: self._send(Abort(request.ticket)))
        if not self._alive:
            self._attempts.end(request.ticket, Outcome.FAILED, "the engine is down")
            return
        self._send(
            Add(
                ticket=request.ticket,
                tokens=[*request.prompt_token_ids, *request.output_token_ids],
                output=request.max_tokens,
                slo_class=request.slo_class,
                priority=request.priority,
                arrival_ns=request.arrival_ns,
                cache_salt=request.cache_salt,
            )
        )

    def _send(self, message: ToWorker) -> None:
        if self._process is not None:
            self._process.send(message)

    def _launch(self) -> None:
        self.ready = None
        self._trouble = ""
        self._process = WorkerProcess(
            self._start, self._hub, self._heard, self._gone, self._log_file, self._threads
        )

    def _heard(self, process: WorkerProcess, message: Any) -> None:
        if process is not self._process:
            return
        self._heard_ns = time.monotonic_ns()
        if isinstance(message, Stepped):
            self._take(message)
        elif isinstance(message, Ready):
            self.ready = message
            if self._orders is not None:
                process.send(self._orders)
        elif isinstance(message, Begun):
            self._begun = self._orders is not None and message.number == self._orders.number
        elif isinstance(message, Broken):
            self._trouble, self._begun = message.text, False
        if self._begun and not self._alive:
            self._turn(True, "it speaks again")

    def _take(self, message: Stepped) -> None:
        for ticket, tokens in message.tokens:
            self._attempts.tokens(ticket, tokens, message.at_ns)
        for left in message.left:
            self._attempts.end(
                left.ticket,
                left.outcome,
                left.reason,
                message.at_ns,
                scheduled_ns=left.scheduled_ns,
                cached_tokens=left.cached_tokens,
                preemptions=left.preemptions,
            )
        if message.failures and not self.failures:
            _log.error("%s", self._say(f"has a policy that fails; {self._log_tail()}"))
        self.failures, self.dropped_caps = message.failures, message.dropped_caps
        if message.step is not None:
            self._hub.emit(message.step)

    def _gone(self, process: WorkerProcess) -> None:
        """The process has ended: what it served has failed; a new one takes its place."""
        if process is not self._process or self._closed:
            return
        began = self.ready is not None
        self._process = None
        self._begun = False
        self._trouble = self._trouble or f"no last words (killed?); {self._log_tail()}"
        self._turn(False, "the process has ended")
        _log.error("%s", self._say(f"has ended: {self._trouble}"))
        threading.Thread(target=process.end, daemon=True).start()
        if began:  # one that dies before it is ready would only die again
            self.restarts += 1
            self._launch()
        self._change.set()

    def _turn(self, alive: bool, reason: str) -> None:
        if alive == self._alive:
            return
        self._alive = alive
        self._hub.emit(HealthChanged(self._start.engine, time.monotonic_ns(), alive, reason))
        if not alive:
            self._attempts.fail_all(f"the engine is down: {reason}")
        self._change.set()

    async def _watch_silence(self) -> None:
        while True:
            await asyncio.sleep(self.patience.silence_s / 4)
            silent_s = (time.monotonic_ns() - self._heard_ns) / NS_PER_S
            if self._alive and silent_s > self.patience.silence_s:
                _log.warning("%s", self._say(f"has said nothing for {silent_s:.1f} s"))
                self._turn(False, f"nothing heard for {silent_s:.1f} s")

    def _log_tail(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "its log ends with:\n" + "\n".join(lines)

    async def _shut(self) -> None:
        self._watch.cancel()
        self._attempts.fail_all("the cluster was closed")

    def _say(self, what: str) -> str:
        return f"the worker of engine {self._start.engine} ({self._start.spec.name}) {what}"


def _popen(pipe: Connection[Any, Any], log: Path, threads: int) -> subprocess.Popen[bytes]:
    wanted: Mapping[str, str] = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "PYTHONPATH": python_path(),
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "synergy_gym.live.cluster.workers.child",
                str(pipe.fileno()),
                str(os.getpid()),
            ],
            env={**ENVIRONMENT, **os.environ, **wanted},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(pipe.fileno(),),
            start_new_session=True,  # Ctrl-C is for the parent
        )
