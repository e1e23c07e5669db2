"""Bring the hashes of boards up to date after a change that changed no result.

    python scripts/restamp_boards.py experiments/leaderboard --reason "..." [--sample 40] [--jobs 2]

Hashes cover what is computed, so that a faster kernel or a new option has another one although
every row stays the same. This plays rows again, all recorded decisions and the policies (of all
rows without `--sample`), and only where everything is equal bit for bit it writes the hashes of
this code into the manifest. The old ones are kept there, with the reason and what was played.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from synergy_gym.evaluation.board.board import Board, read_board
from synergy_gym.evaluation.board.files import HTML_FILE, MANIFEST_FILE
from synergy_gym.evaluation.dynamics import dynamics_hash, dynamics_parts
from synergy_gym.evaluation.manifest import write_json, write_whole
from synergy_gym.evaluation.report.html import report_html
from synergy_gym.evaluation.verify.boards import boards_in
from synergy_gym.evaluation.verify.files import read_checked, structure_problems
from synergy_gym.evaluation.verify.play import Checked, check_log, check_policy
from synergy_gym.evaluation.verify.policy_versions import hash_here, installed_version, registered

HISTORY = "restamped"
"""Where a manifest keeps the hashes that it had."""


def stale_entries(board: Board) -> Iterator[tuple[dict[str, Any], str]]:
    """Entries of policies of the installed version with another hash, and the installed hash."""
    for layer, name in registered(board):
        entry = board.manifest["policies"][layer][name]
        here = hash_here(layer, name)
        if entry["version"] == installed_version(layer, name) and entry["sha256"] != here:
            yield entry, here


def is_stale(board: Board) -> bool:
    """Whether a board has hashes of other code."""
    other = board.manifest.get("dynamics_sha256") != dynamics_hash()
    return other or any(True for _ in stale_entries(board))


def restamped(board: Board, reason: str, played: str) -> dict[str, Any]:
    """The manifest of a board with the hashes of this code, and a note of the old ones."""
    manifest: dict[str, Any] = json.loads((board.folder / MANIFEST_FILE).read_text())
    note: dict[str, Any] = {
        "reason": reason,
        "proof": played,
        "dynamics_sha256": manifest.get("dynamics_sha256"),
        "policies": {},
    }
    board = replace(board, manifest=manifest)
    for entry, here in list(stale_entries(board)):
        note["policies"][entry["policy"]] = entry["sha256"]
        entry["sha256"] = here
    manifest["dynamics"], manifest["dynamics_sha256"] = dict(dynamics_parts()), dynamics_hash()
    manifest[HISTORY] = [*manifest.get(HISTORY, []), note]
    return manifest


def proved(board: Board, sample: int | None, jobs: int) -> list[Checked]:
    """Rows of a board played again: their decisions, and their policies."""
    wanted, problems = structure_problems(board, hashes=False)
    if problems:
        return [Checked("files", 0, tuple(problems))]
    return [
        check_log(board, wanted, None, jobs),
        check_policy(board, wanted, sample, jobs, run_code=True),
    ]


def main(
    folder: Annotated[Path, typer.Argument(help="A board, or a folder of boards.")],
    reason: Annotated[str, typer.Option(help="What has changed that changed no result.")],
    sample: Annotated[
        int | None, typer.Option(help="Policies of so many rows of each board; all.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Worker processes.")] = 2,
) -> None:
    """Bring the hashes of boards up to date after a change that changed no result."""
    failed = False
    for place in boards_in(folder):
        board, problems = read_checked(place)
        if board is not None and not problems and not is_stale(board):
            print(f"{place}: up to date")
            continue
        checks = [] if board is None else proved(board, sample, jobs)
        problems = [*problems, *(line for check in checks for line in check.problems)]
        if board is None or problems:
            failed = True
            print(f"{place}: left as it is:", *problems, sep="\n  ")
            continue
        played = ", ".join(f"{check.level}: {check.played} rows" for check in checks)
        write_json(place / MANIFEST_FILE, restamped(board, reason, played))
        if (place / HTML_FILE).is_file():  # it shows the hashes
            write_whole(place / HTML_FILE, report_html(read_board(place)))
        print(f"{place}: restamped ({played})")
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    typer.run(main)
