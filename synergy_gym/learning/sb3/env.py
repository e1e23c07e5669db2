"""Training environments as stable-baselines3 sees them.

Environments of one shape are stepped together (`VectorSource`); several shapes are joined, with
small clusters padded to the largest. Every episode is drawn anew: scenario, load, what the plan
varies, and a train seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from synergy_gym.envs.randomisation.worlds import WorldRanges
from synergy_gym.envs.wrappers.discount import rerouted
from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.scenario import Scenario
from synergy_gym.sim.compiled.clock import load
from synergy_gym.types import BoolArray

Array = NDArray[Any]


class JoinedVecEnv(VecEnv):  # type: ignore[misc]
    """Several vector environments as one.

    Observations of routers with fewer engines end with zeros (an engine block of zeros is an
    engine that is down), and `action_masks` forbids the engines that do not exist.

    `seed` fixes the order in which each environment draws its train seeds; no episode is played
    whose seed is not one of them.
    """

    def __init__(self, parts: Sequence[VecEnv]) -> None:
        self.parts = list(parts)
        self._bounds = np.cumsum([0, *(part.num_envs for part in parts)]).tolist()
        largest = max(parts, key=lambda part: int(part.observation_space.shape[0]))
        self._size = int(largest.observation_space.shape[0])
        self._pending: int | None = None
        super().__init__(self._bounds[-1], largest.observation_space, largest.action_space)

    def _slices(self) -> Iterator[tuple[VecEnv, slice]]:
        bounds = zip(self._bounds[:-1], self._bounds[1:], strict=True)
        for part, (start, stop) in zip(self.parts, bounds, strict=True):
            yield part, slice(start, stop)

    def _padded(self, observations: Array) -> Array:
        missing = self._size - observations.shape[-1]
        if not missing:
            return observations
        return np.pad(observations, [(0, 0)] * (observations.ndim - 1) + [(0, missing)])

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Fix everything random from the next reset on."""
        self._pending = seed
        return [seed] * self.num_envs

    def reset(self) -> Array:
        """Begin an episode in every environment."""
        if self._pending is not None:
            seeds = np.random.SeedSequence(self._pending).generate_state(len(self.parts))
            for part, seed in zip(self.parts, seeds.tolist(), strict=True):
                part.seed(seed)
                part.reset()  # of an episode with that seed, which is never stepped
            self._pending = None
        return np.concatenate([self._padded(part.reset()) for part in self.parts])

    def step_async(self, actions: Array) -> None:
        """Hand every part its actions."""
        for part, rows in self._slices():
            part.step_async(actions[rows])

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Collect the parts' results."""
        results = [part.step_wait() for part in self.parts]
        infos = [info for result in results for info in result[3]]
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._padded(info["terminal_observation"])
        rewards, dones = (np.concatenate([result[i] for result in results]) for i in (1, 2))
        return np.concatenate([self._padded(r[0]) for r in results]), rewards, dones, infos

    def action_masks(self) -> BoolArray:
        """Legal actions, `(num_envs, actions)`; engines that do not exist are not."""
        masks = [np.stack(part.env_method("action_masks")) for part in self.parts]
        width = max(mask.shape[1] for mask in masks)
        return np.concatenate([np.pad(m, [(0, 0), (0, width - m.shape[1])]) for m in masks])

    def close(self) -> None:
        """Close the parts."""
        for part in self.parts:
            part.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Attribute of the environments; `action_masks` is there."""
        found = [value for part in self.parts for value in part.get_attr(attr_name)]
        return [found[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not offered: an environment is what its plan says."""
        raise NotImplementedError(f"set_attr({attr_name!r}): make the environments anew instead")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Call a method of the environments."""
        if method_name == "action_masks":
            found: list[Any] = list(self.action_masks())
        else:
            calls = [part.env_method(method_name, *args, **kwargs) for part in self.parts]
            found = [value for values in calls for value in values]
        return [found[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Whether the environments have a wrapper."""
        found = [value for part in self.parts for value in part.env_is_wrapped(wrapper_class)]
        return [found[i] for i in self._get_indices(indices)]


class FlatGrid(VecEnvWrapper):  # type: ignore[misc]
    """One number for a cell of a grid, in the order of `np.ndindex`, as DQN needs it."""

    def __init__(self, venv: VecEnv) -> None:
        self._shape = tuple(venv.action_space.nvec.tolist())
        super().__init__(venv, action_space=spaces.Discrete(int(np.prod(self._shape))))

    def reset(self) -> Array:
        """Begin an episode everywhere."""
        found: Array = self.venv.reset()
        return found

    def step_async(self, actions: Array) -> None:
        """Step with the cells' indices."""
        self.venv.step_async(np.stack(np.unravel_index(actions, self._shape), axis=-1))

    def step_wait(self) -> Any:
        """What the environments say."""
        return self.venv.step_wait()


class Rerouted(VecEnvWrapper):  # type: ignore[misc]
    """Requests sent to an engine that is down go to the next one that is up, and are counted.

    The vector form of `envs.wrappers.RerouteIllegal`, for algorithms without masks.

    Attributes:
        rerouted: actions replaced since the environment was made.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.rerouted = 0

    def reset(self) -> Array:
        """Begin an episode everywhere."""
        found: Array = self.venv.reset()
        return found

    def step_async(self, actions: Array) -> None:
        """Step with legal actions."""
        masks = self.venv.env_method("action_masks")
        pairs = zip(np.asarray(actions).tolist(), masks, strict=True)
        legal = np.array([rerouted(action, mask) for action, mask in pairs], np.int64)
        self.rerouted += int((legal != actions).sum())
        self.venv.step_async(legal)

    def step_wait(self) -> Any:
        """What the environments say."""
        return self.venv.step_wait()


class StackedFrames(VecEnvWrapper):  # type: ignore[misc]
    """The last observations side by side, oldest first; an episode begins with copies.

    As Gymnasium's `FrameStackObservation(padding_type="reset")`, and as learned policies do.
    """

    def __init__(self, venv: VecEnv, frames: int) -> None:
        space = venv.observation_space
        wide = spaces.Box(np.tile(space.low, frames), np.tile(space.high, frames))
        super().__init__(venv, observation_space=wide)
        self._frames = frames
        self._size = int(space.shape[0])

    def reset(self) -> Array:
        """Begin an episode everywhere."""
        self._stack = np.tile(self.venv.reset(), self._frames)
        return self._stack.copy()

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Shift, and put the newest observation last."""
        newest, rewards, dones, infos = self.venv.step_wait()
        shifted = np.concatenate([self._stack[:, self._size :], newest], axis=1)
        for i in np.flatnonzero(dones).tolist():
            last = infos[i]["terminal_observation"]
            infos[i]["terminal_observation"] = np.concatenate([shifted[i, : -self._size], last])
            shifted[i] = np.tile(newest[i], self._frames)
        self._stack = shifted
        return shifted.copy(), rewards, dones, infos


@dataclass(frozen=True)
class Group:
    """Environments of one shape: how many, and the worlds that their episodes are drawn from."""

    num_envs: int
    worlds: WorldRanges


VectorSource = Callable[[TrainingPlan, Group], VecEnv]
"""Makes one vector environment of a group."""


def native_envs(plan: TrainingPlan, group: Group) -> VecEnv:
    """All environments of a group in one compiled call per step."""
    from synergy_gym.envs.sb3 import SB3VecEnv
    from synergy_gym.envs.vector import ClusterRoutingVectorEnv, EngineBatchingVectorEnv

    given: dict[str, Any] = {"worlds": group.worlds, "autoreset_mode": "SameStep"}
    cls: Any = EngineBatchingVectorEnv if plan.kind == "engine" else ClusterRoutingVectorEnv
    return SB3VecEnv(cls(group.num_envs, **given, **_arguments(plan)), infos=False)


def single_envs(plan: TrainingPlan, group: Group) -> VecEnv:
    """The same environments one after the other, for comparison: equal, and slower."""
    from synergy_gym.envs.randomisation.worlds import DomainRandomization

    def single() -> Any:
        return DomainRandomization(lambda world: _single(plan, world), group.worlds)

    return DummyVecEnv([single] * group.num_envs)


def _single(plan: TrainingPlan, world: Scenario) -> Any:
    from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
    from synergy_gym.envs.engine_batching import EngineBatchingEnv

    cls: Any = EngineBatchingEnv if plan.kind == "engine" else ClusterRoutingEnv
    return cls(world, **_arguments(plan))


def _arguments(plan: TrainingPlan) -> dict[str, Any]:
    own: dict[str, Any] = {"engine_policy": plan.engine_policy}
    if plan.kind == "engine":
        own = {"action": plan.grid, "decision_interval_s": plan.interval_s or None}
    if not plan.shaping:
        return own
    return {**own, "shaping": plan.shaping, "shaping_weight": plan.shaping_weight}


def groups(plan: TrainingPlan) -> list[Group]:
    """The environments of a plan by shape: clusters of different sizes are different shapes.

    Every group has environments in proportion to its scenarios, and at least one.
    """
    worlds: dict[int, list[Scenario]] = {}
    for world in plan.worlds:
        shape = len(world.engines) if plan.kind == "router" else 1
        worlds.setdefault(shape, []).append(world)
    found = []
    for members in worlds.values():
        count = max(round(plan.num_envs * len(members) / len(plan.worlds)), 1)
        found.append(Group(count, plan.ranges(members)))
    return found


def make_training_env(
    plan: TrainingPlan, *, flat: bool, masks: bool, source: VectorSource = native_envs
) -> VecEnv:
    """The environments of a plan.

    Args:
        plan: what is trained.
        flat: one number per action (algorithms that know only `Discrete`).
        masks: the algorithm uses `action_masks`; otherwise illegal actions are re-routed.
        source: how environments of one shape are made.
    """
    load()  # thousands of episodes follow, and `LostReward` looks into the compiled simulator
    env: VecEnv = JoinedVecEnv([source(plan, group) for group in groups(plan)])
    if plan.kind == "router":
        return env if masks else Rerouted(env)
    if plan.reward == "lost":
        from synergy_gym.learning.sb3.lost_reward import LostReward

        env = LostReward(env)
    if flat:
        env = FlatGrid(env)
    return StackedFrames(env, plan.frames) if plan.frames > 1 else env
