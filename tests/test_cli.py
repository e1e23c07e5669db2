"""The command line: outputs, exit codes, and one clear line for wrong input."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from synergy_gym.cli.app import main
from synergy_gym.policies.registry import engine_policies, router_policies
from synergy_gym.scenario import list_scenarios
from synergy_gym.seasons import SEASON, season_files

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


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test runners set COLUMNS to their own terminal's; narrow tables wrap long names."""
    monkeypatch.setenv("COLUMNS", "200")


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


def test_run_with_another_clock(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base = ("run", "smoke", "--engine-policy", "vllm-v1", "--out", tmp_path)
    hashes = []
    for clock in ("measured", "saturation", "saturation-six"):
        code, out, _ = cli(capsys, *base, "--clock", clock)
        assert code == 0
        assert (f"@{clock}" in out) == (clock != "measured")
        hashes.append(json.loads((tmp_path / "summary.json").read_text())["log_hash"])
    assert len(set(hashes)) == 3
    assert "no clock 'wall'; choose one of measured" in refused(
        capsys, "run", "smoke", "--clock", "wall"
    )


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
        "suites": ["quick", "full"],
        "season1/scenarios": [f"season1/{name}" for name in list_scenarios(1)],
        "season1/suites": ["season1/quick", "season1/full", "season1/incidents"],
        "envs": ["SynergyGym/EngineBatching-v0", "SynergyGym/ClusterRouting-v1"],
        "traces": ["azure"],
    }
    for what, names in expected.items():
        code, out, _ = cli(capsys, "list", what)
        assert code == 0
        assert all(name in out for name in names), what


def test_calibrate_writes_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    shutil.copy(season_files(SEASON).scenarios / "smoke.toml", path)
    code, out, err = cli(capsys, "calibrate", path, "--write", "--seed", 1, "--tolerance", 0.2)
    assert code == 0, err
    assert out.startswith("rate_rps = ")
    assert out.splitlines()[0] in path.read_text(encoding="utf-8")
    assert "synergy-gym calibrate" in path.read_text(encoding="utf-8")


def test_the_archive_is_not_calibrated(capsys: pytest.CaptureFixture[str]) -> None:
    file = season_files(1).scenarios / "smoke.toml"
    before = file.read_bytes()
    for name in ("season1/smoke", file):
        assert "copy the file" in refused(capsys, "calibrate", name, "--write")
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["smoke", "--model", "tiny"], "SCENARIO finds .* --model measures a real engine; give"),
        (["smoke", "--clock", "cpu"], "SCENARIO finds .* --clock measures"),
        (["--write"], "--write needs a scenario"),
        ([], "--model is missing; give `calibrate SCENARIO` or"),
        (["--model", "tiny"], "--out is missing"),
        (["--model", "tiny", "--out", "x.csv"], "--out x.csv is no .toml file"),
        (["--model", "tiny", "--out", "x.toml", "--like", "live-cluster"], "has 2 engines; name"),
        (["--model", "tiny", "--out", "x.toml", "--engine-arg", "x"], "is no NAME=VALUE"),
    ],
)
def test_the_modes_of_calibrate_are_not_mixed(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    code, out, err = cli(capsys, "calibrate", *arguments)
    assert (code, out) == (2, "")
    assert re.search(expected, err), err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--repeats", "1"], "repeats=1; live against live needs at least 2"),
        (["--policies", "lens-ref"], "'lens-ref' caps the tokens of single requests"),
        (["--loads", "a"], "--loads a must be positive numbers"),
        (["--clock", "model"], "clock='model' compares nothing"),
    ],
)
def test_wrong_fidelity_plans_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    code, out, err = cli(capsys, "fidelity", "--out", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert re.search(expected, err), err


def test_module_entry_and_help() -> None:
    command = [sys.executable, "-m", "synergy_gym", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for name in ("run", "leaderboard", "list", "traces", "calibrate", "fidelity", "bench"):
        assert name in done.stdout


def test_a_failed_episode_is_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synergy_gym.evaluation.board.part import Part, Suite
    from synergy_gym.evaluation.board.suites import SUITES

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


OWN_POLICIES = """
from synergy_gym import RouterPolicy


class Last(RouterPolicy):
    def route(self, request, cluster):
        return len(cluster.in_flight) - 1


class Broken(RouterPolicy):
    def route(self, request, cluster):
        return {}["no such key"]


class Unready(RouterPolicy):
    def reset(self, rng, engines, slos):
        raise AttributeError("weights")
"""


def test_own_policies_of_the_working_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_cli_policies.py").write_text(OWN_POLICIES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run = ("run", "smoke-cluster", "--router-policy")
    for place in ("own_cli_policies", "own_cli_policies.py", "./own_cli_policies.py"):
        code, out, err = cli(capsys, *run, f"{place}:Last")
        assert code == 0, err
        assert f"{place}:Last" in out
    line = refused(capsys, *run, "own_cli_policies:Broken")
    assert "KeyError: 'no such key'" in line
    assert " s: raised" in line
    assert "in reset: raised AttributeError" in refused(capsys, *run, "own_cli_policies:Unready")
    assert "missing.py" in refused(capsys, *run, "missing.py:Last")


def test_a_policy_of_the_other_layer(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "run", "hetero-3", "--engine-policy", "least-kv")
    assert "policy of the routers" in line
    line = refused(capsys, "run", "hetero-3", "--router-policy", "vllm-v1")
    assert "policy of the engines" in line


@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_fit_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trace: Path, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = cli(capsys, "run", "hetero-3", "--trace", trace, "--format", "azure")
    assert code == 0
    assert max(map(len, out.splitlines())) <= width
    lines = out.splitlines()
    assert [sum(name in line.split() for line in lines) for name in router_policies()] == [1] * len(
        router_policies()
    )
    assert "SLO" in out
    assert "Left out to fit" in out


def test_best_attainment_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = cli(capsys, "run", "smoke", "--load", 1.2)
    shares = [float(line.split(" %")[0].split()[-1]) for line in out.splitlines() if " %" in line]
    assert len(shares) == len(engine_policies())
    assert shares == sorted(shares, reverse=True)


def test_every_mistake_of_a_scenario_file_has_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = (season_files(SEASON).scenarios / "smoke.toml").read_text(encoding="utf-8")
    text = text.replace("horizon_s", "horizon_ms", 1).replace("rate_rps = ", "rate_rps = -", 1)
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    code, out, err = cli(capsys, "run", path)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {path}: ") for line in lines)
    assert "use `horizon_s`" in err
    assert "rate_rps" in err


def test_a_wrong_output_folder_costs_no_episode(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    line = refused(capsys, "run", "smoke", "--out", blocked / "x")
    assert str(blocked) in line
    assert "check the path" in line


def test_traces_download_takes_a_hash(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, trace: Path
) -> None:
    download = ("traces", "download", "burstgpt-1", "--out", tmp_path)
    assert "--sha256" in refused(capsys, *download)
    shutil.copy(trace, tmp_path / "burstgpt-1.csv")
    digest = hashlib.sha256(trace.read_bytes()).hexdigest()
    code, out, err = cli(capsys, *download, "--sha256", digest)
    assert code == 0, err
    assert out.strip() == str(tmp_path / "burstgpt-1.csv")
    several = ("traces", "download", "all", "--sha256", digest)
    assert "one trace" in refused(capsys, *several)
