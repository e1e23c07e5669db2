"""A reward for engines that pays at once: minus the requests that have just been lost.

A request is lost when it cannot meet its objectives any more. Its reward under `slo_met` comes
when it finishes, hundreds of decisions after the one that spoiled it; here it comes with that
decision, and an engine that spoils nothing gets 0 whatever the traffic does. Undiscounted, both
returns differ by the number of offered requests, which no policy changes, so the best policies
are the same. (It is potential-based shaping in the sense of Ng, Harada and Russell, ICML 1999,
with the potential "requests that can still be saved, minus requests that have arrived".)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from synergy_gym.jit import hot, kernel
from synergy_gym.sim.layout import (
    CLASS_MASK,
    E_RUN_HEAD,
    E_WAIT_HEAD,
    F_ARRIVAL,
    F_FIRST,
    F_META,
    F_NEXT,
    H_ENG,
    H_HORIZON,
    H_MET,
    H_N,
    H_NOW,
    H_PTR,
    H_SLO,
    H_WARM,
    SCORED,
)
from synergy_gym.sim.lists import generated_tokens, row
from synergy_gym.types import NS_PER_S, IntArray

SOFT_TOKENS = 8.0
"""A decode so many tokens behind its TPOT pace counts as lost, one half as far as half lost."""
_NEXT, _ARRIVED = 0, 1


@hot
def _prospect(a, e, q):  # type: ignore[no-untyped-def]
    """1 while the request at row `q` can meet its objectives, 0 when it cannot, or between."""
    slo = a[H_SLO] + 3 * (a[q + F_META] & CLASS_MASK)
    ttft, tpot, e2e = a[slo], a[slo + 1], a[slo + 2]
    now, arrival, first = a[H_NOW], a[q + F_ARRIVAL], a[q + F_FIRST]
    waited = (first if first >= 0 else now) - arrival
    if (ttft >= 0 and waited > ttft) or (e2e >= 0 and now - arrival > e2e):
        return 0.0
    if first < 0 or tpot <= 0:
        return 1.0
    behind = now - first - tpot * (generated_tokens(a, e, q) - 1)
    return min(max(1.0 - behind / (SOFT_TOKENS * tpot), 0.0), 1.0)


@kernel
def count_lost(a, memo):  # type: ignore[no-untyped-def]
    """Scored requests of a one-engine episode that are lost by now.

    Args:
        a: the simulator's arena.
        memo: int64, (next request to count, scored ones so far); zeros at first.
    """
    for r in range(memo[_NEXT], a[H_PTR]):
        if a[row(a, 0, r) + F_META] & SCORED != 0:
            memo[_ARRIVED] += 1
    memo[_NEXT] = a[H_PTR]
    e = a[H_ENG]
    safe = float(a[H_MET])
    for queue in range(2):
        r = a[e + E_RUN_HEAD] if queue == 0 else a[e + E_WAIT_HEAD]
        while r >= 0:
            q = row(a, 0, r)
            if a[q + F_META] & SCORED != 0:
                safe += _prospect(a, e, q)
            r = a[q + F_NEXT]
    return memo[_ARRIVED] - safe


class _Losses:
    """What an episode has lost so far; `scale` makes it seconds of its mean traffic."""

    def __init__(self, arena: IntArray) -> None:
        self._arena, self._memo = arena, np.zeros(2, np.int64)
        window_s = (int(arena[H_HORIZON]) - int(arena[H_WARM])) / NS_PER_S
        self.scale = window_s / max(int(arena[H_N]), 1)
        self.last = float(count_lost(arena, self._memo))

    def step(self) -> float:
        """The reward of the step that has just ended."""
        before, self.last = self.last, float(count_lost(self._arena, self._memo))
        reward: float = self.scale * (before - self.last)
        return reward

    def end(self, metrics: dict[str, Any]) -> float:
        """The reward of an episode's last step, from its figures."""
        lost = metrics["offered"] * (1.0 - metrics["slo_attainment"])
        return self.scale * float(self.last - lost)


class LostReward(VecEnvWrapper):  # type: ignore[misc]
    """Replaces the reward of engines by minus what was lost, in seconds of mean traffic.

    Needs simulated engines in this process, whose environments show their `arena`.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._losses: list[_Losses] = []

    def reset(self) -> NDArray[Any]:
        """Begin an episode everywhere."""
        observations: NDArray[Any] = self.venv.reset()
        self._losses = [_Losses(arena) for arena in self.venv.get_attr("arena")]
        return observations

    def step_wait(self) -> Any:
        """What the environments say, with the other reward."""
        observations, _, dones, infos = self.venv.step_wait()
        rewards = np.zeros(self.num_envs, np.float32)
        for i, ended in enumerate(dones.tolist()):
            if not ended:
                rewards[i] = self._losses[i].step()
                continue
            rewards[i] = self._losses[i].end(infos[i]["episode_metrics"])
            self._losses[i] = _Losses(self.venv.get_attr("arena", [i])[0])
        return observations, rewards, dones, infos
