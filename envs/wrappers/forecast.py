"""`ForecastObservation`: the router environment, seen with a forecast of every engine."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.observation import Float32Array
from synergy_gym.policies.forecast import ForecastFeatures


class ForecastObservation(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """What a router can foresee of every engine, beside the router's table.

    The observation is a flat Box of 10 request features and 38 per engine:
    `obs[layout["engines"]].reshape(engines, 38)`, with `layout` the wrapper's
    `observation_layout`. `synergy_gym.policies.forecast` names the slots. An engine's block
    does not depend on the number or the order of engines.

    Args:
        env: `SynergyGym/ClusterRouting-v1`.

    Raises:
        TypeError: another environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        if not isinstance(env.unwrapped, ClusterRoutingEnv):
            raise TypeError(
                f"ForecastObservation needs SynergyGym/ClusterRouting-v1, not {env.unwrapped!r}"
            )
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._env: ClusterRoutingEnv = env.unwrapped
        self._features = self._fresh()
        self.observation_layout = self._features.layout
        low, high = self.observation_layout.low, self.observation_layout.high
        self.observation_space = spaces.Box(low, high)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32Array, dict[str, Any]]:
        """Begin an episode with an empty memory."""
        _, info = self.env.reset(seed=seed, options=options)
        self._features = self._fresh()
        return self._observe(), info

    def step(self, action: Any) -> tuple[Float32Array, float, bool, bool, dict[str, Any]]:
        """Step; the last observation of an episode is zero."""
        _, reward, terminated, truncated, info = self.env.step(action)
        self._features.sent(int(action))
        ended = terminated or truncated
        return self._end() if ended else self._observe(), float(reward), terminated, truncated, info

    def action_masks(self) -> Any:
        """Which engines are up."""
        return self._env.action_masks()

    def _fresh(self) -> ForecastFeatures:
        return ForecastFeatures(self._env.engines, self._env.scenario.slos)

    def _end(self) -> Float32Array:
        return np.zeros(self.observation_layout.size, np.float32)

    def _observe(self) -> Float32Array:
        views = self._env.views()
        if views is None:
            return self._end()
        request, cluster, completions = views
        for completion in completions:
            self._features.observe(completion)
        return self._features(request, cluster)
