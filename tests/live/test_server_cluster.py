"""A live cluster of two real vLLM servers, started by `transport="http"`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from synergy_gym.live.backend import LiveEpisode, LiveOptions, build_live
from synergy_gym.live.cluster.cluster import LiveCluster
from synergy_gym.live.cluster.fleet_pool import FleetPool
from synergy_gym.live.cluster.http.fleet import HttpFleet
from synergy_gym.policies.registry import make_router_policy
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.seats import play_policies
from synergy_gym.types import SLO, Outcome, RouterRow
from synergy_gym.workload.base import Workload
from tests.live.clusters import alive, assert_accounted, outcomes, play, traffic

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
FINISHED, FAILED = Outcome.FINISHED, Outcome.FAILED
OPTIONS = LiveOptions(transport="http", request_timeout_s=60.0, start_timeout_s=400.0)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Two engines, scraped often, with objectives that a slow machine meets."""
    known = load_scenario("live-cluster")
    slos = (SLO("chat", ttft_s=30.0, e2e_s=60.0),)
    telemetry = replace(known.telemetry, scrape_interval_s=0.3)
    return replace(known, warmup_s=0.0, slos=slos, telemetry=telemetry)


@pytest.fixture(scope="module")
def pool(vllm: Any, scenario: Scenario) -> Iterator[FleetPool]:
    with FleetPool() as pool:
        build(pool, scenario, traffic(1)).close()  # starts the servers
        yield pool


def build(pool: FleetPool, scenario: Scenario, workload: Workload) -> LiveCluster:
    cluster: LiveCluster = build_live(
        LiveEpisode(
            scenario=scenario,
            options=OPTIONS,
            workload=workload,
            engine_policy="lens-plus",
            record_itl=True,
            pool=pool,
        )
    )
    return cluster


def fleet_of(pool: FleetPool) -> HttpFleet:
    fleet = pool._fleet
    assert isinstance(fleet, HttpFleet)
    return fleet


def test_a_router_policy_sees_pushed_and_scraped_state(pool: FleetPool, scenario: Scenario) -> None:
    cluster = build(pool, scenario, traffic(60, prompt=100, output=20))
    router = make_router_policy("prism-plus")
    rng = np.random.default_rng(0)
    router.reset(rng, tuple(scenario.engines), tuple(scenario.slos))
    play_policies(cluster, [], router, rng)
    records = cluster.records()
    assert_accounted(records)
    assert outcomes(records) == {FINISHED: 60}
    assert records.emitted_tokens.tolist() == [20] * 60
    report = cluster.live_report()
    assert report["engines"]["pushes"] > 0
    assert report["engines"]["rejected_pushes"] == 0
    assert report["engines"]["failed_scrapes"] == [0, 0]
    rows = cluster.router_rows()
    assert np.all(rows[:, RouterRow.PUSH_NS] > 0)
    assert np.all(rows[:, RouterRow.SCRAPE_NS] > 0)
    blocks = [spec.kv_blocks for spec in scenario.engines]
    assert rows[:, RouterRow.SCRAPE_TOTAL_BLOCKS].tolist() == blocks
    assert rows[:, RouterRow.PUSH_TOTAL_BLOCKS].tolist() == blocks
    cluster.close()


def test_sessions_hit_the_cache_and_the_next_episode_starts_cold(
    pool: FleetPool, scenario: Scenario
) -> None:
    from synergy_gym.workload.blocks import session_content

    content = session_content(np.array([-1, 0]), np.array([0, 100]))
    workload = replace(
        traffic(2, after=np.array([-1, 0]), session=np.zeros(2), content=content),
        prompt_tokens=np.array([100, 200]),
    )
    for _ in range(2):
        records = play(build(pool, scenario, workload), lambda cluster, number: 0)
        # Whole blocks of 32 of the prompt before; its answer was sampled by the server.
        assert records.cached_tokens.tolist() == [0, 96]


def test_too_long_prompts_are_rejected(pool: FleetPool, scenario: Scenario) -> None:
    workload = replace(traffic(2), prompt_tokens=np.array([1024, 1000]))
    workload = replace(workload, output_tokens=np.array([5, 50]))
    records = play(build(pool, scenario, workload))
    assert records.outcome.tolist() == [Outcome.REJECTED, FINISHED]
    assert records.emitted_tokens.tolist() == [0, 24]


def test_a_server_killed_half_way_loses_only_what_it_had_begun(
    pool: FleetPool, scenario: Scenario
) -> None:
    cluster = build(pool, scenario, traffic(80, prompt=100, output=40))
    victim = fleet_of(pool).servers[0]
    records = play(cluster, before=lambda n: victim.kill() if n == 30 else None)
    failed = records.outcome == FAILED
    assert outcomes(records)[FINISHED] + int(failed.sum()) == 80
    assert np.all(records.emitted_tokens[failed] > 0)
    assert np.all(records.engine[35:] == 1)
    report = cluster.live_report()
    assert report["downs"] == [1, 0]
    assert alive(cluster) == [1]
    began = time.monotonic()
    pool.close()  # the last test: no server outlives it
    assert time.monotonic() - began < 60
