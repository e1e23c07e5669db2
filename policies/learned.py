"""Trained agents as policies: the same features as in training, a NumPy network, argmax.

Written `agent:NAME` or `agent:FILE.npz` wherever a policy is named.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from synergy_gym.actions import EngineGrid
from synergy_gym.features import (
    ENGINE_GROUPS,
    NUM_REQUEST_FEATURES,
    NUM_ROUTER_FEATURES,
    REQUEST_SLOTS,
    ROUTER_SLOTS,
    EngineFeatures,
    RouterFeatures,
)
from synergy_gym.observation import Float32Array
from synergy_gym.policies.agent_file import Agent, AgentError, load_agent
from synergy_gym.policies.base import EnginePolicy, RouterPolicy
from synergy_gym.policies.networks import network
from synergy_gym.policies.registry import AGENT_PREFIX
from synergy_gym.types import (
    SLO,
    BatchDecision,
    ClusterView,
    EngineSpec,
    EngineView,
    RequestView,
)

ENGINE_FEATURES = [f"{group.name}.{slot.name}" for group in ENGINE_GROUPS for slot in group.slots]
"""Names of the numbers that an engine agent observes."""
SCORER_FEATURES = [slot.name for slot in (*ROUTER_SLOTS, *REQUEST_SLOTS)]
"""Names of the numbers that a `scorer` observes per engine: its block, then the request."""


@dataclass
class LearnedEngine(EnginePolicy):
    """A trained engine agent.

    Attributes:
        file: path or name of its file.
    """

    file: str
    agent: Agent = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read and check the file."""
        self.agent = load_agent(self.file, "engine")
        meta = self.agent.meta
        _check_features(self.agent, ENGINE_FEATURES)
        self._network = network(self.agent)
        self._grid = EngineGrid.from_dict(meta.get("grid", {}))
        self._head = meta.get("head", "multidiscrete")
        self._frames = int(meta["frames"])
        self._interval_s = float(meta["interval_s"])

    @property
    def label(self) -> str:
        """`agent:` and the file."""
        return f"{AGENT_PREFIX}:{self.file}"

    def policy_hash(self) -> str:
        """Of the code and the weights."""
        return _with_weights(super().policy_hash(), self.agent)

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Forget past observations."""
        self._features = EngineFeatures(spec, slos)
        self._stack: Float32Array | None = None
        self._indices: tuple[int, ...] = ()
        self._until_s = -np.inf

    def decide(self, engine: EngineView) -> BatchDecision:
        """The cell of the grid with the largest logit, or the last one within an interval."""
        if engine.now_s >= self._until_s:
            self._until_s = engine.now_s + self._interval_s
            self._indices = self._choose(self._observe(engine))
        return self._grid.decide(self._indices, engine)

    def _observe(self, engine: EngineView) -> Float32Array:
        now = self._features(engine)
        if self._frames == 1:
            return now
        if self._stack is None:  # as Gymnasium's FrameStackObservation pads: with the first
            self._stack = np.tile(now, self._frames)
        else:
            self._stack = np.concatenate([self._stack[len(now) :], now])
        return self._stack

    def _choose(self, observation: Float32Array) -> tuple[int, ...]:
        logits, shape = self._network(observation), self._grid.shape
        if self._head == "discrete":
            return tuple(int(i) for i in np.unravel_index(int(logits.argmax()), shape))
        parts = np.split(logits, np.cumsum(shape)[:-1])
        return tuple(int(part.argmax()) for part in parts)


@dataclass
class LearnedRouter(RouterPolicy):
    """A trained router agent.

    Attributes:
        file: path or name of its file.
    """

    information = frozenset({"router", "pushed", "scraped"})

    file: str
    agent: Agent = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read and check the file."""
        self.agent = load_agent(self.file, "router")
        self._network = network(self.agent)
        self._scores = self.agent.meta["network"] == "scorer"
        if self._scores:
            _check_features(self.agent, SCORER_FEATURES)

    @property
    def label(self) -> str:
        """`agent:` and the file."""
        return f"{AGENT_PREFIX}:{self.file}"

    def policy_hash(self) -> str:
        """Of the code and the weights."""
        return _with_weights(super().policy_hash(), self.agent)

    def reset(
        self, rng: np.random.Generator, engines: tuple[EngineSpec, ...], slos: tuple[SLO, ...]
    ) -> None:
        """Take the cluster's scales.

        Raises:
            AgentError: the network was made for another number of engines.
        """
        self._features = RouterFeatures(engines, slos)
        if not self._scores:
            _check_features(self.agent, self._features.layout.names())

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The engine that is up and has the largest score."""
        observation = self._features(request, cluster)
        x = engine_rows(observation) if self._scores else observation
        return cluster.argmax(self._network(x, cluster.alive))


def engine_rows(observation: Float32Array) -> Float32Array:
    """`(engines, 31)`: the block of each engine and then the request, from a flat observation.

    Leading axes are kept: `(n, size)` gives `(n, engines, 31)`.
    """
    request = observation[..., None, :NUM_REQUEST_FEATURES]
    shape = (*observation.shape[:-1], -1, NUM_ROUTER_FEATURES)
    blocks = observation[..., NUM_REQUEST_FEATURES:].reshape(shape)
    wide = np.broadcast_to(request, (*blocks.shape[:-1], NUM_REQUEST_FEATURES))
    return np.concatenate([blocks, wide], axis=-1)


def _check_features(agent: Agent, names: list[str]) -> None:
    given: Any = agent.meta["features"]
    if given != names:
        wrong = [pair for pair in zip(given, names, strict=False) if pair[0] != pair[1]][:1]
        what = f"first difference {wrong[0]}" if wrong else f"{len(given)} of {len(names)}"
        raise AgentError(
            f"agent {agent.name!r} was trained on other observations ({what}); train it again"
        )


def _with_weights(code: str, agent: Agent) -> str:
    return hashlib.sha256(f"{code}{agent.digest()}".encode()).hexdigest()
