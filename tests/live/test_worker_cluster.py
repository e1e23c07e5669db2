"""A live cluster of worker processes: real vLLM engines of the tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import synergy_gym  # noqa: F401 - registers the environments
from synergy_gym.live.backend import LiveEpisode, LiveOptions, build_live
from synergy_gym.live.cluster.cluster import LiveCluster
from synergy_gym.live.cluster.fleet import EngineOrders
from synergy_gym.live.cluster.fleet_pool import FleetPool
from synergy_gym.live.cluster.workers.fleet import WorkerFleet
from synergy_gym.live.vllm.prompts import Prompts
from synergy_gym.policies.registry import make_engine_policy
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.sim.points import ROUTE
from synergy_gym.types import Outcome, RouterRow, TelemetrySpec
from synergy_gym.workload.base import Workload
from tests.live.clusters import (
    SLOS,
    Raising,
    alive,
    episode,
    in_turn,
    outcomes,
    play,
    traffic,
    wait_until,
)
from tests.live.conftest import children, is_zombie

pytestmark = pytest.mark.vllm
BLOCKS = 255
FINISHED, FAILED = Outcome.FINISHED, Outcome.FAILED
TELEMETRY = TelemetrySpec(push_interval_s=0.02, scrape_interval_s=0.1, heartbeat_interval_s=0.1)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Two unequal engines with objectives that a slow machine meets."""
    known = load_scenario("live-cluster")
    return replace(known, warmup_s=0.0, slos=SLOS, telemetry=TELEMETRY)


@pytest.fixture(scope="module")
def pool(vllm: Any, scenario: Scenario) -> Iterator[FleetPool]:
    options = LiveOptions(transport="workers", start_timeout_s=400.0)
    with FleetPool() as pool:
        first = LiveEpisode(scenario=scenario, options=options, workload=traffic(1), pool=pool)
        build_live(first).close()  # starts the workers
        fleet = pool._fleet
        assert isinstance(fleet, WorkerFleet)
        for engine in fleet.connections:
            engine.patience = replace(engine.patience, silence_s=3.0)
        yield pool


@pytest.fixture
def fleet(pool: FleetPool, no_process_outlives_its_test: None) -> WorkerFleet:
    """The workers of this module, which outlive a single test on purpose."""
    fleet = pool._fleet
    assert isinstance(fleet, WorkerFleet)
    return fleet


def begin(fleet: WorkerFleet, policy: Any = "vllm-v1") -> None:
    policies = [make_engine_policy(policy) for _ in fleet.connections]
    fleet.begin(EngineOrders(policies, 0, SLOS, TELEMETRY))


def cluster_of(fleet: WorkerFleet, workload: Workload, **more: Any) -> LiveCluster:
    engines = tuple(load_scenario("live-cluster").engines)
    prompts = Prompts(workload, fleet.vocabulary(), engines[0].block_size)
    played = episode(workload, 2, telemetry=TELEMETRY, **more)
    return LiveCluster(fleet, replace(played, engines=engines, tokens=prompts.tokens))


def test_an_episode_with_state_of_every_engine(fleet: WorkerFleet) -> None:
    begin(fleet)
    cluster = cluster_of(fleet, traffic(60, prompt=100, output=20))
    rows = []
    records = play(cluster, before=lambda n: rows.append(cluster.router_rows()))
    assert outcomes(records) == {FINISHED: 60}
    assert np.all(records.scheduled_ns >= records.arrival_ns)
    assert np.all(records.first_token_ns > records.scheduled_ns)
    gaps, counts = cluster.itl()
    assert counts.sum() == 60 * 19
    assert np.all(gaps > 0)
    last = cluster.router_rows()
    assert np.all(last[:, RouterRow.PUSH_NS] > 0)
    assert np.all(last[:, RouterRow.PUSH_TOTAL_BLOCKS] == BLOCKS)
    for column in (RouterRow.PUSH_RUNNING, RouterRow.PUSH_STEP_NS, RouterRow.PUSH_USED_BLOCKS):
        assert np.all(np.max([r[:, column] for r in rows], axis=0) > 0)
    for engine in range(2):
        step = cluster.last_step(engine)
        assert step is not None
        assert (step.engine, step.finished > 0) == (engine, True)
    assert cluster.live_report()["engines"]["policy_failures"] == [0, 0]


def test_the_environment(fleet: WorkerFleet, pool: FleetPool, scenario: Scenario) -> None:
    env = gym.make(
        "SynergyGym/ClusterRouting-v1",
        scenario=scenario,
        workload=traffic(20, prompt=50),
        engine_policy="lens-plus",
        backend="vllm",
        live=LiveOptions(transport="workers", start_timeout_s=400.0),
    )
    inner: Any = env.unwrapped
    inner._pool = pool
    _, info = env.reset(seed=1)
    ended, steps = False, 0
    while not ended:
        observation, _, _, ended, info = env.step(steps % 2)
        assert env.observation_space.contains(observation)
        steps += 1
    assert info["episode_metrics"]["finished"] == steps == 20
    assert info["live"]["engines"]["vllm"].startswith("0.32")
    inner._pool = FleetPool()
    env.close()
    assert fleet.is_open


def test_the_engines_follow_their_policy(fleet: WorkerFleet) -> None:
    begin(fleet, "static-16")
    cluster = cluster_of(fleet, traffic(6, gap_s=0.001, prompt=100, output=4))
    steps = []

    def look(number: int) -> None:
        time.sleep(0.05)
        steps.extend(cluster.last_step(engine) for engine in range(2))

    records = play(cluster, before=look)
    look(6)  # where the first step takes longer than the arrivals
    assert outcomes(records) == {FINISHED: 6}
    seen = [step for step in steps if step is not None]
    assert seen
    assert {step.token_budget for step in seen} == {16}
    assert max(step.tokens for step in seen) <= 16


def test_a_session_finds_its_prefix_where_it_was(fleet: WorkerFleet) -> None:
    from synergy_gym.workload.blocks import session_content

    lengths = np.array([100, 200, 300])
    workload = traffic(
        3,
        gap_s=0.05,
        after=np.array([-1, 0, 1]),
        session=np.zeros(3),
        content=session_content(np.array([-1, 0, 1]), np.array([0, 120, 220])),
    )
    workload = replace(workload, prompt_tokens=lengths, output_tokens=np.full(3, 20))
    for _ in range(2):  # the second episode starts as cold as the first
        begin(fleet)
        records = play(cluster_of(fleet, workload), lambda cluster, n: 0)
        # The whole blocks of the turn before, answer included (its last token is not computed).
        assert records.cached_tokens.tolist() == [0, 96, 192]
    begin(fleet)
    records = play(cluster_of(fleet, workload), lambda cluster, n: n % 2)
    assert records.cached_tokens.tolist() == [0, 0, 96]


def test_too_long_prompts_are_rejected_and_long_outputs_end(fleet: WorkerFleet) -> None:
    begin(fleet)
    workload = replace(
        traffic(3), prompt_tokens=np.array([1024, 1020, 2000]), output_tokens=np.full(3, 50)
    )
    records = play(cluster_of(fleet, workload))
    assert records.outcome.tolist() == [Outcome.REJECTED, FINISHED, Outcome.REJECTED]
    assert records.emitted_tokens.tolist() == [0, 4, 0]


def test_a_worker_that_hangs_is_masked_until_it_goes_on(fleet: WorkerFleet) -> None:
    begin(fleet)
    cluster = cluster_of(fleet, traffic(60))
    engine = fleet.connections[0]
    masks, targets = [], []

    def route(cluster: LiveCluster, number: int) -> int:
        targets.append(in_turn(cluster, number))
        return targets[-1]

    def disturb(number: int) -> None:
        masks.append(len(alive(cluster)))
        if number == 10:
            os.kill(engine.pid, signal.SIGSTOP)
        if number == 30:
            wait_until(lambda: not engine.is_up)
        if number == 40:
            os.kill(engine.pid, signal.SIGCONT)
            wait_until(lambda: engine.is_up)

    records = play(cluster, route, disturb)
    assert masks[35] == 1
    assert 2 in masks[41:]
    assert targets[31:40] == [1] * 9
    assert 0 in targets[41:]
    assert cluster.live_report()["downs"][0] >= 1
    failed = records.outcome == FAILED
    assert np.all(records.emitted_tokens[failed] > 0)


def test_an_episode_that_is_left_half_way_leaves_nothing_behind(fleet: WorkerFleet) -> None:
    begin(fleet)
    left = cluster_of(fleet, traffic(10, gap_s=0.001, prompt=100, output=900))
    for _ in range(10):
        assert left.advance() == ROUTE
        left.route(0)
    left.close()
    begin(fleet)
    assert outcomes(play(cluster_of(fleet, traffic(10)))) == {FINISHED: 10}


def test_a_policy_that_raises_costs_no_request(
    fleet: WorkerFleet, caplog: pytest.LogCaptureFixture
) -> None:
    begin(fleet, Raising())
    cluster = cluster_of(fleet, traffic(6))
    assert outcomes(play(cluster)) == {FINISHED: 6}
    assert min(cluster.live_report()["engines"]["policy_failures"]) > 0
    assert "policy that fails" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_workers_end_with_their_parent(vllm: Any, tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    # No `if __name__ == "__main__"`: workers do not load the main module of their parent.
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from synergy_gym.live.cluster.workers.fleet import WorkerFleet\n"
        "from synergy_gym.live.cluster.workers.messages import Start\n"
        "from synergy_gym.live.cluster.messages import Patience\n"
        "from tests.live.clusters import SPEC\n"
        "fleet = WorkerFleet([Start(0, SPEC, {})], Patience(), folder=Path(sys.argv[1]))\n"
        "print(fleet.connections[0].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
        text=True,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert worker in children(parent.pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while not is_zombie(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_zombie(worker)


def test_a_killed_worker_is_replaced_and_let_in_again(fleet: WorkerFleet, pool: FleetPool) -> None:
    begin(fleet)
    cluster = cluster_of(fleet, traffic(60, prompt=50, output=30))
    victim = fleet.connections[0].pid
    records = play(
        cluster,
        before=lambda n: os.kill(victim, signal.SIGKILL) if n == 20 else None,
    )
    failed = records.outcome == FAILED
    assert np.all(records.emitted_tokens[failed] > 0)
    assert outcomes(records)[FINISHED] + int(failed.sum()) == 60
    report = cluster.live_report()
    assert report["downs"][0] >= 1
    assert report["engines"]["restarts"][0] == 1
    assert np.all(records.engine[30:] == 1)
    begin(fleet)  # waits for the new process
    assert fleet.connections[0].pid != victim
    again = play(cluster_of(fleet, traffic(10)))
    assert outcomes(again) == {FINISHED: 10}
    assert set(again.engine) == {0, 1}
    pool.close()  # the new process may not outlive this test, the last of its fleet
    pool.close()
