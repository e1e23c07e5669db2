"""prism-plus: where the request, and those already there, are most likely to meet their objectives.

Ours, after SynergySched's PRISM (arXiv 2509.23384): the same pushed state, but instead of a sum of
scores it predicts this request's TTFT, TPOT and E2E on every engine, from the step model that
the engine publishes, its queue extrapolated to now and the traffic that this router sends there.
Information class: pushed, router.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from synergy_gym.jit import kernel
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.fallback import Fallback
from synergy_gym.policies.pacing import objectives
from synergy_gym.policies.prefix_memory import PrefixMap
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import (
    ADVERT_TERMS,
    SLO,
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


@kernel
def _miss(pressure, softness):  # type: ignore[no-untyped-def]
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
def expected_misses(  # type: ignore[no-untyped-def]
    step_ms, in_flight, prompts, pending, running, routed, age_s, last_s, uncached, budget,
    flow_tps, prompt, length, ttft_s, tpot_s, e2e_s, softness, out,
):  # fmt: skip
    """Write to `out` how many more requests miss their SLO if the request goes to each engine.

    All arrays have one entry per engine, `step_ms` `TERMS` of them (`types.ADVERT_TERMS`).

    The backlog is what was pending at the push, less what the engine prefills meanwhile, plus
    what was routed since; the request's TTFT is the rest of a step, the backlog and its own
    prompt. Every later token takes a steady step: decodes of all in flight, stretched by the share
    of time that prefill of this router's traffic takes. The request's own miss and the higher
    chance of a miss of the others there add up.
    """
    for i in range(len(out)):
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
        own = max(max(ttft / ttft_s, after / tpot_s), (ttft + length * after) / e2e_s)
        was = max(before / tpot_s, length * before / e2e_s)
        becomes = max(after / tpot_s, length * after / e2e_s)
        harm = others * (_miss(becomes, softness) - _miss(was, softness))
        out[i] = _miss(own, softness) + harm + 1e-3 * min(own, 1e3)


@router_policy("prism-plus", information=("router", "pushed"))
@dataclass
class PrismPlus(RouterPolicy):
    """The engine where the fewest requests are expected to miss their objectives for this one.

    Attributes:
        softness: uncertainty of a prediction, as a share of the objective.
        flow_s: time constant of the traffic that this router has sent to an engine.
        memory: share of the mean output length that one finished request moves.
    """

    softness: float = 0.15
    flow_s: float = 10.0
    memory: float = 0.01

    def __post_init__(self) -> None:
        """Refuse constants that cannot divide."""
        for name, value in self.parameters().items():
            if not value > 0:
                raise ValueError(f"prism-plus: {name} is {value}; it must be > 0")

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Forget traffic, lengths, prefixes and the engines' models."""
        n = len(engines)
        self._budget = np.array([spec.max_num_batched_tokens for spec in engines], np.float64)
        self._flow_tokens = np.zeros(n)
        self._then_s = 0.0
        self._step_ms = np.zeros((n, TERMS))
        self._scores = np.zeros(n)
        self._length, self._finished = FIRST_LENGTH_TOKENS, 0
        self._limits = objectives(slos)
        self._prefixes = PrefixMap(engines, stride=STRIDE)
        self.no_model = Fallback(
            __name__,
            "prism-plus: an engine has never published a step-latency model (neither its latency "
            "profile nor its policy has one); requests go to the fewest in flight until it does",
        )

    def observe(self, completion: CompletionView) -> None:
        """Learn how long outputs are."""
        if completion.outcome is Outcome.FINISHED:
            self._finished += 1
            weight = max(self.memory, 1 / self._finished)
            self._length += weight * (max(completion.output_tokens, 1) - self._length)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The lowest expected number of further misses; ties to the first."""
        chain = self._prefixes.chain(request.block_hashes)
        self._prefixes.forget(~cluster.alive)
        uncached = self._prefixes.uncached_tokens(request.prompt_tokens, chain)
        scores = self._predict(request, cluster, uncached.astype(np.float64))
        choice = cluster.argmin(scores)
        self._flow_tokens[choice] += uncached[choice]
        self._prefixes.insert(choice, chain)
        return choice

    def _predict(
        self, request: RequestView, cluster: ClusterView, uncached: FloatArray
    ) -> FloatArray:
        state = cluster.pushed
        self._flow_tokens *= math.exp(-(cluster.now_s - self._then_s) / self.flow_s)
        self._then_s = cluster.now_s
        self._learn_models(state)
        if not self._step_ms[cluster.alive].any(axis=1).all():
            self.no_model.note()
            return cluster.in_flight.astype(np.float64)
        expected = request.expected_output_tokens
        expected_misses(
            self._step_ms.reshape(-1), cluster.in_flight, cluster.in_flight_tokens,
            state.pending_tokens, state.running, cluster.routed_tokens_since_push,
            state.age_s, state.step_s, uncached, self._budget, self._flow_tokens / self.flow_s,
            float(request.prompt_tokens), self._length if expected is None else max(expected, 1.0),
            *self._limits[request.slo_class], self.softness, self._scores,
        )  # fmt: skip
        return self._scores

    def _learn_models(self, state: PushedState) -> None:
        """A heartbeat carries no model: the last one told stays."""
        told = state.step_ms.any(axis=1)
        self._step_ms[told] = state.step_ms[told]
