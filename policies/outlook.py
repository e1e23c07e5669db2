"""What a router can foresee of every engine for the request that has just arrived.

The prediction that prism-plus decides by and that learned routers read as features: this
request's TTFT and TPOT on every engine, from the step model that the engine publishes, its queue
extrapolated to now and the traffic that this router sends there.
Information class: pushed, router.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

import numpy as np

from synergy_gym.jit import kernel
from synergy_gym.policies.prefix_memory import PrefixMap
from synergy_gym.types import (
    ADVERT_TERMS,
    ClusterView,
    CompletionView,
    EngineSpec,
    FloatArray,
    Outcome,
    PushedState,
    RequestView,
)

MAX_UTILISATION = 0.9
STRIDE = 16
"""Every 16th block of a prompt is remembered: 256 tokens are exact enough, and cheap."""
TERMS = len(ADVERT_TERMS)
FIRST_LENGTH_TOKENS = 200.0
RECENT_LENGTHS = 256


@kernel
def miss(pressure, softness):  # type: ignore[no-untyped-def]
    """Probability that an objective is missed whose predicted share `pressure` is used."""
    x = (pressure - 1.0) / softness
    return 1.0 / (1.0 + math.exp(-min(max(x, -50.0), 50.0)))


@kernel
def _steady_s(step_ms, k, others, context, load, backlog_ms, length):  # type: ignore[no-untyped-def]
    """Seconds per token with `others` decodes, prefill taking the share `load` of the time."""
    linear = step_ms[k] + (step_ms[k + 1] + step_ms[k + 2]) * others
    alone = max(linear, step_ms[k + 8]) + (step_ms[k + 3] + step_ms[k + 7] * load) * context
    return (alone / (1.0 - load) + backlog_ms / length) / 1e3


@kernel
def foresee(  # type: ignore[no-untyped-def]
    step_ms, i, in_flight, prompts, pending, running, routed, age_s, last_s, uncached, budget,
    flow_tps, prompt, length,
):  # fmt: skip
    """(TTFT, seconds per token without and with the request, backlog, its prefill, load) on `i`.

    All arrays have one entry per engine, `step_ms` `TERMS` of them (`types.ADVERT_TERMS`).

    The backlog is what was pending at the push, less what the engine prefills meanwhile, plus
    what was routed since; the request's TTFT is the rest of a step, the backlog and its own
    prompt. Every later token takes a steady step: decodes of all in flight, stretched by the share
    of time that prefill of this router's traffic takes (`load`). Backlog and prefill in seconds.
    """
    k = TERMS * i
    others = float(in_flight[i])
    context = prompts[i] + others * length / 2.0
    per_token = step_ms[k + 2] + step_ms[k + 4] * prompt / 2.0
    mixed = step_ms[k + 5] * prompt / 2.0 + step_ms[k + 6] + step_ms[k + 7] * context
    linear = step_ms[k] + (step_ms[k + 1] + step_ms[k + 2]) * others
    alone = max(linear, step_ms[k + 8]) + step_ms[k + 3] * context
    room = max(budget[i] - others, 64.0)
    full = alone + mixed + room * per_token
    left = max(pending[i] - running[i], 0.0) + routed[i]
    left = max(left - room * age_s[i] * 1e3 / full, 0.0)
    work = left + uncached[i]
    ttft = (work * per_token + math.ceil(work / room) * (alone + mixed)) / 1e3
    if others > 0.0:
        ttft += last_s[i] / 2.0
    load = min(flow_tps[i] * per_token / 1e3, MAX_UTILISATION)
    before = _steady_s(step_ms, k, others, context, load, left * per_token, length)
    more = context + prompt + length / 2.0
    after = _steady_s(step_ms, k, others + 1.0, more, load, work * per_token, length)
    return ttft, before, after, left * per_token / 1e3, uncached[i] * per_token / 1e3, load


@kernel
def pressures(ttft, before, after, length, ttft_s, tpot_s, e2e_s):  # type: ignore[no-untyped-def]
    """Largest share of an objective used: by the request, by the others without and with it.

    The times are those of `foresee`; the others have their first token.
    """
    own = max(max(ttft / ttft_s, after / tpot_s), (ttft + length * after) / e2e_s)
    was = max(before / tpot_s, length * before / e2e_s)
    return own, was, max(after / tpot_s, length * after / e2e_s)


@kernel
def share_within(ordered, limit):  # type: ignore[no-untyped-def]
    """Share of the ascending numbers `ordered` that are at most `limit`."""
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] <= limit:
            low = middle + 1
        else:
            high = middle
    return low / len(ordered)


class RecentLengths:
    """The output lengths of the last `RECENT_LENGTHS` finished requests, ascending.

    Attributes:
        ordered: them, tokens; before the first one a guess.
    """

    def __init__(self) -> None:
        self.ordered: FloatArray = np.array([FIRST_LENGTH_TOKENS])
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, tokens: float) -> None:
        """One more has finished."""
        if len(self._recent) == RECENT_LENGTHS:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(tokens)
        insort(self._sorted, tokens)
        self.ordered = np.array(self._sorted)


class RouterMemory:
    """What a router remembers: traffic that it sent, prefixes, output lengths, step models.

    Attributes:
        step_ms: (engines, `TERMS`), every engine's step model as told last; zeros before.
        budget: most tokens of a step of every engine.
        flow_tps: prefill tokens per second that this router has sent to every engine lately.
        length: mean output length of finished requests, tokens.

    Args:
        engines: the cluster.
        flow_s: time constant of `flow_tps`.
        memory: share of `length` that one finished request moves.
    """

    def __init__(
        self, engines: Sequence[EngineSpec], *, flow_s: float = 10.0, memory: float = 0.01
    ) -> None:
        self.budget: FloatArray = np.array([e.max_num_batched_tokens for e in engines], np.float64)
        self.step_ms: FloatArray = np.zeros((len(engines), TERMS))
        self.length = FIRST_LENGTH_TOKENS
        self._flow_s, self._memory = flow_s, memory
        self._flow_tokens = np.zeros(len(engines))
        self._then_s, self._finished = 0.0, 0
        self._prefixes = PrefixMap(engines, stride=STRIDE)
        self._chain: list[int] = []
        self._uncached: FloatArray = np.ones(len(engines))

    @property
    def flow_tps(self) -> FloatArray:
        """Prefill tokens per second sent to every engine, an exponential mean."""
        return self._flow_tokens / self._flow_s

    def observe(self, completion: CompletionView) -> None:
        """Learn how long outputs are."""
        if completion.outcome is Outcome.FINISHED:
            self._finished += 1
            weight = max(self._memory, 1 / self._finished)
            self.length += weight * (max(completion.output_tokens, 1) - self.length)

    def look(self, request: RequestView, cluster: ClusterView) -> FloatArray:
        """Take in the moment; the prompt tokens that every engine would have to compute."""
        self._chain = self._prefixes.chain(request.block_hashes)
        self._prefixes.forget(~cluster.alive)
        uncached = self._prefixes.uncached_tokens(request.prompt_tokens, self._chain)
        self._uncached = uncached.astype(np.float64)
        self._flow_tokens *= math.exp(-(cluster.now_s - self._then_s) / self._flow_s)
        self._then_s = cluster.now_s
        self._learn_models(cluster.pushed)
        return self._uncached

    def sent(self, engine: int) -> None:
        """The request of the last `look` goes to `engine`."""
        self._flow_tokens[engine] += self._uncached[engine]
        self._prefixes.insert(engine, self._chain)

    def knows_models(self, cluster: ClusterView) -> bool:
        """Whether every engine that is up has published a step model."""
        return bool(self.step_ms[cluster.alive].any(axis=1).all())

    def expected_length(self, request: RequestView) -> float:
        """Output tokens to expect: as published for the request, else the mean."""
        expected = request.expected_output_tokens
        return self.length if expected is None else max(expected, 1.0)

    def _learn_models(self, state: PushedState) -> None:
        """A heartbeat carries no model: the last one told stays."""
        told = state.step_ms.any(axis=1)
        self.step_ms[told] = state.step_ms[told]
