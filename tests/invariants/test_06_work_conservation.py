"""Invariant 6: no request that the decision admits waits while the iteration has room for it.

The test plans nothing itself. It keeps its own account of one engine without prefix caching, from
the views before and after each iteration, and asks of whoever is at the head of the queue: was
there budget, a place under the cap, and memory? Then it should have run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.latency.clock import StepTerms
from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    EngineSpec,
    EngineView,
    RequestArrays,
)
from synergy_gym.workload.base import Workload, make_workload
from tests.strategies import MAX_POINTS, SEEDS, SIMULATORS

BLOCK = 4
LONGEST = 60
"""Most tokens of a request; every engine here has memory for one, so none is rejected."""


@dataclass(frozen=True)
class Queued:
    """One request of a view."""

    prompt: int
    computed: int
    generated: int

    @property
    def known(self) -> int:
        return self.prompt + self.generated


def queue(arrays: RequestArrays) -> list[Queued]:
    columns = (arrays.prompt_tokens, arrays.computed_tokens, arrays.generated_tokens)
    return [Queued(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def distinct(rng: np.random.Generator, count: int) -> Workload:
    """Prompts of all different lengths, so that they tell requests apart."""
    prompt = rng.permutation(np.arange(1, LONGEST - 20))[:count]
    arrival = np.sort(rng.integers(0, NS_PER_S // 5, count))
    return make_workload(arrival, prompt, rng.integers(1, 20, count))


@st.composite
def engines(draw: st.DrawFn) -> EngineSpec:
    return EngineSpec(
        name="e",
        gpu="g",
        model="m",
        profile="p",
        max_num_seqs=draw(st.sampled_from([1, 3, 16])),
        max_num_batched_tokens=draw(st.sampled_from([8, 64])),
        max_model_len=LONGEST,
        kv_blocks=draw(st.sampled_from([16, 24, 100])),
        block_size=BLOCK,
        watermark_blocks=draw(st.sampled_from([0, 2])),
    )


@dataclass(frozen=True)
class Plan:
    """A decision, and the queues that it was taken on."""

    decision: BatchDecision
    running: list[Queued]
    waiting: list[Queued]


def check_plan(plan: Plan, after: EngineView, outputs: dict[int, int]) -> None:
    """Nobody at the head of the queue was passed over in the iteration just finished."""
    step = after.last_step
    assert step is not None
    if step.preempted:
        return  # whoever was preempted, nobody is admitted (vLLM)
    taken = plan.running + plan.waiting[: step.admitted]
    now = {item.prompt: item.computed for item in queue(after.running)}
    # Who is gone has finished: all tokens but the last were computed.
    held = [blocks(now.get(i.prompt, i.prompt + outputs[i.prompt] - 1)) for i in taken]
    if not plan.waiting[step.admitted :]:
        assert step.sequences > 0
        return
    head = plan.waiting[step.admitted]
    cap = plan.decision.max_running or after.spec.max_num_seqs
    spare = after.spec.watermark_blocks if taken else 0
    assert (
        step.tokens == plan.decision.token_budget
        or len(taken) >= cap
        or blocks(head.known) + spare > after.spec.kv_blocks - sum(held)
    ), f"{head} waits although it fits"


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(spec=engines(), count=st.integers(1, 30), seed=SEEDS)
def test_who_fits_runs(simulator: type, spec: EngineSpec, count: int, seed: int) -> None:
    workload = distinct(np.random.default_rng(seed), count)
    outputs = dict(
        zip(workload.prompt_tokens.tolist(), workload.output_tokens.tolist(), strict=True)
    )
    sim = simulator(
        engines=[spec],
        clocks=[StepTerms(base_ms=3.0, per_token_ms=0.1).clock()],
        workload=workload,
        slos=[SLO("any")],
        auto_route=True,
    )
    rng, plan = random.Random(seed), None
    while sim.advance() != DONE:
        view = sim.engine_view(0)
        if plan is not None:
            check_plan(plan, view, outputs)
        decision = BatchDecision(
            token_budget=rng.randint(1, spec.max_num_batched_tokens),
            max_running=rng.choice([None, rng.randint(1, spec.max_num_seqs)]),
            prefill_chunk=rng.choice([0, 0, 3]),
        )
        plan = Plan(decision, queue(view.running), queue(view.waiting))
        sim.batch(decision)


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(spec=engines(), seed=SEEDS)
def test_an_engine_with_work_never_rests(simulator: type, spec: EngineSpec, seed: int) -> None:
    """Between two iterations there is a gap only while the engine is empty."""
    workload = distinct(np.random.default_rng(seed), 20)
    sim = simulator(
        engines=[spec],
        clocks=[StepTerms(base_ms=3.0).clock()],
        workload=workload,
        slos=[SLO("any")],
        auto_route=True,
    )
    left = False
    while sim.advance() == BATCH:
        step = sim.last_step(0)
        now_s = sim.now_ns / NS_PER_S
        if step is not None and left:
            assert step.start_s + step.step_s == pytest.approx(now_s, abs=1e-9)
        in_time = int(np.searchsorted(workload.arrival_ns, sim.now_ns, side="right"))
        sim.batch(BatchDecision(spec.max_num_batched_tokens))
        # More has arrived than can have left before the end of this iteration.
        left = in_time - int((sim.records().finish_ns >= 0).sum()) > spec.max_num_seqs


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_an_empty_iteration_is_the_policys_own_choice(simulator: type) -> None:
    """Skipping everybody is legal; the step lasts to the next arrival or the floor, and counts."""
    sim = simulator(
        engines=[EngineSpec("e", "g", "m", "p", 4, 64, 64, 100)],
        clocks=[StepTerms(base_ms=3.0).clock()],
        workload=make_workload(np.array([0, 50_000_000]), np.array([5, 5]), np.array([1, 1])),
        slos=[SLO("any")],
        auto_route=True,
    )
    ends = []
    for waiting in (1, 2):
        assert sim.advance() == BATCH
        assert sim.engine_view(0).num_waiting == waiting
        sim.batch(BatchDecision(64, token_caps=np.zeros(waiting, np.int64)))
        ends.append(sim.now_ns)
    for _ in range(MAX_POINTS):
        if sim.advance() == DONE:
            break
        ends.append(sim.now_ns)
        step = sim.last_step(0)
        assert step.sequences == 0
        sim.batch(BatchDecision(64))
    assert ends[:3] == [0, 50_000_000, 53_000_000]
    assert sim.records().finish_ns.tolist() == [56_000_000, 56_000_000]
