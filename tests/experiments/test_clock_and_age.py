"""The scripts on model error and age of information: worlds, tables, what must not change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from experiments.step_time import model_error as error
from experiments.studies import information_age as age
from synergy_gym.latency.clock_saturation import SaturationTerms
from synergy_gym.policies.registry import make_engine_policy
from synergy_gym.scenario import load_scenario
from synergy_gym.types import TelemetrySpec


def test_the_two_sweeps_of_age() -> None:
    base = TelemetrySpec(push_interval_s=0.2, push_delay_s=0.7, scrape_interval_s=10.0)
    fresh, old = (age.telemetry(base, "interval", x) for x in (0.0, 5.0))
    assert (fresh.push_interval_s, fresh.push_delay_s, fresh.scrape_interval_s) == (0.001, 0, 0.001)
    assert (old.push_interval_s, old.push_delay_s, old.scrape_interval_s) == (5.0, 0.0, 5.0)
    late = age.telemetry(base, "delay", 5.0)
    assert (late.push_interval_s, late.push_delay_s, late.scrape_interval_s) == (0.1, 5.0, 0.1)


def test_old_information_is_old_and_controls_do_not_notice() -> None:
    cells = [age.Cell("hetero-3", "delay", x, "least-outstanding", 3000, 70.0) for x in (0.0, 5.0)]
    new, old = (age.probe(cell) for cell in cells)
    assert old["pushed_mean_s"] - new["pushed_mean_s"] == pytest.approx(4.9, abs=0.5)
    one, other = (age.play(cell) for cell in cells)
    assert one["log_hash"] == other["log_hash"]
    assert one["slo_attainment"] == other["slo_attainment"]


def test_scraped_routers_are_left_out_of_the_delay_sweep() -> None:
    found = list(age.cells(["round-robin", "least-kv", "least-loaded"], quick=True))
    assert {cell.router for cell in found if cell.sweep == "interval"} == {
        "round-robin", "least-kv", "least-loaded",
    }  # fmt: skip
    assert {cell.router for cell in found if cell.sweep == "delay"} == {"round-robin", "least-kv"}
    assert age.available(["round-robin", "no-such-router"]) == ["round-robin"]


def test_the_loss_is_paired_by_seed() -> None:
    rows = [
        {"scenario": "hetero-3", "sweep": "interval", "router_policy": "least-kv", "seed": seed,
         "age_s": age_s, "slo_attainment": level - 0.02 * age_s}
        for seed, level in ((1, 0.9), (2, 0.7))
        for age_s in (0.0, 10.0)
    ]  # fmt: skip
    table = age.table(pd.DataFrame(rows))
    assert table.loc[0, ["0 s", "10 s", "loss"]].tolist() == pytest.approx([80.0, 60.0, 20.0])
    assert (table.loss_low[0], table.loss_high[0]) == (20.0, 20.0)


def test_each_policy_meets_its_perfect_world() -> None:
    known = {form: error.published("chat-h100", form) for form in error.PERFECT_CLOCKS}
    lines = list(error.line_up("chat-h100", known, ["lens-ref", "lens-6p"]))
    perfect = [(clock, policy, model) for clock, policy, kind, model in lines if kind == "perfect"]
    assert [(clock, policy) for clock, policy, _ in perfect] == [
        ("saturation", "lens-ref"),
        ("saturation-six", "lens-6p"),
    ]
    for clock, policy, model in perfect:
        (terms,) = error.world("chat-h100", clock).terms
        assert isinstance(terms, SaturationTerms)
        assert terms.model == model
        assert model.form == error.form_of(policy)
    assert error.published("flowgpt-8xh100", "six") is None


def test_a_given_model_is_the_one_that_lens_plans_with() -> None:
    given = error.published("chat-a6000", "stable")
    policy = error.with_model("lens-ref", given)
    scenario = load_scenario("chat-h100")
    policy.reset(np.random.default_rng(0), scenario.engines[0], scenario.slos)
    assert policy._model.current == given
    assert policy.parameters() == make_engine_policy("lens-ref").parameters()


def test_recorded_steps_are_those_of_the_policy_itself() -> None:
    steps = error.steps_of("chat-h100", ("vllm-v1",), (0.2,), 1000)
    assert len(steps) > 100
    assert (steps.tokens >= steps.sequences).all()
    assert steps.decode_only.any()
    assert not steps.decode_only.all()


def test_the_cost_is_lead_less_lead() -> None:
    shares = {("saturation", "vllm-v1", "none"): 0.8, ("measured", "vllm-v1", "none"): 0.9,
              ("saturation", "lens-ref", "perfect"): 0.85, ("measured", "lens-ref", "fitted"): 0.8,
              ("measured", "lens-ref", "published"): 0.6}  # fmt: skip
    rows = [
        {"scenario": "chat-h100", "clock": clock, "policy": policy, "model": model, "load": load,
         "seed": 1, "slo_attainment": share}
        for (clock, policy, model), share in shares.items()
        for load in (0.8, 1.0)
    ]  # fmt: skip
    (row,) = error.table(pd.DataFrame(rows), "slo_attainment").to_dict("records")
    leads = [row[f"lead, {model}"] for model in error.MODELS]
    assert leads == pytest.approx([5.0, -10.0, -30.0])
    assert row["cost"] == pytest.approx(35.0)
    assert (row["cost_low"], row["cost_high"]) == (35.0, 35.0)
