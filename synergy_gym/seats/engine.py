"""Where an engine policy sits: whoever wants its decision asks here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from synergy_gym.policies.base import EnginePolicy
from synergy_gym.seats.errors import PolicyError, at, raised
from synergy_gym.seats.observer import Observer
from synergy_gym.seats.times import DecisionTimes
from synergy_gym.simulation import Simulation
from synergy_gym.types import (
    SLO,
    BatchDecision,
    DecisionRule,
    EngineSpec,
    EngineView,
    InformationError,
    StepReport,
)


class EngineSeat:
    """The policy of one engine.

    Args:
        policy: who decides; nobody else asks it.
        engine: index of the engine.
        observers: who is told.
        times: how long decisions take goes here; shared by the seats of a cluster.
    """

    def __init__(
        self,
        policy: EnginePolicy,
        engine: int = 0,
        observers: Sequence[Observer] = (),
        times: DecisionTimes | None = None,
    ) -> None:
        self.policy = policy
        self.engine = engine
        self.observers = tuple(observers)
        self.times = DecisionTimes() if times is None else times
        self._seen: StepReport | None = None

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Begin an episode."""
        self._seen = None
        for observer in self.observers:
            rng = observer.reset(self, rng, (spec, slos))
        self.policy.reset(rng, spec, slos)

    def rule(self) -> DecisionRule | None:
        """The policy's rule, unless somebody wants to see it decide."""
        asks = any(observer.asks_engines for observer in self.observers)
        return None if asks else self.policy.rule()

    def observe(self, step: StepReport) -> None:
        """Show the policy a finished iteration."""
        for observer in self.observers:
            observer.observed(self, step)
        self.policy.observe(step)

    def decision(self, view: EngineView) -> Any:
        """What the policy answers, whatever that is."""
        if not self.observers:
            return self.policy.decide(view)
        with ExitStack() as around:
            for observer in self.observers:
                around.enter_context(observer.deciding(self, view))
            answer = self.policy.decide(view)
        for observer in self.observers:
            observer.decided(self, answer, view)
        return answer

    def answer(self, sim: Simulation) -> None:
        """Decide a BATCH point of this engine; the iteration before it is shown first.

        Raises:
            PolicyError: the policy raised, or its answer is not allowed.
        """
        view = sim.engine_view(self.engine)
        step = view.last_step
        began = self.times.begin()
        try:
            if step is not None and step != self._seen:
                self.observe(step)
            decision = self.decision(view)
        except InformationError as error:
            error.add_note(self._where(sim))
            raise
        except Exception as error:
            raise raised(self._where(sim), error) from error
        self.times.end(began)
        self._seen = step
        if not isinstance(decision, BatchDecision):
            raise PolicyError(f"{self._where(sim)}: returned {decision!r}; return a BatchDecision")
        try:
            for observer in self.observers:
                observer.before(sim, self.engine, decision)
            sim.batch(decision)
        except (ValueError, TypeError) as error:
            raise PolicyError(f"{self._where(sim)}: {error} (decision: {decision})") from error
        for observer in self.observers:
            observer.after(sim, self.engine, decision)

    def _where(self, sim: Simulation) -> str:
        return at(self.policy.label, "engine", sim.now_ns, self.engine)
