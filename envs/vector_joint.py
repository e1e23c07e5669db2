"""The native vector environment of both layers: `gym.make_vec("SynergyGym/CrossLayer-v1", ...)`."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from synergy_gym.envs.compiled.vector import WHO_KERNEL, step_joints, write_held
from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.vector_base import Infos, ServingVectorEnv, VectorStep
from synergy_gym.sim.points import ROUTE
from synergy_gym.types import BoolArray, IntArray


class CrossLayerVectorEnv(ServingVectorEnv):
    """N `CrossLayer-v1` environments, stepped by one compiled call.

    ```python
    >>> import gymnasium as gym, synergy_gym
    >>> envs = gym.make_vec("SynergyGym/CrossLayer-v1", num_envs=8, load=[0.8, 1.2] * 4)
    >>> observations, infos = envs.reset(seed=0)
    >>> observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
    >>> infos["agent"].shape
    (8,)
    >>> envs.close()

    ```

    The result is that of `gymnasium.vector.SyncVectorEnv` over N single environments, bit for
    bit. Spaces are the single ones, batched. All arguments of the single environment are taken but
    `action_form="dict"`, and in addition `num_envs`, `autoreset_mode` and `worlds`, as
    `EngineBatchingVectorEnv` has them. `scenario`, `load` and `workload` may be lists with one
    value per sub-environment; the scenarios must have equally many engines.

    Compiled are clusters whose every decision the agent takes and whose engines stay up and have
    one action space (with `action="grid"` all have); with `down` events, a fixed layer, `shaping`,
    another `backend`, `render_mode="human"` or `SYNERGY_GYM_CHECK=1` sub-environments are stepped
    one by one.

    Raises:
        ValueError: `action_form="dict"`; use `vectorization_mode="sync"` for it.
    """

    single = CrossLayerEnv
    kernel = staticmethod(step_joints)

    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        super().__init__(num_envs, **arguments)
        if isinstance(self.single_action_space, spaces.Dict):
            raise ValueError(
                'action_form="dict" has no native vector environment; use the flat form, or '
                'make_vec(..., vectorization_mode="sync")'
            )
        first = self._joint(0)
        self._turns: IntArray = np.zeros((num_envs, 2), np.int64)
        self._met_by: IntArray = np.zeros((num_envs, len(first.engines)), np.int64)

    def _joint(self, i: int) -> Any:
        """Sub-environment i, a `CrossLayerEnv`."""
        return self._core(i)

    def _control(self, i: int) -> IntArray:
        controls: IntArray = self._joint(i)._controls
        return controls

    def _is_compiled(self, i: int) -> bool:
        one_space = not any(self._joint(i).actions.is_smaller)
        return one_space and super()._is_compiled(i)

    def _enter_more(self, i: int) -> tuple[Any, ...]:
        held = self._joint(i)._held
        write_held(self._table, i, held.table, held.interval_ns)
        return (held.table,)

    def _resume(self, i: int) -> None:
        core = self._joint(i)
        world = core.memory.world
        core._point, core._engine = int(world["point"]), int(world["point_engine"])

    def _call(self, numbers: IntArray, step: VectorStep) -> int:
        return self._run(numbers, step, step.iterations, self._turns, self._met_by)

    def _ended_info(self, info: Infos, step: VectorStep, i: int) -> Infos:
        core = self._joint(i)
        if len(step.iterations):
            core._iterations = int(step.iterations[i])
        core._met_by = core.memory.engines["seen_met"] - self._met_by[i]
        return info | core._turn()  # type: ignore[no-any-return]

    def _plain_infos(self, step: VectorStep) -> Infos:
        infos = super()._plain_infos(step)
        plain = np.ones(self.num_envs, np.bool_)
        plain[list(step.happened)] = False
        layers, agents = np.full((2, self.num_envs), None, object)
        for i in np.flatnonzero(plain).tolist():
            point, engine = self._turns[i].tolist()
            layers[i] = "router" if point == ROUTE else "engine"
            agents[i] = "router" if point == ROUTE else f"engine_{engine}"
        met = np.where(plain[:, None], self._met_by, 0)
        for name, values in (("met_by_engine", met), ("layer", layers), ("agent", agents)):
            infos[name], infos[f"_{name}"] = values, plain.copy()
        return infos

    def action_masks(self) -> BoolArray:
        """Legal actions of every sub-environment, `(num_envs, actions)`."""
        for i in np.flatnonzero(self._table[:, 0] == WHO_KERNEL).tolist():
            self._resume(i)
        return super().action_masks()
