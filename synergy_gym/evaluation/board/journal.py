"""Finished episodes of a run on disk, safe against an end at any moment."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from synergy_gym.evaluation.decision_log import DECISIONS, decisions_name
from synergy_gym.evaluation.dynamics import dynamics_hash
from synergy_gym.evaluation.jobs import COLUMNS, KEY_COLUMNS, Job, JobResult
from synergy_gym.evaluation.manifest import part_of, write_whole
from synergy_gym.scenario import load_scenario

PROGRESS_FILE = "progress.jsonl"
LOCK_FILE = ".lock"
_WORLD = [item.name for item in fields(Job) if item.compare and item.name not in KEY_COLUMNS]
"""What else changes a job's row: its window, and what decisions cost."""
_HEAD, _JOINT = b'{"check": "', b'", '
_KEPT = [item.name for item in fields(JobResult) if item.name != "decisions"]


class FolderInUseError(ValueError):
    """Another run writes into the folder; the message names it and the cure."""


class ProgressLog:
    """Finished jobs, one JSON line each, written as they finish.

    A line counts only for the same job, scenario content, sources that decide results
    (`dynamics_hash`) and columns, and only with the file of its decisions where the job asks
    for them. Each line carries its own hash: a line that was cut off or damaged is dropped, and
    its job is played again. A line is written after the file that it speaks of, and in one call.

    Args:
        path: the file; made when the first job is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = dynamics_hash()
        self._hashes: dict[tuple[str, int], str] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder; the lock ends with this process at the latest.

        Raises:
            FolderInUseError: another process holds it.
        """
        import fcntl  # not on every system that can read results

        with (self.path.parent / LOCK_FILE).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUseError(
                    f"{self.path.parent}: another run writes here; wait for its end or choose "
                    "another folder"
                ) from None
            yield

    def load(self, jobs: Sequence[Job]) -> dict[Job, JobResult]:
        """Results of earlier runs that still hold; damaged lines leave the file."""
        wanted = {self._stamp(job): job for job in jobs}
        found = {}
        for line in self._lines():
            job = wanted.get(json.dumps(line["job"]))
            if job is not None:
                result = JobResult(**line["result"])
                if not job.record or self._has_decisions(job, result):
                    found[job] = result
        return found

    def append(self, job: Job, result: JobResult) -> None:
        """Add one finished job; line and decisions are on disk when this returns."""
        if result.decisions is not None:
            target = self.decisions_path(job)
            target.parent.mkdir(exist_ok=True)
            write_whole(target, result.decisions)
        kept = {name: getattr(result, name) for name in _KEPT}
        text = json.dumps({"job": json.loads(self._stamp(job)), "result": kept}).encode()
        with self.path.open("ab", buffering=0) as file:
            file.write(_HEAD + _check(text) + _JOINT + text[1:] + b"\n")
            os.fsync(file.fileno())

    def decisions_path(self, job: Job) -> Path:
        """Where the decisions of a job are kept."""
        return self.path.parent / DECISIONS / decisions_name(job.key)

    def remove(self) -> None:
        """Forget the run: everything that it found is in the tables."""
        part_of(self.path).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        (self.path.parent / LOCK_FILE).unlink(missing_ok=True)

    def _has_decisions(self, job: Job, result: JobResult) -> bool:
        path = self.decisions_path(job)
        if not result.decisions_sha256 or not path.is_file():
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == result.decisions_sha256

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines; others are removed from the file."""
        if not self.path.is_file():
            return []
        lines = self.path.read_bytes().split(b"\n")
        whole = [line for line in lines if _is_whole(line)]
        if lines != [*whole, b""]:
            write_whole(self.path, b"".join(line + b"\n" for line in whole))
        return [json.loads(line) for line in whole]

    def _stamp(self, job: Job) -> str:
        world = (job.scenario, job.season)
        if world not in self._hashes:
            self._hashes[world] = load_scenario(*world).hash()
        columns = hashlib.sha256(",".join(COLUMNS).encode()).hexdigest()
        others = [repr(getattr(job, name)) for name in _WORLD]
        return json.dumps([*job.key, *others, self._hashes[world], self.version, columns])


def _check(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


def _is_whole(line: bytes) -> bool:
    """Whether a line says the hash of its own content."""
    head, _, rest = line.partition(_JOINT)
    return bool(rest) and head == _HEAD + _check(b"{" + rest)
