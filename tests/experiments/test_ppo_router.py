"""The single-file PPO: worlds, permutations, export, and the same weights from the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.features import NUM_REQUEST_FEATURES
from synergy_gym.policies.forecast import NUM_BLOCK_FEATURES
from synergy_gym.policies.networks import network
from synergy_gym.scenario import load_scenario

torch = pytest.importorskip("torch")

from experiments.agents import ppo_router as ppo  # noqa: E402
from experiments.studies import router_worlds as worlds  # noqa: E402

TINY = ppo.Settings(
    seed=3,
    envs=4,
    replicas=2,
    steps=24,
    imitation_iterations=1,
    iterations=1,
    hidden=8,
    minibatch=16,
)


class SmallWorlds(worlds.Worlds):
    """Only the smoke test's cluster."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.others = [load_scenario("smoke-cluster")]

    def draw(self) -> worlds.World:
        return worlds.World(self.others[0], 1.0, int(self.rng.integers(100)))


def batch(rng: np.random.Generator, rows: int = 3, engines: int = 5) -> Any:
    made = ppo.empty_batch((rows,), engines)
    made.request[:] = rng.random(made.request.shape)
    made.blocks[:] = rng.random(made.blocks.shape)
    made.mask[:] = True
    made.mask[1, 3:] = False
    return made


def test_worlds_hold_out_what_they_say(rng: np.random.Generator) -> None:
    source = worlds.Worlds(rng)
    drawn = [source.draw() for _ in range(60)]
    sizes = {len(world.scenario.engines) for world in drawn}
    assert sizes <= set(worlds.SIZES)
    assert 4 not in sizes
    assert len(sizes) > 3
    assert all(0.6 < world.load < 1.5 for world in drawn)
    assert all(world.seed in world.scenario.train_seeds for world in drawn)
    assert not any("long-context" in world.scenario.name for world in drawn)


def untrained(rng: np.random.Generator) -> Any:
    """A network whose weights follow from the printed seed."""
    torch.manual_seed(int(rng.integers(1 << 32)))
    return ppo.Network(8)


def wide(given: Any) -> list[Any]:
    """The tensors of a batch in double precision, where rounding is far below all tolerances."""
    return [x if x.dtype == torch.bool else x.double() for x in ppo.tensors(given)]


def test_permuting_engines_permutes_scores(rng: np.random.Generator) -> None:
    made = untrained(rng).double()
    request, blocks, mask, rate = wide(batch(rng))
    order = torch.as_tensor(rng.permutation(5))
    with torch.no_grad():
        plain = made.logits(request, blocks, mask)
        moved = made.logits(request, blocks[:, order], mask[:, order])
        values = made.values(request, blocks, mask, rate)
        assert torch.allclose(made.values(request, blocks[:, order], mask[:, order], rate), values)
    assert torch.allclose(plain[:, order], moved)
    assert int(plain[1].argmax()) < 3


def test_the_exported_agent_scores_like_the_network(rng: np.random.Generator) -> None:
    made = untrained(rng)
    agent = ppo.exported(made, "x", {})
    given = batch(rng)
    with torch.no_grad():
        expected = made.double().logits(*wide(given)[:3]).numpy()
    rows = np.repeat(given.request[:, None], 5, axis=1)
    for i in range(3):
        x = np.concatenate([given.blocks[i], rows[i]], axis=1)
        assert x.shape[1] == NUM_BLOCK_FEATURES + NUM_REQUEST_FEATURES
        scores = network(agent)(x, given.mask[i])
        up = given.mask[i]
        assert scores[up] == pytest.approx(expected[i][up], abs=1e-6)
        assert np.isneginf(scores[~up]).all()


def test_the_teacher_is_prism_plus_softened(rng: np.random.Generator) -> None:
    _, blocks, mask, _ = ppo.tensors(batch(rng))
    blocks[:, 2, ppo.REGRET] = 0.0
    shares = ppo.teacher_probabilities(blocks, mask, TINY)
    assert (shares.argmax(1) == 2).all()
    assert torch.allclose(shares.sum(1), torch.ones(3))
    assert not shares[~mask].any()


def test_advantages_are_td_errors_summed() -> None:
    learner = object.__new__(ppo.Learner)
    learner.settings = ppo.Settings(horizon_s=10.0, trace_s=2.0)
    rewards = np.array([[1.0], [0.0], [2.0]], np.float32)
    ended = np.array([[0.0], [1.0], [0.0]], np.float32)
    shares = np.array([[0.5], [0.4], [0.3], [0.2]], np.float32)
    rates = np.full((4, 1), 2.0, np.float32)
    result = learner._advantages(rewards, ended, shares, rates)[:, 0]
    ahead, discount, trace = 20.0, 0.95, 0.75
    last = 2.0 + ahead * (discount * 0.2 - 0.3)
    middle = 0.0 - ahead * 0.4
    first = 1.0 + ahead * (discount * 0.4 - 0.5) + discount * trace * middle
    assert result == pytest.approx([first, middle, last], rel=1e-5)


def test_the_same_seed_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "Worlds", SmallWorlds)
    monkeypatch.setattr(ppo, "VALIDATION", (("smoke-cluster", 1.0),))
    files = []
    for name in ("one", "two"):
        run = ppo.Run(tmp_path / name / "agent", TINY, every=1, seeds=1)
        run.train()
        assert 0.0 <= run.best <= 1.0
        files.append((tmp_path / name / "agent" / "agent.npz").read_bytes())
        assert len((tmp_path / name / "agent" / "curve.csv").read_text().splitlines()) == 3
    assert files[0] == files[1]
