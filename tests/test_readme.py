"""The pages say what is so: code runs, commands parse, links hold, tables are up to date."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from synergy_gym.evaluation.board.suites import find_suite
from tests.loading import load_script

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md", *DOCS)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, text_of(page), flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Every `synergy-gym ...` of the page that stands on a line of its own."""
    pattern = r"^ *(?:\.venv/bin/)?synergy-gym (.*?)(?:  #.*)?$"
    return re.findall(pattern, text_of(page), flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Link targets of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def updater() -> ModuleType:
    return load_script("scripts/update_readme.py")


CODE = [(page, index) for page in PAGES for index in range(len(blocks(page, "python")))]
COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "index"), CODE)
def test_block_runs(page: str, index: int, tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text(blocks(page, "python")[index])
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script)],
        cwd=tmp_path,
        env={**os.environ, "SYNERGY_GYM_CHECK": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_there_is_something_to_run() -> None:
    assert [page for page, _ in CODE].count("README.md") == 3
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_parse(page: str, command: str) -> None:
    import typer

    from synergy_gym.cli.app import app

    group, context, rest = typer.main.get_command(app), None, shlex.split(command)
    while hasattr(group, "resolve_command"):
        context = group.make_context("synergy-gym", rest, parent=context)
        name, group, rest = group.resolve_command(
            context, [*getattr(context, "_protected_args", []), *context.args]
        )
        assert name is not None
    with group.make_context(name, rest, parent=context):
        pass


@pytest.mark.parametrize("page", PAGES)
def test_links_point_somewhere(page: str) -> None:
    here = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (here.parent / name).resolve() if name else here
        assert target.exists(), f"{page} links to {link}, which does not exist"
        assert not anchor or anchor in anchors(target), f"{page} links to {link}: no such heading"


def test_generated_tables_and_pictures_are_up_to_date() -> None:
    stale = [
        str(path.relative_to(ROOT))
        for path, new in updater().outputs()
        if not path.is_file() or path.read_bytes() != new
    ]
    assert stale == [], "run: python scripts/update_readme.py"


def test_a_page_without_its_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="leaderboard:begin"):
        updater().filled("no markers", "leaderboard", "text")


def test_the_readme_says_simulated() -> None:
    head, _, rest = text_of("README.md").partition("<!-- leaderboard:begin -->")
    board = rest.partition("<!-- leaderboard:end -->")[0]
    assert "**simulated**" in head
    rankings = len(find_suite("quick").parts)
    assert board.count("(season 1, simulated;") == board.count("| rank |") == rankings


def test_every_scenario_key_of_the_page_loads(tmp_path: Path) -> None:
    from synergy_gym.scenario import load_scenario
    from synergy_gym.seasons import SEASON, season_files

    (extra,) = blocks("docs/scenarios.md", "toml")
    path = tmp_path / "my-scenario.toml"
    base = season_files(SEASON).scenarios / "hetero-3.toml"
    path.write_text(base.read_text(encoding="utf-8") + "\n" + extra)
    scenario = load_scenario(path)
    assert scenario.client.timeout_s == 30.0
    assert [event.kind for event in scenario.events] == ["down", "up"]


def test_every_run_option_of_traces_exists() -> None:
    import inspect

    from synergy_gym.workload.traces.load import load_trace

    rows = re.findall(r"^\| (`--.*?|-) \| (`\w+`.*?) \|", text_of("docs/traces.md"), re.MULTILINE)
    assert len(rows) == 8
    named = {name for _, right in rows for name in re.findall(r"`(\w+)`", right)}
    assert named == set(inspect.signature(load_trace).parameters) - {"path", "options"}
