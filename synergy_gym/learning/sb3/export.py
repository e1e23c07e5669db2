"""From a trained stable-baselines3 model to an agent file; needs no torch itself.

Weights are read through the modules' `state_dict()`; the forward pass that they are made for is
that of `synergy_gym.policies.networks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.observation import Float32Array
from synergy_gym.policies.agent_file import FORMAT, Agent
from synergy_gym.policies.learned import ENGINE_FEATURES, SCORER_FEATURES

Arrays = dict[str, Float32Array]


def describe_agent(
    plan: TrainingPlan, head: str, activation: str, training: Mapping[str, Any]
) -> dict[str, Any]:
    """The `meta` of an agent of this plan; see `policies.agent_file`."""
    meta: dict[str, Any] = {
        "format": FORMAT,
        "kind": plan.kind,
        "name": plan.name,
        "activation": activation,
        "training": dict(training),
    }
    if plan.kind == "router":
        own = {"network": "scorer", "features": SCORER_FEATURES, "frames": 1, "interval_s": 0.0}
        return {**meta, **own, "head": "discrete"}
    own = {
        "network": "mlp",
        "features": ENGINE_FEATURES,
        "frames": plan.frames,
        "interval_s": plan.interval_s,
    }
    return {**meta, **own, "head": head, "grid": plan.grid.to_dict()}


def dense_arrays(linears: Sequence[Any]) -> Arrays:
    """`w0`, `b0`, `w1`, ... of torch's linear layers in order."""
    arrays: Arrays = {}
    for i, linear in enumerate(linears):
        arrays[f"w{i}"] = _numpy(linear.weight)
        arrays[f"b{i}"] = _numpy(linear.bias)
    return arrays


def normalisation_arrays(extractor: Any, clip: float) -> Arrays:
    """`mean`, `scale` and `clip` of an extractor of `sb3_policies`."""
    mean, scale = _numpy(extractor.mean), _numpy(extractor.scale)
    return {"mean": mean, "scale": scale, "clip": np.array(clip, np.float32)}


def mean_of_quantiles(arrays: Arrays, last: int, outputs: int) -> Arrays:
    """Replace the last layer, which gives all quantiles of every action, by their mean.

    Args:
        arrays: of a network whose last layer `last` has quantiles x outputs rows.
        last: its index.
        outputs: how many values remain.
    """
    weight, bias = arrays[f"w{last}"], arrays[f"b{last}"]
    small = {f"w{last}": weight.reshape(-1, outputs, weight.shape[1]).mean(axis=0)}
    small[f"b{last}"] = bias.reshape(-1, outputs).mean(axis=0)
    return {**arrays, **small}


def make_agent(meta: Mapping[str, Any], arrays: Arrays) -> Agent:
    """An agent of these parts, float32 throughout."""
    return Agent(dict(meta), {name: np.asarray(a, np.float32) for name, a in arrays.items()})


def _numpy(tensor: Any) -> Float32Array:
    array: Float32Array = tensor.detach().cpu().numpy().astype(np.float32)
    return array
