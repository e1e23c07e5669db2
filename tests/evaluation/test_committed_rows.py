"""The committed rows are what this version of the simulator and of the policies gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synergy_gym.evaluation.verify.boards import BoardVerdict, Options, verify
from synergy_gym.evaluation.verify.versions import (
    RESULTS_CHANGED,
    VERSIONS_FILE,
    Versions,
    played_versions,
    renew,
    version_problems,
)

BOARDS = Path(__file__).resolve().parents[2] / "experiments" / "leaderboard"
QUICK = BOARDS / "season1" / "quick"
FEW = 12


def _problems(verdict: BoardVerdict) -> str:
    return "\n".join([RESULTS_CHANGED, *verdict.problems]) if verdict.problems else ""


def test_recorded_decisions_give_the_committed_rows() -> None:
    verdict = verify(QUICK, Options(("log",), FEW))
    assert not verdict.problems, _problems(verdict)
    assert [checked.played for checked in verdict.checks] == [FEW]


def test_policies_decide_as_the_committed_rows_say() -> None:
    verdict = verify(QUICK, Options(("policy",), 4))
    assert not verdict.problems, _problems(verdict)
    assert [checked.played for checked in verdict.checks] == [4]


@pytest.fixture(scope="module")
def played() -> Versions:
    return played_versions()


def test_an_environment_version_stands_for_its_results(played: Versions) -> None:
    known = json.loads((BOARDS / VERSIONS_FILE).read_text())
    problems = list(version_problems(known, played))
    assert not problems, "\n".join(problems)


def test_other_results_under_an_old_version_are_an_error(played: Versions, tmp_path: Path) -> None:
    path = tmp_path / VERSIONS_FILE
    first = renew(path)
    assert len(first) == len(played)
    assert renew(path) == []
    record = json.loads(path.read_text())
    name, episode = "SynergyGym/CrossLayer-v0", next(iter(record["SynergyGym/CrossLayer-v0"]))
    record[name][episode]["log_hash"] = "0" * 16
    path.write_text(json.dumps(record))
    (problem,) = version_problems(record, played)
    assert problem.startswith(f"{name}: {episode}: log hash is")
    assert problem.endswith(RESULTS_CHANGED)
    with pytest.raises(ValueError, match="results changed"):
        renew(path)
    assert json.loads(path.read_text()) == record  # not papered over
    record[name][episode]["scenario_hash"] = "other"  # the scenario itself is another one
    path.write_text(json.dumps(record))
    assert renew(path) == [
        f"{name}: {episode}: its scenario changed; run scripts/renew_versions.py"
    ]
    assert json.loads(path.read_text()) == played
