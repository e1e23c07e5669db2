"""prism-plus: its prediction in plain Python, and what it does on small clusters."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.policies.outlook import MAX_UTILISATION
from synergy_gym.policies.router.prism_plus import PrismPlus, expected_misses
from synergy_gym.policies.self_correction import LEAST_SOFTNESS, MOST_PROMISES, TRUST, Certainty
from synergy_gym.types import ADVERT_TERMS, NS_PER_S, SLO, Outcome, RouterRow
from tests.policies.routing import Cluster

SLOS = (SLO("default", ttft_s=1.0, tpot_s=0.05, e2e_s=10.0), SLO("none", e2e_s=5.0))
FAST = (7.1, 0.0, 0.0214, 6e-5, 8e-7, 0.0, 0.0, 0.0, 7.2)
SLOW = (10.0, 0.0, 0.1, 1.3e-4, 2.6e-6, 0.0, 0.0, 2.4e-4, 13.8)


def cluster(*models: tuple[float, ...]) -> Cluster:
    made = Cluster("prism-plus", len(models))
    made.policy.reset(made.rng, made.specs, SLOS)
    made.publish(*models)
    made.now_s = 10.0
    made.set(RouterRow.PUSH_NS, *[10 * NS_PER_S] * len(models))
    return made


def test_the_faster_engine_gets_the_request() -> None:
    assert cluster(SLOW, FAST).route() == 1


def test_a_backlog_sends_it_elsewhere_until_its_report_is_old() -> None:
    engines = cluster(FAST, SLOW)
    engines.set(RouterRow.PUSH_PENDING_TOKENS, 60_000, 0)
    assert engines.route() == 1
    engines.set(RouterRow.PUSH_NS, 2 * NS_PER_S, 2 * NS_PER_S)
    assert engines.route() == 0


def test_its_own_traffic_counts_before_any_push() -> None:
    engines = cluster(FAST, FAST)
    assert {engines.route(1000) for _ in range(40)} == {0, 1}


def test_a_prompt_goes_where_its_prefix_is() -> None:
    engines = cluster(FAST, FAST)
    blocks = list(range(100, 612))
    first = engines.route(8192, blocks=blocks)
    engines.now_s += 1000.0  # the traffic that was sent there is forgotten
    assert engines.route(8192, blocks=blocks) == first
    engines.set(RouterRow.IN_FLIGHT, *[100 * (i == first) for i in range(2)])
    assert engines.route(8192, blocks=blocks) == 1 - first


def test_an_engine_that_is_lost_takes_the_overload() -> None:
    engines = cluster(FAST, FAST)
    engines.set(RouterRow.IN_FLIGHT, 450, 4500)
    engines.set(RouterRow.IN_FLIGHT_TOKENS, 520_000, 5_200_000)
    assert engines.route() == 1


def test_an_engine_that_is_down_gets_nothing() -> None:
    engines = cluster(SLOW, FAST)
    engines.set(RouterRow.ALIVE, 1, 0)
    assert engines.route() == 0


def test_a_model_is_corrected_by_the_steps_that_engines_report() -> None:
    engines = cluster(FAST, FAST)
    engines.set(RouterRow.PUSH_RUNNING, 10, 10)
    engines.set(RouterRow.PUSH_STEP_MILLITOKENS, 10_000, 10_000)
    foreseen_ns = round((7.1 + 10 * 0.0214) * 1e6)
    for second in range(11, 15):
        engines.now_s = float(second)
        engines.set(RouterRow.PUSH_NS, *[second * NS_PER_S] * 2)
        engines.set(RouterRow.PUSH_STEP_NS, 2 * foreseen_ns, foreseen_ns)
        engines.route()
    told = np.array([FAST, FAST])
    corrected = engines.policy._correction(told, engines.view(), 200.0) / told[:, :1]
    assert corrected[0, 0] == pytest.approx(2.0**TRUST, rel=0.01)
    assert corrected[1, 0] == pytest.approx(1.0, rel=0.01)


def test_steps_before_the_first_model_correct_nothing() -> None:
    engines = cluster((0.0,) * 9)
    engines.set(RouterRow.PUSH_RUNNING, 10)
    engines.set(RouterRow.PUSH_STEP_MILLITOKENS, 10_000)
    engines.set(RouterRow.PUSH_STEP_NS, 9_000_000)
    for second in range(11, 20):
        engines.now_s = float(second)
        engines.set(RouterRow.PUSH_NS, second * NS_PER_S)
        engines.route()
    corrected = engines.policy._correction(np.array([FAST]), engines.view(), 200.0)
    assert corrected[0, 0] == pytest.approx(7.1 * (9.0 / (7.1 + 10 * 0.0214)) ** TRUST)


def test_its_certainty_follows_its_errors() -> None:
    sure, unsure = cluster(FAST), cluster(FAST)
    for engines, error in ((sure, 0.0), (unsure, 0.5)):
        engines.set(RouterRow.IN_FLIGHT, 1000)
        for _ in range(500):
            engines.set(RouterRow.PUSH_NS, round(engines.now_s * NS_PER_S))
            engines.route(100)
            tpot_s = (float(engines.policy._pressure[0]) + error) * 0.05
            engines.now_s += 0.5 + tpot_s * 99
            engines.finish(0, 100, tpot_s)
    assert sure.policy._certainty.softness == LEAST_SOFTNESS
    assert unsure.policy._certainty.softness == unsure.policy.softness
    assert not sure.policy._certainty._promises


def test_promises_whose_end_is_never_seen_do_not_pile_up() -> None:
    certainty = Certainty(0.15, memory=0.01)
    for second in range(MOST_PROMISES + 100):
        certainty.promise(0, float(second), 0.5, (1.0, 0.05, 10.0))
    assert len(certainty._promises) == MOST_PROMISES


def test_a_heartbeat_does_not_erase_a_model() -> None:
    engines = cluster(SLOW, FAST)
    engines.route()
    engines.publish([0.0] * 9, [0.0] * 9)
    assert engines.route() == 1
    assert engines.policy.no_model.count == 0


def test_without_a_model_the_fewest_in_flight_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engines = cluster((0.0,) * 9, FAST)
    engines.set(RouterRow.IN_FLIGHT, 1, 2)
    with caplog.at_level(logging.WARNING):
        assert [engines.route() for _ in range(3)] == [0, 0, 0]
    assert engines.policy.no_model.count == 3
    assert caplog.text.count("never published") == 1


def test_lengths_are_learned_from_finished_requests_only() -> None:
    engines = cluster(FAST)
    engines.finish(0, 100)
    engines.finish(0, 9999, outcome=Outcome.ABORTED)
    engines.finish(0, 100)
    assert engines.policy._memory.length == 100.0


@pytest.mark.parametrize("name", ["softness", "flow_s", "memory", "memory_of_steps"])
def test_a_constant_of_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"prism-plus: {name} is 0"):
        PrismPlus(**{name: 0.0})


def miss(pressure: float, softness: float) -> float:
    x = min(max((pressure - 1) / softness, -50.0), 50.0)
    return 1 / (1 + math.exp(-x))


@given(seed=st.integers(0, 2**32 - 1))
def test_prediction_equals_plain_python(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = {name: float(x) for name, x in zip(ADVERT_TERMS, rng.uniform(0, 1, 9), strict=True)}
    scales = (10.0, 1.0, 0.1, 1e-4, 1e-6, 1e-5, 1.0, 1e-4, 12.0)
    model = {name: x * scale for (name, x), scale in zip(model.items(), scales, strict=True)}
    flying, prompts = int(rng.integers(0, 100)), int(rng.integers(0, 200_000))
    pending, running, routed = (float(x) for x in rng.integers(0, 9000, 3))
    age, last, flow = (float(x) for x in rng.uniform(0, 1, 3) * (1, 0.1, 20_000))
    prompt, uncached, length = 1500.0, float(rng.integers(1, 1500)), float(rng.uniform(1, 400))
    ttft_s, tpot_s, e2e_s, softness, budget = 1.0, 0.05, 10.0, 0.15, 2048.0
    pressure, out = np.zeros(1), np.zeros(1)
    expected_misses(
        np.array(list(model.values())), np.array([flying]), np.array([prompts]),
        *(np.array([x]) for x in (pending, running)), np.array([int(routed)]),
        *(np.array([x]) for x in (age, last, uncached, budget, flow)),
        prompt, length, ttft_s, tpot_s, e2e_s, softness, pressure, out,
    )  # fmt: skip

    m = model
    token = m["per_token_ms"] + m["per_prefill_pair_ms"] * prompt / 2

    def alone(others: float, context: float, load: float) -> float:
        linear = m["base_ms"] + (m["per_sequence_ms"] + m["per_token_ms"]) * others
        attention = m["per_decode_context_ms"] + m["per_mixed_context_ms"] * load
        return max(linear, m["floor_ms"]) + attention * context

    context = prompts + flying * length / 2
    mixed = m["per_prefill_context_ms"] * prompt / 2 + m["prefill_step_ms"]
    mixed += m["per_mixed_context_ms"] * context
    room = max(budget - flying, 64.0)
    step = alone(flying, context, 0.0) + mixed
    left = max(pending - running, 0) + int(routed)
    left = max(left - room * age * 1e3 / (step + room * token), 0.0)
    work = left + uncached
    ttft = (work * token + math.ceil(work / room) * step) / 1e3 + (last / 2 if flying else 0)
    load = min(flow * token / 1e3, MAX_UTILISATION)
    before = (alone(flying, context, load) / (1 - load) + left * token / length) / 1e3
    more = context + prompt + length / 2
    after = (alone(flying + 1, more, load) / (1 - load) + work * token / length) / 1e3
    own = max(ttft / ttft_s, after / tpot_s, (ttft + length * after) / e2e_s)
    was, becomes = (max(t / tpot_s, length * t / e2e_s) for t in (before, after))
    harm = flying * (miss(becomes, softness) - miss(was, softness))
    assert pressure[0] == pytest.approx(own)
    assert out[0] == pytest.approx(miss(own, softness) + harm + 1e-3 * min(own, 1e3))
