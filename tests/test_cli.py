"""The command line: outputs, exit codes, and one clear line for wrong input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from synergy_gym.cli import main
from synergy_gym.policies.registry import engine_policies, router_policies
from synergy_gym.scenario import FOLDER, list_scenarios

VLLM_TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:00:00.0000000,100,5
2023-11-16 18:00:01.5000000,300,20
2023-11-16 18:00:04.0000000,50,1
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(VLLM_TRACE, encoding="utf-8")
    return path


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process: (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error line of a command that must fail with exit code 2 and print nothing else."""
    code, out, err = cli(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_run_prints_and_writes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path
) -> None:
    out_dir = tmp_path / "out"
    arguments = ("--engine-policy", "vllm-v1", "--trace", trace, "--format", "azure")
    code, out, err = cli(capsys, "run", "chat-h100", *arguments, "--out", out_dir)
    assert code == 0
    assert "vllm-v1" in out
    assert "round-robin" in out
    assert "simulated" in out
    assert "written to" in err
    rows = list(csv.DictReader((out_dir / "requests.csv").read_text().splitlines()))
    assert [row["prompt_tokens"] for row in rows] == ["100", "300", "50"]
    summary = json.loads((out_dir / "summary.json").read_text())
    assert summary["offered"] == 3
    manifest = json.loads((out_dir / "manifest.json").read_text())
    assert manifest["engine_policy"]["policy"] == "vllm-v1"
    assert manifest["command"].startswith("synergy-gym")


def test_run_without_a_policy_plays_every_baseline(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path
) -> None:
    for scenario, names in (("chat-h100", engine_policies()), ("hetero-3", router_policies())):
        out_dir = tmp_path / scenario
        code, out, _ = cli(
            capsys, "run", scenario, "--trace", trace, "--format", "azure", "--out", out_dir
        )
        assert code == 0
        assert all(name in out for name in names)
        assert len(list(out_dir.glob("*/summary.json"))) == len(names)


def test_trace_options(capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path) -> None:
    base = ("run", "chat-h100", "--engine-policy", "vllm-v1", "--trace", trace, "--format", "azure")
    for options, offered in ((("--limit", 1), 1), (("--start", 1), 2), (("--end", 1), 1)):
        code, _, _ = cli(capsys, *base, *options, "--out", tmp_path)
        assert code == 0
        assert json.loads((tmp_path / "summary.json").read_text())["offered"] == offered
    cli(capsys, *base, "--rate-scale", 2, "--out", tmp_path)
    rows = list(csv.DictReader((tmp_path / "requests.csv").read_text().splitlines()))
    assert [float(row["arrival_s"]) for row in rows] == [0.0, 0.75, 2.0]


def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path
) -> None:
    assert "chat-h100" in refused(capsys, "run", "chat-h10")
    assert "sarathi-512" in refused(capsys, "run", "chat-h100", "--engine-policy", "sarathi-5l2")
    assert "round-robin" in refused(capsys, "run", "hetero-3", "--router-policy", "robin-round")
    assert "nothing to route" in refused(capsys, "run", "chat-h100", "--router-policy", "all")
    assert "--trace FILE" in refused(capsys, "run", "chat-h100", "--limit", 3)
    assert "--format" in refused(capsys, "run", "chat-h100", "--trace", trace)
    assert "load" in refused(capsys, "run", "chat-h100", "--engine-policy", "random", "--load", 0)
    assert "choose one of" in refused(capsys, "leaderboard", "--suite", "x", "--out", tmp_path)
    assert "--out" in refused(capsys, "leaderboard")
    assert "nonsense" in refused(capsys, "list", "nonsense")
    assert "no-such-command" in refused(capsys, "no-such-command")


def test_wrong_traces_are_one_line(capsys: pytest.CaptureFixture[str], trace: Path) -> None:
    base = ("run", "chat-h100", "--engine-policy", "vllm-v1", "--trace")
    assert "azure" in refused(capsys, *base, trace, "--format", "azur")
    assert "missing.csv" in refused(capsys, *base, "missing.csv", "--format", "azure")
    assert "--rate-scale" in refused(capsys, *base, trace, "--format", "azure", "--load", 2)
    empty = "widen" in refused(capsys, *base, trace, "--format", "azure", "--start", 100)
    assert empty
    trace.write_text(VLLM_TRACE.replace("300,20", "300,twenty"), encoding="utf-8")
    line = refused(capsys, *base, trace, "--format", "azure")
    assert "twenty" in line
    assert "3" in line


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "scenarios": list_scenarios(),
        "policies": [*engine_policies(), *router_policies()],
        "suites": ["quick", "engine", "router", "full"],
        "envs": ["SynergyGym/EngineBatching-v0", "SynergyGym/ClusterRouting-v0"],
        "traces": ["azure"],
    }
    for what, names in expected.items():
        code, out, _ = cli(capsys, "list", what)
        assert code == 0
        assert all(name in out for name in names), what


def test_calibrate_writes_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    shutil.copy(FOLDER / "smoke.toml", path)
    code, out, err = cli(capsys, "calibrate", path, "--write", "--seed", 1, "--tolerance", 0.2)
    assert code == 0, err
    assert out.startswith("rate_rps = ")
    assert out.splitlines()[0] in path.read_text(encoding="utf-8")
    assert "synergy-gym calibrate" in path.read_text(encoding="utf-8")


def test_module_entry_and_help() -> None:
    command = [sys.executable, "-m", "synergy_gym", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for name in ("run", "leaderboard", "list", "traces", "calibrate", "bench"):
        assert name in done.stdout


def test_a_failed_episode_is_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synergy_gym.evaluation.suites import SUITES, Part, Suite

    part = Part(
        "engine", ("chat-h100",), ("vllm-v1", "nobody"), ("round-robin",), (1.0,), 1, 4.0, 1.0
    )
    monkeypatch.setitem(SUITES, "broken", Suite("broken", "one policy is missing", (part,)))
    code, out, err = cli(capsys, "leaderboard", "--suite", "broken", "--out", tmp_path)
    assert code == 1
    assert "vllm-v1" in out
    assert "nobody" in err
    assert "1 episodes failed" in err


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "synergy_gym", "run", "no-such-scenario"]
    environment = {**os.environ, "SYNERGY_GYM_DEBUG": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
