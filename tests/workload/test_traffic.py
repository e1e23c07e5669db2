"""`TrafficSpec`: composition, presets, classes, common random numbers, and its table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from synergy_gym.workload.base import Workload
from synergy_gym.workload.generators import generate, list_generators
from synergy_gym.workload.presets import PRESETS
from synergy_gym.workload.spec import ArrivalSpec, LengthSpec, SessionSpec, TrafficSpec
from synergy_gym.workload.table import TrafficTable
from synergy_gym.workload.traffic import build_workload, resolve

UNIFORM = LengthSpec("uniform", {"low": 1, "high": 100})
PLAIN = TrafficSpec(prompt=UNIFORM, output=UNIFORM)


def same(one: Workload, other: Workload) -> bool:
    names = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "slo_class", "priority")
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in names)


@pytest.mark.parametrize("name", list_generators())
def test_seeds_fix_the_traffic(name: str) -> None:
    one, again, other = (
        generate(name, rate_rps=5.0, horizon_s=60.0, seed=seed) for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert not same(one, other)


@pytest.mark.parametrize(
    "spec", [PLAIN, TrafficSpec("azure-conv-like"), TrafficSpec("azure-code-like")]
)
def test_another_load_has_the_same_lengths(spec: TrafficSpec) -> None:
    slow, fast = (build_workload(spec, rate, 200.0, 7) for rate in (2.0, 3.0))
    n = min(len(slow), len(fast))
    assert n > 50
    assert slow.prompt_tokens[:n].tolist() == fast.prompt_tokens[:n].tolist()
    assert slow.output_tokens[:n].tolist() == fast.output_tokens[:n].tolist()
    assert slow.slo_class[:n].tolist() == fast.slo_class[:n].tolist()


def test_another_load_has_the_same_conversations() -> None:
    found = []
    for rate in (5.0, 10.0):
        workload = generate(
            "sharegpt-like", rate_rps=rate, horizon_s=200.0, seed=7, slo_mix=(0.5, 0.5)
        )
        columns = (workload.prompt_tokens, workload.output_tokens, workload.slo_class)
        found.append(set(zip(*columns, strict=True)))
    assert len(found[0] & found[1]) > 0.8 * len(found[0])


@pytest.mark.parametrize("spec", [PLAIN, TrafficSpec("flowgpt-like", slo_mix=(0.5, 0.5))])
def test_what_is_kept_of_a_description_is_out_of_reach(spec: TrafficSpec) -> None:
    first, again, other = (build_workload(s, 5.0, 60.0, 1) for s in (spec, spec, replace(spec)))
    assert same(first, again)
    assert same(first, other)
    expected = again.prompt_tokens.tolist()
    first.prompt_tokens[:] = 1
    first.slo_class[:] = 0
    assert build_workload(spec, 5.0, 60.0, 1).prompt_tokens.tolist() == expected
    assert same(build_workload(spec, 5.0, 60.0, 1), again)


def test_own_fields_win_over_the_generator() -> None:
    arrivals = ArrivalSpec("constant")
    full = resolve(TrafficSpec("flowgpt-like", arrivals=arrivals, output=UNIFORM))
    assert (full.arrivals, full.output) == (arrivals, UNIFORM)
    assert full.prompt == PRESETS["flowgpt-like"].prompt
    assert full.sessions == PRESETS["flowgpt-like"].sessions


def test_generate_takes_options() -> None:
    workload = generate(
        "azure-conv-like", rate_rps=2.0, horizon_s=10.0, seed=0, arrivals=ArrivalSpec("constant")
    )
    assert set(np.diff(workload.arrival_ns).tolist()) == {500_000_000}


def test_classes_have_their_shares_and_priorities() -> None:
    spec = replace(PLAIN, slo_mix=(0.2, 0.5, 0.3), priorities=(2, 0, 1))
    workload = build_workload(spec, 100.0, 200.0, 3)
    shares = np.bincount(workload.slo_class) / len(workload)
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.02)
    assert np.array_equal(workload.priority, np.array([2, 0, 1])[workload.slo_class])


def test_a_session_belongs_to_one_class() -> None:
    sessions = SessionSpec(turns=LengthSpec("constant", {"value": 4}), think_s=5.0)
    spec = replace(PLAIN, sessions=sessions, slo_mix=(0.5, 0.5))
    workload = build_workload(spec, 20.0, 100.0, 3)
    classes = {(s, c) for s, c in zip(workload.session, workload.slo_class, strict=True)}
    assert len(classes) == len(set(workload.session.tolist()))
    assert workload.slo_class.mean() == pytest.approx(0.5, abs=0.1)


def test_a_horizon_without_arrivals_is_an_empty_workload() -> None:
    for spec in (PLAIN, TrafficSpec("mooncake-like")):
        workload = build_workload(spec, 1e-6, 1.0, 0)
        assert len(workload) == 0
        assert workload.block_ids(16)[0].tolist() == [0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TrafficSpec(), "needs prompt and output lengths"),
        (TrafficSpec("chat"), "unknown generator 'chat'; choose one of azure-code-like"),
        (replace(PLAIN, slo_mix=(0.5, 0.4)), "sum to 1"),
        (replace(PLAIN, slo_mix=(1.5, -0.5)), "shares >= 0"),
        (replace(PLAIN, priorities=(1, 2)), "2 priorities for 1 SLO classes"),
        (replace(PLAIN, arrivals=ArrivalSpec("bursts")), "unknown arrival process"),
    ],
)
def test_wrong_specs_are_errors(spec: TrafficSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_workload(spec, 1.0, 10.0, 0)


def test_unknown_options_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown option 'think'; choose from arrivals"):
        generate("flowgpt-like", rate_rps=1.0, horizon_s=1.0, seed=0, think=3)


TABLE: dict[str, Any] = {
    "arrivals": {"kind": "gamma", "cv": 2.0},
    "prompt": {"kind": "lognormal", "median": 100.0, "sigma": 1.0, "maximum": 4000},
    "output": {"kind": "quantiles", "levels": (0.0, 1.0), "values": (1, 9)},
    "correlation": 0.2,
    "sessions": {
        "turns": {"kind": "geometric", "mean": 3.0},
        "think_s": 4.0,
        "system_prompts": 2,
        "system_tokens": 100,
    },
    "slo_mix": (0.25, 0.75),
    "priorities": (1, 0),
}


def test_a_table_becomes_a_spec() -> None:
    turns = LengthSpec("geometric", {"mean": 3.0})
    assert TrafficTable.model_validate(TABLE).spec() == TrafficSpec(
        arrivals=ArrivalSpec("gamma", {"cv": 2.0}),
        prompt=LengthSpec("lognormal", {"median": 100.0, "sigma": 1.0}, maximum=4000),
        output=LengthSpec("quantiles", {"levels": (0.0, 1.0), "values": (1, 9)}),
        correlation=0.2,
        sessions=SessionSpec(turns=turns, think_s=4.0, system_prompts=2, system_tokens=100),
        slo_mix=(0.25, 0.75),
        priorities=(1, 0),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": "azure-conv"}, "generator: no 'azure-conv'; did you mean 'azure-co"),
        ({"prompt": None}, "generator: missing; name one, or give both prompt and output"),
        ({"arrivals": {"kind": "gama", "cv": 1.0}}, "kind: no 'gama'; did you mean 'gamma'"),
        ({"arrivals": {"kind": "gamma"}}, 'cv: missing; kind = "gamma" needs it'),
        ({"arrivals": {"kind": "poisson", "cv": 1.0}}, "cv: has no meaning"),
        ({"arrivals": {"kind": "gamma", "cv": -1.0}}, "greater than 0"),
        ({"prompt": {"kind": "constant"}}, 'value: missing; kind = "constant" needs it'),
        ({"prompt": {"kind": "uniform", "low": 9, "high": 3}}, "low <= high"),
        ({"prompt": {"kind": "constant", "value": 3, "minimum": 9, "maximum": 2}}, "swap them"),
        ({"slo_mix": (0.5, 0.2)}, "must be shares that sum to 1"),
        ({"priorities": (1,)}, "must be as many as slo_mix"),
        ({"sessions": {**TABLE["sessions"], "system_tokens": 0}}, "together with system_prompts"),
        ({"sessions": {**TABLE["sessions"], "prompt_correlation": 0.5}}, "no meaning for growth"),
        ({"sesions": {}}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_tables_name_key_and_cure(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrafficTable.model_validate(TABLE | change)
