"""Behaviour cloning: fit the acting network to what was demonstrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from synergy_gym.learning.imitation import Demonstrations
from synergy_gym.types import IntArray

BATCH = 512
LEARNING_RATE = 1e-3
HELD_OUT = 0.1
"""Share of the pairs, the last of each recording order, that is not learned from."""


@dataclass(frozen=True)
class Cloned:
    """How well it went.

    Attributes:
        pairs: demonstrations in all.
        loss: mean negative log-likelihood of held-out actions.
        agreement: share of held-out observations with the same most likely action.
    """

    pairs: int
    loss: float
    agreement: float

    def __str__(self) -> str:
        return f"{self.pairs} pairs, held-out agreement {self.agreement:.3f}"


def clone(model: Any, found: Demonstrations, *, epochs: int, seed: int) -> Cloned:
    """Fit the actor of a PPO model to demonstrations, by maximum likelihood (Adam).

    Args:
        model: its policy has a distribution over actions.
        found: what is to be done.
        epochs: passes over the pairs.
        seed: of the order of the pairs; equal calls give equal weights.
    """
    rng = np.random.default_rng(seed)
    policy = model.policy
    policy.set_training_mode(True)
    order = rng.permutation(len(found.actions))
    held = order[: max(int(HELD_OUT * len(order)), 1)]
    learned = order[len(held) :]
    actor = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    optimizer = th.optim.Adam(actor, lr=LEARNING_RATE)
    for _ in range(epochs):
        shuffled = rng.permutation(learned)
        for start in range(0, len(shuffled), BATCH):
            loss = _loss(policy, found, shuffled[start : start + BATCH])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    policy.set_training_mode(False)
    with th.no_grad():
        loss = float(_loss(policy, found, held))
    return Cloned(len(order), loss, _agreement(policy, found, held))


def _loss(policy: Any, found: Demonstrations, chosen: IntArray) -> Any:
    observations = th.as_tensor(found.observations[chosen])
    actions = th.as_tensor(found.actions[chosen])
    return -policy.get_distribution(observations).log_prob(actions).mean()


def _agreement(policy: Any, found: Demonstrations, chosen: IntArray) -> float:
    actions, _ = policy.predict(found.observations[chosen], deterministic=True)
    same = np.asarray(actions) == found.actions[chosen]
    return float((same.all(axis=1) if same.ndim > 1 else same).mean())
