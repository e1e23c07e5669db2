"""Agents with random weights, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from synergy_gym.actions import DEFAULT_GRID, EngineGrid
from synergy_gym.features import router_layout
from synergy_gym.observation import Float32Array, ObservationLayout
from synergy_gym.policies.agent_file import FORMAT, Agent
from synergy_gym.policies.authors_state import AUTHORS_GRID, AUTHORS_GROUPS, ROWS
from synergy_gym.policies.learned import ENGINE_FEATURES, SCORER_FEATURES

WIDTH = 12
AUTHORS_FEATURES = ObservationLayout(AUTHORS_GROUPS).names()


def dense(rng: np.random.Generator, *sizes: int, prefix: str = "") -> dict[str, Float32Array]:
    """Layers from the first size to the last."""
    arrays = {}
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        arrays[f"{prefix}w{i}"] = rng.normal(0, inputs**-0.5, (outputs, inputs))
        arrays[f"{prefix}b{i}"] = rng.normal(0, 0.5, outputs)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def described(kind: str, network: str, features: list[str], **more: Any) -> dict[str, Any]:
    meta = {"format": FORMAT, "kind": kind, "name": f"{kind}-test", "network": network}
    meta |= {"activation": "tanh", "features": features, "frames": 1, "interval_s": 0.0}
    return {**meta, "training": {"algorithm": "none", "timesteps": 1200}, **more}


def engine_agent(
    rng: np.random.Generator,
    *,
    grid: EngineGrid = DEFAULT_GRID,
    head: str = "multidiscrete",
    frames: int = 1,
    interval_s: float = 0.0,
    normalised: bool = True,
) -> Agent:
    """An MLP over the engine's features."""
    sizes = {"multidiscrete": sum(grid.shape), "discrete": int(np.prod(grid.shape))}
    inputs = frames * len(ENGINE_FEATURES)
    arrays = dense(rng, inputs, WIDTH, WIDTH, sizes[head])
    if normalised:
        arrays["mean"] = rng.random(inputs).astype(np.float32)
        arrays["scale"] = (0.1 + rng.random(inputs)).astype(np.float32)
        arrays["clip"] = np.array(3.0, np.float32)
    more = {"grid": grid.to_dict(), "head": head, "frames": frames, "interval_s": interval_s}
    return Agent(described("engine", "mlp", ENGINE_FEATURES, **more), arrays)


def authors_agent(rng: np.random.Generator) -> Agent:
    """The authors' network over their state."""
    arrays = dense(rng, 10 + 2 * WIDTH, 16, 8, 4)
    for queue in ("waiting", "running"):
        arrays |= dense(rng, 2, WIDTH, WIDTH, prefix=f"{queue}_")
        arrays |= dense(rng, WIDTH, 1, prefix=f"{queue}_score_")
    more = {"observer": "authors", "rows": ROWS, "head": "discrete", "activation": "relu"}
    more["grid"] = AUTHORS_GRID.to_dict()
    return Agent(described("engine", "attention", AUTHORS_FEATURES, **more), arrays)


def scorer_agent(rng: np.random.Generator, features: list[str] = SCORER_FEATURES) -> Agent:
    """One network for every engine of a cluster."""
    first = dense(rng, len(features), WIDTH)
    rest = dense(rng, 2 * WIDTH, WIDTH, 1)
    arrays = {**first, **{f"{n[0]}{int(n[1:]) + 1}": a for n, a in rest.items()}}
    return Agent(described("router", "scorer", features, head="discrete"), arrays)


def router_mlp(rng: np.random.Generator, engines: int) -> Agent:
    """A router for one number of engines."""
    features = router_layout(engines).names()
    arrays = dense(rng, len(features), WIDTH, engines)
    return Agent(described("router", "mlp", features, head="discrete"), arrays)


def changed(agent: Agent, arrays: Mapping[str, Any] | None = None, **meta: Any) -> Agent:
    """The agent with other entries of `meta` and other arrays; `None` leaves one out."""
    values = {k: v for k, v in {**agent.meta, **meta}.items() if v is not None}
    merged = {k: v for k, v in {**agent.arrays, **(arrays or {})}.items() if v is not None}
    return Agent(values, merged)
