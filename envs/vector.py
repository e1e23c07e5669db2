"""Native vector environments: `gym.make_vec(id, num_envs=N)` steps N simulators at once."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.fused_vector import step_engines, step_routers
from synergy_gym.envs.randomisation import DomainRandomization, WorldRanges
from synergy_gym.envs.vector_base import ServingVectorEnv, VectorStep, spread
from synergy_gym.types import IntArray

_LISTS = ("scenario", "load", "workload")
_NO_CONTROL: IntArray = np.zeros(0, np.int64)


class EngineBatchingVectorEnv(ServingVectorEnv):
    """N `EngineBatching-v1` environments, stepped by one compiled call.

    ```python
    >>> import gymnasium as gym, synergy_gym
    >>> envs = gym.make_vec("SynergyGym/EngineBatching-v1", num_envs=64)
    >>> observations, infos = envs.reset(seed=0)
    >>> observations.shape
    (64, 17)
    >>> envs.close()

    ```

    The result is that of `gymnasium.vector.SyncVectorEnv` over N single environments, bit for
    bit. Spaces are the single ones, batched. All arguments of the single environment are
    taken, and in addition:

    | Parameter        | Type                  | Default      | Description                             |
    |------------------|-----------------------|--------------|-----------------------------------------|
    | `num_envs`       | int                   | `1`          | how many                                |
    | `autoreset_mode` | `AutoresetMode`       | `"NextStep"` | `"NextStep"`, `"SameStep"` or `"Disabled"` |
    | `worlds`         | `WorldRanges` or None | `None`       | every episode plays a world drawn from these, as `DomainRandomization` does; instead of `scenario` and `load` |

    `scenario`, `load` and `workload` may be lists with one value per sub-environment; the
    scenarios must have the same spaces (with `action="grid"` all engines have).
    `reset(seed=s)` plays episode s + i in sub-environment i, or give a list of seeds.

    Compiled are all forms of action on the simulator; with `shaping`, another `backend`,
    `render_mode="human"` or `SYNERGY_GYM_CHECK=1` sub-environments are stepped one by one.
    """  # noqa: E501

    kernel = staticmethod(step_engines)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        worlds: WorldRanges | None = None,
        **arguments: Any,
    ) -> None:
        maker = Maker(EngineBatchingEnv, num_envs, worlds, arguments)
        super().__init__(maker, num_envs, autoreset_mode)
        first: Any = self._core(0)
        self._counted = first.decision_interval_s is not None

    def _control(self, i: int) -> IntArray:
        core: Any = self._core(i)
        control: IntArray = core.control
        return control

    def _iterations(self) -> IntArray:
        return np.empty(self.num_envs, np.int64) if self._counted else self._no_iterations

    def _call(self, numbers: IntArray, step: VectorStep) -> int:
        return self._run(numbers, step, step.iterations)


class ClusterRoutingVectorEnv(ServingVectorEnv):
    """N `ClusterRouting-v1` environments, stepped by one compiled call.

    ```python
    >>> import gymnasium as gym, synergy_gym
    >>> envs = gym.make_vec("SynergyGym/ClusterRouting-v1", num_envs=8, load=[0.8, 1.2] * 4)
    >>> observations, infos = envs.reset(seed=0)
    >>> observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
    >>> envs.close()

    ```

    The result is that of `gymnasium.vector.SyncVectorEnv` over N single environments, bit for
    bit. Spaces are the single ones, batched. All arguments of the single environment are
    taken, and in addition:

    | Parameter        | Type                  | Default      | Description                             |
    |------------------|-----------------------|--------------|-----------------------------------------|
    | `num_envs`       | int                   | `1`          | how many                                |
    | `autoreset_mode` | `AutoresetMode`       | `"NextStep"` | `"NextStep"`, `"SameStep"` or `"Disabled"` |
    | `worlds`         | `WorldRanges` or None | `None`       | every episode plays a world drawn from these, as `DomainRandomization` does; instead of `scenario` and `load` |

    `scenario`, `load` and `workload` may be lists with one value per sub-environment; the
    scenarios must have equally many engines. `reset(seed=s)` plays episode s + i in
    sub-environment i, or give a list of seeds. `action_masks()` has a row per sub-environment.

    Compiled are clusters whose engines follow rules (`vllm-v1` and others) and stay up; with
    `down` events, other engine policies, `shaping`, another `backend`, `render_mode="human"` or
    `SYNERGY_GYM_CHECK=1` sub-environments are stepped one by one.
    """  # noqa: E501

    kernel = staticmethod(step_routers)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        worlds: WorldRanges | None = None,
        **arguments: Any,
    ) -> None:
        maker = Maker(ClusterRoutingEnv, num_envs, worlds, arguments)
        super().__init__(maker, num_envs, autoreset_mode)
        self._engines = int(self.single_action_space.n)  # type: ignore[attr-defined]

    def _control(self, i: int) -> IntArray:
        return _NO_CONTROL

    def _call(self, numbers: IntArray, step: VectorStep) -> int:
        return self._run(numbers, step, self._engines)


class Maker:
    """Makes sub-environments from arguments that are for all or list one value each."""

    def __init__(
        self, build: Any, num_envs: int, worlds: WorldRanges | None, arguments: dict[str, Any]
    ) -> None:
        self._build = build
        self._worlds = worlds
        self._common = {k: v for k, v in arguments.items() if k not in _LISTS}
        self._each = {k: spread(k, v, num_envs) for k, v in arguments.items() if k in _LISTS}
        if worlds is not None and self._each:
            raise ValueError(f"{list(self._each)} come from `worlds`; give one or the other")

    def __call__(self, i: int) -> gym.Env[Any, Any]:
        """Sub-environment i."""
        if self._worlds is not None:
            return DomainRandomization(
                lambda scenario: self._build(scenario=scenario, **self._common), self._worlds
            )
        own = {name: values[i] for name, values in self._each.items()}
        env: gym.Env[Any, Any] = self._build(**own, **self._common)
        return env
