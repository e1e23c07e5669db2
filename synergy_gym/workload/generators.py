"""Built-in traffic generators by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from synergy_gym.workload.base import Workload
from synergy_gym.workload.presets import PRESETS
from synergy_gym.workload.spec import TrafficSpec
from synergy_gym.workload.traffic import build_workload


def generate(
    name: str, *, rate_rps: float, horizon_s: float, seed: int, **options: Any
) -> Workload:
    """Traffic that carries the statistics of a public trace.

    Args:
        name: a generator of `list_generators`.
        rate_rps: mean requests per second, > 0.
        horizon_s: length of the arrival window, seconds, > 0.
        seed: the episode seed.
        options: fields of `TrafficSpec` to use instead of the generator's own.

    Raises:
        ValueError: the generator or an option is unknown, or a number is out of range.
    """
    known = TrafficSpec.__dataclass_fields__.keys() - {"generator"}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}; choose from {', '.join(sorted(known))}")
    spec = replace(TrafficSpec(generator=name), **options)
    return build_workload(spec, rate_rps, horizon_s, seed)


def list_generators() -> list[str]:
    """Names of the built-in generators."""
    return list(PRESETS)
