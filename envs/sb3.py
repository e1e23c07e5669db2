"""Native vector environments as stable-baselines3 sees them. Needs the extra `rl`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv

from synergy_gym.envs.vector_base import Happened, ServingVectorEnv, VectorStep
from synergy_gym.rewards import SLO_MET

Infos = dict[str, Any]


class SB3VecEnv(VecEnv):  # type: ignore[misc]
    """A native vector environment behind stable-baselines3's `VecEnv`.

    Equal to `DummyVecEnv` over the same environments: an episode that ends is reset in the same
    step, `terminal_observation` and `TimeLimit.truncated` are in its info, infos are those of
    the single environments. In addition the last info of an episode has `episode` with its
    return `r`, length `l` and wall time `t`, as `Monitor` gives them, so that learning curves
    need no further wrapper. `env_method("action_masks")` serves sb3-contrib's maskable
    algorithms.

    `seed(s)` makes the next reset play episode s + i in environment i, as everywhere in
    stable-baselines3; later ones are drawn from the split.

    Args:
        envs: made with `autoreset_mode="SameStep"`.
        infos: False leaves the infos of ordinary steps empty, which saves time; the last info
            of an episode is complete all the same.

    Raises:
        ValueError: another autoreset mode.
        TypeError: no native vector environment.
    """

    def __init__(self, envs: Any, *, infos: bool = True) -> None:
        if not isinstance(envs, ServingVectorEnv):
            raise TypeError(
                f"SB3VecEnv wraps a native vector environment, not {type(envs).__name__}; make "
                'one with gym.make_vec(id, vectorization_mode="vector_entry_point", ...)'
            )
        if envs.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode is {envs.autoreset_mode.value!r}; stable-baselines3 expects "
                'autoreset_mode="SameStep"'
            )
        self.envs = envs
        self._told = infos
        self._actions: NDArray[Any] = np.zeros(0, np.int64)
        count = envs.num_envs
        self._returns = np.zeros(count)
        self._lengths = np.zeros(count, np.int64)
        self._begun_s = np.zeros(count)
        super().__init__(count, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> Any:
        """Begin an episode everywhere, with the seeds and options that were set."""
        if any(self._options):
            self._reset_one_by_one()
        else:
            _, infos = self.envs.reset(seed=self._seeds)
            self.reset_infos = _split(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0.0, 0
        self._begun_s[:] = time.perf_counter()
        return self.envs.shown()

    def _reset_one_by_one(self) -> None:
        for i in range(self.num_envs):
            mask = np.arange(self.num_envs) == i
            options = {**self._options[i], "reset_mask": mask}
            _, infos = self.envs.reset(seed=self._seeds, options=options)
            self.reset_infos[i] = _split(infos, self.num_envs)[i]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[Infos]]:
        """Step everything in one call."""
        step = self.envs.play(self._actions)
        self._returns += step.rewards
        self._lengths += 1
        infos = self._plain_infos(step)
        for i, happened in step.happened.items():
            infos[i] = self._special_info(i, happened, bool(step.truncated[i]))
        observations = self.envs.observed(step.observations)
        return observations, step.rewards.astype(np.float32), step.truncated, infos

    def _plain_infos(self, step: VectorStep) -> list[Infos]:
        if not self._told:
            return [{} for _ in range(self.num_envs)]
        infos: list[Infos] = [
            {"dt_s": dt_s, "reward_terms": {SLO_MET: reward}, "TimeLimit.truncated": False}
            for dt_s, reward in zip(step.dt_s.tolist(), step.rewards.tolist(), strict=True)
        ]
        for info, count in zip(infos, step.iterations.tolist(), strict=False):
            info["iterations"] = count
        return infos

    def _special_info(self, i: int, happened: Happened, truncated: bool) -> Infos:
        if happened.final_info is None:
            return {**happened.info, "TimeLimit.truncated": truncated}
        self.reset_infos[i] = happened.info
        info = {**happened.final_info, "TimeLimit.truncated": truncated}
        info["terminal_observation"] = happened.final_observation
        now_s = time.perf_counter()
        info["episode"] = {
            "r": float(self._returns[i]),
            "l": int(self._lengths[i]),
            "t": now_s - float(self._begun_s[i]),
        }
        self._returns[i], self._lengths[i], self._begun_s[i] = 0.0, 0, now_s
        return info

    def action_masks(self) -> NDArray[np.bool_]:
        """Legal actions, `(num_envs, actions)`."""
        return self.envs.action_masks()

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environments."""
        return [self.envs.envs[i].get_wrapper_attr(attr_name) for i in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the environments."""
        for i in self._chosen(indices):
            setattr(self.envs.envs[i], attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environments."""
        if method_name == "action_masks":
            masks = self.action_masks()
            return [masks[i] for i in self._chosen(indices)]
        methods = [self.envs.envs[i].get_wrapper_attr(method_name) for i in self._chosen(indices)]
        return [method(*method_args, **method_kwargs) for method in methods]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """Whether the environments have a wrapper of this class."""
        return [is_wrapped(self.envs.envs[i], wrapper_class) for i in self._chosen(indices)]

    def get_images(self) -> Sequence[Any]:
        """What every environment draws."""
        return self.envs.render()

    def _chosen(self, indices: Any) -> list[int]:
        chosen: list[int] = list(self._get_indices(indices))
        return chosen


def _split(infos: Infos, count: int) -> list[Infos]:
    """Batched infos as one dict per environment."""
    parts: list[Infos] = [{} for _ in range(count)]
    for key, values in infos.items():
        if key.startswith("_"):
            continue
        present = infos[f"_{key}"]
        rows = _split(values, count) if isinstance(values, dict) else values
        for i in np.flatnonzero(present).tolist():
            value = rows[i]
            parts[i][key] = value.item() if isinstance(value, np.generic) else deepcopy(value)
    return parts
