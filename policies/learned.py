"""Trained agents as policies: the same features as in training, a NumPy network, argmax.

Written `agent:NAME` or `agent:FILE.npz` wherever a policy is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Protocol

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
from synergy_gym.observation import Float32Array, ObservationLayout
from synergy_gym.policies.agent_file import AGENT_PREFIX, Agent, AgentError, load_agent
from synergy_gym.policies.authors_state import AUTHORS_GROUPS, AuthorsState
from synergy_gym.policies.base import EnginePolicy, RouterPolicy
from synergy_gym.policies.fallback import Fallback
from synergy_gym.policies.forecast import BLOCK_SLOTS, NUM_BLOCK_FEATURES, ForecastFeatures
from synergy_gym.policies.networks import network
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    BatchDecision,
    ClusterView,
    CompletionView,
    EngineSpec,
    EngineStateField,
    EngineView,
    RequestView,
)

ENGINE_FEATURES = ObservationLayout(ENGINE_GROUPS).names()
"""Names of the numbers that an engine agent observes."""
SCORER_FEATURES = [slot.name for slot in (*ROUTER_SLOTS, *REQUEST_SLOTS)]
"""Names of the numbers that a `scorer` observes per engine: its block, then the request."""
FORECAST_FEATURES = [slot.name for slot in (*BLOCK_SLOTS, *REQUEST_SLOTS)]
"""Likewise, of a `scorer` whose blocks hold forecasts (`policies.forecast`)."""


class EngineObserver(Protocol):
    """Turns the views of one engine, in order, into observations."""

    def __call__(self, view: EngineView, /) -> Float32Array:
        """The observation of this moment."""


_OBSERVERS: Mapping[
    str, tuple[Callable[[EngineSpec, Sequence[SLO]], EngineObserver], list[str]]
] = {
    "engine": (EngineFeatures, ENGINE_FEATURES),
    "authors": (AuthorsState, ObservationLayout(AUTHORS_GROUPS).names()),
}
"""By the entry `observer` of an engine agent: what observes, and the names of its numbers."""


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
        observer = meta.get("observer", "engine")
        if observer not in _OBSERVERS:
            raise AgentError(
                f"agent {self.agent.name!r}: observer {observer!r} is none of {[*_OBSERVERS]}"
            )
        self._observer, names = _OBSERVERS[observer]
        _check_features(self.agent, names)
        self._network = network(self.agent)
        self._grid = _grid(self.agent)
        self._head = _head(self.agent, self._grid, self._network.outputs)
        self._frames = int(meta["frames"])
        self._interval_ns = round(float(meta["interval_s"]) * NS_PER_S)

    @property
    def label(self) -> str:
        """`agent:` and the file."""
        return f"{AGENT_PREFIX}:{self.file}"

    def parameters(self) -> dict[str, Any]:
        """None: the weights decide, wherever their file lies; `policy_hash` covers them."""
        return {}

    def policy_hash(self) -> str:
        """Of the code and the weights."""
        return _with_weights(super().policy_hash(), self.agent)

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Forget past observations."""
        self._observe_now = self._observer(spec, slos)
        self._stack: Float32Array | None = None
        self._indices: tuple[int, ...] = ()
        self._until_ns = 0

    def decide(self, engine: EngineView) -> BatchDecision:
        """The cell of the grid with the largest logit, or the last one within an interval."""
        now_ns = int(engine.state[EngineStateField.NOW_NS])
        if now_ns >= self._until_ns:  # in nanoseconds, as environments and kernels count
            self._until_ns = now_ns + self._interval_ns
            self._indices = self._choose(self._observe(engine))
        return self._grid.decide(self._indices, engine)

    def _observe(self, engine: EngineView) -> Float32Array:
        now = self._observe_now(engine)
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

    One that reads forecasts sends requests to the fewest in flight, as prism-plus does, while an
    engine that is up has never published a step model: its forecasts are all zeros then.

    Attributes:
        file: path or name of its file.
    """

    information = frozenset({"router", "pushed", "scraped"})
    version: ClassVar[int] = 2

    file: str
    agent: Agent = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read and check the file."""
        self.agent = load_agent(self.file, "router")
        if self.agent.meta["frames"] != 1 or self.agent.meta["interval_s"]:
            raise AgentError(
                f"agent {self.agent.name!r}: a router decides for every request on one frame; "
                "frames must be 1 and interval_s 0"
            )
        self._network = network(self.agent)
        self._scores = self._network.outputs is None
        self._forecasts = self._scores and self.agent.meta["features"] == FORECAST_FEATURES
        if self._scores and not self._forecasts:
            _check_features(self.agent, SCORER_FEATURES)

    @property
    def label(self) -> str:
        """`agent:` and the file."""
        return f"{AGENT_PREFIX}:{self.file}"

    def parameters(self) -> dict[str, Any]:
        """None: the weights decide, wherever their file lies; `policy_hash` covers them."""
        return {}

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
        made = ForecastFeatures if self._forecasts else RouterFeatures
        self._features = made(engines, slos)
        self.no_model = Fallback(
            __name__,
            f"agent {self.agent.name!r}: an engine has never published a step-latency model, so "
            "there is no forecast; requests go to the fewest in flight until it does",
        )
        if not self._scores:
            _check_features(self.agent, self._features.layout.names())
            if self._network.outputs != len(engines):
                raise AgentError(
                    f"agent {self.agent.name!r} chooses among {self._network.outputs} engines, "
                    f"there are {len(engines)}; train one for this cluster, or a scorer"
                )

    def observe(self, completion: CompletionView) -> None:
        """Forecasts learn from requests that have left."""
        if isinstance(self._features, ForecastFeatures):
            self._features.observe(completion)

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """The engine that is up and has the largest score."""
        features = self._features
        observation = features(request, cluster)
        if not isinstance(features, ForecastFeatures):
            x = engine_rows(observation) if self._scores else observation
            return cluster.argmax(self._network(x, cluster.alive))
        if features.known:
            x = engine_rows(observation, NUM_BLOCK_FEATURES)
            choice = cluster.argmax(self._network(x, cluster.alive))
        else:
            self.no_model.note()
            choice = cluster.argmin(cluster.in_flight)
        features.sent(choice)
        return choice


def engine_rows(observation: Float32Array, block: int = NUM_ROUTER_FEATURES) -> Float32Array:
    """`(engines, block + 10)`: the block of each engine and then the request.

    Leading axes are kept: flat observations `(n, size)` give `(n, engines, block + 10)`.
    """
    request = observation[..., None, :NUM_REQUEST_FEATURES]
    shape = (*observation.shape[:-1], -1, block)
    blocks = observation[..., NUM_REQUEST_FEATURES:].reshape(shape)
    wide = np.broadcast_to(request, (*blocks.shape[:-1], NUM_REQUEST_FEATURES))
    return np.concatenate([blocks, wide], axis=-1)


def _grid(agent: Agent) -> EngineGrid:
    try:
        grid = EngineGrid.from_dict(agent.meta.get("grid") or {})
    except ValueError as error:
        raise AgentError(f"agent {agent.name!r}: {error}; export it again") from error
    if not grid.shape:
        raise AgentError(f"agent {agent.name!r}: its grid has one cell, so nothing is decided")
    return grid


def _head(agent: Agent, grid: EngineGrid, outputs: int | None) -> str:
    """How its outputs name a cell of the grid."""
    head = str(agent.meta.get("head", "multidiscrete"))
    needed = {"multidiscrete": sum(grid.shape), "discrete": prod(grid.shape)}
    if head not in needed:
        raise AgentError(f"agent {agent.name!r}: head {head!r} is none of {[*needed]}")
    if outputs != needed[head]:
        raise AgentError(
            f"agent {agent.name!r}: its network gives {outputs} numbers, a {head} head over a grid "
            f"of {grid.shape} needs {needed[head]}; export it again"
        )
    return head


def _check_features(agent: Agent, names: list[str]) -> None:
    given: Any = agent.meta["features"]
    if given != names:
        wrong = [pair for pair in zip(given, names, strict=False) if pair[0] != pair[1]][:1]
        what = f"{len(given)} of {len(names)} numbers"
        if wrong:
            what = f"the first difference is {wrong[0][0]!r} instead of {wrong[0][1]!r}"
        raise AgentError(
            f"agent {agent.name!r} was trained on other observations ({what}); train it again"
        )


def _with_weights(code: str, agent: Agent) -> str:
    return hashlib.sha256(f"{code}{agent.digest()}".encode()).hexdigest()
