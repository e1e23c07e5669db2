"""`synergy-gym verify`: whether a board's rows are what its suite, policies and seeds give."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synergy_gym.cli import output as tables

if TYPE_CHECKING:
    from synergy_gym.evaluation.verify.boards import BoardVerdict, Level, Options

SAMPLE = 20


def verify(
    folder: Annotated[Path, typer.Argument(help="A board, or a folder of boards.")],
    log: Annotated[bool, typer.Option("--log", help="Replay recorded decisions.")] = False,
    policy: Annotated[
        bool, typer.Option("--policy", help="Let the policies decide again.")
    ] = False,
    fresh_seeds: Annotated[
        bool, typer.Option("--fresh-seeds", help="Score each policy on seeds nobody has seen.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(help="So many rows (fresh seeds: competitors) of each board.", min=1),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every row.")] = False,
    jobs: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 1,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run the code of submissions (import their files).")
    ] = False,
    entropy: Annotated[
        int | None, typer.Option(help="Repeat a check of fresh seeds.", min=0)
    ] = None,
    base: Annotated[Path, typer.Option("--from", hidden=True)] = Path(),
) -> None:
    """Check a board; its files always, and with what else is asked for (`--log` by default).

    Reads data only, unless `--run-code` is given, and starts in an isolated interpreter. Every
    problem is one line that names the place, the value and the cure. Exit code 0: nothing is
    wrong, 1: something is.
    """
    from synergy_gym.evaluation.verify.boards import Options, boards_in

    if all_ and sample is not None:
        raise ValueError(f"--all and --sample {sample} exclude each other; give one of them")
    asked: dict[Level, bool] = {"log": log, "policy": policy, "fresh-seeds": fresh_seeds}
    levels = [level for level, wanted in asked.items() if wanted] or ["log"]
    count = None if all_ else sample or SAMPLE
    options = Options(levels, count, jobs, run_code, entropy)
    shown = partial(_as_given, base / folder, folder)
    verdicts = [_one(board, options, shown) for board in boards_in(base / folder)]
    wrong = [verdict for verdict in verdicts if verdict.problems]
    if wrong:
        found = sum(len(verdict.problems) for verdict in wrong)
        tables.error(f"{found} problems in {len(wrong)} of {len(verdicts)} boards")
        raise typer.Exit(1)


def _as_given(place: Path, given: Path, text: str) -> str:
    """A text that names files below a place, with the place as the user wrote it."""
    return text.replace(str(place), str(given))


def _one(folder: Path, options: Options, shown: Callable[[str], str]) -> BoardVerdict:
    from synergy_gym.evaluation.verify.boards import verify as check

    with tables.progress() as bar:
        task = bar.add_task(shown(str(folder)), total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        verdict = check(folder, options, on_progress)
    print(shown(f"{folder}: {verdict.rows} rows, {_played(verdict)}"), flush=True)
    for checked in verdict.checks:
        for note in checked.notes:
            tables.note(shown(f"{checked.level}: {note}"))
    for problem in verdict.problems:
        tables.error(shown(problem))
    return verdict


def _played(verdict: BoardVerdict) -> str:
    """What was checked, and how it went."""
    done = [f"{checked.played} {checked.level}" for checked in verdict.checks if checked.played]
    outcome = f"{len(verdict.problems)} problems" if verdict.problems else "ok"
    return ", ".join(["files", *done]) + f": {outcome}"
