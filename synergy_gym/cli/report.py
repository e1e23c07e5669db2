"""`synergy-gym report`, the pages of a board made again, and `run --timeline`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synergy_gym.cli import output as tables

if TYPE_CHECKING:
    pass

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
    from synergy_gym.evaluation.board.board import read_board
    from synergy_gym.evaluation.board.files import HTML_FILE
    from synergy_gym.evaluation.report.render import render_board, write_parquet

    board = read_board(folder)
    render_board(board)
    if not write_parquet(board):
        tables.note("no results.parquet: that needs pyarrow (`pip install pyarrow`); use the CSV")
    print(folder / HTML_FILE)
