"""A router policy tried out before it serves: compiling must not hold up the first requests.

A proxy decides in its event loop: whatever a policy compiles on first use would stop every stream.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import numpy as np

from synergy_gym.live.router.policy import LiveRouter
from synergy_gym.live.router.state import PUSH_SIZE, RouterState
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.types import SLO, EngineSpec, Outcome, RequestView

_log = logging.getLogger(__name__)

REQUESTS = 16
PAUSE_NS = 20_000_000
STEP_NS = 10_000_000
MODEL_FS = 1_000_000_000
"""Any step-latency model: one that is all zeros counts as none."""


def rehearse_routing(
    policy: RouterPolicy, engines: Sequence[EngineSpec], slos: tuple[SLO, ...]
) -> int:
    """Let a copy of `policy` route made-up requests, then forget the copy.

    The policy itself is not touched. One that fails here is only mentioned: it fails again, and is
    counted, when it serves.

    Returns:
        How many failures there were.
    """
    stand_in, state = copy.deepcopy(policy), RouterState(engines)
    try:
        router = LiveRouter(stand_in, state, slos, np.random.default_rng(0), loud=False)
        for number in range(REQUESTS):
            _play(router, number)
    except Exception as error:
        _log.warning("router policy %s cannot be rehearsed: %r", policy.label, error)
        return 1
    failures = router.failures.total()
    if failures:
        _log.warning("router policy %s failed %d times in rehearsal", policy.label, failures)
    return failures


def _play(router: LiveRouter, number: int) -> None:
    """The engines push, one request arrives, every second request ends."""
    state, now_ns = router.state, (number + 1) * PAUSE_NS
    request = RequestView(
        prompt_tokens=64 + 16 * number,
        arrival_s=now_ns / 1e9,
        session=number % 3,
        block_hashes=np.arange(1, 5 + number, dtype=np.int64),
    )
    for index, spec in enumerate(state.engines):
        state.pushed(index, _vector(spec, now_ns - STEP_NS, number))
    engine, _ = router.choose(request, now_ns)
    state.routed(number, engine, request.prompt_tokens, now_ns, session=request.session)
    if number % 2:
        state.emitted(number, now_ns + STEP_NS, 8)
        state.ended(number, Outcome.FINISHED, now_ns + 2 * STEP_NS)


def _vector(spec: EngineSpec, now_ns: int, running: int) -> list[int]:
    counts = [running, 1, running, spec.kv_blocks, 64 * running]
    told = [STEP_NS, 100_000, STEP_NS, 0, 1000, 1000]
    vector = [now_ns, *counts, *told]
    return [*vector, *[MODEL_FS] * (PUSH_SIZE - len(vector))]
