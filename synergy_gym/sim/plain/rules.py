"""The decision that a declarative rule stands for, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synergy_gym.sim.plain.engine import Job, ReferenceEngine
from synergy_gym.types import NS_PER_S, SLO, BatchDecision, DecisionRule, IntArray

NEVER_NS = 1 << 61
"""Slack of a request whose class declares no TTFT objective."""


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
