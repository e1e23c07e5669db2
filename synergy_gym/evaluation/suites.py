"""The leaderboard's suites: which policies meet which scenarios, loads and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from synergy_gym.evaluation.jobs import Job
from synergy_gym.scenario import load_scenario

Track = Literal["engine", "router"]

ENGINE_BASELINES: tuple[str, ...] = (
    "vllm-v1",
    "vllm-v0",
    "sarathi-512",
    "static-256",
    "static-1024",
    "shortest-prompt",
    "earliest-deadline",
    "random",
)
ROUTER_BASELINES: tuple[str, ...] = (
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
)
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
    """One ranking of a suite: every combination of its members is played.

    `track` says which layer competes. `loads` empty means the scenario's own; `seeds`
    counts the scenario's test seeds; `horizon_s` and `warmup_s` shorten the episodes.
    """

    track: Track
    scenarios: tuple[str, ...]
    engine_policies: tuple[str, ...]
    router_policies: tuple[str, ...]
    loads: tuple[float, ...] = ()
    seeds: int = 3
    horizon_s: float | None = None
    warmup_s: float | None = None

    def jobs(self, suite: str) -> Iterator[Job]:
        """The episodes of this part, scenario by scenario."""
        for name in self.scenarios:
            scenario = load_scenario(name)
            seeds = scenario.test_seeds[: self.seeds]
            cells = [(x, s) for x in (self.loads or scenario.loads) for s in seeds]
            for load, seed in cells:
                for engine in self.engine_policies:
                    for router in self.router_policies:
                        yield Job(
                            suite=suite,
                            scenario=name,
                            load=load,
                            seed=seed,
                            engine_policy=engine,
                            router_policy=router,
                            horizon_s=self.horizon_s,
                            warmup_s=self.warmup_s,
                        )


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
    return Part("engine", scenarios, ENGINE_BASELINES, (DEFAULT_ROUTER,), **options)


def _router_part(scenarios: tuple[str, ...] = ROUTER_SCENARIOS, **options: Any) -> Part:
    return Part("router", scenarios, (DEFAULT_ENGINE,), ROUTER_BASELINES, **options)


_SHORT: dict[str, Any] = {"seeds": 2, "horizon_s": 120.0, "warmup_s": 30.0}
# On the heterogeneous cluster, routers that know the engines carry more than twice load 1.0.
_QUICK = (
    _engine_part(("chat-h100",), loads=(0.8, 1.0, 1.2), **_SHORT),
    _router_part(("hetero-3",), loads=(1.0, 1.5, 2.5), **_SHORT),
)

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "quick",
            "all baselines on one engine and on one small cluster, short episodes, < 1 minute",
            _QUICK,
        ),
        Suite("engine", "engine baselines on every single-engine scenario", (_engine_part(),)),
        Suite("router", "router baselines on every cluster scenario", (_router_part(),)),
        Suite(
            "full",
            "engine and router baselines on every scenario",
            (_engine_part(seeds=5), _router_part(seeds=5)),
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
