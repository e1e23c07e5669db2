"""A calibration as a profile file: coefficients, and in comments how good they are."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from synergy_gym.fidelity.calibration import Calibration
from synergy_gym.latency.fitting import FitQuality
from synergy_gym.latency.profile_writer import profile_text

COMMENTS: Mapping[str, str] = MappingProxyType(
    {
        "base_ms": "every step: Python, kernel launches",
        "per_sequence_ms": "per sequence",
        "per_token_ms": "per scheduled token",
        "per_decode_context_ms": "per token in the KV cache of the decodes",
        "per_prefill_pair_ms": "per attention pair of the prefill chunks",
        "per_prefill_context_ms": "per token in the KV cache of the prefills",
        "prefill_step_ms": "a step with a prefill chunk",
        "per_mixed_context_ms": "per decode context token in a step with a prefill chunk",
        "floor_ms": "the linear part does not fall below this",
        "noise_sd": "relative spread of single steps",
        "straggler_probability": "share of steps far above their prediction",
        "straggler_factor": "their mean factor",
    }
)


def calibration_text(found: Calibration, command: str, software: Mapping[str, Any]) -> str:
    """The profile's text.

    Args:
        found: what was fitted.
        command: what makes the file again.
        software: vLLM's release and the device (`Calibrator.software`).
    """
    spec = found.engine
    head = [
        f"Measured on {processor()} ({software.get('device', '')}), {platform.system()}, "
        f"Python {platform.python_version()},",
        f"vLLM {software.get('vllm', '?')}: `{command}`",
        f"Clock {found.clock!r}. Terms: least absolute relative errors over the quieter half of a",
        "designed grid and of played episodes; scale, noise and stragglers: all played episodes.",
        f"Engine: {spec.kv_blocks} KV blocks of {spec.block_size} tokens (read from it), "
        f"max_num_seqs {spec.max_num_seqs},",
        f"max_num_batched_tokens {spec.max_num_batched_tokens}, "
        f"max_model_len {spec.max_model_len}.",
        f"Fitted steps:         {quality_words(found.fitted)}",
        f"Held-out episodes:    {quality_words(found.held_out)}",
        f"  at constant speed:  {quality_words(found.held_out_steady)}",
        f"Contention: equal steps differ by p90/p10 = {found.contention:.2f}; wall over "
        f"{found.clock} time {found.wall_over_clock:.2f}.",
    ]
    source = (
        f"synergy-gym calibrate, clock {found.clock}, {found.fitted.steps} steps; held-out "
        f"episodes: {quality_words(found.held_out)}"
    )
    return profile_text(
        gpu=spec.gpu,
        model=spec.model,
        source=source,
        terms=found.terms,
        head=head,
        comments=COMMENTS,
    )


def quality_words(score: FitQuality) -> str:
    """MAPE, R2, error of the total time and number of steps in one line."""
    return (
        f"MAPE {score.mape_percent:.1f} %, R2 {score.r2:.3f}, "
        f"total time {score.bias_percent:+.1f} % ({score.steps} steps)"
    )


def processor(lines: Sequence[str] | None = None) -> str:
    """The processor's name as the system tells it."""
    if lines is None:
        path = Path("/proc/cpuinfo")
        lines = path.read_text().splitlines() if path.is_file() else ()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
