"""The learner of SynergySched's authors' own RL scheduler: a DQN with attention (needs torch).

Network, loss and defaults are those of `vllm/v1/core/sched/rl` of YNewsoul/vllm, commit 1d03d1a
(e9f3ab4 before it had a discount of 0.99, copies every 100 updates and 1 % random budgets): two
encoders of 64-64, pooled by masked attention, beside the global numbers through 256-128 to one
value per budget; Adam, mean squared error on r + gamma * max Q_target(s'), gradients cut to norm 1.
Theirs learns in a thread beside the serving engine, so how many updates a step gets depends on the
machine; here it is a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch import nn

from synergy_gym.observation import Float32Array, ObservationLayout
from synergy_gym.policies.agent_file import FORMAT, Agent
from synergy_gym.policies.authors_state import AUTHORS_GRID, AUTHORS_GROUPS, GLOBALS, ROWS

ENCODED = 64
HIDDEN = (256, 128)
_SIZE = ObservationLayout(AUTHORS_GROUPS).size
_PARTS = [len(GLOBALS), 2 * ROWS, 2 * ROWS, ROWS, ROWS]
_OPTIMISER = "optimiser"


@dataclass(frozen=True, kw_only=True)
class AuthorsSettings:
    """Hyperparameters, with the authors' values.

    Attributes:
        learning_rate: of Adam.
        gamma: discount per step.
        batch_size: transitions per update.
        buffer_size: transitions that are remembered.
        clip_norm: largest norm of a gradient.
        epsilon: share of random budgets at the start; it falls by 1 in `epsilon_updates`.
        epsilon_updates: see `epsilon`.
        epsilon_min: smallest share of random budgets.
        sync_updates: updates between two copies to the target network.
        updates_per_step: updates per iteration of the engine.
    """

    learning_rate: float = 1e-4
    gamma: float = 0.9
    batch_size: int = 128
    buffer_size: int = 10_000
    clip_norm: float = 1.0
    epsilon: float = 0.2
    epsilon_updates: int = 100_000
    epsilon_min: float = 0.1
    sync_updates: int = 200
    updates_per_step: int = 1

    def epsilon_after(self, updates: int) -> float:
        """Share of random budgets after so many updates."""
        return max(self.epsilon - updates / self.epsilon_updates, self.epsilon_min)


class Queue(nn.Module):  # type: ignore[misc]
    """Encodes the requests of one queue and pools them by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, ENCODED), nn.Linear(ENCODED, ENCODED)
        self.score = nn.Linear(ENCODED, 1)

    def forward(self, flat: th.Tensor, there: th.Tensor) -> th.Tensor:
        """`(n, 20)` and a mask `(n, 10)` to `(n, 64)`; zeros for an empty queue."""
        rows = flat.reshape(len(flat), ROWS, 2)
        encoded = th.relu(self.second(th.relu(self.first(rows))))
        scores = self.score(encoded)[..., 0].masked_fill(there == 0, -1e9)
        weights = th.softmax(scores, dim=1) * there
        return (weights[..., None] * encoded).sum(dim=1)


class AttentionQ(nn.Module):  # type: ignore[misc]
    """Values of the four budgets."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.running = Queue(), Queue()
        sizes = (len(GLOBALS) + 2 * ENCODED, *HIDDEN, AUTHORS_GRID.shape[0])
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """`(n, 70)` to `(n, 4)`."""
        world, waiting, running, waits, runs = th.split(x, _PARTS, dim=1)
        h = th.cat([world, self.waiting(waiting, waits), self.running(running, runs)], dim=1)
        for layer in self.dense[:-1]:
            h = th.relu(layer(h))
        return self.dense[-1](h)


class ReplayBuffer:
    """The last transitions; there are no ends, serving never does.

    Attributes:
        arrays: by name, `size` rows of them in use.
        size: transitions that are held.
        next: where the next one goes.
    """

    def __init__(self, capacity: int) -> None:
        self.arrays: dict[str, np.ndarray[Any, Any]] = {
            "before": np.zeros((capacity, _SIZE), np.float32),
            "after": np.zeros((capacity, _SIZE), np.float32),
            "action": np.zeros(capacity, np.int64),
            "reward": np.zeros(capacity, np.float32),
        }
        self.size = self.next = 0

    def add(self, before: Float32Array, action: int, reward: float, after: Float32Array) -> None:
        """Remember a transition; the oldest one is forgotten when there is no room."""
        row = {"before": before, "action": action, "reward": reward, "after": after}
        for name, value in row.items():
            self.arrays[name][self.next] = value
        capacity = len(self.arrays["action"])
        self.next = (self.next + 1) % capacity
        self.size = min(self.size + 1, capacity)

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, th.Tensor]:
        """`count` different transitions."""
        rows = rng.choice(self.size, count, replace=False, shuffle=False)
        return {name: th.from_numpy(array[rows]) for name, array in self.arrays.items()}


class AuthorsDqn:
    """Chooses budgets, remembers what came of them, and learns.

    Args:
        settings: hyperparameters.
        seed: of weights, exploration and replay.

    Attributes:
        updates: how often the weights have changed.
        loss: of the last update; NaN before the first.
    """

    def __init__(self, settings: AuthorsSettings, seed: int) -> None:
        self.settings = settings
        self.rng = np.random.default_rng(seed)
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            self.network, self.target = AttentionQ(), AttentionQ()
        self.target.load_state_dict(self.network.state_dict())
        rate = settings.learning_rate
        self.optimiser = th.optim.Adam(self.network.parameters(), lr=rate)
        self.replay = ReplayBuffer(settings.buffer_size)
        self.updates = 0
        self.loss = float("nan")

    def act(self, observation: Float32Array) -> int:
        """A budget's index: random with probability epsilon, else the one of highest value."""
        if self.rng.random() < self.settings.epsilon_after(self.updates):
            return int(self.rng.integers(AUTHORS_GRID.shape[0]))
        with th.no_grad():
            return int(self.network(th.from_numpy(observation)[None]).argmax())

    def learn(self) -> None:
        """One update, as soon as there are enough transitions for a batch."""
        settings = self.settings
        if self.replay.size < settings.batch_size:
            return
        batch = self.replay.sample(settings.batch_size, self.rng)
        with th.no_grad():
            best = self.target(batch["after"]).max(dim=1).values
            wanted = batch["reward"] + settings.gamma * best
        values = self.network(batch["before"]).gather(1, batch["action"][:, None])[:, 0]
        loss = nn.functional.mse_loss(values, wanted)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self.optimiser.step()
        self.updates += 1
        self.loss = float(loss.detach())
        if self.updates % settings.sync_updates == 0:
            self.target.load_state_dict(self.network.state_dict())

    def arrays(self) -> dict[str, Float32Array]:
        """The weights as `policies.networks.Attention` names them."""
        layers = {f"{i}": layer for i, layer in enumerate(self.network.dense)}
        named = {("", i): layer for i, layer in layers.items()}
        for queue in ("waiting", "running"):
            pool = getattr(self.network, queue)
            named |= {(f"{queue}_", "0"): pool.first, (f"{queue}_", "1"): pool.second}
            named[f"{queue}_score_", "0"] = pool.score
        return {
            f"{prefix}{kind}{i}": parameter.detach().numpy().copy()
            for (prefix, i), layer in named.items()
            for kind, parameter in (("w", layer.weight), ("b", layer.bias))
        }

    def agent(self, name: str, training: dict[str, Any]) -> Agent:
        """The agent of these weights; it takes the budget of highest value."""
        meta = {
            "format": FORMAT,
            "kind": "engine",
            "name": name,
            "network": "attention",
            "activation": "relu",
            "observer": "authors",
            "rows": ROWS,
            "features": ObservationLayout(AUTHORS_GROUPS).names(),
            "frames": 1,
            "interval_s": 0.0,
            "head": "discrete",
            "grid": AUTHORS_GRID.to_dict(),
            "training": training,
        }
        return Agent(meta, self.arrays())

    def save(self, folder: Path) -> None:
        """Write everything that learning goes on from."""
        networks = {"network": self.network, "target": self.target, _OPTIMISER: self.optimiser}
        th.save({name: part.state_dict() for name, part in networks.items()}, folder / "dqn.pt")
        np.savez(folder / "replay.npz", allow_pickle=False, **self.replay.arrays)

    def state(self) -> dict[str, Any]:
        """What `save` leaves out, as JSON."""
        counts = {"size": self.replay.size, "next": self.replay.next, "updates": self.updates}
        return {**counts, "rng": self.rng.bit_generator.state}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from what `save` and `state` gave."""
        saved = th.load(folder / "dqn.pt", weights_only=True)
        for name, part in (("network", self.network), ("target", self.target)):
            part.load_state_dict(saved[name])
        self.optimiser.load_state_dict(saved[_OPTIMISER])
        with np.load(folder / "replay.npz", allow_pickle=False) as file:
            self.replay.arrays = {name: file[name] for name in self.replay.arrays}
        self.replay.size, self.replay.next = state["size"], state["next"]
        self.updates = state["updates"]
        self.rng.bit_generator.state = state["rng"]
