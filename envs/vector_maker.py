"""The sub-environments of a vector environment, from the arguments of a single one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym

from synergy_gym.envs.randomisation.worlds import DomainRandomization, WorldRanges

_LISTS = ("scenario", "load", "workload")


class Maker:
    """Makes sub-environments from arguments that are for all or list one value each."""

    def __init__(
        self,
        build: Callable[..., gym.Env[Any, Any]],
        num_envs: int,
        worlds: WorldRanges | None,
        arguments: dict[str, Any],
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
            return DomainRandomization(partial(self._build, **self._common), self._worlds)
        own = {name: values[i] for name, values in self._each.items()}
        env: gym.Env[Any, Any] = self._build(**own, **self._common)
        return env


def spread(name: str, value: Any, count: int) -> list[Any]:
    """A value for every sub-environment: a list has one each, anything else is for all.

    Raises:
        ValueError: a list of another length.
    """
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} lists {len(value)} values for {count} sub-environments; give one each"
        )
    return list(value)
