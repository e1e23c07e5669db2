"""What a router sees at one moment, as numbers and as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from synergy_gym.envs.rendering import Frame, Gauge
from synergy_gym.features import NUM_REQUEST_FEATURES, RequestField, RouterFeatures, request_vector
from synergy_gym.observation import Float32Array
from synergy_gym.types import INFORMATION_CLASSES, NS_PER_S, EngineSpec, IntArray, RouterRow

EVERYTHING = frozenset(INFORMATION_CLASSES)
"""All information classes: what an environment shows is not limited by a policy's declaration."""


def read_router(
    simulator: Any,
    features: RouterFeatures,
    rng: np.random.Generator,
    out: Float32Array,
    *,
    request: bool,
) -> IntArray:
    """Write the router observation of this moment to `out`; returns the router's table.

    Without `request` no request is at a ROUTE point, and its part is zero. `rng` goes into the
    view that is made on the way; nothing is drawn from it.
    """
    if request:
        cluster = simulator.cluster_view(rng, EVERYTHING)
        features.write(cluster.rows, request_vector(simulator.request_view(), cluster), out)
        rows: IntArray = cluster.rows
        return rows
    rows = simulator.router_rows()
    features.write(rows, no_request(simulator.now_ns), out)
    out[:NUM_REQUEST_FEATURES] = 0.0
    return rows


def no_request(now_ns: int) -> IntArray:
    """The request vector (`RequestField`) of a moment at which no request arrives."""
    vector = np.zeros(len(RequestField), np.int64)
    vector[RequestField.NOW_NS] = now_ns
    vector[[RequestField.SESSION_ENGINE, RequestField.SESSION_AGE_NS]] = -1
    vector[RequestField.EXPECTED_OUTPUT_MILLITOKENS] = -1
    return vector


def cluster_frame(simulator: Any, engines: tuple[EngineSpec, ...], title: str) -> Frame:
    """This moment of a cluster as a renderer draws it, with the state that was last pushed."""
    rows = simulator.router_rows()
    gauges = tuple(
        _engine_gauge(spec.name, row, simulator.now_ns)
        for spec, row in zip(engines, rows.tolist(), strict=True)
    )
    in_flight = int(rows[:, RouterRow.IN_FLIGHT].sum())
    seats = sum(spec.max_num_seqs for spec in engines)
    return Frame(
        title=title,
        facts=(
            f"t = {simulator.now_ns / NS_PER_S:.3f} s   in flight {in_flight}   "
            f"SLOs met {simulator.met()}   bars: KV cache as last pushed"
        ),
        gauges=gauges,
        points={
            "in flight": in_flight / (in_flight + seats),
            "KV cache": sum(gauge.value for gauge in gauges) / len(gauges),
        },
    )


def _engine_gauge(name: str, row: list[int], now_ns: int) -> Gauge:
    usage = row[RouterRow.PUSH_USED_BLOCKS] / max(row[RouterRow.PUSH_TOTAL_BLOCKS], 1)
    age_s = (now_ns - row[RouterRow.PUSH_NS]) / NS_PER_S
    text = (
        f"{row[RouterRow.IN_FLIGHT]} in flight, {row[RouterRow.PUSH_RUNNING]} running, "
        f"{row[RouterRow.PUSH_WAITING]} waiting ({age_s:.2f} s ago)"
    )
    return Gauge(name, min(max(usage, 0.0), 1.0), text if row[RouterRow.ALIVE] else "down")
