"""Step-latency coefficients of the 8xH100 testbed, fitted by playing measured runs again.

The logs hold no step times, so coefficients are judged by what they do to requests: quantiles
P10 to P99 of TTFT, TPOT and E2E of a stretch of each run, simulated against measured, weighted
least squares of their logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pandas as pd
from replay_rounds import CELLS, cell_arrivals, measured_means, simulated_means
from replay_runs import METRICS, Overhead, Run, add_wait, simulate
from scipy.optimize import lsq_linear, minimize_scalar

from synergy_gym.latency.profiles import load_profile
from synergy_gym.latency.terms import StepTerms
from synergy_gym.types import FloatArray

PACKAGED = "h100-llama-3.1-8b"
SHARED = ("floor_ms", "per_token_ms", "per_decode_context_ms", "per_prefill_pair_ms")
FITTED = ("base_ms", *SHARED)
"""Terms that are fitted; the others stay as packaged (noise 3.4 %, the rest 0)."""
BASES_MS = (1.5, 2.5, 3.5)
"""Where the runs under LENS are simulated. Kernel profiles of H100 linear layers (Vidur,
Llama-2-70B, TP 4 and 8) are flat up to some 200 tokens, and the line through longer steps meets
zero tokens at a fifth to a third of that floor; the packaged profile, made of fits that know no
floor, has 7.1 ms for both."""
START_OVERHEAD = Overhead(per_request_s=0.015, per_prompt_token_s=5e-6)
PERCENTILES = (10, 25, 50, 75, 90, 95, 99)
TOLERANCE: Mapping[str, float] = MappingProxyType({"ttft_s": 0.06, "tpot_ms": 0.02, "e2e_s": 0.02})
"""Relative error that counts as one unit in the sum of squares."""
PRIOR = 0.5
"""A coefficient that is exp(PRIOR) times the start costs one unit: it keeps the terms that the
runs hardly tell apart (context, pairs, per token) near the packaged profile."""
LEAST_CONTEXT_MS = 131_072 / 3.35e12 * 1000
"""A context token's 131,072 bytes of KV cache at an H100's 3,350 GB/s: no step can be faster."""
STEP = 0.04
"""Relative change of a coefficient in the (central) derivatives; smaller ones drown in noise."""
DAMPING = 10.0
ROUNDS = 5
"""Gauss-Newton rounds from the packaged profile; fewer from the result for another `base_ms`."""
NEXT_ROUNDS = 1


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of a run that is fitted: played from `begin_s`, judged in [from_s, to_s).

    All clients have read their logs by then, and none has stopped.
    """

    begin_s: float
    from_s: float
    to_s: float


COMPILED = Stretch(265.0, 300.0, 450.0)
ASKED = Stretch(282.0, 300.0, 370.0)
"""LENS is asked before every step, which takes a hundred times as long."""
FITTED_ROUNDS = range(5, 7)
IN_ROUNDS = Stretch(282.0, 300.0, 465.0)
"""These two minutes of the life of five clients that start 10 s apart."""


def stretch_of(run: Run) -> Stretch:
    """Long where the engine's rule is compiled into the simulator."""
    if run in CELLS:
        return IN_ROUNDS
    return COMPILED if run.engine == "native" else ASKED


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What a fit finds: the clock, and what a client waits outside the engine."""

    terms: StepTerms
    overhead: Overhead

    @classmethod
    def start(cls, base_ms: float) -> Coefficients:
        """Where a fit begins: the packaged profile with another `base_ms`."""
        return cls(replace(load_profile(PACKAGED).terms, base_ms=base_ms), START_OVERHEAD)

    def scaled(self, logarithms: FloatArray) -> Coefficients:
        """Each coefficient but `base_ms` times the exponential of its entry, terms first."""
        *factors, fixed, token = np.exp(logarithms).tolist()
        terms = {n: getattr(self.terms, n) * f for n, f in zip(SHARED, factors, strict=True)}
        overhead = Overhead(
            self.overhead.per_request_s * fixed, self.overhead.per_prompt_token_s * token
        )
        return Coefficients(replace(self.terms, **terms), overhead)

    def row(self) -> dict[str, float]:
        """Fitted figures by name, with their units."""
        found = {name: getattr(self.terms, name) for name in FITTED}
        wait = self.overhead
        return found | {
            "overhead_per_request_ms": 1000 * wait.per_request_s,
            "overhead_per_prompt_token_us": 1e6 * wait.per_prompt_token_s,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, float]) -> Coefficients:
        """The inverse of `row`; other entries are ignored."""
        terms = {name: float(row[name]) for name in FITTED}
        overhead = Overhead(
            float(row["overhead_per_request_ms"]) / 1000,
            float(row["overhead_per_prompt_token_us"]) / 1e6,
        )
        return cls(replace(load_profile(PACKAGED).terms, **terms), overhead)


class Stretches:
    """The fitted stretches of all runs, and what has been simulated of them.

    Fits share one, as those that leave out different runs ask for many equal simulations.

    Args:
        logs: the runs, as `read_run` gives them.
        rounds: the table of the clients' rounds, for runs without a log.
    """

    def __init__(self, logs: Mapping[Run, pd.DataFrame], rounds: pd.DataFrame) -> None:
        self._logs, self._rounds = logs, rounds
        self._part = lru_cache(maxsize=None)(self._cut)
        self._play = lru_cache(maxsize=None)(self._simulate)

    def errors(self, guess: Coefficients, runs: Sequence[Run]) -> FloatArray:
        """Logarithms of simulated / measured in units of TOLERANCE: run, metric, quantile."""
        found = []
        for run in runs:
            part = self._part(run)
            wait = guess.overhead.of(part.tokens_in.to_numpy(float))
            simulated = add_wait(self._play(run, guess.terms), wait)
            pair = (self._of_rounds if run in CELLS else self._of_log)(run, part, simulated)
            tolerance = [TOLERANCE[metric] for metric in METRICS]
            found.append(np.log(pair[0] / pair[1]) / np.repeat(tolerance, len(pair[0]) // 3))
        return np.concatenate(found)

    def _of_log(self, run: Run, part: pd.DataFrame, simulated: pd.DataFrame) -> list[FloatArray]:
        scored = (part.send_s >= stretch_of(run).from_s).to_numpy()
        frames = (simulated[scored], part[scored])
        return [np.percentile(f[list(METRICS)], PERCENTILES, axis=0).T.ravel() for f in frames]

    def _of_rounds(self, run: Run, part: pd.DataFrame, simulated: pd.DataFrame) -> list[FloatArray]:
        mine = simulated_means(part, simulated, FITTED_ROUNDS)
        theirs = measured_means(self._rounds, run, FITTED_ROUNDS)
        return [mine.to_numpy(), theirs.to_numpy()]

    def _cut(self, run: Run) -> pd.DataFrame:
        log = cell_arrivals(run, self._logs) if run in CELLS else self._logs[run]
        stretch = stretch_of(run)
        return log[(log.send_s >= stretch.begin_s) & (log.send_s < stretch.to_s)]

    def _simulate(self, run: Run, terms: StepTerms) -> pd.DataFrame:
        return simulate(run, self._part(run), terms, begin_s=stretch_of(run).begin_s)


class Fit:
    """Least squares over stretches of several runs.

    Stock vLLM takes prompts in steps of thousands of tokens, beside which `base_ms` vanishes, so
    its runs give all other coefficients for any `base_ms`. LENS takes some hundred tokens per
    step, and its runs give `base_ms`: they are simulated for three values, and each quantile is
    interpolated between them.

    Args:
        stretches: what is simulated and measured.
        runs: the runs to fit on.

    Raises:
        ValueError: no run of stock vLLM among them.
    """

    def __init__(self, stretches: Stretches, runs: Sequence[Run]) -> None:
        self._errors = stretches.errors
        self._native = [run for run in runs if run.engine == "native"]
        self._lens = [run for run in runs if run.engine != "native"]
        if not self._native:
            raise ValueError("a fit needs a run of stock vLLM; it gives all terms but base_ms")

    def run(self) -> Coefficients:
        """The best coefficients found; `base_ms` is the middle of BASES_MS without LENS runs."""
        at, tried = self.settle(BASES_MS[1], np.zeros(len(SHARED) + 2), ROUNDS), []
        if not self._lens:
            return Coefficients.start(BASES_MS[1]).scaled(at)
        for base_ms in BASES_MS:
            near = self.settle(base_ms, at, NEXT_ROUNDS)
            guess = Coefficients.start(base_ms).scaled(near)
            tried.append(self._errors(guess, self._lens))
        curves = np.polyfit(BASES_MS, np.array(tried), 2)
        bounds = (BASES_MS[0] - 0.5, BASES_MS[-1] + 0.5)
        found = minimize_scalar(
            lambda b: cost(np.polyval(curves, b)), bounds=bounds, method="bounded"
        )
        base_ms = float(found.x)
        return Coefficients.start(base_ms).scaled(self.settle(base_ms, at, NEXT_ROUNDS))

    def settle(self, base_ms: float, at: FloatArray, rounds: int) -> FloatArray:
        """Logarithms of all other coefficients for one `base_ms`, from stock vLLM's runs.

        Damped Gauss-Newton; rows are reweighted so that it minimises `cost`.
        """
        start = Coefficients.start(base_ms)
        lowest = np.full(len(at), -np.inf)
        packaged = start.terms.per_decode_context_ms
        lowest[SHARED.index("per_decode_context_ms")] = np.log(LEAST_CONTEXT_MS / packaged)

        def residuals(logarithms: FloatArray) -> FloatArray:
            fitted = self._errors(start.scaled(logarithms), self._native)
            return np.concatenate([fitted, logarithms / PRIOR])

        for _ in range(rounds):
            here = residuals(at)
            slopes = [(residuals(at + s) - residuals(at - s)) / (2 * STEP) for s in _steps(at)]
            jacobian = np.column_stack(slopes)
            root = (1 + here**2) ** -0.25
            design = np.vstack([root[:, None] * jacobian, np.sqrt(DAMPING) * np.eye(len(at))])
            target = -np.append(root * here, np.zeros(len(at)))
            at = at + lsq_linear(design, target, (lowest - at, np.inf)).x
        return at


def cost(residuals: FloatArray) -> float:
    """Sum of sqrt(1 + r^2) - 1: robust, as stalls of the clients fill the last percents of TTFT."""
    return float((np.sqrt(1 + residuals**2) - 1).sum())


def _steps(at: FloatArray) -> FloatArray:
    return STEP * np.eye(len(at))
