"""The router's table, and the engine states that it holds, as arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

from synergy_gym.arrays import FS_PER_MS, NS_PER_S, FloatArray, IntArray


class RouterRow(IntEnum):
    """Columns of the router's table (int64, one row per engine).

    0-3 are the router's own knowledge, 4-11 the last visible push, 12-20 the last scrape, 21-33
    what that push said about the engine's own predictions (`docs/telemetry.md`).
    """

    ALIVE = 0
    IN_FLIGHT = 1
    IN_FLIGHT_TOKENS = 2
    ROUTED_SINCE_PUSH = 3
    PUSH_NS = 4
    """Time of the visible snapshot."""
    PUSH_RUNNING = 5
    PUSH_WAITING = 6
    PUSH_USED_BLOCKS = 7
    PUSH_TOTAL_BLOCKS = 8
    PUSH_PENDING_TOKENS = 9
    """Known minus computed tokens over running and waiting requests, at a commit. Between commit
    and next iteration only arrivals change it, so it equals what SynergySched's engines sum while
    they schedule that iteration, before its tokens count as computed."""
    PUSH_STEP_NS = 10
    """Mean duration of its last 10 non-empty steps, rounded down."""
    PUSH_STEP_MILLITOKENS = 11
    """Mean scheduled tokens of these steps, in thousandths, rounded down."""
    SCRAPE_NS = 12
    SCRAPE_RUNNING = 13
    SCRAPE_WAITING = 14
    SCRAPE_USED_BLOCKS = 15
    SCRAPE_TOTAL_BLOCKS = 16
    SCRAPE_TTFT_NS = 17
    SCRAPE_TPOT_NS = 18
    SCRAPE_E2E_NS = 19
    SCRAPE_FINISHED = 20
    PUSH_PREDICTED_NS = 21
    """Mean predicted duration of its last 10 non-empty steps, rounded down."""
    PUSH_MODE = 22
    """0 latency-optimized, 1 balanced, 2 throughput-optimized."""
    PUSH_CAPACITY = 23
    """Advertised capacity in thousandths of (normalised) tokens/s."""
    PUSH_PEAK_MILLITPS = 24
    """Advertised peak throughput in thousandths of tokens/s."""
    PUSH_BASE_FS = 25
    """From here on `types.ADVERT_TERMS`: a step-latency model in femtoseconds."""
    PUSH_PER_SEQUENCE_FS = 26
    PUSH_PER_TOKEN_FS = 27
    PUSH_PER_DECODE_CONTEXT_FS = 28
    PUSH_PER_PREFILL_PAIR_FS = 29
    PUSH_PER_PREFILL_CONTEXT_FS = 30
    PUSH_PREFILL_STEP_FS = 31
    PUSH_PER_MIXED_CONTEXT_FS = 32
    PUSH_FLOOR_FS = 33


@dataclass(frozen=True, slots=True, eq=False)
class PushedState:
    """Engine state vectors as last received (class `pushed`), one entry per engine.

    Attributes:
        age_s: time since the engine took the snapshot (a zero one, its start-up message, exists
            at time 0).
        running: its running requests.
        waiting: its waiting requests.
        kv_usage: share of its KV blocks in use.
        pending_tokens: tokens still to compute (`RouterRow.PUSH_PENDING_TOKENS`).
        step_s: mean duration of its last 10 iterations.
        step_tokens: their mean number of tokens.
        predicted_step_s: their mean duration as predicted by its policy, or where that predicted
            nothing by SynergySched's heuristic (8.7 + 0.02 tokens + 0.5 requests) ms.
        mode: int64; 0 latency-optimized (mean tokens below 256), 1 balanced, 2
            throughput-optimized (above 1024).
        capacity: what the engine calls its capacity: SynergySched's Pmax * 1000, which is in
            normalised tokens/s; 0 when it never said, and in start-up message and heartbeats.
        peak_tps: the same in physical tokens/s; 0 when it never said.
        step_ms: (engines, 9) coefficients of a step-latency model (`types.ADVERT_TERMS`), ms;
            all 0 when it never sent one.
    """

    age_s: FloatArray
    running: FloatArray
    waiting: FloatArray
    kv_usage: FloatArray
    pending_tokens: FloatArray
    step_s: FloatArray
    step_tokens: FloatArray
    predicted_step_s: FloatArray
    mode: IntArray
    capacity: FloatArray
    peak_tps: FloatArray
    step_ms: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ScrapedState:
    """Metrics as last scraped (class `scraped`), one entry per engine.

    Latency means cover requests finished in the last scrape window; 0 without data.
    """

    age_s: FloatArray
    running: FloatArray
    waiting: FloatArray
    kv_usage: FloatArray
    ttft_mean_s: FloatArray
    tpot_mean_s: FloatArray
    e2e_mean_s: FloatArray
    finished: FloatArray


def _units() -> FloatArray:
    """What one unit of every column is divided by: seconds, tokens and milliseconds come out."""
    units = np.ones(len(RouterRow))
    for column in RouterRow:
        for suffix, per_unit in (("_NS", NS_PER_S), ("_FS", FS_PER_MS)):
            if column.name.endswith(suffix):
                units[column] = per_unit
    thousandths = ("PUSH_STEP_MILLITOKENS", "PUSH_CAPACITY", "PUSH_PEAK_MILLITPS")
    units[[RouterRow[name] for name in thousandths]] = 1000.0
    units.setflags(write=False)
    return units


_UNITS = _units()


def pushed_state(rows: IntArray, now_ns: int) -> PushedState:
    """The last visible push of every engine, from a table of `RouterRow` columns."""
    values = (rows / _UNITS).T
    return PushedState(
        age_s=(now_ns - rows[:, RouterRow.PUSH_NS]) / NS_PER_S,
        running=values[RouterRow.PUSH_RUNNING],
        waiting=values[RouterRow.PUSH_WAITING],
        kv_usage=values[RouterRow.PUSH_USED_BLOCKS]
        / np.maximum(values[RouterRow.PUSH_TOTAL_BLOCKS], 1),
        pending_tokens=values[RouterRow.PUSH_PENDING_TOKENS],
        step_s=values[RouterRow.PUSH_STEP_NS],
        step_tokens=values[RouterRow.PUSH_STEP_MILLITOKENS],
        predicted_step_s=values[RouterRow.PUSH_PREDICTED_NS],
        mode=rows[:, RouterRow.PUSH_MODE],
        capacity=values[RouterRow.PUSH_CAPACITY],
        peak_tps=values[RouterRow.PUSH_PEAK_MILLITPS],
        step_ms=values[RouterRow.PUSH_BASE_FS : RouterRow.PUSH_FLOOR_FS + 1].T,
    )


def scraped_state(rows: IntArray, now_ns: int) -> ScrapedState:
    """The last scrape of every engine, from a table of `RouterRow` columns."""
    values = (rows / _UNITS).T
    return ScrapedState(
        age_s=(now_ns - rows[:, RouterRow.SCRAPE_NS]) / NS_PER_S,
        running=values[RouterRow.SCRAPE_RUNNING],
        waiting=values[RouterRow.SCRAPE_WAITING],
        kv_usage=values[RouterRow.SCRAPE_USED_BLOCKS]
        / np.maximum(values[RouterRow.SCRAPE_TOTAL_BLOCKS], 1),
        ttft_mean_s=values[RouterRow.SCRAPE_TTFT_NS],
        tpot_mean_s=values[RouterRow.SCRAPE_TPOT_NS],
        e2e_mean_s=values[RouterRow.SCRAPE_E2E_NS],
        finished=values[RouterRow.SCRAPE_FINISHED],
    )


RouterKind = Literal[
    "round-robin",
    "random",
    "weighted",
    "session",
    "least-outstanding",
    "power-of-two",
    "least-kv",
    "least-loaded",
]


@dataclass(frozen=True, slots=True)
class RouterRule:
    """A declarative router that the simulator plays by itself: equal to the policy of its name.

    Attributes:
        kind: what decides among the engines that are up. `round-robin`: the next one in turn;
            `random`: a uniform draw; `weighted`: a draw in proportion to `weights`; `session`:
            the next owner on a ring of hashes, and for requests without a session as
            `least-outstanding`: fewest requests in flight, the lowest index of equal ones;
            `power-of-two`: fewer in flight of two different draws; `least-kv`: the smallest share
            of KV blocks in use, as last pushed; `least-loaded`: the fewest waiting requests, as
            last scraped; the last two with a draw among equal ones.
        weights: of the engines, for `weighted`; finite, >= 0, not all zero.
        owners: engine of every place of the ring, for `session`.
        place_of: where a session begins on the ring, for `session`; any whole number, counted
            round it.
    """

    kind: RouterKind
    weights: tuple[float, ...] = ()
    owners: tuple[int, ...] = ()
    place_of: Callable[[int], int] | None = None
