"""House rules: lint, types, sizes, and nothing in the tree that belongs to one machine."""

from __future__ import annotations

import ast
import importlib.util
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("synergy_gym", "envs", "policies", "tests", "experiments", "scripts", "docs", ".ci")
SKIPPED = {"__pycache__", "node_modules"}
TEXT = {".py", ".toml", ".md", ".txt", ".cff", ".csv", ".json", ".yaml", ".yml", ".html", ""}
HOST_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users)/\w")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 10


def tree() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.name != ".git")
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and not SKIPPED & set(path.parts):
                yield path


def code_files() -> list[Path]:
    folders = ("synergy_gym", "envs", "policies")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            yield where, (node.end_lineno or node.lineno) - node.lineno + 1


def need(tool: str) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed (extra dev)")


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff(arguments: tuple[str, ...]) -> None:
    need("ruff")
    command = [sys.executable, "-m", "ruff", *arguments, "."]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_mypy_strict_on_what_ships() -> None:
    need("mypy")
    command = [sys.executable, str(ROOT / "scripts" / "typecheck.py")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_path_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tree()
        if path.suffix in TEXT
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if HOST_PATH.search(line)
    ]
    assert found == []


def test_files_are_short() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in code_files()
    }
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = [item for path in code_files() for item in function_lengths(path)]
    assert [item for item in lengths if item[1] > MAX_FUNCTION_LINES] == []
    assert statistics.median(length for _, length in lengths) <= MAX_MEDIAN_LINES


def test_every_invariant_names_its_tests() -> None:
    page = (ROOT / "docs" / "invariants.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if re.match(r"\| \d+ ", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 14))
    for number, _, tests in rows:
        names = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        assert names, f"invariant {number.strip()} names no test file in docs/invariants.md"
        assert [name for name in names if not (ROOT / name).is_file()] == []
