"""Invariant 5: the token budget, the admission cap and the chunk cap are never exceeded.

Seen from outside: what a policy decides is held against the engine's views before and after the
iteration, and against its step report. Prompt lengths are all different in these episodes, so they
tell requests apart in the views.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.types import BatchDecision, DecisionRule, EngineView, IntArray, StepReport
from tests.strategies import MAX_POINTS, SIMULATORS, Episode, choose, episodes, give, with_points


@dataclass(frozen=True)
class Planned:
    """One decision and what the engine looked like when it was taken."""

    decision: BatchDecision
    view: EngineView
    computed: dict[int, int]
    running: set[int]

    @property
    def cap(self) -> int:
        most = self.decision.max_running
        return self.view.spec.max_num_seqs if most is None else most


def distinct_prompts(episode: Episode) -> Episode:
    """The same episode with prompts of all different lengths, and at every point a decision."""
    workload = episode.workload
    count = len(workload)
    extra = np.random.default_rng(episode.seed).permutation(count)
    spread: IntArray = workload.prompt_tokens // count * count + extra + 1
    traffic = replace(workload, prompt_tokens=spread, content=None)
    free = with_points(episode).arguments
    return Episode({**free, "workload": traffic}, episode.seed)


def planned(decision: BatchDecision, view: EngineView) -> Planned:
    """Remember a decision point."""
    both = (view.running, view.waiting)
    prompts, computed = (
        np.concatenate([getattr(queue, name) for queue in both]).tolist()
        for name in ("prompt_tokens", "computed_tokens")
    )
    running = set(view.running.prompt_tokens.tolist())
    return Planned(decision, view, dict(zip(prompts, computed, strict=True)), running)


def check_step(plan: Planned, step: StepReport) -> None:
    """The report of the iteration that was planned, against the decision."""
    assert step.token_budget == plan.decision.token_budget
    assert step.tokens <= plan.decision.token_budget <= plan.view.spec.max_num_batched_tokens
    assert step.decodes <= step.sequences <= step.tokens
    assert step.decodes + step.prefill_tokens == step.tokens
    if step.admitted:
        assert step.preempted == 0
        assert plan.view.num_running + step.admitted <= plan.cap
    assert step.sequences <= plan.view.spec.max_num_seqs


def check_requests(plan: Planned, view: EngineView) -> None:
    """What each request that is still running got, against chunk cap and its own cap."""
    chunk = plan.decision.prefill_chunk
    alone = plan.view.num_running + plan.view.num_waiting <= 1
    caps = plan.decision.token_caps
    order = list(plan.computed)
    running = view.running
    columns = (running.prompt_tokens.tolist(), running.computed_tokens.tolist())
    for prompt, computed in zip(*columns, strict=True):
        # How much a request found in the prefix cache when it was admitted, no view says.
        if prompt not in plan.running and (view.spec.prefix_caching or prompt not in order):
            continue
        got = computed - (plan.computed[prompt] if prompt in plan.running else 0)
        assert got <= plan.decision.token_budget
        if chunk and not alone:
            assert got <= chunk
        if caps is not None and caps[order.index(prompt)] >= 0:
            assert got <= caps[order.index(prompt)]


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes())
def test_decisions_are_obeyed(simulator: type, episode: Episode) -> None:
    episode = distinct_prompts(episode)
    sim, rng = episode.build(simulator), random.Random(episode.seed)
    plans: dict[int, Planned] = {}
    starts: dict[int, float] = {}
    for _ in range(MAX_POINTS):
        if (point := sim.advance()) == DONE:
            break
        answer = choose(sim, point, rng)
        if point == BATCH:
            engine = sim.point_engine
            view = sim.engine_view(engine)
            assert view.num_running <= view.spec.max_num_seqs
            step, plan = view.last_step, plans.pop(engine, None)
            # No new step: the iteration was discarded, or rejections left nothing to run.
            if plan and step and step.start_s != starts.get(engine):
                check_step(plan, step)
                if quiet(episode):
                    check_requests(plan, view)
            starts[engine] = step.start_s if step else -1.0
            plans[engine] = planned(answer, view)
        give(sim, point, answer)


def quiet(episode: Episode) -> bool:
    """Whether requests leave by finishing only, so that a prompt names one life."""
    return not episode.arguments["events"] and not episode.arguments["client"].timeout_s


@given(episode=episodes())
def test_rules_are_obeyed(episode: Episode) -> None:
    """Compiled decisions keep to their own limits: the simulator's check reads every plan."""
    rules = [DecisionRule(min(8, e.max_num_batched_tokens), 1) for e in episode.engines]
    sim = Episode({**episode.arguments, "rules": rules}, 0).build(SIMULATORS[0])
    rng = random.Random(episode.seed)
    while (point := sim.advance()) != DONE:
        for engine in range(len(episode.engines)):
            check_rule(sim, engine, rules[engine])
        give(sim, point, choose(sim, point, rng))


def check_rule(sim: Any, engine: int, rule: DecisionRule) -> None:
    step = sim.last_step(engine)
    assert step is None or step.tokens <= rule.token_budget
    assert sim.engine_view(engine).num_running <= (rule.max_running or 1)
    sim.check()
