"""The scripts behind `make vllm`: installations that were cut off, and what must be absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.loading import load_script


def script(name: str) -> ModuleType:
    return load_script(f"scripts/{name}.py")


def package(site: Path, name: str, *, complete: bool) -> Path:
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if complete:
        (folder / "INSTALLER").write_text("pip\n")
    return folder


def test_what_was_cut_off_is_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repair = script("repair_venv")
    whole = package(tmp_path, "whole", complete=True)
    half = package(tmp_path, "half", complete=False)
    aside = package(tmp_path, "~orch", complete=True)
    (tmp_path / "half").mkdir()
    (tmp_path / "~half.so").write_text("")
    repair.forget([*repair.cut_off(tmp_path), *repair.leftovers(tmp_path)])
    assert whole.is_dir()
    assert (tmp_path / "half").is_dir(), "pip writes over the files itself"
    assert not half.exists()
    assert not aside.exists()
    assert not (tmp_path / "~half.so").exists()
    assert "half-1.0.dist-info" in capsys.readouterr().err


def test_pip_takes_a_forgotten_package_for_absent(tmp_path: Path) -> None:
    """The premise: with metadata alone pip believes that the package is installed."""

    def listed() -> str:
        command = [sys.executable, "-m", "pip", "list", "--path", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    package(tmp_path, "half", complete=False)
    assert "half" in listed()
    repair = script("repair_venv")
    repair.forget(repair.cut_off(tmp_path))
    assert "half" not in listed()


def test_nothing_is_cut_off_here() -> None:
    """pip, and whoever else installs, writes `INSTALLER` for every package."""
    import numpy

    assert script("repair_venv").cut_off(Path(numpy.__file__).parents[1]) == []


def test_only_a_virtual_environment_is_repaired(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert script("repair_venv").main() == 1
    assert "not a virtual environment" in capsys.readouterr().err


def test_an_unwanted_package_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("check_vllm").main(["numpy", "surely_absent"]) == 1
    assert "error: numpy should be gone" in capsys.readouterr().err


@pytest.mark.vllm
def test_the_vllm_of_this_environment_is_ready(
    vllm: object, capsys: pytest.CaptureFixture[str]
) -> None:
    unwanted = ["torchvision", "torchaudio", "torchcodec", "triton"]
    assert script("check_vllm").main(unwanted) == 0, capsys.readouterr().err
