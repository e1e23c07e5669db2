"""`synergy-gym report`, the pages of a board made again, and `run --timeline`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synergy_gym.cli import output as tables

if TYPE_CHECKING:
    from synergy_gym.evaluation.timeline import Timeline
    from synergy_gym.scenario import Scenario

TimelineOption = Annotated[
    Path | None,
    typer.Option(help="Also write what happened as a trace for ui.perfetto.dev to this file."),
]


def report(
    folder: Annotated[
        Path, typer.Argument(help="A board: a folder written by `leaderboard --out`.")
    ],
) -> None:
    """Make leaderboard.md, report.html, plots and results.parquet of a board from its rows."""
    from synergy_gym.evaluation.board.board import (
        HTML_FILE,
        read_board,
        render_board,
        write_parquet,
    )

    board = read_board(folder)
    render_board(board)
    if not write_parquet(board):
        tables.note("no results.parquet: that needs pyarrow (`pip install pyarrow`); use the CSV")
    print(folder / HTML_FILE)


def timeline_of(path: Path | None, episodes: int, *, simulated: bool) -> Timeline | None:
    """An empty timeline when one is asked for.

    Raises:
        ValueError: it would be of several episodes, or of real engines.
    """
    if path is None:
        return None
    if episodes != 1:
        raise ValueError(
            f"--timeline {path} shows one episode, not {episodes}; give --engine-policy or "
            "--router-policy one name"
        )
    if not simulated:
        raise ValueError(f"--timeline {path} shows simulated engines; drop --backend vllm")
    from synergy_gym.evaluation.timeline import Timeline

    path.parent.mkdir(parents=True, exist_ok=True)
    return Timeline()


def write_timeline_file(path: Path, seen: Timeline, scenario: Scenario, policies: str) -> None:
    """Write a played timeline and say where it is."""
    from synergy_gym.evaluation.timeline import write_timeline

    write_timeline(path, seen, scenario, f"{scenario.name}, {policies}")
    tables.note(f"timeline written to {path}; open it at https://ui.perfetto.dev")
