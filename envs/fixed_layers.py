"""Layers of an environment that policies decide, not the agent.

They ask a policy exactly as `synergy_gym.evaluate` does (the same generators, every finished
iteration observed once), so that an episode with the same decisions is the same episode.
"""

from __future__ import annotations

import copy

from synergy_gym.policies import (
    EnginePolicy,
    RouterPolicy,
    make_engine_policy,
    make_router_policy,
)
from synergy_gym.seats import EngineSeat, RouterSeat
from synergy_gym.seeding import policy_stream
from synergy_gym.simulation import Simulation
from synergy_gym.types import SLO, DecisionRule, EngineSpec

EnginePolicySpec = str | EnginePolicy | type[EnginePolicy]
RouterPolicySpec = str | RouterPolicy | type[RouterPolicy]


class FixedEngines:
    """Every engine of a cluster under a copy of one policy.

    Args:
        source: the policy: a name, class or instance. A name is read once; what it names, a new
            one of a class, or the instance as it is then, is copied at every reset.
        engines: the cluster.
        slos: the classes that requests refer to.

    Raises:
        ValueError: an unknown policy.
    """

    def __init__(
        self, source: EnginePolicySpec, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        self.source = source
        self._given = make_engine_policy(source) if isinstance(source, str) else source
        self._engines = engines
        self._slos = slos
        self.seats = self._fresh()

    @property
    def policies(self) -> list[EnginePolicy]:
        """The policies of this episode."""
        return [seat.policy for seat in self.seats]

    def reset(self, seed: int) -> list[DecisionRule | None]:
        """Begin the episode of this seed; returns what compiled engines can decide themselves."""
        self.seats = self._fresh()
        for i, (seat, spec) in enumerate(zip(self.seats, self._engines, strict=True)):
            seat.reset(policy_stream(seed, i), spec, self._slos)
        return [seat.rule() for seat in self.seats]

    def answer(self, simulation: Simulation) -> None:
        """Decide at a BATCH point."""
        self.seats[simulation.point_engine].answer(simulation)

    def _fresh(self) -> list[EngineSeat]:
        return [
            EngineSeat(copy.deepcopy(make_engine_policy(self._given)), index)
            for index in range(len(self._engines))
        ]


class FixedRouter:
    """A router under a policy.

    Args:
        source: the policy: a name, class or instance. A name is read once; what it names, a new
            one of a class, or the instance as it is then, is copied at every reset.
        engines: the cluster.
        slos: the classes that requests refer to.

    Raises:
        ValueError: an unknown policy.
    """

    def __init__(
        self, source: RouterPolicySpec, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        self.source = source
        self._given = make_router_policy(source) if isinstance(source, str) else source
        self._engines = engines
        self._slos = slos
        self._seat = self._fresh()

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed."""
        self._seat = self._fresh()
        self._seat.reset(policy_stream(seed), self._engines, self._slos)

    def choose(self, simulation: Simulation) -> int:
        """The engine for the request of a ROUTE point."""
        return self._seat.choose(simulation)

    def answer(self, simulation: Simulation) -> None:
        """Decide at a ROUTE point."""
        self._seat.answer(simulation)

    def _fresh(self) -> RouterSeat:
        return RouterSeat(copy.deepcopy(make_router_policy(self._given)))
