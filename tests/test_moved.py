"""Import paths that documentation once named."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

from synergy_gym.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old: str) -> None:
    module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__name__ == module.__spec__.name == MOVED[old]


def test_in_a_fresh_process() -> None:
    """Old before new, with a class that is pickled by its new name."""
    code = (
        "from synergy_gym.envs.ranges import Uniform; import pickle, sys; "
        "sys.stdout.buffer.write(pickle.dumps(Uniform(1.0, 2.0)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"synergy_gym.envs.randomisation.ranges" in done.stdout
    assert type(pickle.loads(done.stdout)).__name__ == "Uniform"


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("envs.randomisation", "DomainRandomization"),
        ("envs.wrappers", "SemiMarkovDiscount"),
        ("evaluation.conduct", "examine"),
        ("evaluation.verify", "verify"),
        ("workload.traces", "load_trace"),
        ("cli", "main"),
    ],
)
def test_a_module_that_became_a_package(package: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(f"synergy_gym.{package}"), name))
