"""Verification: an honest board passes, each kind of damage is named in one line."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from synergy_gym.cli.app import main
from synergy_gym.evaluation import leaderboard
from synergy_gym.evaluation.board.board import read_board
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.suites import SUITES
from synergy_gym.evaluation.decision_log import DecisionLogError, packed, unpacked
from synergy_gym.evaluation.jobs import COLUMNS, Job, run_job
from synergy_gym.evaluation.leaderboard import run_leaderboard
from synergy_gym.evaluation.replay import replayed_row
from synergy_gym.evaluation.timed import Charge
from synergy_gym.evaluation.verify import play as verify_play
from synergy_gym.evaluation.verify.boards import Options, boards_in, verify
from synergy_gym.evaluation.verify.fresh_seeds import FIRST_FRESH, fresh_seeds, predicted
from synergy_gym.evaluation.verify.play import sampled
from synergy_gym.policies.base import Policy
from synergy_gym.policies.engine.random_decisions import RandomDecisions

SHORT: dict[str, Any] = {"seeds": 2, "horizon_s": 6.0, "warmup_s": 1.0}
NAME = "tiny-verify"
TINY = Suite(
    NAME,
    "a few short episodes",
    (
        Part(
            "engine",
            ("chat-h100",),
            ("vllm-v1", "random"),
            ("round-robin",),
            loads=(1.0, 1.2),
            **SHORT,
        ),
        Part("router", ("hetero-3",), ("vllm-v1",), ("least-outstanding",), loads=(1.5,), **SHORT),
    ),
)
REPLAYED = Options(levels=("log",), sample=None)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, NAME, TINY)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board with all its decisions; no test writes into it."""
    folder = tmp_path_factory.mktemp("boards") / "board"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaderboard, "render_board", lambda board: None)  # plots are not checked
        run_leaderboard(TINY, folder, record="all")
    return folder


@pytest.fixture
def board(played: Path, tmp_path: Path) -> Path:
    """A copy of the board to damage."""
    return Path(shutil.copytree(played, tmp_path / "board"))


def test_an_honest_board_passes_every_level(played: Path) -> None:
    options = Options(("log", "policy", "fresh-seeds"), None, entropy=7)
    verdict = verify(played, options)
    assert verdict.problems == []
    assert [(c.level, c.played) for c in verdict.checks] == [
        ("log", 10),
        ("policy", 10),
        ("fresh-seeds", 15),  # five (pair, cell) of one competitor each, three seeds
    ]
    assert verdict.rows == 10


# --- damage -----------------------------------------------------------------------------------


def _edit_rows(board: Path, change: Callable[[list[dict[str, str]]], Any]) -> None:
    path = board / "results.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _edit_manifest(board: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = board / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _better(row: dict[str, str]) -> None:
    """One more request in time, with all figures that follow from it."""
    offered = int(row["offered"])
    met = round(float(row["slo_attainment"]) * offered)
    met += 1 if met < int(row["finished"]) else -1
    row["slo_attainment"] = f"{met / offered:.9g}"
    row["goodput_rps"] = f"{met / float(row['window_s']):.9g}"
    for name in ("e2e", "ttft", "tpot"):
        if row[f"{name}_attainment"]:
            share = max(float(row[f"{name}_attainment"]), met / offered)
            row[f"{name}_attainment"] = f"{share:.9g}"


def _edited_number(board: Path) -> None:
    _edit_rows(board, lambda rows: rows[0].update(slo_attainment="0.987654321"))


def _edited_consistently(board: Path) -> None:
    _edit_rows(board, lambda rows: _better(rows[0]))


def _edited_hash(board: Path) -> None:
    _edit_rows(board, lambda rows: rows[0].update(log_hash="0123456789abcdef"))


def _edited_latency(board: Path) -> None:
    _edit_rows(board, lambda rows: rows[0].update(e2e_p50_s=rows[0]["e2e_p99_s"] + "9"))


def _other_seed(board: Path) -> None:
    _edit_rows(board, lambda rows: rows[0].update(seed="7"))


def _missing_scenario(board: Path) -> None:
    _edit_rows(board, lambda rows: rows.__delitem__(slice(8, 10)))


def _twice(board: Path) -> None:
    _edit_rows(board, lambda rows: rows.insert(0, dict(rows[0])))


def _other_scenario_hash(board: Path) -> None:
    _edit_rows(board, lambda rows: rows[0].update(scenario_hash="0" * 64))


def _unknown_version(board: Path) -> None:
    _edit_manifest(board, lambda m: m.update(environments=["SynergyGym/EngineBatching-v9"]))


def _no_environment(board: Path) -> None:
    _edit_manifest(board, lambda m: m.update(environments=[]))


def _other_season(board: Path) -> None:
    _edit_manifest(board, lambda m: m.update(season=1))


def _no_season(board: Path) -> None:
    """Boards without one are older than seasons, hence of the first."""
    _edit_manifest(board, lambda m: m.pop("season"))


def _unknown_season(board: Path) -> None:
    _edit_manifest(board, lambda m: m.update(season=9))


def _season_in_the_name(board: Path) -> None:
    _edit_manifest(board, lambda m: m.update(suite="season1/quick"))


def _no_policy_version(board: Path) -> None:
    _edit_manifest(board, lambda m: m["policies"]["engine"]["vllm-v1"].pop("version"))


def _other_policy_version(board: Path) -> None:
    _edit_manifest(board, lambda m: m["policies"]["engine"]["vllm-v1"].update(version=9))


def _policy_of_a_file(board: Path) -> None:
    evil = {"policy": "evil.py:Evil", "sha256": "0" * 64, "version": 1, "information": []}
    _edit_manifest(board, lambda m: m["policies"]["engine"].update({"vllm-v1": evil}))


def _unknown_suite(board: Path) -> None:
    _edit_manifest(board, lambda m: m.update(suite="mine"))


def _own_parts(board: Path) -> None:
    _edit_manifest(board, lambda m: m["parts"][0].update(scenarios=["../../etc/passwd"]))


def _truncated_rows(board: Path) -> None:
    path = board / "results.csv"
    path.write_bytes(path.read_bytes()[:-100])


def _lost_cell(board: Path) -> None:
    path = board / "results.csv"
    path.write_bytes(path.read_bytes().rpartition(b",")[0] + b"\n")


def _truncated_manifest(board: Path) -> None:
    path = board / "manifest.json"
    path.write_bytes(path.read_bytes()[:-40])


def _no_timings(board: Path) -> None:
    (board / "timings.csv").unlink()


def _decisions(board: Path) -> list[Path]:
    return sorted((board / "decisions").iterdir())


def _sign(board: Path, path: Path) -> None:
    """Put the hash of a changed file of decisions into the manifest."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _edit_manifest(board, lambda m: m["decisions"]["files"][path.name].update(sha256=digest))


def _truncated_decisions(board: Path) -> None:
    path = _decisions(board)[0]
    path.write_bytes(path.read_bytes()[:-9])


def _truncated_and_signed_decisions(board: Path) -> None:
    _truncated_decisions(board)
    _sign(board, _decisions(board)[0])


def _swapped_decisions(board: Path) -> None:
    one, other = _decisions(board)[:2]
    one.write_bytes(other.read_bytes())
    _sign(board, one)


def _no_decisions(board: Path) -> None:
    _decisions(board)[0].unlink()


def _extra_decisions(board: Path) -> None:
    (board / "decisions" / "notes.txt").write_text("mine")


def _path_trick(board: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        files = manifest["decisions"]["files"]
        files["../../secret.dec"] = files.pop(next(iter(files)))

    _edit_manifest(board, change)


def _link(board: Path) -> None:
    path = _decisions(board)[0]
    target = board.parent / "elsewhere.dec"
    path.rename(target)
    path.symlink_to(target)


def _linked_folder(board: Path) -> None:
    (board / "decisions").rename(board.parent / "elsewhere")
    (board / "decisions").symlink_to(board.parent / "elsewhere")


def _reordered(board: Path) -> None:
    _edit_rows(board, lambda rows: rows.reverse())


def _negative(board: Path) -> None:
    _edit_rows(board, lambda rows: rows[0].update(rejected="-1", failed="1"))


def _other_dynamics(board: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["dynamics"]["metrics"] = manifest["dynamics_sha256"] = "0" * 64

    _edit_manifest(board, change)


def _other_policy_hash(board: Path) -> None:
    _edit_manifest(board, lambda m: m["policies"]["engine"]["random"].update(sha256="0" * 64))


DAMAGE: dict[Callable[[Path], None], str] = {
    _edited_number: "slo_attainment is 0.987654321, no whole number of",
    _edited_consistently: "the recorded decisions give",
    _edited_hash: "log_hash is 0123456789abcdef, the recorded decisions give",
    _edited_latency: "less than e2e_p50_s",
    _other_seed: r"seed 7 is none of the suite's \(",
    _missing_scenario: "no row of hetero-3 load 1.5 seed",
    _twice: "is there twice",
    _other_scenario_hash: "scenario_hash is '0000",
    _unknown_version: r"environments is \['SynergyGym/EngineBatching-v9'\], this version has",
    _no_environment: r"environments is \[\], this version has",
    _other_season: "suite: unknown suite 'tiny-verify'; choose one of season1/quick, ",
    _no_season: "suite: unknown suite 'tiny-verify'; choose one of season1/quick, ",
    _unknown_season: "season is 9, this version has 1, 2; use the version",
    _season_in_the_name: "parts: suite 'season1/quick' of this version has no such part",
    _no_policy_version: "vllm-v1 is version None, installed is 1",
    _other_policy_version: "vllm-v1 is version 9, installed is 1",
    _other_dynamics: r"dynamics_sha256 is '0{64}', here '\w{64}' \(differing: metrics\); verify",
    _other_policy_hash: "random: sha256 is '0{64}', here '",
    _policy_of_a_file: "'vllm-v1' is no registered policy",
    _unknown_suite: "unknown suite 'mine'",
    _own_parts: "no such part.*passwd",
    _truncated_rows: "results.csv: ends within a line",
    _lost_cell: r"results.csv:11: \d+ cells instead of",
    _truncated_manifest: "no JSON",
    _no_timings: "timings.csv: missing",
    _truncated_decisions: "SHA-256 is not the manifest's",
    _truncated_and_signed_decisions: r"\.dec: (damaged|truncated)",
    _swapped_decisions: "holds the decisions of",
    _no_decisions: r"\.dec: missing \(",
    _extra_decisions: "notes.txt: the manifest does not name it",
    _path_trick: "'../../secret.dec' is no name of such a file",
    _link: "is a symbolic link",
    _linked_folder: "decisions: is a symbolic link",
    _reordered: "is not as this program writes it",
    _negative: "rejected is -1, a negative count",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_named_with_place_and_cure(board: Path, damage: Callable[[Path], None]) -> None:
    damage(board)
    problems = verify(board, REPLAYED).problems
    matching = [text for text in problems if _matches(DAMAGE[damage], text)]
    assert matching, problems
    for text in problems:
        assert text.startswith((str(board), "... and")), text
        assert "\n" not in text
        assert len(text.split("; ")) > 1 or ": " in text


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def test_nothing_is_played_while_the_files_are_wrong(board: Path) -> None:
    _edited_number(board)
    assert verify(board, REPLAYED).checks == []


def test_a_board_of_another_simulator_fails(played: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(job: Job) -> Any:
        return run_job(Job(*job.key, job.horizon_s, job.warmup_s, charge=Charge(engine_s=1e-6)))

    monkeypatch.setattr(verify_play, "run_job", slower)
    problems = verify(played, Options(("policy",), 2)).problems
    assert any("log_hash is" in text and "the policies now give" in text for text in problems)


def test_elsewhere_scores_are_compared_within_a_tolerance(board: Path) -> None:
    _edit_manifest(board, lambda m: m.update(simd="VSX9"))
    near = verify(board, Options(("policy",), 2))
    assert near.problems == []
    assert "simd VSX9 there" in near.checks[0].notes[0]
    _edit_rows(board, lambda rows: [_far(row) for row in rows])
    (checked,) = verify(board, Options(("policy",), 2)).checks
    assert any("away; play it again" in text for text in checked.problems)
    assert any("in the mean of 2 rows" in text for text in checked.problems)


ALL_LEVELS = Options(("log", "policy", "fresh-seeds"), None, entropy=7)


def test_policies_that_have_changed_since_are_not_asked(
    played: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomDecisions, "version", 2)

    def refuse(self: RandomDecisions, engine: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(RandomDecisions, "decide", refuse)
    verdict = verify(played, ALL_LEVELS)
    assert verdict.problems == []
    assert [(c.level, c.played) for c in verdict.checks] == [
        ("log", 10),  # recorded decisions are what they were
        ("policy", 6),
        ("fresh-seeds", 9),
    ]
    note = "4 rows are not decided again, their policies have changed: random (version 1, now 2)"
    assert all(note in checked.notes for checked in verdict.checks)


def test_a_board_whose_policies_have_all_changed(
    played: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "version", 2)
    verdict = verify(played, ALL_LEVELS)
    assert verdict.problems == []
    assert [checked.played for checked in verdict.checks] == [10, 0, 0]
    assert "10 rows are not decided again" in verdict.checks[1].notes[-1]


def test_a_board_names_environments_that_exist(board: Path) -> None:
    """Later versions of an environment do not make a board wrong."""
    _edit_manifest(board, lambda m: m.update(environments=["SynergyGym/EngineBatching-v0"]))
    assert verify(board, REPLAYED).problems == []


def _far(row: dict[str, str]) -> None:
    """A tenth of the requests fewer in time, figures in keeping."""
    offered = int(row["offered"])
    met = max(round(float(row["slo_attainment"]) * offered) - offered // 10 - 1, 0)
    row["slo_attainment"] = f"{met / offered:.9g}"
    row["goodput_rps"] = f"{met / float(row['window_s']):.9g}"


def test_the_command(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["verify", str(board), "--sample", "2"])
    assert done.value.code == 0
    assert "10 rows, files, 2 log: ok" in capsys.readouterr().out
    _edited_hash(board)
    with pytest.raises(SystemExit) as done:
        main(["verify", str(board.parent), "--log", "--all"])
    assert done.value.code == 1
    told = capsys.readouterr().err
    assert "error: " in told
    assert "1 problems in 1 of 1 boards" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--all", "--sample", "3"], "exclude each other"), (["--sample", "0"], "--sample")],
)
def test_wrong_options(
    board: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["verify", str(board), *arguments])
    assert done.value.code == 2
    assert message in capsys.readouterr().err


def test_no_board(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no board here"):
        boards_in(tmp_path)
    assert verify(tmp_path / "nowhere", REPLAYED).problems == [
        f"{tmp_path / 'nowhere'}: no folder; give the folder of a board"
    ]


def test_samples_take_competitors_in_turn(played: Path) -> None:
    rows = read_board(played).rows
    three = sampled(rows, 3)
    assert len({(row["engine_policy"], row["router_policy"]) for row in three}) == 3
    assert sampled(rows, 3) == three
    assert sampled(rows, None) == rows
    changed = [{**row, "log_hash": row["log_hash"][::-1]} for row in rows]
    draws = [[rows.index(row) for row in sampled(rows, n)] for n in range(1, 9)]
    others = [[changed.index(row) for row in sampled(changed, n)] for n in range(1, 9)]
    assert draws != others


# --- decisions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "engine", "router", "charge"),
    [
        ("chat-h100", "lens-ref", "round-robin", None),  # orders and caps
        ("chat-h100", "earliest-deadline", "round-robin", None),  # a rule
        ("hetero-3", "lens-plus", "prism-plus", None),
        ("hetero-3", "random", "least-outstanding", Charge(1e-3, 2e-3)),
    ],
)
def test_recorded_decisions_give_the_row_again(
    scenario: str, engine: str, router: str, charge: Charge | None, seed: int
) -> None:
    job = Job("test", scenario, 1.5, seed, engine, router, 6.0, 1.0, record=True, charge=charge)
    result = run_job(job)
    assert result.decisions is not None
    log = unpacked(result.decisions, job.key, "here")
    assert packed(log, job.key) == result.decisions
    again = replayed_row(job, log)
    assert {name: repr(value) for name, value in again.items()} == {
        name: repr(result.row[name]) for name in again
    }
    plain = run_job(Job("test", scenario, 1.5, seed, engine, router, 6.0, 1.0, charge=charge))
    assert plain.row["log_hash"] == result.row["log_hash"]
    assert plain.decisions is None


def test_damaged_decisions_are_refused(rng: np.random.Generator) -> None:
    job = Job("test", "chat-h100", 1.0, 5, "random", "round-robin", 4.0, 1.0, record=True)
    data = run_job(job).decisions
    assert data is not None
    for size in (0, 1, 12, len(data) // 2, len(data) - 1):
        with pytest.raises(DecisionLogError, match="here"):
            unpacked(data[:size], job.key, "here")
    with pytest.raises(DecisionLogError, match="longer than one file"):
        unpacked(data + b"x", job.key, "here")
    for _ in range(30):  # xz has its own checksum, so that a flipped byte cannot pass
        at = int(rng.integers(len(data)))
        broken = data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]
        with pytest.raises(DecisionLogError, match="here"):
            unpacked(broken, job.key, "here")


def test_decisions_that_end_too_soon_or_too_late() -> None:
    job = Job("test", "hetero-3", 1.5, 5, "random", "random", 4.0, 1.0, record=True)
    data = run_job(job).decisions
    assert data is not None
    log = unpacked(data, job.key, "here")
    log.routes.append(0)
    with pytest.raises(DecisionLogError, match="1 decisions are left"):
        replayed_row(job, log)
    del log.routes[-3:]
    with pytest.raises(DecisionLogError, match="router's choices end before"):
        replayed_row(job, log)
    log.routes[0] = 99
    with pytest.raises(DecisionLogError, match="engine 99 does not exist"):
        replayed_row(job, log)
    log.engines.pop()
    with pytest.raises(DecisionLogError, match="decisions of 2 engines, but hetero-3 has 3"):
        replayed_row(job, log)


# --- fresh seeds ------------------------------------------------------------------------------


def test_fresh_seeds_are_outside_of_every_split() -> None:
    seeds = fresh_seeds(1000, 1)
    assert len(set(seeds)) == 1000
    assert seeds == fresh_seeds(1000, 1)
    assert set(seeds).isdisjoint(fresh_seeds(1000, 2))
    assert min(seeds) >= FIRST_FRESH


def test_the_interval_is_students(rng: np.random.Generator) -> None:
    """A mean lies inside exactly when the t test of equal means does not reject."""
    for _ in range(50):
        n, m = int(rng.integers(2, 12)), int(rng.integers(1, 6))
        old, new = rng.normal(0.8, 0.1, n), rng.normal(0.8 + rng.normal(0, 0.2), 0.1, m)
        alarm = 0.01
        found = predicted(old, new, 0.0, alarm)
        p = float(stats.ttest_ind(old, new).pvalue)
        assert found.holds == (p >= alarm)
        assert found.low + found.high == pytest.approx(2 * old.mean())


def test_a_policy_that_knows_its_seeds_is_found() -> None:
    known, fresh = np.full(10, 0.99), np.array([0.7, 0.72, 0.69])
    assert not predicted(known, fresh, 1 / 500, 1e-5).holds
    assert predicted(known, np.full(3, 0.99), 1 / 500, 1e-5).holds
    with pytest.raises(ValueError, match="at least three"):
        predicted(known[:1], fresh[:1], 0.0, 1e-4)
