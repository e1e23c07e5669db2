"""Proximal policy optimisation of a router that works in front of any number of engines.

    .venv/bin/python -m experiments.agents.ppo_router --out runs/router-ppo-v1

One file from the traffic to the agent. A small network scores every engine with the same
weights: h_i = relu(W1 [block_i, request]), g = mean of h over the engines that are up,
z_i = relu(W2 [h_i, g]), score_i = w3 z_i. Permuting the engines permutes the scores, and a
cluster may have any size. Engines that are down are masked.

1. Imitation: the network learns to copy prism-plus on the states that it visits itself (DAgger;
   Ross et al., AISTATS 2011). The teacher is softened, so that its second choices are tried.
2. PPO (Schulman et al., 2017) on the environment's own reward, 1 per request that meets its
   objectives. Horizon and trace of the generalized advantages are given in seconds and turned
   into a discount per request by the world's arrival rate: discounting by the clock would
   make the random number of arrivals part of the return. The critic has a network of its own,
   which also knows that rate, and learns from the last few rollouts. Several replicas meet the
   same traffic, and an advantage is taken relative to the others' at the same request: traffic
   is most of the noise (Mao et al., ICLR 2019, input-dependent baselines).

Single updates are noisy, so the agent is a moving average of the actor's weights (Polyak and
Juditsky, 1992). Every episode is another world (`router_worlds.py`): cluster, load, objectives and
a train seed are drawn anew. The agent of the best score on validation seeds is kept. Writes
`agent.npz`, `curve.csv`, `curve.png` and `manifest.json` to `--out`; an interrupted run keeps what
it has.
"""

from __future__ import annotations

import argparse
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from experiments import common
from experiments.studies.router_worlds import (
    NUM_RATE_FEATURES,
    OTHERS,
    PLAIN,
    Batch,
    Cluster,
    Worlds,
    empty_batch,
)
from synergy_gym.cli.output import note
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.features import NUM_REQUEST_FEATURES
from synergy_gym.policies.agent_file import FORMAT, Agent, save_agent
from synergy_gym.policies.forecast import BLOCK_SLOTS, NUM_BLOCK_FEATURES, REGRET_SCALE
from synergy_gym.policies.learned import FORECAST_FEATURES
from synergy_gym.scenario import load_scenario

REGRET = [slot.name for slot in BLOCK_SLOTS].index("forecast.regret")


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides the code.

    Attributes:
        horizon_s: time constant of the discount.
        trace_s: time constant of the generalized advantage estimate.
        critic_memory: rollouts that the critic learns from.
        critic_epochs: passes over them per iteration.
        near: regret (in expected misses) at which the softened teacher hesitates.
        tail: how fast the teacher's probability falls beyond it.
        replicas: environments that meet the same traffic; divides `envs`.
        average: share of the averaged weights that an iteration keeps.
    """

    seed: int = 1
    envs: int = 48
    replicas: int = 4
    steps: int = 240
    imitation_iterations: int = 10
    iterations: int = 240
    minibatch: int = 1024
    epochs: int = 3
    critic_epochs: int = 2
    critic_memory: int = 4
    hidden: int = 48
    learning_rate: float = 1.6e-3
    clip: float = 0.2
    max_grad_norm: float = 0.5
    horizon_s: float = 15.0
    trace_s: float = 3.0
    average: float = 0.97
    near: float = 0.03
    tail: float = 1.7


# ---- networks --------------------------------------------------------------------------------


class SharedBody(nn.Module):
    """z_i of every engine: (batch, engines, hidden)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first = orthogonal(nn.Linear(inputs, hidden), 2**0.5)
        self.second = orthogonal(nn.Linear(2 * hidden, hidden), 2**0.5)

    def forward(self, blocks: torch.Tensor, common: torch.Tensor, mask: torch.Tensor) -> Any:
        engines = blocks.shape[1]
        shared = common.unsqueeze(1).expand(-1, engines, -1)
        h = torch.relu(self.first(torch.cat([blocks, shared], 2)))
        up = mask.unsqueeze(2).float()
        g = (h * up).sum(1) / up.sum(1).clamp(min=1.0)
        return torch.relu(self.second(torch.cat([h, g.unsqueeze(1).expand_as(h)], 2)))


class Network(nn.Module):
    """Actor (a score per engine) and critic (share of the arrivals ahead that will be on time)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        inputs = NUM_BLOCK_FEATURES + NUM_REQUEST_FEATURES
        self.actor = SharedBody(inputs, hidden)
        self.score = orthogonal(nn.Linear(hidden, 1, bias=False), 0.01)
        self.critic = SharedBody(inputs + NUM_RATE_FEATURES, hidden)
        self.value = orthogonal(nn.Linear(hidden, 1), 1.0)

    def actors(self) -> list[nn.Parameter]:
        return [*self.actor.parameters(), *self.score.parameters()]

    def critics(self) -> list[nn.Parameter]:
        return [*self.critic.parameters(), *self.value.parameters()]

    def logits(self, request: Any, blocks: Any, mask: Any) -> torch.Tensor:
        scores = self.score(self.actor(blocks, request, mask)).squeeze(2)
        return scores.masked_fill(~mask, -1e9)

    def values(self, request: Any, blocks: Any, mask: Any, rate: Any) -> torch.Tensor:
        z = self.critic(blocks, torch.cat([request, rate], 1), mask)
        up = mask.unsqueeze(2).float()
        return self.value((z * up).sum(1) / up.sum(1).clamp(min=1.0)).squeeze(1)


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def teacher_probabilities(blocks: torch.Tensor, mask: torch.Tensor, settings: Settings) -> Any:
    """prism-plus, softened: an engine's share falls with a power of its regret."""
    feature = blocks[..., REGRET].clamp(max=1.0 - 1e-6)
    regret = REGRET_SCALE * feature / (1.0 - feature)
    weight = (1.0 + regret / settings.near).pow(-settings.tail) * mask
    return weight / weight.sum(-1, keepdim=True)


# ---- learning --------------------------------------------------------------------------------


@dataclass
class Rollout:
    """What N environments did for T steps; everything is (T, N, ...)."""

    batch: Batch
    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray


def relative_to_replicas(advantages: np.ndarray, replicas: int) -> np.ndarray:
    """(T, N) less the mean of the other environments of the same group."""
    if replicas == 1:
        return advantages
    groups = advantages.reshape(len(advantages), -1, replicas)
    others = (groups.sum(2, keepdims=True) - groups) / (replicas - 1)
    return (groups - others).reshape(advantages.shape)


class Learner:
    """Collects rollouts and updates the agent."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        torch.manual_seed(settings.seed)
        self.rng = np.random.default_rng(settings.seed)
        groups = range(settings.envs // settings.replicas)
        traffic = [g for g in groups for _ in range(settings.replicas)]
        worlds = [Worlds(np.random.default_rng([settings.seed, g])) for g in traffic]
        self.engines = max(8, *(len(s.engines) for s in worlds[0].others))
        self.clusters = [Cluster(source) for source in worlds]
        self.network = Network(settings.hidden)
        self.averaged = Network(settings.hidden)
        self.optimizer = torch.optim.Adam(self.network.actors(), settings.learning_rate, eps=1e-5)
        self.critic_optimizer = torch.optim.Adam(self.network.critics(), 1e-3, eps=1e-5)
        self.memory: deque[list[torch.Tensor]] = deque(maxlen=settings.critic_memory)
        self.iteration = 0

    @property
    def imitates(self) -> bool:
        return self.iteration < self.settings.imitation_iterations

    def run_iteration(self) -> dict[str, float]:
        """Collect, learn, and report."""
        rollout = self.collect()
        self._anneal()
        losses = self.update(rollout)
        self._average()
        self.iteration += 1
        ended = [item for cluster in self.clusters for item in cluster.finished]
        for cluster in self.clusters:
            cluster.finished.clear()
        share = float(np.mean([share for _, share in ended])) if ended else float("nan")
        return {"iteration": self.iteration, "train_attainment": share, **losses}

    @torch.no_grad()
    def _average(self) -> None:
        keep = 0.0 if self.imitates else self.settings.average
        actors = zip(self.averaged.actors(), self.network.actors(), strict=True)
        for mean, now in actors:
            mean.mul_(keep).add_(now, alpha=1.0 - keep)

    def _anneal(self) -> None:
        ppo = self.iteration - self.settings.imitation_iterations
        left = 1.0 - max(ppo, 0) / max(self.settings.iterations, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * (1.0 if ppo < 0 else 0.5 * left + 0.02)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Play T steps in every environment; advantages are in requests."""
        s, n = self.settings, len(self.clusters)
        batch = empty_batch((s.steps + 1, n), self.engines)
        actions = np.zeros((s.steps, n), np.int64)
        log_probs = np.zeros((s.steps, n), np.float32)
        values = np.zeros((s.steps + 1, n), np.float32)
        rewards, ended = (np.zeros((s.steps, n), np.float32) for _ in range(2))
        rates = np.zeros((s.steps + 1, n), np.float32)
        for t in range(s.steps + 1):
            now = Batch(batch.request[t], batch.blocks[t], batch.mask[t], batch.rate[t])
            for i, cluster in enumerate(self.clusters):
                cluster.write(now, i)
                rates[t, i] = cluster.world.rate_rps
            request, blocks, mask, rate = tensors(now)
            values[t] = self.network.values(request, blocks, mask, rate).numpy()
            if t == s.steps:
                break
            if self.imitates and self.iteration == 0:
                probabilities = teacher_probabilities(blocks, mask, s)
            else:
                probabilities = torch.softmax(self.network.logits(request, blocks, mask), 1)
            p = probabilities.numpy().astype(np.float64)
            drawn = self.rng.random((n, 1)) * p.sum(1, keepdims=True)
            actions[t] = (p.cumsum(1) < drawn).sum(1)
            log_probs[t] = np.log(p[np.arange(n), actions[t]])
            for i, cluster in enumerate(self.clusters):
                rewards[t, i], ended[t, i] = cluster.step(int(actions[t, i]))
        kept = Batch(batch.request[:-1], batch.blocks[:-1], batch.mask[:-1], batch.rate[:-1])
        advantages = self._advantages(rewards, ended, values, rates)
        returns = values[:-1] + advantages / (rates[:-1] * s.horizon_s)
        relative = relative_to_replicas(advantages, s.replicas)
        return Rollout(kept, actions, log_probs, values[:-1], relative, returns)

    def _advantages(self, rewards: Any, ended: Any, shares: Any, rates: Any) -> np.ndarray:
        """Generalized advantages in requests; the critic's share is of a horizon's arrivals."""
        s = self.settings
        result = np.zeros_like(rewards)
        running = np.zeros(rewards.shape[1], np.float32)
        for t in reversed(range(len(rewards))):
            ahead = rates[t] * s.horizon_s
            discount = (1.0 - 1.0 / ahead) * (1.0 - ended[t])
            trace = 1.0 - 1.0 / np.maximum(rates[t] * s.trace_s, 1.0)
            delta = rewards[t] + ahead * (discount * shares[t + 1] - shares[t])
            running = delta + discount * trace * running
            result[t] = running
        return result

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Some epochs of minibatches; the average losses."""
        s = self.settings
        flat = [torch.as_tensor(a.reshape(-1, *a.shape[2:])) for a in _arrays(rollout)]
        self.memory.append([flat[i] for i in (0, 1, 2, 3, 7)])
        spread = rollout.returns.var() + 1e-8
        report = {
            "explained": float(1.0 - (rollout.returns - rollout.values).var() / spread),
            "advantage_std": float(rollout.advantages.std()),
            "value": self._learn_values(),
        }
        parts = [
            self._learn_actor(*(array[part] for array in flat[:3]), *(a[part] for a in flat[4:7]))
            for _ in range(s.epochs)
            for part in self._parts(len(flat[0]))
        ]
        return report | {name: float(np.mean([p[name] for p in parts])) for name in parts[0]}

    def _parts(self, size: int) -> Sequence[torch.Tensor]:
        order = torch.as_tensor(self.rng.permutation(size))
        return order.split(self.settings.minibatch)

    def _learn_values(self) -> float:
        losses = []
        arrays = [torch.cat(column) for column in zip(*self.memory, strict=True)]
        for _ in range(self.settings.critic_epochs):
            for part in self._parts(len(arrays[0])):
                request, blocks, mask, rate, returns = (array[part] for array in arrays)
                loss = (self.network.values(request, blocks, mask, rate) - returns).square().mean()
                self._descend(self.critic_optimizer, loss, self.network.critics())
                losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _learn_actor(
        self, request: Any, blocks: Any, mask: Any, actions: Any, old: Any, advantages: Any
    ) -> dict[str, float]:
        s = self.settings
        logits = self.network.logits(request, blocks, mask)
        log_p = torch.log_softmax(logits, 1)
        target = teacher_probabilities(blocks, mask, s)
        entropy = -(log_p.exp() * log_p * mask).sum(1).mean()
        log_ratio = log_p.gather(1, actions.unsqueeze(1)).squeeze(1) - old
        ratio = log_ratio.exp()
        if self.imitates:
            loss = -(target * log_p * mask).sum(1).mean()
        else:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            clipped = ratio.clamp(1.0 - s.clip, 1.0 + s.clip)
            loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        self._descend(self.optimizer, loss, self.network.actors())
        agrees = (logits.argmax(1) == target.argmax(1)).float().mean()
        kl = ((ratio - 1.0) - log_ratio).mean()
        named = {"actor": loss, "kl": kl, "entropy": entropy, "agrees": agrees}
        return {name: float(value.detach()) for name, value in named.items()}

    def _descend(self, optimizer: Any, loss: torch.Tensor, parameters: Any) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        optimizer.step()


def _arrays(rollout: Rollout) -> list[np.ndarray]:
    batch = rollout.batch
    observed = [batch.request, batch.blocks, batch.mask, batch.rate]
    return [*observed, rollout.actions, rollout.log_probs, rollout.advantages, rollout.returns]


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    arrays = (batch.request, batch.blocks, batch.mask, batch.rate)
    return tuple(torch.as_tensor(array) for array in arrays)


# ---- export, validation, files ---------------------------------------------------------------

VALIDATION = (
    ("flowgpt-8xh100", 1.0),
    ("flowgpt-8xh100", 1.2),
    ("flowgpt-8xh100-llama8b", 1.0),
    ("flowgpt-8xh100-llama8b", 1.2),
)


def exported(network: Network, name: str, training: dict[str, Any]) -> Agent:
    """The actor as an agent file holds it."""
    linear = [network.actor.first, network.actor.second, network.score]
    arrays = {}
    for i, layer in enumerate(linear):
        arrays[f"w{i}"] = layer.weight.detach().numpy().astype(np.float32)
        bias = layer.bias if layer.bias is not None else torch.zeros(len(layer.weight))
        arrays[f"b{i}"] = bias.detach().numpy().astype(np.float32)
    meta = {
        "format": FORMAT, "kind": "router", "name": name, "network": "scorer",
        "activation": "relu", "features": FORECAST_FEATURES, "frames": 1, "interval_s": 0.0,
        "head": "discrete", "training": training,
    }  # fmt: skip
    return Agent(meta, arrays)


def validated(router: str, cells: Sequence[tuple[str, float]], seeds: int) -> float:
    """Mean SLO attainment of a router on validation seeds."""
    shares = [
        evaluate(scenario, "vllm-v1", router, load, seed, record_itl=False)
        .summary["slo_attainment"]
        for name, load in cells
        for scenario in [load_scenario(name)]
        for seed in scenario.validation_seeds[:seeds]
    ]  # fmt: skip
    return float(np.mean(shares))


class Run:
    """A training run and the files that it leaves."""

    def __init__(self, out: Path, settings: Settings, every: int, seeds: int) -> None:
        self.out, self.settings, self.every, self.seeds = out, settings, every, seeds
        self.learner = Learner(settings)
        self.rows: list[dict[str, float]] = []
        self.best = -1.0
        out.mkdir(parents=True, exist_ok=True)

    def train(self) -> None:
        """All iterations; what was reached is on disk after each validation."""
        settings = self.settings
        total = settings.imitation_iterations + settings.iterations
        while self.learner.iteration < total:
            row = self.learner.run_iteration()
            now = self.learner.iteration
            if now % self.every == 0 or now in (settings.imitation_iterations, total):
                row["validation"] = self._validate()
            self.rows.append(row)
            note("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
            if "validation" in row:
                self._write()

    def _validate(self) -> float:
        file = self.out / f"agent-{self.learner.iteration}.npz"
        training = {"command": common.command_line(), **asdict(self.settings)}
        training["iteration"] = self.learner.iteration
        training["decisions"] = self.learner.iteration * self.settings.envs * self.settings.steps
        save_agent(file, exported(self.learner.averaged, self.out.name, training))
        score = validated(f"agent:{file}", VALIDATION, self.seeds)
        if score > self.best:
            self.best = score
            shutil.copyfile(file, self.out / "agent.npz")
        return score

    def _write(self) -> None:
        frame = pd.DataFrame(self.rows)
        common.write_csv(frame, self.out / "curve.csv")
        chart, panels = common.figure(1, 2)
        decisions = frame["iteration"] * self.settings.envs * self.settings.steps / 1e6
        for panel, column in zip(panels[0], ("validation", "explained"), strict=True):
            known = frame[column].notna()
            panel.plot(decisions[known], frame[column][known], marker=".")
            panel.set(xlabel="million decisions", ylabel=column)
        common.save(chart, self.out / "curve.png")
        scenarios = [load_scenario(name) for name in (*PLAIN, *OTHERS)]
        policies = ["prism-plus", f"agent:{self.out / 'agent.npz'}"]
        settings = {"settings": asdict(self.settings), "best_validation": self.best}
        common.write_manifest(self.out, scenarios, ["vllm-v1"], policies, **settings)


def main() -> None:
    """Train, and compare with the teacher on the validation seeds."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("runs/router-ppo"))
    options.add_argument("--validate-every", type=int, default=20, help="iterations")
    options.add_argument("--validation-seeds", type=int, default=2)
    for field in fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        options.add_argument(flag, type=type(field.default), default=field.default)
    given = vars(options.parse_args())
    settings = Settings(**{field.name: given[field.name] for field in fields(Settings)})
    torch.set_num_threads(1)
    run = Run(given["out"], settings, given["validate_every"], given["validation_seeds"])
    run.train()
    teacher = validated("prism-plus", VALIDATION, given["validation_seeds"])
    print(f"validation: prism-plus {teacher:.4f}, agent {run.best:.4f} ({run.out / 'agent.npz'})")


if __name__ == "__main__":
    main()
