"""The incidents: which public report each is rebuilt from, and when a policy passes it.

Limits lie where a report's complaint begins, not at what the best policy reaches; each says why.
Those of the current season are here, those of an archived one in its file (`synergy_gym.seasons`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from synergy_gym.policies.base import Layer
from synergy_gym.seasons import SEASON, season_files

LAYERS: tuple[Layer, ...] = ("engine", "router")


@dataclass(frozen=True, slots=True)
class Criterion:
    """A limit for one measure (`evaluation/incidents/measures.py`).

    Attributes:
        measure: a name of `MEASURES`, which also says whether the limit is a floor or a ceiling.
        limit: the last value that passes.
        window_s: requests that first arrive in [begin, end) are judged, seconds.
        why: where the limit comes from.
    """

    measure: str
    limit: float
    window_s: tuple[float, float]
    why: str

    @property
    def key(self) -> tuple[str, float]:
        """What tells the criteria of one incident apart."""
        return self.measure, self.limit


@dataclass(frozen=True, slots=True)
class Incident:
    """One public incident as a scenario.

    Attributes:
        name: the scenario's name.
        title: what happens, in a few words.
        layer: whose policy is on trial.
        load: multiple of the scenario's rate.
        calm: what makes the world without it (`incidents.CALM`); `None`: it lies in the traffic.
        criteria: all must be met.
        sources: the public reports.
        report: what they say happened.
        rebuilt: how the scenario does it, and what differs.
        season: that of the scenario.
    """

    name: str
    title: str
    layer: Layer
    load: float
    calm: Literal["events", "telemetry", "cache"] | None
    criteria: tuple[Criterion, ...]
    sources: tuple[str, ...]
    report: str
    rebuilt: str
    season: int = SEASON


_SPREAD = "an even split is 0.25; at 0.5 one engine gets as much as the other three together"

INCIDENTS: tuple[Incident, ...] = (
    Incident(
        name="incident-cold-restart",
        title="engine restart with a cold cache",
        layer="router",
        load=0.7,
        calm="events",
        criteria=(
            Criterion(
                "largest_share",
                0.5,
                (80.0, 90.0),
                _SPREAD,
            ),
            Criterion(
                "recovery_s",
                15.0,
                (80.0, 140.0),
                "half the outage: the queue of the other three, loaded to 0.93, has drained by "
                "then",
            ),
        ),
        sources=(
            "https://github.com/volcano-sh/kthena/pull/1554",
            "https://github.com/sgl-project/sglang/pull/39750",
        ),
        report=(
            "A replica that has just come up has no latency figures and an empty prefix cache. "
            "Routers that read the missing figures as good ones send it all traffic, those that"
            " read them as bad ones none; and routing by remembered prefixes misjudges its "
            "cache."
        ),
        rebuilt="One of four engines is down from 50 s to 80 s; failed requests come back twice.",
    ),
    Incident(
        name="incident-cold-start-herd",
        title="herd on the first engine after a cold start",
        layer="router",
        load=0.7,
        calm=None,
        criteria=(
            Criterion(
                "largest_share",
                0.5,
                (0.0, 2.0),
                _SPREAD,
            ),
        ),
        sources=("https://github.com/vllm-project/vllm/pull/22910",),
        report=(
            "Until the first statistics arrive from the engines, the load balancer sends every "
            "request to the first one, so that a burst after the start lands there."
        ),
        rebuilt="Four engines start under load; their state reaches the router 2 s late.",
    ),
    Incident(
        name="incident-death-spiral",
        title="death spiral under retries",
        layer="router",
        load=0.7,
        calm="events",
        criteria=(
            Criterion(
                "attainment_kept",
                0.9,
                (40.0, 80.0),
                "an even split sends an eighth of the window's requests to the engine while it "
                "is stuck; losing 80 % of them is allowed",
            ),
            Criterion(
                "recovery_s",
                10.0,
                (60.0, 120.0),
                "one client timeout after the end",
            ),
        ),
        sources=(
            "https://github.com/sgl-project/sglang/pull/14532",
            "https://github.com/sgl-project/sglang/pull/14305",
        ),
        report=(
            "A worker stuck with heavy requests goes on getting new ones, because the router "
            "looks at cache sizes and not at load, until it crashes or its requests time out; "
            "another one is idle meanwhile."
        ),
        rebuilt=(
            "One of four engines is ten times slower from 40 s to 60 s. Clients give up after "
            "10 s and come back up to three times, which adds to the load."
        ),
    ),
    Incident(
        name="incident-fewer-blocks",
        title="4.5 % fewer KV blocks",
        layer="engine",
        load=1.0,
        calm="events",
        criteria=(
            Criterion(
                "ttft_p99_ratio",
                3.0,
                (40.0, 150.0),
                "the report saw 4.7 times",
            ),
            Criterion(
                "attainment_kept",
                0.9,
                (40.0, 150.0),
                "twice the share of the blocks: a loss out of proportion is a cliff",
            ),
        ),
        sources=("https://github.com/inference-sim/inference-sim/pull/298",),
        report=(
            "2,100 KV blocks in place of 2,200 (4.5 % fewer): preempted requests rise from none"
            " to 11 %, P99 of TTFT becomes 4.7 times as long."
        ),
        rebuilt="An engine with 2,250 blocks near its limit loses 101 of them at 40 s.",
    ),
    Incident(
        name="incident-hot-prefix",
        title="hot prefix",
        layer="router",
        load=0.6,
        calm=None,
        criteria=(
            Criterion(
                "largest_share",
                0.4,
                (20.0, 120.0),
                "an even split is 0.25; at 0.4 one engine does the work of two others",
            ),
            Criterion(
                "attainment",
                0.9,
                (20.0, 120.0),
                "what round-robin attains at load 1.0",
            ),
        ),
        sources=(
            "https://github.com/vllm-project/production-stack/pull/1035",
            "https://github.com/smg-project/smg/pull/2161",
        ),
        report=(
            "Routing by cached prefixes alone sends every request with a popular prefix to the "
            "engine that holds it: a deep queue there, idle peers beside it."
        ),
        rebuilt="All prompts on four engines begin with the same 4,096 tokens.",
    ),
    Incident(
        name="incident-kv-cliff",
        title="KV cliff",
        layer="engine",
        load=1.1,
        calm="cache",
        criteria=(
            Criterion(
                "attainment_kept",
                0.85,
                (20.0, 150.0),
                "a tenth of the load is beyond what this cache carries; losing half as much again "
                "is a cliff",
            ),
        ),
        sources=("https://github.com/vllm-project/vllm/pull/44594",),
        report=(
            "With long answers near the limit of the KV cache, requests are admitted that "
            "cannot be finished: 1,065 preemptions of 450 requests, each recomputed from the "
            "start."
        ),
        rebuilt="An engine with 36,000 KV tokens serves answers of up to 2,500 tokens.",
    ),
    Incident(
        name="incident-lost-telemetry",
        title="no metrics reach the router",
        layer="router",
        load=0.7,
        calm="telemetry",
        criteria=(
            Criterion(
                "largest_share",
                0.5,
                (20.0, 120.0),
                _SPREAD,
            ),
            Criterion(
                "attainment_kept",
                0.9,
                (20.0, 120.0),
                "the engines are well; blind turns keep all",
            ),
        ),
        sources=(
            "https://github.com/vllm-project/aibrix/issues/638",
            "https://github.com/sgl-project/sglang/pull/15473",
        ),
        report=(
            "Metrics cannot be fetched, or every load reads zero: one router falls back to "
            "random choice without a word, another sends everything to its first engine."
        ),
        rebuilt="Every push of engine state is lost, there are no heartbeats and no scrapes.",
    ),
    Incident(
        name="incident-resend-livelock",
        title="clients that resend after a time-out",
        layer="engine",
        load=1.0,
        calm="events",
        criteria=(
            Criterion(
                "recovery_s",
                40.0,
                (55.0, 145.0),
                "two client timeouts: what was sent during the slow spell has been answered or "
                "given up by then",
            ),
            Criterion(
                "retries_per_request",
                1.0,
                (55.0, 145.0),
                "above it, resent work exceeds new work",
            ),
        ),
        sources=(
            "https://github.com/jundot/omlx/issues/3711",
            "https://github.com/vllm-project/vllm/issues/20520",
        ),
        report=(
            "A client gives up in the middle of its prefill and sends the same request again; "
            "the work so far is lost, and the queue never empties: a livelock without any "
            "failure."
        ),
        rebuilt=(
            "An engine at its calibrated rate is four times slower from 40 s to 55 s. Clients "
            "give up after 20 s and come back up to three times."
        ),
    ),
    Incident(
        name="incident-same-replica",
        title="the same replica at low concurrency",
        layer="router",
        load=0.02,
        calm=None,
        criteria=(
            Criterion(
                "largest_share",
                0.5,
                (0.0, 240.0),
                _SPREAD,
            ),
        ),
        sources=(
            "https://github.com/sgl-project/sglang/issues/32983",
            "https://github.com/NVIDIA/TensorRT-LLM/pull/14307",
        ),
        report=(
            "With fewer requests than replicas all loads are equal, and a fixed order of ties "
            "picks the first replica over and over: the KV memory of the others stays unused, "
            "and cold when the traffic rises."
        ),
        rebuilt="Four engines at a fiftieth of their rate: one request in flight or none.",
    ),
    Incident(
        name="incident-slow-engine",
        title="slow engine",
        layer="router",
        load=0.7,
        calm="events",
        criteria=(
            Criterion(
                "attainment_kept",
                0.8,
                (40.0, 100.0),
                "a router that goes on as before loses the slow engine's quarter; the cluster "
                "still carries 0.83 of load 1.0",
            ),
            Criterion(
                "recovery_s",
                10.0,
                (100.0, 150.0),
                "the window that routers look back over",
            ),
        ),
        sources=(
            "https://github.com/gonka-ai/gonka/issues/818",
            "https://github.com/rammsguns/llm-rig/issues/97",
        ),
        report=(
            "One node answers four times slower than the fastest (a throttled GPU, for "
            "instance) and gets the same share of requests as the others."
        ),
        rebuilt="One of four engines takes three times as long per step from 40 s to 100 s.",
    ),
    Incident(
        name="incident-stuck-counter",
        title="stuck load counter",
        layer="router",
        load=0.7,
        calm="telemetry",
        criteria=(
            Criterion(
                "attainment_kept",
                0.9,
                (20.0, 120.0),
                "the engines are well, and what the router counts itself is exact",
            ),
        ),
        sources=(
            "https://github.com/vllm-project/router/pull/178",
            "https://github.com/vllm-project/router/issues/197",
            "https://github.com/sgl-project/sglang/pull/27547",
        ),
        report=(
            "Load is polled every 5 s, or counters are reset or updated late; between two "
            "updates all requests go to the engine that looked best at the last one."
        ),
        rebuilt="Engine state is pushed every 5 s and arrives 1 s late; scrapes come every 10 s.",
    ),
)
"""All incidents of the current season, by name."""


def list_incidents(season: int = SEASON) -> tuple[Incident, ...]:
    """The incidents of a season.

    Raises:
        ValueError: no such season.
    """
    return INCIDENTS if season == SEASON else _archived(season)


@cache  # files of the package
def _archived(season: int) -> tuple[Incident, ...]:
    path = season_files(season).incidents
    assert path is not None
    return tuple(_incident(entry, season) for entry in json.loads(path.read_text(encoding="utf-8")))


def _incident(entry: Mapping[str, Any], season: int) -> Incident:
    criteria = [
        Criterion(**{**criterion, "window_s": tuple(criterion["window_s"])})
        for criterion in entry["criteria"]
    ]
    lists = {"criteria": tuple(criteria), "sources": tuple(entry["sources"])}
    return Incident(**{**entry, **lists}, season=season)


def find_incident(name: str, season: int = SEASON) -> Incident:
    """The incident of that name.

    Raises:
        ValueError: no such incident or season; names the ones there are.
    """
    found = {incident.name: incident for incident in list_incidents(season)}
    if name not in found:
        raise ValueError(f"unknown incident {name!r}; choose one of {', '.join(found)}")
    return found[name]


def incidents_of(layer: Layer) -> tuple[Incident, ...]:
    """The incidents of the current season that put one layer's policy on trial."""
    return tuple(incident for incident in INCIDENTS if incident.layer == layer)
