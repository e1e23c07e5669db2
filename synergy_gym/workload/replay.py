"""How a load generator sends a log of requests again: evenly spaced, or at its timestamps.

A log is traffic as users made it. Several client processes of limited rate send it, each with
its own phase, because they start one after the other. With timestamps of one second, what a
client has in that second goes out at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from synergy_gym.seeding import stream
from synergy_gym.types import NS_PER_S, FloatArray, IntArray
from synergy_gym.workload.base import Workload
from synergy_gym.workload.spec import ReplaySpec

Log = Callable[[float], tuple[Workload, FloatArray]]
"""Requests on [0, span_s), and what goes with each of them."""

_PHASES = 8
"""Member of the arrival streams; sessions use the lower ones."""


def resend(
    spec: ReplaySpec, log: Log, rate_rps: float, horizon_s: float, seed: int
) -> tuple[Workload, FloatArray]:
    """The requests of `log` as clients send them on [0, horizon).

    Raises:
        ValueError: the pace is unknown, a number is not positive, or the log is closed-loop.
    """
    if spec.pace not in _PACES:
        raise ValueError(f"unknown pace {spec.pace!r}; choose one of {', '.join(_PACES)}")
    if not (spec.client_rps > 0 and spec.resolution_s > 0):
        raise ValueError(f"client_rps and resolution_s must be > 0: {spec}")
    phases = stream(seed, "arrivals", _PHASES).random(math.ceil(rate_rps / spec.client_rps))
    workload, lots = _PACES[spec.pace](spec, log, rate_rps, horizon_s, phases)
    if bool((workload.after >= 0).any()):
        raise ValueError("a log has fixed times, so its sessions cannot be closed-loop")
    return workload, lots


def even_times(phases: FloatArray, rate_rps: float, horizon_s: float) -> IntArray:
    """Sorted times (ns) of clients that share `rate_rps` and begin at shares of their gap."""
    gap_s = len(phases) / rate_rps
    trains = [np.arange(phase * gap_s, horizon_s, gap_s) for phase in phases]
    return _inside(np.sort(np.concatenate(trains)), horizon_s)


def _evenly(
    spec: ReplaySpec, log: Log, rate_rps: float, horizon_s: float, phases: FloatArray
) -> tuple[Workload, FloatArray]:
    times = even_times(phases, rate_rps, horizon_s)
    span_s = horizon_s
    workload, lots = log(span_s)
    while len(workload) < len(times):
        span_s *= 1.25
        workload, lots = log(span_s)
    rows = np.arange(len(times))
    return replace(_rows(workload, rows), arrival_ns=times), lots[rows]


def _at_timestamps(
    spec: ReplaySpec, log: Log, rate_rps: float, horizon_s: float, phases: FloatArray
) -> tuple[Workload, FloatArray]:
    workload, lots = log(horizon_s)
    # A conversation belongs to one client, as it does to one slice of the log.
    own = workload.session if (workload.session >= 0).all() else np.arange(len(workload))
    tick_ns = round(spec.resolution_s * NS_PER_S)
    late_ns = np.floor(phases * tick_ns).astype(np.int64)
    sent = workload.arrival_ns // tick_ns * tick_ns + late_ns[own % len(phases)]
    order = np.argsort(sent, kind="stable")
    order = order[sent[order] < round(horizon_s * NS_PER_S)]
    return replace(_rows(workload, order), arrival_ns=sent[order]), lots[order]


_PACES = {"even": _evenly, "timestamps": _at_timestamps}


def _inside(times_s: FloatArray, horizon_s: float) -> IntArray:
    times = np.floor(times_s * NS_PER_S).astype(np.int64)
    return times[times < round(horizon_s * NS_PER_S)]


def _rows(workload: Workload, rows: IntArray) -> Workload:
    """Those requests of an open-loop workload, in that order."""
    names = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "slo_class", "priority")
    columns = {name: getattr(workload, name)[rows] for name in (*names, "after")}
    content = workload.content
    if content is not None:
        content = replace(content, leaf=content.leaf[rows])
    return Workload(**columns, content=content)
