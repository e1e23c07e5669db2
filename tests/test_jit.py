"""Machine code is loaded from the cache as it was written, and from equal sources, or not at all.

Whole processes with a cold or damaged cache are in `test_cold_start.py`.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import pytest
from numba.core.caching import IndexDataCacheFile

from synergy_gym import jit_notice
from synergy_gym.jit_cache import SturdyCache, SturdyFiles, use_temporary_folder
from synergy_gym.jit_notice import CompileNotice
from synergy_gym.sim import readiness

ROOT = Path(__file__).resolve().parents[1]
ASKED = "from synergy_gym.jit_cache import source_hash; print(source_hash())"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, without any cache."""
    root = tmp_path_factory.mktemp("sources")
    for name in ("synergy_gym", "envs", "policies"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def source_hash(root: Path) -> str:
    # As `python FILE` in that folder: an editable installation comes after it.
    run = subprocess.run(
        [sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {ASKED}"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return run.stdout


@pytest.mark.parametrize(
    "source",
    [
        "synergy_gym/sim/compiled/engine.py",
        "synergy_gym/sim/compiled/layout.py",  # constants alone
        "synergy_gym/sim/compiled/records.py",
        "synergy_gym/arrays.py",  # a constant that `types` hands on
        "policies/router/prism_plus.py",  # in a folder below
        "envs/vector_base.py",
    ],
)
def test_an_edited_source_counts(copied: Path, source: str) -> None:
    before = source_hash(copied)
    file = copied / source
    text = file.read_text(encoding="utf-8")
    file.write_text(f"{text}\n# edited\n", encoding="utf-8")
    assert source_hash(copied) != before
    file.write_text(text, encoding="utf-8")
    assert source_hash(copied) == before


def test_what_no_kernel_reads_does_not_count(copied: Path) -> None:
    before = source_hash(copied)
    (copied / "synergy_gym" / "cli.py").write_text("", encoding="utf-8")
    assert source_hash(copied) == before


def test_links_to_nowhere_do_not_count(copied: Path) -> None:
    before = source_hash(copied)
    (copied / "envs" / ".#base.py").symlink_to("somebody@somewhere")  # as Emacs makes
    assert source_hash(copied) == before


STAMP = ("all sources", "its source")
ENTRY = {"code": bytes(range(40))}


def cache_files(folder: Path, stamp: tuple[str, str] = STAMP, *others: Path) -> SturdyFiles:
    return SturdyFiles(IndexDataCacheFile(str(folder), "name", "numba's stamp"), stamp, others)


def test_files_cut_or_changed_anywhere_are_a_miss(tmp_path: Path) -> None:
    files = cache_files(tmp_path)
    files.save("key", ENTRY)
    assert files.load("key") == ENTRY
    written = sorted(tmp_path.iterdir())
    assert [path.suffix for path in written] == [".nbc", ".nbi"]
    for path in written:
        data = path.read_bytes()
        changed = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data))]
        for damaged in [*(data[:length] for length in range(len(data))), *changed, data + b"."]:
            path.write_bytes(damaged)
            assert files.load("key") is None
        files.save("key", ENTRY)
        assert files.load("key") == ENTRY


def test_files_of_other_sources_or_of_numba_itself_are_a_miss(tmp_path: Path) -> None:
    files = cache_files(tmp_path)
    cache_files(tmp_path, ("older sources", "its source")).save("key", "old")
    assert files.load("key") is None
    numbas = IndexDataCacheFile(str(tmp_path), "name", "numba's stamp")
    numbas.save("key", "numba's")
    assert files.load("key") is None
    files.save("key", ENTRY)
    assert (files.load("key"), numbas.load("key")) == (ENTRY, "numba's")


def test_an_index_of_one_process_and_an_entry_of_another_are_a_miss(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, key in ((one, "int64"), (other, "float64")):
        folder.mkdir()
        cache_files(folder).save(key, key)
    (entry,) = one.glob("*.nbc")
    shutil.copy(entry, other)
    assert cache_files(other).load("float64") is None


def test_an_interrupted_save_leaves_no_index_of_what_is_not_there(tmp_path: Path) -> None:
    files = cache_files(tmp_path)
    files._files._dump = interrupted
    with pytest.raises(KeyboardInterrupt):
        files.save("key", ENTRY)
    assert list(tmp_path.iterdir()) == []


def interrupted(_: Any) -> bytes:
    raise KeyboardInterrupt


def test_other_folders_are_read_and_never_written(tmp_path: Path) -> None:
    own, installed = tmp_path / "own", tmp_path / "installed"
    own.mkdir()
    installed.mkdir()
    cache_files(installed).save("key", "installed")
    before = {path: path.read_bytes() for path in installed.iterdir()}
    files = cache_files(own, STAMP, installed)
    assert files.load("key") == "installed"
    files.save("other", "own")
    assert (files.load("key"), files.load("other")) == ("installed", "own")
    assert {path: path.read_bytes() for path in installed.iterdir()} == before


@pytest.mark.parametrize("what", ["link", "file", "writable by all"])
def test_a_temporary_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "before")
    folder = tmp_path / f"synergy-gym-{os.getuid()}"
    if what == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif what == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    assert not use_temporary_folder()
    assert numba.config.CACHE_DIR == "before"


class Terminal(io.StringIO):
    """What `rich` puts in the place of stderr while it draws says it is a terminal, too."""

    def isatty(self) -> bool:
        return True


def test_a_drawing_is_not_drawn_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jit_notice, "PATIENCE_S", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    kept = SturdyCache(SimpleNamespace(cache_path=str(tmp_path / "a")), pytest.fail)
    ours, part = (SimpleNamespace(data={"dispatcher": it}) for it in (object(), object()))
    ours.data["dispatcher"] = SimpleNamespace(_cache=kept)
    listener = CompileNotice()
    for _ in range(2):
        listener.on_start(ours)
        listener.on_start(part)
        listener.on_end(part)
        listener.on_end(ours)
    told = f"synergy-gym: compiling kernels, once; kept in {tmp_path}\n"
    assert sys.stderr.getvalue() == told


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in an interpreter of its own, where nothing is said of all this."""
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    monkeypatch.delenv(readiness.VARIABLE)
    return monkeypatch


def test_where_the_plain_simulator_may_play_first(first: pytest.MonkeyPatch) -> None:
    assert readiness._may_be_plain()
    with first.context() as there:
        there.setenv(readiness.VARIABLE, "0")
        assert not readiness._may_be_plain()
    with first.context() as there:
        there.setattr(multiprocessing, "parent_process", lambda: "a worker's")
        assert not readiness._may_be_plain()
    for flags in ((1, 1), (0, 1)):
        with first.context() as there:  # `-I`, and `-E -P` of `synergy-gym verify`
            there.setattr(readiness, "sys", SimpleNamespace(**python(*flags)))
            assert not readiness._may_be_plain()
    for changed in ({"executable": ""}, {"frozen": True}):
        with first.context() as there:
            there.setattr(readiness, "sys", SimpleNamespace(**{**python(), **changed}))
            assert not readiness._may_be_plain()


def python(isolated: int = 0, ignore_environment: int = 0) -> dict[str, Any]:
    flags = SimpleNamespace(isolated=isolated, ignore_environment=ignore_environment)
    return {"executable": sys.executable, "flags": flags}


def test_a_compilation_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    background = readiness.BackgroundCompilation()
    kept = SturdyCache(SimpleNamespace(cache_path=str(tmp_path)), pytest.fail)
    assert [background.begin(kept), background.begin(kept)] == [False, False]
    assert not background.is_under_way


def test_a_compilation_that_could_not_be_kept_is_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    (tmp_path / "file").touch()
    kept = SturdyCache(SimpleNamespace(cache_path=str(tmp_path / "file" / "folder")), pytest.fail)
    assert not readiness.BackgroundCompilation().begin(kept)


def test_the_process_finds_the_same_modules_and_the_same_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "library").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "library"])
    monkeypatch.setattr(numba.config, "CACHE_DIR", "cache")
    given = readiness._environment()
    assert given["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "library"), str(ROOT)]
    assert given["NUMBA_CACHE_DIR"] == str(tmp_path / "cache")
    assert given[readiness.VARIABLE] == "0"
