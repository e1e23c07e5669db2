"""Rank policies from Python, own ones beside registered ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synergy_gym.evaluation.jobs import Job, label, run_jobs
from synergy_gym.evaluation.suites import (
    DEFAULT_ENGINE,
    DEFAULT_ROUTER,
    ENGINE_BASELINES,
    ROUTER_BASELINES,
    Track,
)
from synergy_gym.evaluation.tables import ranking
from synergy_gym.scenario import load_scenario

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_SCENARIOS = {"engine": ("chat-h100",), "router": ("hetero-3",)}


def rank(
    track: Track,
    policies: Sequence[Any] | None = None,
    *,
    scenarios: str | Sequence[str] | None = None,
    loads: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    other: Any = None,
    horizon_s: float | None = None,
    warmup_s: float | None = None,
    processes: int = 1,
) -> pd.DataFrame:
    """Play policies of one layer against each other and rank them.

    Args:
        track: the competing layer, "engine" or "router".
        policies: names, classes or instances; by default the baselines of the layer.
        scenarios: names or paths; by default `chat-h100` or `hetero-3`.
        loads: by default the scenario's own.
        seeds: by default the scenario's first two test seeds.
        other: policy of the other layer; `vllm-v1` or `round-robin` by default.
        horizon_s: shorter episodes, as in `evaluate`.
        warmup_s: likewise.
        processes: more than one needs policies that can be pickled.

    Returns:
        The table of `synergy_gym.evaluation.tables.ranking`, best policy first.

    Raises:
        ValueError: an unknown track, or two policies with one name.
        RuntimeError: an episode failed; names it and its error.
    """
    if track not in DEFAULT_SCENARIOS:
        raise ValueError(f"unknown track {track!r}; choose engine or router")
    rivals = list(policies or (ENGINE_BASELINES if track == "engine" else ROUTER_BASELINES))
    names = [label(policy) for policy in rivals]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"policies share the name {twice[0]!r}; give each its own `name`")
    chosen = [scenarios] if isinstance(scenarios, str) else scenarios
    cells = _cells(chosen or DEFAULT_SCENARIOS[track], loads, seeds)
    jobs = [
        Job(track, *cell, *_pair(track, rival, other), horizon_s, warmup_s)
        for cell in cells
        for rival in rivals
    ]
    batch = run_jobs(jobs, processes)
    for job, error in batch.failures.items():
        raise RuntimeError(f"{job} failed: {error}")
    return ranking([result.row for result in batch.results.values()], f"{track}_policy")


def _pair(track: Track, rival: Any, other: Any) -> tuple[Any, Any]:
    if track == "engine":
        return rival, DEFAULT_ROUTER if other is None else other
    return DEFAULT_ENGINE if other is None else other, rival


def _cells(
    names: Sequence[str], loads: Sequence[float] | None, seeds: Sequence[int] | None
) -> list[tuple[str, float, int]]:
    cells = []
    for name in names:
        scenario = load_scenario(name)
        for load in loads or scenario.loads:
            cells += [(name, load, seed) for seed in seeds or scenario.test_seeds[:2]]
    return cells
