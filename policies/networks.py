"""Forward passes of trained networks, in NumPy.

`network(agent)` finds the one that an agent names and checks the shapes of its weights.

| network  | input                                                    | output                   |
|----------|----------------------------------------------------------|--------------------------|
| `mlp`    | `(n,)`: the observation                                  | `(m,)`: logits or values |
| `scorer` | `(engines, b + r)`: block of an engine, request; a mask  | `(engines,)`: scores     |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from synergy_gym.observation import Float32Array
from synergy_gym.policies.agent_file import Agent, AgentError
from synergy_gym.types import BoolArray

ACTIVATIONS: Mapping[str, Callable[[Float32Array], Float32Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
}
"""Activations by name."""


class Network(Protocol):
    """Something that turns an observation into logits, values or scores."""

    def __call__(self, x: Float32Array, mask: BoolArray | None = None) -> Float32Array:
        """The output; see the table of the module."""


def network(agent: Agent) -> Network:
    """The network of an agent.

    Raises:
        AgentError: an unknown network or activation, or weights that do not fit together.
    """
    name = agent.meta["network"]
    if name not in _NETWORKS:
        raise AgentError(f"agent {agent.name!r}: network {name!r} is none of {sorted(_NETWORKS)}")
    made: Network = _NETWORKS[name](agent)
    return made


class Mlp:
    """Dense layers `w0`, `b0`, `w1`, ... with an activation between them.

    The input is normalised first, where the agent has `mean` and `scale`:
    (x - mean) / scale, cut to +-`clip`. Weights have the shape `(out, in)`.
    """

    def __init__(self, agent: Agent) -> None:
        self.activate = _activation(agent)
        self.normalise = Normaliser(agent.arrays)
        self.layers = layers(agent, "")

    def __call__(self, x: Float32Array, mask: BoolArray | None = None) -> Float32Array:
        """Logits or values, `(m,)`, of the observation `(n,)`."""
        x = self.normalise(x)
        for weight, bias in self.layers[:-1]:
            x = self.activate(weight @ x + bias)
        weight, bias = self.layers[-1]
        result: Float32Array = weight @ x + bias
        return result


class Scorer:
    """One network for every engine, so that their number and order do not matter.

    h_i = act(W1 x_i + b1), g = mean of h_i over engines that are up, z_i = act(W2 [h_i, g] + b2),
    score_i = w3 z_i + b3; arrays `w0`, `b0`, `w1`, `b1`, `w2`, `b2`. Deep sets (Zaheer et al.,
    NIPS 2017).
    """

    def __init__(self, agent: Agent) -> None:
        self.activate = _activation(agent)
        self.normalise = Normaliser(agent.arrays)
        found = layers(agent, "", linked=False)
        if len(found) != 3:
            raise AgentError(f"agent {agent.name!r}: a scorer has 3 layers, not {len(found)}")
        self.encoder, self.mixer, self.head = found
        width = self.encoder[0].shape[0]
        if self.mixer[0].shape[1] != 2 * width or self.head[0].shape != (1, len(self.mixer[1])):
            raise AgentError(f"agent {agent.name!r}: the weights of a scorer do not fit together")

    def __call__(self, x: Float32Array, mask: BoolArray | None = None) -> Float32Array:
        """Scores `(engines,)` of the rows of `x`; -inf where `mask` is False."""
        up = np.ones(len(x), np.bool_) if mask is None else mask
        h = self.activate(self.normalise(x) @ self.encoder[0].T + self.encoder[1])
        mean = h[up].mean(axis=0, keepdims=True) if up.any() else np.zeros_like(h[:1])
        both = np.concatenate([h, np.repeat(mean, len(h), axis=0)], axis=1)
        z = self.activate(both @ self.mixer[0].T + self.mixer[1])
        scores: Float32Array = (z @ self.head[0].T + self.head[1])[:, 0]
        return np.where(up, scores, np.float32(-np.inf))


class Normaliser:
    """(x - mean) / scale, cut to +-clip; nothing without `mean` among the arrays."""

    def __init__(self, arrays: Mapping[str, Float32Array]) -> None:
        self.mean, self.scale = arrays.get("mean"), arrays.get("scale")
        self.clip = arrays.get("clip", np.float32(10.0))

    def __call__(self, x: Float32Array) -> Float32Array:
        """The normalised numbers; the last axis is that of `mean`."""
        if self.mean is None or self.scale is None:
            return x
        result: Float32Array = np.clip((x - self.mean) / self.scale, -self.clip, self.clip)
        return result


Layer = tuple[Float32Array, Float32Array]


def layers(agent: Agent, prefix: str, *, linked: bool = True) -> list[Layer]:
    """The (weight, bias) pairs `{prefix}w0`, `{prefix}b0`, ... of an agent.

    Args:
        agent: where they are.
        prefix: of their names.
        linked: each must take what the one before it gives.

    Raises:
        AgentError: there is none, or shapes do not fit.
    """
    found: list[Layer] = []
    while f"{prefix}w{len(found)}" in agent.arrays:
        i = len(found)
        weight, bias = agent.arrays[f"{prefix}w{i}"], agent.arrays.get(f"{prefix}b{i}")
        if bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise AgentError(f"agent {agent.name!r}: layer {prefix}{i} has no fitting bias")
        if linked and found and weight.shape[1] != len(found[-1][1]):
            raise AgentError(f"agent {agent.name!r}: layer {prefix}{i} does not fit the one before")
        found.append((weight, bias))
    if not found:
        raise AgentError(f"agent {agent.name!r}: no weights {prefix}w0")
    return found


def _activation(agent: Agent) -> Callable[[Float32Array], Float32Array]:
    name = agent.meta["activation"]
    if name not in ACTIVATIONS:
        raise AgentError(f"agent {agent.name!r}: activation {name!r} is none of {[*ACTIVATIONS]}")
    return ACTIVATIONS[name]


_NETWORKS: Mapping[str, Callable[[Agent], Any]] = {"mlp": Mlp, "scorer": Scorer}
