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

from synergy_gym.jit import inner, kernel
from synergy_gym.sim.compiled.decodes import generated_tokens
from synergy_gym.sim.compiled.reach import engine_of, objective_of, request_of, world_at
from synergy_gym.sim.memory import Memory
from synergy_gym.types import NS_PER_S

SOFT_TOKENS = 8.0
"""A decode so many tokens behind its TPOT pace counts as lost, one half as far as half lost."""
_NEXT, _ARRIVED = 0, 1


@inner
def _prospect(world, engine, request):  # type: ignore[no-untyped-def]
    """1 while a request can meet its objectives, 0 when it cannot, or between."""
    limit = objective_of(world, request.slo_class)
    now, arrival, first = world.now_ns, request.arrival_ns, request.first_token_ns
    waited = (first if first >= 0 else now) - arrival
    if (limit.ttft_ns >= 0 and waited > limit.ttft_ns) or (
        limit.e2e_ns >= 0 and now - arrival > limit.e2e_ns
    ):
        return 0.0
    if first < 0 or limit.tpot_ns <= 0:
        return 1.0
    behind = now - first - limit.tpot_ns * (generated_tokens(engine, request) - 1)
    return min(max(1.0 - behind / (SOFT_TOKENS * limit.tpot_ns), 0.0), 1.0)


@kernel
def count_lost(address, memo):  # type: ignore[no-untyped-def]
    """Scored requests of a one-engine episode that are lost by now.

    Args:
        address: of the simulator's memory.
        memo: int64, (next request to count, scored ones so far); zeros at first.
    """
    world = world_at(address)
    engine = engine_of(world, 0)
    for r in range(memo[_NEXT], world.next_request):
        if request_of(world, r).scored:
            memo[_ARRIVED] += 1
    memo[_NEXT] = world.next_request
    safe = float(world.met)
    for queue in range(2):
        r = engine.first_running if queue == 0 else engine.first_waiting
        while r >= 0:
            request = request_of(world, r)
            if request.scored:
                safe += _prospect(world, engine, request)
            r = request.next
    return memo[_ARRIVED] - safe


class _Losses:
    """What an episode has lost so far; `scale` makes it seconds of its mean traffic."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._memo = memory, np.zeros(2, np.int64)
        world = memory.world
        window_s = (int(world["horizon_ns"]) - int(world["warmup_ns"])) / NS_PER_S
        self.scale = window_s / max(int(world["num_requests"]), 1)
        self.last = float(count_lost(memory.address, self._memo))

    def step(self) -> float:
        """The reward of the step that has just ended."""
        before, self.last = self.last, float(count_lost(self._memory.address, self._memo))
        reward: float = self.scale * (before - self.last)
        return reward

    def end(self, metrics: dict[str, Any]) -> float:
        """The reward of an episode's last step, from its figures."""
        lost = metrics["offered"] * (1.0 - metrics["slo_attainment"])
        return self.scale * float(self.last - lost)


class LostReward(VecEnvWrapper):  # type: ignore[misc]
    """Replaces the reward of engines by minus what was lost, in seconds of mean traffic.

    Needs simulated engines in this process, whose environments show their `memory`.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._losses: list[_Losses] = []

    def reset(self) -> NDArray[Any]:
        """Begin an episode everywhere."""
        observations: NDArray[Any] = self.venv.reset()
        self._losses = [_Losses(memory) for memory in self.venv.get_attr("memory")]
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
            self._losses[i] = _Losses(self.venv.get_attr("memory", [i])[0])
        return observations, rewards, dones, infos
