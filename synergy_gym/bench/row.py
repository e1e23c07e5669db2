"""What the speed rows share: a figure beside its goal, how much is measured, processor time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure; `met` compares `value` with `goal` in the stated direction.

    Attributes:
        name: what was measured.
        value: the figure, in `unit`.
        goal: what it should reach; `None` where there is no goal.
        at_least: whether larger is better.
        note: what the figure was made of.
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = True
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the figure reaches its goal; `None` without one."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def measured(self) -> str:
        """The figure with its unit, for people."""
        return f"{_digits(self.value)} {self.unit}"

    @property
    def target(self) -> str:
        """The goal with its direction, for people; `-` without one."""
        if self.goal is None:
            return "-"
        return f"{'>=' if self.at_least else '<='} {_digits(self.goal)}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        repeats: measurements of which the best counts: other load can only add time.
        share: of the requests, steps and seconds of a full measurement.
    """

    repeats: int = 7
    share: float = 1.0

    def of(self, full: int, least: int = 1) -> int:
        """This effort's share of a number of requests or steps."""
        return max(round(full * self.share), least)


FULL = Effort()


@dataclass(frozen=True, slots=True)
class BenchPart:
    """Rows that are measured together.

    Attributes:
        label: what the progress line calls them.
        measure: yields them, each as soon as it is known.
    """

    label: str
    measure: Callable[[], Iterator[Row]]


def processor_s(function: Callable[[], Any]) -> float:
    """Processor seconds that this process spends in a call, all of its threads together."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def best(measure: Callable[[], float], repeats: int) -> float:
    """The smallest of several measurements."""
    return min(measure() for _ in range(repeats))


def best_each(measures: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """The smallest measurements of several things, taken in turns.

    A machine that is slower for a while then slows all of them, and their ratios stay.
    """
    rounds = [[measure() for measure in measures] for _ in range(repeats)]
    return [min(column) for column in zip(*rounds, strict=True)]


def child(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[float, str]:
    """Run a process to its end: its processor seconds, and what it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    import resource  # not on every system that can read results

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent, done.stdout
