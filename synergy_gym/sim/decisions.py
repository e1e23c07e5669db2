"""What a decision or a rule may say; both simulators ask here (invariant 12)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from synergy_gym.limits import is_integer as is_integer
from synergy_gym.types import (
    ADVERT_TERMS,
    BatchDecision,
    DecisionRule,
    EngineAdvert,
    EngineSpec,
    IntArray,
)

# Above these a whole number of femtoseconds or milli-tokens/s, or a sum of ten, leaves int64.
MOST_STEP_S = 1e6
MOST_TPS = 1e12
MOST_TERM_MS = 1e6
_LIMITS = (("predicted_step_s", MOST_STEP_S), ("capacity", MOST_TPS), ("peak_tps", MOST_TPS))


def check_decision(spec: EngineSpec, decision: BatchDecision, running: int, waiting: int) -> None:
    """Raise `ValueError` naming field, value and cure when `decision` is not legal now.

    `running` and `waiting` count the engine's requests.
    """
    check_limits(spec, decision.token_budget, decision.max_running, decision.prefill_chunk)
    if decision.running_order is not None:
        _check_order("running_order", decision.running_order, running)
    if decision.waiting_order is not None:
        _check_queue(spec)
        _check_order("waiting_order", decision.waiting_order, waiting)
    if decision.token_caps is not None:
        _check_caps(decision.token_caps, running, waiting)
    if decision.advert is not None:
        check_advert(decision.advert)


def check_advert(advert: EngineAdvert) -> None:
    """Raise `ValueError` naming field, value and cure when `advert` cannot be published."""
    if not isinstance(advert, EngineAdvert):
        raise ValueError(f"advert is {advert!r}; give an EngineAdvert or None")
    if len(advert.step_ms) not in (0, len(ADVERT_TERMS)):
        raise ValueError(
            f"advert.step_ms has {len(advert.step_ms)} coefficients; give {len(ADVERT_TERMS)} "
            f"({', '.join(ADVERT_TERMS)}) or none"
        )
    for name, most in _LIMITS:
        if (value := getattr(advert, name)) is not None:
            _check_published(name, value, most)
    for name, value in zip(ADVERT_TERMS, advert.step_ms, strict=False):
        _check_published(f"step_ms ({name})", value, MOST_TERM_MS)


def _check_published(name: str, value: Any, most: float) -> None:
    number = isinstance(value, int | float | np.integer | np.floating)
    if not (number and math.isfinite(value) and 0 <= value <= most):
        raise ValueError(f"advert.{name} is {value!r}; it must be finite and in 0..{most:g}")


def check_rule(spec: EngineSpec, rule: DecisionRule) -> None:
    """Raise `ValueError` when `rule` can never be legal on this engine."""
    check_limits(spec, rule.token_budget, rule.max_running, rule.prefill_chunk)
    if rule.order != "queue":
        _check_queue(spec)


def check_limits(spec: EngineSpec, budget: int, max_running: int | None, chunk: int) -> None:
    """Raise `ValueError` when a number lies outside what the engine was started with."""
    cap = spec.max_num_seqs if max_running is None else max_running
    given = {"token_budget": budget, "max_running": cap, "prefill_chunk": chunk}
    for name, value in given.items():
        if not is_integer(value):
            raise ValueError(f"{name} is {value!r}; give a whole number")
    if not 1 <= budget <= spec.max_num_batched_tokens:
        raise ValueError(
            f"token_budget is {budget}; engine {spec.name!r} takes 1..{spec.max_num_batched_tokens}"
        )
    if not 1 <= cap <= spec.max_num_seqs:
        raise ValueError(
            f"max_running is {cap}; engine {spec.name!r} takes 1..{spec.max_num_seqs} or None"
        )
    if chunk < 0:
        raise ValueError(f"prefill_chunk is {chunk}; use 0 (no cap) or a positive number of tokens")
    if chunk >= 1 << 63:
        raise ValueError(f"prefill_chunk is {chunk}; use 0 (no cap) or a number below 2**63")


def _check_order(name: str, order: IntArray, length: int) -> None:
    array = np.asarray(order)
    whole = array.dtype.kind in "iu" or not array.size
    if not whole or not np.array_equal(np.sort(array), np.arange(length)):
        raise ValueError(f"{name} must be a permutation of range({length}), it is {order!r}")


def _check_caps(caps: IntArray, running: int, waiting: int) -> None:
    array = np.asarray(caps)
    whole = array.dtype.kind in "iu" or not array.size
    shaped = whole and array.shape == (running + waiting,)
    if not shaped or bool(np.any(array < -1)) or int(array.max(initial=0)) >= 1 << 63:
        raise ValueError(
            f"token_caps must hold {running} + {waiting} values (running, then waiting): "
            f"-1 free, 0 skip, n at most n tokens; it is {caps!r}"
        )


def _check_queue(spec: EngineSpec) -> None:
    if spec.scheduling != "fcfs":
        raise ValueError(
            f"engine {spec.name!r} schedules by priority, which fixes the order of its waiting "
            "queue; leave waiting_order out or use scheduling 'fcfs'"
        )
