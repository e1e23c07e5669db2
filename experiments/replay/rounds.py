"""Measured 8xH100 runs of which only quantiles exist: per client and minute of its life.

The benchmark's clients report P50, P90 and P99 of what finished in each 60 s of theirs. Such a
run has no arrivals of its own here; it replayed the same slices of the same log as another run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.replay.runs import METRICS, NATIVE_05, PACED_07, Run

ROUNDS = "measurements/e2e_client_rounds.csv"
LENS_RR_05 = Run("timestamp", "sla", "roundrobin", 0.5)
CELLS = (
    LENS_RR_05,
    Run("timestamp", "sla", "qps", 0.5),
    Run("timestamp", "sla", "elrar", 0.5),
    Run("qps", "native", "roundrobin", 0.5),
)
STEADY_ROUNDS = range(5, 9)
"""From 300 s of a client's life on: all clients have read their logs, and none has stopped."""
ROUND_S = 60.0
PERCENTILES = (50, 90, 99)


def cell_arrivals(cell: Run, logs: Mapping[Run, pd.DataFrame]) -> pd.DataFrame:
    """The requests of a cell: the same slices of the same log, as another run sent them.

    Timestamp mode: the run with as many clients. qps mode: the first clients of the longer
    run, which all send the same prompts at 5 requests per second.
    """
    if cell.mode == "timestamp":
        return logs[NATIVE_05]
    log = logs[PACED_07]
    return log[log.client < round(10 * cell.upper)]


def simulated_means(
    log: pd.DataFrame, simulated: pd.DataFrame, rounds: range = STEADY_ROUNDS
) -> pd.Series[float]:
    """P50, P90, P99 as clients would report them, means over clients and rounds.

    A round holds what finished in it; TPOT is (E2E - TTFT) / (output tokens - 1) there.

    Returns:
        Indexed by (metric, percentile).
    """
    frame = simulated.assign(
        client=log.client,
        round=((log.age_s + simulated.e2e_s) // ROUND_S).astype(int),
        tpot_ms=simulated.tpot_ms * log.tokens_out / np.maximum(log.tokens_out - 1, 1),
    )
    frame = frame[frame["round"].isin(rounds)]
    groups = frame.groupby(["client", "round"])[list(METRICS)]
    means = groups.quantile([p / 100 for p in PERCENTILES]).unstack().mean()
    means.index = _index()
    return means


def measured_means(
    table: pd.DataFrame, cell: Run, rounds: range = STEADY_ROUNDS
) -> pd.Series[float]:
    """The same of what the clients reported.

    Raises:
        ValueError: the table does not hold the run.
    """
    chosen = (table["set"] == "exp_new") & (table.arrival_mode == cell.mode)
    chosen &= (table.engine == cell.engine) & (table.router == cell.router)
    chosen &= (table.sample_upper == cell.upper) & table["round"].isin(rounds)
    if not chosen.any():
        raise ValueError(f"no rounds of {cell} in the table of clients' rounds")
    columns = [f"{metric}_p{percentile}" for metric, percentile in _index()]
    means = table.loc[chosen, columns].mean()
    means.index = _index()
    return means


def _index() -> pd.MultiIndex:
    return pd.MultiIndex.from_product([METRICS, PERCENTILES], names=["metric", "percentile"])
