"""One engine of the reference simulator, iteration by iteration, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from synergy_gym.sim.plain.engine import Job, Step
from synergy_gym.sim.plain.rules import rule_decision
from synergy_gym.sim.plain.simulator import ReferenceEngine
from synergy_gym.types import SLO, BatchDecision, DecisionRule
from tests.strategies import spec


def engine_with(*jobs: tuple[int, int, int], **changes: Any) -> tuple[ReferenceEngine, list[Job]]:
    """An engine with queued jobs of (prompt, output, priority)."""
    engine = ReferenceEngine(spec(**changes))
    made = [
        Job(i, prompt, output, arrival_ns=i, priority=priority, block_ids=range(1000 * i + 1, 9999))
        for i, (prompt, output, priority) in enumerate(jobs)
    ]
    for job in made:
        engine.add(job)
    return engine, made


def iterate(engine: ReferenceEngine, budget: int = 512, **decision: Any) -> Step:
    step = engine.plan(BatchDecision(budget, **decision), 0)
    engine.commit(step)
    engine.check()
    return step


def served(step: Step) -> dict[int, int]:
    return {job.request: tokens for job, tokens in step.scheduled.items()}


def test_small_budget_serves_the_head_of_the_list() -> None:
    engine, _ = engine_with((5, 9, 0), (5, 9, 0), (5, 9, 0))
    assert served(iterate(engine)) == {0: 5, 1: 5, 2: 5}
    assert served(iterate(engine, 2)) == {0: 1, 1: 1}
    assert served(iterate(engine, 2, running_order=np.array([2, 0, 1]))) == {2: 1, 0: 1}
    assert [job.request for job in engine.running] == [2, 0, 1]


def test_chunk_cap_needs_company() -> None:
    alone, _ = engine_with((100, 1, 0))
    assert served(iterate(alone, prefill_chunk=16)) == {0: 100}
    two, _ = engine_with((100, 1, 0), (100, 1, 0))
    assert served(iterate(two, 20, prefill_chunk=16)) == {0: 16, 1: 4}


def test_seats_bound_admission_but_evict_nobody() -> None:
    engine, _ = engine_with((5, 9, 0), (5, 9, 0), (5, 9, 0))
    assert served(iterate(engine, max_running=2)) == {0: 5, 1: 5}
    assert served(iterate(engine, max_running=1)) == {0: 1, 1: 1}


def test_caps_skip_and_bound_single_requests() -> None:
    engine, _ = engine_with((5, 9, 0), (50, 9, 0), (50, 9, 0))
    step = iterate(engine, token_caps=np.array([0, 7, -1]))
    assert served(step) == {1: 7, 2: 50}
    assert [job.request for job in engine.waiting] == [0]
    assert served(iterate(engine, token_caps=np.array([-1, 0, -1]))) == {1: 43, 0: 5}


def test_fcfs_preempts_the_last_and_admits_nobody_then() -> None:
    engine, jobs = engine_with((16, 20, 0), (16, 20, 0), (1, 5, 0), kv_blocks=3)
    iterate(engine, max_running=2)
    step = iterate(engine)
    assert served(step) == {0: 1}
    assert step.preempted == [jobs[1]]
    assert [job.request for job in engine.waiting] == [1, 2]
    assert (jobs[1].generated, jobs[1].computed, jobs[1].preemptions) == (1, 0, 1)
    assert engine.pool.free == 1


def test_preempted_head_blocks_the_queue_until_all_it_knows_fits() -> None:
    engine, _ = engine_with((16, 20, 0), (16, 20, 0), (1, 5, 0), kv_blocks=3)
    iterate(engine, max_running=2)
    iterate(engine)
    step = iterate(engine)
    assert served(step) == {0: 1}
    assert not step.admitted


def test_priority_evicts_the_least_urgent_even_itself() -> None:
    engine, jobs = engine_with(
        (16, 20, 5), (8, 20, 0), (16, 20, 1), kv_blocks=4, scheduling="priority"
    )
    iterate(engine)
    assert [job.request for job in engine.running] == [1, 2, 0]
    step = iterate(engine, running_order=np.array([1, 2, 0]))
    # 2 takes the last free block; 0 needs one, is the least urgent itself, and the scan ends.
    assert served(step) == {2: 1}
    assert step.preempted == [jobs[0]]


def test_a_scheduled_victim_gives_its_budget_back() -> None:
    engine, jobs = engine_with(
        (8, 20, 5), (16, 20, 0), (4, 20, 0), kv_blocks=3, scheduling="priority"
    )
    iterate(engine)
    step = iterate(engine, 2, running_order=np.array([2, 0, 1]))
    # 0 is scheduled first; 1 needs its block, so 2 gets the token that 0 had.
    assert step.preempted == [jobs[0]]
    assert served(step) == {1: 1, 2: 1}
    assert engine.pool.free == 0


def test_waiting_queue_of_a_priority_engine_is_sorted() -> None:
    engine, _ = engine_with((5, 1, 2), (5, 1, 0), (5, 1, 2), (5, 1, 1), scheduling="priority")
    assert [job.request for job in engine.waiting] == [1, 3, 0, 2]


def test_watermark_applies_only_while_something_runs() -> None:
    engine, _ = engine_with((16, 9, 0), (16, 9, 0), kv_blocks=3, watermark_blocks=2)
    assert served(iterate(engine)) == {0: 16}
    alone, _ = engine_with((48, 1, 0), kv_blocks=3, watermark_blocks=2)
    assert served(iterate(alone)) == {0: 48}


def test_a_preempted_request_finds_its_own_blocks() -> None:
    engine, jobs = engine_with((32, 40, 0), (32, 40, 0), kv_blocks=5, prefix_caching=True)
    iterate(engine)
    assert iterate(engine).preempted == [jobs[1]]
    engine.remove(jobs[0])
    step = iterate(engine)
    assert served(step) == {1: 1}
    assert jobs[1].computed == 33
    assert jobs[1].cached == 0, "the hit of the first admission counts"


def test_eviction_takes_unhashed_blocks_first_then_the_oldest() -> None:
    engine, jobs = engine_with((40, 1, 0), kv_blocks=4, prefix_caching=True)
    iterate(engine)
    pool = engine.pool
    assert pool.lookup(list(jobs[0].block_ids[:3])) == [1, 2]
    assert pool.take(3) == [3, 4, 2], "its unhashed third block, the unused one, its second block"
    assert pool.lookup(list(jobs[0].block_ids[:2])) == [1]
    assert pool.evictions == 1


def test_a_rule_can_cover_all_decodes() -> None:
    engine, _ = engine_with(*[(1, 9, 0)] * 5)
    iterate(engine)
    for cover, budget in [(True, 5), (False, 3)]:
        rule = DecisionRule(3, cover_decodes=cover)
        assert rule_decision(engine, rule, [SLO("default")]).token_budget == budget
