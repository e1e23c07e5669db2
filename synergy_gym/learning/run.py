"""A training run on disk: what it was asked, how far it is, what it found.

| file              | content                                                               |
|-------------------|-----------------------------------------------------------------------|
| `plan.json`       | the plan that the run was begun with                                  |
| `agent.npz`       | the best agent so far, by validation score                            |
| `agent.md`        | its card                                                              |
| `last.npz`        | the agent at the end of training                                      |
| `curve.csv`       | validation scores by decisions seen; the same for the same plan       |
| `curve.png`       | its picture, beside the baselines                                     |
| `baselines.csv`   | scores of registered policies on the same seeds                       |
| `timings.csv`     | wall-clock seconds per round                                          |
| `manifest.json`   | command, plan, versions                                               |
| `checkpoint/`     | what `--resume` goes on from                                          |
| `tensorboard/`    | the algorithm's own figures                                           |
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.learning.scoring import Score, score
from synergy_gym.policies.agent_file import Agent, save_agent

CHECKPOINT = "checkpoint"
STATE = "state.json"


class Stopped(Exception):
    """Ends a training early, on purpose: a tuner has seen enough of it."""


class Reporter(Protocol):
    """Who is told how a run goes."""

    def advance(self, done: int, total: int, text: str) -> None:
        """`done` of `total` decisions have been made; `text` says what happens now."""

    def note(self, text: str) -> None:
        """One line worth keeping."""

    def evaluated(self, timesteps: int, score: float) -> None:
        """A validation score; may raise `Stopped`."""


class Quiet:
    """A reporter that tells nobody."""

    def advance(self, done: int, total: int, text: str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def evaluated(self, timesteps: int, score: float) -> None:
        """Ignore it."""


@dataclass
class Progress:
    """How far a run is; what a checkpoint holds beside the weights.

    Attributes:
        timesteps: decisions made.
        best: highest mean validation score; -1 before the first.
        stale: evaluations since then.
        curve: one row per evaluation.
        timings: wall-clock seconds of each round.
        extra: what an algorithm wants to keep, JSON.
    """

    timesteps: int = 0
    best: float = -1.0
    stale: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    timings: list[dict[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class Run:
    """A run folder and what is known about the run.

    Args:
        plan: what is asked.
        folder: where everything goes.
        resume: go on from the folder's checkpoint.
        command: as typed; cards and manifests show it.
        reporter: is told how it goes.

    Raises:
        ValueError: the folder holds a run already and `resume` is not set, or the run there
            has another plan.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        folder: Path,
        *,
        resume: bool = False,
        command: str = "",
        reporter: Reporter | None = None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.command = command
        self.reporter: Reporter = reporter or Quiet()
        self.progress = Progress()
        self._begin(resume)

    def _begin(self, resume: bool) -> None:
        path = self.folder / "plan.json"
        if path.is_file():
            if not resume:
                raise ValueError(
                    f"{self.folder} holds a run already; add --resume to go on with it, or choose "
                    "another --out"
                )
            begun = TrainingPlan.from_dict(json.loads(path.read_text("utf-8")))
            self.plan.check_resumes(begun)
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.plan.to_dict(), indent=2) + "\n", encoding="utf-8")
        self._recover()
        if self.begun:
            state = json.loads((self.checkpoint / STATE).read_text("utf-8"))
            self.progress = Progress(**state)

    def _recover(self) -> None:
        """Take the old checkpoint back if an interruption left no new one."""
        old = self.folder / f"{CHECKPOINT}.old"
        if old.is_dir() and not self.begun:
            os.replace(old, self.checkpoint)

    @property
    def checkpoint(self) -> Path:
        """The folder of the last complete checkpoint."""
        return self.folder / CHECKPOINT

    @property
    def agent_path(self) -> Path:
        """The best agent so far."""
        return self.folder / "agent.npz"

    @property
    def last_path(self) -> Path:
        """The agent of the last evaluation."""
        return self.folder / "last.npz"

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.checkpoint / STATE).is_file()

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        plan = self.plan
        stopped = plan.patience > 0 and self.progress.stale >= plan.patience
        return stopped or self.progress.timesteps >= plan.timesteps

    def baselines(self) -> dict[str, Score]:
        """Scores of the plan's baselines; those known from the file are not played again."""
        path = self.folder / "baselines.csv"
        known: dict[str, Score] = {}
        if path.is_file():
            for row in read_csv(path):
                policy, _ = row.pop("policy"), row.pop("score")
                known[policy] = Score({cell: float(value) for cell, value in row.items()})
        for policy in self.plan.baselines:
            if policy not in known:
                self.reporter.advance(self.progress.timesteps, self.plan.timesteps, policy)
                known[policy] = score(self.plan, policy)
                rows = [{"policy": p, "score": s.mean, **s.cells} for p, s in known.items()]
                write_csv(path, rows)
        return {policy: known[policy] for policy in self.plan.baselines}

    def evaluate(self, agent: Agent, figures: Mapping[str, float], seconds: float) -> bool:
        """Score an agent, keep it if it is the best, and write the curve.

        Args:
            agent: the agent now, after `progress.timesteps` decisions.
            figures: of the training itself, for the curve.
            seconds: wall clock since the last evaluation.

        Returns:
            Whether training should go on.

        Raises:
            Stopped: the reporter wants no more.
        """
        progress, plan = self.progress, self.plan
        save_agent(self.last_path, agent)
        found = score(plan, f"agent:{self.last_path}", self._playing)
        better = found.mean > progress.best
        progress.stale = 0 if better else progress.stale + 1
        row = {"timesteps": progress.timesteps, "score": found.mean, **found.cells, **figures}
        progress.curve.append(row)
        progress.timings.append({"timesteps": progress.timesteps, "train_s": seconds})
        if better:
            progress.best = found.mean
            shutil.copyfile(self.last_path, self.agent_path)
        write_csv(self.folder / "curve.csv", progress.curve)
        write_csv(self.folder / "timings.csv", progress.timings)
        best = " (best)" if better else ""
        self.reporter.note(
            f"{progress.timesteps:>10,} decisions: attainment {found.mean:.4f}{best}"
        )
        self.reporter.evaluated(progress.timesteps, found.mean)
        return not self.done

    def _playing(self, text: str) -> None:
        self.reporter.advance(self.progress.timesteps, self.plan.timesteps, "evaluating")

    def staged(self) -> Path:
        """An empty folder to write the next checkpoint into; `commit` makes it the last one."""
        path = self.folder / f"{CHECKPOINT}.next"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def commit(self) -> None:
        """Make the staged folder the checkpoint; an interruption leaves the old or the new one."""
        staged, old = self.folder / f"{CHECKPOINT}.next", self.folder / f"{CHECKPOINT}.old"
        text = json.dumps(self.progress.__dict__)
        (staged / STATE).write_text(text, encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if self.checkpoint.is_dir():
            os.replace(self.checkpoint, old)
        os.replace(staged, self.checkpoint)
        shutil.rmtree(old, ignore_errors=True)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with the columns of the first; floats with six decimals."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that `write_csv` wrote, as texts."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
