"""Per-request records -> the figures that the leaderboard reports.

Latency figures follow vLLM's `benchmarks/serve.py` (0.32.0, `calculate_metrics`): NumPy's
linear percentiles over finished requests, TPOT = (E2E - TTFT) / (output - 1) over requests
with more than one output token, throughput over the time until the last request is done.
Attainment figures differ on purpose: a request that was rejected, dropped, failed, cut off
or late is a miss, so each is a share of all offered requests (invariant 11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BoolArray,
    FloatArray,
    IntArray,
    Outcome,
    RequestRecords,
)

PERCENTILES: tuple[int, ...] = (50, 90, 95, 99)
NO_HORIZON_NS = 2**62
"""A horizon at or above this means that arrivals were not cut."""

Itl = tuple[IntArray, IntArray]
"""Pooled inter-token gaps: (gap in ns, number of times it occurred)."""


@dataclass(frozen=True, slots=True, eq=False)
class SloMet:
    """Per request, whether it finished within its class's bounds.

    `slo` needs every declared bound; the other three look at one bound each, and a bound
    that the class does not declare is met by finishing.
    """

    slo: BoolArray
    ttft: BoolArray
    tpot: BoolArray
    e2e: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """Seconds per request; NaN for one that did not finish.

    `tpot_s` is 0 for a single output token (vLLM's goodput rule).
    """

    ttft_s: FloatArray
    tpot_s: FloatArray
    e2e_s: FloatArray


def _bounds_ns(slos: Sequence[SLO], name: str, classes: IntArray) -> IntArray:
    bounds = [getattr(slo, name) for slo in slos]
    table = np.array([-1 if b is None else round(b * NS_PER_S) for b in bounds], np.int64)
    return table[classes]


def slo_met(records: RequestRecords, slos: Sequence[SLO]) -> SloMet:
    """Compare every request with the bounds of its class, in whole nanoseconds.

    TPOT is compared in whole numbers: finish - first token <= bound * (emitted - 1).

    Raises:
        ValueError: a record's `slo_class` is not an index into `slos`.
    """
    classes = records.slo_class
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(slos):
        raise ValueError(
            f"records name SLO classes {int(classes.min())}..{int(classes.max())}, "
            f"but {len(slos)} are declared; pass the scenario's `slos`"
        )
    done = records.outcome == Outcome.FINISHED
    ttft, tpot, e2e = (_bounds_ns(slos, f"{name}_s", classes) for name in ("ttft", "tpot", "e2e"))
    decode_ns = records.finish_ns - records.first_token_ns
    gaps = np.maximum(records.emitted_tokens - 1, 0)
    in_ttft = done & ((ttft < 0) | (records.first_token_ns - records.arrival_ns <= ttft))
    # That product could leave int64; x <= b * n is (x - 1) // n < b.
    late = np.where(gaps > 0, (decode_ns - 1) // np.maximum(gaps, 1) >= tpot, decode_ns > 0)
    in_tpot = done & ((tpot < 0) | ~late)
    in_e2e = done & ((e2e < 0) | (records.finish_ns - records.arrival_ns <= e2e))
    return SloMet(slo=in_ttft & in_tpot & in_e2e, ttft=in_ttft, tpot=in_tpot, e2e=in_e2e)


def latencies(records: RequestRecords) -> Latencies:
    """TTFT, TPOT and E2E of every request, from its first arrival on."""
    done = records.outcome == Outcome.FINISHED
    ttft = np.where(done, (records.first_token_ns - records.arrival_ns) / NS_PER_S, np.nan)
    e2e = np.where(done, (records.finish_ns - records.arrival_ns) / NS_PER_S, np.nan)
    gaps = np.maximum(records.emitted_tokens - 1, 1)
    decode = (records.finish_ns - records.first_token_ns) / NS_PER_S / gaps
    several = np.where(records.emitted_tokens > 1, decode, 0.0)
    return Latencies(ttft_s=ttft, tpot_s=np.where(done, several, np.nan), e2e_s=e2e)


def scored(records: RequestRecords, warmup_ns: int, horizon_ns: int) -> BoolArray:
    """Requests that count: first arrival in [warm-up, horizon).

    A closed-loop turn that never arrived (arrival -1) counts too: sessions are scored over
    all planned turns.
    """
    arrival = records.arrival_ns
    inside: BoolArray = (arrival >= warmup_ns) & (arrival < horizon_ns)
    return inside | (arrival < 0)


def jain_index(values: Sequence[float] | FloatArray | IntArray) -> float:
    """Jain's fairness index (sum x)^2 / (n * sum x^2): 1/n (one takes all) .. 1 (equal).

    Source: Jain, Chiu and Hawe, DEC-TR-301, 1984. NaN without a positive value.
    """
    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    squares = float(np.sum(x * x))
    return float(np.sum(x)) ** 2 / (len(x) * squares) if squares > 0 else float("nan")


def weighted_percentile(
    values: FloatArray, weights: IntArray, percentiles: Sequence[float]
) -> FloatArray:
    """`np.percentile(np.repeat(values, weights), percentiles)` without the expansion.

    Bit for bit equal: NumPy's linear method, its two-sided interpolation included. NaN
    when the weights sum to 0.
    """
    q = np.asarray(percentiles, np.float64) / 100
    keep = weights > 0
    order = np.argsort(values[keep], kind="stable")
    ordered, counts = values[keep][order], np.cumsum(weights[keep][order])
    if not len(counts):
        return np.full(len(q), np.nan)
    position = (int(counts[-1]) - 1) * q
    low = np.floor(position)
    fraction = position - low
    before = ordered[np.searchsorted(counts, low, side="right")]
    after_index = np.minimum(low + 1, counts[-1] - 1)
    after = ordered[np.searchsorted(counts, after_index, side="right")]
    step = after - before
    result: FloatArray = np.where(
        fraction >= 0.5, after - step * (1 - fraction), before + step * fraction
    )
    return result


def _spread(name: str, values: FloatArray) -> dict[str, float]:
    nan = float("nan")
    if not len(values):
        return {f"{name}_{k}_s": nan for k in ("mean", "std", *(f"p{p}" for p in PERCENTILES))}
    figures = {f"{name}_mean_s": float(np.mean(values)), f"{name}_std_s": float(np.std(values))}
    for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True):
        figures[f"{name}_p{p}_s"] = float(value)
    return figures


def itl_summary(itl: Itl) -> dict[str, float]:
    """Mean, standard deviation and percentiles of the pooled inter-token gaps, seconds.

    The order of the gaps, and whether equal ones are merged, makes no difference.
    """
    gaps_ns, position = np.unique(itl[0], return_inverse=True)
    weights = np.zeros(len(gaps_ns), np.int64)
    np.add.at(weights, position, itl[1])
    gaps, total = gaps_ns / NS_PER_S, int(weights.sum())
    mean = _ratio(int(np.sum(gaps_ns * weights)) / NS_PER_S, total)
    variance = _ratio(float(np.sum((gaps - mean) ** 2 * weights)), total)
    figures = {"itl_mean_s": mean, "itl_std_s": variance**0.5}
    for p, value in zip(PERCENTILES, weighted_percentile(gaps, weights, PERCENTILES), strict=True):
        figures[f"itl_p{p}_s"] = float(value)
    return figures


def latency_summary(records: RequestRecords) -> dict[str, float]:
    """TTFT, TPOT and E2E: mean, standard deviation, P50, P90, P95, P99 of finished requests.

    TPOT leaves out requests with a single output token, as vLLM's bench does.
    """
    values = latencies(records)
    done = records.outcome == Outcome.FINISHED
    several = done & (records.emitted_tokens > 1)
    return {
        **_spread("ttft", values.ttft_s[done]),
        **_spread("tpot", values.tpot_s[several]),
        **_spread("e2e", values.e2e_s[done]),
    }


def throughput(records: RequestRecords, duration_s: float) -> dict[str, float]:
    """Finished requests and their tokens per second of `duration_s`.

    `throughput_tps` counts output tokens, `total_throughput_tps` prompt and output tokens.
    """
    done = records.outcome == Outcome.FINISHED
    output = int(records.emitted_tokens[done].sum())
    total = output + int(records.prompt_tokens[done].sum())
    return {
        "throughput_rps": _ratio(int(done.sum()), duration_s),
        "throughput_tps": _ratio(output, duration_s),
        "total_throughput_tps": _ratio(total, duration_s),
    }


def attainment(met: SloMet, slos: Sequence[SLO]) -> dict[str, float]:
    """Shares of all requests in `met`; NaN for a bound that no class declares."""
    shares = {"slo_attainment": _share(met.slo)}
    for name in ("e2e", "ttft", "tpot"):
        declared = any(getattr(slo, f"{name}_s") is not None for slo in slos)
        shares[f"{name}_attainment"] = _share(getattr(met, name)) if declared else float("nan")
    return shares


def outcome_counts(records: RequestRecords) -> dict[str, int]:
    """Offered requests and what became of them; the parts add up to `offered`."""
    counts = np.bincount(records.outcome, minlength=len(Outcome))
    cut = int(counts[Outcome.UNFINISHED] + counts[Outcome.PENDING])
    return {
        "offered": len(records),
        "finished": int(counts[Outcome.FINISHED]),
        "rejected": int(counts[Outcome.REJECTED]),
        "aborted": int(counts[Outcome.ABORTED]),
        "failed": int(counts[Outcome.FAILED]),
        "unfinished": cut,
    }


def _share(values: BoolArray) -> float:
    return _ratio(int(values.sum()), len(values))


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else float("nan")


def select(records: RequestRecords, mask: BoolArray) -> RequestRecords:
    """The records where `mask` is true."""
    return RequestRecords(**{f.name: getattr(records, f.name)[mask] for f in fields(records)})


def _class_rows(records: RequestRecords, met: SloMet, slos: Sequence[SLO]) -> list[dict[str, Any]]:
    rows = []
    for index, slo in enumerate(slos):
        mask = records.slo_class == index
        part = SloMet(**{f.name: getattr(met, f.name)[mask] for f in fields(met)})
        rows.append(
            {
                "slo_class": slo.name,
                **outcome_counts(select(records, mask)),
                **attainment(part, [slo]),
            }
        )
    return rows


def _engine_rows(records: RequestRecords, met: SloMet, engines: int) -> list[dict[str, Any]]:
    done = records.outcome == Outcome.FINISHED
    served = np.where(done, records.prompt_tokens + records.emitted_tokens, 0)
    tokens = [int(served[records.engine == e].sum()) for e in range(engines)]
    rows = []
    for e in range(engines):
        mask = records.engine == e
        rows.append(
            {
                "engine": e,
                "requests": int(mask.sum()),
                "request_share": _ratio(int(mask.sum()), len(records)),
                "served_tokens": tokens[e],
                "token_share": _ratio(tokens[e], sum(tokens)),
                "slo_attainment": _share(met.slo[mask]),
            }
        )
    return rows


def _figures(
    records: RequestRecords, slos: Sequence[SLO], window_s: float, span_s: float
) -> dict[str, Any]:
    met = slo_met(records, slos)
    scheduled = records.scheduled_ns >= 0
    hits = np.minimum(records.cached_tokens, records.prompt_tokens)[scheduled]
    return {
        **outcome_counts(records),
        **attainment(met, slos),
        "goodput_rps": _ratio(int(met.slo.sum()), window_s),
        "goodput_tps": _ratio(int(records.emitted_tokens[met.slo].sum()), window_s),
        **throughput(records, span_s),
        **latency_summary(records),
        "preemptions": int(records.preemptions.sum()),
        "cached_tokens": int(records.cached_tokens.sum()),
        "prefix_hit_share": _ratio(int(hits.sum()), int(records.prompt_tokens[scheduled].sum())),
        "retries": int(np.maximum(records.attempts - 1, 0).sum()),
        "window_s": window_s,
        "duration_s": span_s,
    }


def _last_ns(records: RequestRecords) -> int:
    """When the last of `records` arrived or left, nanoseconds."""
    return max((int(c.max()) for c in (records.finish_ns, records.arrival_ns) if len(c)), default=0)


def summarize(
    records: RequestRecords,
    slos: Sequence[SLO],
    *,
    warmup_ns: int = 0,
    horizon_ns: int = NO_HORIZON_NS,
    itl: Itl | None = None,
    engines: int | None = None,
) -> dict[str, Any]:
    """All figures of one episode, over its scored requests and over the full run.

    Top-level figures cover the requests that arrived in [warm-up, horizon). Goodput (all
    SLOs met) is per second of that window, `window_s`; throughput, as in vLLM's bench, per
    second until the last of them was done, `duration_s`. `full` holds the same figures
    over every request. `jain_engines` is Jain's index of the tokens (prompt + output of
    finished requests) that each engine served, `jain_classes` that of the attainments of
    the SLO classes that had requests. `classes` and `engines` list the parts.

    Args:
        records: one entry per offered request.
        slos: the classes that `records.slo_class` indexes.
        warmup_ns: start of the scored window.
        horizon_ns: its end; without one, the end of the run.
        itl: pooled inter-token gaps of the scored requests, adds the `itl_*` figures.
        engines: size of the cluster; by default what the records mention.

    Raises:
        ValueError: a record's SLO class is not declared.
    """
    kept = select(records, scored(records, warmup_ns, horizon_ns))
    end_ns = _last_ns(records)
    window_end = end_ns if horizon_ns >= NO_HORIZON_NS else horizon_ns
    window_s = max(window_end - warmup_ns, 0) / NS_PER_S
    span_s = max(window_end - warmup_ns, _last_ns(kept) - warmup_ns, 0) / NS_PER_S
    met = slo_met(kept, slos)
    known = int(records.engine.max(initial=-1)) + 1
    by_class = _class_rows(kept, met, slos)
    by_engine = _engine_rows(kept, met, known if engines is None else engines)
    return {
        **_figures(kept, slos, window_s, span_s),
        **(itl_summary(itl) if itl is not None else {}),
        "jain_engines": jain_index([row["served_tokens"] for row in by_engine]),
        "jain_classes": jain_index([r["slo_attainment"] for r in by_class if r["offered"]]),
        "classes": by_class,
        "engines": by_engine,
        "full": _figures(records, slos, end_ns / NS_PER_S, end_ns / NS_PER_S),
    }
