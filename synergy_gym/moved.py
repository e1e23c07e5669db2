"""Documented import paths of modules that have moved keep working.

import synergy_gym.envs.action_wrappers      # is synergy_gym.envs.wrappers.actions
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType

MOVED: Mapping[str, str] = MappingProxyType(
    {
        "synergy_gym.envs.action_wrappers": "synergy_gym.envs.wrappers.actions",
        "synergy_gym.envs.authors": "synergy_gym.envs.wrappers.authors",
        "synergy_gym.envs.engine_blocks": "synergy_gym.envs.wrappers.engine_blocks",
        "synergy_gym.envs.forecast": "synergy_gym.envs.wrappers.forecast",
        "synergy_gym.envs.knobs": "synergy_gym.envs.randomisation.knobs",
        "synergy_gym.envs.one_layer": "synergy_gym.envs.wrappers.one_layer",
        "synergy_gym.envs.ranges": "synergy_gym.envs.randomisation.ranges",
        "synergy_gym.envs.wrappers_vector": "synergy_gym.envs.wrappers.vector",
        "synergy_gym.evaluation.fidelity": "synergy_gym.fidelity.compare",
        "synergy_gym.live.steering": "synergy_gym.live.hosting.steering",
        "synergy_gym.workload.catalog": "synergy_gym.workload.traces.catalog",
    }
)
"""New module by documented old name."""


class _Alias(Loader):
    """Loads an old name as the module of the new one, which stays as it is."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(MOVED[spec.name])
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own


class MovedFinder(MetaPathFinder):
    """Finds the names of `MOVED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an old name, or `None`."""
        del path, target
        return ModuleSpec(fullname, _Alias()) if fullname in MOVED else None


def install() -> None:
    """Let Python find the old names; safe to call twice."""
    if not any(type(finder).__name__ == MovedFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
