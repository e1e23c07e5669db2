"""Worlds that `ppo_router.py` trains in: random clusters, loads and objectives, step by step.

Half of the episodes play a packaged scenario, the others one with another number or mix of
engines, other objectives and other traffic. All of them use train seeds.
Held out: loads of 0.6 and of 1.5 and above, clusters of four, `long-context-4xh100`, traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.wrappers.forecast import ForecastObservation
from synergy_gym.features import NUM_REQUEST_FEATURES
from synergy_gym.policies.forecast import NUM_BLOCK_FEATURES
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.specs import SLO

PLAIN = ("flowgpt-8xh100", "flowgpt-8xh100-llama8b", "hetero-3")
OTHERS = ("paper-summarization-8xh100", "paper-sharegpt-hetero", "paper-coder-hetero")
HORIZON_S = 150.0
"""Of arrivals; twice as long where fewer than 8 arrive per second."""
LOADS = (0.95, 1.3)
SIZES = (2, 3, 5, 6, 8)
NUM_RATE_FEATURES = 2


@dataclass(frozen=True)
class World:
    """One episode's scenario, load and seed."""

    scenario: Scenario
    load: float
    seed: int

    @property
    def rate_rps(self) -> float:
        """Requests per second that arrive."""
        return self.scenario.rate_rps * self.load


def of_engines(scenario: Scenario, chosen: Sequence[int], rate: float) -> Scenario:
    """The scenario with some of its engines (repeats allowed) and `rate` of its traffic."""
    pick = [int(i) for i in chosen]
    engines = tuple(replace(scenario.engines[i], name=f"e{n}") for n, i in enumerate(pick))
    return replace(
        scenario,
        engines=engines,
        terms=tuple(scenario.terms[i] for i in pick),
        measured_terms=tuple(scenario.measured_terms[i] for i in pick),
        rate_rps=scenario.rate_rps * rate,
    )


def other_objectives(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Objectives that are tighter, looser or missing."""

    def changed(slo: SLO) -> SLO:
        scale = float(rng.choice([0.7, 1.0, 1.5]))
        e2e_s = None if slo.e2e_s is None or rng.random() < 0.3 else slo.e2e_s * scale
        ttft_s = (slo.ttft_s or 2.0) * float(rng.choice([0.7, 1.0, 2.0, 5.0]))
        tpot_s = (slo.tpot_s or 0.05) * float(rng.choice([1.0, 1.0, 2.0]))
        return replace(slo, e2e_s=e2e_s, ttft_s=ttft_s, tpot_s=tpot_s)

    return replace(scenario, slos=tuple(changed(slo) for slo in scenario.slos))


class Worlds:
    """Draws the world of the next episode: half of them as packaged, half changed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.plain = [load_scenario(name) for name in PLAIN]
        self.others = [load_scenario(name) for name in (*PLAIN, *OTHERS)]

    def draw(self) -> World:
        """A world with a train seed; short, and scored from its beginning."""
        rng = self.rng
        if rng.random() < 0.5:
            scenario = self.plain[rng.choice(3, p=[0.45, 0.35, 0.2])]
        else:
            scenario = self._changed(self.others[rng.integers(len(self.others))])
        horizon_s = HORIZON_S * (2.0 if scenario.rate_rps < 8.0 else 1.0)
        scenario = replace(scenario, horizon_s=horizon_s, warmup_s=0.0)
        return World(scenario, float(rng.uniform(*LOADS)), int(rng.choice(scenario.train_seeds)))

    def _changed(self, scenario: Scenario) -> Scenario:
        rng = self.rng
        size = int(rng.choice(SIZES))
        chosen = rng.integers(len(scenario.engines), size=size)
        rate = size / len(scenario.engines) * float(rng.choice([1.0, 1.15, 1.3]))
        if len({spec.profile for spec in scenario.engines}) > 1:
            rate *= 1.6  # its rate is what round-robin carries, which the slowest engine limits
        scenario = of_engines(scenario, chosen, rate)
        return other_objectives(scenario, rng) if rng.random() < 0.5 else scenario


@dataclass
class Batch:
    """Observations of N environments, padded to the widest cluster."""

    request: np.ndarray  # (..., NUM_REQUEST_FEATURES)
    blocks: np.ndarray  # (..., engines, NUM_BLOCK_FEATURES)
    mask: np.ndarray  # (..., engines), True where an engine exists and is up
    rate: np.ndarray  # (..., NUM_RATE_FEATURES), for the critic


class Cluster:
    """One environment that goes on with another world when an episode ends."""

    def __init__(self, worlds: Worlds) -> None:
        self.worlds = worlds
        self.finished: list[tuple[World, float]] = []
        self._begin()

    def _begin(self) -> None:
        self.world = self.worlds.draw()
        env = ClusterRoutingEnv(self.world.scenario, load=self.world.load)
        self.env = ForecastObservation(env)
        self.observation, _ = self.env.reset(seed=self.world.seed)
        self.met, self.offered = 0.0, 0

    def step(self, engine: int) -> tuple[float, bool]:
        """(reward, whether the episode ended)."""
        self.observation, reward, _, ended, _ = self.env.step(engine)
        self.met += reward
        self.offered += 1
        if ended:
            self.finished.append((self.world, self.met / self.offered))
            self._begin()
        return reward, ended

    def write(self, batch: Batch, i: int) -> None:
        """Put the current observation at place i of a batch."""
        n = len(self.world.scenario.engines)
        request, rate = self.observation[:NUM_REQUEST_FEATURES], self.world.rate_rps
        batch.request[i] = request
        batch.blocks[i, :n] = self.observation[NUM_REQUEST_FEATURES:].reshape(n, -1)
        batch.blocks[i, n:] = 0.0
        batch.mask[i] = False
        batch.mask[i, :n] = self.env.action_masks()
        batch.rate[i] = np.log(rate / n), np.log(rate)


def empty_batch(shape: tuple[int, ...], engines: int) -> Batch:
    return Batch(
        np.zeros((*shape, NUM_REQUEST_FEATURES), np.float32),
        np.zeros((*shape, engines, NUM_BLOCK_FEATURES), np.float32),
        np.zeros((*shape, engines), np.bool_),
        np.zeros((*shape, NUM_RATE_FEATURES), np.float32),
    )
