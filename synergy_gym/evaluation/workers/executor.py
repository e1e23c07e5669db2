"""What an executor is: it plays jobs somewhere and survives lost workers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from synergy_gym.evaluation.jobs import Job, JobResult, describe

OnResult = Callable[[Job, JobResult | str], None]


Play = Callable[[Job], JobResult]


MAX_LOSSES = 3
"""A job that loses its worker this many times has failed; nobody plays it again."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Outcome of many jobs."""

    results: dict[Job, JobResult] = field(default_factory=dict)
    failures: dict[Job, str] = field(default_factory=dict)


class ExecutorError(RuntimeError):
    """Jobs cannot be played there at all; the message names the place and the cure."""


class Executor(Protocol):
    """Plays jobs, in any order and number at a time."""

    def run(self, jobs: Sequence[Job], play: Play, finish: OnResult) -> None:
        """Play every job; `finish` is called here, once per job, with its result or its error.

        Raises:
            ExecutorError: no job can be played there.
        """


def attempt(play: Play, job: Job) -> JobResult | str:
    """The result of one job, or its error in one line."""
    try:
        return play(job)
    except Exception as error:  # a broken policy must not cost the other rows
        return describe(error)


class Losses:
    """How often each job lost its worker."""

    def __init__(self) -> None:
        self._counts: Counter[Job] = Counter()

    def failure(self, job: Job, why: str) -> str | None:
        """Count one loss; the error of a job that has had its last one, else `None`."""
        self._counts[job] += 1
        if self._counts[job] < MAX_LOSSES:
            _log.warning("%s lost its worker (%s); another one plays it again", job, why)
            return None
        return (
            f"lost its worker {MAX_LOSSES} times ({why}); a policy that ends its process or "
            "takes all memory does that: play this episode alone with `synergy-gym run`"
        )
