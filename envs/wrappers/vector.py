"""The wrappers of `wrappers.py` and `action_wrappers.py` for Gymnasium's vector environments.

They wrap the native vector environments, `gymnasium.vector.SyncVectorEnv` and
`AsyncVectorEnv`, in every autoreset mode, and equal a vector of wrapped environments.
"""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from synergy_gym.envs.wrappers.actions import flat_mask, flat_size
from synergy_gym.envs.wrappers.discount import rerouted
from synergy_gym.types import BoolArray, FloatArray, IntArray

_Infos = dict[str, Any]
_Step = tuple[Any, Any, BoolArray, BoolArray, _Infos]
_Wrapper = VectorWrapper[Any, Any, Any, Any, Any]


def vector_action_masks(envs: VectorEnv[Any, Any, Any]) -> BoolArray:
    """Legal actions of every sub-environment, `(num_envs, actions)`, through any wrappers.

    Gymnasium's vector wrappers do not pass methods on; this looks for the outermost
    `action_masks()`, else asks the sub-environments.

    Raises:
        TypeError: neither the vector environment nor its sub-environments have masks.
    """
    inner: Any = envs
    while isinstance(inner, VectorWrapper) and not hasattr(inner, "action_masks"):
        inner = inner.env
    if hasattr(inner, "action_masks"):
        masks: BoolArray = inner.action_masks()
        return masks
    if not hasattr(inner, "call"):
        raise TypeError(f"{envs} has neither action_masks() nor sub-environments to ask")
    return np.stack(inner.call("action_masks"))


class VectorFlatActions(_Wrapper):
    """`FlatActions` for vector environments: one number per combination of a grid.

    Args:
        envs: a vector environment with a `MultiDiscrete` single action space.

    Raises:
        TypeError: another action space.
        ValueError: more than `MAX_FLAT_ACTIONS` combinations, or an action outside.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        space = envs.single_action_space
        if not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim != 1:
            raise TypeError(f"VectorFlatActions needs a MultiDiscrete action space, got {space}")
        super().__init__(envs)
        self._shape = tuple(space.nvec.tolist())
        self.single_action_space = spaces.Discrete(flat_size(self._shape))
        self.action_space = batch_space(self.single_action_space, envs.num_envs)

    def step(self, actions: Any) -> _Step:
        """Step with the combinations that the numbers stand for."""
        numbers = np.asarray(actions)
        if not self.action_space.contains(numbers):
            raise ValueError(f"actions {actions!r} are outside {self.action_space}")
        parts = np.stack(np.unravel_index(numbers, self._shape), axis=-1)
        return self.env.step(parts)

    def action_masks(self) -> BoolArray:
        """Which combinations are legal, `(num_envs, combinations)`."""
        return np.stack([flat_mask(m, self._shape) for m in vector_action_masks(self.env)])


class VectorRerouteIllegal(_Wrapper):
    """`RerouteIllegal` for vector environments: illegal engines are replaced, and counted.

    `info["rerouted"]` says where an action was replaced; `rerouted_total` counts them per
    sub-environment since it was made. Where a step only resets (autoreset in the next step),
    the action has no effect and is not counted.

    Args:
        envs: a vector environment with a `Discrete` single action space and masks.

    Raises:
        TypeError: another action space.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(envs.single_action_space, spaces.Discrete):
            raise TypeError(
                "VectorRerouteIllegal needs a Discrete action space, got "
                f"{envs.single_action_space}; wrap the routing environment"
            )
        super().__init__(envs)
        self.rerouted_total: IntArray = np.zeros(envs.num_envs, np.int64)

    def step(self, actions: Any) -> _Step:
        """Step with legal actions."""
        masks = vector_action_masks(self.env)
        wanted = np.asarray(actions)
        pairs = zip(wanted.tolist(), masks, strict=True)
        legal = np.array([rerouted(action, mask) for action, mask in pairs], wanted.dtype)
        result: Any = self.env.step(legal)
        infos: _Infos = result[4]
        played = _flag(infos, "_dt_s", self.num_envs) | _flag(infos, "_final_info", self.num_envs)
        replaced = (legal != wanted) & played
        self.rerouted_total += replaced
        infos["rerouted"] = replaced
        return result  # type: ignore[no-any-return]


class VectorSemiMarkovDiscount(_Wrapper):
    """`SemiMarkovDiscount` for vector environments: rewards times exp(-beta * t).

    t is the simulated time since the first decision of the sub-environment's episode;
    `info["discount"]` is exp(-beta * dt_s) where a step was taken.

    Args:
        envs: a vector environment whose infos carry `dt_s`.
        beta_per_s: discount rate, 1/s, > 0.
        scale_rewards: False leaves rewards alone.

    Raises:
        ValueError: the rate is not positive and finite.
    """

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], beta_per_s: float, scale_rewards: bool = True
    ) -> None:
        if not 0 < beta_per_s < float("inf"):
            raise ValueError(f"beta_per_s={beta_per_s} must be positive and finite, in 1/s")
        super().__init__(envs)
        self.beta_per_s = beta_per_s
        self.scale_rewards = scale_rewards
        self._weights: FloatArray = np.ones(envs.num_envs)

    def reset(self, *, seed: Any = None, options: _Infos | None = None) -> tuple[Any, _Infos]:
        """Begin episodes; their first reward has weight 1."""
        mask = (options or {}).get("reset_mask")
        self._weights[slice(None) if mask is None else mask] = 1.0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> _Step:
        """Step, add the discounts, and weigh the rewards."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if self.scale_rewards:
            rewards = rewards * self._weights
        goes_on = self._add_discount(infos)
        self._weights = np.where(goes_on, self._weights * infos["discount"], 1.0)
        if "final_info" in infos:
            self._add_discount(infos["final_info"])
        return observations, rewards, terminated, truncated, infos

    def _add_discount(self, infos: _Infos) -> BoolArray:
        """Where a step was taken; elsewhere an episode was begun instead."""
        stepped = _flag(infos, "_dt_s", self.num_envs)
        dt_s = np.asarray(infos.get("dt_s", np.zeros(self.num_envs)))
        # NumPy's exp may differ from `math.exp`, which the single wrapper uses, in the last bit.
        values = np.array([exp(-self.beta_per_s * float(value)) for value in dt_s])
        infos["discount"] = np.where(stepped, values, 0.0)
        infos["_discount"] = stepped
        return stepped


def _flag(infos: _Infos, name: str, count: int) -> BoolArray:
    """Where an info is present; nowhere if it is missing."""
    return np.asarray(infos.get(name, np.zeros(count, np.bool_)), np.bool_).copy()
