"""One layer of the two-layer environment, with any function deciding the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.joint_spaces import LAYERS
from synergy_gym.policies.base import Layer
from synergy_gym.types import BoolArray


class OneLayer(gym.Wrapper[Any, Any, Any, Any]):
    """Shows the decisions of one layer of `CrossLayer-v1`; a function takes those of the other.

    For training the layers in turn: learn one against the other's present policy, say a network
    of another training run, then change places. (A registered policy or an agent file needs no
    wrapper: give it to the environment as `router_policy=` or `engine_policy=`.)

    Observations and actions are those of `ClusterRouting-v1` or `EngineBatching-v1`. A step lasts
    from one decision of the layer to its next: rewards, `reward_terms`, `met_by_engine`, `dt_s` and
    `iterations` of the other layer's steps in between are added up. What the other layer earns
    before the first decision belongs to the first step.

    Args:
        env: a `CrossLayerEnv` in which the agent decides both layers, wrapped or not.
        layer: `"router"` or `"engine"`, the layer that is shown.
        other: the other layer's policy, `(observation, info) -> action` in the spaces of its own
            environment. `info["agent"]` names the engine.

    Raises:
        TypeError: another environment.
        ValueError: an unknown layer, or one of the two is fixed.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        layer: Layer,
        other: Callable[[Any, dict[str, Any]], Any],
    ) -> None:
        gym.Wrapper.__init__(self, env)
        if not isinstance(env.unwrapped, CrossLayerEnv):
            raise TypeError(f"OneLayer needs SynergyGym/CrossLayer-v1, got {env}")
        self._cross = env.unwrapped
        if layer not in LAYERS or self._cross.layers != LAYERS:
            raise ValueError(
                f"layer={layer!r} of an environment whose agent decides {self._cross.layers}: give "
                f"one of {LAYERS}, and an environment without router_policy and engine_policy"
            )
        self.layer = layer
        self.other = other
        self.action_space = self._cross.actions.spaces[layer]
        self.observation_space = self._cross.layer_space(layer)
        self._early: tuple[Any, float, bool, bool, dict[str, Any]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode and go to the layer's first decision."""
        observation, info = self.env.reset(seed=seed, options=options)
        if info.get("layer", self.layer) == self.layer:
            self._early = None
            return self._shown(observation), info
        self._early = self._until_turn((observation, 0.0, False, False, info))
        facts = {key: info[key] for key in ("scenario", "load", "seed")}
        turn = {k: v for k, v in self._early[4].items() if k in ("layer", "agent", "action_mask")}
        return self._shown(self._early[0]), {**facts, "now_s": self._cross.now_s, **turn}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Decide for the layer, and let the other one decide until it is asked again."""
        early, self._early = self._early, None
        if early is not None and early[3]:  # the episode ended without a decision of the layer
            return self._shown(early[0]), *early[1:]
        result = self._until_turn(self.env.step(self._cross.joint(action)))
        if early is not None:
            result = _joined(early, result)
        return self._shown(result[0]), *result[1:]

    def action_masks(self) -> BoolArray:
        """Which values of each number of the layer's action are legal now."""
        return np.concatenate(self._cross.agent_masks())

    def _until_turn(self, result: Any) -> Any:
        while not result[3] and result[4]["layer"] != self.layer:
            action = self.other(self._cross.part(result[0]), result[4])
            result = _joined(result, self.env.step(self._cross.joint(action)))
        return result

    def _shown(self, observation: Any) -> Any:
        return self._cross.part(observation, self.layer)


def _joined(first: Any, second: Any) -> Any:
    """Two steps as one: numbers added, everything else of the second."""
    observation, reward, terminated, truncated, info = second
    before = first[4]
    if "dt_s" in before:
        terms, earlier = info["reward_terms"], before["reward_terms"]
        info["dt_s"] += before["dt_s"]
        if "iterations" in info:
            info["iterations"] += before["iterations"]
        info["reward_terms"] = {name: value + earlier[name] for name, value in terms.items()}
        info["met_by_engine"] = info["met_by_engine"] + before["met_by_engine"]
    return observation, first[1] + reward, terminated, truncated, info
