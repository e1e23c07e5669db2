"""Boards get new hashes only where everything still replays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer import Exit

from synergy_gym.evaluation import leaderboard
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.suites import SUITES
from synergy_gym.evaluation.leaderboard import run_leaderboard
from synergy_gym.evaluation.verify.boards import Options, verify
from tests.loading import load_script

SUITE = Suite(
    "tiny-restamp",
    "two short episodes",
    (Part("engine", ("chat-h100",), ("random",), ("round-robin",), loads=(1.0,), seeds=2,
          horizon_s=5.0, warmup_s=0.0),),
)  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("scripts/restamp_boards.py")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boards") / "board"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaderboard, "render_board", lambda board: None)
        run_leaderboard(SUITE, folder, record="all")
    return folder


@pytest.fixture
def old(played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board of code with other hashes."""
    monkeypatch.setitem(SUITES, SUITE.name, SUITE)
    board = Path(shutil.copytree(played, tmp_path / "board"))
    edit(board, lambda m: m.update(dynamics_sha256="0" * 64, dynamics={}))
    edit(board, lambda m: m["policies"]["engine"]["random"].update(sha256="1" * 64))
    return board


def manifest(board: Path) -> Any:
    return json.loads((board / "manifest.json").read_text())


def edit(board: Path, change: Any) -> None:
    content = manifest(board)
    change(content)
    (board / "manifest.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def run(script: ModuleType, board: Path) -> int:
    with pytest.raises(Exit) as ended:
        script.main(board, "a faster kernel", None, 1)
    return ended.value.exit_code


def test_an_honest_board_is_restamped(script: ModuleType, old: Path) -> None:
    assert len(verify(old, Options(())).problems) == 2
    assert run(script, old) == 0
    assert verify(old, Options(("log", "policy"), None)).problems == []
    (note,) = manifest(old)["restamped"]
    assert note["dynamics_sha256"] == "0" * 64
    assert note["policies"] == {"random": "1" * 64}
    assert note["reason"] == "a faster kernel"
    assert note["proof"] == "log: 2 rows, policy: 2 rows"
    before = manifest(old)
    assert run(script, old) == 0
    assert manifest(old) == before, "up to date"


def test_a_board_that_does_not_replay_is_left(
    script: ModuleType, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = old / "results.csv"
    rows = table.read_text().splitlines()
    hash_at = rows[0].split(",").index("log_hash")
    cells = rows[1].split(",")
    cells[hash_at] = "0123456789abcdef"
    table.write_text("\n".join([rows[0], ",".join(cells), *rows[2:], ""]))
    before = manifest(old)
    assert run(script, old) == 1
    assert manifest(old) == before
    assert "left as it is" in capsys.readouterr().out
