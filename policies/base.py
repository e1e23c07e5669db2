"""The two base classes of policies, with defaults that do nothing."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from synergy_gym.behaviour import Behaviour, package_modules
from synergy_gym.types import (
    SLO,
    BatchDecision,
    ClusterView,
    CompletionView,
    DecisionRule,
    EngineSpec,
    EngineView,
    RequestView,
    RouterRule,
    StepReport,
)

_BEYOND = (
    "synergy_gym.behaviour",
    "synergy_gym.jit_cache",
    "synergy_gym.jit_notice",
    "synergy_gym.policies.convert",
    "synergy_gym.policies.registry",
)
"""They find, build and keep policies, and decide nothing."""
Layer = Literal["engine", "router"]
"""Whose decisions a policy takes."""
SOURCE_VARIABLE = "__policy_source__"
"""Where a module that was made from a policy's file keeps the bytes that it was made from."""


class Policy:
    """What engine and router policies share: a name, parameters and a fingerprint.

    A policy is usually a dataclass: its `init` fields are its parameters, everything that
    it learns is set in `reset`.

    Attributes:
        name: name in the registry; empty for a class that is not registered.
        information: the information classes that it reads.
        family: for a family such as `static-N`, the field that N sets; else empty.
        version: raised when the policy decides otherwise than before under the same name.
    """

    name: ClassVar[str] = ""
    information: ClassVar[frozenset[str]] = frozenset()
    family: ClassVar[str] = ""
    version: ClassVar[int] = 1

    def parameters(self) -> dict[str, Any]:
        """Parameter values by name, as manifests record them."""
        return {item.name: getattr(self, item.name) for item in parameter_fields(type(self))}

    @property
    def label(self) -> str:
        """The specification that builds this policy again, e.g. `sarathi-512:chunk_tokens=256`."""
        cls, values = type(self), self.parameters()
        name = f"{cls.__module__}:{cls.__qualname__}"
        if "name" in vars(cls):  # registered itself, not by inheritance
            name = cls.name
            if cls.family:
                name = name.removesuffix("N") + str(values.pop(cls.family))
        for item in parameter_fields(cls):
            if item.name in values and values[item.name] == default_of(item):
                del values[item.name]
        return ":".join([name, ",".join(f"{k}={v}" for k, v in values.items())]).rstrip(":")

    def policy_hash(self) -> str:
        """SHA-256 (hex) over the policy's class, version, parameters and what they compute.

        The latter is `synergy_gym.behaviour` of its classes: where their files lie and how they
        are written makes no difference. Two policies with one hash decide alike.
        """
        cls: Any = type(self)
        head = [cls.__qualname__, self.version, self.parameters()]
        text = json.dumps(head, sort_keys=True, default=repr)
        return hashlib.sha256(f"{text}\n{_behaviour_of(cls)}".encode()).hexdigest()


def parameter_fields(cls: type) -> tuple[Field[Any], ...]:
    """Fields of a policy class that its constructor takes; none for a plain class."""
    if not is_dataclass(cls):
        return ()
    return tuple(item for item in fields(cls) if item.init)


def default_of(item: Field[Any]) -> Any:
    """Default value of a dataclass field; `MISSING` without one."""
    return item.default if item.default_factory is MISSING else item.default_factory()


@functools.cache
def _behaviour_of(cls: Any) -> str:
    """Hash of what a policy's classes compute; empty for those typed into an interpreter."""
    modules = package_modules()
    sources: dict[str, bytes] = {}
    roots: list[tuple[str, str]] = []
    for base in cls.__mro__:
        name = base.__module__
        if name not in modules and name not in sources and base is not object:
            if (source := _source_of(base)) is None:
                continue
            sources[name] = source
        if name in modules or name in sources:
            outer = base.__qualname__.partition(".")[0]
            roots.append((name, "" if "<locals>" in base.__qualname__ else outer))
    own = Behaviour(modules, sources, _BEYOND) if sources else _package_behaviour()
    return own.of(roots)


@functools.cache
def _package_behaviour() -> Behaviour:
    return Behaviour(package_modules(), boundary=_BEYOND)


def _source_of(cls: type) -> bytes | None:
    """The text of the module of a class: what it was made from, else its file as it is now."""
    own: bytes | None = getattr(sys.modules.get(cls.__module__), SOURCE_VARIABLE, None)
    if own is not None:
        return own
    try:
        path = inspect.getsourcefile(cls)
    except TypeError:  # a class typed into an interpreter has no file
        return None
    return Path(path).read_bytes() if path is not None and Path(path).is_file() else None


class EnginePolicy(Policy):
    """Decides what the next iteration of one engine may take; one instance per engine.

    Attributes:
        uses_token_caps: whether its decisions hold token caps above zero, which the simulator
            obeys and a live engine cannot (skips, 0, work on both).
    """

    information: ClassVar[frozenset[str]] = frozenset({"engine"})
    uses_token_caps: ClassVar[bool] = False

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Start an episode: forget everything.

        Args:
            rng: an opaque generator of this policy's own; not the episode's seed.
            spec: the engine that it will steer.
            slos: the SLO classes that requests refer to.

        Raises:
            ValueError: a parameter that this engine cannot serve.
        """

    def decide(self, engine: EngineView) -> BatchDecision:
        """The decision for the next iteration; the default is the server's own scheduling."""
        return BatchDecision(token_budget=engine.spec.max_num_batched_tokens)

    def observe(self, step: StepReport) -> None:
        """Learn from an iteration that has just ended."""

    def rule(self) -> DecisionRule | None:
        """After `reset`: a declarative equal of `decide` that compiled engines take, or None."""
        return None


class RouterPolicy(Policy):
    """Decides which engine gets an arriving request; one instance per router."""

    information: ClassVar[frozenset[str]] = frozenset({"router"})

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Start an episode: forget everything.

        Args:
            rng: an opaque generator of this policy's own; not the episode's seed.
            engines: the cluster, as configured.
            slos: the SLO classes that requests refer to.
        """

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """Index of the engine that gets the request; it must be up."""
        return cluster.argmin(cluster.in_flight)

    def observe(self, completion: CompletionView) -> None:
        """Learn from a request that has left the system."""

    def rule(self) -> RouterRule | None:
        """After `reset`: a declarative equal of `route` that the simulator plays, or None.

        A class that overrides `route` or `observe` does not inherit it (`router_rule`).
        """
        return None


def router_rule(policy: RouterPolicy) -> RouterRule | None:
    """The rule of a router that was reset, unless a subclass decides otherwise than its parent."""
    order = type(policy).__mro__
    owner = {
        name: next(i for i, cls in enumerate(order) if name in vars(cls))
        for name in ("rule", "route", "observe", "reset")
    }
    decides = min(owner["route"], owner["observe"], owner["reset"])
    return policy.rule() if owner["rule"] <= decides else None


def random_argmin(cluster: ClusterView, values: NDArray[Any]) -> int:
    """Index of the smallest value among engines that are up; ties are broken at random."""
    masked = np.where(cluster.alive, values, np.inf)
    tied = np.flatnonzero(masked == masked.min())
    return int(tied[cluster.rng.integers(len(tied))]) if len(tied) > 1 else int(tied[0])


def checked_budget(token_budget: int, spec: EngineSpec, policy: str) -> int:
    """`token_budget` if the engine's server can serve it.

    Raises:
        ValueError: it is not in 1..`spec.max_num_batched_tokens`.
    """
    if not 1 <= token_budget <= spec.max_num_batched_tokens:
        raise ValueError(
            f"policy {policy}: a token budget of {token_budget} on engine {spec.name!r}, whose "
            f"max_num_batched_tokens is {spec.max_num_batched_tokens}; choose 1 to that, or raise "
            "the engine's limit in the scenario"
        )
    return token_budget


def checked_order(spec: EngineSpec, policy: str) -> None:
    """Refuse an engine whose waiting queue cannot be reordered.

    Raises:
        ValueError: the engine schedules by priority, which fixes the order of its queue.
    """
    if spec.scheduling != "fcfs":
        raise ValueError(
            f"policy {policy} sorts the waiting queue, but engine {spec.name!r} schedules by "
            f"{spec.scheduling!r}, which fixes its order; use scheduling 'fcfs' or another policy"
        )
