"""Many environments, one compiled call: what both native vector environments share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from synergy_gym.envs.base import ServingEnv
from synergy_gym.envs.compiled.vector import (
    VECTOR_ROW,
    WHO_KERNEL,
    WHO_NOBODY,
    WHO_PYTHON,
    write_row,
)
from synergy_gym.envs.randomisation.worlds import WorldRanges
from synergy_gym.envs.vector_arguments import Seeds, are_whole, checked_mask, one_each
from synergy_gym.envs.vector_maker import Maker
from synergy_gym.jit import direct
from synergy_gym.observation import Float32Array
from synergy_gym.rewards import SLO_MET
from synergy_gym.types import BoolArray, FloatArray, IntArray

Infos = dict[str, Any]
_INT64 = np.dtype(np.int64)


@dataclass(slots=True)
class Happened:
    """What a sub-environment did in a step beside the ordinary."""

    info: Infos
    final_observation: Any = None
    final_info: Infos | None = None


@dataclass(slots=True)
class VectorStep:
    """One step of all sub-environments.

    Attributes:
        observations: float32 `(num_envs, size)`, flat form.
        rewards: `(num_envs,)`.
        truncated: `(num_envs,)`; episodes never terminate.
        dt_s: simulated seconds of compiled steps, `(num_envs,)`.
        iterations: iterations of compiled steps, where a decision lasts an interval.
        happened: by sub-environment, those whose info is another than reward and `dt_s`: it
            was reset, its episode ended, or its step was taken in Python.
    """

    observations: Float32Array
    rewards: FloatArray
    truncated: BoolArray
    dt_s: FloatArray
    iterations: IntArray
    happened: dict[int, Happened] = field(default_factory=dict)


class ServingVectorEnv(VectorEnv[Any, Any, Any]):
    """Steps the simulators of many sub-environments in one compiled call.

    Equal to `gymnasium.vector.SyncVectorEnv` over the same environments, bit for bit: values,
    dtypes, infos, seeds and autoreset modes. What cannot be compiled (shaping, engines that go
    down, Python engine policies, another backend) is stepped one by one, with equal results.

    Args:
        num_envs: how many.
        autoreset_mode: `AutoresetMode` or its value.
        worlds: draws the world of every episode; instead of scenario and load.
        arguments: those of the single environment, for all of them or (some) a list of one each.

    Attributes:
        envs: the sub-environments. Look at them, but reset and step them through the vector
            environment.

    Raises:
        ValueError: no sub-environment, an unknown mode, or spaces that differ.
    """

    single: Callable[..., gym.Env[Any, Any]]
    """Makes a sub-environment."""
    kernel: Callable[..., int]
    """The compiled call, of `fused_vector`."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        worlds: WorldRanges | None = None,
        **arguments: Any,
    ) -> None:
        build = Maker(self.single, num_envs, worlds, arguments)
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs} must be at least 1")
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.envs = [build(i) for i in range(num_envs)]
        first = self.envs[0]
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.single_action_space = first.action_space
        self.single_observation_space = first.observation_space
        self._check_spaces()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        core = self._core(0)
        self.observation_layout = core.observation_layout
        self._size = core.observation_layout.size
        self._shape = self.action_space.shape or ()
        self._parts = core.parts
        self._table: IntArray = np.zeros((num_envs, VECTOR_ROW), np.int64)
        self._rows = self._table.reshape(-1)
        self._kept: list[tuple[Any, ...]] = [()] * num_envs
        self._shown: Float32Array = np.zeros((num_envs, self._size), np.float32)
        self._counted = getattr(core, "decision_interval_s", None) is not None
        self._all_compiled = self._some_compiled = False
        self._begun = False
        self._kernel = self.kernel
        self._is_direct = False

    def _check_spaces(self) -> None:
        for i, env in enumerate(self.envs):
            for name in ("action_space", "observation_space"):
                found, wanted = getattr(env, name), getattr(self.envs[0], name)
                if found != wanted:
                    raise ValueError(
                        f"sub-environment {i} has {name} {found}, the first one {wanted}; join "
                        "scenarios of one shape (engine grids fit engines with other limits), "
                        "and make a vector environment for each shape"
                    )

    # -- resets ------------------------------------------------------------------------

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, Infos]:
        """Begin an episode in every sub-environment, or in those of a mask.

        Args:
            seed: `None`; one for the first, counted up for the others; or one each.
            options: those of the single environment, for all; `reset_mask` (bool, one per
                sub-environment) resets only where it is True.

        Raises:
            ValueError: too many or too few seeds, or a mask of another shape or without True.
            TypeError: the mask is no array of booleans.
        """
        options = dict(options or {})
        mask = checked_mask(options.pop("reset_mask", None), self.num_envs)
        seeds = one_each(seed, self.num_envs)
        infos: Infos = {}
        self._begun = False  # a reset that fails leaves nothing to step
        for i in np.flatnonzero(mask).tolist():
            infos = self._add_info(infos, self._begin(i, seeds[i], options or None), i)
        self._begun = True
        return self.shown(), infos

    def _begin(self, i: int, seed: int | None, options: dict[str, Any] | None) -> Infos:
        """Reset sub-environment i; its observation is in `_shown`."""
        self._leave(i)
        observation, info = self.envs[i].reset(seed=seed, options=options)
        self._shown[i] = self._flat(observation)
        self._enter(i)
        return info

    def _enter(self, i: int) -> None:
        """Note who steps sub-environment i from now on."""
        core = self._core(i)
        who = WHO_PYTHON
        arrays: tuple[Any, ...] = (self._control(i),)
        if self._is_compiled(i):
            who, arrays = WHO_KERNEL, (*arrays, core.memory, core.io)
        write_row(self._table, i, who, *arrays)
        self._kept[i] = (*arrays, *self._enter_more(i))  # the table knows only addresses
        self._count_compiled()

    def _leave(self, i: int) -> None:
        """Note that sub-environment i has no episode; nothing leads to its arrays any more."""
        write_row(self._table, i, WHO_NOBODY)
        self._kept[i] = ()
        self._count_compiled()

    def _count_compiled(self) -> None:
        compiled = self._table[:, 0] == WHO_KERNEL
        self._all_compiled, self._some_compiled = bool(compiled.all()), bool(compiled.any())

    def _is_compiled(self, i: int) -> bool:
        """Whether the compiled call can step sub-environment i in its present episode."""
        return self._core(i).is_compiled

    def _enter_more(self, i: int) -> tuple[Any, ...]:
        """Note what else the compiled call needs of sub-environment i; returns what to keep."""
        del i
        return ()

    def _resume(self, i: int) -> None:
        """Let sub-environment i know what compiled steps have brought, before it is asked."""

    # -- steps -------------------------------------------------------------------------

    def step(self, actions: Any) -> tuple[Any, FloatArray, BoolArray, BoolArray, Infos]:
        """Step every sub-environment.

        Raises:
            ValueError: an action that does not exist or is masked; the message names the
                sub-environment, and nothing has happened in any of them.
            gymnasium.error.ResetNeeded: before the first reset, or (autoreset disabled) an
                episode has ended.
        """
        step = self.play(actions)
        infos = self._infos(step) if step.happened else self._plain_infos(step)
        observations = self.observed(step.observations)
        terminated = np.zeros(self.num_envs, np.bool_)
        return observations, step.rewards, terminated, step.truncated, infos

    def play(self, actions: Any) -> VectorStep:
        """`step` with the infos as they are, for adapters."""
        n = self.num_envs
        step = VectorStep(
            np.empty((n, self._size), np.float32),
            np.empty(n),
            np.empty(n, np.bool_),
            np.empty(n),
            self._iterations(),
        )
        numbers = self._numbers(actions)
        if not self._all_compiled:
            self._check_python(numbers)
        ended = self._stepped(numbers, step)
        if ended or not self._all_compiled:
            self._rest(numbers, step)
        return step

    def _numbers(self, actions: Any) -> IntArray:
        """Actions as the compiled call needs them: int64, contiguous, of the space's shape."""
        numbers = actions
        if type(actions) is not np.ndarray or actions.dtype is not _INT64:
            # A bool among integers must not become one.
            is_list = isinstance(actions, list | tuple)
            numbers = np.array(actions, object) if is_list else np.asarray(actions)
            if not are_whole(numbers):
                self._check_rows(range(self.num_envs), numbers)
                raise ValueError(f"actions must be integers, they are {actions!r}")
            numbers = numbers.astype(np.int64)
        if numbers.shape != self._shape:
            raise ValueError(f"actions have shape {numbers.shape}, they need {self._shape}")
        return numbers if numbers.flags.c_contiguous else np.ascontiguousarray(numbers)

    def _check_rows(self, rows: Iterable[int], numbers: Any) -> None:
        """Raise the `ValueError` of the first of these sub-environments that cannot take its own.

        Raises:
            ValueError: begins with the sub-environment.
        """
        if numbers.shape != self._shape:
            return
        for i in rows:
            if self._table[i, 0] == WHO_KERNEL:
                self._resume(i)
            try:
                self._core(i).check_action(numbers[i])
            except ValueError as error:
                raise ValueError(f"sub-environment {i}: {error}") from error

    def _stepped(self, numbers: IntArray, step: VectorStep) -> int:
        if not self._some_compiled:  # their kernels may not be there yet
            step.rewards[:], step.dt_s[:], step.truncated[:] = 0.0, 0.0, False
            return 0
        ended = self._call(numbers, step)
        if ended < 0:
            i = -1 - ended
            self._check_rows([i], numbers)
            what = f"action {numbers[i].tolist()} is outside {self.single_action_space}"
            raise ValueError(f"sub-environment {i}: {what}")
        return ended

    def _check_python(self, numbers: IntArray) -> None:
        """What the compiled call cannot check: missing resets and masked actions."""
        if not self._begun:
            raise gym.error.ResetNeeded("step() was called before reset(); call reset()")
        who = self._table[:, 0]
        over = np.flatnonzero(who == WHO_NOBODY).tolist()
        if over and self.autoreset_mode == AutoresetMode.DISABLED:
            raise gym.error.ResetNeeded(
                f"the episodes of sub-environments {over} have ended; call "
                'reset(options={"reset_mask": ...}) with True there'
            )
        self._check_rows(np.flatnonzero(who == WHO_PYTHON).tolist(), numbers)

    def _rest(self, numbers: IntArray, step: VectorStep) -> None:
        """Everything but plain compiled steps: resets, ends, steps in Python."""
        who = self._table[:, 0].copy()
        for i in np.flatnonzero(step.truncated | (who != WHO_KERNEL)).tolist():
            if who[i] == WHO_NOBODY:
                step.happened[i] = Happened(self._begin(i, None, None))
            else:
                self._step_one(i, numbers, step, compiled=who[i] == WHO_KERNEL)
            step.observations[i] = self._shown[i]

    def _step_one(self, i: int, numbers: IntArray, step: VectorStep, *, compiled: bool) -> None:
        """Sub-environment i: the end of a compiled episode, or a step in Python."""
        if compiled:
            self._resume(i)
            observation, reward, info = self._core(i).end_compiled()
            info = self._ended_info(info, step, i)
            truncated = True
            self._shown[i] = observation
        else:
            returned, paid, _, truncated, info = self.envs[i].step(numbers[i])
            reward = float(paid)
            self._shown[i] = self._flat(returned)
        step.rewards[i], step.truncated[i] = reward, truncated
        step.happened[i] = Happened(info)
        if truncated:
            self._leave(i)
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                final = self._observation_of(self._shown[i].copy())
                step.happened[i] = Happened(self._begin(i, None, None), final, info)

    def _ended_info(self, info: Infos, step: VectorStep, i: int) -> Infos:
        """The last info of a compiled episode."""
        if len(step.iterations):
            info["iterations"] = int(step.iterations[i])
        return info

    # -- infos and observations --------------------------------------------------------

    def _infos(self, step: VectorStep) -> Infos:
        """As Gymnasium's vector environments give them: arrays, and `_key` where present."""
        infos: Infos = {}
        if len(step.happened) < self.num_envs:
            infos = self._plain_infos(step)
        for i, happened in sorted(step.happened.items()):
            if happened.final_info is not None:
                final = {"final_obs": happened.final_observation, "final_info": happened.final_info}
                infos = self._add_info(infos, final, i)
            infos = self._add_info(infos, happened.info, i)
        return infos

    def _plain_infos(self, step: VectorStep) -> Infos:
        masks = np.ones((4, self.num_envs), np.bool_)
        rewards = step.rewards.copy()
        if step.happened:
            special = list(step.happened)
            masks[:, special] = False
            rewards[special] = 0.0
            step.dt_s[special] = 0.0
        infos = {
            "dt_s": step.dt_s,
            "_dt_s": masks[0],
            "reward_terms": {SLO_MET: rewards, "_" + SLO_MET: masks[1]},
            "_reward_terms": masks[2],
        }
        if len(step.iterations):
            infos["iterations"], infos["_iterations"] = step.iterations, masks[3]
            if step.happened:
                step.iterations[special] = 0
        return infos

    def _flat(self, observation: Any) -> Any:
        if self._parts is None:
            return observation
        flat: Float32Array = np.empty(self._size, np.float32)
        for name, part in self._parts.items():
            flat[part] = observation[name]
        return flat

    def _observation_of(self, flat: Float32Array) -> Any:
        """The observation of one sub-environment from its flat form."""
        if self._parts is None:
            return flat
        return {name: flat[part].copy() for name, part in self._parts.items()}

    def observed(self, flat: Float32Array) -> Any:
        """The observations of all sub-environments from their flat form."""
        if self._parts is None:
            return flat
        return {name: flat[:, part].copy() for name, part in self._parts.items()}

    def shown(self) -> Any:
        """The present observations."""
        for i in np.flatnonzero(self._table[:, 0] == WHO_KERNEL).tolist():
            io = self._core(i).io
            assert io is not None
            self._shown[i] = io[len(io) - self._size :]  # compiled steps leave it there
        return self.observed(self._shown.copy())

    # -- copies -------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and pickle, at any moment: a copy steps simulators of its own."""
        # The direct entry of the kernel is this process's, and the rows are addresses.
        called = {"_kernel": None, "_is_direct": False, "_rows": None}
        return {**self.__dict__, **called, "_kept": [()] * self.num_envs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kernel = self.kernel
        self._rows = self._table.reshape(-1)
        running = self._table[:, 0] != WHO_NOBODY
        self._table[:] = 0  # addresses of another process
        for i in np.flatnonzero(running).tolist():
            self._enter(i)

    # -- the rest of the interface -----------------------------------------------------

    def action_masks(self) -> BoolArray:
        """Legal actions of every sub-environment, `(num_envs, actions)`."""
        return np.stack(self.call("action_masks"))

    @property  # type: ignore[misc]  # Gymnasium's has a setter
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generators of the sub-environments."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seeds that these generators were made from."""
        return self.get_attr("np_random_seed")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every sub-environment, or read an attribute."""
        found = [env.get_wrapper_attr(name) for env in self.envs]
        return tuple(value(*args, **kwargs) if callable(value) else value for value in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of every sub-environment."""
        return self.call(name)

    def render(self) -> tuple[Any, ...]:
        """What every sub-environment draws."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the sub-environments."""
        for env in self.envs:
            env.close()

    def _core(self, i: int) -> ServingEnv:
        core: ServingEnv = cast(Any, self.envs[i].unwrapped)
        return core

    def _iterations(self) -> IntArray:
        """Room for the iterations of each step, empty where a step is always one."""
        return np.empty(self.num_envs if self._counted else 0, np.int64)

    @abstractmethod
    def _control(self, i: int) -> IntArray:
        """The control vector of sub-environment i."""

    def _run(self, numbers: IntArray, step: VectorStep, *further: Any) -> int:
        """Call the kernel with what every one of them takes, and what this one takes besides."""
        ended = self._kernel(
            self._rows,
            numbers,
            step.observations,
            step.rewards,
            step.dt_s,
            step.truncated,
            *further,
        )
        if not self._is_direct:
            self._kernel, self._is_direct = direct(self._kernel), True
        return ended

    @abstractmethod
    def _call(self, numbers: IntArray, step: VectorStep) -> int:
        """The compiled call; see `fused_vector`."""
