"""The authors' DQN: exported exactly, repeatable, resumable, and able to learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.learning.run import Quiet
from synergy_gym.policies.agent_file import load_agent
from synergy_gym.policies.authors_state import AUTHORS_GRID
from synergy_gym.policies.networks import network

pytest.importorskip("torch", reason="extra rl")
pytest.importorskip("stable_baselines3", reason="extra rl")

FILES = ("agent.npz", "last.npz", "curve.csv")


def small_plan(**changes: Any) -> TrainingPlan:
    """Two rounds of 150 steps on a scenario of 20 seconds."""
    from synergy_gym.learning.algorithms import find_algorithm

    values: dict[str, Any] = {
        **find_algorithm("dqn-authors", "engine").fixed,
        "kind": "engine",
        "algorithm": "dqn-authors",
        "name": "small",
        "scenarios": ("smoke",),
        "loads": (1.0,),
        "timesteps": 300,
        "eval_every": 150,
        "eval_loads": (1.2,),
        "eval_seeds": 1,
        "hyper": {"batch_size": 16, "buffer_size": 100},
    }
    return TrainingPlan(**{**values, **changes})


def trained(plan: TrainingPlan, folder: Path, **options: Any) -> dict[str, bytes]:
    from synergy_gym.learning.training import train

    train(plan, folder, **options)
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one training in a piece."""
    return trained(small_plan(), tmp_path_factory.mktemp("whole"))


def test_the_same_plan_gives_the_same_files(whole: dict[str, bytes], tmp_path: Path) -> None:
    assert trained(small_plan(), tmp_path / "b") == whole
    other = trained(small_plan(seed=7), tmp_path / "c")
    assert other["last.npz"] != whole["last.npz"]


class Interrupting(Quiet):
    """Presses Ctrl-C at the last evaluation, before its checkpoint is complete."""

    def evaluated(self, timesteps: int, score: float) -> None:
        if timesteps == 300:
            raise KeyboardInterrupt


def test_a_resumed_run_equals_one_in_a_piece(whole: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(small_plan(), tmp_path, reporter=Interrupting())
    assert trained(small_plan(), tmp_path, resume=True) == whole


def learner(**settings: Any) -> Any:
    from synergy_gym.learning.authors_dqn.network import AuthorsDqn, AuthorsSettings

    return AuthorsDqn(AuthorsSettings(**settings), seed=3)


def random_states(rng: np.random.Generator, count: int) -> Any:
    states = rng.normal(0, 1, (count, 70)).astype(np.float32)
    states[:, 50:] = rng.random((count, 20)) < 0.5
    return states


def test_the_exported_agent_has_the_learners_values(rng: np.random.Generator) -> None:
    import torch as th

    made, states = learner(), random_states(rng, 40)
    run = network(made.agent("x", {}))
    with th.no_grad():
        expected = made.network(th.from_numpy(states)).numpy()
    np.testing.assert_allclose([run(row) for row in states], expected, rtol=0, atol=1e-5)
    assert sum(array.size for array in made.arrays().values()) == 77_830


def test_it_learns_which_budget_pays(rng: np.random.Generator) -> None:
    made = learner(batch_size=32, buffer_size=512, gamma=0.0, learning_rate=1e-3, sync_updates=10)
    states = random_states(rng, 512)
    for state in states:
        action = int(rng.integers(4))
        best = 3 if state[0] > 0 else 1
        made.replay.add(state, action, float(action == best), state)
    for _ in range(400):
        made.learn()
    run = network(made.agent("x", {}))
    right = [run(s).argmax() == (3 if s[0] > 0 else 1) for s in states[:200]]
    assert np.mean(right) > 0.9
    assert made.loss < 0.1


def test_updates_follow_the_published_rules() -> None:
    made = learner(batch_size=4, buffer_size=8, sync_updates=2)
    assert made.settings.epsilon_after(0) == 0.2
    assert made.settings.epsilon_after(5000) == pytest.approx(0.15)
    assert made.settings.epsilon_after(10**6) == 0.1
    state = np.ones(70, np.float32)
    for number in range(3):
        made.replay.add(state, number, 1.0, state)
        made.learn()
    assert made.updates == 0, "no batch yet"
    start = made.target.dense[0].bias.detach().clone()
    for number in range(10):
        made.replay.add(state, number % 4, 1.0, state)
    assert (made.replay.size, made.replay.next) == (8, 5)
    made.learn()
    assert made.target.dense[0].bias.equal(start)
    made.learn()
    assert not made.target.dense[0].bias.equal(start)
    assert made.target.dense[0].bias.equal(made.network.dense[0].bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval_s": 0.1}, "trains with interval_s=0.0 only, not 0.1; leave that option out"),
        ({"hyper": {"lr": 1}}, "dqn-authors has no argument 'lr'; --hyper takes learning_rate"),
        ({"kind": "router", "scenarios": ("smoke-cluster",)}, "does not train agents of kind"),
    ],
)
def test_what_it_cannot_do_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(small_plan(**changes), tmp_path)


def test_the_agent_is_played_with_its_own_grid(whole: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(whole["last.npz"])
    agent = load_agent(tmp_path / "a.npz", "engine")
    assert agent.meta["grid"] == AUTHORS_GRID.to_dict()
    assert agent.meta["training"]["timesteps"] == 300
    plan = TrainingPlan.from_dict(agent.meta["training"]["plan"])
    assert replace(plan, timesteps=300) == small_plan()
