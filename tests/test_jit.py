"""Machine code in the cache is as old as the oldest source that it was made of."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
