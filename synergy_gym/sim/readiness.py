"""Which simulator plays: the compiled one, or while that is being compiled the plain one.

Both give the same episodes, bit for bit. A compilation takes a dozen seconds once, a small episode
in plain Python one; so the first episodes of a fresh installation need not wait.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numba

from synergy_gym.jit_cache import SturdyCache
from synergy_gym.jit_notice import notice
from synergy_gym.sim.compiled.clock import advance, load
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.simulator import Simulator
from synergy_gym.workload.base import Workload

VARIABLE = "SYNERGY_GYM_PLAIN_FIRST"
"""Environment variable: 0 waits for the compiled simulator instead."""
MOST_PLAIN_S = 8.0
"""Episodes that take longer in plain Python wait for the compiled simulator."""
MOST_WAIT_S = 300.0
"""A compilation in the background that takes longer is not waited for."""
_PACKAGE = Path(__file__).resolve().parents[1]
# Measured: 3.5 (chat-h100) to 16 (hetero-3, long prompts) us per output token.
PLAIN_OUTPUT_S, PLAIN_PROMPT_S = 4e-6, 0.5e-6


class BackgroundCompilation:
    """A process of its own that compiles what episodes and environments run, into the cache."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_tried = False

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun and has not ended."""
        return self._process is not None and self._process.poll() is None

    def begin(self, kept: SturdyCache) -> bool:
        """Start it unless that was tried before; whether it is under way.

        Args:
            kept: where its machine code goes.
        """
        if not self._is_tried:
            self._is_tried = True
            if not kept.trouble():
                self._start()
            listener = notice()
            if self._process is not None and listener is not None:
                listener.say("compiling kernels in the background", kept)
        return self.is_under_way

    def end(self) -> None:
        """Stop it and wait until it is gone; what it has compiled so far is kept."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _start(self) -> None:
        flags = ["-O"] * sys.flags.optimize + ["-B"] * sys.dont_write_bytecode
        try:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-P", "-m", "synergy_gym.compile_all"],
                env=_environment(),
                cwd=_PACKAGE,  # not where the user works
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError):
            return
        atexit.register(self._leave)

    def _leave(self) -> None:
        """This process ends; the other goes on, and whoever adopts it waits for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0  # else `Popen` complains


def _environment() -> dict[str, str]:
    """What the process finds the same modules and the same cache with, wherever it runs."""
    here, home = os.path.realpath(os.curdir), str(_PACKAGE.parent)
    paths = [os.path.abspath(path) for path in sys.path if path]
    paths = [path for path in paths if os.path.realpath(path) != here or path == home]
    folder = numba.config.CACHE_DIR
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths if home in paths else [*paths, home]),
        **({"NUMBA_CACHE_DIR": os.path.abspath(folder)} if folder else {}),
        VARIABLE: "0",
    }


@cache
def background() -> BackgroundCompilation:
    """This process's only one."""
    return BackgroundCompilation()


def simulator_for(workload: Workload, most_plain_s: float = MOST_PLAIN_S) -> Any:
    """The class that plays an episode of this traffic soonest.

    Args:
        workload: the traffic.
        most_plain_s: what an episode may take in plain Python, about, in seconds.
    """
    if load(compiles=False) or not _may_be_plain():
        return Simulator
    if plain_s(workload) > most_plain_s:
        _wait()
        return Simulator
    if not background().begin(advance.kept):  # it could not be kept
        return Simulator
    return ReferenceSimulator


def _wait() -> None:
    """Let a compilation that is under way finish, instead of doing it twice at once."""
    until = time.monotonic() + MOST_WAIT_S
    while background().is_under_way and time.monotonic() < until and not load(compiles=False):
        time.sleep(0.2)


def plain_s(workload: Workload) -> float:
    """About how long the plain simulator takes for an episode, seconds."""
    outputs, prompts = workload.output_tokens.sum(), workload.prompt_tokens.sum()
    return float(outputs * PLAIN_OUTPUT_S + prompts * PLAIN_PROMPT_S)


def _may_be_plain() -> bool:
    """Not in workers, and not where Python was told to look at nothing outside (`-I`, `-E`)."""
    if multiprocessing.parent_process() is not None or os.environ.get(VARIABLE) == "0":
        return False
    is_python = bool(sys.executable) and not getattr(sys, "frozen", False)
    return is_python and not sys.flags.isolated and not sys.flags.ignore_environment
