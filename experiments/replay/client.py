"""What lies between client and engine in the measured 8xH100 runs, and shows in their logs.

Two things that no engine does: clients that read their logs of prompts while they send, in the
first minutes of every run, and a front end (router process, clients) that holds token streams
back and lets them go in lumps, in the runs that collapsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.replay.runs import Run
from synergy_gym.types import FloatArray


@dataclass(frozen=True, slots=True)
class Window:
    """Requests sent in [from_s, to_s) of a run."""

    name: str
    from_s: float
    to_s: float

    def of(self, frame: pd.DataFrame) -> Any:
        """Mask of the rows inside."""
        return ((frame.send_s >= self.from_s) & (frame.send_s < self.to_s)).to_numpy()


STEADY = Window("steady", 300.0, 600.0)
"""Every client has read its log (`WaitWhileReading`), and none has stopped."""

STEP_FLOOR_MS = 6.0
"""Below any step of an 8B model in bf16 on an H100: its 15 GiB take 4.8 ms at 3.35 TB/s."""
LUMP_TOKENS = 50
SUSTAINED_SHARE = 1e-3


def lumped(requests: pd.DataFrame) -> Any:
    """Streams of 50 tokens and more with a mean gap below one step of the engine.

    No engine can have sent them that way: something between engine and client held the tokens
    back and let them go together.
    """
    return (requests.tokens_out >= LUMP_TOKENS) & (requests.tpot_ms < STEP_FLOOR_MS)


def sustained(requests: pd.DataFrame) -> bool:
    """Whether tokens reached the clients as the engines made them."""
    return bool(lumped(requests).mean() <= SUSTAINED_SHARE)


def front_end(logs: Mapping[Run, pd.DataFrame]) -> pd.DataFrame:
    """Lumped streams per run and 60 s of sending."""
    rows = []
    for run, log in logs.items():
        for minute, part in log.groupby((log.send_s // 60).astype(int)):
            count = int(lumped(part).sum())
            row = {"run": str(run), "minute": minute, "requests": len(part), "lumped": count}
            rows.append(row | {"tpot_ms_p50": part.tpot_ms.median()})
    return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True)
class WaitWhileReading:
    """What requests wait longer in clients that are still reading their logs of prompts.

    Each client process parses its log in a second thread while it sends (online_replay.py of the
    benchmark), and the threads share Python's lock: TTFT is 0.2 to 0.4 s higher up to a client
    age of about 210 s, in every run alike, and TPOT is not. The simulator has no client; the
    excess is measured on other runs, per client age, as the difference between the TTFT quantiles
    at that age and those of the steady part. The first bin holds the start-up of everything.

    Attributes:
        edges_s: bins of client age.
        excess_s: (bins, 101): percentiles of the excess.
    """

    edges_s: tuple[float, ...]
    excess_s: FloatArray

    @classmethod
    def of(
        cls, logs: Iterable[pd.DataFrame], edges_s: tuple[float, ...] = (0.0, 20.0, 60.0, 220.0)
    ) -> WaitWhileReading:
        """The mean over several runs."""
        levels = np.arange(101)
        tables = []
        for log in logs:
            steady = np.percentile(log.ttft_s[STEADY.of(log)], levels)
            bins = _age_bins(log, edges_s)
            ages = [log.ttft_s[bins == index] for index in range(len(edges_s) - 1)]
            tables.append([np.maximum(np.percentile(a, levels) - steady, 0) for a in ages])
        return cls(edges_s, np.mean(tables, axis=0))

    def draw(self, log: pd.DataFrame, rng: np.random.Generator) -> FloatArray:
        """A wait in seconds for each request; 0 beyond the last bin."""
        wait = np.zeros(len(log))
        level = rng.uniform(0, 100, len(log))
        for index, excess in enumerate(self.excess_s):
            rows = _age_bins(log, self.edges_s) == index
            wait[rows] = np.interp(level[rows], np.arange(101), excess)
        return wait


def _age_bins(log: pd.DataFrame, edges_s: tuple[float, ...]) -> Any:
    return np.searchsorted(edges_s, log.age_s.to_numpy(), side="right") - 1
