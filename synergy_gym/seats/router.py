"""Where a router policy sits: whoever wants its choice asks here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from synergy_gym.policies.base import RouterPolicy, router_rule
from synergy_gym.seats.errors import PolicyError, at, raised
from synergy_gym.seats.observer import Observer
from synergy_gym.seats.times import DecisionTimes
from synergy_gym.simulation import Simulation
from synergy_gym.types import (
    SLO,
    ClusterView,
    CompletionView,
    EngineSpec,
    InformationError,
    RequestView,
    RouterRule,
)


class RouterSeat:
    """The policy of a cluster's router.

    Args:
        policy: who decides; nobody else asks it.
        observers: who is told.
        times: how long decisions take goes here.

    Attributes:
        rng: the policy's generator, since `reset`.
    """

    def __init__(
        self,
        policy: RouterPolicy,
        observers: Sequence[Observer] = (),
        times: DecisionTimes | None = None,
    ) -> None:
        self.policy = policy
        self.observers = tuple(observers)
        self.times = DecisionTimes() if times is None else times
        self.information = frozenset(policy.information)
        # Views of completions cost time, and most routers do not look at them.
        self.looks_back = type(policy).observe is not RouterPolicy.observe

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Begin an episode."""
        for observer in self.observers:
            rng = observer.reset(self, rng, (engines, slos))
        self.rng = rng
        self.policy.reset(rng, engines, slos)

    def rule(self) -> RouterRule | None:
        """The policy's rule, unless somebody wants to see it decide."""
        asks = any(observer.asks_router for observer in self.observers)
        return None if asks else router_rule(self.policy)

    def observe(self, completion: CompletionView) -> None:
        """Show the policy a request that has left."""
        for observer in self.observers:
            observer.observed(self, completion)
        self.policy.observe(completion)

    def choice(self, request: RequestView, cluster: ClusterView) -> Any:
        """What the policy answers, whatever that is."""
        if not self.observers:
            return self.policy.route(request, cluster)
        with ExitStack() as around:
            for observer in self.observers:
                around.enter_context(observer.deciding(self, request, cluster))
            answer = self.policy.route(request, cluster)
        for observer in self.observers:
            observer.decided(self, answer, request, cluster)
        return answer

    def choose(self, sim: Simulation) -> int:
        """The engine for the request of a ROUTE point; completions are shown first.

        Raises:
            PolicyError: the policy raised, or answered no index.
        """
        completions = sim.completions() if self.looks_back else ()
        request = sim.request_view()
        cluster = sim.cluster_view(self.rng, self.information)
        began = self.times.begin()
        try:
            for completion in completions:
                self.observe(completion)
            target = self.choice(request, cluster)
        except InformationError as error:
            error.add_note(self._where(sim))
            raise
        except Exception as error:
            raise raised(self._where(sim), error) from error
        self.times.end(began)
        if isinstance(target, bool) or not isinstance(target, (int, np.integer)):
            where = self._where(sim)
            raise PolicyError(f"{where}: returned {target!r}; return the engine's index, an int")
        return int(target)

    def answer(self, sim: Simulation) -> None:
        """Decide a ROUTE point.

        Raises:
            PolicyError: the policy raised, or its answer is not allowed.
        """
        target = self.choose(sim)
        try:
            for observer in self.observers:
                observer.before(sim, None, target)
            sim.route(target)
        except (ValueError, TypeError) as error:
            raise PolicyError(f"{self._where(sim)}: engine {target}: {error}") from error
        for observer in self.observers:
            observer.after(sim, None, target)

    def _where(self, sim: Simulation) -> str:
        return at(self.policy.label, "router", sim.now_ns)
