"""How the arrival rate of load 1.0 changes when a scenario's engines or traffic change.

A scenario's rate was found by simulation (`synergy-gym calibrate`). A world that is drawn at
every reset cannot wait for that, so its rate is scaled by an estimate of what the engines can
carry. At saturation an engine runs b decodes, and every step also computes the b / o prompts
that arrive while b / o requests leave (o: mean output), so by `synergy_gym.latency.clock`
a step of b sequences and S = b * (1 + prompt / o) tokens lasts

    T(b) = max(floor(S), linear(b, S)) + experts(S) + sampling(b) + attention(b)
    rate = (b / o) / T(b)

where b is the largest number for which T(b) keeps the TPOT objective, within `max_num_seqs`
and the KV cache. Prompt tokens that an earlier request has brought cost nothing where the prefix
cache is on. Against the calibrated rates of the packaged scenarios the estimate is 0.77 to 1.47
of the rate, except for on-off arrivals (bursts need reserves); only the ratio of two estimates is
used, so that what both have in common cancels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from synergy_gym.envs.randomisation.knobs import each_part
from synergy_gym.features import DEFAULT_TPOT_S
from synergy_gym.latency.clock import StepTerms
from synergy_gym.scenario import Scenario
from synergy_gym.specs import SLO, EngineSpec
from synergy_gym.workload.base import Workload
from synergy_gym.workload.spec import ArrivalSpec
from synergy_gym.workload.traffic import build_workload

SAMPLE_S = 400.0
"""Seconds of traffic at one request per second that stand for its lengths and prefixes."""
HALVINGS = 40
"""Of the range of concurrent decodes, to find the most that keep the objective."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a mean request asks for.

    Attributes:
        prompt_tokens: mean prompt length.
        prompt_pairs: mean of half the squared prompt length.
        output_tokens: mean output length.
        fresh: share of the blocks that no earlier request has brought, in (0, 1].
    """

    prompt_tokens: float
    prompt_pairs: float
    output_tokens: float
    fresh: float


def demand(scenario: Scenario) -> Demand:
    """The mean request of a scenario's traffic, from `SAMPLE_S` of it with Poisson arrivals."""
    calm = each_part(
        scenario.traffic, lambda part: replace(part, arrivals=ArrivalSpec(), replay=None)
    )
    sample = build_workload(calm, 1.0, SAMPLE_S, _SEED)
    prompt, output = sample.prompt_tokens, sample.output_tokens
    return Demand(
        prompt_tokens=float(prompt.mean()),
        prompt_pairs=float((prompt.astype(np.float64) ** 2).mean() / 2),
        output_tokens=float(output.mean()),
        fresh=_fresh_share(sample, scenario.engines[0].block_size),
    )


def _fresh_share(workload: Workload, block_size: int) -> float:
    if workload.content is None:
        return 1.0
    _, ids = workload.block_ids(block_size)
    return len(np.unique(ids)) / len(ids) if len(ids) else 1.0


def engine_rate_rps(
    spec: EngineSpec, terms: StepTerms, slos: tuple[SLO, ...], asked: Demand
) -> float:
    """Estimate of the requests per second that one engine carries within its objectives."""
    output = asked.output_tokens
    limit_ms = 1000 * _tpot_limit_s(slos, output)
    kv_tokens = spec.kv_blocks * spec.block_size
    most = min(spec.max_num_seqs, kv_tokens / (asked.prompt_tokens + output))
    low, high = 1.0, max(most, 1.0)
    if _step_ms(spec, terms, asked, high) > limit_ms:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            late = _step_ms(spec, terms, asked, middle) > limit_ms
            low, high = (low, middle) if late else (middle, high)
        high = low
    return high / output / _step_ms(spec, terms, asked, high) * 1000


def _step_ms(spec: EngineSpec, terms: StepTerms, asked: Demand, decodes: float) -> float:
    """A step of `decodes` and of their share of the prompts; it increases with `decodes`."""
    output = asked.output_tokens
    fresh = asked.fresh if spec.prefix_caching else 1.0
    tokens = decodes * (1 + fresh * asked.prompt_tokens / output)
    context = decodes * (asked.prompt_tokens + output / 2)
    floor_ms = terms.floor_ms + terms.floor_per_token_ms * tokens
    linear_ms = terms.base_ms + terms.per_sequence_ms * decodes + terms.per_token_ms * tokens
    at, experts_ms = zip(*terms.experts_ms, strict=True) if terms.experts_ms else ((0,), (0.0,))
    return (
        max(floor_ms, linear_ms)
        + float(np.interp(tokens, at, experts_ms))
        + terms.per_sample_ms * decodes
        + terms.prefill_step_ms
        + context * (terms.per_decode_context_ms + terms.per_mixed_context_ms)
        + terms.per_prefill_pair_ms * decodes * fresh * asked.prompt_pairs / output
    )


def _tpot_limit_s(slos: tuple[SLO, ...], output_tokens: float) -> float:
    declared = [slo.tpot_s for slo in slos if slo.tpot_s is not None]
    declared += [slo.e2e_s / output_tokens for slo in slos if slo.e2e_s is not None]
    return min(declared, default=DEFAULT_TPOT_S)


def engine_rates_rps(scenario: Scenario, asked: Demand) -> list[float]:
    """`engine_rate_rps` of every engine of a cluster."""
    pairs = zip(scenario.engines, scenario.measured_terms, strict=True)
    return [engine_rate_rps(spec, terms, scenario.slos, asked) for spec, terms in pairs]


def round_robin_rate_rps(scenario: Scenario, asked: Demand) -> float:
    """What a cluster carries that deals requests out in turn: the slowest engine sets it.

    Load 1.0 of the packaged scenarios is defined with `round-robin`, too.
    """
    return len(scenario.engines) * min(engine_rates_rps(scenario, asked))
