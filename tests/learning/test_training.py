"""Trainings of seconds: repeatable, resumable, exported exactly, with masks and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.learning.algorithms import algorithms, find_algorithm
from synergy_gym.learning.plan import TrainingPlan
from synergy_gym.learning.run import Quiet, Run, Stopped, read_csv
from synergy_gym.learning.training import train
from synergy_gym.policies.agent_file import load_agent
from synergy_gym.policies.learned import engine_rows
from synergy_gym.policies.networks import network
from tests.learning.conftest import small_plan

FILES = ("agent.npz", "last.npz", "curve.csv")
NAMES = ("ppo", "maskable-ppo", "dqn", "qr-dqn")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def trained(plan: TrainingPlan, folder: Path, **options: Any) -> dict[str, bytes]:
    train(plan, folder, **options)
    return contents(folder)


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("kind", ["engine", "router"])
def test_the_same_plan_gives_the_same_files(kind: str, algorithm: str, tmp_path: Path) -> None:
    plan = small_plan(kind, algorithm)
    first = trained(plan, tmp_path / "a")
    assert trained(plan, tmp_path / "b") == first
    assert algorithm != "ppo" or trained(replace(plan, seed=7), tmp_path / "c") != first
    curve = read_csv(tmp_path / "a" / "curve.csv")
    assert [int(row["timesteps"]) for row in curve] == [0, 128, 256]


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_a_resumed_run_equals_one_in_a_piece(algorithm: str, tmp_path: Path) -> None:
    plan = small_plan(algorithm=algorithm)
    whole = trained(plan, tmp_path / "whole")
    train(replace(plan, timesteps=128), tmp_path / "parts")
    assert trained(plan, tmp_path / "parts", resume=True) == whole


class Interrupting(Quiet):
    """Presses Ctrl-C at the second evaluation, before its checkpoint is complete."""

    def evaluated(self, timesteps: int, score: float) -> None:
        if timesteps:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path) -> None:
    plan = small_plan()
    whole = trained(plan, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "parts", reporter=Interrupting())
    assert load_agent(tmp_path / "parts" / "agent.npz").kind == "engine"
    assert (tmp_path / "parts" / "agent.md").is_file()
    assert trained(plan, tmp_path / "parts", resume=True) == whole


def test_a_lost_checkpoint_is_taken_back(tmp_path: Path) -> None:
    plan = small_plan()
    whole = trained(plan, tmp_path / "whole")
    train(replace(plan, timesteps=128), tmp_path / "parts")
    checkpoint = tmp_path / "parts" / "checkpoint"
    checkpoint.rename(checkpoint.with_suffix(".old"))  # interrupted between two renames
    assert trained(plan, tmp_path / "parts", resume=True) == whole


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    plan = small_plan()
    Run(plan, tmp_path)
    with pytest.raises(ValueError, match="add --resume"):
        Run(plan, tmp_path)
    with pytest.raises(ValueError, match="begun with seed=0"):
        Run(replace(plan, seed=1), tmp_path, resume=True)


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("kind", ["engine", "router"])
def test_the_exported_agent_is_the_trained_network(
    kind: str, algorithm: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    import torch as th

    from synergy_gym.learning.sb3.algorithms import FAMILIES
    from synergy_gym.learning.sb3.training import Trainer

    frames = 3 if kind == "engine" else 1
    trainer = Trainer(
        Run(small_plan(kind, algorithm, frames=frames), tmp_path), FAMILIES[algorithm]
    )
    agent, policy = trainer.agent(), trainer.model.policy
    forward = network(agent)
    size = trainer.env.observation_space.shape[0]
    for observation in rng.random((20, size), np.float32):
        if kind == "router":
            up = rng.random(3) < 0.7
            observation[10::21] = up
            ours = np.asarray(forward(engine_rows(observation), up))
        else:
            up = None
            ours = np.asarray(forward(observation))
        with th.no_grad():
            theirs = _torch_output(policy, th.as_tensor(observation[None]), algorithm)
        shown = slice(None) if up is None else up
        np.testing.assert_allclose(ours[shown], theirs[shown], rtol=1e-5, atol=1e-6)
    trainer.close()


def _torch_output(policy: Any, observation: Any, algorithm: str) -> Any:
    if algorithm == "dqn":
        return policy.q_net(observation)[0].numpy()
    if algorithm == "qr-dqn":
        return policy.quantile_net(observation)[0].mean(dim=0).numpy()
    latent = policy.mlp_extractor.forward_actor(policy.extract_features(observation))
    return policy.action_net(latent)[0].numpy()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("engine", {"frames": 2}),
        ("engine", {"vary": {"output_scale": (0.5, 2.0)}, "interval_s": 0.0}),
        ("router", {"scenarios": ("smoke-cluster", "hetero-3"), "shaping": "in-flight"}),
    ],
)
def test_native_and_single_environments_train_the_same_agent(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    from synergy_gym.learning.sb3.algorithms import FAMILIES
    from synergy_gym.learning.sb3.env import native_envs, single_envs
    from synergy_gym.learning.sb3.training import train_sb3

    found = []
    for name, source in (("native", native_envs), ("single", single_envs)):
        run = Run(small_plan(kind, **changes), tmp_path / name)
        train_sb3(run, FAMILIES["ppo"], source)
        found.append(contents(tmp_path / name))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("kind", "teacher", "least"), [("engine", "sarathi-512", 0.7), ("router", "least-kv", 0.5)]
)
def test_imitation_comes_near_its_teacher(
    kind: str, teacher: str, least: float, tmp_path: Path
) -> None:
    from synergy_gym.learning.imitation import demonstrate
    from synergy_gym.learning.sb3.algorithms import FAMILIES
    from synergy_gym.learning.sb3.training import Trainer

    plan = small_plan(kind, imitate=teacher, imitate_rounds=1, imitate_epochs=60)
    trainer = Trainer(Run(plan, tmp_path), FAMILIES["ppo"])
    trainer._prepare()
    found = demonstrate(plan, str(tmp_path / "last.npz"), 0)
    actions, _ = trainer.model.policy.predict(found.observations, deterministic=True)
    same = np.asarray(actions) == found.actions
    agreement = (same.all(axis=1) if same.ndim > 1 else same).mean()
    assert agreement > least  # of 180 cells, or of 3 engines with ties at random
    trainer.close()


def test_the_actor_rests_while_the_critic_learns(tmp_path: Path) -> None:
    plan = small_plan(imitate="sarathi-512", imitate_rounds=1, critic_steps=10_000)
    train(plan, tmp_path)
    first = load_agent(tmp_path / "agent.npz")
    last = load_agent(tmp_path / "last.npz")
    assert all(np.array_equal(first.arrays[name], last.arrays[name]) for name in first.arrays)


def test_a_clusters_size_and_order_do_not_matter(tmp_path: Path, rng: np.random.Generator) -> None:
    train(small_plan("router", scenarios=("smoke-cluster", "hetero-3")), tmp_path)
    agent = f"agent:{tmp_path / 'agent.npz'}"
    result = evaluate("flowgpt-8xh100", "vllm-v1", agent, 1.0, 2000, horizon_s=70.0)
    assert result.summary["offered"] > 0
    forward = network(load_agent(tmp_path / "agent.npz"))
    rows, order = rng.random((5, 31), np.float32), rng.permutation(5)
    np.testing.assert_allclose(forward(rows)[order], forward(rows[order]), rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["ppo", "maskable-ppo", "dqn"])
def test_training_on_a_cluster_that_loses_an_engine(algorithm: str, tmp_path: Path) -> None:
    text = Path("synergy_gym/scenarios/smoke-cluster.toml")
    root = Path(__file__).resolve().parents[2]
    scenario = tmp_path / "failing.toml"
    events = '\n[[events]]\nat_s = 3.0\nkind = "down"\nengine = "a100"\n'
    scenario.write_text((root / text).read_text() + events)
    plan = small_plan("router", algorithm, scenarios=(str(scenario),))
    run = train(plan, tmp_path / "run")
    assert run.progress.timesteps == 256
    assert ("rerouted" in run.progress.curve[-1]) == (algorithm != "maskable-ppo")


def test_patience_ends_a_run(tmp_path: Path) -> None:
    run = train(small_plan(timesteps=128 * 20, patience=1, hyper={"learning_rate": 0.0}), tmp_path)
    assert run.progress.timesteps < 128 * 20
    assert run.progress.stale == 1


def test_best_of_the_curve_is_the_agent(tmp_path: Path) -> None:
    run = train(small_plan(baselines=("vllm-v1",)), tmp_path, command="synergy-gym train engine")
    rows = run.progress.curve
    best = max(rows, key=lambda row: row["score"])
    agent = load_agent(run.agent_path)
    assert agent.meta["training"]["timesteps"] == best["timesteps"]
    result = evaluate("smoke", f"agent:{run.agent_path}", load=1.2, seed=2000)
    assert result.summary["slo_attainment"] == pytest.approx(run.progress.best, abs=1e-12)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["best_score"] == run.progress.best
    card = (tmp_path / "agent.md").read_text()
    assert "vllm-v1" in card
    assert "`synergy-gym train engine`" in card
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_algorithms_are_found_by_name() -> None:
    assert [found.name for found in algorithms() if found.name in NAMES] == sorted(NAMES)
    with pytest.raises(ValueError, match="unknown algorithm 'sarsa'; choose one of"):
        find_algorithm("sarsa", "engine")


def test_what_cannot_be_cloned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use --algo ppo"):
        train(small_plan(algorithm="dqn", imitate="lens-plus"), tmp_path)


def test_a_wrong_argument_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_stepz"):
        train(small_plan(hyper={"n_stepz": 3}), tmp_path)


def test_a_search_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="extra rl")
    from synergy_gym.learning.tuning import tune

    plan = small_plan(hyper={"n_epochs": 1})
    tune(plan, tmp_path, trials=1, timesteps=128)
    best = tune(plan, tmp_path, trials=2, timesteps=128)
    rows = read_csv(tmp_path / "tune" / "trials.csv")
    assert [row["trial"] for row in rows] == ["0", "1"]
    assert len({row["learning_rate"] for row in rows}) == 2
    assert tune(plan, tmp_path, trials=2, timesteps=128) == best  # nothing left to try
    assert set(best.hyper) > {"n_epochs", "learning_rate", "gamma"}


def test_a_reporter_can_stop_a_run(tmp_path: Path) -> None:
    class Impatient(Quiet):
        def evaluated(self, timesteps: int, score: float) -> None:
            raise Stopped

    with pytest.raises(Stopped):
        train(small_plan(), tmp_path, reporter=Impatient())
    assert load_agent(tmp_path / "agent.npz").kind == "engine"
