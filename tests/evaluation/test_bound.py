"""The proven bound: work by hand, weak duality, and no policy above it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from synergy_gym.evaluation import bound, evaluate
from synergy_gym.evaluation.bound import attainment_bound, priced_bound
from synergy_gym.evaluation.minimal_work import deadlines, engine_work, shared_tokens
from synergy_gym.latency.clock import StepTerms
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import NS_PER_S, SLO, Event
from synergy_gym.workload.base import Workload, make_workload
from synergy_gym.workload.blocks import session_content

TERMS = StepTerms(base_ms=10.0, per_token_ms=0.1, per_decode_context_ms=0.001)
SHORT = {"horizon_s": 20.0, "warmup_s": 2.0}


def world(
    slo: SLO | None = None, terms: StepTerms = TERMS, *, engines: int = 1, **spec: object
) -> Scenario:
    """Simple engines without prefix caching, everything scored."""
    base = load_scenario("smoke")
    engine = replace(base.engines[0], prefix_caching=False, max_model_len=16_384)
    engine = replace(engine, **spec)  # type: ignore[arg-type]
    named = tuple(replace(engine, name=f"e{i}") for i in range(engines))
    limits = slo or SLO("only", e2e_s=0.9999)  # just inside a price step of 0.25 s
    clocks = (terms,) * engines
    return replace(
        base, engines=named, terms=clocks, measured_terms=clocks, slos=(limits,),
        warmup_s=0.0, horizon_s=10.0,
    )  # fmt: skip


def requests(arrival_s: list[float], prompt: list[int], output: list[int]) -> Workload:
    columns = [np.array(x, np.int64) for x in (prompt, output)]
    return make_workload((np.array(arrival_s) * NS_PER_S).astype(np.int64), *columns)


def test_the_least_work_by_hand() -> None:
    (work,) = engine_work(world(max_num_seqs=4), requests([0.0], [100], [11]))
    # 100 tokens; 10 more decode steps, of 1 token each and contexts 100, 101 .. 109.
    assert work.prefill_s == pytest.approx([0.010], abs=1e-12)
    assert work.decode_s == pytest.approx([10 * 0.0001 + 1045e-6], abs=1e-12)
    # At least a quarter of every step's fixed cost with at most 4 sequences in it.
    assert work.prefill_share == pytest.approx([0.25], abs=1e-12)
    assert work.decode_share == pytest.approx([2.5], abs=1e-12)
    assert (work.step_s, work.steps.tolist(), work.slack_s) == (0.010, [11.0], 0.0)


def test_deadlines_follow_every_objective() -> None:
    slos = (SLO("a", ttft_s=1.0, tpot_s=0.1), SLO("b", ttft_s=1.0, tpot_s=0.1, e2e_s=1.5))
    traffic = replace(requests([3.0, 3.0], [9, 9], [11, 11]), slo_class=np.array([0, 1]))
    due = deadlines(traffic, slos)
    assert due.first_token_s == pytest.approx([4.0, 4.0])
    assert due.finish_s == pytest.approx([5.0, 4.5])
    only = deadlines(requests([3.0], [9], [11]), (SLO("c", e2e_s=2.0),))
    assert (only.first_token_s[0], only.finish_s[0]) == (5.0, 5.0)


def test_only_what_others_computed_in_time_is_free() -> None:
    content = session_content(np.array([-1, 0]), np.array([0, 64]))
    traffic = replace(requests([0.0, 5.0], [64, 96], [4, 4]), content=content)
    spec = replace(world().engines[0], prefix_caching=True, block_size=16)
    slos = (SLO("only", ttft_s=1.0, e2e_s=10.0),)
    computed, held = shared_tokens(traffic, spec, deadlines(traffic, slos))
    assert computed.tolist() == [0.0, 64.0]  # the second comes too late to help the first
    assert held.tolist() == [63.0, 64.0]  # but both may hold the same blocks
    alone = shared_tokens(replace(traffic, content=None), spec, deadlines(traffic, slos))
    assert [x.tolist() for x in alone] == [[0.0, 0.0], [0.0, 0.0]]


def test_the_cheapest_requests_are_kept() -> None:
    """Equal arrivals, one deadline, one output token: Moore's problem, solved by hand."""
    prompts = [2000, 3000, 4000, 5000]  # 0.2, 0.3, 0.4 and 0.5 s beside the fixed cost
    traffic = requests([0.0] * 4, prompts, [1] * 4)
    found = attainment_bound(world(), workload=traffic, step_s=0.25, stepwise=False)
    # 0.2 + 0.3 + 0.4 fit into a second, and a fifth of the last one; fixed costs take 2 %.
    assert found.attainment * 4 == pytest.approx(3.2, abs=0.03)
    assert (found.offered, found.impossible) == (4, 0)


def test_what_nobody_could_serve_is_no_part_of_it() -> None:
    traffic = requests([0.0, 0.0], [100, 12_000], [1, 1])  # 1.2 s of prefill for 1 s
    found = attainment_bound(world(), workload=traffic)
    assert (found.attainment, found.impossible) == (0.5, 1)


def test_any_prices_and_values_hold(rng: np.random.Generator) -> None:
    """Weak duality against every subset that one machine can serve, without splitting."""
    count = 7
    prompts = rng.integers(500, 5000, count).tolist()
    arrivals = sorted(rng.uniform(0, 2, count).tolist())
    scenario, traffic = world(), requests(arrivals, prompts, [1] * count)
    due = deadlines(traffic, scenario.slos)
    work = engine_work(scenario, traffic)
    most = max(
        size
        for size in range(count + 1)
        for chosen in combinations(range(count), size)
        if _feasible(list(chosen), due.arrival_s, due.finish_s, work[0].prefill_s)
    )
    every = np.ones(count, bool)
    for stepwise in (True, False):
        relaxed = bound._relax(work, due, every, 0.0, 0.25, stepwise)
        optimum = bound._solve(relaxed)
        assert optimum is not None
        for _ in range(20):
            prices = rng.exponential(rng.choice([0.1, 1.0, 10.0]), (1, relaxed.steps))
            values = rng.exponential(rng.choice([1e-3, 0.1]), (1, count))
            assert priced_bound(relaxed, bound._Dual(prices, values)) >= most
            assert priced_bound(relaxed, bound._Dual(prices * 0, values * 0)) == count
        assert priced_bound(relaxed, optimum) >= most - 1e-9


def _feasible(chosen: list[int], arrival: np.ndarray, due: np.ndarray, work: np.ndarray) -> bool:
    """Preemptive: the work inside every interval fits into it."""
    for begin in arrival[chosen] if chosen else []:
        for end in due[chosen]:
            inside = [i for i in chosen if arrival[i] >= begin and due[i] <= end]
            if inside and work[inside].sum() > end - begin + 1e-12:
                return False
    return True


def test_the_optimum_is_no_worse_than_one_price(rng: np.random.Generator) -> None:
    scenario = load_scenario("smoke")
    found = attainment_bound(scenario, 1.5, int(rng.integers(1000)))
    finer = attainment_bound(scenario, 1.5, scenario.test_seeds[0], step_s=0.5)
    coarse = attainment_bound(scenario, 1.5, scenario.test_seeds[0], step_s=5.0)
    assert finer.attainment <= coarse.attainment + 1e-6
    assert found.attainment <= 1


@pytest.mark.parametrize(
    ("name", "load", "policy"),
    [("smoke", 2.5, "lens-plus"), ("smoke", 4.0, "shortest-prompt"), ("smoke-cluster", 2.0, "")],
)
def test_no_policy_exceeds_it(name: str, load: float, policy: str, seed: int) -> None:
    scenario = load_scenario(name)
    most = attainment_bound(scenario, load, seed % 2**31)
    result = evaluate(
        scenario, policy or "vllm-v1", "prism-plus", load, seed % 2**31, record_itl=False
    )
    # It bounds the mean over step noise; one short episode may be lucky by a little.
    assert result.summary["slo_attainment"] <= most.attainment + 0.02
    assert most.offered == result.summary["offered"]


def test_overload_cannot_be_served_by_anybody() -> None:
    scenario = load_scenario("smoke")
    light, heavy = (attainment_bound(scenario, load, 3000).attainment for load in (0.5, 6.0))
    assert light > 0.99
    assert heavy < 0.75


def test_a_deadline_that_never_comes_makes_time_free() -> None:
    patient = world(SLO("patient", ttft_s=5.0))
    traffic = requests([0.0] * 50, [400] * 50, [200] * 50)
    for stepwise in (True, False):
        found = attainment_bound(patient, workload=traffic, stepwise=stepwise)
        assert found.attainment == pytest.approx(1.0)


def test_more_engines_serve_more() -> None:
    traffic = requests([0.0] * 40, [2000] * 40, [1] * 40)
    one = attainment_bound(world(), workload=traffic, step_s=0.25)
    four = attainment_bound(world(engines=4), workload=traffic, step_s=0.25)
    assert one.attainment < 0.15
    assert one.attainment * 3.4 < four.attainment < 0.6


def test_what_the_bound_does_not_cover_is_refused() -> None:
    scenario = load_scenario("smoke")
    with pytest.raises(ValueError, match="measured clock only"):
        attainment_bound(scenario.with_clock("saturation"))
    faster = replace(scenario, events=(Event(1.0, "slowdown", 0, factor=0.5),))
    with pytest.raises(ValueError, match="factors >= 1"):
        attainment_bound(faster)
    after = replace(requests([0.0, 1.0], [9, 9], [2, 2]), after=np.array([-1, 0]))
    with pytest.raises(ValueError, match="closed-loop"):
        attainment_bound(world(), workload=after)
    with pytest.raises(ValueError, match="no request arrives"):
        attainment_bound(world(), workload=requests([11.0], [9], [2]))
