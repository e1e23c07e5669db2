"""Everything that is written of a board beside its tables."""

from __future__ import annotations

from synergy_gym.evaluation.board.board import Board
from synergy_gym.evaluation.board.files import HTML_FILE, PAGE_FILE, PARQUET_FILE, PLOTS_FOLDER
from synergy_gym.evaluation.manifest import write_whole


def render_board(board: Board) -> None:
    """Write `leaderboard.md`, `plots/` and `report.html` of a board into its folder."""
    from synergy_gym.evaluation.report.html import report_html
    from synergy_gym.evaluation.report.markdown import leaderboard_text
    from synergy_gym.evaluation.report.png import write_plots

    out = board.folder
    plots = write_plots(board, out / PLOTS_FOLDER)
    text = leaderboard_text(board, [path.relative_to(out).as_posix() for path in plots])
    write_whole(out / PAGE_FILE, text)
    write_whole(out / HTML_FILE, report_html(board))


def write_parquet(board: Board) -> bool:
    """Write `results.parquet`, the rows of `results.csv` with their types; needs pyarrow.

    Returns:
        False, and nothing is written, where pyarrow is not installed.
    """
    from importlib.util import find_spec

    import pandas as pd

    if find_spec("pyarrow") is None:
        return False
    pd.DataFrame(board.rows).to_parquet(board.folder / PARQUET_FILE, engine="pyarrow", index=False)
    return True
