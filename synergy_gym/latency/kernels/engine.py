"""What an engine adds to its kernels: its own work in every step, and the sampler.

All figures are derived by experiments/step_time/fit_engine_overhead.py from the sources named.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds that a step takes beside its kernels.

    Attributes:
        ms: the figure.
        low: end of its 95 % range.
        high: the other end.
        source: the evidence.
    """

    ms: float
    low: float
    high: float
    source: str


ASYNC = Overhead(
    0.2,
    0.0,
    0.4,
    "vLLM >= 0.14 and TRT-LLM plan a step while the last one runs: what is left is the launch",
)
SYNC = Overhead(
    1.2,
    0.9,
    1.5,
    "vLLM 0.10.1.1 iteration counters less kernels: 1.18 ms on an H100 (58 windows, sd 0.22), 1.13 "
    "on an A100 (59 windows); Llama-3-8B by concurrency 0.9 to 1.3",
)


@dataclass(frozen=True, slots=True)
class Sampler:
    """Time of top-k / top-p sampling: `step_ms` + `per_sequence_ms` * B.

    Attributes:
        step_ms: of a step.
        per_sequence_ms: of each sequence in it.
        low: 95 % ranges of both, lower ends.
        high: and upper ends.
        source: the evidence.
    """

    step_ms: float
    per_sequence_ms: float
    low: tuple[float, float]
    high: tuple[float, float]
    source: str


TOP_P = Sampler(
    0.41,
    0.056,
    (0.18, 0.053),
    (0.76, 0.062),
    "ML.ENERGY Benchmark v3 (Apache-2.0), vLLM 0.11.1, default sampling, Llama-3.1-8B and "
    "Qwen3-32B on H100 less kernels, 8 to 691 sequences",
)
