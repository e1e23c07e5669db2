"""Check boards: what they say against their suite, their decisions, their policies, fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.files import MANIFEST_FILE
from synergy_gym.evaluation.verify.files import read_checked, structure_problems
from synergy_gym.evaluation.verify.fresh_seeds import check_fresh
from synergy_gym.evaluation.verify.play import Checked, OnProgress, check_log, check_policy

Level = Literal["log", "policy", "fresh-seeds"]


@dataclass(frozen=True)
class Options:
    """How boards are checked.

    Attributes:
        levels: which checks play episodes; the files are always checked.
        sample: so many rows (for fresh seeds: competitors) of each board; `None`: all.
        processes: worker processes.
        run_code: run the code of submissions where a level asks a policy.
        entropy: of the fresh seeds; drawn when not given.
    """

    levels: Sequence[Level] = ("log",)
    sample: int | None = 20
    processes: int = 1
    run_code: bool = False
    entropy: int | None = None


@dataclass(frozen=True)
class BoardVerdict:
    """What was found about one board.

    Attributes:
        folder: of the board.
        rows: how many it has; 0 where they cannot be read.
        problems: one line each: the place, the value, the cure.
        checks: what the levels found.
    """

    folder: Path
    rows: int
    problems: list[str] = field(default_factory=list)
    checks: list[Checked] = field(default_factory=list)


def boards_in(folder: Path) -> list[Path]:
    """The folder itself if it is a board, else every board below it, sorted.

    Raises:
        ValueError: there is none.
    """
    if (folder / MANIFEST_FILE).exists() or (folder / "results.csv").exists():
        return [folder]
    found = sorted({path.parent for path in folder.rglob(MANIFEST_FILE)})
    if not found:
        raise ValueError(
            f"{folder}: no board here (no {MANIFEST_FILE}); give the folder of a board, or one "
            "that holds boards"
        )
    return found


def verify(folder: Path, options: Options, on_progress: OnProgress | None = None) -> BoardVerdict:
    """Check one board.

    Nothing is played while its files contradict one another.

    Args:
        folder: of the board.
        options: how.
        on_progress: called with (finished, all, text) after each episode of each level.
    """
    board, problems = read_checked(folder)
    if board is None:
        return BoardVerdict(folder, 0, problems)
    jobs, problems = structure_problems(board)
    verdict = BoardVerdict(folder, len(board.rows), problems)
    if not problems:
        for checked in _levels(board, jobs, options, on_progress):
            verdict.checks.append(checked)
            verdict.problems.extend(checked.problems)
    return verdict


def _levels(
    board: Board, jobs: Any, options: Options, on_progress: OnProgress | None
) -> Iterator[Checked]:
    count, many = options.sample, options.processes
    plays: dict[Level, Callable[[], Checked]] = {
        "log": lambda: check_log(board, jobs, count, many, on_progress),
        "policy": lambda: check_policy(board, jobs, count, many, on_progress, options.run_code),
        "fresh-seeds": lambda: check_fresh(
            board, jobs, count, many, on_progress, options.run_code, options.entropy
        ),
    }
    for level in options.levels:
        yield plays[level]()
