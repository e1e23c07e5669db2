"""Which simulator plays: the compiled one, or while that is being compiled the plain one.

Both give the same episodes, bit for bit. A compilation takes a dozen seconds once, a small episode
in plain Python one; so the first episodes of a fresh installation need not wait.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from synergy_gym.workload.base import Workload

VARIABLE = "SYNERGY_GYM_PLAIN_FIRST"
"""Environment variable: 0 waits for the compiled simulator instead."""
MOST_PLAIN_S = 8.0
"""Episodes that take longer in plain Python wait for the compiled simulator."""
# Measured: 3.5 (chat-h100) to 16 (hetero-3, long prompts) us per output token.
PLAIN_OUTPUT_S, PLAIN_PROMPT_S = 4e-6, 0.5e-6


class BackgroundCompilation:
    """A process of its own that compiles what episodes and environments run, into the cache."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun and has not ended."""
        return self._process is not None and self._process.poll() is None

    def begin(self) -> bool:
        """Start it unless it ran before; whether it is under way."""
        if self._process is None:
            command = [sys.executable, "-P", "-m", "synergy_gym.compile_all"]
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self.is_under_way

    def end(self) -> None:
        """Stop it and wait until it is gone; what it has compiled so far is kept."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


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
    from synergy_gym.sim.compiled.clock import load
    from synergy_gym.sim.simulator import Simulator

    if load(compiles=False) or not _may_be_plain():
        return Simulator
    if plain_s(workload) > most_plain_s:
        _wait(load)
        return Simulator
    if not background().begin():  # it could not be kept
        return Simulator
    from synergy_gym.sim.plain.simulator import ReferenceSimulator

    return ReferenceSimulator


def _wait(load: Callable[..., bool]) -> None:
    """Let a compilation that is under way finish, instead of doing it twice at once."""
    while background().is_under_way and not load(compiles=False):
        time.sleep(0.2)


def plain_s(workload: Workload) -> float:
    """About how long the plain simulator takes for an episode, seconds."""
    outputs, prompts = workload.output_tokens.sum(), workload.prompt_tokens.sum()
    return float(outputs * PLAIN_OUTPUT_S + prompts * PLAIN_PROMPT_S)


def _may_be_plain() -> bool:
    """Not in workers, and not where nothing foreign may be started."""
    first = multiprocessing.parent_process() is None and not sys.flags.isolated
    return first and os.environ.get(VARIABLE) != "0"
