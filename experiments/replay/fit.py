"""What a busy 8xH100 node adds to kernel times, fitted by playing measured runs again.

The clock is the kernels' (`latency/profiles/h100-llama-3.1-8b.toml`). Two of its parts are not
known from kernels: how much longer compute-bound work takes on a busy node (`sustained`) and what
the synchronous engine of vLLM 0.9 adds to a step. The logs hold no step times, so parts are judged
by what they do to requests: quantiles of TTFT, TPOT and E2E of a stretch of each run, simulated
against measured. Runs are simulated on a grid of the two parts; each quantile is a quadratic
surface over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from experiments.replay.runs import METRICS, Overhead, Run, add_wait, simulate
from synergy_gym.latency.clock import StepTerms
from synergy_gym.latency.kernels.engine import SYNC
from synergy_gym.latency.profiles import load_profile
from synergy_gym.types import FloatArray

PROFILE = "h100-llama-3.1-8b"
NOISE_SD = 0.034
"""3,058 steps of 4,096 tokens of the authors' log."""
SUSTAINED = (1.0, 1.1, 1.2, 1.3)
SYNC_MS = (0.9, 1.2, 1.5, 1.8)
PERCENTILES = (10, 25, 50, 75, 90, 95)
TOLERANCE: Mapping[str, float] = MappingProxyType({"ttft_s": 0.06, "tpot_ms": 0.02, "e2e_s": 0.02})
"""Relative error that counts as one unit in the sum of squares."""
SYNC_SD_MS = 0.15
"""Half of the 95 % range of `SYNC`, as a prior."""
START = (1.1, 1.2, 0.01, 5e-6)
"""sustained, sync_ms, wait per request and per prompt token in s."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of a run that is fitted: played from `begin_s`, judged in [from_s, to_s).

    All clients have read their logs by then, and none has stopped.
    """

    begin_s: float
    from_s: float
    to_s: float


STRETCH = Stretch(265.0, 300.0, 600.0)
ASKED = Stretch(275.0, 300.0, 400.0)
"""LENS is asked before every step, which takes twenty times as long."""


def stretch_of(run: Run) -> Stretch:
    """Long where the engine's rule is compiled into the simulator."""
    return STRETCH if run.engine == "native" else ASKED


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What a fit finds, and what a client waits outside the engine.

    Attributes:
        sustained: factor of compute-bound work.
        sync_ms: what the engine adds to every step.
        overhead: of the client.
    """

    sustained: float
    sync_ms: float
    overhead: Overhead

    @property
    def terms(self) -> StepTerms:
        """The clock."""
        return clock(self.sustained, self.sync_ms)

    def row(self) -> dict[str, float]:
        """Figures by name, with their units."""
        return {
            "sustained": self.sustained,
            "sync_ms": self.sync_ms,
            "overhead_per_request_ms": 1000 * self.overhead.per_request_s,
            "overhead_per_prompt_token_us": 1e6 * self.overhead.per_prompt_token_s,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, float]) -> Coefficients:
        """The inverse of `row`; other entries are ignored."""
        overhead = Overhead(
            float(row["overhead_per_request_ms"]) / 1000,
            float(row["overhead_per_prompt_token_us"]) / 1e6,
        )
        return cls(float(row["sustained"]), float(row["sync_ms"]), overhead)


def clock(sustained: float, sync_ms: float, per_sample_ms: float = 0.0) -> StepTerms:
    """The kernels' clock with a busy node's parts."""
    terms = load_profile(PROFILE).timed("sync", sustained=sustained)
    more = sync_ms - SYNC.ms
    return replace(
        terms,
        base_ms=terms.base_ms + more,
        floor_ms=terms.floor_ms + more,
        per_sample_ms=per_sample_ms,
        noise_sd=NOISE_SD,
    )


class Stretches:
    """Quantiles of the fitted stretch of runs, measured and simulated on the grid.

    Args:
        logs: the runs, as `read_run` gives them.
        grid: the clock at each point, by (first, second) part.
    """

    def __init__(
        self, logs: Mapping[Run, pd.DataFrame], grid: Mapping[tuple[float, float], StepTerms]
    ) -> None:
        self._logs, self._grid = logs, grid
        self._surfaces: dict[Run, FloatArray] = {}

    def part(self, run: Run) -> pd.DataFrame:
        """The requests that are played."""
        log, stretch = self._logs[run], stretch_of(run)
        return log[(log.send_s >= stretch.begin_s) & (log.send_s < stretch.to_s)]

    def simulated(self, run: Run, terms: StepTerms) -> pd.DataFrame:
        """Latencies of those requests, without waits outside the engine."""
        return simulate(run, self.part(run), terms, begin_s=stretch_of(run).begin_s)

    def errors(self, parts: FloatArray, runs: Sequence[Run]) -> FloatArray:
        """Logarithms of simulated / measured in units of TOLERANCE: run, metric, quantile."""
        found = []
        wait = Overhead(parts[2], parts[3])
        for run in runs:
            part = self.part(run)
            delay = float(wait.of(part.tokens_in.to_numpy(float)).mean())
            levels = _levels(parts[:2]) @ self._surface(run)
            mine = np.exp(levels).reshape(len(METRICS), -1)
            for row, metric in zip(mine, METRICS, strict=True):
                real = self.quantiles(part, part)[METRICS.index(metric)]
                shown = row + (delay if metric != "tpot_ms" else 0.0)
                found.append(np.log(shown / real) / TOLERANCE[metric])
        return np.concatenate(found)

    def quantiles(self, part: pd.DataFrame, latencies: pd.DataFrame) -> FloatArray:
        """(metric, percentile) of the scored requests."""
        scored = (part.send_s >= STRETCH.from_s).to_numpy()  # all stretches begin there
        table = np.percentile(latencies[list(METRICS)][scored], PERCENTILES, axis=0)
        return np.asarray(table.T)

    def _surface(self, run: Run) -> FloatArray:
        """Quadratic coefficients of the logarithm of each quantile over the grid."""
        if run not in self._surfaces:
            part = self.part(run)
            points = np.array(list(self._grid))
            values = [
                np.log(self.quantiles(part, self.simulated(run, terms))).ravel()
                for terms in self._grid.values()
            ]
            design = np.array([_levels(point) for point in points])
            self._surfaces[run] = np.linalg.lstsq(design, np.array(values), rcond=None)[0]
        return self._surfaces[run]


def node_grid() -> dict[tuple[float, float], StepTerms]:
    """Clocks over `sustained` and the engine's own time."""
    return {point: clock(*point) for point in product(SUSTAINED, SYNC_MS)}


def fit(stretches: Stretches, runs: Sequence[Run]) -> Coefficients:
    """The parts that explain runs best.

    Args:
        stretches: what is simulated and measured.
        runs: the runs to fit on.
    """

    def errors(parts: FloatArray) -> FloatArray:
        prior = (parts[1] - SYNC.ms) / SYNC_SD_MS
        return np.append(stretches.errors(parts, runs), prior)

    found = least_squares(
        errors,
        START,
        bounds=((1.0, 0.5, 0.0, 0.0), (1.5, 2.5, 0.1, 5e-5)),
        x_scale=(0.1, 0.3, 0.01, 5e-6),
        loss="soft_l1",
    )
    sustained, sync_ms, fixed, token = found.x.tolist()
    return Coefficients(sustained, sync_ms, Overhead(fixed, token))


def _levels(point: Sequence[float] | FloatArray) -> FloatArray:
    x, y = float(point[0]), float(point[1])
    return np.array([1.0, x, y, x * x, x * y, y * y])


def with_wait(part: pd.DataFrame, simulated: pd.DataFrame, overhead: Overhead) -> pd.DataFrame:
    """Latencies as clients see them."""
    return add_wait(simulated, overhead.of(part.tokens_in.to_numpy(float)))


# --- the rival: the node's CPUs are busy instead of its GPUs ----------------------------------

PER_SEQUENCE_MS = (0.0, 0.04, 0.08, 0.12)
"""CPU time that a step takes for each of its sequences (bookkeeping, detokenising, streaming)."""


def rival_clock(per_sequence_ms: float, sync_ms: float) -> StepTerms:
    """Kernels at full speed (sustained 1.0), and CPUs that many sequences keep busy."""
    return clock(1.0, sync_ms, per_sequence_ms)


def rival_grid() -> dict[tuple[float, float], StepTerms]:
    """Clocks over the CPU time per sequence and the engine's own time."""
    return {point: rival_clock(*point) for point in product(PER_SEQUENCE_MS, SYNC_MS)}


def fit_rival(stretches: Stretches, runs: Sequence[Run]) -> tuple[StepTerms, Overhead, float]:
    """As `fit`, with the rival's parts.

    Returns:
        The clock, what clients wait, and the CPU time per sequence in ms.
    """

    def errors(parts: FloatArray) -> FloatArray:
        return np.append(stretches.errors(parts, runs), (parts[1] - SYNC.ms) / SYNC_SD_MS)

    found = least_squares(
        errors,
        (0.05, *START[1:]),
        bounds=((0.0, 0.5, 0.0, 0.0), (0.3, 2.5, 0.1, 5e-5)),
        x_scale=(0.05, 0.3, 0.01, 5e-6),
        loss="soft_l1",
    )
    per_sequence_ms, sync_ms, fixed, token = found.x.tolist()
    return rival_clock(per_sequence_ms, sync_ms), Overhead(fixed, token), per_sequence_ms
