"""Wrappers that change what an action says: one number, a move on a grid, a lasting decision."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from synergy_gym.scenario import checked_seconds
from synergy_gym.types import NS_PER_S, BoolArray

MAX_FLAT_ACTIONS = 4096
"""Most actions that `FlatActions` enumerates; a value network has one output per action."""

Edges = Literal["stay", "mask"]
EDGES: tuple[Edges, ...] = ("stay", "mask")

_Step = tuple[Any, float, bool, bool, dict[str, Any]]
_Wrapper = gym.Wrapper[Any, Any, Any, Any]


class FlatActions(_Wrapper, RecordConstructorArgs):
    """Number the combinations of a `MultiDiscrete` space, for algorithms with one choice.

    Action n of `Discrete(product of the sizes)` is combination n in C order: the last
    dimension changes fastest (`numpy.unravel_index`). DQN and its relatives need this.
    A combination is legal when all its parts are.

    Args:
        env: an environment with a `MultiDiscrete` action space.

    Raises:
        TypeError: another action space.
        ValueError: more than `MAX_FLAT_ACTIONS` combinations.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._shape = _sizes(env, "FlatActions")
        count = flat_size(self._shape)
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.action_space = spaces.Discrete(count)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._flat_info(info)

    def step(self, action: Any) -> _Step:
        """Step with the combination that the number stands for.

        Raises:
            ValueError: there is no such combination.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside {self.action_space}")
        parts = np.array(np.unravel_index(int(action), self._shape), np.int64)
        observation, reward, terminated, truncated, info = self.env.step(parts)
        return observation, float(reward), terminated, truncated, self._flat_info(info)

    def action_masks(self) -> BoolArray:
        """Which combinations are legal now, shape (number of combinations,)."""
        return flat_mask(self.env.get_wrapper_attr("action_masks")(), self._shape)

    def _flat_info(self, info: dict[str, Any]) -> dict[str, Any]:
        if "action_mask" in info:
            info["action_mask"] = flat_mask(info["action_mask"], self._shape).astype(np.int8)
        return info


class DeltaActions(_Wrapper, RecordConstructorArgs):
    """Say how far to move along a grid, not where to go.

    For each axis in `axes` the agent chooses one of `moves`, in grid steps from the position
    of the last decision; the other dimensions stay as they are. The position belongs to the
    state, so observations gain one number per moving axis, position / (size - 1): at the end
    of a flat Box, or as the key `position` of a Dict. Infos have `position`, in grid steps.

    At the ends of the axis there are two rules, neither of them silent:

    | `edges`  | A move beyond an end                                                          |
    |----------|-------------------------------------------------------------------------------|
    | `"stay"` | is legal and goes to the end; `info["moves_cut"]` counts them since the reset |
    | `"mask"` | is illegal: masked by `action_masks()` and `info["action_mask"]`, an error    |

    Args:
        env: an environment with a `MultiDiscrete` action space, e.g. a grid of budgets.
        axes: dimensions of the space that move.
        moves: grid steps by action value; 0 must be among them.
        start: position of every moving axis after a reset; `None`: the last one, which is
            the largest budget.
        edges: see above.

    Raises:
        TypeError: the action space is no `MultiDiscrete`, or the observation neither a flat
            Box nor a Dict.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        axes: Sequence[int] = (0,),
        moves: Sequence[int] = (-1, 0, 1),
        start: int | None = None,
        edges: Edges = "stay",
    ) -> None:
        sizes = _sizes(env, "DeltaActions")
        _check_delta(sizes, axes, moves, start, edges)
        RecordConstructorArgs.__init__(self, axes=axes, moves=moves, start=start, edges=edges)
        gym.Wrapper.__init__(self, env)
        self._axes = np.array(axes, np.int64)
        self._moves = np.array(moves, np.int64)
        self._last = np.array(sizes, np.int64)[self._axes] - 1
        self._start = self._last if start is None else np.full(len(axes), start, np.int64)
        self._edges = edges
        self._position = self._start.copy()
        self.moves_cut = 0
        shape = [len(moves) if i in axes else n for i, n in enumerate(sizes)]
        self.action_space = spaces.MultiDiscrete(shape)
        self.observation_space = _with_position(env.observation_space, len(axes))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode at the start position."""
        self._position = self._start.copy()
        self.moves_cut = 0
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observation(observation), self._add(info)

    def step(self, action: Any) -> _Step:
        """Move, and step with the new position.

        Raises:
            ValueError: the action is outside the space, or a masked move (`edges="mask"`).
        """
        values = np.asarray(action)
        if not self.action_space.contains(values):
            raise ValueError(f"action {action!r} is outside {self.action_space}")
        self._move(values)
        absolute = values.astype(np.int64)
        absolute[self._axes] = self._position
        observation, reward, terminated, truncated, info = self.env.step(absolute)
        return self._observation(observation), float(reward), terminated, truncated, self._add(info)

    def action_masks(self) -> BoolArray:
        """Which moves are legal now: one entry per value of each dimension, concatenated."""
        inner = np.asarray(self.env.get_wrapper_attr("action_masks")(), np.bool_)
        return self._masks(inner)

    def _masks(self, inner: BoolArray) -> BoolArray:
        sizes = _sizes(self.env, "DeltaActions")
        parts = np.split(inner, np.cumsum(sizes)[:-1])
        for axis, position in zip(self._axes, self._position, strict=True):
            goals = position + self._moves
            outside = (goals < 0) | (goals >= sizes[axis])
            legal = parts[axis][np.clip(goals, 0, sizes[axis] - 1)]
            parts[axis] = legal & ~outside if self._edges == "mask" else legal
        return np.concatenate(parts)

    def _move(self, values: NDArray[Any]) -> None:
        goals = self._position + self._moves[values[self._axes]]
        reached = np.clip(goals, 0, self._last)
        cut = int((reached != goals).sum())
        if cut and self._edges == "mask":
            raise ValueError(
                f"action {values.tolist()} moves from {self._position.tolist()} to "
                f"{goals.tolist()}, outside 0..{self._last.tolist()}; choose what "
                'info["action_mask"] allows, or use DeltaActions(edges="stay")'
            )
        self._position = reached
        self.moves_cut += cut

    def _observation(self, observation: Any) -> Any:
        share = (self._position / np.maximum(self._last, 1)).astype(np.float32)
        if isinstance(observation, dict):
            return {**observation, "position": share}
        return np.concatenate([observation, share])

    def _add(self, info: dict[str, Any]) -> dict[str, Any]:
        info["position"] = self._position.copy()
        if self._edges == "stay":
            info["moves_cut"] = self.moves_cut
        if self._edges == "mask" or "action_mask" in info:
            mask = self.action_masks()
            if not mask.all():
                info["action_mask"] = mask.astype(np.int8)
        return info


class DecisionInterval(_Wrapper, RecordConstructorArgs):
    """Let a decision last for a fixed simulated time instead of one step.

    Environments with batching decisions do this themselves, compiled: `decision_interval_s=`.
    This wrapper plays the same episode, for what has to see every step in between: a
    `SemiMarkovDiscount` inside, a router that sends all requests of an interval to one engine.

    The action is repeated until `interval_s` has passed since it was first taken, the episode
    is over, or the action has become illegal (an engine went down): then somebody has to
    decide. A grid action repeats the rule, not the list: an order rule sorts the queue of every
    iteration anew. So the steps of the agent last nearly equal times (an interval, and what is
    left of the iteration that it ends in; time without work is skipped as ever).

    Rewards and the entries of `info["reward_terms"]` are summed. `info["dt_s"]` is the time of
    the whole step, `info["iterations"]` the number of inner steps, or the sum where these have
    it. `info["discount"]`, where an inner wrapper gives it, is the product. For a discount per
    simulated time put `SemiMarkovDiscount` inside (every reward at its own time) or outside (all
    at the decision).

    Args:
        env: an environment whose infos carry `dt_s`, with absolute actions: `DeltaActions`
            goes outside, or a move would be repeated.
        interval_s: length of a decision, seconds, > 0.

    Raises:
        TypeError: there is a `DeltaActions` inside.
        ValueError: the interval is not positive and finite.
    """

    def __init__(self, env: gym.Env[Any, Any], interval_s: float) -> None:
        checked_seconds("interval_s", interval_s, "a decision lasts for some time")
        if _is_inside(env, DeltaActions):
            raise TypeError(
                "DecisionInterval would repeat the moves of the DeltaActions inside; write "
                "DeltaActions(DecisionInterval(env, ...))"
            )
        RecordConstructorArgs.__init__(self, interval_s=interval_s)
        gym.Wrapper.__init__(self, env)
        self.interval_s = interval_s
        self._interval_ns = round(interval_s * NS_PER_S)

    def step(self, action: Any) -> _Step:
        """Repeat the action for an interval."""
        total, elapsed_ns, infos = 0.0, 0, []
        while True:
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            elapsed_ns += round(info["dt_s"] * NS_PER_S)
            infos.append(info)
            if terminated or truncated or elapsed_ns >= self._interval_ns:
                break
            if "action_mask" in info and not self._is_legal(action, info["action_mask"]):
                break
        return observation, total, terminated, truncated, _joined(infos, elapsed_ns)

    def _is_legal(self, action: Any, mask: NDArray[np.int8]) -> bool:
        space = self.env.action_space
        if isinstance(space, spaces.Discrete):
            return bool(mask[int(action)])
        starts = np.concatenate([[0], np.cumsum(_sizes(self.env, "DecisionInterval"))[:-1]])
        return bool(mask[starts + np.asarray(action)].all())


def flat_size(sizes: Sequence[int]) -> int:
    """Number of combinations of these sizes.

    Raises:
        ValueError: there are more than `MAX_FLAT_ACTIONS`.
    """
    count = prod(sizes)
    if count > MAX_FLAT_ACTIONS:
        raise ValueError(
            f"MultiDiscrete({list(sizes)}) has {count:,} combinations, more than "
            f'{MAX_FLAT_ACTIONS:,}; give the environment a grid (action="grid")'
        )
    return count


def flat_mask(mask: Any, sizes: Sequence[int]) -> BoolArray:
    """Mask of all combinations from the concatenated masks of the dimensions, C order."""
    parts = np.split(np.asarray(mask, np.bool_), np.cumsum(sizes)[:-1])
    legal = np.ones((), np.bool_)
    for part in parts:
        legal = legal[..., None] & part
    return legal.ravel()


def _sizes(env: gym.Env[Any, Any], wrapper: str) -> tuple[int, ...]:
    space = env.action_space
    if not isinstance(space, spaces.MultiDiscrete) or space.nvec.ndim != 1:
        raise TypeError(f"{wrapper} needs a MultiDiscrete action space of one row, got {space}")
    return tuple(space.nvec.tolist())


def _check_delta(
    sizes: Sequence[int],
    axes: Sequence[int],
    moves: Sequence[int],
    start: int | None,
    edges: str,
) -> None:
    if not axes or len(set(axes)) != len(axes) or not set(axes) <= set(range(len(sizes))):
        raise ValueError(f"axes={tuple(axes)} must be distinct dimensions, 0..{len(sizes) - 1}")
    if 0 not in moves or len(set(moves)) != len(moves):
        raise ValueError(f"moves={tuple(moves)} must be distinct and hold 0 (stay)")
    if start is not None and not all(0 <= start < sizes[axis] for axis in axes):
        raise ValueError(f"start={start} is outside an axis; sizes are {list(sizes)}")
    if edges not in EDGES:
        raise ValueError(f"edges={edges!r} is unknown; choose one of {list(EDGES)}")


def _with_position(space: spaces.Space[Any], axes: int) -> spaces.Space[Any]:
    position = spaces.Box(0.0, 1.0, (axes,), np.float32)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({**space.spaces, "position": position})
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        low = np.concatenate([space.low, position.low])
        return spaces.Box(low, np.concatenate([space.high, position.high]))
    raise TypeError(f"DeltaActions needs a flat Box or Dict observation, got {space}")


def _is_inside(env: gym.Env[Any, Any], kind: type) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, kind):
            return True
        env = env.env
    return False


def _joined(infos: list[dict[str, Any]], elapsed_ns: int) -> dict[str, Any]:
    """One info for several steps: the last one, with sums."""
    last = dict(infos[-1])
    terms: dict[str, float] = {}
    for info in infos:
        for name, value in info["reward_terms"].items():
            terms[name] = terms.get(name, 0.0) + value
    last["reward_terms"] = terms
    last["dt_s"] = elapsed_ns / NS_PER_S
    last["iterations"] = sum(info.get("iterations", 1) for info in infos)
    if "discount" in last:
        last["discount"] = prod(info["discount"] for info in infos)
    return last
