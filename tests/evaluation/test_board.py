"""Boards: what is written is read again; damage is named; pages are made from the data only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.cli import app as cli
from synergy_gym.evaluation.board.board import read_board
from synergy_gym.evaluation.board.files import BoardError, read_rows
from synergy_gym.evaluation.board.latency import latency_text, read_latency
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.tables import csv_text
from synergy_gym.evaluation.jobs import COLUMNS
from synergy_gym.evaluation.leaderboard import run_leaderboard
from synergy_gym.evaluation.report.render import render_board, write_parquet
from tests.evaluation.board_samples import SUITE, write_sample_board

PAGES = ("leaderboard.md", "report.html")


@pytest.fixture
def board_dir(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder with the data files of a board."""
    write_sample_board(tmp_path / "board", rng)
    return tmp_path / "board"


def test_what_is_written_is_read_again(board_dir: Path) -> None:
    board = read_board(board_dir)
    assert board.suite == SUITE
    assert csv_text(board.rows, COLUMNS) == (board_dir / "results.csv").read_text()
    assert latency_text(board.latency) == (board_dir / "latency.csv").read_text()
    types = [type(board.rows[0][name]) for name in ("seed", "load", "scenario")]
    assert types == [int, float, str]
    assert math.isnan(board.rows[0]["itl_p99_s"])
    assert [part.track for part, _ in board.rankings()] == ["engine", "joint"]


def test_histograms_hold_every_request_that_finished(board_dir: Path) -> None:
    for key, histogram in read_latency(board_dir / "latency.csv").items():
        assert histogram.counts.sum() == histogram.offered, key
        assert np.all(np.diff(histogram.shares) >= 0)
        assert histogram.shares[-1] == pytest.approx(1.0)


def test_a_played_suite_is_rendered_again_to_the_same_bytes(tmp_path: Path) -> None:
    part = Part(
        "engine",
        ("chat-h100",),
        ("vllm-v1", "static-256"),
        ("round-robin",),
        loads=(1.0, 1.3),
        seeds=2,
        horizon_s=5.0,
        warmup_s=1.0,
    )
    report = run_leaderboard(Suite("tiny", "two policies", (part,)), tmp_path)
    names = [*PAGES, *(f"plots/{path.name}" for path in (tmp_path / "plots").iterdir())]
    assert len(names) == 4
    first = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / name).unlink()
    board = read_board(tmp_path)
    assert board.suite == report.suite
    render_board(board)
    assert {name: (tmp_path / name).read_bytes() for name in names} == first
    for row in board.rows:  # histograms cover exactly the requests that finished
        key = (row["scenario"], row["load"], row["engine_policy"], row["router_policy"], "e2e")
        same = [r for r in board.rows if all(r[n] == row[n] for n in ("load", "engine_policy"))]
        assert board.latency[key].counts.sum() == sum(r["finished"] for r in same)
        assert board.latency[key].offered == sum(r["offered"] for r in same)


@pytest.mark.parametrize(
    ("name", "damage", "told"),
    [
        ("results.csv", None, "missing"),
        ("results.csv", lambda text: text[:-40], "within a line"),
        ("results.csv", lambda text: text[:-99] + "\n", "cells instead of"),
        ("results.csv", lambda text: text.replace("log_hash", "log", 1), "no column 'log_hash'"),
        ("manifest.json", lambda text: text[:-9], "no JSON"),
        ("manifest.json", lambda text: "[]", "holds list"),
        ("manifest.json", lambda text: text.replace('"seeds"', '"beads"'), "cannot be read"),
        ("latency.csv", lambda text: text.replace(",ttft,", ",ttft,x", 1), "no number"),
        ("latency.csv", lambda text: text[: text.rfind(" ")] + " -3\n", "negative"),
    ],
)
def test_damage_is_named(board_dir: Path, name: str, damage: Any, told: str) -> None:
    path = board_dir / name
    text = path.read_text()
    path.unlink()
    if damage is not None:
        path.write_text(damage(text))
    with pytest.raises(BoardError, match=told) as caught:
        read_board(board_dir)
    assert str(path) in str(caught.value)


def test_a_board_without_histograms_has_no_latency_charts(board_dir: Path) -> None:
    (board_dir / "latency.csv").unlink()
    render_board(read_board(board_dir))
    assert not list((board_dir / "plots").glob("latency-*"))
    assert "TTFT at load" not in (board_dir / "report.html").read_text()


def test_parquet_is_written_where_pyarrow_is(board_dir: Path) -> None:
    from importlib.util import find_spec

    written = write_parquet(read_board(board_dir))
    assert written == (find_spec("pyarrow") is not None)
    assert (board_dir / "results.parquet").is_file() == written
    if written:
        import pandas as pd

        table = pd.read_parquet(board_dir / "results.parquet")
        assert list(table.columns) == list(COLUMNS)
        assert len(table) == len(read_rows(board_dir / "results.csv"))


def test_the_command_makes_the_pages(board_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(board_dir)])
    assert done.value.code == 0
    assert capsys.readouterr().out.strip() == str(board_dir / "report.html")
    assert all((board_dir / name).is_file() for name in PAGES)
    manifest = board_dir / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "parts": "none"}))
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(board_dir)])
    assert done.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {manifest}: suite or parts")
