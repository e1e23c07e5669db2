"""LENS's search for one step: batch size, token inversion, greedy allocation.

SynergySched's Algorithm 1, "Latency-Guided Unified Scheduling" (arXiv 2509.23384), as in the
authors' engine code (KevinCheung2259/vllm, branch exp-v0.9.1, v1/core/sched/sla_aware). Every
batch size Bc from the running requests to all requests is a candidate; the step model says how
many tokens Sc make a step of Bc sequences last as long as the target; the greedy allocation of
(Bc, Sc) has b' sequences and s' tokens; the candidate whose T(b', s') is nearest wins.

`search` is the readable definition; `lens_compiled.CompiledSearch` does the same fast. They share
`StepTables`, so that they agree to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from synergy_gym.latency.models.saturation import (
    B_SCALE,
    FLOOR_MS,
    INVERT_LIMIT,
    K_B,
    K_S,
    MIN_GAIN,
    MIN_PEAK,
    OFFSET,
    PEAK,
    S_SCALE,
    T_B,
    T_S,
    WORK,
    WORK_PER_S,
    SaturationModel,
    bisect_tokens,
)
from synergy_gym.types import FloatArray, IntArray

MIN_START_TOKENS = 16
"""A waiting prompt is started only with this many tokens, or whole when it is shorter."""
FREE = -1
"""Token cap of a request that the decision does not mention."""
SKIP = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """What the search of one policy on one engine does not change from step to step.

    Attributes:
        max_tokens: the server's `max_num_batched_tokens`.
        chunk_tokens: most prefill tokens per request, >= 16.
        early_stop: stop when the error is below this share of the target.
        max_candidates: stop after this many batch sizes (None: all).
        spill: requests that the allocation does not reach may use left-over budget.
        cover_decodes: Sc is at least the number of decodes (`lens-guarded`) ...
        backlog_tokens: ... plus this many while anything is left to prefill.
        objective: "target" minimises |T(b', s') - target|; "e2e" minimises
            T(b', b') * output_tokens * (1 + queue_weight * waiting requests not admitted).
        output_tokens: assumed output length of the "e2e" objective.
        queue_weight: its weight of a request left waiting.
        batch_floor: its largest lower bound on Bc (1: off).
    """

    max_tokens: int
    chunk_tokens: int = 512
    early_stop: float = 0.1
    max_candidates: int | None = None
    spill: bool = True
    cover_decodes: bool = False
    backlog_tokens: int = 0
    objective: Literal["target", "e2e"] = "target"
    output_tokens: int = 256
    queue_weight: float = 1.0
    batch_floor: int = 1

    def least_tokens(self, decodes: int, prefills: int) -> int:
        """Lower bound of Sc with that many decodes, running prefills and waiting requests."""
        least = decodes if self.cover_decodes else 1
        return max(1, least + (self.backlog_tokens if prefills else 0))

    def first_batch(self, running: int, waiting: int) -> int:
        """The smallest candidate Bc."""
        if self.objective == "target":
            return max(1, running)
        floor = min(max(int(1 + 2.0 * waiting), 1), self.batch_floor)
        return max(1, running, min(floor, running + waiting))


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """The winner: what the step may take and who gets how much.

    Attributes:
        budget: token budget of the step.
        sequences: requests that get tokens (b'). tokens: their sum (s').
        predicted_ms: T(b', s').
        caps: tokens per request, running then waiting; 0 skips, -1 leaves it free.
        running_order: running requests with prefills behind the served decodes, or None.
    """

    budget: int
    sequences: int
    tokens: int
    predicted_ms: float
    caps: IntArray
    running_order: IntArray | None


class StepTables:
    """T(B, S) of one model, tabulated: a prediction is a division and four additions.

    Both searches read these numbers, so equality of their results does not depend on whose
    `exp` is used. `predict_ms` and `invert` equal the model's own.
    """

    def __init__(self, model: SaturationModel) -> None:
        self.model = model
        v = self._v = model.vector().tolist()
        self.offset, self.least_peak = v[OFFSET], v[MIN_PEAK]
        scaled = [tokens / v[S_SCALE] for tokens in range(INVERT_LIMIT + 1)]
        rows = [
            (v[WORK] + v[WORK_PER_S] * s, max(1.0 - math.exp(-v[K_S] * s), v[MIN_GAIN]), v[T_S] * s)
            for s in scaled
        ]
        self.tokens: FloatArray = np.array(rows).ravel()
        """Work, gain and linear part per token count, three values each."""
        self.batches: FloatArray = np.empty(0)
        """Peak times gain, and linear part per batch size, two values each."""
        self.ensure(256)

    def ensure(self, sequences: int) -> None:
        """Make room for batches of that many sequences."""
        if len(self.batches) > 2 * sequences:
            return
        v = self._v
        scaled = [n / v[B_SCALE] for n in range(2 * sequences + 1)]
        rows = [
            (v[PEAK] * max(1.0 - math.exp(-v[K_B] * b), v[MIN_GAIN]), v[T_B] * b) for b in scaled
        ]
        self.batches = np.array(rows).ravel()

    def predict_ms(self, sequences: int, tokens: int) -> float:
        """Duration of a step; `sequences` must have been ensured."""
        work, gain, linear = self.tokens[3 * tokens : 3 * tokens + 3].tolist()
        peak, per_batch = self.batches[2 * sequences : 2 * sequences + 2].tolist()
        predicted = self.offset + work / max(peak * gain, self.least_peak) + per_batch + linear
        return float(max(predicted, FLOOR_MS))

    def invert(self, sequences: int, target_ms: float) -> int:
        """`SaturationModel.invert`."""
        return bisect_tokens(partial(self.predict_ms, sequences), target_ms)


# --- the readable definition -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queues:
    """What the search sees of an engine's requests, in list order.

    Attributes:
        prompts: prompt tokens of the running requests. computed: their computed tokens.
        waiting: prompt tokens of the waiting requests.
    """

    prompts: list[int]
    computed: list[int]
    waiting: list[int]

    @property
    def decodes(self) -> list[int]:
        """Running requests whose prompt is computed."""
        return [i for i, n in enumerate(self.computed) if n >= self.prompts[i]]

    @property
    def prefills(self) -> list[int]:
        """The other running requests, shortest remaining prompt first, ties in list order."""
        rest = [i for i, n in enumerate(self.computed) if n < self.prompts[i]]
        return sorted(rest, key=lambda i: self.prompts[i] - self.computed[i])


def greedy(queues: Queues, slots: int, tokens: int, chunk: int) -> dict[int, int]:
    """Tokens per request (running, then waiting) when `slots` requests share `tokens` tokens.

    Decodes get one each, then running prefills, then waiting requests up to `chunk` each.
    Every running request has an entry, 0 when tokens or slots have run out; a waiting request
    that is not reached has none.
    """
    given: dict[int, int] = {}
    wanted = [(i, 1) for i in queues.decodes]
    wanted += [(i, min(queues.prompts[i] - queues.computed[i], chunk)) for i in queues.prefills]
    for i, want in wanted:
        given[i] = min(want, tokens) if slots > 0 else 0
        tokens -= given[i]
        slots -= given[i] > 0
    for i, prompt in enumerate(queues.waiting, start=len(queues.prompts)):
        if slots <= 0 or tokens < min(MIN_START_TOKENS, prompt):
            break
        given[i] = min(prompt, chunk, tokens)
        tokens -= given[i]
        slots -= 1
    return given


def search(
    queues: Queues, tables: StepTables, target_ms: float, settings: SearchSettings
) -> Allocation | None:
    """The best candidate; None when none of them gives anybody a token."""
    running, waiting = len(queues.prompts), len(queues.waiting)
    tables.ensure(running + waiting)
    unstarted = len(queues.prefills) + waiting
    least = settings.least_tokens(len(queues.decodes), unstarted)
    best, best_score = None, math.inf
    candidates = range(settings.first_batch(running, waiting), running + waiting + 1)
    for slots in candidates[: settings.max_candidates]:
        solved = max(tables.invert(slots, target_ms), least)
        budget = min(solved, settings.max_tokens, INVERT_LIMIT)
        given = greedy(queues, slots, budget, settings.chunk_tokens)
        score = _score(queues, tables, target_ms, settings, given)
        if score < best_score:
            best, best_score = _allocation(queues, tables, settings, given, budget), score
        if settings.objective == "target" and best_score < settings.early_stop * target_ms:
            break
    return best


def _score(
    queues: Queues,
    tables: StepTables,
    target_ms: float,
    settings: SearchSettings,
    given: dict[int, int],
) -> float:
    served = [i for i, tokens in given.items() if tokens > 0]
    if not served:
        return math.inf
    if settings.objective == "target":
        return abs(tables.predict_ms(len(served), sum(given.values())) - target_ms)
    left = len(queues.waiting) - sum(i >= len(queues.prompts) for i in served)
    step_ms = tables.predict_ms(len(served), len(served))
    return step_ms * settings.output_tokens * (1.0 + settings.queue_weight * left)


def _allocation(
    queues: Queues,
    tables: StepTables,
    settings: SearchSettings,
    given: dict[int, int],
    budget: int,
) -> Allocation:
    count = len(queues.prompts) + len(queues.waiting)
    sequences, tokens = sum(n > 0 for n in given.values()), sum(given.values())
    absent = FREE if settings.spill else SKIP
    return Allocation(
        budget=budget if settings.objective == "target" else tokens,
        sequences=sequences,
        tokens=tokens,
        predicted_ms=tables.predict_ms(sequences, tokens),
        caps=np.array([given.get(i, absent) for i in range(count)], np.int64),
        running_order=_decodes_first(queues, given),
    )


def _decodes_first(queues: Queues, given: dict[int, int]) -> IntArray | None:
    """Prefills in front of the last served decode go to the tail of the running list.

    This is what the authors' scheduling loop does: it rotates a prefill to the tail whenever it
    meets one while served decodes are still to come.
    """
    last = max((i for i in queues.decodes if given[i]), default=-1)
    moved = sorted(i for i in queues.prefills if i < last)
    if not moved:
        return None
    stay = [i for i in range(len(queues.prompts)) if i not in set(moved)]
    return np.array(stay + moved, np.int64)
