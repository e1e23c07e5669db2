"""The process of one engine in a live cluster: a vLLM engine under a policy, behind a pipe.

    python -m synergy_gym.live.cluster.workers.child PIPE_FD PARENT_PID

It ends when the pipe is closed, that is with its parent, however that one ends.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from synergy_gym.live.cluster.workers.messages import (
    Abort,
    Add,
    Beat,
    Begin,
    Begun,
    Broken,
    FromWorker,
    Ready,
    Start,
    Stepped,
    ToWorker,
)

BEAT_S = 1.0
"""An idle worker speaks this often."""
START_S = 60.0
"""A worker that was not told what to do by then ends."""
_GONE = 3


class Mailbox:
    """What the parent sent; read by a thread, so that the parent never waits for an iteration.

    Args:
        pipe: to the parent.
        parent: its process id.
    """

    def __init__(self, pipe: Connection[Any, Any], parent: int) -> None:
        self._pipe = pipe
        self._parent = parent
        self._inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="mailbox", daemon=True).start()

    def send(self, message: FromWorker) -> None:
        """Tell the parent; this process ends when there is none."""
        try:
            self._pipe.send(message)
        except OSError:
            os._exit(_GONE)

    def wait(self, timeout_s: float) -> ToWorker | None:
        """The next message, or `None` when there is none in time."""
        if os.getppid() != self._parent:
            os._exit(_GONE)
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def arrived(self) -> Iterator[ToWorker]:
        """What has come in; does not wait."""
        while True:
            try:
                yield self._inbox.get_nowait()
            except queue.Empty:
                return

    def _read(self) -> None:
        while True:
            try:
                self._inbox.put(self._pipe.recv())
            except (EOFError, OSError):
                os._exit(_GONE)


def serve(mailbox: Mailbox) -> None:
    """Make the engine that the first message asks for, and serve until the process is ended."""
    from synergy_gym.live.cluster.workers.child_engine import HostedEngine

    start = mailbox.wait(START_S)
    if not isinstance(start, Start):
        raise RuntimeError(f"a worker expects to be told its engine first, not {start!r}")
    engine = HostedEngine(start)
    mailbox.send(Ready(engine.vocabulary, engine.vllm_version))
    while True:
        if not engine.has_work:
            message = mailbox.wait(BEAT_S)
            if message is None:
                mailbox.send(Beat())
                continue
            _obey(engine, mailbox, message)
        for message in mailbox.arrived():
            _obey(engine, mailbox, message)
        if engine.has_work:
            mailbox.send(engine.step())


def _obey(engine: Any, mailbox: Mailbox, message: ToWorker) -> None:
    if isinstance(message, Add):
        refused: Stepped | None = engine.add(message)
        if refused is not None:
            mailbox.send(refused)
    elif isinstance(message, Abort):
        engine.abort(message.ticket)
    elif isinstance(message, Begin):
        engine.begin(message)
        mailbox.send(Begun(message.number))


def main(arguments: list[str]) -> None:
    """Serve on the pipe whose file descriptor is given; a failure is told before it ends."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    mailbox = Mailbox(Connection(int(arguments[0])), int(arguments[1]))
    try:
        serve(mailbox)
    except BaseException:
        mailbox.send(Broken(traceback.format_exc()))
        raise


if __name__ == "__main__":
    main(sys.argv[1:])
