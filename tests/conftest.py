"""What every test shares: data, seeds, vLLM, hypothesis profiles, and the counts of skipped tests.

Environment variables:
    SYNERGY_GYM_DATA: folder with `traces/` and `measurements/`; tests of real data skip without.
    SYNERGY_GYM_TEST_SEED: repeats a run of the random tests; each failure prints its seed.
    SYNERGY_GYM_FUZZ: 1 = 20,000 hypothesis examples per test instead of 200 (`make fuzz`).
    SYNERGY_GYM_REQUIRE_VLLM: 1 = tests that need vLLM fail where they would be skipped.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from synergy_gym.live.vllm.version import VllmUnavailableError, load_vllm

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:  # of `experiments`; last, so that it stands in for nothing
    sys.path.append(ROOT)

DATA_VARIABLE = "SYNERGY_GYM_DATA"
NO_DATA = f"needs real data: set {DATA_VARIABLE} to the folder with traces/ and measurements/"
REQUIRE_VARIABLE = "SYNERGY_GYM_REQUIRE_VLLM"
NO_VLLM = "needs vLLM"

_SLOW = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
hypothesis.settings.register_profile(
    "ci", max_examples=200, deadline=None, print_blob=True, suppress_health_check=_SLOW
)
hypothesis.settings.register_profile(
    "fuzz", parent=hypothesis.settings.get_profile("ci"), max_examples=20_000
)
# What plays and what stderr says must not depend on what is compiled already.
os.environ.setdefault("SYNERGY_GYM_PLAIN_FIRST", "0")
os.environ.setdefault("SYNERGY_GYM_NOTICE", "0")
hypothesis.settings.load_profile("fuzz" if os.environ.get("SYNERGY_GYM_FUZZ") == "1" else "ci")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; the test is skipped where there is none."""
    value = os.environ.get(DATA_VARIABLE, "")
    if not value:
        pytest.skip(NO_DATA)
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"{DATA_VARIABLE}={value} is not a folder; unset it to skip the data tests")
    return path


@pytest.fixture(scope="session")
def traces_dir(data_dir: Path) -> Path:
    """The folder of traces inside the real data."""
    return data_dir / "traces"


@pytest.fixture(scope="session")
def vllm() -> Any:
    """The module vLLM with its engine core in this process, or a skip that says why not."""
    try:
        return load_vllm(in_process=True)
    except VllmUnavailableError as error:
        reason = f"{NO_VLLM}: {error}"
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{reason} ({REQUIRE_VARIABLE}=1 asks for it)")
    pytest.skip(reason)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for a random test, printed so that a failure can be repeated."""
    value = int(os.environ.get("SYNERGY_GYM_TEST_SEED") or secrets.randbits(32))
    print(f"{request.node.nodeid}: repeat with SYNERGY_GYM_TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A generator of the printed seed."""
    return np.random.default_rng(seed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for want of data or vLLM, also when there are none."""
    reasons = [str(r.longrepr) for r in terminalreporter.stats.get("skipped", [])]
    data = sum(DATA_VARIABLE in reason for reason in reasons)
    vllm = sum(NO_VLLM in reason for reason in reasons)
    cures = {False: "", True: f" (set {DATA_VARIABLE} to run them)"}
    terminalreporter.write_line(f"data tests skipped: {data}{cures[data > 0]}")
    cures[True] = " (`make vllm`; the reason is above)"
    terminalreporter.write_line(f"vLLM tests skipped: {vllm}{cures[vllm > 0]}")
