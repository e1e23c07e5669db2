"""What a faithful simulator of SynergySched's evaluation should show, and where this one does not.

Steady windows, paced traffic of the `paper-*` scenarios, two of the eight H100 at a quarter of
the cluster's rate. The last test pins the ordering that the paper claims and that this simulator
contradicts, so that the documentation's plain statement cannot go stale unnoticed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.scenario import load_scenario

SEED = 2000
FLOWGPT, SUMMARIES = "paper-flowgpt-q-8xh100", "paper-summarization-8xh100"


@cache
def steady(
    scenario: str, engines: int, rate_rps: float, engine: str, router: str, horizon_s: float = 80.0
) -> dict[str, Any]:
    """The figures of arrivals after the first 30 s."""
    world = load_scenario(scenario)
    world = replace(world, engines=world.engines[:engines], terms=world.terms[:engines])
    load = rate_rps / world.rate_rps
    options: dict[str, Any] = {"horizon_s": horizon_s, "warmup_s": 30.0, "record_itl": False}
    summary = evaluate(world, engine, router, load, SEED, **options).summary
    print(scenario, engines, rate_rps, engine, router,
          {k: round(summary[k], 4) for k in ("slo_attainment", "ttft_p50_s", "tpot_p50_s",
                                             "e2e_p50_s")})  # fmt: skip
    return summary


# (a) LENS raises P50 TTFT and lowers TPOT relative to fixed-budget chunked prefill.


@pytest.mark.parametrize(("scenario", "rate_rps"), [(FLOWGPT, 4.25), (SUMMARIES, 3.25)])
def test_lens_pays_for_tpot_with_ttft(scenario: str, rate_rps: float) -> None:
    lens, plain = (steady(scenario, 2, rate_rps, e, "round-robin") for e in ("lens-ref", "vllm-v1"))
    assert lens["ttft_p50_s"] > 2 * plain["ttft_p50_s"]
    assert lens["tpot_p50_s"] < plain["tpot_p50_s"]


# (b) LENS + PRISM > LENS RR > Sarathi PRISM > Sarathi RR in steady E2E attainment: the router's
# half of it holds below saturation, under either engine.


@pytest.mark.parametrize("engine", ["lens-ref", "vllm-v1"])
def test_prism_helps_either_engine_below_saturation(engine: str) -> None:
    prism, plain = (steady(FLOWGPT, 2, 3.5, engine, r) for r in ("prism-ref", "round-robin"))
    assert prism["slo_attainment"] > plain["slo_attainment"]


# (c) heterogeneous cluster: PRISM > weighted ~ least-loaded > latency-based. PRISM and weighted
# lead by far; weighted is far above least-loaded here, not level with it.


@pytest.mark.parametrize("scenario", ["paper-sharegpt-hetero", "paper-flowgpt-q-hetero"])
def test_routers_of_the_heterogeneous_cluster(scenario: str) -> None:
    routers = ("prism-ref", "weighted", "least-loaded", "latency-based")
    share = {r: steady(scenario, 3, 7.0, "vllm-v1", r, 150.0)["slo_attainment"] for r in routers}
    assert share["prism-ref"] > 0.85
    assert share["weighted"] > 0.85
    assert min(share["prism-ref"], share["weighted"]) > share["least-loaded"] + 0.2
    assert share["least-loaded"] > share["latency-based"]


# (d) on a homogeneous cluster round-robin is hard to beat at low load.


@pytest.mark.parametrize("router", ["prism-ref", "prism-fixed", "rr-veto", "lmetric", "session"])
def test_round_robin_is_hard_to_beat_at_low_load(router: str) -> None:
    plain, other = (steady(FLOWGPT, 8, 7.0, "vllm-v1", r) for r in ("round-robin", router))
    assert plain["slo_attainment"] >= other["slo_attainment"]
    assert plain["e2e_p50_s"] < 1.1 * other["e2e_p50_s"]
    assert plain["ttft_p50_s"] < 1.1 * other["ttft_p50_s"]


# The engine's half of (b), which this simulator contradicts.


@pytest.mark.parametrize("router", ["prism-ref", "round-robin"])
def test_lens_does_not_raise_e2e_attainment_here(router: str) -> None:
    lens, plain = (steady(FLOWGPT, 2, 3.5, engine, router) for engine in ("lens-ref", "vllm-v1"))
    assert lens["slo_attainment"] < plain["slo_attainment"]
    assert lens["e2e_p50_s"] > plain["e2e_p50_s"]
