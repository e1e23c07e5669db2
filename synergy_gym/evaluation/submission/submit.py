"""Submit a policy: check it, play its cells, write its folder, and say where it stands.

    >>> done = submit(["my_policy.py:MyPolicy"], "router", "quick", Path("mine"))
    >>> print(*done.standings)

The folder is a board with one competitor, its decisions, the policy's file and a card. An
interrupted call goes on when it is repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synergy_gym.evaluation.board.board import Board, read_board
from synergy_gym.evaluation.board.bounds_file import BOUNDS_FILE
from synergy_gym.evaluation.board.files import MANIFEST_FILE
from synergy_gym.evaluation.board.suites import find_suite
from synergy_gym.evaluation.board.tables import row_key
from synergy_gym.evaluation.conduct.examine import examine
from synergy_gym.evaluation.conduct.verdict import Verdict
from synergy_gym.evaluation.dynamics import dynamics_hash
from synergy_gym.evaluation.jobs import Track
from synergy_gym.evaluation.leaderboard import OnProgress, run_leaderboard
from synergy_gym.evaluation.manifest import write_json, write_whole
from synergy_gym.evaluation.submission.card import CARD_FILE, card_text
from synergy_gym.evaluation.submission.plan import PLAN_FILE, PlayEntries, Submission, prepare
from synergy_gym.evaluation.submission.policy import POLICY_FOLDER, spec_in
from synergy_gym.evaluation.submission.standing import (
    BOARDS,
    Standing,
    committed_board,
    committed_rows,
    standings,
)


class RejectedError(ValueError):
    """A submission that breaks a rule; the message names the check and what it found."""


@dataclass(frozen=True)
class Submitted:
    """A finished submission.

    Attributes:
        submission: what was played.
        board: its data.
        checks: verdicts of the checks, by layer and name of the check.
        standings: one per part of the suite.
    """

    submission: Submission
    board: Board
    checks: dict[str, Verdict]
    standings: list[Standing]


def submit(
    policies: Sequence[str],
    track: Track,
    suite: str,
    folder: Path,
    *,
    name: str = "",
    boards: Path = BOARDS,
    processes: int = 1,
    on_progress: OnProgress | None = None,
) -> Submitted:
    """Check, play and rank a submission. Runs the policy's code.

    Args:
        policies: one per competing layer, as `prepare` takes them.
        track: "engine", "router" or "joint".
        suite: whose cells it plays, by name.
        folder: where its files go; an interrupted submission there goes on.
        name: of the submission.
        boards: folder of the committed boards.
        processes: worker processes.
        on_progress: called with (finished, all, text) at the start and after each episode.

    Raises:
        ValueError: it cannot be submitted, or there are no committed rows to stand beside.
        RejectedError: a check failed.
        RuntimeError: episodes failed; names the first, the others are in the manifest.
    """
    home = committed_board(find_suite(suite), boards)
    submission = prepare(policies, track, suite, folder, name)
    committed = committed_rows(suite, track, boards, submission.name)
    checks = check_policies(submission)
    _take_bounds(home, folder)
    board = _played(submission, processes, on_progress)
    found = standings(submission.suite, track, board.rows, committed, board.bounds)
    _finish(submission, board, checks, found)
    return Submitted(submission, read_board(folder), checks, found)


def check_policies(submission: Submission) -> dict[str, Verdict]:
    """Verdicts on the policies that a submission brings, by `LAYER/CHECK`.

    Raises:
        RejectedError: one failed.
    """
    verdicts = {}
    for entry in submission.entries:
        if entry.own:
            for verdict in examine(spec_in(submission.folder, entry.spec), entry.layer):
                if not verdict.passed:
                    raise RejectedError(f"{entry.name} is rejected: {verdict}")
                verdicts[f"{entry.layer}/{verdict.check}"] = verdict
    return verdicts


def _take_bounds(committed: Path, folder: Path) -> None:
    """Proven bounds hold for every policy: those of the committed board need no second proof."""
    source, target = committed / BOUNDS_FILE, folder / BOUNDS_FILE
    if source.is_file() and not target.exists():
        shutil.copyfile(source, target)


def _played(submission: Submission, processes: int, on_progress: OnProgress | None) -> Board:
    """The board of a submission, played as far as it is not there already."""
    folder = submission.folder
    board = _complete(submission)
    if board is not None:
        return board
    own = tuple(entry for entry in submission.entries if entry.own)
    report = run_leaderboard(
        submission.suite,
        folder,
        processes=processes,
        command=submission.command(),
        on_progress=on_progress,
        play=PlayEntries(folder.resolve(), own),
        record="all",
    )
    for job, text in report.failures.items():
        raise RuntimeError(
            f"{len(report.failures)} episodes failed, first {job}: {text}; repeat the command to "
            "play them again"
        )
    return read_board(folder)


def _complete(submission: Submission) -> Board | None:
    """The board of a run that was stopped after its last episode."""
    if not (submission.folder / MANIFEST_FILE).is_file():
        return None
    board = read_board(submission.folder)
    wanted = {job.key[1:] for job in submission.suite.jobs()}
    same = board.manifest.get("dynamics_sha256") == dynamics_hash()
    return board if same and {row_key(row) for row in board.rows} == wanted else None


def _finish(
    submission: Submission, board: Board, checks: dict[str, Verdict], found: Sequence[Standing]
) -> None:
    """Complete the manifest, write the card, and drop the plan."""
    plan = submission.plan()
    manifest: dict[str, Any] = {**board.manifest}
    manifest["submission"] = {
        "name": plan["name"],
        "track": plan["track"],
        "policies": {entry.layer: entry.name for entry in submission.entries},
        "files": plan["files"],
        "checks": {key: verdict.entry() for key, verdict in checks.items()},
    }
    folder = submission.folder
    write_json(folder / MANIFEST_FILE, manifest)
    write_whole(folder / CARD_FILE, card_text(folder, manifest, board.rows, found))
    shutil.rmtree(folder / POLICY_FOLDER / "__pycache__", ignore_errors=True)
    (folder / PLAN_FILE).unlink()
