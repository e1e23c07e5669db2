"""Spaces of the two-layer environment: both layers' observations and actions in one.

Of each only the deciding layer's part counts. Where one layer is fixed, the spaces are the
other's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.base import Part
from synergy_gym.envs.cluster_routing import router_parts
from synergy_gym.envs.compiled.engine import engine_control
from synergy_gym.envs.decisions import EngineActions, listed
from synergy_gym.features import EngineFeatures, RouterFeatures
from synergy_gym.observation import Float32Array, Group, ObservationLayout, Slot
from synergy_gym.policies.base import Layer
from synergy_gym.types import SLO, BoolArray, EngineSpec, IntArray

LAYERS: tuple[Layer, ...] = ("router", "engine")
LAYER_GROUP = Group("layer", (Slot("engine", "flag(an engine decides, not the router)"),))


class JointObservation:
    """The observation of the layers that the agent decides; the part of the other is zero.

    Args:
        engines: the cluster.
        slos: the scenario's classes.
        layers: the layers that the agent decides, of `LAYERS`.

    Attributes:
        layout: where everything sits in the flat form.
        views: the parts of the Dict form.
        parts: the slice of each layer.
    """

    def __init__(
        self, engines: Sequence[EngineSpec], slos: Sequence[SLO], layers: Sequence[Layer]
    ) -> None:
        self.router = RouterFeatures(engines, slos)
        self.engines = [EngineFeatures(spec, slos) for spec in engines]
        layouts = {"router": self.router.layout, "engine": self.engines[0].layout}
        groups = [group for layer in layers for group in layouts[layer].groups]
        self._is_joint = len(layers) > 1
        self.layout = ObservationLayout([LAYER_GROUP, *groups] if self._is_joint else groups)
        self.parts: dict[Layer, slice] = {}
        start = int(self._is_joint)
        for layer in layers:
            self.parts[layer] = slice(start, start + layouts[layer].size)
            start += layouts[layer].size
        self.views = self._views(len(engines))

    def _views(self, engines: int) -> dict[str, Part]:
        views: dict[str, Part] = dict(self.layout)
        if "router" in self.parts:
            del views["engines"]
            views.update(router_parts(self.layout, engines))
        return views

    def begin(self, out: Float32Array, layer: Layer) -> Float32Array:
        """Clear the observation, say whose turn it is, and return the part to be written."""
        if self._is_joint:
            out[:] = 0.0
            out[0] = float(layer == "engine")
        return out[self.parts[layer]]

    def part(self, observation: Any, layer: Layer) -> Any:
        """A layer's part of an observation, flat or a Dict, as its own environment shows it."""
        own = self.parts[layer]
        if not isinstance(observation, Mapping):
            return observation[own]
        return {k: v for k, v in observation.items() if _lies_in(self.views[k], own)}

    def layer_space(self, space: spaces.Space[Any], layer: Layer) -> spaces.Space[Any]:
        """The space of a layer by itself, of the space of whole observations."""
        if isinstance(space, spaces.Dict):
            return spaces.Dict(self.part(space.spaces, layer))
        own = self.parts[layer]
        return spaces.Box(self.layout.low[own], self.layout.high[own])

    def agent_space(self, engine: int) -> spaces.Box:
        """The space of what one engine sees, or with -1 the router."""
        layout = self.router.layout if engine < 0 else self.engines[engine].layout
        return spaces.Box(layout.low, layout.high)

    def write_engine(self, state: IntArray, engine: int, out: Float32Array) -> None:
        """Write what `engine` sees in this state of it."""
        self.engines[engine].write(state, self.begin(out, "engine"))


def _lies_in(part: Part, own: slice) -> bool:
    first = part.start if isinstance(part, slice) else part[0]
    return bool(own.start <= first < own.stop)


class JointActions:
    """The actions of the layers that the agent decides.

    Args:
        engines: the cluster.
        action: form of the engine's part, see `EngineActions`.
        is_dict: a `Dict` of both parts instead of one `MultiDiscrete`.
        layers: the layers that the agent decides.

    Attributes:
        engines: the actions of each engine by itself.
        is_smaller: per engine, whether its own space is smaller than that of the largest.
        spaces: the space of each layer by itself, engines with the largest limits.
        space: what the agent says.
    """

    def __init__(
        self,
        engines: Sequence[EngineSpec],
        action: str | EngineGrid,
        is_dict: bool,
        layers: Sequence[Layer],
    ) -> None:
        self.layers = tuple(layers)
        self.engines = [EngineActions(action, spec) for spec in engines]
        self._sizes: list[int] = np.max([own.sizes for own in self.engines], axis=0).tolist()
        self.is_smaller: list[bool] = [actions.sizes != self._sizes for actions in self.engines]
        self.spaces: dict[Layer, spaces.Space[Any]] = {
            "router": spaces.Discrete(len(engines)),
            "engine": spaces.MultiDiscrete(self._sizes),
        }
        self._is_dict = is_dict
        self.space = self._space()

    def _space(self) -> spaces.Space[Any]:
        if len(self.layers) == 1:
            return self.spaces[self.layers[0]]
        if self._is_dict:
            return spaces.Dict({layer: self.spaces[layer] for layer in self.layers})
        return spaces.MultiDiscrete([len(self.engines), *self._sizes])

    def controls(self, engines: Sequence[EngineSpec], slos: Sequence[SLO]) -> IntArray:
        """What the actions of each engine mean to the compiled step, a row each."""
        pairs = zip(engines, self.engines, strict=True)
        return np.stack([engine_control(spec, slos, own.sizes, own.grid) for spec, own in pairs])

    def part(self, action: Any, layer: Layer) -> Any:
        """What an action says for the layer that decides.

        Raises:
            ValueError: it has no such part, or lies outside the space.
        """
        if len(self.layers) == 1:
            return action
        if self._is_dict:
            if not isinstance(action, Mapping) or layer not in action:
                raise ValueError(f"action {action!r} has no entry {layer!r}, which decides now")
            return action[layer]
        values = listed(action)
        if type(values) is not list or len(values) != 1 + len(self._sizes):
            raise ValueError(
                f"action {action!r} must hold {1 + len(self._sizes)} integers: the engine that "
                f"gets the request, then {', '.join(self.engines[0].names)}"
            )
        for value, size in zip(values, (len(self.engines), *self._sizes), strict=True):
            if type(value) is not int or not 0 <= value < size:
                raise ValueError(f"action {values} is outside {self.space}")
        return values[0] if layer == "router" else values[1:]

    def joint(self, part: Any, layer: Layer) -> Any:
        """The action that says `part` for a layer, and 0 for the other."""
        if len(self.layers) == 1:
            return part
        idle: dict[Layer, Any] = {"router": 0, "engine": np.zeros(len(self._sizes), np.int64)}
        both = {**idle, layer: part}
        return both if self._is_dict else np.hstack([both["router"], both["engine"]])

    def legal(self, layer: Layer, engine: int, alive: BoolArray) -> list[BoolArray]:
        """Which values of each number of the layer's own action are legal now.

        `engine` is the engine that decides, `alive` says which are up.
        """
        if layer == "router":
            return [alive]
        own = self.engines[engine].sizes
        return [np.arange(most) < size for most, size in zip(self._sizes, own, strict=True)]

    def masks(self, layer: Layer, legal: list[BoolArray]) -> BoolArray:
        """One flag per value of each number, for maskable algorithms.

        The part that does not decide has one value left, so that nothing is learned there.
        """
        if len(self.layers) == 1:
            return np.concatenate(legal)
        sizes = self._sizes if layer == "router" else [len(self.engines)]
        idle = [np.arange(size) == 0 for size in sizes]
        return np.concatenate([*legal, *idle] if layer == "router" else [*idle, *legal])

    def info_mask(self, layer: Layer, legal: list[BoolArray]) -> Any:
        """The mask as `space.sample(mask)` takes it, or `None` where everything is legal."""
        if all(part.all() for part in legal):
            return None
        own = tuple(part.astype(np.int8) for part in legal)
        parts: dict[Layer, tuple[Any, ...]] = {
            "router": (np.ones(len(self.engines), np.int8),),
            "engine": tuple(np.ones(size, np.int8) for size in self._sizes),
            layer: own,
        }
        if self.layers == ("router",):
            return own[0]
        if self.layers == ("engine",):
            return own
        if self._is_dict:
            return {"router": parts["router"][0], "engine": parts["engine"]}
        return (*parts["router"], *parts["engine"])
