"""One line on stderr while something compiles, so that nobody waits for an unknown reason."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core import event

VARIABLE = "SYNERGY_GYM_NOTICE"
"""Environment variable: 0 says nothing about compilations."""
PATIENCE_S = 0.7
"""Shorter compilations are not worth a word."""
_COMPILE = "numba:compile"


class CompileNotice(event.Listener):  # type: ignore[misc]
    """Tells that kernels are being compiled, how many so far, and where they are kept."""

    def __init__(self) -> None:
        self._folder = ""
        self._began = 0.0
        self._depth = self._count = 0
        self._said = False

    def on_start(self, event: Any) -> None:
        """A function misses the cache."""
        if self._depth == 0:
            self._began = time.monotonic()
            self._folder = _folder_of(event.data["dispatcher"])
        self._depth += 1

    def on_end(self, event: Any) -> None:
        """A function is compiled."""
        del event
        self._depth -= 1
        self._count += 1
        if self._said or time.monotonic() - self._began >= PATIENCE_S:
            self._say()

    def _say(self) -> None:
        line = f"synergy-gym: compiling kernels, once; {self._folder}"
        if not sys.stderr.isatty():
            if not self._said:
                print(line, file=sys.stderr, flush=True)
        else:
            end = "\n" if self._depth == 0 else ""
            print(f"\r{line} ({self._count} done)", end=end, file=sys.stderr, flush=True)
        self._said = True


def _folder_of(compiled: Any) -> str:
    """Where the machine code of a function is kept."""
    folder = getattr(getattr(compiled, "_cache", None), "_cache_path", None)
    if folder is None:
        return "they cannot be kept, because no folder can be written"
    path = Path(folder)
    return "kept beside the sources" if path.name == "__pycache__" else f"kept in {path.parent}"


@contextmanager
def compiling(function: Any) -> Iterator[None]:
    """Around a compilation that numba does not report itself."""
    data = {"dispatcher": function}
    event.start_event(_COMPILE, data)
    try:
        yield
    finally:
        event.end_event(_COMPILE, data)


def announce() -> None:
    """Tell about compilations of this process from now on; worker processes say nothing."""
    if multiprocessing.parent_process() is None and os.environ.get(VARIABLE) != "0":
        event.register(_COMPILE, CompileNotice())
