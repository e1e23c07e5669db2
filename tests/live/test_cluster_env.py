"""The routing environment and evaluate() in real time, against small fake servers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import synergy_gym  # noqa: F401 - registers the environments
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.live.backend import LiveOptions
from synergy_gym.live.cluster.fleet_pool import fleet_pool
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import SLO
from tests.live.clusters import traffic
from tests.live.fake_server import FakeServer, Fleet

ENV = "SynergyGym/ClusterRouting-v1"


@pytest.fixture
def fakes() -> Iterator[list[FakeServer]]:
    with Fleet(2) as servers:
        yield servers
        fleet_pool().close()


@pytest.fixture
def scenario() -> Scenario:
    """Two engines, and all the time in the world: real time is no test's business."""
    slos = (SLO("default", e2e_s=60.0),)
    return replace(load_scenario("live-cluster"), warmup_s=0.0, slos=slos)


def urls(fakes: list[FakeServer]) -> tuple[str, ...]:
    return tuple(fake.url for fake in fakes)


def make(fakes: list[FakeServer], scenario: Scenario, **more: Any) -> gym.Env[Any, Any]:
    more = {"workload": traffic(20), "transport": "http", "urls": urls(fakes)} | more
    return gym.make(ENV, scenario=scenario, backend="vllm", **more)


def test_an_episode(fakes: list[FakeServer], scenario: Scenario) -> None:
    env = make(fakes, scenario)
    for _ in range(2):
        observation, info = env.reset(seed=1)
        assert env.observation_space.contains(observation)
        steps, total, ended = 0, 0.0, False
        while not ended:
            observation, reward, terminated, ended, info = env.step(steps % 2)
            assert not terminated
            assert env.observation_space.contains(observation)
            total += float(reward)
            steps += 1
        assert steps == 20
        metrics = info["episode_metrics"]
        assert (metrics["offered"], metrics["finished"]) == (20, 20)
        assert total == metrics["slo_attainment"] * 20
        assert info["live"]["sent"] == 20
        assert info["live"]["engines"]["models"] == ["fake", "fake"]
    env.close()


def test_a_dead_engine_is_masked_and_refused(fakes: list[FakeServer], scenario: Scenario) -> None:
    env = make(fakes, scenario, workload=traffic(40))
    env.reset(seed=1)
    inner: Any = env.unwrapped
    assert inner.action_masks().tolist() == [True, True]
    ended, steps, masked = False, 0, 0
    while not ended:
        if steps == 5:
            fakes[1].stop()
        mask = inner.action_masks()
        if not mask[1]:
            masked += 1
            with pytest.raises(ValueError, match="RerouteIllegal"):
                env.step(1)
        *_, ended, info = env.step(1 if mask[1] else 0)
        if not inner.action_masks().all() and not ended:
            assert info["action_mask"].tolist() == [1, 0]
        steps += 1
    assert masked >= 1
    metrics = info["episode_metrics"]
    accounted = ("finished", "rejected", "aborted", "failed", "unfinished")
    assert sum(metrics[name] for name in accounted) == metrics["offered"] == 40
    env.close()


def test_the_checker_of_gymnasium(fakes: list[FakeServer], scenario: Scenario) -> None:
    env = make(fakes, scenario, workload=traffic(20, gap_s=0.003))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_the_checker_of_sb3(fakes: list[FakeServer], scenario: Scenario) -> None:
    env = make(fakes, scenario, workload=traffic(20, gap_s=0.003))
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker", reason="extra rl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sb3.check_env(env.unwrapped)
    env.close()


def test_evaluate(fakes: list[FakeServer], scenario: Scenario) -> None:
    live = LiveOptions(transport="http", urls=urls(fakes))
    for router in ("round-robin", "least-outstanding", "power-of-two"):
        result = evaluate(
            scenario, "vllm-v1", router, workload=traffic(20), backend="vllm", live=live
        )
        assert result.summary["finished"] == 20
        assert result.manifest["live"]["sent"] == 20
        assert result.summary["itl_p50_s"] > 0
    assert set(result.records.engine) == {0, 1}


def test_evaluate_one_engine(fakes: list[FakeServer], scenario: Scenario) -> None:
    single = replace(scenario, engines=scenario.engines[:1], terms=scenario.terms[:1])
    live = LiveOptions(transport="http", urls=urls(fakes)[:1])
    result = evaluate(single, workload=traffic(10), backend="vllm", live=live)
    assert result.summary["finished"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": ["http://127.0.0.1:1"]}, "1 urls for 2 engines"),
        ({"clock": "model"}, "real time"),
        ({"engine_policy": "lens-plus"}, "batch as they were started"),
        ({"transport": "workers"}, "transport='http'"),
        ({"transport": "inprocess"}, "transport='http'"),
    ],
)
def test_wrong_options_are_refused(
    fakes: list[FakeServer], scenario: Scenario, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(fakes, scenario, **options).reset(seed=1)


def test_engines_without_urls_are_refused_what_vllm_cannot(scenario: Scenario) -> None:
    env = gym.make(
        ENV, scenario=scenario, backend="vllm", transport="workers", engine_policy="lens-ref"
    )
    with pytest.raises(ValueError, match="token_caps='drop'"):
        env.reset(seed=1)


def test_the_pool_keeps_one_fleet(fakes: list[FakeServer], scenario: Scenario) -> None:
    env = make(fakes, scenario, workload=traffic(2))
    inner: Any = env.unwrapped
    env.reset(seed=1)
    fleet = inner._pool._fleet
    env.reset(seed=2)
    assert inner._pool._fleet is fleet
    env.close()
    assert not fleet.is_open
    env.reset(seed=3)
    assert inner._pool._fleet.is_open
    env.close()


def test_observations_are_finite_while_engines_fail(
    fakes: list[FakeServer], scenario: Scenario
) -> None:
    env = make(fakes, scenario, workload=traffic(15), observation="dict")
    env.reset(seed=1)
    for fake in fakes:
        fake.stop()
    ended = False
    while not ended:
        mask = env.unwrapped.action_masks()  # type: ignore[attr-defined]
        observation, _, _, ended, _ = env.step(int(np.argmax(mask)))
        assert env.observation_space.contains(observation)
    env.close()
