"""Policies in a process of their own: they get views as data and give decisions.

    with RemoteRouter("prism-plus") as router:
        evaluate("smoke-cluster", "vllm-v1", router)

On a seat such a policy is like any other. Its process is spawned, so it shares nothing with this
one: no module, no generator, no memory. All that it may know of an episode goes through one pipe.
"""

from __future__ import annotations

import copy
import traceback
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np

from synergy_gym.policies.base import EnginePolicy, Layer, RouterPolicy
from synergy_gym.policies.registry import make_engine_policy, make_router_policy
from synergy_gym.seats.engine import EngineSeat
from synergy_gym.seats.router import RouterSeat
from synergy_gym.seats.views import (
    EngineContent,
    cluster_content,
    cluster_view,
    engine_content,
    engine_view,
)
from synergy_gym.types import (
    SLO,
    BatchDecision,
    ClusterView,
    CompletionView,
    EngineSpec,
    EngineView,
    RequestView,
    StepReport,
)

PATIENCE_S = 60.0
"""A policy that answers nothing for so long is given up."""
START_S = 120.0
"""Its process imports and compiles first."""


class RemoteError(RuntimeError):
    """A policy in another process raised, was silent for too long, or its process has ended."""


class _Child:
    """The process of one policy."""

    def __init__(self, layer: Layer, policy: Any, patience_s: float) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._patience_s = patience_s
        self._process = context.Process(target=_serve, args=(other, layer, policy), daemon=True)
        self._process.start()
        other.close()

    def ask(self, what: str, *content: Any, start_s: float = 0.0) -> Any:
        """Send a message and wait for its answer.

        Raises:
            RemoteError: see there.
        """
        try:
            self._pipe.send((what, content))
            patience_s = max(self._patience_s, start_s)
            if not self._pipe.poll(patience_s):
                self.close()
                raise RemoteError(f"no answer to {what!r} within {patience_s:g} s")
            fine, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(1.0)
            code = self._process.exitcode
            raise RemoteError(f"the policy's process has ended (exit code {code})") from error
        if not fine:
            raise RemoteError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(0.2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class _Remote:
    """What both layers have in common.

    Args:
        policy: specification, or what can be pickled.
        patience_s: longest wait for an answer.
    """

    _layer: Layer

    def __init__(self, policy: Any, patience_s: float = PATIENCE_S) -> None:
        self._given = (policy, patience_s)
        self._child = _Child(self._layer, policy, patience_s)
        self._unseen: list[Any] = []
        told = self._child.ask("describe", start_s=START_S)
        self._label, self.information, self.version, self._hash, self._parameters = told

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another process: every engine has a policy of its own."""
        return type(self)(*copy.deepcopy(self._given, memo))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; it ends with this one at the latest."""
        self._child.close()

    @property
    def label(self) -> str:
        """The policy's, as `parameters` and `policy_hash` are."""
        return str(self._label)

    def parameters(self) -> dict[str, Any]:
        """The policy's."""
        return dict(self._parameters)

    def policy_hash(self) -> str:
        """The policy's."""
        return str(self._hash)

    def reset(self, rng: np.random.Generator, *given: Any) -> None:
        """Begin an episode; the generator goes there."""
        self._unseen = []
        self._child.ask("reset", rng, *given)

    def observe(self, seen: Any) -> None:
        """Goes with the next question: one message a decision."""
        self._unseen.append(seen)

    def _ask(self, content: tuple[Any, ...]) -> Any:
        unseen, self._unseen = self._unseen, []
        return self._child.ask("decide", unseen, content)


class RemoteEngine(_Remote, EnginePolicy):
    """An engine policy in a process of its own; copies have processes of their own."""

    _layer = "engine"

    def decide(self, engine: EngineView) -> BatchDecision:
        """The policy's decision."""
        decision: BatchDecision = self._ask(engine_content(engine))
        return decision


class RemoteRouter(_Remote, RouterPolicy):
    """A router policy in a process of its own."""

    _layer = "router"

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The policy's choice."""
        choice: int = self._ask(cluster_content(request, cluster))
        return choice


def _serve(pipe: Connection, layer: Layer, policy: Any) -> None:
    """In the process: answer until the pipe is closed."""
    host: _EngineHost | _RouterHost | None = None
    while True:
        try:
            what, content = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if host is None:
                host = (_EngineHost if layer == "engine" else _RouterHost)(policy)
            answer = (True, getattr(host, what)(*content))
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
            answer = (False, f"{type(error).__name__}: {error} ({place})")
        pipe.send(answer)


class _Host:
    """What both layers answer."""

    seat: EngineSeat | RouterSeat

    def describe(self) -> tuple[Any, ...]:
        """What the other side tells of the policy."""
        p = self.seat.policy
        return p.label, p.information, p.version, p.policy_hash(), p.parameters()


class _EngineHost(_Host):
    def __init__(self, policy: Any) -> None:
        self.seat: EngineSeat = EngineSeat(make_engine_policy(policy))

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        self._given = (spec, slos)
        self.seat.reset(rng, spec, slos)

    def decide(self, unseen: list[StepReport], content: EngineContent) -> Any:
        for step in unseen:
            self.seat.observe(step)
        return self.seat.decision(engine_view(*content, *self._given))


class _RouterHost(_Host):
    def __init__(self, policy: Any) -> None:
        self.seat: RouterSeat = RouterSeat(make_router_policy(policy))

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        self._engines = engines
        self.seat.reset(rng, engines, slos)

    def decide(self, unseen: list[CompletionView], content: tuple[Any, ...]) -> Any:
        for completion in unseen:
            self.seat.observe(completion)
        seat = self.seat
        return seat.choice(*cluster_view(seat.rng, seat.information, self._engines, *content))
