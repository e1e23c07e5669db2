"""The timed variant: what decisions cost on the simulated clock, and what they do not change."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synergy_gym.evaluation.board.part import Part, Suite
from synergy_gym.evaluation.board.suites import (
    ENGINE_POLICIES,
    ROUTER_POLICIES,
    SUITES,
    chosen_suite,
)
from synergy_gym.evaluation.clairvoyant import ORACLE
from synergy_gym.evaluation.jobs import Job, run_job
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.evaluation.timed import (
    DECISION_TIMES,
    Charge,
    Charging,
    charge_of,
    decision_times,
)
from synergy_gym.seats import Observer

JOB = Job("s", "smoke-cluster", 1.0, 2000, "vllm-v1", "round-robin", 8.0, 1.0)
ALONE = replace(JOB, scenario="smoke")


def charged(scenario: str, charge: Charge, load: float = 0.05) -> Any:
    """An episode with so little traffic that requests rarely meet, without step noise."""
    return evaluate(
        scenario,
        load=load,
        seed=2000,
        horizon_s=15.0,
        warmup_s=0.0,
        observers=[Calm(), Charging(charge)],
    )


class Calm(Observer):
    """Takes the noise out of steps."""

    def prepared(self, episode: dict[str, Any]) -> dict[str, Any]:
        clocks = [clock.copy() for clock in episode["clocks"]]
        for clock in clocks:
            clock[9] = 0
        return {**episode, "clocks": clocks}


def test_a_charge_of_zero_changes_nothing() -> None:
    plain, free = run_job(JOB), run_job(replace(JOB, charge=Charge()))
    assert plain.row == free.row
    assert run_job(replace(JOB, charge=Charge(1e-3, 1e-3))).row["log_hash"] != plain.row["log_hash"]


def test_a_request_reaches_its_engine_later_by_the_routers_constant() -> None:
    late = charged("smoke-cluster", Charge(router_s=0.004)).requests
    soon = charged("smoke-cluster", Charge()).requests
    assert (late["arrival_s"] == soon["arrival_s"]).all()
    first = late["ttft_s"][0] - soon["ttft_s"][0]  # nobody else is there
    assert first == pytest.approx(0.004, abs=2e-9)
    assert late["tpot_s"][0] == pytest.approx(soon["tpot_s"][0], abs=1e-9)


def test_every_step_of_an_engine_is_longer_by_its_constant() -> None:
    slow = charged("smoke", Charge(engine_s=0.003), 0.01).requests
    fast = charged("smoke", Charge(), 0.01).requests
    steps = int(fast["output_tokens"][0])
    both = slow["e2e_s"][0] - fast["e2e_s"][0]
    assert both == pytest.approx(0.003 * steps, abs=1e-6)  # one step a token, the first included
    assert slow["tpot_s"][0] - fast["tpot_s"][0] == pytest.approx(0.003, abs=1e-6)


def test_nobody_routes_on_a_single_engine() -> None:
    free, late = run_job(replace(ALONE, charge=Charge())), run_job(ALONE)
    assert free.row == late.row
    assert run_job(replace(ALONE, charge=Charge(router_s=0.5))).row == late.row


def test_patience_and_retries_count_from_sending() -> None:
    from synergy_gym.evaluation.timed import _charged
    from synergy_gym.scenario import load_scenario
    from synergy_gym.types import ClientSpec

    world = load_scenario("smoke-cluster")
    traffic = world.workload(0.1, 2000)
    clocks = [terms.clock(0) for terms in world.terms]
    episode = {"client": ClientSpec(5.0, 2, 1.0), "workload": traffic, "clocks": clocks}
    changed = _charged(episode, 0.0, 250_000_000)
    assert changed["client"] == ClientSpec(4.75, 2, 1.25)
    assert (changed["workload"].arrival_ns - traffic.arrival_ns == 250_000_000).all()
    assert all((new == old).all() for new, old in zip(changed["clocks"], clocks, strict=True))


def test_constants_are_known_for_every_policy_of_the_quick_suite() -> None:
    times = decision_times()
    assert set(times["engine"]) >= set(ENGINE_POLICIES)
    assert set(times["router"]) >= set(ROUTER_POLICIES)
    assert times["engine"]["vllm-v1"] == 0.0
    assert 0 < times["router"]["round-robin"] < times["router"]["prism-plus"] < 1e-3
    suite = chosen_suite("quick", timed=True)
    assert suite.name == "quick-timed"
    charges = {job.engine_policy: job.charge for job in suite.jobs()}
    assert charges["lens-plus"] is not None
    assert charges["lens-plus"].engine_s == times["engine"]["lens-plus"]


def test_oracles_do_not_play_timed() -> None:
    part = Part("engine", ("smoke",), ("vllm-v1",), ("round-robin",), oracles=((ORACLE, ORACLE),))
    suite = Suite("s", "", (part,))
    assert any(job.engine_policy == ORACLE for job in suite.jobs())
    assert not any(job.engine_policy == ORACLE for job in suite.timed(decision_times()).jobs())
    assert any(part.oracles for part in SUITES["full"].parts)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("layer,policy,decision_us,source\nengine,a,soon,here\n", ":2: decision_us is 'soon'"),
        ("layer,policy,decision_us,source\nengine,a,-1,here\n", ":2: decision_us is '-1'"),
        ("layer,policy,decision_us,source\nmotor,a,1,here\n", ":2: needs layer"),
        ("layer,policy,decision_us\nengine,a,1\n", ":2: needs layer"),
    ],
)
def test_bad_constants_are_named(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "times.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        decision_times(path)


def test_errors_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"router policy 'mine'.*--decision-times"):
        charge_of({"engine": {"a": 0.0}, "router": {}}, "a", "mine")
    with pytest.raises(ValueError, match="needs --timed"):
        chosen_suite("quick", decision_times=DECISION_TIMES)
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="charge engine_s is"):
            Charge(engine_s=wrong)
