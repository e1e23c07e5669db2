"""The least engine time that a request can cost, whoever schedules it.

An oracle's view: true output lengths and the simulator's clock (`latency/clock.py`) are known.
Every figure is a lower bound, so that `evaluation/bound.py` can prove what no policy exceeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from synergy_gym.latency.clock import StepTerms
from synergy_gym.scenario import Scenario
from synergy_gym.types import NS_PER_S, SLO, BoolArray, EngineSpec, FloatArray, IntArray
from synergy_gym.workload.base import Workload

NOISE_REACH = 3.47
"""The clock's noise stays within this many standard deviations."""
NEVER_S = 1e9
MAX_SLACK_S = 0.25
"""More slack than this is taken as a share of the work instead."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineWork:
    """What each request at least costs on one kind of engine.

    Attributes:
        engines: how many engines of this kind there are.
        step_s: fixed cost of a step, seconds.
        steps: steps in which the request needs a token: its output length.
        prefill_s: engine time of the prompt, seconds, with the largest possible cache hit and
            without fixed costs.
        decode_s: engine time of the other output tokens, seconds, likewise.
        prefill_share: fixed costs that its prefill must carry even in full steps, in steps.
        decode_share: fixed costs that its decode must carry even in full steps, in steps.
        possible: whether the request could meet its SLO alone on an idle engine.
        slack_s: what to add to deadlines so that the bound holds in expectation over the
            clock's noise.
    """

    engines: int
    step_s: float
    steps: FloatArray
    prefill_s: FloatArray
    decode_s: FloatArray
    prefill_share: FloatArray
    decode_share: FloatArray
    possible: BoolArray
    slack_s: float

    def select(self, rows: BoolArray) -> EngineWork:
        """The same for some of the requests."""
        arrays = ("steps", "prefill_s", "decode_s", "prefill_share", "decode_share", "possible")
        return replace(self, **{name: getattr(self, name)[rows] for name in arrays})


@dataclass(frozen=True, slots=True, eq=False)
class Deadlines:
    """When each request arrives and must have its tokens, seconds; `NEVER_S`: no limit."""

    arrival_s: FloatArray
    first_token_s: FloatArray
    finish_s: FloatArray


def deadlines(workload: Workload, slos: Sequence[SLO]) -> Deadlines:
    """The latest first token and finish with which a request meets its SLO.

    Without a TTFT objective the first token is due with the last one. Finish: the E2E objective,
    and TTFT + TPOT * (output - 1), whichever is earlier.
    """
    limits = [[_seconds(getattr(slo, f"{n}_s")) for slo in slos] for n in ("ttft", "tpot", "e2e")]
    ttft, tpot, e2e = np.array(limits)[:, workload.slo_class]
    arrival = workload.arrival_ns / NS_PER_S
    finish = np.minimum(e2e, np.minimum(ttft + tpot * (workload.output_tokens - 1), NEVER_S))
    return Deadlines(arrival, arrival + np.minimum(ttft, finish), arrival + finish)


def _seconds(limit: float | None) -> float:
    return NEVER_S if limit is None else limit


def engine_work(scenario: Scenario, workload: Workload) -> list[EngineWork]:
    """`EngineWork` of every kind of engine in the scenario.

    Raises:
        ValueError: what the lower bounds do not cover: another clock than the measured one,
            arrivals that depend on completions, engines that an event makes faster.
    """
    _check(scenario, workload)
    due = deadlines(workload, scenario.slos)
    kinds: dict[tuple[EngineSpec, StepTerms], int] = {}
    for spec, terms in zip(scenario.engines, scenario.measured_terms, strict=True):
        kind = (replace(spec, name="", weight=1.0), terms)
        kinds[kind] = kinds.get(kind, 0) + 1
    return [
        _work(spec, terms, count, workload, due, scenario.slos)
        for (spec, terms), count in kinds.items()
    ]


def _check(scenario: Scenario, workload: Workload) -> None:
    if scenario.clock != "measured":
        raise ValueError(
            f"{scenario.name}: clock is {scenario.clock!r}; the bound knows the measured clock only"
        )
    if bool(np.any(workload.after >= 0)):
        raise ValueError(
            f"{scenario.name}: closed-loop arrivals depend on the policy; use open-loop traffic"
        )
    for event in scenario.events:
        if event.kind == "slowdown" and event.factor < 1:
            raise ValueError(
                f"{scenario.name}: an event makes engine {event.engine} faster (factor "
                f"{event.factor}); the bound needs factors >= 1"
            )


def _work(
    spec: EngineSpec,
    terms: StepTerms,
    count: int,
    workload: Workload,
    due: Deadlines,
    slos: Sequence[SLO],
) -> EngineWork:
    prompt = workload.prompt_tokens.astype(np.float64)
    after = workload.output_tokens.astype(np.float64) - 1
    cached = shared = np.zeros(len(prompt))
    if spec.prefix_caching:
        cached, shared = shared_tokens(workload, spec, due)
    new = prompt - cached
    pairs = new * cached + new * (new + 1) / 2
    context = after * prompt + after * (after - 1) / 2
    attention = terms.per_prefill_pair_ms * pairs + terms.per_prefill_context_ms * cached
    prefill_ms = terms.per_token_ms * new + terms.per_sequence_ms + attention
    decode_ms = (terms.per_token_ms + terms.per_sequence_ms) * after
    decode_ms = decode_ms + terms.per_decode_context_ms * context
    share = _fixed_share(spec, new, after, prompt - shared, context - after * shared)
    slack_s, factor = _noise_slack(spec, terms)
    return EngineWork(
        engines=count,
        step_s=factor * terms.base_ms / 1e3,
        steps=workload.output_tokens.astype(np.float64),
        prefill_s=factor * prefill_ms / 1e3,
        decode_s=factor * decode_ms / 1e3,
        prefill_share=share[0],
        decode_share=share[1],
        possible=_possible(spec, terms, workload, new, attention, slos),
        slack_s=slack_s,
    )


def _fixed_share(
    spec: EngineSpec,
    new: FloatArray,
    after: FloatArray,
    own_prompt: FloatArray,
    own_context: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Steps' fixed cost that a request must carry, in steps: (prefill, decode).

    A step has at most `max_num_batched_tokens` tokens, at most `max_num_seqs` sequences, and its
    sequences fit into the KV cache: a request's share of any of the three is its share of the
    step. Each alone bounds the cost; the one that charges most in all is taken.
    """
    tokens, cache = spec.max_num_batched_tokens, spec.kv_blocks * spec.block_size
    shares = (
        (new / tokens, after / tokens),
        (np.full(len(new), 1 / spec.max_num_seqs), after / spec.max_num_seqs),
        (own_prompt / cache, own_context / cache),
    )
    return max(shares, key=lambda share: float(share[0].sum() + share[1].sum()))


def shared_tokens(
    workload: Workload, spec: EngineSpec, due: Deadlines
) -> tuple[FloatArray, FloatArray]:
    """Prompt tokens that other requests can hold in the cache, at most: (computed, held).

    Whole leading blocks that some other request also has. To be computed by that one it must
    arrive before this one's first token is due, to be held for both of them before this one is
    due to finish. The last token is always computed.
    """
    offsets, ids = workload.block_ids(spec.block_size)
    sizes = np.diff(offsets)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    index = np.arange(len(ids)) - np.repeat(offsets[:-1], sizes)
    first, second = _first_two(ids, owner, len(sizes))
    arrival = np.append(due.arrival_s, np.inf)
    found = []
    for until_s in (due.first_token_s, due.finish_s):
        shared = (first != owner) | (arrival[second] <= until_s[owner])
        blocks = workload.prompt_tokens // spec.block_size
        np.minimum.at(blocks, owner[~shared], index[~shared])
        tokens = np.minimum(blocks * spec.block_size, workload.prompt_tokens - 1)
        found.append(tokens.astype(np.float64))
    return found[0], found[1]


def _first_two(ids: IntArray, owner: IntArray, none: int) -> tuple[IntArray, IntArray]:
    """Per block, the first request that has the same one, and the second (`none`: nobody)."""
    order = np.argsort(ids, kind="stable")
    ranked, owners = ids[order], owner[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(ids))))
    follows = np.minimum(starts + 1, max(len(ids) - 1, 0))
    alone = (starts + 1 >= len(ids)) | (ranked[follows] != ranked[starts])
    seconds = np.where(alone, none, owners[follows])
    first, second = np.empty_like(owner), np.empty_like(owner)
    first[order], second[order] = owners[starts][group], seconds[group]
    return first, second


def _possible(
    spec: EngineSpec,
    terms: StepTerms,
    workload: Workload,
    new: FloatArray,
    attention_ms: FloatArray,
    slos: Sequence[SLO],
) -> BoolArray:
    """Whether a request alone on the engine, with the luckiest noise, meets its SLO."""
    lucky = 1 - NOISE_REACH * terms.noise_sd
    steps = np.ceil(new / spec.max_num_batched_tokens)
    linear = (terms.base_ms + terms.per_sequence_ms) * steps + terms.per_token_ms * new
    first_s = lucky * (np.maximum(linear, terms.floor_ms * steps) + attention_ms) / 1e3
    after = workload.output_tokens - 1.0
    context = after * workload.prompt_tokens + after * (after - 1) / 2
    one_ms = max(terms.base_ms + terms.per_sequence_ms + terms.per_token_ms, terms.floor_ms)
    rest_s = lucky * (one_ms * after + terms.per_decode_context_ms * context) / 1e3
    limits = [[_seconds(getattr(slo, f"{n}_s")) for slo in slos] for n in ("ttft", "tpot", "e2e")]
    ttft, tpot, e2e = np.array(limits)[:, workload.slo_class]
    known = workload.prompt_tokens + workload.output_tokens
    fits = (known <= spec.max_model_len) & (known <= spec.kv_blocks * spec.block_size)
    met: BoolArray = (first_s <= ttft) & (rest_s <= tpot * after) & (first_s + rest_s <= e2e)
    return met & fits


def _noise_slack(spec: EngineSpec, terms: StepTerms) -> tuple[float, float]:
    """What noise can add to an interval's capacity on average: (seconds, factor of the work).

    Noise has mean 0 given the past, so that steps that begin in an interval of length L and end
    in it do at most L + E[T max(noise, 0)] of work, T being the step that is in flight at its
    end. E[max(noise, 0)] <= sd / 2 and T is at most the longest step, or the longest one that
    luck can fit into L: the first gives seconds, the second a factor.
    """
    seconds = terms.noise_sd / 2 * _longest_step_s(spec, terms)
    if seconds <= MAX_SLACK_S:
        return seconds, 1.0
    lucky = 1 - NOISE_REACH * terms.noise_sd
    return 0.0, 1 / (1 + terms.noise_sd / 2 / lucky)


def _longest_step_s(spec: EngineSpec, terms: StepTerms) -> float:
    """No step of the engine takes longer, noise apart."""
    tokens, cache = spec.max_num_batched_tokens, spec.kv_blocks * spec.block_size
    # Sequences may share cached blocks, then their contexts add up to more than the cache.
    context = spec.max_num_seqs * spec.max_model_len if spec.prefix_caching else cache
    per_context = terms.per_decode_context_ms + terms.per_mixed_context_ms
    attention = (per_context + terms.per_prefill_context_ms) * context
    attention += terms.per_prefill_pair_ms * tokens * spec.max_model_len
    linear = terms.base_ms + terms.per_sequence_ms * spec.max_num_seqs + terms.per_token_ms * tokens
    linear = max(linear, terms.floor_ms + terms.floor_per_token_ms * tokens)
    linear += max((ms for _, ms in terms.experts_ms), default=0.0)
    linear += terms.per_sample_ms * spec.max_num_seqs
    return (linear + terms.prefill_step_ms + attention) / 1e3
