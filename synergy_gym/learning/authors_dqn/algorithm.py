"""`--algo dqn-authors`: the RL scheduler of SynergySched's authors, trained as theirs is.

State, budgets and reward are those of `policies.authors_state`, learner and hyperparameters those
of `authors_dqn`. One engine serves, one update follows every step, and serving never ends: the last
state of an episode is followed by its own value, not by zero. Theirs learns on one deployment;
here every episode may be another of the plan's scenarios and loads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.utils import seeding

from synergy_gym.learning.algorithms import algorithm
from synergy_gym.learning.run import Run
from synergy_gym.policies.authors_state import AUTHORS_GRID

if TYPE_CHECKING:
    from synergy_gym.learning.authors_dqn.network import AuthorsDqn
    from synergy_gym.observation import Float32Array
    from synergy_gym.policies.agent_file import Agent

_STATE = "dqn"
_EVERY = 500
"""Steps between two words to the reporter."""


@algorithm(
    "dqn-authors",
    kinds=("engine",),
    summary="The authors' own RL scheduler: a DQN with attention over four token budgets.",
    fixed={
        "grid": AUTHORS_GRID,
        "interval_s": 0.0,
        "frames": 1,
        "num_envs": 1,
        "hidden": (256, 128),
        "shaping": "",
        "reward": "met",
        "imitate": "",
    },
)
def train(run: Run) -> None:
    """Carry out a run, from its beginning or from its checkpoint.

    Raises:
        ValueError: the plan has arguments that the algorithm does not know.
    """
    import torch as th

    th.set_num_threads(1)  # sums would depend on more
    trainer = _Trainer(run)
    if not run.begun:
        trainer.end_round({})
    while not run.done:
        trainer.round()


class _Trainer:
    """The learner, its engine, and the run that they belong to.

    A round begins with an episode drawn from (seed, number of the round) and ends with an
    evaluation and a checkpoint, so that a resumed run equals one that was not interrupted.
    """

    def __init__(self, run: Run) -> None:
        from synergy_gym.envs.randomisation.worlds import DomainRandomization
        from synergy_gym.learning.authors_dqn.network import AuthorsDqn

        self.run, plan = run, run.plan
        self.learner: AuthorsDqn = AuthorsDqn(_settings(plan.hyper), plan.seed)
        self.env = DomainRandomization(_environment, plan.ranges(plan.worlds))
        self._began = time.perf_counter()
        if run.begun:
            self.learner.load(run.checkpoint, run.progress.extra[_STATE])

    def round(self) -> None:
        """Serve and learn until the next evaluation."""
        run, plan, progress = self.run, self.run.plan, self.run.progress
        number = len(progress.curve)
        seed = int(np.random.SeedSequence([plan.seed, number]).generate_state(1)[0])
        # reset(seed=...) would play that seed; episodes come from the train seeds.
        self.env.np_random = seeding.np_random(seed)[0]
        self._began = time.perf_counter()
        self.observation: Float32Array = self.env.reset()[0]
        self.rewards: list[float] = []
        steps = min(plan.eval_every, plan.timesteps - progress.timesteps)
        for done in range(1, steps + 1):
            self._step()
            if done % _EVERY == 0:
                run.reporter.advance(progress.timesteps + done, plan.timesteps, "training")
        progress.timesteps += steps
        self.end_round({"reward": float(np.mean(self.rewards))})

    def _step(self) -> None:
        learner, before = self.learner, self.observation
        action = learner.act(before)
        after, reward, _, ended, _ = self.env.step(action)
        learner.replay.add(before, action, float(reward), after)
        for _ in range(learner.settings.updates_per_step):
            learner.learn()
        self.rewards.append(float(reward))
        self.observation = self.env.reset()[0] if ended else after

    def end_round(self, figures: Mapping[str, float]) -> None:
        """Evaluate the agent and write a checkpoint."""
        run, learner = self.run, self.learner
        told = {"reward": float("nan"), "loss": learner.loss, "updates": float(learner.updates)}
        run.evaluate(self.agent(), {**told, **figures}, time.perf_counter() - self._began)
        run.progress.extra[_STATE] = learner.state()
        learner.save(run.staged())
        run.commit()

    def agent(self) -> Agent:
        """The agent as it is now."""
        run = self.run
        training = {"timesteps": run.progress.timesteps, "plan": run.plan.recipe()}
        return self.learner.agent(run.plan.name, {**training, "command": run.command})


def _environment(world: Any) -> Any:
    from synergy_gym.envs.engine_batching import EngineBatchingEnv
    from synergy_gym.envs.wrappers.authors import AuthorsScheduler

    env = EngineBatchingEnv(world, action=AUTHORS_GRID, decision_interval_s=None)
    return AuthorsScheduler(env)


def _settings(hyper: Mapping[str, Any]) -> Any:
    from synergy_gym.learning.authors_dqn.network import AuthorsSettings

    known = [item.name for item in fields(AuthorsSettings)]
    if unknown := sorted(set(hyper) - set(known)):
        raise ValueError(
            f"dqn-authors has no argument {unknown[0]!r}; --hyper takes {', '.join(known)}"
        )
    return AuthorsSettings(**hyper)
