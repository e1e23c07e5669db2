"""The leaderboard's suites: which policies meet which scenarios, loads and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from synergy_gym.evaluation.jobs import TRACK_LAYERS, Job, Track, competitor
from synergy_gym.evaluation.tables import Row, row_key
from synergy_gym.scenario import load_scenario

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
DEFAULT_ENGINE = "vllm-v1"
DEFAULT_ROUTER = "round-robin"
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


@dataclass(frozen=True, slots=True)
class Part:
    """One ranking of a suite.

    `track` says who competes. Played is every combination of `engine_policies` and
    `router_policies`, or just `pairs` of (engine policy, router policy) where given. `loads`
    empty means the scenario's own; `seeds` counts the scenario's test seeds; `horizon_s` and
    `warmup_s` shorten the episodes.
    """

    track: Track
    scenarios: tuple[str, ...]
    engine_policies: tuple[str, ...] = ()
    router_policies: tuple[str, ...] = ()
    loads: tuple[float, ...] = ()
    seeds: int = 3
    horizon_s: float | None = None
    warmup_s: float | None = None
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """Who is ranked, for headings."""
        layers = TRACK_LAYERS[self.track]
        return "Pairs of policies" if len(layers) > 1 else f"{layers[0].capitalize()} policies"

    def matchups(self) -> tuple[tuple[str, str], ...]:
        """Every (engine policy, router policy) that is played."""
        return self.pairs or tuple(product(self.engine_policies, self.router_policies))

    def competitors(self) -> tuple[str, ...]:
        """Names of the policies or pairs that are ranked, in the order given."""
        rows = [{"engine_policy": e, "router_policy": r} for e, r in self.matchups()]
        return tuple(dict.fromkeys(competitor(self.track, row) for row in rows))

    def cells(self) -> Iterator[tuple[str, float, int]]:
        """Every (scenario, load, seed) that is played."""
        for name in self.scenarios:
            scenario = load_scenario(name)
            seeds = scenario.test_seeds[: self.seeds]
            for load, seed in product(self.loads or scenario.loads, seeds):
                yield name, load, seed

    def jobs(self, suite: str) -> Iterator[Job]:
        """The episodes of this part, scenario by scenario."""
        for cell, pair in product(self.cells(), self.matchups()):
            yield Job(suite, *cell, *pair, self.horizon_s, self.warmup_s)

    def keys(self) -> frozenset[tuple[Any, ...]]:
        """The `row_key` of every row that this part asks for."""
        return frozenset(job.key[1:] for job in self.jobs(""))

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Those of a suite's rows (results or timings) that this part asked for."""
        keys = self.keys()
        return [row for row in rows if row_key(row) in keys]


@dataclass(frozen=True, slots=True)
class Suite:
    """A named set of parts."""

    name: str
    description: str
    parts: tuple[Part, ...]

    def jobs(self) -> list[Job]:
        """Every episode once, in the order in which they are started."""
        return list(dict.fromkeys(job for part in self.parts for job in part.jobs(self.name)))


def _engine_part(scenarios: tuple[str, ...] = ENGINE_SCENARIOS, **options: Any) -> Part:
    return Part("engine", scenarios, ENGINE_POLICIES, (DEFAULT_ROUTER,), **options)


def _router_part(scenarios: tuple[str, ...] = ROUTER_SCENARIOS, **options: Any) -> Part:
    return Part("router", scenarios, (DEFAULT_ENGINE,), ROUTER_POLICIES, **options)


def _joint_part(scenarios: tuple[str, ...] = ROUTER_SCENARIOS, **options: Any) -> Part:
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
# Eight engines that Python asks in every iteration: 10 to 20 s an episode.
_JOINT = (
    _joint_part(("hetero-3",), loads=(1.0, 1.5, 2.5), seeds=2),
    _joint_part(("flowgpt-8xh100",), loads=(0.8, 1.0, 1.2), seeds=2),
)

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "quick",
            "all policies on one engine and on one small cluster, short episodes, about a minute",
            _QUICK,
        ),
        Suite("engine", "engine policies on every single-engine scenario", (_engine_part(),)),
        Suite("router", "router policies on every cluster scenario", (_router_part(),)),
        Suite("joint", "pairs of policies on a heterogeneous and an equal cluster", _JOINT),
        Suite(
            "full",
            "engine policies, router policies and pairs of both on every scenario",
            (_engine_part(seeds=5), _router_part(seeds=5), _joint_part(seeds=5)),
        ),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ValueError: no such suite; names the ones there are.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; choose one of {', '.join(SUITES)}")
    return SUITES[name]
