"""`synergy-gym train`: options become a plan, results go to stdout, mistakes name their cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from synergy_gym.cli import app as cli
from synergy_gym.cli import train as cli_train
from synergy_gym.policies.agent_file import load_agent

SHORT = "--timesteps 128 --num-envs 4 --eval-every 128 --eval-seeds 1 --eval-load 1.2 --hidden 8"
QUICK = f"--scenario smoke --baseline vllm-v1 {SHORT} --hyper n_steps=32 --hyper batch_size=64"


def run(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_training_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = "--axis budgets=0,512 --axis orders=queue,late-last --vary output_scale=0.8:1.2"
    code, out, err = run(f"train engine --out {tmp_path} {QUICK} {axes} --seed 3", capsys)
    assert code == 0, err
    assert "untrained" in out
    assert "vllm-v1" in out
    agent = load_agent(tmp_path / "agent.npz")
    assert agent.meta["grid"]["budgets"] == [0, 512]
    assert agent.meta["training"]["plan"]["vary"] == {"output_scale": [0.8, 1.2]}
    code, _, err = run(f"train engine --out {tmp_path} {QUICK}", capsys)
    assert code == 2
    assert "add --resume" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train gpu", "choose one of engine, router"),
        ("train engine --algo sarsa --scenario smoke", "unknown algorithm 'sarsa'"),
        ("train engine --scenario smoke-cluster", "needs one engine"),
        ("train engine --scenario smoke --hyper gamma", "write KEY=VALUE"),
        ("train engine --scenario smoke --axis width=3", "a grid has the axes"),
        ("train engine --scenario smoke --vary output_scale=x", "write KNOB=LOWEST:HIGHEST"),
        (
            "train router --scenario smoke-cluster --prior 0 --prior 0 --prior 0 --prior 0",
            "a prior needs an engine's grid",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(f"{arguments} --out {tmp_path / 'run'}", capsys)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_recorded_command_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["synergy-gym", "train", "engine", "--out", "here", "--seed", "1", "--resume"]
    monkeypatch.setattr("sys.argv", words)
    assert cli_train.training_command() == "synergy-gym train engine --seed 1"
