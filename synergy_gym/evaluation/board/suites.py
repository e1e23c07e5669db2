"""The leaderboard's suites: which policies meet which scenarios, loads and seeds.

Those of the current season are here, those of an archived one in its file (`synergy_gym.seasons`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from synergy_gym.evaluation.board.incident_library import incidents_of
from synergy_gym.evaluation.board.part import DEFAULT_ENGINE, DEFAULT_ROUTER, Part, Suite, _archive
from synergy_gym.evaluation.clairvoyant import ORACLE
from synergy_gym.evaluation.timed import decision_times as known_times
from synergy_gym.policies.base import Layer
from synergy_gym.seasons import SEASON, split_name

ENGINE_POLICIES: tuple[str, ...] = (
    "vllm-v1",
    "vllm-v0",
    "sarathi-512",
    "static-256",
    "static-1024",
    "shortest-prompt",
    "earliest-deadline",
    "lens-ref",
    "lens-6p",
    "lens-guarded",
    "lens-e2e",
    "lens-plus",
    "random",
)
"""The engine track, one policy a line."""
ROUTER_POLICIES: tuple[str, ...] = (
    "random",
    "round-robin",
    "session",
    "weighted",
    "least-loaded",
    "latency-based",
    "least-outstanding",
    "power-of-two",
    "least-kv",
    "prefix-aware",
    "rr-veto",
    "lmetric",
    "block",
    "preble",
    "prism-ref",
    "prism-fixed",
    "prism-plus",
)
"""The router track, one policy a line."""
JOINT_PAIRS: tuple[tuple[str, str], ...] = (
    ("vllm-v0", "round-robin"),
    ("vllm-v0", "session"),
    ("vllm-v1", "round-robin"),
    ("vllm-v1", "session"),
    ("vllm-v1", "weighted"),
    ("vllm-v1", "least-outstanding"),
    ("vllm-v1", "rr-veto"),
    ("vllm-v1", "prism-ref"),
    ("lens-ref", "round-robin"),
    ("lens-ref", "prism-ref"),
    ("lens-guarded", "prism-fixed"),
    ("lens-plus", "round-robin"),
    ("vllm-v1", "prism-plus"),
    ("lens-plus", "prism-plus"),
)
"""The joint track, one (engine policy, router policy) a line; the full product is too much."""
ENGINE_AGENTS: tuple[str, ...] = ("agent:engine-ppo-v1", "agent:engine-dqn-authors-v1")
ROUTER_AGENTS: tuple[str, ...] = ("agent:router-ppo-v1",)
"""Trained agents that come with the package; they compete in `full`."""
MATRIX_ENGINES: tuple[str, ...] = ("vllm-v1", "lens-ref", "lens-plus", "agent:engine-ppo-v1")
MATRIX_ROUTERS: tuple[str, ...] = ("round-robin", "least-outstanding", "prism-ref", "prism-plus")
"""Of these two every pair is played in `full`, which shows how the layers interact."""
FULL_PAIRS: tuple[tuple[str, str], ...] = (
    *product(MATRIX_ENGINES, MATRIX_ROUTERS),
    ("vllm-v0", "round-robin"),
    ("vllm-v1", "session"),
    ("vllm-v1", "weighted"),
    ("vllm-v1", "rr-veto"),
    ("lens-guarded", "prism-fixed"),
    ("agent:engine-ppo-v1", "agent:router-ppo-v1"),
)
ENGINE_SCENARIOS = (
    "chat-h100",
    "two-class-h100",
    "code-a100",
    "summarization-h100",
    "chat-a6000",
)
ROUTER_SCENARIOS = (
    "flowgpt-8xh100",
    "flowgpt-8xh100-llama8b",
    "hetero-3",
    "long-context-4xh100",
)
HELD_OUT_ENGINE = ("heldout-reasoning-h100",)
HELD_OUT_ROUTER = (
    "heldout-flowgpt-12xh100",
    "heldout-rtxpro-3",
    "paper-coding-8xh100",
    "paper-sharegpt-8xh100",
    "paper-coder-hetero",
    "paper-sharegpt-hetero",
)


def _engine_part(scenarios: tuple[str, ...], **options: Any) -> Part:
    return Part("engine", scenarios, ENGINE_POLICIES, (DEFAULT_ROUTER,), **options)


def _router_part(scenarios: tuple[str, ...], **options: Any) -> Part:
    return Part("router", scenarios, (DEFAULT_ENGINE,), ROUTER_POLICIES, **options)


def _joint_part(scenarios: tuple[str, ...], **options: Any) -> Part:
    return Part("joint", scenarios, pairs=JOINT_PAIRS, **options)


_SHORT: dict[str, Any] = {"seeds": 2, "horizon_s": 120.0, "warmup_s": 30.0}
# On the heterogeneous cluster, routers that know the engines carry more than twice load 1.0.
# Sized by the engine policies that Python asks: 4,000 to 9,000 iterations an episode on
# chat-h100 and 11,000 to 24,000 on hetero-3, 0.15 to 0.2 ms each.
_QUICK = (
    _engine_part(("chat-h100",), loads=(0.8, 1.0, 1.1), **_SHORT),
    _router_part(("hetero-3",), loads=(1.0, 1.5, 2.5), **_SHORT),
    _joint_part(("hetero-3",), loads=(1.5, 2.5), **_SHORT),
)
# In the scenarios' own windows. Sized in processor time: one minute of a busy engine that Python
# asks costs about 0.5 s of a core, of one whose rule is compiled 0.01 s. Ten seeds of few loads say
# more than few seeds of many.
_FULL: dict[str, Any] = {"seeds": 10}
_FULL_PARTS = (
    Part(
        "engine",
        (*ENGINE_SCENARIOS, *HELD_OUT_ENGINE),
        (*ENGINE_POLICIES, *ENGINE_AGENTS),
        (DEFAULT_ROUTER,),
        loads=(0.8, 1.0, 1.2, 1.5),
        loads_of=(
            ("two-class-h100", (0.8, 1.0, 1.2)),
            ("heldout-reasoning-h100", (1.0, 1.2)),
        ),
        oracles=((ORACLE, DEFAULT_ROUTER),),
        **_FULL,
    ),
    Part(
        "router",
        (*ROUTER_SCENARIOS, *HELD_OUT_ROUTER),
        (DEFAULT_ENGINE,),
        (*ROUTER_POLICIES, *ROUTER_AGENTS),
        loads=(0.8, 1.0, 1.2, 1.5),
        loads_of=(
            ("flowgpt-8xh100-llama8b", (0.8, 1.0, 1.2)),
            ("hetero-3", (1.0, 1.5, 2.0, 2.5)),
            ("heldout-flowgpt-12xh100", (1.2,)),
            ("heldout-rtxpro-3", (1.5, 2.5)),
            ("paper-coding-8xh100", (1.2,)),
            ("paper-sharegpt-8xh100", (1.2,)),
            ("paper-coder-hetero", (1.2, 2.0)),
            ("paper-sharegpt-hetero", (1.2, 2.0)),
        ),
        oracles=((DEFAULT_ENGINE, ORACLE),),
        **_FULL,
    ),
    Part(
        "joint",
        ("hetero-3", "flowgpt-8xh100", "heldout-rtxpro-3"),
        pairs=FULL_PAIRS,
        loads=(1.2,),
        loads_of=(("hetero-3", (1.5, 2.5)), ("heldout-rtxpro-3", (1.5,))),
        oracles=((ORACLE, ORACLE),),
        **_FULL,
    ),
)


def _incidents(layer: Layer) -> dict[str, Any]:
    """Each incident of a layer at its own load; what passes is told by `incidents.cards`."""
    found = incidents_of(layer)
    loads_of = tuple((incident.name, (incident.load,)) for incident in found)
    return {"scenarios": tuple(i.name for i in found), "loads_of": loads_of, "seeds": 3}


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "quick",
            "all policies on one engine and one small cluster in about a minute: 120 s of arrivals "
            "at loads that were calibrated on windows of 300 s",
            _QUICK,
        ),
        Suite(
            "full",
            "engine policies, router policies and pairs of both, ten seeds, all scenario families",
            _FULL_PARTS,
        ),
        Suite(
            "incidents",
            "scenarios rebuilt from public incidents; `synergy-gym incidents` says who passes",
            (_engine_part(**_incidents("engine")), _router_part(**_incidents("router"))),
        ),
    )
}


def list_suites(season: int = SEASON) -> list[Suite]:
    """The suites of a season.

    Raises:
        ValueError: no such season.
    """
    if season == SEASON:
        return list(SUITES.values())
    return [_archived(entry, season) for entry in _archive(season)["suites"]]


def find_suite(name: str, season: int = SEASON) -> Suite:
    """The suite of that name.

    Args:
        name: plain, or after its season (`season1/full`).
        season: of a plain name.

    Raises:
        ValueError: no such suite or season; names the ones there are.
    """
    season, plain = split_name(name, season)
    known = {suite.name: suite for suite in list_suites(season)}
    if plain not in known:
        labels = ", ".join(suite.label for suite in known.values())
        raise ValueError(f"unknown suite {name!r}; choose one of {labels}")
    return known[plain]


def _archived(entry: Mapping[str, Any], season: int) -> Suite:
    parts = tuple(Part.from_entry(part, season) for part in entry["parts"])
    return Suite(entry["suite"], entry["description"], parts)


def chosen_suite(
    name: str,
    track: str | None = None,
    *,
    timed: bool = False,
    decision_times: Path | None = None,
) -> Suite:
    """The suite that the command line asks for.

    Args:
        name: a suite's name, after `season1/` if it is archived.
        track: only its parts of this track.
        timed: the variant in which decisions take time.
        decision_times: other constants for it, a CSV file.

    Raises:
        ValueError: no such suite or track, constants without `timed`, or a bad file of them.
    """
    suite = find_suite(name) if track is None else find_suite(name).only(track)
    if timed:
        return suite.timed(known_times(decision_times))
    if decision_times is not None:
        raise ValueError(f"--decision-times {decision_times} needs --timed")
    return suite
