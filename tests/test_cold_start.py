"""A fresh, damaged, foreign or unwritable cache of machine code never changes or stops a run.

Each case is a process of its own. Most compile one small kernel; the simulator itself is played
from a copy of the cache that the other tests fill, too.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMOKE = "890ee8d95a147ba3"
"""Log hash of `evaluate("smoke")`."""
PLAY = "from synergy_gym.evaluation import evaluate; print(evaluate('smoke').log_hash)"
AT_ONCE = "import synergy_gym.jit_notice as n; n.PATIENCE_S = 0.0"
"""Said of every compilation: tests do not depend on how long one takes."""
KERNEL = """
from synergy_gym.jit import kernel

FACTOR = 3


@kernel
def product(x):
    return FACTOR * x
"""
SMALL = f"{AT_ONCE}; from small import product; print(product(14))"
NO_TEMPORARY = "import tempfile; tempfile.tempdir = '/dev/null'"
HOMELESS = {"HOME": "/dev/null", "XDG_CACHE_HOME": ""}
FULL = pytest.mark.skipif(
    os.environ.get("SYNERGY_GYM_FUZZ") != "1", reason="compiles everything: `make fuzz`"
)


def command(code: str) -> list[str]:
    return [sys.executable, "-B", "-c", code]


def environment(**variables: str) -> dict[str, str]:
    """Of a child that sees none of this process's settings about compilation."""
    ours = ("SYNERGY_GYM_", "NUMBA_", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, **{name: value for name, value in variables.items() if value}}


def run(code: str, *paths: Path, cwd: Path | None = None, **variables: str) -> tuple[str, str]:
    """What a child says on stdout and on stderr."""
    variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    child = subprocess.run(
        command(code), env=environment(**variables), cwd=cwd or paths[-1],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return child.stdout.strip(), child.stderr


def kept_in(folder: Path | str) -> str:
    return f"synergy-gym: compiling kernels, once; kept in {folder}\n"


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nb[ic]"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with the module of one small kernel."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "small.py").write_text(KERNEL, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small kernel's module and its cache, for copies."""
    root = tmp_path_factory.mktemp("filled")
    (root / "small.py").write_text(KERNEL, encoding="utf-8")
    assert run(SMALL, ROOT, root, NUMBA_CACHE_DIR=str(root / "cache"))[0] == "42"
    assert len(cache_files(root)) == 2
    return root


@pytest.fixture
def damaged(filled: Path) -> Iterator[Path]:
    """The filled folder, put right afterwards: the names in a cache depend on the place."""
    before = {file: file.read_bytes() for file in [filled / "small.py", *cache_files(filled)]}
    yield filled
    shutil.rmtree(filled / "cache")
    for file, content in before.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def test_what_is_cached_is_silent_whatever_the_time_of_the_source(damaged: Path) -> None:
    os.utime(damaged / "small.py", (1, 1))  # as layers of container images do
    cache = str(damaged / "cache")
    assert run(SMALL, ROOT, damaged, NUMBA_CACHE_DIR=cache) == ("42", "")


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("how", ["empty", "half", "last byte", "garbage"])
def test_damage_costs_a_compilation(damaged: Path, how: str, ending: str) -> None:
    (file,) = damaged.rglob(f"*{ending}")
    data = file.read_bytes()
    cut = {"empty": b"", "half": data[: len(data) // 2], "last byte": data[:-1]}
    file.write_bytes(cut.get(how, os.urandom(len(data))))
    cache = damaged / "cache"
    expected = ("42", kept_in(cache))
    assert run(SMALL, ROOT, damaged, NUMBA_CACHE_DIR=str(cache)) == expected
    assert file.read_bytes() != b""


def test_an_edited_source_of_equal_size_and_time_is_compiled_anew(damaged: Path) -> None:
    source, cache = damaged / "small.py", damaged / "cache"
    times = source.stat()
    source.write_text(KERNEL.replace("3", "5"), encoding="utf-8")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(SMALL, ROOT, damaged, NUMBA_CACHE_DIR=str(cache)) == ("70", kept_in(cache))


def test_where_nothing_can_be_written(small: Path) -> None:
    (small / "__pycache__").write_text("", encoding="utf-8")
    out, err = run(f"{NO_TEMPORARY}; {SMALL}", ROOT, small, **HOMELESS)
    assert out == "42"
    assert err.startswith("synergy-gym: compiling kernels; they cannot be kept: ")
    assert err.count("\n") == 1


def test_machine_code_beside_sources_that_cannot_be_written_is_used(small: Path) -> None:
    told = "synergy-gym: compiling kernels, once; kept beside the sources\n"
    assert run(SMALL, ROOT, small) == ("42", told)
    # Numba's test of a folder fails, as it does for a user who may only read.
    only_read = (
        "import numba.core.caching as c\n"
        "def refuse(self): raise PermissionError\n"
        "c._CacheLocator.ensure_cache_path = refuse\n"
    )
    assert run(f"{only_read}{NO_TEMPORARY}; {SMALL}", ROOT, small) == ("42", "")


def test_the_temporary_folder_comes_last(small: Path, tmp_path: Path) -> None:
    (small / "__pycache__").write_text("", encoding="utf-8")
    (tmp_path / "temporary").mkdir()
    where = {**HOMELESS, "TMPDIR": str(tmp_path / "temporary")}
    folder = tmp_path / "temporary" / f"synergy-gym-{os.getuid()}"
    assert run(SMALL, ROOT, small, **where) == ("42", kept_in(folder))
    assert folder.stat().st_mode & 0o077 == 0
    assert run(SMALL, ROOT, small, **where) == ("42", "")
    folder.chmod(0o777)  # anybody may have put machine code there
    out, err = run(SMALL, ROOT, small, **where)
    assert out == "42"
    assert "they cannot be kept" in err


def test_files_that_cannot_be_read_or_replaced(damaged: Path) -> None:
    (index,) = damaged.rglob("*.nbi")
    index.unlink()
    index.mkdir()
    out, err = run(SMALL, ROOT, damaged, NUMBA_CACHE_DIR=str(damaged / "cache"))
    assert out == "42"
    assert err.splitlines()[-1].startswith("synergy-gym: compiled kernels: they cannot be kept: ")
    index.rmdir()


def test_a_folder_that_vanishes(small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    gone = f"{AT_ONCE}; from small import product; import shutil; shutil.rmtree({str(cache)!r})"
    asked = "print(product(14))"
    where = {"NUMBA_CACHE_DIR": str(cache)}
    assert run(f"{gone}; {asked}", ROOT, small, **where) == ("42", kept_in(cache))
    replaced = f"{gone}; open({str(cache)!r}, 'w').close(); {asked}"
    out, err = run(replaced, ROOT, small, **where)
    assert out == "42"
    assert err == "synergy-gym: compiling kernels; they cannot be kept: Not a directory\n"


def test_a_full_disk(small: Path, tmp_path: Path) -> None:
    full = """
        import errno, os
        import synergy_gym.jit_cache as c
        def refuse(self, path, what): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        c.SturdyFiles._write = refuse
    """
    code = textwrap.dedent(full) + SMALL
    out, err = run(code, ROOT, small, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert out == "42"
    lost = "synergy-gym: compiled kernels: they cannot be kept: No space left on device\n"
    assert err == kept_in(tmp_path / "cache") + lost


def test_two_processes_at_once(small: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, (ROOT, small)))
    cache = str(tmp_path / "cache")
    both = [
        subprocess.Popen(
            command(SMALL), env=environment(NUMBA_CACHE_DIR=cache, PYTHONPATH=paths),
            cwd=small, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [process.communicate()[0].strip() for process in both] == ["42", "42"]
    assert run(SMALL, ROOT, small, NUMBA_CACHE_DIR=cache) == ("42", "")


@pytest.mark.parametrize("stream", ["None", "open('/dev/full', 'w')", "open('/dev/null')"])
def test_a_notice_that_cannot_be_written(small: Path, tmp_path: Path, stream: str) -> None:
    code = f"import sys; sys.stderr = {stream}; {SMALL}; sys.stderr = None"
    assert run(code, ROOT, small, NUMBA_CACHE_DIR=str(tmp_path / "cache"))[0] == "42"


def test_nobody_is_told_of_other_packages_or_against_their_will(
    small: Path, tmp_path: Path
) -> None:
    foreign = f"{AT_ONCE}; import numba, small; print(numba.njit(lambda x: 3 * x)(14))"
    cache = str(tmp_path / "cache")
    assert run(foreign, ROOT, small, NUMBA_CACHE_DIR=cache) == ("42", "")
    told = run(SMALL, ROOT, small, NUMBA_CACHE_DIR=cache, SYNERGY_GYM_NOTICE="0")
    assert told == ("42", "")


def test_workers_say_nothing(small: Path, tmp_path: Path) -> None:
    (small / "work.py").write_text(f"def work():\n    {SMALL}\n", encoding="utf-8")
    code = (
        "import multiprocessing, work\n"
        "process = multiprocessing.get_context('spawn').Process(target=work.work)\n"
        "process.start(); process.join()\n"
    )
    assert run(code, ROOT, small, NUMBA_CACHE_DIR=str(tmp_path / "cache")) == ("42", "")


def test_a_terminal_is_shown_progress_that_leaves_one_line(small: Path, tmp_path: Path) -> None:
    nested = KERNEL.replace("FACTOR * x", "part(x) + part(x) + part(x)")
    part = "from synergy_gym.jit import inner\n\n@inner\ndef part(x):\n    return x\n"
    (small / "small.py").write_text(part + nested, encoding="utf-8")
    cache = tmp_path / "cache"
    paths = os.pathsep.join(map(str, (ROOT, small)))
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command(SMALL), env=environment(NUMBA_CACHE_DIR=str(cache), PYTHONPATH=paths),
        cwd=small, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    said = drained(ours)
    assert child.communicate()[0].strip() == b"42"
    line, rest = said.split("\r\n")
    assert f"{line}\n" == kept_in(cache)
    assert rest == f"\r1 compiled\r{' ' * len('1 compiled')}\r"


def drained(terminal: int) -> str:
    """All that is written to a terminal until nobody holds its other end."""
    said = b""
    try:
        while part := os.read(terminal, 1 << 16):
            said += part
    except OSError:  # Linux: the other end is closed
        pass
    os.close(terminal)
    return said.decode()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, machine code included: it may lie anywhere."""
    out, _ = run(PLAY, ROOT, SYNERGY_GYM_PLAIN_FIRST="0")
    assert out == SMOKE
    root = tmp_path_factory.mktemp("installation")
    copy_sources(root, "*.tmp.*")
    return root


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout without machine code."""
    root = tmp_path_factory.mktemp("fresh")
    copy_sources(root, "__pycache__")
    return root


def copy_sources(root: Path, *without: str) -> None:
    for name in ("synergy_gym", "envs", "policies"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(*without))
    shutil.copy(ROOT / "pyproject.toml", root)


def stand_in(root: Path, code: str) -> None:
    """Put other code in the place of the compilation in the background."""
    code = textwrap.dedent(code)
    (root / "synergy_gym" / "compile_all.py").write_text(code, encoding="utf-8")


BACKGROUND = "synergy-gym: compiling kernels in the background, once; kept in "


def test_machine_code_that_came_with_an_installation(installation: Path) -> None:
    if not cache_files(installation):
        pytest.skip("machine code of this checkout is kept elsewhere")
    assert run(PLAY, installation, SYNERGY_GYM_PLAIN_FIRST="0") == (SMOKE, "")


def test_damage_everywhere_plays_the_plain_simulator(installation: Path, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(installation, root)
    stand_in(root, "")
    for file in cache_files(root / "synergy_gym" / "sim"):
        file.write_bytes(os.urandom(len(file.read_bytes())))
    out, err = run(PLAY, root)
    assert out == SMOKE
    assert err.splitlines()[:1] == [f"{BACKGROUND.removesuffix('kept in ')}kept beside the sources"]
    assert err.count("\n") == 1


ONCE_READY = """
import gymnasium
import synergy_gym
from synergy_gym.evaluation import evaluate
from synergy_gym.sim.readiness import background

env = gymnasium.make("SynergyGym/EngineBatching-v1", scenario="smoke")
for _ in range(2):
    env.reset(seed=0)
    print(evaluate("smoke").log_hash, type(env.unwrapped._sim).__name__)
    background()._process.wait()
assert not background().is_under_way
"""


def test_episodes_and_environments_go_over_to_the_compiled_simulator(
    installation: Path, tmp_path: Path
) -> None:
    if not cache_files(installation):
        pytest.skip("machine code of this checkout is kept elsewhere")
    root = tmp_path / "root"
    shutil.copytree(installation, root)
    stand_in(
        root,
        """
        import os, pathlib, sys
        root = pathlib.Path(__file__).parents[1]
        for file in root.rglob("*.hidden"):
            file.rename(file.with_suffix(""))
        here = pathlib.Path(os.environ["ASKED_FROM"])
        assert str(here) not in sys.path and pathlib.Path.cwd() != here, sys.path
        with open(root / "log", "a") as log:
            print(os.getsid(0) == os.getpid(), os.environ["SYNERGY_GYM_PLAIN_FIRST"], file=log)
        """,
    )
    for file in cache_files(root):
        file.rename(f"{file}.hidden")
    here = tmp_path / "here"
    here.mkdir()
    out, err = run(ONCE_READY, root, cwd=here, ASKED_FROM=str(here))
    assert out.split() == [SMOKE, "ReferenceSimulator", SMOKE, "Simulator"]
    assert err.count("\n") == 1
    assert list(here.iterdir()) == []
    # Once, out of reach of the terminal's Ctrl-C, and never a process of a process.
    assert (root / "log").read_text() == "True 0\n"


FAILS = """
from synergy_gym.evaluation import evaluate
from synergy_gym.scenario import load_scenario
from synergy_gym.sim.readiness import background, simulator_for

print(evaluate("smoke").log_hash)
background()._process.wait()
print(simulator_for(load_scenario("smoke").workload(1.0, 0)).__name__)
"""


def test_a_compilation_that_fails_at_once(fresh: Path, tmp_path: Path) -> None:
    stand_in(fresh, "raise SystemExit(1)")
    out, err = run(FAILS, fresh, NUMBA_CACHE_DIR=str(tmp_path))
    assert out.split() == [SMOKE, "Simulator"]
    assert err == f"{BACKGROUND}{tmp_path}\n"


def test_an_interpreter_that_ends_early_leaves_it_alone(fresh: Path, tmp_path: Path) -> None:
    stand_in(
        fresh,
        """
        import os, pathlib, time
        folder = pathlib.Path(os.environ["NUMBA_CACHE_DIR"])
        while not (folder / "go").exists():
            time.sleep(0.05)
        (folder / "gone").touch()
        """,
    )
    out, err = run(PLAY, fresh, NUMBA_CACHE_DIR=str(tmp_path), PYTHONWARNINGS="always")
    assert out == SMOKE
    assert err == f"{BACKGROUND}{tmp_path}\n"  # no complaint about a process that still runs
    (tmp_path / "go").touch()
    until = time.monotonic() + 60.0
    while not (tmp_path / "gone").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


@FULL
@pytest.mark.hypothesis  # what `make fuzz` selects
@pytest.mark.parametrize("how", ["cold", "garbage", "two at once", "nowhere"])
def test_the_whole_simulator(tmp_path: Path, how: str) -> None:
    root = tmp_path / "root"
    copy_sources(root, "__pycache__")
    where = {"SYNERGY_GYM_PLAIN_FIRST": "0", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    if how == "nowhere":
        for folder in {file.parent for file in root.rglob("*.py")}:
            (folder / "__pycache__").write_text("", encoding="utf-8")
        out, err = run(f"{NO_TEMPORARY}; {PLAY}", root, SYNERGY_GYM_PLAIN_FIRST="0", **HOMELESS)
        assert out == SMOKE
        assert err.startswith("synergy-gym: compiling kernels; they cannot be kept: ")
        assert err.count("\n") == 1
        return
    if how == "two at once":
        paths = {"PYTHONPATH": str(root)}
        both = [
            subprocess.Popen(
                command(PLAY), env=environment(**where, **paths), cwd=root, stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        assert [child.communicate()[0].decode().strip() for child in both] == [SMOKE, SMOKE]
    else:
        assert run(PLAY, root, **where) == (SMOKE, kept_in(tmp_path / "cache"))
    if how == "garbage":
        for file in cache_files(tmp_path):
            file.write_bytes(os.urandom(len(file.read_bytes())))
        assert run(PLAY, root, **where) == (SMOKE, kept_in(tmp_path / "cache"))
    assert run(PLAY, root, **where) == (SMOKE, "")
