"""Rank policies from Python, own ones beside registered ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER
from synergy_gym.evaluation.board.scores import ranking
from synergy_gym.evaluation.board.suites import ENGINE_POLICIES, JOINT_PAIRS, ROUTER_POLICIES
from synergy_gym.evaluation.jobs import Job, Track, competitor, label
from synergy_gym.evaluation.workers.run import run_jobs
from synergy_gym.scenario import load_scenario

if TYPE_CHECKING:
    import pandas as pd

DEFAULTS: Mapping[Track, tuple[str, Sequence[Any]]] = MappingProxyType(
    {
        "engine": ("chat-h100", ENGINE_POLICIES),
        "router": ("hetero-3", ROUTER_POLICIES),
        "joint": ("hetero-3", JOINT_PAIRS),
    }
)
"""Per track, the scenario and the rivals that `rank` plays by default."""


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
    """Play policies of one layer, or pairs of both, against each other and rank them.

    Args:
        track: the competing layer, "engine" or "router"; "joint": pairs of both.
        policies: names, classes or instances, on the joint track (engine policy, router
            policy); by default those of the leaderboard.
        scenarios: names or paths; by default `chat-h100` or (router, joint) `hetero-3`.
        loads: by default the scenario's own.
        seeds: by default the scenario's first two test seeds.
        other: policy of the other layer; `vllm-v1` or `round-robin` by default. The joint
            track has none.
        horizon_s: shorter episodes, as in `evaluate`.
        warmup_s: likewise.
        processes: more than one needs policies that can be pickled.

    Returns:
        The table of `synergy_gym.evaluation.board.scores.ranking`, best policy first.

    Raises:
        ValueError: an unknown track, two policies with one name, or no pair where one is due.
        RuntimeError: an episode failed; names it and its error.
    """
    if track not in DEFAULTS:
        raise ValueError(f"unknown track {track!r}; choose one of {', '.join(DEFAULTS)}")
    scenario, rivals = DEFAULTS[track]
    pairs = [_pair(track, rival, other) for rival in (policies or rivals)]
    names = [competitor(track, _names(pair)) for pair in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"policies share the name {twice[0]!r}; give each its own `name`")
    chosen = [scenarios] if isinstance(scenarios, str) else scenarios
    cells = _cells(chosen or [scenario], loads, seeds)
    jobs = [Job(track, *cell, *pair, horizon_s, warmup_s) for cell in cells for pair in pairs]
    batch = run_jobs(jobs, processes)
    for job, error in batch.failures.items():
        raise RuntimeError(f"{job} failed: {error}")
    return ranking([result.row for result in batch.results.values()], track)


def _pair(track: Track, rival: Any, other: Any) -> tuple[Any, Any]:
    """The engine and the router policy that play together."""
    if track == "engine":
        return rival, DEFAULT_ROUTER if other is None else other
    if track == "router":
        return DEFAULT_ENGINE if other is None else other, rival
    if other is not None:
        raise ValueError(f"other is {other!r}; on the joint track both are in the pair, drop it")
    if isinstance(rival, str) or not isinstance(rival, Sequence) or len(rival) != 2:
        raise ValueError(f"{rival!r} is no pair; give (engine policy, router policy)")
    return rival[0], rival[1]


def _names(pair: tuple[Any, Any]) -> dict[str, str]:
    return {"engine_policy": label(pair[0]), "router_policy": label(pair[1])}


def _cells(
    names: Sequence[str], loads: Sequence[float] | None, seeds: Sequence[int] | None
) -> list[tuple[str, float, int]]:
    cells = []
    for name in names:
        scenario = load_scenario(name)
        for load in loads or scenario.loads:
            cells += [(name, load, seed) for seed in seeds or scenario.test_seeds[:2]]
    return cells
