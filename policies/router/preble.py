"""Preble's E2 scheduling (Srivatsa et al., ICLR 2025, arXiv 2407.00023; WukLab/preble).

Taken from there: a request whose known prefix is longer than the rest of its prompt exploits (of
the engines with the longest match the lightest), any other explores (least cost L + M + P). L is
the work given to an engine in a window of 3 minutes, prefill of missed tokens plus decoding at the
mean answer length; P the prefill time of what this prompt misses; M the prefill time of what it
would push out of the cache, times how often that is reused. Time per output token is the mean of an
engine's last 200 answers, 0.15 s before the first (their median, and its start). An exploiting
request leaves the heaviest engine for the lightest while their loads differ by more than the factor
`rebalance_ratio` (their Th_bal, found offline per GPU and model; 15, and never among the first 50
requests, in their code).

Simplified: prefill times come from the step model that engines push instead of an offline
regression; reuse is the engine's share of cached prompt tokens in the window instead of a count per
tree node; block chains stand for their radix tree. Left out: replication of prefixes whose queueing
time doubles, sending long prompts to engines that mostly decode, and the scheduler inside each
engine. Information class: pushed, router.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from synergy_gym.policies.base import RouterPolicy
from synergy_gym.policies.fallback import Fallback
from synergy_gym.policies.prefix_memory import PrefixMap
from synergy_gym.policies.registry import router_policy
from synergy_gym.types import (
    ADVERT_TERMS,
    SLO,
    BoolArray,
    ClusterView,
    CompletionView,
    EngineSpec,
    FloatArray,
    Outcome,
    RequestView,
)

ANSWERS = 200
FIRST_TPOT_MS = 150.0
_TOKEN = ADVERT_TERMS.index("per_token_ms")
_PAIR = ADVERT_TERMS.index("per_prefill_pair_ms")


class _Mean:
    """Mean of the last `ANSWERS` values, beginning with one given value."""

    def __init__(self, first: float) -> None:
        self._values = deque([first])
        self._sum = first
        self.value = first

    def add(self, value: float) -> None:
        self._values.append(value)
        self._sum += value
        if len(self._values) > ANSWERS:
            self._sum -= self._values.popleft()
        self.value = self._sum / len(self._values)


class _Window:
    """What was sent to every engine in the last `window_s` seconds."""

    def __init__(self, engines: int, window_s: float) -> None:
        self._window_s = window_s
        self._sent: deque[tuple[float, int, float, int, int]] = deque()
        self.requests = np.zeros(engines, np.int64)
        self.prefill_ms = np.zeros(engines)
        self.prompt_tokens = np.zeros(engines, np.int64)
        self.cached_tokens = np.zeros(engines, np.int64)

    def note(self, now_s: float, engine: int, prefill_ms: float, prompt: int, cached: int) -> None:
        """`engine` gets a prompt of which it knows `cached` tokens."""
        self.expire(now_s)
        self._sent.append((now_s, engine, prefill_ms, prompt, cached))
        self._count(1, engine, prefill_ms, prompt, cached)

    def expire(self, now_s: float) -> None:
        """Drop what is older than the window."""
        while self._sent and self._sent[0][0] <= now_s - self._window_s:
            self._count(-1, *self._sent.popleft()[1:])

    def _count(self, sign: int, engine: int, prefill_ms: float, prompt: int, cached: int) -> None:
        self.requests[engine] += sign
        self.prefill_ms[engine] += sign * prefill_ms
        self.prompt_tokens[engine] += sign * prompt
        self.cached_tokens[engine] += sign * cached


@router_policy("preble", information=("router", "pushed"))
@dataclass
class Preble(RouterPolicy):
    """The lightest engine with most of the prompt cached, else the least total cost.

    Attributes:
        window_s: span over which load is counted.
        rebalance_ratio: heaviest load over lightest above which exploiting requests move.
        rebalance_after: requests before any of them moves.
        per_token_ms: prefill time of a token on an engine that has published no model.
        output_tokens: length of an answer before any was seen.
        memory_blocks: blocks remembered per engine (0: as many as its KV cache holds).
    """

    window_s: float = 180.0
    rebalance_ratio: float = 15.0
    rebalance_after: int = 50
    per_token_ms: float = 0.05
    output_tokens: float = 45.0
    memory_blocks: int = 0

    def __post_init__(self) -> None:
        """Refuse spans and costs that are not positive, and a ratio that always moves."""
        if min(self.window_s, self.per_token_ms, self.output_tokens) <= 0:
            raise ValueError("preble: window_s, per_token_ms and output_tokens must be > 0")
        if self.rebalance_ratio < 1:
            raise ValueError(f"preble: rebalance_ratio is {self.rebalance_ratio}; use >= 1")

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Forget prefixes, loads and answers."""
        self._known = PrefixMap(engines, self.memory_blocks)
        self._window = _Window(len(engines), self.window_s)
        self._routed = 0
        self._tpot = [_Mean(FIRST_TPOT_MS) for _ in engines]
        self._output = _Mean(self.output_tokens)
        self._tpot_ms = np.full(len(engines), FIRST_TPOT_MS)
        self.no_model = Fallback(
            __name__,
            "preble: an engine has published no step-latency model; its prefill is taken as "
            f"{self.per_token_ms} ms per token",
        )

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """Exploit or explore."""
        alive, prompt = cluster.alive, request.prompt_tokens
        self._known.forget(~alive)
        self._window.expire(cluster.now_s)
        blocks: list[int] = request.block_hashes.tolist()
        matches = self._known.matches(blocks)
        cached = np.minimum(matches * self._known.block_size, prompt - 1)
        token_ms, pair_ms = self._prefill_model(cluster)
        missed = prompt - cached
        prefill = missed * token_ms + missed * (cached + 0.5 * missed) * pair_ms
        load = self.load_ms()
        most = int(cached[alive].max())
        if most > prompt - most:
            choice = self._exploit(cluster, cached == most, load)
        else:
            evicted = np.maximum(len(blocks) - matches - self._known.free_blocks(), 0)
            lost = evicted * self._known.block_size * token_ms * self._reuse()
            choice = cluster.argmin(load + lost + prefill)
        self._known.insert(choice, blocks)
        self._routed += 1
        self._window.note(
            cluster.now_s, choice, float(prefill[choice]), prompt, int(cached[choice])
        )
        return choice

    def observe(self, completion: CompletionView) -> None:
        """Learn answer lengths and times per output token."""
        if completion.outcome is not Outcome.FINISHED:
            return
        tokens, engine = completion.output_tokens, completion.engine
        self._output.add(tokens)
        if tokens > 1:
            ms = (completion.e2e_s - completion.ttft_s) / (tokens - 1) * 1e3
            self._tpot[engine].add(ms)
            self._tpot_ms[engine] = self._tpot[engine].value

    def load_ms(self) -> FloatArray:
        """L: milliseconds of work that every engine was given in the window."""
        answers = self._window.requests * (self._output.value * self._tpot_ms)
        load: FloatArray = self._window.prefill_ms + answers
        return load

    def _exploit(self, cluster: ClusterView, holders: BoolArray, load: FloatArray) -> int:
        choice = cluster.argmin(np.where(holders, load, np.inf))
        if self._routed < self.rebalance_after or choice != cluster.argmax(load):
            return choice
        lightest = cluster.argmin(load)
        return lightest if load[choice] > self.rebalance_ratio * load[lightest] else choice

    def _prefill_model(self, cluster: ClusterView) -> tuple[FloatArray, FloatArray]:
        """Milliseconds per missed token and per query-key pair, per engine."""
        step_ms = cluster.pushed.step_ms
        token_ms = step_ms[:, _TOKEN]
        unknown = token_ms <= 0
        if unknown.any():
            self.no_model.note()
            token_ms = np.where(unknown, self.per_token_ms, token_ms)
        return token_ms, step_ms[:, _PAIR]

    def _reuse(self) -> FloatArray:
        """Share of prompt tokens that every engine had cached in the window."""
        share: FloatArray = self._window.cached_tokens / np.maximum(self._window.prompt_tokens, 1)
        return share
