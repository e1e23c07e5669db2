"""The reward `lost`: equal to what the episode says, and with nothing to pay where all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.learning.training import train
from tests.learning.conftest import PPO, small_plan


def _played(plan: TrainingPlan, seed: int, action: list[int]) -> list[tuple[float, Any]]:
    """(sum of rewards, figures) of one episode per environment, an action all along."""
    from synergy_gym.learning.sb3.env import make_training_env

    env = make_training_env(plan, flat=False, masks=False)
    env.seed(seed)
    env.reset()
    sums, found = np.zeros(env.num_envs), {}
    actions = np.tile(action, (env.num_envs, 1))
    while len(found) < env.num_envs:
        _, rewards, dones, infos = env.step(actions)
        for i in range(env.num_envs):
            if i not in found:
                sums[i] += rewards[i]
                if dones[i]:
                    found[i] = infos[i]["episode_metrics"]
    env.close()
    return [(float(sums[i]), found[i]) for i in range(len(sums))]


def test_training_waits_for_the_compiled_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain one, which plays while that is compiled, has no memory to look into."""
    from synergy_gym.learning.sb3 import env as sb3_env

    order: list[str] = []

    def made(plan: TrainingPlan, group: sb3_env.Group) -> Any:
        order.append("environments")
        return sb3_env.native_envs(plan, group)

    monkeypatch.setattr(sb3_env, "load", lambda: order.append("load"))
    sb3_env.make_training_env(small_plan(reward="lost"), flat=False, masks=False, source=made)
    assert order == ["load", "environments"]


@pytest.mark.parametrize("load", [0.2, 3.0])
def test_the_return_is_what_was_lost(load: float, seed: int) -> None:
    plan = small_plan(reward="lost", loads=(load,), episode_s=20.0)
    for total, metrics in _played(plan, seed, [4, 4, 0, 0]):
        lost = 1.0 - metrics["slo_attainment"]
        # The first arrival is counted before the first step; a mean request lasts 20 s / offered.
        assert total == pytest.approx(-20.0 * lost, abs=20.0 / metrics["offered"] + 1e-3)


def test_both_rewards_rank_alike(seed: int) -> None:
    plan = small_plan(reward="lost", loads=(2.0,), episode_s=20.0)
    starved, served = (_played(plan, seed, action) for action in ([1, 0, 0, 0], [5, 4, 1, 1]))
    for (low, bad), (high, good) in zip(starved, served, strict=True):
        assert bad["slo_attainment"] < good["slo_attainment"]
        assert low < high


def test_routers_and_shaping_are_refused() -> None:
    with pytest.raises(ValueError, match="for engines and without shaping"):
        small_plan("router", reward="lost")
    with pytest.raises(ValueError, match="for engines and without shaping"):
        small_plan(reward="lost", shaping="backlog")
    with pytest.raises(ValueError, match="reward='won' is unknown"):
        small_plan(reward="won")


def test_the_learning_rate_falls_to_its_end(tmp_path: Path) -> None:
    from stable_baselines3 import PPO as Ppo

    hyper = {**PPO, "learning_rate": 1e-3, "final_learning_rate": 1e-4}
    train(small_plan(reward="lost", hyper=hyper), tmp_path)
    model = Ppo.load(tmp_path / "checkpoint" / "model.zip", device="cpu")
    assert model.lr_schedule(1.0) == pytest.approx(1e-3)
    assert model.lr_schedule(0.0) == pytest.approx(1e-4)
