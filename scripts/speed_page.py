"""The tables of speed in README.md and docs/speed.md, from `docs/speed.csv`.

synergy-gym bench --out docs/speed.csv && python scripts/update_readme.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from synergy_gym.bench.bench import read_rows
from synergy_gym.bench.row import Row
from synergy_gym.evaluation.board.tables import markdown

FILE = Path(__file__).resolve().parents[1] / "docs" / "speed.csv"


def goals() -> str:
    """The figures that have goals."""
    return _table([row for row in read_rows(FILE) if row.goal is not None], notes=False)


def everything() -> str:
    """All figures, with what they were made of."""
    return _table(read_rows(FILE), notes=True)


def _table(rows: Sequence[Row], *, notes: bool) -> str:
    first = pd.read_csv(FILE).iloc[0]
    cells = [
        {"what": row.name, "measured": row.measured, "goal": _goal(row)}
        | ({"note": row.note or "-"} if notes else {})
        for row in rows
    ]
    caption = f"Measured on {first['date']}, {first['machine']}:"
    return f"{caption}\n\n{markdown(pd.DataFrame(cells)).rstrip()}"


def _goal(row: Row) -> str:
    return f"{row.target} (missed)" if row.met is False else row.target


README: Mapping[str, Callable[[], str]] = {"speed": goals}
PAGE: Mapping[str, Callable[[], str]] = {"speed": everything}
