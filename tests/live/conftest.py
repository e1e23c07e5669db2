"""Fixtures of the live tests: small models, no leftovers (`vllm` is in tests/conftest.py)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synergy_gym.live.vllm.tiny_model import write_model

PATIENCE_S = 15.0


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the smallest model."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """Every process that a test starts has ended when the test has."""
    before = children()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while (left := children() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"processes outlive this test: {sorted(map(command, left))}"


def children(pid: int | None = None) -> set[int]:
    """All living descendants of a process, this one by default."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        try:
            direct = {int(text) for text in task.read_text().split()}
        except OSError:
            continue
        for child in direct:
            if not is_zombie(child):
                found |= {child} | children(child)
    return {child for child in found if "resource_tracker" not in command(child)}


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
