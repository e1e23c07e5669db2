"""Forward passes of trained networks, in NumPy.

`network(agent)` finds the one that an agent names and checks the shapes of its weights.

| network     | input                                                   | output                   |
|-------------|---------------------------------------------------------|--------------------------|
| `mlp`       | `(n,)`: the observation                                 | `(m,)`: logits or values |
| `scorer`    | `(engines, b + r)`: block of an engine, request; a mask | `(engines,)`: scores     |
| `attention` | `(n,)`: globals, two queues of requests, their masks    | `(m,)`: logits or values |

Weights are float32 on disk and float64 in a pass: how a machine's BLAS orders its sums then
moves an output by 1e-15 instead of 1e-7, and an episode replays alike on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from synergy_gym.observation import Float32Array
from synergy_gym.policies.agent_file import Agent, AgentError
from synergy_gym.types import BoolArray, FloatArray

Activation = Callable[[FloatArray], FloatArray]
ACTIVATIONS: Mapping[str, Activation] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}
"""Activations by name."""


class Network(Protocol):
    """Something that turns an observation into logits, values or scores."""

    @property
    def inputs(self) -> int:
        """How many numbers a row of its input has."""

    @property
    def outputs(self) -> int | None:
        """How many numbers it gives; `None`: one per row."""

    def __call__(self, x: Float32Array, mask: BoolArray | None = None) -> FloatArray:
        """The output; see the table of the module."""


def network(agent: Agent) -> Network:
    """The network of an agent.

    Raises:
        AgentError: an unknown network or activation, or weights that do not fit together or do
            not take what the agent observes.
    """
    name = agent.meta["network"]
    if name not in _NETWORKS:
        raise AgentError(f"agent {agent.name!r}: network {name!r} is none of {sorted(_NETWORKS)}")
    made = _NETWORKS[name](agent)
    observed = len(agent.meta["features"]) * agent.meta["frames"]
    if made.inputs != observed:
        raise AgentError(
            f"agent {agent.name!r}: its network takes {made.inputs} numbers, its features and "
            f"frames give {observed}; export it again"
        )
    return made


class Mlp:
    """Dense layers `w0`, `b0`, `w1`, ... with an activation between them.

    The input is normalised first, where the agent has `mean` and `scale`:
    (x - mean) / scale, cut to +-`clip`. Weights have the shape `(out, in)`.
    """

    def __init__(self, agent: Agent) -> None:
        self.normalise = Normaliser(agent)
        self.dense = Dense(layers(agent, ""), _activation(agent))
        self.inputs, self.outputs = self.dense.inputs, self.dense.outputs
        self.normalise.check(self.inputs)

    def __call__(self, x: Float32Array, mask: BoolArray | None = None) -> FloatArray:
        """Logits or values, `(m,)`, of the observation `(n,)`."""
        return self.dense(self.normalise(x))


class Scorer:
    """One network for every engine, so that their number and order do not matter.

    h_i = act(W1 x_i + b1), g = mean of h_i over engines that are up, z_i = act(W2 [h_i, g] + b2),
    score_i = w3 z_i + b3; arrays `w0`, `b0`, `w1`, `b1`, `w2`, `b2`. Deep sets (Zaheer et al.,
    NIPS 2017).
    """

    outputs = None

    def __init__(self, agent: Agent) -> None:
        self.activate = _activation(agent)
        self.normalise = Normaliser(agent)
        found = layers(agent, "", linked=False)
        if len(found) != 3:
            raise AgentError(f"agent {agent.name!r}: a scorer has 3 layers, not {len(found)}")
        self.encoder, self.mixer, self.head = found
        width, self.inputs = self.encoder[0].shape
        if self.mixer[0].shape[1] != 2 * width or self.head[0].shape != (1, len(self.mixer[1])):
            raise AgentError(f"agent {agent.name!r}: the weights of a scorer do not fit together")
        self.normalise.check(self.inputs)

    def __call__(self, x: Float32Array, mask: BoolArray | None = None) -> FloatArray:
        """Scores `(engines,)` of the rows of `x`; -inf where `mask` is False."""
        up = np.ones(len(x), np.bool_) if mask is None else mask
        h = self.activate(self.normalise(x) @ self.encoder[0].T + self.encoder[1])
        mean = h[up].mean(axis=0, keepdims=True) if up.any() else np.zeros_like(h[:1])
        both = np.concatenate([h, np.repeat(mean, len(h), axis=0)], axis=1)
        z = self.activate(both @ self.mixer[0].T + self.mixer[1])
        scores: FloatArray = (z @ self.head[0].T + self.head[1])[:, 0]
        return np.where(up, scores, -np.inf)


class Attention:
    """Two queues of requests, each pooled by attention, beside global numbers.

    Every request of a queue is encoded, e_i = act(V2 act(V1 x_i)), and weighed by the softmax of
    v e_i over the requests that are there; [globals, pooled waiting, pooled running] goes through
    dense layers. The input is globals, waiting rows, running rows, waiting mask, running mask
    (1: there is such a request). Arrays: `waiting_w0`.. and `running_w0`.. encode,
    `waiting_score_w0` and `running_score_w0` weigh, `w0`.. follow; the entry `rows` of the
    agent's description is the length of each queue.
    """

    def __init__(self, agent: Agent) -> None:
        self.waiting, self.running = (Pool(agent, name) for name in ("waiting", "running"))
        self.dense = Dense(layers(agent, ""), _activation(agent))
        self.outputs = self.dense.outputs
        self.num_globals = self.dense.inputs - self.waiting.outputs - self.running.outputs
        pools = (self.waiting, self.running)
        parts = [self.num_globals, *(p.rows * p.inputs for p in pools), *(p.rows for p in pools)]
        if self.num_globals < 0:
            raise AgentError(f"agent {agent.name!r}: `w0` is too narrow for its two queues")
        self.inputs = sum(parts)
        self._cuts = np.cumsum(parts)[:-1]

    def __call__(self, x: Float32Array, mask: BoolArray | None = None) -> FloatArray:
        """Logits or values, `(m,)`, of the observation `(n,)`."""
        world, waiting, running, waits, runs = np.split(x.astype(np.float64), self._cuts)
        return self.dense(
            np.concatenate([world, self.waiting(waiting, waits), self.running(running, runs)])
        )


class Pool:
    """One queue of requests as one vector; see `Attention`."""

    def __init__(self, agent: Agent, name: str) -> None:
        activate = _activation(agent)
        self.encode = Dense(layers(agent, f"{name}_"), activate)
        self.score = Dense(layers(agent, f"{name}_score_"), activate)
        self.activate = activate
        self.inputs, self.outputs = self.encode.inputs, self.encode.outputs
        rows = agent.meta.get("rows")
        if type(rows) is not int or rows < 1:
            raise AgentError(f"agent {agent.name!r}: entry 'rows' of meta is {rows!r}")
        if self.score.inputs != self.outputs or self.score.outputs != 1:
            raise AgentError(f"agent {agent.name!r}: the weights of queue {name!r} do not fit")
        self.rows = rows

    def __call__(self, flat: FloatArray, there: FloatArray) -> FloatArray:
        """The pooled vector; zeros where `there` is 0 everywhere."""
        encoded = self.activate(self.encode(flat.reshape(self.rows, self.inputs)))
        if not there.any():
            return np.zeros(self.outputs)
        scores = np.where(there > 0, self.score(encoded)[:, 0], -np.inf)
        weights = np.exp(scores - scores.max())
        pooled: FloatArray = (weights / weights.sum()) @ encoded
        return pooled


class Normaliser:
    """(x - mean) / scale, cut to +-clip; nothing without `mean` and `scale` among the arrays.

    Raises:
        AgentError: only one of the two is there, they differ in shape, or a scale is not positive.
    """

    def __init__(self, agent: Agent) -> None:
        arrays = {k: v.astype(np.float64) for k, v in agent.arrays.items()}
        self.name = agent.name
        self.mean, self.scale = arrays.get("mean"), arrays.get("scale")
        self.clip = float(arrays.get("clip", np.float64(10.0)))
        if (self.mean is None) != (self.scale is None):
            raise AgentError(f"agent {self.name!r} has one of 'mean' and 'scale'; it needs both")
        if self.scale is not None and not (self.scale > 0).all():
            raise AgentError(f"agent {self.name!r}: its 'scale' must be positive")

    def check(self, inputs: int) -> None:
        """Refuse statistics of another length.

        Raises:
            AgentError: they are not `(inputs,)`.
        """
        for name, array in (("mean", self.mean), ("scale", self.scale)):
            if array is not None and array.shape != (inputs,):
                raise AgentError(
                    f"agent {self.name!r}: {name!r} has the shape {array.shape}, not ({inputs},)"
                )

    def __call__(self, x: Float32Array) -> FloatArray:
        """The normalised numbers; the last axis is that of `mean`."""
        wide: FloatArray = x.astype(np.float64)
        if self.mean is None or self.scale is None:
            return wide
        return np.clip((wide - self.mean) / self.scale, -self.clip, self.clip)


Weights = tuple[FloatArray, FloatArray]


class Dense:
    """Dense layers with an activation between them; the last axis of the input is theirs."""

    def __init__(self, layers: list[Weights], activate: Activation) -> None:
        self.layers, self.activate = layers, activate
        self.inputs: int = layers[0][0].shape[1]
        self.outputs: int = len(layers[-1][1])

    def __call__(self, x: FloatArray) -> FloatArray:
        """The output of the last layer, before any activation."""
        for weight, bias in self.layers[:-1]:
            x = self.activate(x @ weight.T + bias)
        weight, bias = self.layers[-1]
        result: FloatArray = x @ weight.T + bias
        return result


def layers(agent: Agent, prefix: str, *, linked: bool = True) -> list[Weights]:
    """The (weight, bias) pairs `{prefix}w0`, `{prefix}b0`, ... of an agent, as float64.

    Args:
        agent: where they are.
        prefix: of their names.
        linked: each must take what the one before it gives.

    Raises:
        AgentError: there is none, or shapes do not fit.
    """
    found: list[Weights] = []
    while f"{prefix}w{len(found)}" in agent.arrays:
        i = len(found)
        weight, bias = agent.arrays[f"{prefix}w{i}"], agent.arrays.get(f"{prefix}b{i}")
        if bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise AgentError(f"agent {agent.name!r}: layer {prefix}{i} has no fitting bias")
        if linked and found and weight.shape[1] != len(found[-1][1]):
            raise AgentError(f"agent {agent.name!r}: layer {prefix}{i} does not fit the one before")
        found.append((weight.astype(np.float64), bias.astype(np.float64)))
    if not found:
        raise AgentError(f"agent {agent.name!r}: no weights {prefix}w0")
    return found


def _activation(agent: Agent) -> Activation:
    name = agent.meta["activation"]
    if name not in ACTIVATIONS:
        raise AgentError(f"agent {agent.name!r}: activation {name!r} is none of {[*ACTIVATIONS]}")
    return ACTIVATIONS[name]


_NETWORKS: Mapping[str, Callable[[Agent], Network]] = {
    "mlp": Mlp,
    "scorer": Scorer,
    "attention": Attention,
}
