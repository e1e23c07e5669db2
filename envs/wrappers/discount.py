"""Wrappers for training: continuous-time discounting, and re-routing for maskless algorithms."""

from __future__ import annotations

from math import exp
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs


class SemiMarkovDiscount(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Discount by simulated time, exp(-beta * dt), instead of by the number of decisions.

    Steps of these environments last different times, so a constant discount per step would
    make an agent prefer long iterations. With the process seen as semi-Markov (Bradtke and Duff,
    NIPS 1994) the return is sum_k exp(-beta * t_k) * r_k, where t_k is the simulated time from
    the first decision of the episode to decision k.

    Every step's `info["discount"]` is exp(-beta * dt_s), the factor between this decision and
    the next, for algorithms that take one per step. For the others the reward itself is
    multiplied by exp(-beta * t_k), so that training with a discount of 1 per step optimises
    that return; `scale_rewards=False` leaves rewards alone.

    Args:
        env: an environment whose infos carry `dt_s`.
        beta_per_s: discount rate, 1/s, > 0; ln 2 / beta is the half-life of a reward.
        scale_rewards: multiply rewards as described.
    """

    def __init__(
        self, env: gym.Env[Any, Any], beta_per_s: float, scale_rewards: bool = True
    ) -> None:
        if not 0 < beta_per_s < float("inf"):
            raise ValueError(f"beta_per_s={beta_per_s} must be positive and finite, in 1/s")
        RecordConstructorArgs.__init__(self, beta_per_s=beta_per_s, scale_rewards=scale_rewards)
        gym.Wrapper.__init__(self, env)
        self.beta_per_s = beta_per_s
        self.scale_rewards = scale_rewards
        self._weight = 1.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; its first reward has weight 1."""
        self._weight = 1.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, add `info["discount"]`, and weigh the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        discount = exp(-self.beta_per_s * info["dt_s"])
        info["discount"] = discount
        weighted = float(reward) * self._weight if self.scale_rewards else float(reward)
        self._weight *= discount
        return observation, weighted, terminated, truncated, info


class RerouteIllegal(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Send a request that was routed to an engine that is down to the next one that is up.

    For training algorithms without action masks. The next engine is the first legal index after
    the chosen one, cyclically. Nothing is silent: `info["rerouted"]` says whether this step's
    action was replaced, `info["rerouted_total"]` counts them since the reset.

    Args:
        env: an environment with a `Discrete` action space and `action_masks()`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        if not isinstance(env.action_space, gym.spaces.Discrete):
            raise TypeError(
                f"RerouteIllegal needs a Discrete action space, got {env.action_space}; "
                "wrap the routing environment"
            )
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.rerouted_total = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode with the count at 0."""
        self.rerouted_total = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step with a legal action, and count replacements."""
        legal = rerouted(int(action), self.env.get_wrapper_attr("action_masks")())
        replaced = legal != int(action)
        self.rerouted_total += replaced
        observation, reward, terminated, truncated, info = self.env.step(legal)
        info["rerouted"] = replaced
        info["rerouted_total"] = self.rerouted_total
        return observation, reward, terminated, truncated, info


def rerouted(action: int, mask: Any) -> int:
    """The first legal action from `action` on, cyclically; itself if none is or it does not exist.

    `mask` is True (or 1) where an action is legal.
    """
    legal = np.asarray(mask, np.bool_)
    if not 0 <= action < len(legal) or not legal.any():
        return action
    return (action + int(np.roll(legal, -action).argmax())) % len(legal)
