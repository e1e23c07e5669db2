"""PPO, MaskablePPO, DQN and QR-DQN of stable-baselines3 and sb3-contrib.

`FAMILIES` says per algorithm which class trains, which policy class scores routers, and where
the layers of the trained network are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import DQN, PPO
from torch import nn

from synergy_gym.learning.algorithms import algorithm
from synergy_gym.learning.plan import Kind
from synergy_gym.learning.run import Run
from synergy_gym.learning.sb3 import policies as sb3_policies
from synergy_gym.learning.sb3.export import (
    Arrays,
    dense_arrays,
    mean_of_quantiles,
    normalisation_arrays,
)

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


@dataclass(frozen=True)
class Family:
    """How an algorithm of stable-baselines3 is used here.

    Attributes:
        model: its class.
        router_policy: the policy class that scores engines.
        masks: it takes `action_masks`.
        flat: it knows only `Discrete` actions.
        clones: its policy is a distribution, which can be cloned.
        replay: it learns from a replay buffer, which belongs to a checkpoint.
        activation: of the hidden layers, where the plan names none.
        layers: `(policy, kind, number of actions)` -> weights of the acting network.
    """

    model: Any
    router_policy: Any
    masks: bool
    flat: bool
    clones: bool
    replay: bool
    activation: str
    layers: Callable[[Any, Kind, int], Arrays]


def _actor_layers(policy: Any, kind: Kind, actions: int) -> Arrays:
    net = policy.mlp_extractor.policy_net
    extractor = normalisation_arrays(policy.pi_features_extractor, sb3_policies.CLIP)
    linears = _scorer(net) if kind == "router" else [*_linears(net), policy.action_net]
    return {**dense_arrays(linears), **extractor}


def _value_layers(policy: Any, kind: Kind, actions: int) -> Arrays:
    net = policy.q_net
    extractor = normalisation_arrays(net.features_extractor, sb3_policies.CLIP)
    linears = _scorer(net.q_net) if kind == "router" else _linears(net.q_net)
    return {**dense_arrays(linears), **extractor}


def _quantile_layers(policy: Any, kind: Kind, actions: int) -> Arrays:
    net = policy.quantile_net
    extractor = normalisation_arrays(net.features_extractor, sb3_policies.CLIP)
    router = kind == "router"
    linears = _scorer(net.quantile_net) if router else _linears(net.quantile_net)
    arrays = mean_of_quantiles(dense_arrays(linears), len(linears) - 1, 1 if router else actions)
    return {**arrays, **extractor}


def _linears(net: Any) -> list[Any]:
    return [module for module in net if isinstance(module, nn.Linear)]


def _scorer(net: Any) -> list[Any]:
    return [net.encoder, net.mixer, net.head]


FAMILIES: Mapping[str, Family] = {
    "ppo": Family(
        PPO, sb3_policies.ScorerPolicy, False, False, True, False, "tanh", _actor_layers
    ),
    "maskable-ppo": Family(
        MaskablePPO, sb3_policies.MaskableScorerPolicy, True, False, True, False, "tanh",
        _actor_layers,
    ),
    "dqn": Family(DQN, sb3_policies.ScorerQPolicy, False, True, False, True, "relu", _value_layers),
    "qr-dqn": Family(
        QRDQN, sb3_policies.ScorerQuantilePolicy, False, True, False, True, "relu",
        _quantile_layers,
    ),
}  # fmt: skip

_PPO: dict[str, Any] = {
    "learning_rate": 1e-3,
    "n_steps": 128,
    "batch_size": 1024,
    "n_epochs": 4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "ent_coef": 0.003,
    "target_kl": 0.02,
}
_DQN: dict[str, Any] = {
    "learning_rate": 5e-4,
    "buffer_size": 100_000,
    "learning_starts": 5_000,
    "batch_size": 128,
    "train_freq": 4,
    "gradient_steps": 4,
    "gamma": 0.99,
    "target_update_interval": 2_000,
    "exploration_fraction": 0.3,
    "exploration_final_eps": 0.02,
}


def _suggest_ppo(trial: Any, kind: Kind) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 5e-5, 2e-3, log=True),
        "n_steps": trial.suggest_categorical("n_steps", [64, 128, 256, 512]),
        "batch_size": trial.suggest_categorical("batch_size", [256, 512, 1024, 2048]),
        "n_epochs": trial.suggest_int("n_epochs", 2, 10),
        "gamma": 1.0 - trial.suggest_float("1 - gamma", 1e-3, 5e-2, log=True),
        "gae_lambda": trial.suggest_float("gae_lambda", 0.9, 0.99),
        "ent_coef": trial.suggest_float("ent_coef", 1e-4, 3e-2, log=True),
        "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3]),
    }


def _suggest_dqn(trial: Any, kind: Kind) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 5e-5, 2e-3, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "gamma": 1.0 - trial.suggest_float("1 - gamma", 1e-3, 5e-2, log=True),
        "train_freq": trial.suggest_categorical("train_freq", [2, 4, 8]),
        "target_update_interval": trial.suggest_categorical(
            "target_update_interval", [500, 2_000, 8_000]
        ),
        "exploration_fraction": trial.suggest_float("exploration_fraction", 0.1, 0.6),
    }


def _train(run: Run) -> None:
    from synergy_gym.learning.sb3.training import train_sb3

    train_sb3(run, FAMILIES[run.plan.algorithm])


algorithm(
    "ppo",
    summary="proximal policy optimisation (stable-baselines3)",
    defaults={"engine": _PPO, "router": {**_PPO, "gamma": 0.997, "learning_rate": 3e-4}},
    suggest=_suggest_ppo,
    imitates=True,
)(_train)
algorithm(
    "maskable-ppo",
    summary="PPO that is told which actions are legal (sb3-contrib)",
    defaults={"engine": _PPO, "router": {**_PPO, "gamma": 0.997, "learning_rate": 3e-4}},
    suggest=_suggest_ppo,
    imitates=True,
)(_train)
algorithm(
    "dqn",
    summary="deep Q-learning over flat actions (stable-baselines3)",
    defaults={"engine": _DQN, "router": {**_DQN, "gamma": 0.997}},
    suggest=_suggest_dqn,
)(_train)
algorithm(
    "qr-dqn",
    summary="Q-learning of the distribution of returns (sb3-contrib)",
    defaults={
        "engine": {**_DQN, "policy_kwargs": {"n_quantiles": 32}},
        "router": {**_DQN, "gamma": 0.997, "policy_kwargs": {"n_quantiles": 32}},
    },
    suggest=_suggest_dqn,
)(_train)
