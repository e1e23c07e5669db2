"""Clairvoyant policies: the oracle's answers, and that knowing pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from synergy_gym.evaluation import evaluate
from synergy_gym.evaluation.clairvoyant import (
    ClairvoyantEngine,
    ClairvoyantRouter,
    OutputOracle,
    cheapest_on_time,
)
from synergy_gym.policies import registry
from synergy_gym.scenario import load_scenario
from synergy_gym.workload.base import make_workload


def test_the_oracle_tells_requests_of_one_instant_apart() -> None:
    arrival = np.array([5, 1000, 1000, 1000, 2000], np.int64)
    traffic = make_workload(arrival, np.array([9, 7, 8, 9, 9]), np.array([1, 2, 3, 4, 5]))
    oracle = OutputOracle(traffic)
    # Views give seconds, so an arrival may be off by a nanosecond.
    asked = np.array([1001, 999, 1000, 2000, 5], np.int64)
    found = oracle.lengths(asked, np.array([9, 7, 8, 9, 9]))
    assert found.tolist() == [4, 2, 3, 5, 1]


def test_the_oracle_knows_its_own_traffic_only() -> None:
    traffic = make_workload(np.array([5, 9000]), np.array([9, 7]), np.array([1, 2]))
    with pytest.raises(ValueError, match="build it from the workload of this episode"):
        OutputOracle(traffic).lengths(np.array([5]), np.array([8]))
    with pytest.raises(ValueError, match="knows no request of 9 prompt tokens"):
        OutputOracle(traffic).lengths(np.array([400]), np.array([9]))
    with pytest.raises(ValueError, match="open-loop"):
        OutputOracle(replace(traffic, after=np.array([-1, 0])))


def test_the_dearest_requests_are_left_behind() -> None:
    """Three prompts of 1 s, due at 1, 2 and 2 s: one too many; the second costs most in all."""
    slack, work = np.array([1.0, 2.0, 2.0]), np.ones(3)
    order, keep = np.empty(3, np.int64), np.empty(3, np.int64)
    kept = cheapest_on_time(
        np.arange(3), slack, work, np.array([1.5, 9.0, 2.0]), np.zeros(3, bool), 0.0, 0.5, keep,
        order,
    )  # fmt: skip
    assert (kept, order.tolist()) == (2, [0, 2, 1])
    streams = np.array([False, True, False])  # one that streams is never left behind
    kept = cheapest_on_time(
        np.arange(3), slack, work, np.array([1.5, 9.0, 2.0]), streams, 0.0, 0.5, keep, order
    )
    assert (kept, order.tolist()) == (2, [1, 0, 2])


def test_knowing_lengths_pays_in_overload() -> None:
    scenario = replace(load_scenario("summarization-h100"), horizon_s=100.0, warmup_s=40.0)
    load, seed = 1.5, scenario.validation_seeds[0]
    oracle = OutputOracle(scenario.workload(load, seed))
    knows = evaluate(scenario, ClairvoyantEngine(oracle), load=load, seed=seed)
    learns = evaluate(scenario, "lens-plus", load=load, seed=seed)
    gain = knows.summary["slo_attainment"] - learns.summary["slo_attainment"]
    assert gain > 0.01
    told = knows.manifest["engine_policy"]
    assert told["policy"] == "clairvoyant"
    assert "oracle" in told["information"]
    assert told["parameters"]["workload"] == oracle.content


def test_a_clairvoyant_router_plays_with_true_lengths() -> None:
    scenario, seed = load_scenario("smoke-cluster"), 2000
    oracle = OutputOracle(scenario.workload(1.0, seed))
    result = evaluate(scenario, "vllm-v1", ClairvoyantRouter(oracle), 1.0, seed)
    assert result.manifest["router_policy"]["policy"] == "clairvoyant"
    assert result.summary["slo_attainment"] > 0.9
    again = evaluate(scenario, "vllm-v1", ClairvoyantRouter(oracle), 1.0, seed)
    assert again.log_hash == result.log_hash


def test_oracles_compete_nowhere() -> None:
    assert "clairvoyant" not in [*registry.engine_policies(), *registry.router_policies()]


def test_the_name_stands_for_an_oracle_of_the_jobs_traffic() -> None:
    from synergy_gym.evaluation.clairvoyant import ORACLE
    from synergy_gym.evaluation.jobs import Job, run_job

    job = Job("s", "smoke-cluster", 1.2, 2000, ORACLE, ORACLE, 10.0, 1.0)
    result = run_job(job)
    assert result.row["slo_attainment"] > 0.9
    assert {entry["policy"] for entry in result.policies.values()} == {ORACLE}
    assert all("oracle" in entry["information"] for entry in result.policies.values())
