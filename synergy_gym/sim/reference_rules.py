"""What a decision may say, and the decision that a declarative rule stands for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synergy_gym.sim.reference_engine import Job, ReferenceEngine
from synergy_gym.types import NS_PER_S, SLO, BatchDecision, DecisionRule, EngineSpec, IntArray

NEVER_NS = 1 << 61
"""Slack of a request whose class declares no TTFT objective."""


def check_decision(engine: ReferenceEngine, decision: BatchDecision) -> None:
    """Raise `ValueError` naming field, value and cure when `decision` is not legal now."""
    spec = engine.spec
    check_limits(spec, decision.token_budget, decision.max_running, decision.prefill_chunk)
    running, waiting = len(engine.running), len(engine.waiting)
    _check_order("running_order", decision.running_order, running)
    _check_order("waiting_order", decision.waiting_order, waiting)
    if decision.waiting_order is not None:
        _check_queue(spec)
    caps = decision.token_caps
    if caps is not None and (len(caps) != running + waiting or bool(np.any(caps < -1))):
        raise ValueError(
            f"token_caps must hold {running} + {waiting} values >= -1 (running, then waiting), "
            f"it is {caps!r}"
        )


def check_rule(spec: EngineSpec, rule: DecisionRule) -> None:
    """Raise `ValueError` when `rule` can never be legal on this engine."""
    check_limits(spec, rule.token_budget, rule.max_running, rule.prefill_chunk)
    if rule.order != "queue":
        _check_queue(spec)


def check_limits(spec: EngineSpec, budget: int, max_running: int | None, chunk: int) -> None:
    """Raise `ValueError` when a number lies outside what the engine was started with."""
    if not 1 <= budget <= spec.max_num_batched_tokens:
        raise ValueError(
            f"token_budget is {budget}; engine {spec.name!r} takes 1..{spec.max_num_batched_tokens}"
        )
    if max_running is not None and not 1 <= max_running <= spec.max_num_seqs:
        raise ValueError(
            f"max_running is {max_running}; engine {spec.name!r} takes 1..{spec.max_num_seqs} "
            "or None"
        )
    if chunk < 0:
        raise ValueError(f"prefill_chunk is {chunk}; use 0 (no cap) or a positive number of tokens")


def rule_decision(
    engine: ReferenceEngine, rule: DecisionRule, slos: Sequence[SLO]
) -> BatchDecision:
    """The decision that `rule` takes before the next iteration of `engine`."""
    order = _waiting_order(engine.waiting, rule, slos)
    budget = max(rule.token_budget, engine.num_decodes if rule.cover_decodes else 0)
    return BatchDecision(budget, rule.max_running, rule.prefill_chunk, None, order)


def _waiting_order(
    waiting: Sequence[Job], rule: DecisionRule, slos: Sequence[SLO]
) -> IntArray | None:
    if rule.order == "queue":
        return None
    if rule.order == "shortest-prompt":
        keys = [job.known for job in waiting]
    else:
        keys = [job.arrival_ns + _ttft_ns(slos[job.slo_class]) for job in waiting]
    return np.array(sorted(range(len(waiting)), key=keys.__getitem__), np.int64)


def _ttft_ns(slo: SLO) -> int:
    return NEVER_NS if slo.ttft_s is None else round(slo.ttft_s * NS_PER_S)


def _check_order(name: str, order: IntArray | None, length: int) -> None:
    if order is not None and sorted(order.tolist()) != list(range(length)):
        raise ValueError(f"{name} must be a permutation of range({length}), it is {order!r}")


def _check_queue(spec: EngineSpec) -> None:
    if spec.scheduling != "fcfs":
        raise ValueError(
            f"engine {spec.name!r} schedules by priority, which fixes the order of its waiting "
            "queue; leave waiting_order out or use scheduling 'fcfs'"
        )
