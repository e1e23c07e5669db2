"""`synergy-gym incidents`: cards on stdout and as files, and wrong input in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from synergy_gym.cli.app import main
from synergy_gym.evaluation.incidents.cards import CARDS_FILE, PAGE_FILE, read_cards
from synergy_gym.evaluation.verify.cards import card_problems

QUICK = ("--incident", "incident-same-replica", "--seeds", 1)


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process: (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as done:
        main(["incidents", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def test_one_policy_gets_its_card(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = cli(capsys, "--router-policy", "round-robin", *QUICK, "--out", tmp_path)
    assert code == 0
    assert "vllm-v1 + round-robin: 1 of 1 incidents passed (simulated)" in out
    assert "share of requests at the busiest engine, arrivals from 0 to 240 s: at most 0.5" in out
    (row,) = read_cards(tmp_path / CARDS_FILE)
    assert (row.router_policy, row.seed, row.met) == ("round-robin", 3000, True)
    assert list(card_problems(tmp_path, [])) == []
    assert "| round-robin | 1 | pass |" in (tmp_path / PAGE_FILE).read_text(encoding="utf-8")


def test_all_policies_of_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "--router-policy", "all", *QUICK)
    assert code == 0
    assert "Incidents of the router layer (simulated)" in " ".join(out.split())
    verdicts = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.strip()}
    assert verdicts["round-robin"] == "pass"
    assert verdicts["least-outstanding"] == "FAIL"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--incident", "incident-x"), "unknown incident 'incident-x'; choose one of incident-co"),
        (("--router-policy", "round-robbin"), "round-robbin"),
        (("--engine-policy", "vllm-v1", "--router-policy", "all"), "together name one pair"),
        (("--engine-policy", "vllm-v1", *QUICK), "no policy of the layer that is on trial"),
        (("--seeds", 0), "--seeds"),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], problem: str
) -> None:
    code, out, err = cli(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert problem in err


def test_a_failing_policy_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from synergy_gym.policies.router.round_robin import RoundRobin

    def route(self: RoundRobin, request: object, cluster: object) -> int:
        raise RuntimeError("no idea")

    monkeypatch.setattr(RoundRobin, "route", route)
    monkeypatch.setattr(RoundRobin, "rule", lambda self: None)
    code, out, err = cli(capsys, "--router-policy", "round-robin", *QUICK)
    assert (code, out) == (1, "")
    assert "no idea" in err
