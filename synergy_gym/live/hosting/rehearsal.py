"""A policy tried out before it serves, so that compiling does not cost the first requests."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator

import numpy as np

from synergy_gym.policies.base import EnginePolicy
from synergy_gym.seats import EngineSeat
from synergy_gym.sim.plain.server import engine_state
from synergy_gym.types import SLO, EngineSpec, EngineView, RequestArrays, StepReport

log = logging.getLogger(__name__)

STEPS = 40
STEP_S = 0.01


def rehearse(policy: EnginePolicy, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
    """Let a copy of `policy` decide and learn on made-up steps, then forget the copy.

    What compiles on first use, or loads a compiled copy, does so here. The policy itself is not
    touched. A policy that fails here is only mentioned: it fails again, and is counted, when it
    serves.
    """
    stand_in = EngineSeat(copy.deepcopy(policy))
    try:
        stand_in.reset(np.random.default_rng(0), spec, slos)
        for view in _views(spec, slos):
            if view.last_step is not None:
                stand_in.observe(view.last_step)
            stand_in.decision(view)
    except Exception as error:
        log.warning(
            "policy %s failed in its rehearsal: %s: %s", policy.label, type(error).__name__, error
        )


def _views(spec: EngineSpec, slos: tuple[SLO, ...]) -> Iterator[EngineView]:
    """Steps of an engine that gets busier: nothing, prompts, decodes beside waiting prompts."""
    last = None
    for number in range(STEPS):
        now_ns = round((number + 1) * STEP_S * 1e9)
        running = _requests(min(number // 4, spec.max_num_seqs), prefilled=True)
        waiting = _requests(number % 4 + 1, prefilled=False)
        state = engine_state(
            running, waiting, now_ns, last, spec.kv_blocks // 2 + 1, spec.kv_blocks
        )
        yield _view(spec, slos, state, last, running, waiting)
        last = _report(spec, now_ns / 1e9, running, waiting)


def _view(
    spec: EngineSpec,
    slos: tuple[SLO, ...],
    state: np.ndarray,
    last: StepReport | None,
    running: RequestArrays,
    waiting: RequestArrays,
) -> EngineView:
    return EngineView(
        spec=spec, slos=slos, state=state, last_step=last, fetch=lambda: (running, waiting)
    )


def _requests(count: int, *, prefilled: bool) -> RequestArrays:
    number = np.arange(count, dtype=np.int64)
    prompt = 32 + 16 * number
    generated = 1 + number if prefilled else np.zeros(count, np.int64)
    zeros = np.zeros(count, np.int64)
    return RequestArrays(
        prompt_tokens=prompt,
        computed_tokens=prompt + generated - 1 if prefilled else zeros,
        generated_tokens=generated,
        cached_tokens=zeros,
        waited_s=np.linspace(0.01, 0.05, count),
        first_token_age_s=np.full(count, 0.005 if prefilled else -1.0),
        slo_class=zeros,
        priority=zeros,
    )


def _report(
    spec: EngineSpec, start_s: float, running: RequestArrays, waiting: RequestArrays
) -> StepReport:
    prefill = min(int(waiting.prompt_tokens[0]), spec.max_num_batched_tokens)
    tokens = len(running) + prefill
    return StepReport(
        engine=0,
        start_s=start_s,
        step_s=STEP_S * (0.5 + tokens / 1000),
        sequences=len(running) + 1,
        tokens=tokens,
        decodes=len(running),
        prefill_tokens=prefill,
        context_tokens=int(running.computed_tokens.sum()),
        prefill_context_tokens=0,
        prefill_pairs=prefill * (prefill + 1) // 2,
        preempted=0,
        admitted=1,
        finished=0,
        token_budget=spec.max_num_batched_tokens,
    )
