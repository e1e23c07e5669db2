"""The router's table, and the engine states that it holds, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from synergy_gym.arrays import NS_PER_S, FloatArray, IntArray


class RouterRow(IntEnum):
    """Columns of the router's table (int64, one row per engine).

    0-3 are the router's own knowledge, 4-11 the last visible push, 12-20 the last scrape.
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


@dataclass(frozen=True, slots=True, eq=False)
class PushedState:
    """Engine state vectors as last received (class `pushed`), one entry per engine.

    `age_s` is the time since the engine took the snapshot (a zero one exists at time 0);
    `step_s` and `step_tokens` are means over its last 10 iterations.
    """

    age_s: FloatArray
    running: FloatArray
    waiting: FloatArray
    kv_usage: FloatArray
    pending_tokens: FloatArray
    step_s: FloatArray
    step_tokens: FloatArray


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


def pushed_state(rows: IntArray, now_ns: int) -> PushedState:
    """The last visible push of every engine, from a table of `RouterRow` columns."""
    columns = rows.T.astype(np.float64)
    return PushedState(
        age_s=(now_ns - rows[:, RouterRow.PUSH_NS]) / NS_PER_S,
        running=columns[RouterRow.PUSH_RUNNING],
        waiting=columns[RouterRow.PUSH_WAITING],
        kv_usage=columns[RouterRow.PUSH_USED_BLOCKS]
        / np.maximum(columns[RouterRow.PUSH_TOTAL_BLOCKS], 1),
        pending_tokens=columns[RouterRow.PUSH_PENDING_TOKENS],
        step_s=columns[RouterRow.PUSH_STEP_NS] / NS_PER_S,
        step_tokens=columns[RouterRow.PUSH_STEP_MILLITOKENS] / 1000,
    )


def scraped_state(rows: IntArray, now_ns: int) -> ScrapedState:
    """The last scrape of every engine, from a table of `RouterRow` columns."""
    columns = rows.T.astype(np.float64)
    return ScrapedState(
        age_s=(now_ns - rows[:, RouterRow.SCRAPE_NS]) / NS_PER_S,
        running=columns[RouterRow.SCRAPE_RUNNING],
        waiting=columns[RouterRow.SCRAPE_WAITING],
        kv_usage=columns[RouterRow.SCRAPE_USED_BLOCKS]
        / np.maximum(columns[RouterRow.SCRAPE_TOTAL_BLOCKS], 1),
        ttft_mean_s=columns[RouterRow.SCRAPE_TTFT_NS] / NS_PER_S,
        tpot_mean_s=columns[RouterRow.SCRAPE_TPOT_NS] / NS_PER_S,
        e2e_mean_s=columns[RouterRow.SCRAPE_E2E_NS] / NS_PER_S,
        finished=columns[RouterRow.SCRAPE_FINISHED],
    )
