"""A Ray cluster of two nodes on this machine: equal rows, lost nodes and workers, shipped files."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.jobs import Job, JobResult
from synergy_gym.evaluation.leaderboard import run_leaderboard
from synergy_gym.evaluation.workers import ray as ray_executor
from synergy_gym.evaluation.workers.executor import MAX_LOSSES, ExecutorError
from synergy_gym.evaluation.workers.ray import RayExecutor, Refusal, fingerprint, play_here
from synergy_gym.evaluation.workers.run import run_jobs
from synergy_gym.policies.agent_file import find_agent
from tests.evaluation.losable import deadly, play_or_hang
from tests.evaluation.test_leaderboard import has_a_row

NO_RAY = "needs Ray: pip install 'synergy-gym[ray]'"
ROOT = Path(__file__).parents[2]
JOBS = [
    Job("tiny", "chat-h100", 1.0, seed, "vllm-v1", "round-robin", 2.0, 0.5) for seed in range(6)
]
TINY = Suite(
    "tiny",
    "a few short episodes",
    (
        Part(
            "engine",
            ("chat-h100",),
            ("vllm-v1", "static-256"),
            ("round-robin",),
            loads=(1.0, 1.3),
            seeds=2,
            horizon_s=3.0,
            warmup_s=1.0,
        ),
    ),
)
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def _started(start: Callable[[], Any]) -> Any:
    """What Ray starts; it gives a node half a minute, which a busy machine can exceed."""
    for _ in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One node with one CPU; tests add the second."""
    pytest.importorskip("ray", reason=NO_RAY)
    from ray.cluster_utils import Cluster

    head = {**NODE, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.syspath_prepend(str(ROOT))
        nodes = _started(lambda: Cluster(initialize_head=True, head_node_args=head))
        yield nodes
        nodes.shutdown()


def _rows(results: dict[Job, JobResult]) -> dict[Job, dict[str, Any]]:
    return {job: result.row for job, result in results.items()}


def test_a_node_killed_half_way_costs_no_row(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    victim, marker = _started(lambda: cluster.add_node(**NODE)), tmp_path / "marker"
    seen: list[Job] = []

    def on_result(job: Job, outcome: JobResult | str) -> None:
        if not seen:
            deadline = time.monotonic() + 120
            while not marker.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert marker.exists(), "the second node got no job"
            cluster.remove_node(victim, allow_graceful=False)
        seen.append(job)

    play = partial(play_or_hang, victim.node_id, marker)
    with caplog.at_level(logging.WARNING):
        batch = run_jobs(JOBS, 1, on_result, play, RayExecutor(cluster.address))
    assert "lost its worker (NodeDiedError); another one plays it again" in caplog.text
    assert batch.failures == {}
    assert sorted(job.key for job in seen) == [job.key for job in JOBS]
    assert _rows(batch.results) == _rows(run_jobs(JOBS).results)


def test_a_job_that_kills_its_workers_is_given_up(cluster: Any, tmp_path: Path) -> None:
    play = deadly(tmp_path / "deaths", 100)
    batch = run_jobs(JOBS[:3], play=play, executor=RayExecutor(cluster.address))
    assert set(batch.failures) == {JOBS[1]}
    assert set(batch.results) == {JOBS[0], JOBS[2]}
    assert len(list((tmp_path / "deaths").iterdir())) == MAX_LOSSES
    assert "WorkerCrashedError" in batch.failures[JOBS[1]]


def test_a_killed_run_goes_on_and_ends_as_a_local_one(cluster: Any, tmp_path: Path) -> None:
    out = tmp_path / "ray"
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.evaluation.test_ray_executor import TINY, RayExecutor, run_leaderboard\n"
        "run_leaderboard(TINY, Path(sys.argv[2]), executor=RayExecutor(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, cluster.address, str(out)])
    while process.poll() is None and not has_a_row(out):
        time.sleep(0.02)
    process.kill()
    process.wait()
    texts: list[str] = []

    def on_progress(done: int, total: int, text: str) -> None:
        texts.append(text)

    run_leaderboard(TINY, out, executor=RayExecutor(cluster.address), on_progress=on_progress)
    kept = int(texts[0].removesuffix(" rows of an earlier run"))
    assert kept >= 1
    assert len(texts) == 1 + len(TINY.jobs()) - kept
    run_leaderboard(TINY, tmp_path / "local")
    for path in (tmp_path / "local").rglob("*"):
        if path.suffix in {".csv", ".zz"} and path.name != "timings.csv":
            assert (out / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()


POLICY = """
from helper import ENGINE
from synergy_gym.policies.base import RouterPolicy


class First(RouterPolicy):
    \"\"\"Everything to one engine.\"\"\"

    def route(self, request, view):
        return ENGINE
"""


def test_policies_agents_and_scenarios_are_shipped(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "first_router.py").write_text(POLICY)
    (tmp_path / "helper.py").write_text("ENGINE = 1\n")
    shutil.copy(ROOT / "synergy_gym/scenarios/hetero-3.toml", tmp_path / "mine.toml")
    shutil.copy(find_agent("router-ppo-v1"), tmp_path / "mine.npz")
    jobs = [
        Job("tiny", "mine.toml", 1.0, 0, "vllm-v1", router, 2.0, 0.5)
        for router in ("lib/first_router.py:First", "agent:mine.npz")
    ]
    batch = run_jobs(jobs, executor=RayExecutor(cluster.address))
    assert batch.failures == {}
    here = run_jobs(jobs).results
    assert _rows(batch.results) == _rows(here)
    assert [batch.results[job].policies for job in jobs] == [here[job].policies for job in jobs]


def test_a_node_with_other_software_is_refused(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**fingerprint(), "numpy": "0.1"}
    refusal = play_here(b"", other)
    assert isinstance(refusal, Refusal)
    assert "not 0.1; install the same versions on every node" in refusal.text
    monkeypatch.setattr(ray_executor, "fingerprint", lambda: other)
    with pytest.raises(ExecutorError, match="would play other episodes: numpy is"):
        run_jobs(JOBS[:1], executor=RayExecutor(cluster.address))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"pip install 'synergy-gym\[ray\]'"):
        run_jobs(JOBS[:1], executor=RayExecutor())


def test_without_a_cluster() -> None:
    pytest.importorskip("ray", reason=NO_RAY)
    with pytest.raises(ExecutorError, match="start one with `ray start --head`"):
        run_jobs(JOBS[:1], executor=RayExecutor("127.0.0.1:9"))
