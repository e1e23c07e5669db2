"""The proxy's own knowledge: what it hears from engines and clients, and what it decides.

No network in here: the proxy reports what happened and asks where requests go.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from synergy_gym.live.log import is_loud
from synergy_gym.live.proxy.metrics import RouterMetrics
from synergy_gym.live.proxy.openai_request import RequestFacts
from synergy_gym.live.router.health import HealthSpec, HealthTable
from synergy_gym.live.router.policy import FAILURES, LiveRouter, NoEngineError
from synergy_gym.live.router.push import Push
from synergy_gym.live.router.scrape import Metrics, MetricsWindow
from synergy_gym.live.router.state import RouterState
from synergy_gym.policies.base import RouterPolicy
from synergy_gym.seeding import policy_stream
from synergy_gym.types import NS_PER_S, SLO, EngineSpec, Outcome, RequestView

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine behind the proxy.

    Attributes:
        url: base URL, without a path.
        spec: its limits, as policies see them; `spec.name` is how pushes name it.
    """

    url: str
    spec: EngineSpec

    @property
    def names(self) -> set[str]:
        """Names that its pushes may bear: its own, or host and port."""
        return {self.spec.name, self.url.split("://", 1)[-1].rstrip("/")}


def monotonic_clock() -> Callable[[], int]:
    """Nanoseconds since now, never going back."""
    origin = time.monotonic_ns()
    return lambda: time.monotonic_ns() - origin


class Gateway:
    """Table, health, policy and counters of one proxy.

    Args:
        engines: the cluster, in index order.
        policy: a router policy; it is reset here.
        slos: the classes that requests may name; the first is the default.
        seed: of the policy's generator.
        health: how often engines are probed.
        clock: nanoseconds; a monotonic clock by default.

    Attributes:
        on_down: called with an engine that has gone down.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        policy: RouterPolicy,
        slos: tuple[SLO, ...],
        *,
        seed: int = 0,
        health: HealthSpec = HealthSpec(),  # noqa: B008 - frozen
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.engines = tuple(engines)
        self.slos = slos
        self.now_ns = monotonic_clock() if clock is None else clock
        specs = [engine.spec for engine in engines]
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise ValueError(f"engines are called {', '.join(names)}; give each its own name")
        self.state = RouterState(specs)
        self.router = LiveRouter(policy, self.state, slos, policy_stream(seed))
        self.health = HealthTable(names, health, self._changed)
        self.metrics = RouterMetrics(names, policy.label)
        self.on_down: Callable[[int], None] = lambda engine: None
        self._windows = [MetricsWindow(spec.kv_blocks) for spec in specs]
        self._by_name = {name: i for i, e in enumerate(self.engines) for name in e.names}
        self._numbers = itertools.count()
        self._unknown_pushes = 0

    @property
    def block_size(self) -> int:
        """Tokens per block of the first engine, as in the simulator."""
        return self.engines[0].spec.block_size

    def arrived(self, facts: RequestFacts) -> int:
        """A request arrived; returns its number."""
        if facts.estimated:
            self.metrics.count("estimated_prompts")
        if facts.unknown_class:
            self.metrics.count("unknown_slo_classes")
        return next(self._numbers)

    def route(
        self, request: int, facts: RequestFacts, arrival_ns: int, avoid: Collection[int] = ()
    ) -> int:
        """Choose an engine and note that the request goes there.

        Args:
            request: its number.
            facts: what is known of it.
            arrival_ns: when it arrived.
            avoid: engines where it has failed already.

        Raises:
            NoEngineError: no engine can take it.
        """
        now_ns = self.now_ns()
        view = RequestView(
            prompt_tokens=facts.prompt_tokens,
            arrival_s=now_ns / NS_PER_S,
            session=facts.session,
            slo_class=facts.slo_class,
            priority=facts.priority,
            attempt=len(avoid),
            block_hashes=facts.block_hashes,
        )
        began = time.perf_counter()
        before = self.router.failures.copy()
        try:
            engine, _ = self.router.choose(view, now_ns, avoid=avoid)
        except NoEngineError:
            if not avoid:
                self._refuse(request, facts, arrival_ns, now_ns)
            raise
        finally:
            self._count_failures(before)
        self.metrics.decided(time.perf_counter() - began)
        self.state.routed(
            request,
            engine,
            facts.prompt_tokens,
            now_ns,
            session=facts.session,
            arrival_ns=arrival_ns,
        )
        return engine

    def ended(self, request: int, engine: int, outcome: Outcome, tokens: int) -> None:
        """An attempt on `engine` ended after `tokens` output tokens."""
        self.state.ended(request, outcome, self.now_ns(), output_tokens=tokens)
        self.metrics.ended(engine, outcome)

    def pushed(self, push: Push) -> None:
        """A state vector arrived."""
        engine = self._by_name.get(push.engine)
        if engine is None:
            self._unknown_push(push.engine)
            return
        self.state.pushed(engine, push.vector(self.now_ns()))
        self.metrics.pushed(engine, push.failures)

    def scraped(self, engine: int, metrics: Metrics) -> None:
        """The metrics of `engine` were read."""
        self.state.scraped(engine, self._windows[engine].columns(metrics, self.now_ns()))
        self.metrics.count("scrapes", engine)

    def exposition(self, inbox: object = None) -> tuple[bytes, str]:
        """Text and content type of the proxy's own `/metrics`."""
        conditions = [self.health.condition(i) for i in range(len(self.engines))]
        return self.metrics.text(self.state, self.now_ns(), conditions, inbox)

    def _refuse(self, request: int, facts: RequestFacts, arrival_ns: int, now_ns: int) -> None:
        self.metrics.count("no_engine")
        self.state.refused(
            request, facts.prompt_tokens, now_ns, session=facts.session, arrival_ns=arrival_ns
        )

    def _count_failures(self, before: dict[str, int]) -> None:
        for kind in FAILURES:
            if grown := self.router.failures[kind] - before.get(kind, 0):
                self.metrics.count("policy_failures", kind, by=grown)

    def _changed(self, engine: int, up: bool) -> None:
        if up:
            self.state.up(engine)
        else:
            self.state.down(engine)
            self.on_down(engine)

    def _unknown_push(self, name: str) -> None:
        self.metrics.count("unknown_pushes")
        self._unknown_pushes += 1
        if is_loud(self._unknown_pushes):
            _log.warning(
                "state of %r, which is no engine of this router (%d such pushes so far); engines "
                "are called %s: set SYNERGY_GYM_ENGINE there, or --engine NAME=URL here",
                name,
                self._unknown_pushes,
                ", ".join(sorted(self._by_name)),
            )
