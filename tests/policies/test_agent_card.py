"""Cards of agents, and the command that shows them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from synergy_gym.cli.app import main
from synergy_gym.policies import agent_file
from synergy_gym.policies.agent_card import card, read_card, summary
from synergy_gym.policies.agent_file import packaged_agents, save_agent
from tests.policies.agents import changed, engine_agent, scorer_agent


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(arguments)
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def test_an_agent_describes_itself(rng: np.random.Generator) -> None:
    agent = changed(engine_agent(rng), training={"command": "train a|b", "seeds": [1, 2]})
    text = card(agent)
    assert text.startswith("# engine-test\n\nTrained engine agent, network `mlp`.\n")
    for line in (
        "| observed numbers | 17 |",
        "| grid: budgets | 0, 64, 128, 256, 512, 1024, 2048, 4096, 8192 |",
        "| grid: caps | 0.03125, 0.0625, 0.125, 0.25, 1 |",
        r"| command | train a\|b |",
        "| seeds | 1, 2 |",
        f"| SHA-256 | {agent.digest()} |",
    ):
        assert line in text.splitlines()
    assert all(line.count(" | ") == 1 for line in text.splitlines() if line.startswith("| "))


def test_the_summary_names_the_algorithm_of_a_plan(rng: np.random.Generator) -> None:
    training = {"plan": {"algorithm": "ppo"}, "timesteps": 5000}
    told = summary(changed(scorer_agent(rng), training=training))
    assert told == "Trained router agent, network `scorer`, trained with ppo for 5,000 decisions."


def test_the_card_beside_the_file_comes_first(tmp_path: Path, rng: np.random.Generator) -> None:
    agent = engine_agent(rng)
    save_agent(tmp_path / "agent.npz", agent)
    assert read_card(tmp_path / "agent.npz") == card(agent)
    (tmp_path / "agent.md").write_text("# mine\n", encoding="utf-8")
    assert read_card(tmp_path / "agent.npz") == "# mine\n"


def test_the_command_shows_a_card(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rng: np.random.Generator
) -> None:
    save_agent(tmp_path / "a.npz", agent := engine_agent(rng))
    for name in (str(tmp_path / "a.npz"), f"agent:{tmp_path / 'a.npz'}"):
        assert run(capsys, "agent", name) == (0, card(agent), "")
    code, out, err = run(capsys, "agent", "nobody")
    assert (code, out) == (2, "")
    assert err.startswith("error: no agent 'nobody'; packaged: ")


def test_the_list_of_policies_has_the_agents(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(agent_file, "AGENTS", tmp_path)
    save_agent(tmp_path / "router-v9.npz", scorer_agent(rng))
    code, out, _ = run(capsys, "list", "policies")
    assert code == 0
    assert re.search(r"router +agent:router-v9 +pushed, router, scraped +Trained router agent", out)


@pytest.mark.parametrize("name", packaged_agents())
def test_a_packaged_card_says_how_it_was_made(name: str) -> None:
    text = read_card(name)
    assert re.search(r"`synergy-gym train .*`|experiments\.[\w.]+", text), "which command trains it"
    assert "simulated" in text
