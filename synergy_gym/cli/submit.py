"""`synergy-gym submit`: play a policy of one's own among the committed rows of a suite."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from synergy_gym.cli import output as tables


class TrackName(StrEnum):
    """Which layer competes."""

    ENGINE = "engine"
    ROUTER = "router"
    JOINT = "joint"


def submit(
    policy: Annotated[
        list[str],
        typer.Option(
            help="file.py:Class, package.module:Class or agent:file.npz; on the joint track twice, "
            "the engines' first."
        ),
    ],
    track: Annotated[TrackName, typer.Option(help="Which layer competes.")],
    out: Annotated[Path, typer.Option(help="Folder of the submission.")],
    suite: Annotated[
        str, typer.Option(help="Whose cells to play; `quick` to try, season1/NAME: archived.")
    ] = "full",
    name: Annotated[str, typer.Option(help="What tables call it.")] = "",
    jobs: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 1,
    boards: Annotated[
        Path | None, typer.Option(help="Folder of the committed boards; the checkout's by default.")
    ] = None,
) -> None:
    """Check and play a policy, write a folder that anybody can verify, and print its rank.

    Runs the policy's code. A policy that breaks a rule is rejected with the reason. An
    interrupted run goes on when the same command is given again.
    """
    from synergy_gym.evaluation.submission.standing import BOARDS
    from synergy_gym.evaluation.submission.submit import RejectedError
    from synergy_gym.evaluation.submission.submit import submit as run

    with tables.progress() as bar:
        task = bar.add_task("checking", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)
            if bar.disable and done * 10 // total > (done - 1) * 10 // total:
                tables.note(f"{done} of {total} episodes")

        try:
            done = run(
                policy,
                track.value,
                suite,
                out,
                name=name,
                boards=boards or BOARDS,
                processes=jobs,
                on_progress=on_progress,
            )
        except (RejectedError, RuntimeError) as error:
            tables.error(str(error))
            raise typer.Exit(1) from None
    for standing in done.standings:
        title = f"{standing.part.title} on {', '.join(standing.part.scenarios)} (simulated)"
        tables.show(tables.ranking_table(title, standing.table))
        print(standing)
    for check, verdict in done.checks.items():
        print(f"{check}: passed, {verdict.reason}")
    tables.note(f"written to {out}; `synergy-gym verify {out}` checks it")
