"""Layers of an environment that policies decide, not the agent.

They ask a policy exactly as `synergy_gym.evaluate` does (the same generators, every finished
iteration observed once), so that an episode with the same decisions is the same episode.
"""

from __future__ import annotations

import copy
from typing import Any

from synergy_gym.policies import (
    EnginePolicy,
    RouterPolicy,
    make_engine_policy,
    make_router_policy,
)
from synergy_gym.seeding import policy_stream
from synergy_gym.types import SLO, DecisionRule, EngineSpec, StepReport

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
        self.policies = self._fresh()
        self._seen: list[StepReport | None] = []

    def reset(self, seed: int) -> list[DecisionRule | None]:
        """Begin the episode of this seed; returns what compiled engines can decide themselves."""
        self.policies = self._fresh()
        self._seen = [None] * len(self.policies)
        for i, (policy, spec) in enumerate(zip(self.policies, self._engines, strict=True)):
            policy.reset(policy_stream(seed, i), spec, self._slos)
        return [policy.rule() for policy in self.policies]

    def answer(self, simulator: Any) -> None:
        """Decide at a BATCH point."""
        engine = simulator.point_engine
        policy, view = self.policies[engine], simulator.engine_view(engine)
        step = view.last_step
        if step is not None and step != self._seen[engine]:
            policy.observe(step)
            self._seen[engine] = step
        simulator.batch(policy.decide(view))

    def _fresh(self) -> list[EnginePolicy]:
        return [copy.deepcopy(make_engine_policy(self._given)) for _ in self._engines]


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
        self._policy = self._fresh()
        self._rng = policy_stream(0)

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed."""
        self._policy = self._fresh()
        self._rng = policy_stream(seed)
        self._policy.reset(self._rng, self._engines, self._slos)

    def choose(self, simulator: Any) -> int:
        """The engine for the request of a ROUTE point."""
        policy = self._policy
        if type(policy).observe is not RouterPolicy.observe:
            for completion in simulator.completions():
                policy.observe(completion)
        information = frozenset(policy.information)
        cluster = simulator.cluster_view(self._rng, information)
        return policy.route(simulator.request_view(), cluster)

    def answer(self, simulator: Any) -> None:
        """Decide at a ROUTE point."""
        simulator.route(self.choose(simulator))

    def _fresh(self) -> RouterPolicy:
        return copy.deepcopy(make_router_policy(self._given))
