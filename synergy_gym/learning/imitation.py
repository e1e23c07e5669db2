"""Demonstrations: what a registered policy does, as observations and actions of an agent.

The policy plays, or in later rounds the agent plays and the policy says what it would have done
(DAgger, Ross, Gordon and Bagnell, AISTATS 2011), through `evaluate()` on train seeds. Grid
actions are the cells nearest to what an engine policy decides (`EngineGrid.nearest`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.observation import Float32Array
from synergy_gym.policies.learned import LearnedEngine, LearnedRouter, engine_rows
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.scenario import Scenario
from synergy_gym.seats import EngineSeat, RouterSeat
from synergy_gym.types import (
    SLO,
    BatchDecision,
    ClusterView,
    CompletionView,
    EngineSpec,
    EngineView,
    IntArray,
    RequestView,
    StepReport,
)

_OBSERVED = {"engine": "vllm-v1", "router": "least-outstanding"}
"""Whose traffic inputs are normalised by where nothing is imitated."""


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Pairs of observation and wanted action.

    Attributes:
        observations: float32 `(n, size)`.
        actions: int64 `(n, axes)` for grids, `(n,)` for routers.
    """

    observations: Float32Array
    actions: IntArray

    def rows(self, kind: str) -> Float32Array:
        """What a network's input layer sees, `(m, features)`: a scorer one row per engine up."""
        if kind == "engine":
            return self.observations
        rows = np.concatenate(engine_rows(self.observations))
        return rows[rows[:, 0] > 0]

    def joined(self, other: Demonstrations) -> Demonstrations:
        """Both, this one first."""
        size = max(self.observations.shape[1], other.observations.shape[1])
        parts = [_padded(part.observations, size) for part in (self, other)]
        actions = np.concatenate([self.actions, other.actions])
        return Demonstrations(np.concatenate(parts), actions)


def _padded(observations: Float32Array, size: int) -> Float32Array:
    missing = size - observations.shape[1]
    return np.pad(observations, [(0, 0), (0, missing)])


class _Sink:
    """Collects pairs; policies are copied for every engine, this is not."""

    def __init__(self) -> None:
        self.observations: list[Float32Array] = []
        self.actions: list[Any] = []

    def __deepcopy__(self, memo: Any) -> _Sink:
        return self

    def add(self, observation: Float32Array, action: Any) -> None:
        self.observations.append(observation.copy())
        self.actions.append(action)

    def take(self) -> Demonstrations:
        return Demonstrations(np.stack(self.observations), np.array(self.actions, np.int64))


class _EngineRecorder(LearnedEngine):
    """Asks a policy and an agent; one of them leads, and the policy's answers are kept."""

    def __init__(self, file: str, teacher: str, sink: _Sink, leads: bool) -> None:
        super().__init__(file)
        self._teacher = EngineSeat(make_engine_policy(teacher))
        self._sink, self._leads = sink, leads

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        super().reset(rng, spec, slos)
        self._teacher.reset(rng, spec, slos)

    def observe(self, step: StepReport) -> None:
        self._teacher.observe(step)

    def decide(self, engine: EngineView) -> BatchDecision:
        self._view, self._wanted = engine, self._teacher.decision(engine)
        own = super().decide(engine)
        return own if self._leads else self._wanted

    def _choose(self, observation: Float32Array) -> tuple[int, ...]:
        self._sink.add(observation, self._grid.nearest(self._wanted, self._view))
        return super()._choose(observation)


class _RouterRecorder(LearnedRouter):
    """The same for routers."""

    information = frozenset({"router", "pushed", "scraped", "oracle"})

    def __init__(self, file: str, teacher: str, sink: _Sink, leads: bool) -> None:
        super().__init__(file)
        self._teacher = RouterSeat(make_router_policy(teacher))
        self._sink, self._leads = sink, leads

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        super().reset(rng, engines, slos)
        self._teacher.reset(rng, engines, slos)

    def observe(self, completion: CompletionView) -> None:
        self._teacher.observe(completion)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        wanted: int = self._teacher.choice(request, cluster)
        self._sink.add(self._features(request, cluster), wanted)
        return super().route(request, cluster) if self._leads else wanted


_RECORDERS: dict[str, Callable[..., Any]] = {"engine": _EngineRecorder, "router": _RouterRecorder}


def demonstrate(
    plan: TrainingPlan,
    agent: str,
    round_: int,
    *,
    progress: Callable[[str], None] | None = None,
) -> Demonstrations:
    """Play one round of demonstrations on train seeds.

    Args:
        plan: names the policy to imitate, scenarios and loads.
        agent: file of the agent as it is now; it leads from round 1 on.
        round_: 0 is the first.
        progress: is told what is being played.

    Raises:
        ValueError: the policy is unknown.
    """
    return _record(plan, agent, plan.imitate, round_, list(_episodes(plan, round_)), progress)


def inputs(
    plan: TrainingPlan, agent: str, progress: Callable[[str], None] | None = None
) -> Demonstrations:
    """What an agent of this plan will see about: a simple policy at the lowest and highest load."""
    loads = sorted({min(plan.loads), max(plan.loads)})
    episodes = [(world, load, world.train_seeds[0]) for world in plan.worlds for load in loads]
    return _record(plan, agent, _OBSERVED[plan.kind], 0, episodes, progress)


def _record(
    plan: TrainingPlan,
    agent: str,
    teacher: str,
    round_: int,
    episodes: list[tuple[Scenario, float, int]],
    progress: Callable[[str], None] | None,
) -> Demonstrations:
    found: Demonstrations | None = None
    for world, load, seed in episodes:
        if progress is not None:
            progress(f"{teacher} on {world.name} at load {load:g}")
        sink = _Sink()
        recorder = _RECORDERS[plan.kind](agent, teacher, sink, round_ > 0)
        engine: Any = recorder if plan.kind == "engine" else plan.engine_policy
        router: Any = "round-robin" if plan.kind == "engine" else recorder
        evaluate(world, engine, router, load, seed, record_itl=False)
        taken = sink.take()
        found = taken if found is None else found.joined(taken)
    assert found is not None
    return found


def _episodes(plan: TrainingPlan, round_: int) -> Iterator[tuple[Scenario, float, int]]:
    """Scenario, load and train seed of every episode of a round; other rounds, other seeds."""
    for world in plan.worlds:
        for place, load in enumerate(plan.loads):
            for i in range(plan.imitate_episodes):
                number = (round_ * len(plan.loads) + place) * plan.imitate_episodes + i
                yield world, load, world.train_seeds[number % len(world.train_seeds)]
