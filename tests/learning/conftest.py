"""What tests of training share: tiny plans, quick to train."""

from __future__ import annotations

from typing import Any

import pytest

from synergy_gym.learning.plan import TrainingPlan

pytest.importorskip("stable_baselines3", reason="extra rl")
pytest.importorskip("sb3_contrib", reason="extra rl")

PPO: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "n_epochs": 2}
DQN: dict[str, Any] = {"learning_starts": 64, "buffer_size": 512, "batch_size": 32}
QRDQN: dict[str, Any] = {**DQN, "policy_kwargs": {"n_quantiles": 4}}
HYPER = {"ppo": PPO, "maskable-ppo": PPO, "dqn": DQN, "qr-dqn": QRDQN}
SCENARIO = {"engine": "smoke", "router": "smoke-cluster"}


def small_plan(kind: str = "engine", algorithm: str = "ppo", **changes: Any) -> TrainingPlan:
    """Two rounds of 128 decisions on a scenario of 20 seconds."""
    values: dict[str, Any] = {
        "kind": kind,
        "algorithm": algorithm,
        "scenarios": (SCENARIO[kind],),
        "loads": (1.0, 1.3),
        "timesteps": 256,
        "num_envs": 4,
        "hidden": (16, 16),
        "eval_every": 128,
        "eval_loads": (1.2,),
        "eval_seeds": 1,
        "hyper": HYPER[algorithm],
    }
    return TrainingPlan(**{**values, **changes})
