"""Training with stable-baselines3: rounds that can be repeated bit for bit.

A run is a sequence of rounds. Each begins with fresh environments and with every random
generator seeded from (seed, number of the round), and ends with an evaluation and a checkpoint. So
a run that was interrupted and resumed gives the same weights as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from synergy_gym.learning.algorithms import find_algorithm
from synergy_gym.learning.imitation import Demonstrations, demonstrate, inputs
from synergy_gym.learning.run import Run
from synergy_gym.learning.sb3.cloning import clone
from synergy_gym.learning.sb3.env import Rerouted, VectorSource, make_training_env
from synergy_gym.learning.sb3.export import describe_agent, make_agent
from synergy_gym.learning.sb3.policies import EngineRows, Normalised, set_normalisation
from synergy_gym.policies.agent_file import Agent, save_agent

if TYPE_CHECKING:
    from synergy_gym.learning.sb3.algorithms import Family

_MODEL, _REWARDS, _REPLAY = "model.zip", "rewards.pkl", "replay.pkl"


def train_sb3(run: Run, family: Family, source: VectorSource | None = None) -> None:
    """Carry out a run, from its beginning or from its checkpoint.

    Args:
        run: what is asked, and where it goes.
        family: how the algorithm is used.
        source: how environments are made; None: natively where that is possible.
    """
    th.set_num_threads(1)  # more are slower at these sizes, and sums would depend on them
    trainer = Trainer(run, family, source)
    try:
        trainer.go()
    finally:
        trainer.close()


class Trainer:
    """A model, its environments and the run that they belong to."""

    def __init__(self, run: Run, family: Family, source: VectorSource | None = None) -> None:
        self.run, self.family = run, family
        plan = run.plan
        self.hyper = find_algorithm(plan.algorithm, plan.kind).arguments(plan.kind, plan.hyper)
        given = {"source": source} if source is not None else {}
        inner = make_training_env(plan, flat=family.flat, masks=family.masks, **given)
        self._rerouted = inner if isinstance(inner, Rerouted) else None
        gamma = float(self.hyper.get("gamma", 0.99))
        self.env = VecNormalize(VecMonitor(inner), norm_obs=False, gamma=gamma)
        self.model = self._model()
        self._began = time.perf_counter()

    def _model(self) -> Any:
        plan, hyper = self.run.plan, dict(self.hyper)
        router = plan.kind == "router"
        sizes = list(plan.hidden)
        policy: dict[str, Any] = {
            "net_arch": sizes if self.family.flat else {"pi": sizes, "vf": sizes},
            "activation_fn": th.nn.Tanh if self.family.activation == "tanh" else th.nn.ReLU,
            "features_extractor_class": EngineRows if router else Normalised,
            **hyper.pop("policy_kwargs", {}),
        }
        if "n_steps" in hyper:  # a batch cannot be larger than what one rollout gives
            rollout = hyper["n_steps"] * self.env.num_envs
            hyper["batch_size"] = min(hyper.get("batch_size", 64), rollout)
        if "final_learning_rate" in hyper:
            last = hyper.pop("final_learning_rate")
            hyper["learning_rate"] = LinearSchedule(hyper["learning_rate"], last, 1.0)
        cls = self.family.router_policy if router else "MlpPolicy"
        try:
            return self.family.model(
                cls, self.env, policy_kwargs=policy, seed=self._seed(0), device="cpu", **hyper
            )
        except TypeError as error:
            raise ValueError(f"{plan.algorithm}: {error}; correct --hyper") from error

    def _seed(self, stream: int) -> int:
        return int(np.random.SeedSequence([self.run.plan.seed, stream]).generate_state(1)[0])

    def go(self) -> None:
        """Train until the plan is fulfilled, and leave everything on disk."""
        run = self.run
        if run.begun:
            self._load(run.checkpoint)
        else:
            self._prepare()
            if not self.end_round({}):
                return
        formats = ["tensorboard"] if find_spec("tensorboard") else []
        self.model.set_logger(configure(str(run.folder / "tensorboard"), formats))
        left = run.plan.timesteps - self.model.num_timesteps
        self.model.learn(left, callback=_Rounds(self), reset_num_timesteps=False)

    def _prepare(self) -> None:
        """Normalise inputs by what will be seen, and clone the policy that is to be imitated."""
        run, plan = self.run, self.run.plan
        if plan.prior:
            self._prefer(plan.prior, plan.prior_logit)
        save_agent(run.last_path, self.agent())
        agent = f"{run.last_path}"
        if not plan.imitate:
            set_normalisation(self.model.policy, inputs(plan, agent, self._say).rows(plan.kind))
            return
        found: Demonstrations | None = None
        for round_ in range(plan.imitate_rounds):
            more = demonstrate(plan, agent, round_, progress=self._say)
            found = more if found is None else found.joined(more)
            if round_ == 0:
                set_normalisation(self.model.policy, found.rows(plan.kind))
            result = clone(self.model, found, epochs=plan.imitate_epochs, seed=self._seed(0))
            run.reporter.note(f"{plan.imitate}, round {round_}: {result}")
            save_agent(run.last_path, self.agent())

    def _prefer(self, cell: tuple[int, ...], logit: float) -> None:
        """Add `logit` to the actor's outputs of a cell."""
        starts = np.concatenate([[0], np.cumsum(self.run.plan.grid.shape)[:-1]])
        with th.no_grad():
            self.model.policy.action_net.bias[starts + np.array(cell)] += logit

    def _say(self, text: str) -> None:
        self.run.reporter.advance(self.model.num_timesteps, self.run.plan.timesteps, text)

    def begin_round(self) -> None:
        """Seed everything and begin episodes anew."""
        self.model.set_random_seed(self._seed(len(self.run.progress.curve)))
        self.model._last_obs = self.env.reset()
        self.model._last_episode_starts = np.ones(self.env.num_envs, np.bool_)
        self.model._last_original_obs = self.env.get_original_obs()
        self._began = time.perf_counter()

    def end_round(self, figures: Mapping[str, float]) -> bool:
        """Evaluate and write a checkpoint; False when training is to end."""
        run = self.run
        run.progress.timesteps = self.model.num_timesteps
        told = {"episodes": 0.0, "train_attainment": float("nan"), **figures}
        if self._rerouted is not None:
            told["rerouted"] = float(self._rerouted.rerouted)
        go_on = run.evaluate(self.agent(), told, time.perf_counter() - self._began)
        self._save(run.staged())
        run.commit()
        return go_on

    def agent(self) -> Agent:
        """The acting network as it is now."""
        plan, family = self.run.plan, self.family
        head = "discrete" if family.flat else "multidiscrete"
        training = {"timesteps": self.model.num_timesteps, "plan": plan.recipe()}
        training["command"] = self.run.command
        actions = getattr(self.env.action_space, "n", 0)
        arrays = family.layers(self.model.policy, plan.kind, int(actions))
        return make_agent(describe_agent(plan, head, family.activation, training), arrays)

    def freeze_actor(self, frozen: bool) -> None:
        """Let only the critic learn, or both."""
        policy = self.model.policy
        for module in (policy.mlp_extractor.policy_net, policy.action_net):
            for parameter in module.parameters():
                parameter.requires_grad_(not frozen)

    def _save(self, folder: Path) -> None:
        self.model.save(folder / _MODEL)
        self.env.save(str(folder / _REWARDS))
        if self.family.replay:
            self.model.save_replay_buffer(folder / _REPLAY)

    def _load(self, folder: Path) -> None:
        # `rerouted` counts this process only; what was counted before stands in the curve.
        self.env = VecNormalize.load(str(folder / _REWARDS), self.env.venv)
        self.model = self.family.model.load(folder / _MODEL, env=self.env, device="cpu")
        if self.family.replay:
            self.model.load_replay_buffer(folder / _REPLAY)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


class _Rounds(BaseCallback):  # type: ignore[misc]
    """Ends and begins rounds between rollouts, and collects what training episodes achieve."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = trainer
        self.plan = trainer.run.plan
        self.shares: list[float] = []
        self.going = True
        self.begun = False

    def _boundary(self) -> int:
        return len(self.trainer.run.progress.curve) * self.plan.eval_every

    def _on_rollout_start(self) -> None:
        if self.begun and self.model.num_timesteps >= self._boundary():
            self.going = self._end()
            self.begun = False
        if self.going and not self.begun:
            self.trainer.begin_round()
            self.begun = True
        if self.plan.imitate:
            self.trainer.freeze_actor(self.model.num_timesteps < self.plan.critic_steps)

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        found = [info["episode_metrics"] for info in infos if "episode_metrics" in info]
        self.shares += [metrics["slo_attainment"] for metrics in found]
        timesteps = self.model.num_timesteps
        if timesteps // 1000 > (timesteps - self.trainer.env.num_envs) // 1000:
            self.trainer._say("training")
        return self.going

    def _on_training_end(self) -> None:
        if self.going:
            self._end()

    def _end(self) -> bool:
        shares, self.shares = self.shares, []
        mean = float(np.mean(shares)) if shares else float("nan")
        figures = {"episodes": float(len(shares)), "train_attainment": mean}
        return self.trainer.end_round(figures)
