"""Router observations and actions of one size for clusters of any size and order."""

from __future__ import annotations

from operator import index
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from synergy_gym.features import (
    NUM_REQUEST_FEATURES,
    NUM_ROUTER_FEATURES,
    REQUEST_SLOTS,
    router_layout,
)
from synergy_gym.observation import Float32Array
from synergy_gym.types import BoolArray, IntArray

Form = Literal["flat", "dict"]
FORMS: tuple[Form, ...] = ("flat", "dict")


class EngineBlocks(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Show a cluster as `max_engines` slots, each with one engine's features or empty.

    The routing environment's spaces depend on the number of engines. Here every cluster of up
    to `max_engines` has the same spaces, so that one agent can train and play on all of them.
    A block reads the same whatever its slot: nothing in it depends on the number or the order
    of the engines (the configured weight is relative to the heaviest engine). Empty slots are
    zero and illegal.

    ## Action Space

    `Discrete(max_engines)`: the slot that gets the request. Illegal are empty slots and engines
    that are down; infos carry `action_mask` (int8) whenever something is illegal.

    ## Observation Space

    | `form`   | Observation                                                                   |
    |----------|-------------------------------------------------------------------------------|
    | `"flat"` | Box of 10 + 21 * max_engines: what a cluster of max_engines would show, an empty slot like an engine that is down and says nothing |
    | `"dict"` | Dict of `request` (10,), `engines` (max_engines, 21) and `mask` (max_engines,), int8: 1 where the action is legal |

    `observation_layout` names the numbers of the flat form. The slots of a block are those of
    `SynergyGym/ClusterRouting-v1`.

    Args:
        env: a routing environment with the flat observation.
        max_engines: slots; `None`: as many as the cluster has.
        form: see above.
        shuffle: put the engines into random slots at every reset, drawn from the environment's
            own generator, so that an agent cannot learn their order. `info["engine_slots"]` of
            the reset says which engine is in which slot, -1 for none.

    Raises:
        TypeError: the environment is no routing environment with a flat observation.
        ValueError: the cluster has more engines than slots, or an unknown form.
    """  # noqa: E501

    def __init__(
        self,
        env: gym.Env[Any, Any],
        max_engines: int | None = None,
        form: Form = "flat",
        shuffle: bool = False,
    ) -> None:
        engines = _num_engines(env)
        slots = engines if max_engines is None else max_engines
        if slots < engines:
            raise ValueError(
                f"the cluster has {engines} engines, more than max_engines={slots}; give at "
                f"least {engines}"
            )
        if form not in FORMS:
            raise ValueError(f"form={form!r} is unknown; choose one of {list(FORMS)}")
        RecordConstructorArgs.__init__(self, max_engines=max_engines, form=form, shuffle=shuffle)
        gym.Wrapper.__init__(self, env)
        self.num_engines = engines
        self.max_engines = slots
        self._form = form
        self._shuffle = shuffle
        self._engine_of: IntArray = _in_order(engines, slots)
        self.observation_layout = router_layout(slots)
        self.action_space = spaces.Discrete(slots)
        low, high = self.observation_layout.low, self.observation_layout.high
        self.observation_space = (
            spaces.Box(low, high) if form == "flat" else _dict_space(low, high, slots)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, in new slots with `shuffle`."""
        observation, info = self.env.reset(seed=seed, options=options)
        if self._shuffle:
            self._engine_of = self.np_random.permutation(
                _in_order(self.num_engines, self.max_engines)
            )
        info["engine_slots"] = self._engine_of.copy()
        return self._shown(observation), self._with_mask(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Route to the engine in a slot.

        Raises:
            ValueError: there is no such slot, it is empty, or its engine is down.
        """
        slot = self._slot(action)
        if slot < 0:
            filled = np.flatnonzero(self._engine_of >= 0).tolist()
            raise ValueError(f"slot {action!r} holds no engine; those of this cluster: {filled}")
        engine = int(self._engine_of[slot])
        observation, reward, terminated, truncated, info = self.env.step(engine)
        return self._shown(observation), reward, terminated, truncated, self._with_mask(info)

    def _slot(self, action: Any) -> int:
        """The filled slot that an action names, else -1."""
        try:
            slot = index(action)
        except TypeError:
            return -1
        return slot if 0 <= slot < self.max_engines and self._engine_of[slot] >= 0 else -1

    def action_masks(self) -> BoolArray:
        """Which slots hold an engine that is up, shape (max_engines,)."""
        inner = np.asarray(self.env.get_wrapper_attr("action_masks")(), np.bool_)
        return np.append(inner, False)[self._engine_of]

    def _shown(self, observation: Float32Array) -> Any:
        table = observation[NUM_REQUEST_FEATURES:].reshape(self.num_engines, NUM_ROUTER_FEATURES)
        blank = np.zeros((1, NUM_ROUTER_FEATURES), np.float32)
        blocks = np.concatenate([table, blank])[self._engine_of]
        request = observation[:NUM_REQUEST_FEATURES]
        if self._form == "flat":
            return np.concatenate([request, blocks.ravel()])
        mask = self.action_masks().astype(np.int8)
        return {"request": request.copy(), "engines": blocks, "mask": mask}

    def _with_mask(self, info: dict[str, Any]) -> dict[str, Any]:
        mask = self.action_masks()
        if not mask.all():
            info["action_mask"] = mask.astype(np.int8)
        return info


def _num_engines(env: gym.Env[Any, Any]) -> int:
    space, actions = env.observation_space, env.action_space
    if isinstance(actions, spaces.Discrete) and isinstance(space, spaces.Box):
        size = NUM_REQUEST_FEATURES + int(actions.n) * NUM_ROUTER_FEATURES
        if space.shape == (size,):
            return int(actions.n)
    raise TypeError(
        "EngineBlocks needs SynergyGym/ClusterRouting-v1 with observation='flat', and no wrapper "
        f"inside that changes its spaces; got {space} and {actions}"
    )


def _in_order(engines: int, slots: int) -> IntArray:
    """Engine by slot; -1 in the empty ones, which come last."""
    order: NDArray[np.int64] = np.full(slots, -1, np.int64)
    order[:engines] = np.arange(engines)
    return order


def _dict_space(low: Float32Array, high: Float32Array, slots: int) -> spaces.Dict:
    shape = (slots, NUM_ROUTER_FEATURES)
    request, blocks = slice(0, len(REQUEST_SLOTS)), slice(len(REQUEST_SLOTS), None)
    return spaces.Dict(
        {
            "request": spaces.Box(low[request], high[request]),
            "engines": spaces.Box(low[blocks].reshape(shape), high[blocks].reshape(shape)),
            "mask": spaces.MultiBinary(slots),
        }
    )
