"""What the tests of live clusters share: engines, traffic, and episodes that count everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from synergy_gym.live.cluster.cluster import LiveCluster
from synergy_gym.live.cluster.episode import ClusterEpisode
from synergy_gym.live.cluster.fleet import EngineOrders
from synergy_gym.live.cluster.http.fleet import HttpFleet
from synergy_gym.live.cluster.messages import Patience
from synergy_gym.live.router.health import HealthSpec
from synergy_gym.policies.engine.vllm_v1 import VllmV1
from synergy_gym.sim.points import ROUTE
from synergy_gym.types import (
    SLO,
    BatchDecision,
    EngineSpec,
    EngineView,
    Outcome,
    RequestRecords,
    RouterRow,
    TelemetrySpec,
)
from synergy_gym.workload.base import Workload, make_workload
from tests.live.fake_server import FakeServer

SPEC = EngineSpec(
    name="small",
    gpu="cpu",
    model="tiny",
    profile="",
    max_num_seqs=32,
    max_num_batched_tokens=512,
    max_model_len=1024,
    kv_blocks=256,
    block_size=32,
)
SLOS = (SLO("default", e2e_s=60.0),)
QUICK_HEALTH = HealthSpec(interval_s=0.1, first_backoff_s=0.02, last_backoff_s=0.1, timeout_s=5.0)
PATIENT = Patience(health=QUICK_HEALTH)
IMPATIENT = Patience(first_token_s=4.0, token_gap_s=4.0, health=QUICK_HEALTH)
Route = Callable[[LiveCluster, int], int]


class Raising(VllmV1):
    """A policy that never decides."""

    def decide(self, view: EngineView) -> BatchDecision:
        raise ZeroDivisionError("on purpose")


def traffic(
    requests: int, *, gap_s: float = 0.02, prompt: int = 20, output: int = 5, **more: Any
) -> Workload:
    """Requests of one kind at a steady pace."""
    return make_workload(
        np.arange(requests) * round(gap_s * 1e9),
        np.full(requests, prompt),
        np.full(requests, output),
        **more,
    )


def episode(workload: Workload, engines: int, **more: Any) -> ClusterEpisode:
    """An episode of that traffic on small engines."""
    longest = int((workload.prompt_tokens + workload.output_tokens).max())
    ids = list(range(4, 4 + longest))
    more = {"slos": SLOS, "stop_ns": 120_000_000_000, "record_itl": True} | more
    return ClusterEpisode(
        engines=tuple(replace(SPEC, name=f"small-{i}") for i in range(engines)),
        workload=workload,
        tokens=lambda request: ids[
            : int(workload.prompt_tokens[request] + workload.output_tokens[request])
        ],
        **more,
    )


def orders(**telemetry: Any) -> EngineOrders:
    """Servers are told nothing but how often they are scraped."""
    return EngineOrders((), 0, SLOS, TelemetrySpec(**{"scrape_interval_s": 0.1} | telemetry))


@contextmanager
def fake_fleet(fakes: Sequence[FakeServer], patience: Patience = PATIENT) -> Iterator[HttpFleet]:
    """A fleet of fake servers, begun."""
    fleet = HttpFleet([SPEC] * len(fakes), [fake.url for fake in fakes], patience)
    try:
        fleet.begin(orders())
        yield fleet
    finally:
        fleet.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another thread; fails after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def alive(cluster: LiveCluster) -> list[int]:
    """Engines that the request at the ROUTE point may go to."""
    return np.flatnonzero(cluster.router_rows()[:, RouterRow.ALIVE]).tolist()


def in_turn(cluster: LiveCluster, number: int) -> int:
    """Round-robin among engines that are up."""
    up = alive(cluster)
    return up[number % len(up)]


def to_first(cluster: LiveCluster, number: int) -> int:
    """The first engine that is up."""
    return alive(cluster)[0]


def play(
    cluster: LiveCluster,
    route: Route = in_turn,
    before: Callable[[int], object] = lambda number: None,
) -> RequestRecords:
    """Play to the end, checking invariant 1 at every step; `before(n)` comes before decision n."""
    number = 0
    while cluster.advance() == ROUTE:
        cluster.check()
        before(number)
        cluster.route(route(cluster, number))
        number += 1
    cluster.check()
    records = cluster.records()
    assert_accounted(records)
    return records


def assert_accounted(records: RequestRecords) -> None:
    """Invariant 1, and what the records say agrees with the outcomes."""
    assert np.all(records.outcome != Outcome.PENDING)
    finished = records.outcome == Outcome.FINISHED
    assert np.all((records.finish_ns >= 0) == finished)
    assert np.all(records.emitted_tokens[finished] == records.output_tokens[finished])
    assert np.all(records.first_token_ns[finished] >= records.arrival_ns[finished])
    assert np.all(records.finish_ns[finished] >= records.first_token_ns[finished])
    counts = [int((records.outcome == outcome).sum()) for outcome in Outcome]
    assert sum(counts) == len(records)


def outcomes(records: RequestRecords) -> dict[Outcome, int]:
    """How many requests have each outcome."""
    values, counts = np.unique(records.outcome, return_counts=True)
    return {Outcome(v): int(c) for v, c in zip(values, counts, strict=True)}
