"""Suites: files, byte-identical results, resuming, failures."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from synergy_gym.evaluation.board.journal import PROGRESS_FILE, ProgressLog
from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.suites import (
    ENGINE_POLICIES,
    JOINT_PAIRS,
    ROUTER_POLICIES,
    SUITES,
    find_suite,
)
from synergy_gym.evaluation.board.tables import decision_times
from synergy_gym.evaluation.jobs import KEY_COLUMNS, Job, JobResult, run_job
from synergy_gym.evaluation.leaderboard import TIMING_COLUMNS, run_leaderboard
from synergy_gym.evaluation.workers import run as executors
from synergy_gym.evaluation.workers.run import run_jobs
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.scenario import load_scenario

SHORT: dict[str, Any] = {"loads": (1.0, 1.3), "seeds": 1, "horizon_s": 5.0, "warmup_s": 1.0}
ENGINES = Part("engine", ("chat-h100",), ("vllm-v1", "static-256"), ("round-robin",), **SHORT)
ROUTERS = Part("router", ("hetero-3",), ("vllm-v1",), ("random", "least-outstanding"), **SHORT)
PAIRS = Part(
    "joint",
    ("hetero-3",),
    pairs=(("sarathi-512", "random"), ("vllm-v1", "least-outstanding")),
    **SHORT,
)
TINY = Suite("tiny", "a few short episodes", (ENGINES, ROUTERS, PAIRS))


def test_files_and_ranking(tmp_path: Path) -> None:
    report = run_leaderboard(TINY, tmp_path, command="the command")
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    recorded = manifest["decisions"]["files"]
    assert len(recorded) == 5  # half of the rows are at the load nearest to 1.0
    expected = {"results.csv", "timings.csv", "latency.csv", "bounds.csv"}
    expected |= {"leaderboard.md", "manifest.json"}
    expected.add("report.html")
    expected |= {f"decisions/{name}" for name in recorded}
    for plot in ("attainment", "latency"):
        for part in ("engine-chat-h100", "router-hetero-3", "joint-hetero-3"):
            expected.add(f"plots/{plot}-{part}.png")
    assert names == expected
    assert manifest["command"] == "the command"
    assert set(manifest["policies"]["router"]) == {"random", "least-outstanding", "round-robin"}
    assert len(manifest["scenarios"]["chat-h100"]) == 64
    page = (tmp_path / "leaderboard.md").read_text()
    assert "simulated" in page
    assert "least-outstanding" in page
    assert [len(table) for _, table in report.rankings()] == [2, 2, 2]
    pairs = report.rankings()[-1][1]
    assert set(pairs["policy"]) == {"sarathi-512 + random", "vllm-v1 + least-outstanding"}
    assert page.count("## ") == 4  # three rankings, and the plots
    assert "engine + router policy compete" in page


def test_decision_times_are_in_their_own_file_and_on_the_page(tmp_path: Path) -> None:
    report = run_leaderboard(TINY, tmp_path)
    rows = list(csv.DictReader((tmp_path / "timings.csv").read_text().splitlines()))
    assert list(rows[0]) == list(TIMING_COLUMNS)
    asked = [row for row in rows if int(row["router_decisions"])]
    assert {row["scenario"] for row in asked} == {"hetero-3"}
    for row in asked:
        assert 0 < float(row["router_decision_mean_us"]) < 1e6
        assert float(row["router_decision_p99_us"]) > 0
    page = (tmp_path / "leaderboard.md").read_text()
    assert page.count("processor time on the machine that ran this suite") == 3
    assert "| vllm-v1 | 0 | - | - |" in page  # a compiled rule: nobody is asked
    times = decision_times(PAIRS.rows(report.timings), "joint", PAIRS.competitors())
    columns = [f"{x}_{y}" for x in ("engine", "router") for y in ("decisions", "mean_us", "p99_us")]
    assert list(times.columns) == ["policy", *columns]
    assert (times["router_decisions"] > 0).all()
    assert "decision" not in (tmp_path / "results.csv").read_text()


def test_a_part_knows_its_rows() -> None:
    jobs = TINY.jobs()
    rows = [dict(zip(KEY_COLUMNS, job.key, strict=True)) for job in jobs]
    assert [len(part.rows(rows)) for part in TINY.parts] == [4, 4, 4]
    # vllm-v1 + least-outstanding is played once and belongs to two rankings.
    assert len(jobs) == len({job.key for job in jobs}) == 10
    assert ENGINES.competitors() == ("vllm-v1", "static-256")
    assert PAIRS.competitors() == ("sarathi-512 + random", "vllm-v1 + least-outstanding")
    later = Part("joint", ("hetero-3",), pairs=PAIRS.pairs, **{**SHORT, "loads": (1.3,)})
    assert {row["load"] for row in later.rows(rows)} == {1.3}


def test_results_do_not_depend_on_process_or_order(tmp_path: Path) -> None:
    run_leaderboard(TINY, tmp_path / "one")
    reverse = Suite("tiny", TINY.description, (PAIRS, ROUTERS, ENGINES))
    run_leaderboard(reverse, tmp_path / "two", processes=2)
    one, two = ((tmp_path / name / "results.csv").read_bytes() for name in ("one", "two"))
    assert one == two
    rows = list(csv.DictReader(one.decode().splitlines()))
    assert len(rows) == 10
    assert len({row["log_hash"] for row in rows}) == 10
    for plot in (tmp_path / "one" / "plots").iterdir():
        assert plot.read_bytes() == (tmp_path / "two" / "plots" / plot.name).read_bytes()


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[Job] = []

    def interrupted(job: Job) -> JobResult:
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(job)
        return run_job(job)

    monkeypatch.setattr(executors, "run_job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_leaderboard(TINY, tmp_path)
    assert len((tmp_path / PROGRESS_FILE).read_text().splitlines()) == 3

    def second(job: Job) -> JobResult:
        played.append(job)
        return run_job(job)

    monkeypatch.setattr(executors, "run_job", second)
    run_leaderboard(TINY, tmp_path)
    assert len(played) == len(set(played)) == 10
    assert not (tmp_path / PROGRESS_FILE).exists()
    monkeypatch.undo()
    run_leaderboard(TINY, tmp_path / "fresh")
    fresh = (tmp_path / "fresh" / "results.csv").read_bytes()
    assert (tmp_path / "results.csv").read_bytes() == fresh


def test_progress_counts_only_for_the_same_job_and_sources(tmp_path: Path) -> None:
    jobs = TINY.jobs()
    log = ProgressLog(tmp_path / PROGRESS_FILE)
    log.append(jobs[0], run_job(jobs[0]))
    with log.path.open("a") as file:
        file.write('{"job": [cut off')
    assert list(log.load(jobs)) == [jobs[0]]
    assert log.path.read_text().endswith("\n")
    other = Suite("tiny", "", (Part("engine", *_members(ENGINES), **{**SHORT, "horizon_s": 6.0}),))
    assert log.load(other.jobs()) == {}
    log.version = "other sources"
    assert log.load(jobs) == {}


def _members(part: Part) -> tuple[tuple[str, ...], ...]:
    return part.scenarios, part.engine_policies, part.router_policies


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failing_job_costs_only_its_row(tmp_path: Path, processes: int) -> None:
    bad = Part("engine", ("chat-h100",), ("vllm-v1", "no-such-policy"), ("round-robin",), **SHORT)
    report = run_leaderboard(Suite("bad", "", (bad,)), tmp_path, processes=processes)
    assert len(report.failures) == 2
    assert len(report.rows) == 2
    assert all("no-such-policy" in text for text in report.failures.values())
    assert "Failed episodes" in (tmp_path / "leaderboard.md").read_text()
    assert (tmp_path / PROGRESS_FILE).exists()


def test_run_jobs_reports_each_job() -> None:
    seen: list[Job] = []
    jobs = TINY.jobs()[:2]
    batch = run_jobs(jobs, on_result=lambda job, outcome: seen.append(job))
    assert seen == jobs
    assert list(batch.results) == jobs


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_existing_things_and_unseen_seeds(name: str) -> None:
    suite = find_suite(name)
    jobs = suite.jobs()
    # One row each, so that no part shows another part's episodes.
    assert len(jobs) == len({job.key for job in jobs})
    test_seeds = {name: load_scenario(name).test_seeds for name in {j.scenario for j in jobs}}
    assert all(job.seed in test_seeds[job.scenario] for job in jobs)
    for engine, router in {pair for part in suite.parts for pair in part.matchups()}:
        make_engine_policy(engine)
        make_router_policy(router)


def test_the_quick_suite_has_every_policy() -> None:
    quick = {part.track: part for part in SUITES["quick"].parts}
    assert quick["engine"].competitors() == ENGINE_POLICIES
    assert quick["router"].competitors() == ROUTER_POLICIES
    assert quick["joint"].matchups() == JOINT_PAIRS
    assert len(ENGINE_POLICIES) + len(ROUTER_POLICIES) >= 10


def test_unknown_suite() -> None:
    with pytest.raises(ValueError, match="choose one of quick"):
        find_suite("slow")


def has_a_row(out: Path) -> bool:
    """Whether a whole line is in the progress file, which is there a moment earlier."""
    path = out / PROGRESS_FILE
    return path.exists() and b"\n" in path.read_bytes()


def _started(out: Path) -> subprocess.Popen[str]:
    """The quick suite with two workers, some episodes of which are done."""
    command = [sys.executable, "-m", "synergy_gym", "leaderboard", "--jobs", "2", "--out", str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A background job of a shell ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while process.poll() is None and not has_a_row(out):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    return process


def _session(leader: int) -> list[int]:
    """The processes of a session that are alive, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pool_leaves_rows_and_no_workers(
    tmp_path: Path, signal_: signal.Signals
) -> None:
    process = _started(tmp_path)
    # Ctrl-C reaches the whole group, a kill only the parent.
    (os.killpg if signal_ is signal.SIGINT else os.kill)(process.pid, signal_)
    _, err = process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while (alive := _session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []
    assert "Traceback" not in err
    lines = (tmp_path / PROGRESS_FILE).read_text().splitlines()
    assert json.loads(lines[0])["job"]
    if signal_ is signal.SIGINT:
        assert process.returncode == 130
        assert "goes on from here" in err
