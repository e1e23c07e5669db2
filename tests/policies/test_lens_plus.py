"""lens-plus on small states, and what it must never do in whole episodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation import evaluate
from synergy_gym.policies.engine.lens_plus import MAX_BACKGROUND_STEPS, LensPlus
from synergy_gym.scenario import load_scenario
from synergy_gym.types import (
    SLO,
    BatchDecision,
    EngineSpec,
    EngineStateField,
    EngineView,
    RequestArrays,
)
from tests.engines import A6000, H100

SPEC = EngineSpec("e", *H100, "", 64, 8192, 16384, 20000)
SLOS = (SLO("default", ttft_s=1.0, tpot_s=0.05, e2e_s=20.0),)
Row = tuple[int, int, int, float, float]
"""Prompt, computed, generated tokens, seconds since arrival and since the first token."""


def decode(prompt: int = 1000, generated: int = 10, age: float = 0.2) -> Row:
    return prompt, prompt + generated - 1, generated, age + 0.1, age


def prompt(tokens: int, waited: float = 0.0, computed: int = 0) -> Row:
    return tokens, computed, 0, waited, -1.0


def queue(rows: list[Row]) -> RequestArrays:
    columns = list(zip(*rows, strict=True)) or [()] * 5
    whole = [np.array(columns[i], np.int64) for i in range(3)]
    times = [np.array(columns[i], np.float64) for i in (3, 4)]
    zeros = np.zeros(len(rows), np.int64)
    return RequestArrays(*whole, zeros, *times, zeros, zeros)


def fresh(spec: EngineSpec = SPEC, **parameters: float) -> LensPlus:
    policy = LensPlus(**parameters)
    policy.reset(np.random.default_rng(0), spec, SLOS)
    return policy


def decide(
    policy: LensPlus, running: list[Row], waiting: list[Row], spec: EngineSpec = SPEC
) -> BatchDecision:
    arrays = queue(running), queue(waiting)
    state = np.zeros(len(EngineStateField), np.int64)
    state[EngineStateField.RUNNING], state[EngineStateField.WAITING] = len(running), len(waiting)
    return policy.decide(
        EngineView(spec=spec, slos=SLOS, state=state, last_step=None, fetch=lambda: arrays)
    )


def test_alone_a_prompt_gets_the_whole_budget() -> None:
    decision = decide(fresh(), [], [prompt(5000)])
    assert decision.token_budget == SPEC.max_num_batched_tokens


def test_decodes_on_schedule_bound_the_step() -> None:
    tight = decide(fresh(), [decode(age=0.05 * 9)] * 10, [prompt(5000)])
    loose = decide(fresh(), [decode(age=0.01 * 9)] * 10, [prompt(5000)])
    assert tight.token_budget < loose.token_budget
    # 0.9 x 50 ms less a step of ten decodes, at 0.0235 ms per token (published fit)
    assert 1000 < tight.token_budget < 1700


@pytest.mark.parametrize("lost", [decode(age=30.0), decode(generated=1, age=25.0)])
def test_a_decode_that_has_missed_its_objective_bounds_nothing(lost: Row) -> None:
    with_it = decide(fresh(), [lost, decode(age=0.45)], [prompt(5000)]).token_budget
    without = decide(fresh(), [decode(age=0.45)], [prompt(5000)]).token_budget
    assert with_it == pytest.approx(without, abs=10)


def test_decodes_run_before_prefills_in_every_step() -> None:
    running = [prompt(3000, computed=100), decode(), prompt(2000, computed=50), decode()]
    decision = decide(fresh(), running, [])
    assert decision.running_order is not None
    assert decision.running_order.tolist() == [1, 3, 0, 2]
    assert decide(fresh(), [decode(), prompt(3000)], []).running_order is None


def test_a_prompt_that_cannot_be_on_time_lets_the_others_pass() -> None:
    waiting = [prompt(1000, waited=3.0), prompt(1000, waited=0.2), prompt(1000, waited=0.1)]
    decision = decide(fresh(spare=0.0, late_share=0.0), [decode()] * 5, waiting)
    assert decision.waiting_order is not None
    assert decision.waiting_order.tolist() == [1, 2, 0]
    assert decision.max_running == 7


def test_overdue_prompts_come_in_while_there_is_room() -> None:
    decision = decide(fresh(), [decode()] * 2, [prompt(1000, waited=3.0)])
    assert decision.max_running is None


def test_overdue_prompts_get_their_share_even_under_load() -> None:
    policy = fresh(spare=0.0, late_share=0.2)
    waiting = [prompt(1000, waited=3.0), prompt(1000, waited=0.1)]
    caps, heads = [], []
    for _ in range(10):
        decision = decide(policy, [decode(age=0.45)] * 5, waiting)
        order = [0, 1] if decision.waiting_order is None else decision.waiting_order.tolist()
        caps.append(decision.max_running)
        heads.append(order[0])
    assert 0 in heads
    assert 1 in heads
    assert None in caps


def test_an_overdue_prefill_waits_for_punctual_ones_but_not_for_ever() -> None:
    policy = fresh()
    skipped = 0
    for _ in range(MAX_BACKGROUND_STEPS + 1):
        decision = decide(policy, [decode(), prompt(3000, waited=3.0)], [prompt(500)])
        caps = decision.token_caps
        skipped += caps is not None and caps.tolist() == [-1, 0, -1]
    assert skipped == MAX_BACKGROUND_STEPS


def test_small_chunks_wait_where_mixing_is_dear() -> None:
    a6000 = replace(SPEC, gpu=A6000[0], max_num_batched_tokens=2048)
    policy = fresh(a6000)
    mixed = tuple(239e-6 if i == 7 else x for i, x in enumerate(policy._model.step_ms()))
    policy._model = type(policy._model)(mixed)
    running = [decode(prompt=4000, age=0.05 * 9)] * 12
    budgets = [decide(policy, running, [prompt(2000)], a6000).token_budget for _ in range(12)]
    assert budgets.count(12) > len(budgets) // 2  # steps of decodes alone, saving up
    chunks = [budget - 12 for budget in budgets if budget > 12]
    assert chunks
    assert min(chunks) > 400


class Watched(LensPlus):
    """Counts decodes that a decision would leave without a token."""

    starved = 0

    def decide(self, engine: EngineView) -> BatchDecision:
        decision = super().decide(engine)
        decodes = engine.running.is_decode
        if decision.token_caps is not None:
            capped = decision.token_caps[: engine.num_running][decodes]
            Watched.starved += int((capped == 0).sum())
        order = decision.running_order
        before = decodes if order is None else decodes[order]
        ahead = np.flatnonzero(before)
        prefill_first = len(ahead) and ahead[-1] >= len(ahead)
        Watched.starved += int(prefill_first or decision.token_budget < len(ahead))
        return decision


@pytest.mark.parametrize("load", [1.0, 1.6])
def test_no_decode_is_ever_starved(load: float) -> None:
    Watched.starved = 0
    evaluate("smoke", Watched, load=load, seed=1)
    assert Watched.starved == 0


def test_every_request_is_served_in_the_end() -> None:
    """Overdue ones too, when the load that made them late is over."""
    world: Any = replace(load_scenario("smoke"), horizon_s=10.0, warmup_s=1.0)
    result = evaluate(world, "lens-plus", load=2.0, seed=3)
    assert result.summary["full"]["finished"] == result.summary["full"]["offered"]


@pytest.mark.parametrize("rival", ["vllm-v1", "lens-ref"])
@pytest.mark.parametrize("scenario", ["chat-h100", "two-class-h100", "summarization-h100"])
def test_it_beats_its_rivals_in_overload(scenario: str, rival: str) -> None:
    def attainment(policy: str) -> float:
        result = evaluate(scenario, policy, load=1.3, seed=2000, horizon_s=60.0, warmup_s=20.0)
        return float(result.summary["slo_attainment"])

    assert attainment("lens-plus") > attainment(rival) + 0.1


def test_a_tight_e2e_objective_alone_does_not_starve_the_queue() -> None:
    """Where every step may be as long as prefill needs, plain vLLM attains everything."""
    world = load_scenario("paper-coding-8xh100")
    options = {"load": 54 / world.rate_rps, "seed": 2000, "horizon_s": 40.0, "warmup_s": 20.0}
    ours = evaluate(world, "lens-plus", "round-robin", **options)
    assert ours.summary["slo_attainment"] > 0.97
    assert evaluate(world, "vllm-v1", **options).summary["slo_attainment"] > 0.97
