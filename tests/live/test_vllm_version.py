"""vLLM absent, broken, or of another release: one clear error, and tests that say why they skip."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from synergy_gym.live.vllm.version import VllmUnavailableError, check_scheduler, load_vllm

ROOT = Path(__file__).resolve().parents[2]
BROKEN = {
    "absent": ("raise ModuleNotFoundError(\"No module named 'vllm'\")", "No module named 'vllm'"),
    "import": ("raise ImportError('cannot import name')", "ImportError: cannot import name"),
    "library": ("raise OSError('libcudart.so.13: cannot open')", "OSError: libcudart.so.13"),
    "operator": (
        "raise RuntimeError('operator torchvision::nms does not exist')",
        "RuntimeError: operator torchvision::nms does not exist",
    ),
    "late": (
        "__version__ = '0.32.0'\ndef __getattr__(name):\n    raise RuntimeError('late ' + name)",
        "RuntimeError: late LLMEngine",
    ),
    "release": ("__version__ = '0.9.1'\nLLMEngine = None", "vLLM 0.9.1 is installed"),
}
"""What stands in the fake package, and what the error must say."""

NEED_VLLM = 4
"""Tests that `run_tests` runs, all of which need vLLM."""


@pytest.fixture
def fake_vllm(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A fake `vllm` in front of the real one; returns what an error must say."""
    code, message = BROKEN[request.param]
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(code + "\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    return message


@pytest.mark.parametrize("fake_vllm", BROKEN, indirect=True)
def test_a_vllm_that_cannot_be_used_is_one_clear_error(
    fake_vllm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    state = random.getstate()
    with pytest.raises(VllmUnavailableError) as caught:
        load_vllm()
    assert fake_vllm in str(caught.value)
    assert "install" in str(caught.value)
    assert random.getstate() == state
    sys.modules.pop("vllm", None)


def run_tests(folder: Path, code: str, *, required: bool) -> str:
    """Run parity tests, and one live test, with a fake vLLM; returns pytest's output."""
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(code + "\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "SYNERGY_GYM_REQUIRE_VLLM": str(int(required)),
        "SYNERGY_GYM_PARITY_WORKLOADS": "100",
    }
    tests = ["tests/parity/test_scheduler_parity.py", f"{__file__}::test_the_real_one_loads"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    ).stdout


@pytest.mark.parametrize("name", ["absent", "library", "operator"])
def test_tests_that_need_vllm_are_skipped_with_the_reason(name: str, tmp_path: Path) -> None:
    code, message = BROKEN[name]
    output = run_tests(tmp_path, code, required=False)
    assert " passed" not in output, output
    assert " failed" not in output, output
    assert " error" not in output, output
    assert "needs vLLM" in output, output
    assert message in output, output
    assert f"vLLM tests skipped: {NEED_VLLM}" in output, output


def test_they_fail_where_vllm_is_required(tmp_path: Path) -> None:
    code, message = BROKEN["import"]
    output = run_tests(tmp_path, code, required=True)
    assert f"{NEED_VLLM} errors" in output, output
    assert message in output, output
    assert "SYNERGY_GYM_REQUIRE_VLLM=1" in output, output


@pytest.mark.vllm
def test_the_real_one_loads(vllm: object) -> None:
    assert hasattr(vllm, "LLMEngine")


def test_a_scheduler_without_the_attributes_is_refused() -> None:
    class Old:
        scheduler_config = object()
        running = waiting = ()

    with pytest.raises(VllmUnavailableError, match=r"Old has no max_num_scheduled_tokens.*0\.32"):
        check_scheduler(Old())
