"""`synergy-gym leaderboard`: play a suite and rank its policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synergy_gym.cli import output as tables
from synergy_gym.cli.output import INTERRUPTED, command_line


def leaderboard(
    out: Annotated[Path, typer.Option(help="Folder for tables, plots and manifest.")],
    suite: Annotated[
        str, typer.Option(help="See `list suites`; season1/NAME for an archived one.")
    ] = "quick",
    track: Annotated[
        str | None, typer.Option(help="Only this part of the suite: engine, router or joint.")
    ] = None,
    timed: Annotated[
        bool, typer.Option("--timed", help="Charge a constant per decision to the simulated clock.")
    ] = False,
    times: Annotated[
        Path | None,
        typer.Option("--decision-times", help="Other constants for --timed, a CSV file."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Worker processes; 1.", min=1)] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for a Ray cluster.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="host:port of the cluster; by default this machine's.")
    ] = None,
) -> None:
    """Play a suite and rank its policies; an interrupted run goes on where it stopped."""
    from synergy_gym.evaluation.board.suites import chosen_suite
    from synergy_gym.evaluation.leaderboard import run_leaderboard
    from synergy_gym.evaluation.workers.run import make_executor

    chosen = chosen_suite(suite, track, timed=timed, decision_times=times)
    where = make_executor(executor, jobs, ray_address)
    with tables.progress() as bar:
        task = bar.add_task("loading", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)
            if bar.disable and done * 10 // total > (done - 1) * 10 // total:
                tables.note(f"{done} of {total} episodes")

        try:
            report = run_leaderboard(
                chosen, out, executor=where, command=command_line(), on_progress=on_progress
            )
        except KeyboardInterrupt:
            tables.error(f"interrupted; the same command with --out {out} goes on from here")
            raise typer.Exit(INTERRUPTED) from None
    for part, ranked in report.rankings():
        title = f"{part.title} on {', '.join(part.scenarios)} (simulated)"
        tables.show(tables.ranking_table(title, ranked))
    tables.note(f"written to {out}")
    for job, text in report.failures.items():
        tables.error(f"{job}: {text}")
    if report.failures:
        tables.error(f"{len(report.failures)} episodes failed; repeat the command to retry them")
        raise typer.Exit(1)
