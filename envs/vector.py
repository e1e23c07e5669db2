"""Native vector environments: `gym.make_vec(id, num_envs=N)` steps N simulators at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.compiled.vector import step_engines, step_routers
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.vector_base import ServingVectorEnv, VectorStep
from synergy_gym.types import IntArray

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

    single = EngineBatchingEnv
    kernel = staticmethod(step_engines)

    def _control(self, i: int) -> IntArray:
        core: Any = self._core(i)
        control: IntArray = core.control
        return control

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

    single = ClusterRoutingEnv
    kernel = staticmethod(step_routers)

    def _control(self, i: int) -> IntArray:
        return _NO_CONTROL

    def _call(self, numbers: IntArray, step: VectorStep) -> int:
        return self._run(numbers, step, int(self.single_action_space.n))  # type: ignore[attr-defined]
