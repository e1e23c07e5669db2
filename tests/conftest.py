"""What every test shares: data, seeds, hypothesis profiles, and the count of skipped data tests.

Environment variables:
    SYNERGY_GYM_DATA: folder with `traces/` and `measurements/`; tests of real data skip without.
    SYNERGY_GYM_TEST_SEED: repeats a run of the random tests; each failure prints its seed.
    SYNERGY_GYM_FUZZ: 1 = 20,000 hypothesis examples per test instead of 200 (`make fuzz`).
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import hypothesis
import numpy as np
import pytest

DATA_VARIABLE = "SYNERGY_GYM_DATA"
NO_DATA = f"needs real data: set {DATA_VARIABLE} to the folder with traces/ and measurements/"

_SLOW = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
hypothesis.settings.register_profile(
    "ci", max_examples=200, deadline=None, print_blob=True, suppress_health_check=_SLOW
)
hypothesis.settings.register_profile(
    "fuzz", parent=hypothesis.settings.get_profile("ci"), max_examples=20_000
)
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
    """Say how many tests were skipped for want of real data, also when there are none."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(DATA_VARIABLE in str(report.longrepr) for report in skipped)
    cure = f" (set {DATA_VARIABLE} to run them)" if count else ""
    terminalreporter.write_line(f"data tests skipped: {count}{cure}")
