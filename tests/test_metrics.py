"""Metrics against vLLM's bench formulas, NumPy's percentiles and hand-worked cases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.metrics import (
    itl_summary,
    jain_index,
    latency_summary,
    scored,
    select,
    slo_met,
    summarize,
    throughput,
    weighted_percentile,
)
from synergy_gym.types import NS_PER_S, SLO, IntArray, Outcome, RequestRecords

PERCENTILES = (50, 90, 95, 99)


def make_records(rows: list[dict[str, int]]) -> RequestRecords:
    """Records from dictionaries; absent columns get a neutral value."""
    neutral = {
        "arrival_ns": 0,
        "scheduled_ns": 0,
        "first_token_ns": -1,
        "finish_ns": -1,
        "prompt_tokens": 10,
        "output_tokens": 1,
        "emitted_tokens": 0,
        "cached_tokens": 0,
        "preemptions": 0,
        "engine": 0,
        "outcome": int(Outcome.FINISHED),
        "slo_class": 0,
        "session": -1,
        "attempts": 1,
    }
    return RequestRecords(
        **{k: np.array([r.get(k, d) for r in rows], np.int64) for k, d in neutral.items()}
    )


@dataclass
class Run:
    """A recorded run: the records, and the gaps between the tokens of each request."""

    records: RequestRecords
    gaps: list[IntArray]

    @property
    def itl(self) -> tuple[IntArray, IntArray]:
        done = self.records.outcome == Outcome.FINISHED
        pooled = [g for g, ok in zip(self.gaps, done, strict=True) if ok]
        return np.unique(np.concatenate([np.empty(0, np.int64), *pooled]), return_counts=True)


def random_run(seed: int, n: int) -> Run:
    rng = np.random.default_rng(seed)
    rows, gaps = [], []
    arrival = 0
    for _ in range(n):
        arrival += int(rng.integers(0, 2 * NS_PER_S))
        output = int(rng.integers(1, 30))
        gap = rng.integers(5, 9, output - 1) * 1_000_000
        first = arrival + int(rng.integers(1, NS_PER_S))
        ok = rng.random() < 0.8
        outcome = Outcome.FINISHED if ok else Outcome(int(rng.integers(2, 6)))
        rows.append(
            {
                "arrival_ns": arrival,
                "first_token_ns": first if ok else -1,
                "finish_ns": first + int(gap.sum()) if ok else -1,
                "prompt_tokens": int(rng.integers(1, 500)),
                "output_tokens": output,
                "emitted_tokens": output if ok else 0,
                "outcome": int(outcome),
                "engine": int(rng.integers(0, 3)),
            }
        )
        gaps.append(gap)
    return Run(make_records(rows), gaps)


def bench_metrics(run: Run, duration_s: float, goodput: dict[str, float]) -> dict[str, float]:
    """vLLM 0.32.0 `benchmarks/serve.py:calculate_metrics`, restated request by request."""
    ttfts, tpots, all_tpots, e2els, itls = [], [], [], [], []
    output = total_input = 0
    for i in np.flatnonzero(run.records.outcome == Outcome.FINISHED):
        r = run.records
        latency = (r.finish_ns[i] - r.arrival_ns[i]) / NS_PER_S
        ttft = (r.first_token_ns[i] - r.arrival_ns[i]) / NS_PER_S
        tpot = 0.0
        if r.emitted_tokens[i] > 1:
            tpot = (latency - ttft) / (r.emitted_tokens[i] - 1)
            tpots.append(tpot)
        all_tpots.append(tpot)
        ttfts.append(ttft)
        e2els.append(latency)
        itls += [float(g) / NS_PER_S for g in run.gaps[i]]
        output += int(r.emitted_tokens[i])
        total_input += int(r.prompt_tokens[i])
    values = {"ttft": ttfts, "tpot": tpots, "itl": itls, "e2e": e2els}
    figures = {"throughput_rps": len(ttfts) / duration_s, "throughput_tps": output / duration_s}
    figures["total_throughput_tps"] = (total_input + output) / duration_s
    for name, seconds in values.items():
        figures[f"{name}_mean_s"] = float(np.mean(seconds))
        figures[f"{name}_std_s"] = float(np.std(seconds))
        for p in PERCENTILES:
            figures[f"{name}_p{p}_s"] = float(np.percentile(seconds, p))
    checked = {"ttft": ttfts, "tpot": all_tpots, "e2e": e2els}
    lists = [[x <= goodput[k] for x in checked[k]] for k in goodput]
    figures["goodput_rps"] = sum(all(row) for row in zip(*lists, strict=True)) / duration_s
    return figures


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_bench_formulas(seed: int) -> None:
    run = random_run(seed, 60)
    slos = [SLO("all", ttft_s=0.5003, tpot_s=0.00651, e2e_s=0.6007)]
    summary = summarize(run.records, slos, itl=run.itl)
    expected = bench_metrics(
        run, summary["duration_s"], {"ttft": 0.5003, "tpot": 0.00651, "e2e": 0.6007}
    )
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (seed, name)


@pytest.mark.slow
@pytest.mark.parity
def test_equals_vllm_itself() -> None:
    serve = pytest.importorskip("vllm.benchmarks.serve", reason="vllm is not installed")
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput

    run = random_run(77, 200)
    r = run.records
    outputs = [
        RequestFuncOutput(
            success=bool(r.outcome[i] == Outcome.FINISHED),
            latency=(r.finish_ns[i] - r.arrival_ns[i]) / NS_PER_S,
            ttft=(r.first_token_ns[i] - r.arrival_ns[i]) / NS_PER_S,
            output_tokens=int(r.emitted_tokens[i]),
            prompt_len=int(r.prompt_tokens[i]),
            itl=[float(g) / NS_PER_S for g in run.gaps[i]],
            start_time=r.arrival_ns[i] / NS_PER_S,
        )
        for i in range(len(r))
    ]
    slos = [SLO("all", ttft_s=0.5003, tpot_s=0.00651, e2e_s=0.6007)]
    ours = summarize(r, slos, itl=run.itl)
    limits = {"ttft": 500.3, "tpot": 6.51, "e2el": 600.7}
    theirs, _ = serve.calculate_metrics(
        [], outputs, ours["duration_s"], None, list(PERCENTILES), limits
    )
    pairs = {
        "goodput_rps": theirs.request_goodput,
        "throughput_rps": theirs.request_throughput,
        "throughput_tps": theirs.output_throughput,
        "total_throughput_tps": theirs.total_token_throughput,
    }
    for name, key in {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2el"}.items():
        pairs[f"{name}_mean_s"] = getattr(theirs, f"mean_{key}_ms") / 1000
        pairs[f"{name}_std_s"] = getattr(theirs, f"std_{key}_ms") / 1000
        for p, value in getattr(theirs, f"percentiles_{key}_ms"):
            pairs[f"{name}_p{p}_s"] = value / 1000
    for name, value in pairs.items():
        assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@given(
    st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 9)), min_size=1, max_size=30),
    st.lists(st.floats(0, 100), min_size=1, max_size=6),
)
def test_weighted_percentile_is_numpys(pairs: list[tuple[int, int]], q: list[float]) -> None:
    values = np.array([p[0] for p in pairs], np.float64) / NS_PER_S
    weights = np.array([p[1] for p in pairs], np.int64)
    got = weighted_percentile(values, weights, q)
    if not weights.sum():
        assert np.all(np.isnan(got))
        return
    assert got.tolist() == np.percentile(np.repeat(values, weights), q).tolist()


def test_bounds_are_inclusive_to_the_nanosecond() -> None:
    slos = [SLO("strict", ttft_s=0.1, tpot_s=0.01, e2e_s=0.2)]
    on = {"first_token_ns": 100_000_000, "finish_ns": 200_000_000, "emitted_tokens": 11}
    late_first = {**on, "first_token_ns": 100_000_001}
    late_end = {**on, "finish_ns": 200_000_001}
    met = slo_met(make_records([on, late_first, late_end]), slos)
    assert met.slo.tolist() == [True, False, False]
    assert met.ttft.tolist() == [True, False, True]
    assert met.tpot.tolist() == [True, True, False]
    assert met.e2e.tolist() == [True, True, False]


def test_one_token_meets_every_tpot() -> None:
    row = {"first_token_ns": 5, "finish_ns": 5, "emitted_tokens": 1}
    records = make_records([row])
    assert slo_met(records, [SLO("x", tpot_s=1e-9)]).slo.tolist() == [True]
    assert math.isnan(latency_summary(records)["tpot_p50_s"])


def test_every_other_outcome_is_a_miss() -> None:
    good = {"first_token_ns": 1, "finish_ns": 2, "emitted_tokens": 2}
    rows = [{**good, "outcome": int(o)} for o in Outcome]
    summary = summarize(make_records(rows), [SLO("x", e2e_s=1.0)], engines=2)
    assert summary["slo_attainment"] == pytest.approx(1 / len(Outcome))
    assert summary["offered"] == len(Outcome)
    parts = ("finished", "rejected", "aborted", "failed", "unfinished")
    assert sum(summary[p] for p in parts) == summary["offered"]
    assert math.isnan(summary["ttft_attainment"])
    assert [row["requests"] for row in summary["engines"]] == [6, 0]


def test_the_window_is_half_open_and_counts_planned_turns() -> None:
    records = make_records([{"arrival_ns": t} for t in (9, 10, 19, 20, -1)])
    assert scored(records, 10, 20).tolist() == [False, True, True, False, True]


def test_window_and_full_run_figures() -> None:
    rows = [
        {"arrival_ns": s * NS_PER_S, "first_token_ns": s * NS_PER_S, "emitted_tokens": 3}
        | {"finish_ns": (s + 1) * NS_PER_S}
        for s in range(10)
    ]
    summary = summarize(
        make_records(rows),
        [SLO("x", e2e_s=1.0)],
        warmup_ns=2 * NS_PER_S,
        horizon_ns=8 * NS_PER_S,
    )
    assert summary["offered"] == 6
    assert summary["window_s"] == 6.0
    assert summary["goodput_rps"] == 1.0
    assert summary["goodput_tps"] == 3.0
    assert summary["duration_s"] == 6.0
    assert summary["full"]["offered"] == 10
    assert summary["full"]["duration_s"] == 10.0


def test_classes_are_judged_by_their_own_bounds() -> None:
    slow = {"first_token_ns": 1, "finish_ns": 3 * NS_PER_S, "emitted_tokens": 2}
    records = make_records([slow, {**slow, "slo_class": 1}])
    summary = summarize(records, [SLO("tight", e2e_s=1.0), SLO("loose", e2e_s=5.0)])
    assert [row["slo_attainment"] for row in summary["classes"]] == [0.0, 1.0]
    assert summary["jain_classes"] == pytest.approx(0.5)


def test_undeclared_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="pass the scenario's `slos`"):
        slo_met(make_records([{"slo_class": 2}]), [SLO("only")])


def test_empty_run() -> None:
    summary = summarize(make_records([]), [SLO("x", e2e_s=1.0)], engines=1)
    assert summary["offered"] == 0
    assert math.isnan(summary["slo_attainment"])
    assert math.isnan(summary["e2e_p99_s"])
    empty = np.empty(0, np.int64)
    assert math.isnan(itl_summary((empty, empty))["itl_p50_s"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3, 3, 3], 1.0), ([1, 0, 0, 0], 0.25), ([1, 2], 9 / 10), ([], math.nan), ([0], math.nan)],
)
def test_jain(values: list[float], expected: float) -> None:
    assert jain_index(values) == pytest.approx(expected, nan_ok=True)


def test_prefix_hits_and_throughput() -> None:
    hit = {"finish_ns": NS_PER_S, "first_token_ns": 1, "emitted_tokens": 4}
    records = make_records(
        [
            {**hit, "prompt_tokens": 100, "cached_tokens": 64},
            {"outcome": int(Outcome.REJECTED), "scheduled_ns": -1, "prompt_tokens": 900},
        ]
    )
    summary = summarize(records, [SLO("x")])
    assert summary["cached_tokens"] == 64
    assert summary["prefix_hit_share"] == 0.64
    assert throughput(records, 2.0) == {
        "throughput_rps": 0.5,
        "throughput_tps": 2.0,
        "total_throughput_tps": 52.0,
    }
    assert len(select(records, np.array([True, False]))) == 1
