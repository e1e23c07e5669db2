"""Runs one command in its process group and ends the whole group with its starter.

    python keeper.py STARTER_PID GRACE_S COMMAND ...

A server starts processes of its own, so that ending it alone may leave some behind; and a parent
that is killed ends nobody. This small process stands between: it ends the group when the command
ends, when it is told to (SIGTERM), or when the process that started it is gone. Standard library
only; nothing of the package is imported.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
POLL_S = 0.2
LEFTOVER_GRACE_S = 2.0


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code, 128 + n after signal n."""
    starter, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    child = subprocess.Popen(command, preexec_fn=_end_with_parent)
    while child.poll() is None and os.getppid() == starter and not told.wait(POLL_S):
        pass
    end(child, grace_s)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, then SIGKILL after `grace_s` seconds; afterwards the group is empty but for us."""
    if child.poll() is None:
        child.send_signal(signal.SIGCONT)
        child.terminate()
    if not _wait(lambda: child.poll() is not None, grace_s):
        child.kill()
    child.wait()
    _signal_all(signal.SIGTERM)
    _wait(lambda: not members(os.getpgrp()), LEFTOVER_GRACE_S)
    _signal_all(signal.SIGKILL)


def members(group: int) -> list[int]:
    """Living processes of a process group, this process and its keeper (the leader) left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, owner = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        except (OSError, ValueError):  # it has just ended
            continue
        pid = int(folder.name)
        if int(owner) == group and state != "Z" and pid not in (group, os.getpid()):
            found.append(pid)
    return found


def _end_with_parent() -> None:
    """In the child: SIGTERM when the keeper dies, however it dies (Linux)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _signal_all(number: signal.Signals) -> None:
    for pid in members(os.getpgrp()):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    return done()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
