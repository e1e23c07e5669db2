"""The engine environment as SynergySched's authors' own RL scheduler sees it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.observation import Float32Array
from synergy_gym.policies.authors_state import AUTHORS_GRID, AuthorsState


class AuthorsScheduler(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """State, actions and reward of the scheduler in `vllm/v1/core/sched/rl` of YNewsoul/vllm.

    The action is `Discrete(4)`: a token budget of 256, 512, 1024 or 2048 for the next iteration.

    The observation is `Box((70,))`, unbounded as theirs is: ten global numbers; (prompt, time
    left) of the first ten waiting requests; (decodes, time left) of the first ten running ones;
    two masks of who is there.

    | reward term         | value                                                             |
    |---------------------|-------------------------------------------------------------------|
    | `recent_in_time`    | 2 x share of the last 100 finished requests in time               |
    | `recent_throughput` | tokens/s of the last 100 steps / 20,000                           |
    | `unused_budget`     | -0.5 if the step took over 255 tokens less than its budget        |
    | `finished`          | 0.25 x (finished in time - finished late) of this step            |

    `policies/authors_state.py` has the numbers and says where they differ from the original.
    `info["reward_terms"]` holds the four terms, `info["slo_met"]` the environment's own reward.

    Args:
        env: an `EngineBatchingEnv` whose action is `AUTHORS_GRID`, with a decision before every
            iteration.

    Raises:
        TypeError: it is another environment.
        ValueError: its action is another one, or decisions hold for an interval.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        engine = env.unwrapped
        if not isinstance(engine, EngineBatchingEnv):
            raise TypeError(f"AuthorsScheduler needs an EngineBatchingEnv, got {engine}")
        if engine.grid != AUTHORS_GRID:
            raise ValueError(
                f"AuthorsScheduler needs action=AUTHORS_GRID, got {engine.grid}; import it from "
                "synergy_gym.policies.authors_state"
            )
        if engine.decision_interval_s is not None:
            raise ValueError(
                "AuthorsScheduler decides before every iteration, the environment has "
                f"decision_interval_s={engine.decision_interval_s}; give decision_interval_s=None"
            )
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._engine = engine
        self._state = AuthorsState(engine.engine, engine.scenario.slos)
        layout = self.observation_layout = self._state.layout
        self.observation_space = spaces.Box(layout.low, layout.high)
        self.action_space = spaces.Discrete(AUTHORS_GRID.shape[0])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32Array, dict[str, Any]]:
        """Begin an episode; nothing is remembered of the last one."""
        _, info = self.env.reset(seed=seed, options=options)
        self._state = AuthorsState(self._engine.engine, self._engine.scenario.slos)
        return self._state(self._engine.engine_view()), info

    def step(self, action: Any) -> tuple[Float32Array, float, bool, bool, dict[str, Any]]:
        """One iteration with the budget of that index."""
        _, reward, terminated, truncated, info = self.env.step([int(action)])
        observation = self._state(self._engine.engine_view())
        terms = self._state.judged.reward_terms()
        info["slo_met"] = reward
        info["reward_terms"] = terms
        return observation, sum(terms.values()), terminated, truncated, info
