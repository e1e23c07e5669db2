"""A benchmark gym for LLM-serving schedulers.

Importing this package registers the environments (by entry-point string) and nothing more:
every public name below is loaded when it is first used, so the import stays light.

    >>> import gymnasium, synergy_gym
    >>> env = gymnasium.make("SynergyGym/EngineBatching-v1", scenario="chat-h100")
"""

from synergy_gym import isolation as _isolation

if _isolation.is_command():  # before anything is imported that a folder could stand in for
    _isolation.start_over()

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

import gymnasium as _gymnasium

from synergy_gym import moved as _moved

__version__ = "0.1.0"

_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "envs").is_dir():
    __path__.append(str(_root))  # a checkout: `envs/` and `policies/` sit beside this folder

_ENVIRONMENTS = {
    "EngineBatching": "synergy_gym.envs.engine_batching:EngineBatchingEnv",
    "ClusterRouting": "synergy_gym.envs.cluster_routing:ClusterRoutingEnv",
    "CrossLayer": "synergy_gym.envs.cross_layer:CrossLayerEnv",
}
_VECTOR_ENVIRONMENTS = {
    "EngineBatching": "synergy_gym.envs.vector:EngineBatchingVectorEnv",
    "ClusterRouting": "synergy_gym.envs.vector:ClusterRoutingVectorEnv",
    "CrossLayer": "synergy_gym.envs.vector_joint:CrossLayerVectorEnv",
}
_VERSIONS: dict[str, dict[str, dict[str, Any]]] = {
    "v0": {
        "EngineBatching": {"action": "limits", "decision_interval_s": None},
        "CrossLayer": {"action": "grid", "decision_interval_s": None},
    },
    "v1": {},  # the defaults of the classes
}
"""Arguments by version and environment; the classes say what each version is."""
_SEASONS = {"v0": 1, "v1": 2}
"""Whose scenarios an environment plays, by the version in its id."""

_PUBLIC = {
    "Scenario": "synergy_gym.scenario",
    "list_scenarios": "synergy_gym.scenario",
    "load_scenario": "synergy_gym.scenario",
    "BatchDecision": "synergy_gym.types",
    "ClusterView": "synergy_gym.types",
    "EngineView": "synergy_gym.types",
    "RequestView": "synergy_gym.types",
    "EnginePolicy": "synergy_gym.policies",
    "RouterPolicy": "synergy_gym.policies",
    "engine_policies": "synergy_gym.policies",
    "engine_policy": "synergy_gym.policies",
    "router_policies": "synergy_gym.policies",
    "router_policy": "synergy_gym.policies",
    "evaluate": "synergy_gym.evaluation",
    "rank": "synergy_gym.evaluation",
}

if TYPE_CHECKING:
    from synergy_gym.evaluation import evaluate, rank
    from synergy_gym.policies import (
        EnginePolicy,
        RouterPolicy,
        engine_policies,
        engine_policy,
        router_policies,
        router_policy,
    )
    from synergy_gym.scenario import Scenario, list_scenarios, load_scenario
    from synergy_gym.types import BatchDecision, ClusterView, EngineView, RequestView

__all__ = [
    "BatchDecision",
    "ClusterView",
    "EnginePolicy",
    "EngineView",
    "RequestView",
    "RouterPolicy",
    "Scenario",
    "__version__",
    "engine_policies",
    "engine_policy",
    "evaluate",
    "list_scenarios",
    "load_scenario",
    "rank",
    "router_policies",
    "router_policy",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


def _register() -> None:
    """Tell Gymnasium the environment ids; safe to call twice.

    Gymnasium's checker and order guard would wrap every step; an invalid action is an error of
    the environment itself, so neither is stacked on top.
    """
    for version, arguments in _VERSIONS.items():
        for name, entry_point in _ENVIRONMENTS.items():
            full = f"SynergyGym/{name}-{version}"
            if full not in _gymnasium.registry:
                _gymnasium.register(
                    full,
                    entry_point=entry_point,
                    vector_entry_point=_VECTOR_ENVIRONMENTS.get(name),
                    kwargs={"season": _SEASONS[version], **arguments.get(name, {})},
                    order_enforce=False,
                    disable_env_checker=True,
                )


_moved.install()
_register()
