"""Submissions: one file or agent in, a folder that holds everything out, and its rank."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.cli.app import main
from synergy_gym.evaluation.board.board import read_board
from synergy_gym.evaluation.board.journal import PROGRESS_FILE
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.suites import SUITES
from synergy_gym.evaluation.jobs import Job, JobResult
from synergy_gym.evaluation.leaderboard import run_leaderboard
from synergy_gym.evaluation.submission import submit as submission_run
from synergy_gym.evaluation.submission.plan import PLAN_FILE, PlayEntries, prepare
from synergy_gym.evaluation.submission.policy import (
    adopt,
    file_sha256,
    is_registered,
    policy_file,
    spec_in,
)
from synergy_gym.evaluation.submission.source import source_problems
from synergy_gym.evaluation.submission.standing import (
    BOARDS,
    board_folder,
    committed_rows,
    rank_interval,
)
from synergy_gym.evaluation.submission.submit import RejectedError, Submitted, submit
from synergy_gym.evaluation.verify.boards import Options, verify
from synergy_gym.evaluation.verify.submission import CHECKS, submission_problems
from synergy_gym.policies.agent_file import AGENTS

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "experiments" / "leaderboard" / "submissions" / "template" / "my_router.py"
SHORT: dict[str, Any] = {"seeds": 2, "horizon_s": 4.0, "warmup_s": 1.0}
TINY = Suite(
    "tiny",
    "a few short episodes",
    (
        Part("engine", ("chat-h100",), ("vllm-v1",), ("round-robin",), loads=(1.0,), **SHORT),
        Part(
            "router",
            ("hetero-3",),
            ("vllm-v1",),
            ("round-robin", "least-outstanding", "latency-based"),
            loads=(1.0, 2.5),
            **SHORT,
        ),
        Part("joint", ("hetero-3",), pairs=(("vllm-v1", "round-robin"),), loads=(1.0,), **SHORT),
    ),
)
ENGINE = '''
"""An engine policy."""

from synergy_gym import BatchDecision, EnginePolicy


class SmallSteps(EnginePolicy):
    """Half of what the server would take.

    More text.
    """

    def decide(self, engine):
        return BatchDecision(token_budget=engine.spec.max_num_batched_tokens // 2)
'''


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Committed rows of the suite `tiny`, which exists while these tests run."""
    folder = tmp_path_factory.mktemp("boards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES, "tiny", TINY)
        short: dict[str, Any] = {"horizon_s": 20.0, "warmup_s": 5.0}
        conduct = import_module("synergy_gym.evaluation.conduct.examine")
        sieges = {layer: replace(siege, **short) for layer, siege in conduct.SIEGES.items()}
        patch.setattr(conduct, "SIEGES", sieges)
        run_leaderboard(TINY, board_folder(TINY, folder))
        yield folder


@pytest.fixture(scope="module")
def done(boards: Path, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """The template's policy, submitted."""
    folder = tmp_path_factory.mktemp("submitted") / "mine"
    return submit([f"{TEMPLATE}:MyRouter"], "router", "tiny", folder, boards=boards)


def problems(folder: Path) -> list[str]:
    board = read_board(folder)
    return submission_problems(folder, board.manifest, board.rows)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_has_at_most_twenty_lines() -> None:
    assert len(TEMPLATE.read_text().splitlines()) <= 20


def test_a_submission_holds_everything(done: Submitted) -> None:
    folder = done.submission.folder
    names = {path.name for path in folder.iterdir()}
    assert {"results.csv", "timings.csv", "manifest.json", "card.md", "policy"} <= names
    assert PLAN_FILE not in names
    assert (folder / "policy" / "my_router.py").read_bytes() == TEMPLATE.read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["submission"]["name"] == "my-router"
    assert manifest["policies"]["router"]["my-router"]["policy"] == "policy/my_router.py:MyRouter"
    assert set(manifest["submission"]["checks"]) == {f"router/{name}" for name in CHECKS}
    assert all(check["passed"] is True for check in manifest["submission"]["checks"].values())
    assert str(folder) not in (folder / "manifest.json").read_text()
    assert len(manifest["decisions"]["files"]) == 4
    assert problems(folder) == []


def test_it_plays_exactly_the_cells_of_its_track(done: Submitted) -> None:
    part = TINY.parts[1]
    rows = done.board.rows
    cells = {(row["scenario"], row["load"], row["seed"]) for row in rows}
    assert cells == set(part.cells())
    assert len(rows) == len(cells)
    assert {row["router_policy"] for row in rows} == {"my-router"}
    assert {row["engine_policy"] for row in rows} == {"vllm-v1"}


def test_it_is_ranked_among_the_committed_rows(done: Submitted) -> None:
    (standing,) = done.standings
    assert standing.of == 4
    assert sorted(standing.table["policy"]) == sorted(
        ["round-robin", "least-outstanding", "latency-based", "my-router"]
    )
    assert standing.low <= standing.score <= standing.high
    assert standing.gap == pytest.approx(standing.table.set_index("policy")["gap"]["my-router"])
    assert 1 <= standing.ranks[0] <= standing.ranks[1] <= 4
    assert f"rank {standing.rank} of 4" in str(standing)
    assert str(standing) in (done.submission.folder / "card.md").read_text()


def test_an_interrupted_submission_goes_on(
    boards: Path, done: Submitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "one_more.py", TEMPLATE.read_text().replace("MyRouter", "OneMore"))
    arguments: Any = ([f"{source}:OneMore"], "router", "tiny", tmp_path / "out")
    played: list[Job] = []
    play = PlayEntries.__call__

    def interrupted(self: PlayEntries, job: Job) -> JobResult:
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(job)
        return play(self, job)

    monkeypatch.setattr(PlayEntries, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(*arguments, boards=boards)
    assert (tmp_path / "out" / PLAN_FILE).is_file()

    def counted(self: PlayEntries, job: Job) -> JobResult:
        played.append(job)
        return play(self, job)

    monkeypatch.setattr(PlayEntries, "__call__", counted)
    again = submit(*arguments, boards=boards)
    assert len(played) == len(set(played)) == 4
    hashes = [[row["log_hash"] for row in board.rows] for board in (again.board, done.board)]
    assert hashes[0] == hashes[1], "the same decisions under another name"

    with pytest.raises(ValueError, match="holds a finished submission"):
        submit(*arguments, boards=boards)


def test_a_run_stopped_after_its_last_episode_plays_nothing_again(
    boards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "at_end.py", TEMPLATE.read_text().replace("MyRouter", "AtEnd"))
    arguments: Any = ([f"{source}:AtEnd"], "router", "tiny", tmp_path / "out")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(submission_run, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            submit(*arguments, boards=boards)
    monkeypatch.setattr(PlayEntries, "__call__", stop)
    assert len(submit(*arguments, boards=boards).board.rows) == 4


def test_rows_of_two_policies_do_not_mix(boards: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "changing.py", TEMPLATE.read_text().replace("MyRouter", "Changing"))
    prepare([f"{source}:Changing"], "router", "tiny", tmp_path / "out")
    write(tmp_path / "out" / PROGRESS_FILE, "")
    write(source, source.read_text() + "\n# another\n")
    with pytest.raises(ValueError, match="rows of two policies do not mix"):
        prepare([f"{source}:Changing"], "router", "tiny", tmp_path / "out")


def test_another_plan_is_refused(boards: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "planned.py", TEMPLATE.read_text().replace("MyRouter", "Planned"))
    prepare([f"{source}:Planned"], "router", "tiny", tmp_path / "out")
    write(tmp_path / "out" / PROGRESS_FILE, "")
    with pytest.raises(ValueError, match="was begun with suite tiny, not quick"):
        prepare([f"{source}:Planned"], "router", "quick", tmp_path / "out")
    write(tmp_path / "full" / "note.txt", "mine")
    with pytest.raises(ValueError, match="holds other files"):
        prepare([f"{source}:Planned"], "router", "tiny", tmp_path / "full")


def test_an_agent_is_submitted(boards: Path, tmp_path: Path) -> None:
    agent = tmp_path / "agent.npz"
    shutil.copyfile(AGENTS / "router-ppo-v1.npz", agent)
    found = submit(
        [f"agent:{agent}"], "router", "tiny", tmp_path / "out", boards=boards, name="mine"
    )
    entry = found.board.manifest["policies"]["router"]["mine"]
    assert entry["policy"] == "agent:policy/mine.npz"
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert problems(tmp_path / "out") == []


def test_a_pair_is_submitted(boards: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "steps.py", ENGINE)
    policies = [f"{source}:SmallSteps", "round-robin"]
    found = submit(policies, "joint", "tiny", tmp_path / "out", boards=boards)
    assert found.submission.name == "small-steps+round-robin"
    assert {row["engine_policy"] for row in found.board.rows} == {"small-steps"}
    assert found.standings[0].of == 2
    assert "Half of what the server would take." in (tmp_path / "out" / "card.md").read_text()
    assert problems(tmp_path / "out") == []


def test_a_module_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a_package" / "__init__.py", "")
    write(tmp_path / "a_package" / "steps.py", ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    entry = adopt("a_package.steps:SmallSteps", "engine", tmp_path / "out", "from-a-module")
    assert entry.spec == "policy/from_a_module.py:SmallSteps"
    with pytest.raises(ValueError, match=r"no Python file of module 'a_package\.nothing'"):
        adopt("a_package.nothing:SmallSteps", "engine", tmp_path / "out")


@pytest.mark.parametrize(
    ("policies", "track", "message"),
    [
        (["round-robin"], "router", "registered already"),
        (["absent.py:Policy"], "router", "no file absent.py"),
        ([f"{TEMPLATE}:Nothing"], "router", "cannot load 'Nothing'"),
        ([f"{TEMPLATE}:MyRouter"], "engine", "not a subclass of EnginePolicy"),
        ([f"{TEMPLATE}:MyRouter"], "joint", "takes 2 policies"),
        (["no-such-policy"], "router", "unknown router policy"),
    ],
)
def test_what_cannot_be_submitted(
    policies: list[str], track: Any, message: str, boards: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(policies, track, "tiny", tmp_path / "out", f"refused-{track}")
    assert not list(tmp_path.glob("out/*"))


def test_a_mended_policy_plays_in_the_same_folder(boards: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "mended.py", TEMPLATE.read_text().replace("MyRouter", "Mended"))
    for _ in range(2):
        found = prepare([f"{source}:Mended"], "router", "tiny", tmp_path / "out")
        text = found.folder / "policy" / "mended.py"
        assert text.read_text() == source.read_text()
        write(source, source.read_text() + "# mended\n")


def test_a_registered_name_is_taken(tmp_path: Path) -> None:
    for name in ("least-outstanding", "vllm-v1"):
        with pytest.raises(ValueError, match=f"'{name}' is a registered policy"):
            adopt(f"{TEMPLATE}:MyRouter", "router", tmp_path, name)
    with pytest.raises(ValueError, match="use up to 64 letters"):
        adopt(f"{TEMPLATE}:MyRouter", "router", tmp_path, "../mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os", "imports 'os'"),
        ("import torch", "export it as an agent"),
        ("from .neighbour import x", "submission is one file"),
        ("from synergy_gym.scenario import load_scenario", "imports 'scenario' of synergy_gym"),
        ("from synergy_gym import evaluate", "imports 'evaluate' of synergy_gym"),
        ("import synergy_gym", "imports 'synergy_gym' of synergy_gym"),
        ("def f():\n    import time", "line 2: imports 'time'"),
        ("open('seeds.txt')", "uses 'open'"),
        ("x = f.__globals__", "uses '__globals__'"),
        ("def f(:", "is no Python file"),
    ],
)
def test_what_a_file_may_not_contain(text: str, message: str, tmp_path: Path) -> None:
    (found,) = source_problems(write(tmp_path / "policy.py", text), "policy.py")
    assert message in found
    assert found.startswith("policy.py")


def test_what_a_file_may_contain(tmp_path: Path) -> None:
    text = (
        "import math\nimport numpy as np\nfrom synergy_gym import RouterPolicy, types\n"
        "from synergy_gym.policies.pacing import due\nfrom numba import njit\n"
        "if __name__ == '__main__':\n    from synergy_gym import rank\n    rank('router')\n"
    )
    assert source_problems(write(tmp_path / "policy.py", text), "policy.py") == []


def test_a_policy_that_sees_the_future_is_rejected(boards: Path, tmp_path: Path) -> None:
    text = (
        "from synergy_gym import RouterPolicy\n\n\nclass Counts(RouterPolicy):\n"
        '    """Decides by how often any of its copies was asked, as a table of seeds would."""\n\n'
        "    asked = []\n\n    def route(self, request, cluster):\n"
        "        self.asked.append(1)\n        return len(self.asked) // 7 % len(cluster.engines)\n"
    )
    source = write(tmp_path / "counts.py", text)
    with pytest.raises(RejectedError, match=r"counts is rejected: [\w-]+: FAILED"):
        submit([f"{source}:Counts"], "router", "tiny", tmp_path / "out", boards=boards)
    assert not (tmp_path / "out" / "results.csv").exists()


def test_boards_of_other_worlds_are_refused(boards: Path, tmp_path: Path) -> None:
    home = board_folder(TINY, tmp_path)
    shutil.copytree(board_folder(TINY, boards), home)
    path = home / "results.csv"
    digest = next(r for r in read_board(home).rows if r["scenario"] == "hetero-3")
    write(path, edited(path.read_text(), digest["scenario_hash"], "0" * 64))
    with pytest.raises(ValueError, match="another scenario 'hetero-3'"):
        committed_rows("tiny", "router", tmp_path)
    with pytest.raises(ValueError, match="season 2 has no committed rows of suite 'tiny'"):
        committed_rows("tiny", "router", tmp_path / "nowhere")
    shutil.copytree(BOARDS / "season1" / "quick", tmp_path / "season1" / "quick")
    with pytest.raises(ValueError, match=r"'quick' in .*; choose --suite season1/quick, or pass"):
        committed_rows("quick", "router", tmp_path)
    with pytest.raises(ValueError, match="choose --suite season1/quick"):
        submit([f"{TEMPLATE}:MyRouter"], "router", "quick", tmp_path / "out", boards=tmp_path)
    assert not (tmp_path / "out").exists()
    rows = committed_rows("season1/quick", "router", tmp_path)
    assert {row["suite"] for row in rows} == {"quick"}


def test_accepted_submissions_are_rivals(boards: Path, done: Submitted, tmp_path: Path) -> None:
    home = board_folder(TINY, tmp_path)
    shutil.copytree(board_folder(TINY, boards), home)
    shutil.copytree(done.submission.folder, home.parent / "submissions" / "my-router")
    names = {row["router_policy"] for row in committed_rows("tiny", "router", tmp_path)}
    assert "my-router" in names
    rows = committed_rows("tiny", "router", tmp_path, without="my-router")
    assert "my-router" not in {row["router_policy"] for row in rows}
    assert "my-router" not in {
        row["router_policy"] for row in committed_rows("tiny", "joint", tmp_path)
    }


def test_rank_interval() -> None:
    clear = {"a": [[0.9], [0.8]], "b": [[0.5], [0.6]], "c": [[0.1], [0.2]]}
    assert [ranks(clear, name) for name in clear] == [(1, 1), (2, 2), (3, 3)]
    unclear = {"a": [[0.9], [0.1], [0.5]], "b": [[0.5], [0.5], [0.5]]}
    assert ranks(unclear, "b") == (1, 2)
    equal = {"a": [[0.5], [0.7]], "b": [[0.5], [0.7]]}
    assert ranks(equal, "a") == ranks(equal, "b") == (1, 1)


def ranks(scores: dict[str, list[list[float]]], policy: str) -> tuple[int, int]:
    return rank_interval({name: np.array(values) for name, values in scores.items()}, policy)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../policy/my_router.py", "no file of the submission's own folder"),
        ("policy/../card.md", "no file of the submission's own folder"),
        ("policy/..", "no file of the submission's own folder"),
        ("/etc/hostname", "no file of the submission's own folder"),
        ("policy//my_router.py", "no file of the submission's own folder"),
        ("policy\\my_router.py", "no file of the submission's own folder"),
        ("policy/link.py", "is a symbolic link"),
        ("policy/absent.py", "is missing"),
    ],
)
def test_a_path_stays_in_the_folder(path: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "policy" / "my_router.py", "")
    (tmp_path / "policy" / "link.py").symlink_to(TEMPLATE)
    with pytest.raises(ValueError, match=message):
        policy_file(tmp_path, path)
    assert spec_in(tmp_path, "policy/my_router.py:A").endswith("/policy/my_router.py:A")


def test_registered_specifications() -> None:
    assert is_registered("router", "least-outstanding")
    assert is_registered("engine", "sarathi-512:chunk_tokens=256")
    assert is_registered("engine", "agent:engine-ppo-v1")
    assert not is_registered("engine", "agent:router-ppo-v1")
    assert not is_registered("router", "policy/my_router.py:MyRouter")
    assert not is_registered("router", "os:system")


def edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


Manifest = dict[str, Any]


def rename(manifest: Manifest) -> None:
    manifest["submission"]["policies"]["router"] = "least-outstanding"
    manifest["policies"]["router"]["least-outstanding"] = manifest["policies"]["router"].pop(
        "my-router"
    )


def outside(manifest: Manifest) -> None:
    manifest["policies"]["router"]["my-router"]["policy"] = "policy/../../evil.py:MyRouter"


def by_module(manifest: Manifest) -> None:
    manifest["policies"]["router"]["my-router"]["policy"] = "os:system"


def fewer_seeds(manifest: Manifest) -> None:
    manifest["parts"][0]["seeds"] = 1


def other_suite(manifest: Manifest) -> None:
    manifest["suite"] = "enormous"


def failed_check(manifest: Manifest) -> None:
    manifest["submission"]["checks"]["router/two-futures"]["passed"] = False


def no_check(manifest: Manifest) -> None:
    manifest["submission"]["checks"] = {}


def no_section(manifest: Manifest) -> None:
    manifest["submission"] = ["my-router"]


def other_track(manifest: Manifest) -> None:
    manifest["submission"]["track"] = "engine"


def file_outside(manifest: Manifest) -> None:
    manifest["submission"]["files"]["../../.bashrc"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "'least-outstanding' is a registered policy, not this one"),
        (outside, "'policy/../../evil.py' is no file of the submission's own folder"),
        (by_module, "'os' is no file of the submission's own folder"),
        (fewer_seeds, "parts[0].seeds is 1; suite 'tiny' plays 2"),
        (other_suite, "unknown suite 'enormous'"),
        (failed_check, "check 'router/two-futures' failed"),
        (no_check, "check 'router/two-futures' is missing"),
        (no_section, "submission is ['my-router']"),
        (other_track, "the engine track has no policies of ['router']"),
        (file_outside, "'../../.bashrc' is no file of the submission's own folder"),
    ],
)
def test_a_bad_manifest(change: Any, message: str, done: Submitted, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(done.submission.folder, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    write(path, json.dumps(manifest))
    found = problems(folder)
    assert any(message in line for line in found), found
    assert all(str(folder) in line for line in found)


def change_policy(folder: Path) -> None:
    path = folder / "policy" / "my_router.py"
    write(path, path.read_text() + "\nimport os\n")


def drop_policy(folder: Path) -> None:
    (folder / "policy" / "my_router.py").unlink()


def link_policy(folder: Path) -> None:
    drop_policy(folder)
    (folder / "policy" / "my_router.py").symlink_to(TEMPLATE)


def add_file(folder: Path) -> None:
    write(folder / "policy" / "more.py", "")


def change_card(folder: Path) -> None:
    path = folder / "card.md"
    write(path, path.read_text().replace("| hetero-3 | 1, 2.5 | 2 |", "| hetero-3 | 1, 2.5 | 9 |"))


def no_facts(folder: Path) -> None:
    write(folder / "card.md", "# my-router\n")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (change_policy, ["my_router.py: SHA-256 is not the manifest's", "imports 'os'"]),
        (drop_policy, ["policy/my_router.py is missing"]),
        (link_policy, ["policy/my_router.py is a symbolic link"]),
        (add_file, ["more.py: is not in the manifest; remove it"]),
        (change_card, ["card.md: says '| hetero-3 | 1, 2.5 | 9"]),
        (no_facts, ["card.md: has not one block of facts"]),
    ],
)
def test_a_bad_folder(change: Any, messages: list[str], done: Submitted, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(done.submission.folder, folder)
    change(folder)
    found = problems(folder)
    for message in messages:
        assert any(message in line for line in found), found


def test_prose_of_a_card_is_free(done: Submitted, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(done.submission.folder, folder)
    card = (folder / "card.md").read_text()
    write(folder / "card.md", "An introduction.\n\n" + card + "\nBy somebody.\n")
    assert problems(folder) == []


def test_the_command(
    boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "typed.py", TEMPLATE.read_text().replace("MyRouter", "Typed"))
    common = ["submit", "--track", "router", "--suite", "tiny", "--boards", str(boards)]
    with pytest.raises(SystemExit) as end:
        main([*common, "--policy", "typed.py:Typed", "--out", "mine"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    assert "typed: rank " in out
    assert "router/two-futures: passed" in out
    with pytest.raises(SystemExit) as end:
        main([*common, "--policy", "round-robin", "--out", "other"])
    assert end.value.code == 2
    assert "registered already" in capsys.readouterr().err


def test_reading_a_submission_runs_none_of_its_code(done: Submitted, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(done.submission.folder, folder)
    marker = tmp_path / "ran"
    path = folder / "policy" / "my_router.py"
    write(path, f"from pathlib import Path\nPath({str(marker)!r}).touch()\n" + path.read_text())
    code = (
        "from pathlib import Path; import dataclasses\n"
        "from synergy_gym.evaluation.board.board import read_board\n"
        "from synergy_gym.evaluation.verify.submission import CHECKS, submission_problems\n"
        f"board = read_board(Path({str(folder)!r}))\n"
        "print(submission_problems(board.folder, board.manifest, board.rows))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert "imports 'pathlib'" in result.stdout
    assert not marker.exists()


# -- what `synergy-gym verify` says ----------------------------------------------------


def found_by_verify(folder: Path) -> list[str]:
    return verify(folder, Options(("log",), None)).problems


def decided_again(folder: Path) -> list[str]:
    """Problems of the policy's own code, run in new processes, which know no other copy of it."""
    return verify(folder, Options(("policy",), 2, processes=2, run_code=True)).problems


def in_manifest(change: Any) -> Any:
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        write(path, json.dumps(manifest))

    return apply


def in_row(column: str, change: Any) -> Any:
    """Change one cell of the first row of results.csv."""

    def apply(folder: Path) -> None:
        path = folder / "results.csv"
        header, first, *rest = path.read_text().split("\n")
        cells = first.split(",")
        place = header.split(",").index(column)
        cells[place] = change(cells[place])
        write(path, "\n".join([header, ",".join(cells), *rest]))

    return apply


def without_load(folder: Path) -> None:
    for name in ("results.csv", "timings.csv"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        write(folder / name, "".join(line for line in lines if ",2.5," not in line))


def twice(folder: Path) -> None:
    path = folder / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    write(path, "".join([*lines, lines[-1]]))


def cut(name: str) -> Any:
    def apply(folder: Path) -> None:
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[:-20])

    return apply


def linked(folder: Path) -> None:
    path = folder / "results.csv"
    path.rename(folder.parent / "elsewhere.csv")
    path.symlink_to(folder.parent / "elsewhere.csv")


def file_elsewhere(manifest: Manifest) -> None:
    files = manifest["decisions"]["files"]
    files["../../elsewhere.dec"] = files.pop(next(iter(files)))


def other_format(manifest: Manifest) -> None:
    manifest["environments"] = [name.replace("-v0", "-v9") for name in manifest["environments"]]


def kept_machine_code(folder: Path) -> None:
    """numba would run it in place of the policy's functions."""
    write(folder / "policy" / "__pycache__" / "my_router.route-9.py311.nbi", "")


def swapped_decisions(folder: Path) -> None:
    """Decisions of one row under the name of another, hashes made to fit."""
    one, other = sorted((folder / "decisions").iterdir())[:2]
    other.write_bytes(one.read_bytes())

    def fit(manifest: Manifest) -> None:
        manifest["decisions"]["files"][other.name]["sha256"] = file_sha256(other)

    in_manifest(fit)(folder)


def faster(seconds: str) -> str:
    return f"{float(seconds) * 0.999:.9g}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_row("slo_attainment", lambda _: "0.25"), "slo_attainment"),
        (in_row("finished", lambda n: str(int(n) + 1)), "offered is"),
        (in_row("ttft_p50_s", faster), "ttft_p50_s"),
        (in_row("log_hash", lambda _: "0" * 16), "log_hash"),
        (in_row("seed", lambda _: "7"), "seed 7 is none of the suite's"),
        (in_row("load", lambda _: "0.1"), "load 0.1 is none of the suite's"),
        (in_row("scenario", lambda _: "smoke-cluster"), "no scenario 'smoke-cluster'"),
        (in_row("scenario_hash", lambda _: "0" * 64), "scenario_hash"),
        (in_row("router_policy", lambda _: "round-robin"), "no such combination"),
        (without_load, "no row of hetero-3 load 2.5"),
        (twice, "is there twice"),
        (cut("results.csv"), "results.csv"),
        (cut("manifest.json"), "manifest.json: no JSON"),
        (cut("decisions/*.dec"), "SHA-256 is not the manifest's"),
        (linked, "results.csv: is a symbolic link"),
        (in_manifest(file_elsewhere), "'../../elsewhere.dec' is no name of such a file"),
        (in_manifest(outside), "'policy/../../evil.py' is no file of the submission's own folder"),
        (in_manifest(other_format), "-v9"),
        (swapped_decisions, "holds the decisions of"),
        (change_policy, "SHA-256 is not the manifest's"),
        (link_policy, "symbolic link"),
        (kept_machine_code, "__pycache__: is not in the manifest"),
    ],
)
def test_verify_tells_what_is_wrong(
    change: Any, message: str, done: Submitted, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(done.submission.folder, folder)
    change(folder)
    found = found_by_verify(folder)
    assert any(message in line for line in found), found


def test_verify_passes_what_is_right(
    done: Submitted,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(done.submission.folder, folder)
    assert found_by_verify(folder) == []
    before = sorted(folder.rglob("*"))
    assert decided_again(folder) == []
    monkeypatch.delitem(sys.modules, "my_router", raising=False)  # of the submission itself
    here = Options(("policy", "fresh-seeds"), 1, run_code=True)
    assert verify(folder, here).problems == []
    assert sorted(folder.rglob("*")) == before, "running the code leaves nothing behind"
    with pytest.raises(SystemExit) as end:
        main(["verify", str(folder), "--all"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    assert "4 rows, files, 4 log: ok" in out


def test_verify_runs_no_code_unless_asked(done: Submitted, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(done.submission.folder, folder)
    found = verify(folder, Options(("policy",), None))
    assert found.problems == []
    assert [checked.played for checked in found.checks] == [0]
    assert "--run-code" in found.checks[0].notes[0]


def test_the_code_must_be_what_played(done: Submitted, tmp_path: Path) -> None:
    """Another decision under a fitting hash: the files agree, the policy does not."""
    folder = tmp_path / "mine"
    shutil.copytree(done.submission.folder, folder)
    path = folder / "policy" / "my_router.py"
    write(path, edited(path.read_text(), "load / self.weights", "load * self.weights"))

    def fit(manifest: Manifest) -> None:
        manifest["submission"]["files"]["policy/my_router.py"] = file_sha256(path)

    in_manifest(fit)(folder)
    assert found_by_verify(folder) == [], "recorded decisions are still those of the rows"
    found = decided_again(folder)
    assert any("the policies now give" in line for line in found), found
