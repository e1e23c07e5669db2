"""Every step that engine policies are told of, in simulation and on real engines alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from synergy_gym.policies.base import EnginePolicy
from synergy_gym.seats import EngineSeat, Observer, RouterSeat
from synergy_gym.types import SLO, BatchDecision, DecisionRule, EngineSpec, EngineView, StepReport

Probe = Callable[[], tuple[float, int]]
"""Measures the machine between two steps; returns a duration in ms, and of what kind it is."""


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A finished step of an engine; `at_s` is when it was seen, seconds since the Unix epoch."""

    engine: str
    at_s: float
    report: StepReport


@dataclass(slots=True)
class StepLog:
    """What the recorders of one episode have seen; shared by all of its engines.

    Args:
        probe: called every `probe_every` decisions, outside of the measured steps.
        probe_every: decisions between two probes.

    Attributes:
        steps: finished steps in the order in which they were seen.
        probes: (virtual time in seconds, duration in ms, kind) of every probe.
    """

    probe: Probe | None = None
    probe_every: int = 8
    steps: list[RecordedStep] = field(default_factory=list)
    probes: list[tuple[float, float, int]] = field(default_factory=list)
    decisions: int = 0

    def deciding(self, now_s: float) -> None:
        """Count a decision; probe when it is time."""
        self.decisions += 1
        if self.probe is not None and self.decisions % self.probe_every == 0:
            self.probes.append((now_s, *self.probe()))


class Recorder(Observer):
    """Logs each step that an engine policy is told of; simulators stop at every decision.

    Args:
        log: where the steps go.
    """

    asks_engines = True

    def __init__(self, log: StepLog) -> None:
        self.log = log
        self._names: dict[int, str] = {}

    def reset(
        self, seat: EngineSeat | RouterSeat, rng: np.random.Generator, given: tuple[Any, ...]
    ) -> np.random.Generator:
        """Note the engine's name."""
        if isinstance(seat, EngineSeat):
            self._names[seat.engine] = given[0].name
        return rng

    def observed(self, seat: EngineSeat | RouterSeat, seen: Any) -> None:
        """Log a step."""
        if isinstance(seat, EngineSeat):
            self.log.steps.append(RecordedStep(self._names[seat.engine], time.time(), seen))

    def deciding(self, seat: EngineSeat | RouterSeat, *views: Any) -> AbstractContextManager[None]:
        """Probe the machine when it is time."""
        if isinstance(seat, EngineSeat):
            self.log.deciding(views[0].now_s)
        return nullcontext()


class Explorer(EnginePolicy):
    """Random token budgets and admission caps, each held for a while, or the server's own limits.

    Budgets are spread evenly over magnitudes, so that a calibration sees small and large steps
    alike; they are held, because an engine that does the same again and again is faster.
    """

    name = "explorer"
    HOLD_STEPS = 60
    """Mean number of steps between two draws."""

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Take the generator."""
        self._rng = rng
        self._decision = BatchDecision(spec.max_num_batched_tokens)

    def decide(self, engine: EngineView) -> BatchDecision:
        """The decision that is held, or a new one."""
        if self._rng.random() < 1 / self.HOLD_STEPS:
            self._decision = self._draw(engine.spec)
        return self._decision

    def _draw(self, spec: EngineSpec) -> BatchDecision:
        rng, most = self._rng, spec.max_num_batched_tokens
        if rng.random() < 0.4:
            return BatchDecision(most)
        budget = max(int(2 ** rng.uniform(np.log2(min(16, most)), np.log2(most))), 1)
        seats = int(rng.integers(spec.max_num_seqs // 2, spec.max_num_seqs)) + 1
        return BatchDecision(budget, seats)

    def rule(self) -> DecisionRule | None:
        """None: decisions are drawn."""
        return None
