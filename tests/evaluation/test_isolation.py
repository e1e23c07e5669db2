"""`synergy-gym verify` runs nothing of the folder that it stands in, or of the one it checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from synergy_gym import isolation

ROOT = Path(__file__).resolve().parents[2]
BOARD = ROOT / "experiments" / "leaderboard" / "season1" / "quick"
CONSOLE = (str(Path(sys.executable).with_name("synergy-gym")),)
MODULE = (sys.executable, "-m", "synergy_gym")
VERIFY = ("verify", ".", "--sample", "2")
STANDARD = ("json", "pathlib", "random", "typing")
LIBRARIES = ("gymnasium", "numba", "numpy", "typer")
MISSING = ("cffi", "coverage", "cython")
"""Not installed; libraries try to import them."""


class Trap:
    """A folder with a board in it, and with code that leaves a trace when it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "board"
        self.trace = folder / "trace"
        shutil.copytree(BOARD, self.folder)
        self.code = f"open({str(self.trace)!r}, 'a').write(__name__ + ' ')\n"

    def lay(self, names: Iterable[str], folder: Path | None = None) -> None:
        """Modules (`name`) and packages (`name/`) that leave the trace."""
        for name in names:
            path = (folder or self.folder) / (f"{name}__init__.py" if "/" in name else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.code)

    def lay_plug_in(self, group: str, folder: Path | None = None) -> None:
        """A distribution whose entry point of a group leaves the trace."""
        home = folder or self.folder
        self.lay(["trapped_plug_in"], home)
        info = home / "trapped-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trapped\nVersion: 1.0\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[{group}]\ninit = trapped_plug_in\n")

    def run(
        self, command: Sequence[str], arguments: Sequence[str] = VERIFY, path: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The command in the folder, with PYTHONPATH as given."""
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env |= {} if path is None else {"PYTHONPATH": path}
        return subprocess.run(
            [*command, *arguments],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    def check(self, result: subprocess.CompletedProcess[str], shown: str = "2 log: ok") -> None:
        """The command has done its work, and nothing of the folder ran."""
        assert not self.trace.exists(), self.trace.read_text()
        assert result.returncode == 0, result.stderr
        assert shown in result.stdout


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)


@pytest.mark.parametrize("command", [CONSOLE, MODULE], ids=["console", "module"])
def test_modules_of_the_current_folder_are_not_imported(trap: Trap, command: list[str]) -> None:
    trap.lay([*STANDARD, *LIBRARIES, *MISSING])
    trap.check(trap.run(command))


@pytest.mark.parametrize("path", [f"{os.pathsep}/nowhere", ".", "{folder}"])
def test_pythonpath_does_not_lead_into_the_folder(trap: Trap, path: str) -> None:
    trap.lay(LIBRARIES)
    trap.check(trap.run(CONSOLE, path=path.format(folder=trap.folder)))


@pytest.mark.parametrize("command", [CONSOLE, MODULE], ids=["console", "module"])
def test_worker_processes_are_isolated_as_well(trap: Trap, command: list[str]) -> None:
    trap.lay([*LIBRARIES, "multiprocessing/", "pickle", "concurrent/"])
    trap.check(trap.run(command, [*VERIFY, "--jobs", "2"]))


@pytest.mark.parametrize("command", [CONSOLE, MODULE], ids=["console", "module"])
@pytest.mark.parametrize("group", ["synergy_gym.policies", "numba_extensions", "pydantic"])
def test_plug_ins_of_the_current_folder_are_not_loaded(
    trap: Trap, command: list[str], group: str
) -> None:
    trap.lay_plug_in(group)
    trap.check(trap.run(command, [*VERIFY, "--jobs", "2"]))


def test_settings_of_the_current_folder_are_not_read(trap: Trap) -> None:
    pytest.importorskip("yaml")  # numba reads no file without it
    cache = trap.folder.parent / "cache"
    (trap.folder / ".numba_config.yaml").write_text(f"CACHE_DIR: {cache}\n")
    trap.check(trap.run(CONSOLE, [*VERIFY, "--jobs", "2"]))
    assert not cache.exists()


def test_verification_takes_no_plug_ins_at_all(trap: Trap, tmp_path: Path) -> None:
    """Not even installed ones: what a board names comes with the package."""
    site = tmp_path / "site"
    trap.lay_plug_in("synergy_gym.policies", site)
    result = trap.run(CONSOLE, ["list", "suites"], path=str(site))
    assert result.returncode == 0, result.stderr
    trap.check(trap.run(CONSOLE, path=str(site)))
    listed = trap.run(CONSOLE, ["list", "policies"], path=str(site))
    assert listed.returncode == 0, listed.stderr
    assert trap.trace.read_text() == "trapped_plug_in "


@pytest.mark.parametrize("command", [CONSOLE, MODULE], ids=["console", "module"])
def test_what_lies_in_the_current_folder_is_not_installed(trap: Trap, command: list[str]) -> None:
    trap.lay_plug_in("synergy_gym.policies")
    trap.check(trap.run(command, ["list", "policies"]), "round-robin")


@pytest.mark.parametrize("command", [CONSOLE, MODULE], ids=["console", "module"])
def test_places_are_shown_as_they_were_given(trap: Trap, command: list[str]) -> None:
    (trap.folder / "timings.csv").unlink()
    result = trap.run(command, ["verify", "../board"])
    assert result.returncode == 1
    assert result.stdout == "../board: 0 rows, files: 1 problems\n"
    assert "error: ../board/timings.csv: missing; restore it" in result.stderr


def test_a_bare_checkout_verifies_with_its_own_code(tmp_path: Path) -> None:
    """Not installed, and another copy may be: the package that was started is the one that runs."""
    checkout = tmp_path / "checkout"
    for name in ("synergy_gym", "envs", "policies"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*.pyc"))
    (checkout / "pyproject.toml").write_text("")
    with (checkout / "synergy_gym" / "isolation.py").open("a") as file:
        file.write("print(HERE, flush=True)\n")
    result = subprocess.run(
        [*MODULE, "verify", "nowhere"], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == [f"{checkout}/synergy_gym"] * 2  # before and after


@pytest.mark.parametrize(
    ("argv", "original", "expected"),
    [
        (["/x/synergy-gym", "verify", "b"], ["python", "/x/synergy-gym", "verify", "b"], True),
        (["-m", "verify"], ["python", "-Im", "synergy_gym", "verify"], True),
        (["-m", "verify"], ["python", "-msynergy_gym", "verify"], True),
        (["-m", "verify"], ["python", "-m", "pytest", "verify"], False),
        (["/x/synergy-gym", "run", "verify"], ["python", "/x/synergy-gym", "run", "verify"], False),
        (["/x/mine.py", "verify"], ["python", "/x/mine.py", "verify"], False),
        ([""], ["python"], False),
    ],
)
def test_which_processes_start_over(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], original: list[str], expected: bool
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert isolation.is_command() is expected
