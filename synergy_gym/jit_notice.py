"""One line on stderr while something compiles, so that nobody waits for an unknown reason."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from numba.core import event

from synergy_gym.jit_cache import SturdyCache

VARIABLE = "SYNERGY_GYM_NOTICE"
"""Environment variable: 0 says nothing about compilations."""
PATIENCE_S = 0.7
"""Compilations that take less, all together, are not worth a word."""
_COMPILE = "numba:compile"


class CompileNotice(event.Listener):  # type: ignore[misc]
    """Tells that kernels are being compiled, and where they are kept.

    A terminal is also shown how many they are so far, until the last is done.
    """

    def __init__(self) -> None:
        self._began = self._spent_s = 0.0
        self._depth = self._count = self._width = 0
        self._said = self._said_lost = False
        self._kept: SturdyCache | None = None

    def on_start(self, event: Any) -> None:
        """A function misses the cache; those of other packages are not ours to speak of."""
        if not self._depth:
            self._kept, self._began = _cache_of(event.data), time.monotonic()
        self._depth += self._kept is not None

    def on_end(self, event: Any) -> None:
        """A function is compiled."""
        del event
        if not self._depth:
            return
        self._depth -= 1
        self._count += 1
        spent_s = self._spent_s + time.monotonic() - self._began
        if self._depth == 0:
            self._spent_s = spent_s
        if self._kept is not None and spent_s >= PATIENCE_S:
            self.say("compiling kernels", self._kept)
        if self._said:
            self._show(f"{self._count} compiled" if self._depth else "")

    def say(self, what: str, kept: SturdyCache) -> None:
        """The line, once in a process.

        Args:
            what: what is being done.
            kept: where the machine code goes.
        """
        if not self._said:
            trouble = kept.trouble()
            self._said, self._said_lost = True, bool(trouble)
            _print(f"{what}; {_lost(trouble)}" if trouble else f"{what}, once; {_place(kept)}")

    def say_lost(self, reason: str) -> None:
        """Machine code could not be kept after all."""
        if not self._said_lost:
            self._said = self._said_lost = True
            self._show("")
            _print(f"compiled kernels: {_lost(reason)}")

    def _show(self, text: str) -> None:
        """Overwrite what stands in a terminal's last line."""
        # Whoever has put something in the place of stderr draws there (`rich`) or keeps lines.
        if _is_terminal() and (text or self._width):
            _write(f"\r{text:{self._width}}" if text else f"\r{'':{self._width}}\r")
            self._width = len(text)


def _cache_of(data: Any) -> SturdyCache | None:
    kept = getattr(data["dispatcher"], "_cache", None)
    return kept if isinstance(kept, SturdyCache) else None


def _lost(reason: str) -> str:
    return f"they cannot be kept: {reason}"


def _place(kept: SturdyCache) -> str:
    path = Path(kept.cache_path)
    return "kept beside the sources" if path.name == "__pycache__" else f"kept in {path.parent}"


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty() and sys.stderr is sys.__stderr__
    except (AttributeError, ValueError):  # closed
        return False


def _print(line: str) -> None:
    _write(f"synergy-gym: {line}\n")


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # none, gone or closed
        return


@contextmanager
def compiling(function: Any) -> Iterator[None]:
    """Around a compilation that numba does not report itself."""
    data = {"dispatcher": function}
    event.start_event(_COMPILE, data)
    try:
        yield
    finally:
        event.end_event(_COMPILE, data)


@cache
def notice() -> CompileNotice | None:
    """This process's only one; worker processes have none.

    The first call makes it listen.
    """
    if multiprocessing.parent_process() is not None or os.environ.get(VARIABLE) == "0":
        return None
    listener = CompileNotice()
    event.register(_COMPILE, listener)
    return listener


def tell_trouble(reason: str) -> None:
    """Machine code could not be kept."""
    listener = notice()
    if listener is not None:
        listener.say_lost(reason)
