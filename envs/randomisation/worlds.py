"""Domain randomisation: every episode in another world, drawn from named ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from synergy_gym.envs.base import SPLITS, Split
from synergy_gym.envs.randomisation.knobs import apply_knobs, check_knobs, fitted
from synergy_gym.envs.randomisation.nominal_rate import demand, engine_rates_rps
from synergy_gym.envs.randomisation.ranges import Choice, Range, as_range, described
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.seasons import SEASON

MAX_REDRAWS = 1000
"""Draws before a range counts as lying inside what is held out."""


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """One drawn world: what an episode is made of, and what was drawn.

    Attributes:
        scenario: the scenario, changed as drawn.
        load: factor of its rate.
        seed: the episode's seed.
        drawn: drawn value by range name, `scenario` and `load` among them.
    """

    scenario: Scenario
    load: float
    seed: int
    drawn: Mapping[str, Any]


class WorldRanges:
    """Named ranges of worlds to train in, with what must never be drawn.

    >>> from synergy_gym.envs.randomisation.ranges import LogUniform, Uniform
    >>> ranges = WorldRanges(
    ...     ["chat-h100", "code-a100"],
    ...     load=Uniform(0.8, 1.3),
    ...     knobs={"output_scale": LogUniform(0.5, 2.0)},
    ... )
    >>> world = ranges.draw(np.random.default_rng(7))

    A knob that changes what the engines can carry (`engines`, `traffic`, `prompt_scale`,
    `output_scale`, `speed`, `kv_share`) also scales the rate of load 1.0, by the estimate of
    `synergy_gym.envs.randomisation.nominal_rate`, so that a load means about the same
    everywhere. With
    `engines`, configured weights follow the same estimate.

    Args:
        scenarios: names, paths or scenarios to begin with, equally likely, or a `Choice`.
        load: factor of the rate: a number, values to choose from, or a range.
        knobs: further ranges by the names of `synergy_gym.envs.randomisation.knobs.knobs()`.
        held_out: per range name, values that are never drawn: single values, or
            `(low, high)` for an interval of numbers, both ends included. A drawn tuple is out
            when one of its parts is. What is held out is drawn again.
        split: whose seeds episodes get: train, validation or test.
        rescale: scale rates as described.
        season: of scenarios' names that say none.

    Raises:
        ValueError: an unknown knob, split or held-out name, or nothing is left of a range.
    """

    def __init__(
        self,
        scenarios: str | Path | Scenario | Sequence[str | Path | Scenario] | Choice,
        *,
        load: float | Sequence[float] | Range = 1.0,
        knobs: Mapping[str, Any] | None = None,
        held_out: Mapping[str, Sequence[Any]] | None = None,
        split: Split = "train",
        rescale: bool = True,
        season: int = SEASON,
    ) -> None:
        check_knobs(tuple(knobs or ()))
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; choose one of {list(SPLITS)}")
        self.split = split
        chosen = as_range(scenarios)
        if not isinstance(chosen, Choice):
            raise ValueError(f"scenarios={scenarios!r}: give names, or a Choice of names")
        self._scenarios = {_name(s): _loaded(s, season) for s in chosen.values}
        self.ranges: dict[str, Range] = {
            "scenario": replace(chosen, values=tuple(_name(s) for s in chosen.values)),
            "load": as_range(load),
            **{name: as_range(item) for name, item in sorted((knobs or {}).items())},
        }
        self.held_out = {name: tuple(values) for name, values in (held_out or {}).items()}
        unknown = sorted(set(self.held_out) - set(self.ranges))
        if unknown:
            raise ValueError(f"held_out={unknown} names no range; there are {list(self.ranges)}")
        self._rescale = rescale
        self._rates: dict[str, float] = {}
        self._check_ranges()

    def draw(self, rng: np.random.Generator, seed: int | None = None) -> World:
        """A world.

        Args:
            rng: where everything is drawn from, always in the same order.
            seed: the episode's seed; `None` draws one of the split.

        Raises:
            ValueError: the drawn scenario cannot have a drawn value.
        """
        drawn = {name: self._value(name, rng) for name in self.ranges}
        base = self._scenarios[drawn["scenario"]]
        seeds: tuple[int, ...] = getattr(base, f"{self.split}_seeds")
        lot = int(rng.integers(len(seeds)))
        values = {k: v for k, v in drawn.items() if k not in ("scenario", "load")}
        return World(
            scenario=self._changed(base, values),
            load=float(drawn["load"]),
            seed=seeds[lot] if seed is None else seed,
            drawn=drawn,
        )

    def is_held_out(self, name: str, value: Any) -> bool:
        """Whether a value of a range is held out."""
        return any(_matches(value, rule) for rule in self.held_out.get(name, ()))

    def describe(self) -> dict[str, Any]:
        """Everything as plain values, for a manifest."""
        return {
            "ranges": {name: described(item) for name, item in self.ranges.items()},
            "held_out": {name: list(values) for name, values in self.held_out.items()},
            "split": self.split,
            "rescale": self._rescale,
        }

    def _value(self, name: str, rng: np.random.Generator) -> Any:
        for _ in range(MAX_REDRAWS):
            value = self.ranges[name].draw(rng)
            if not self.is_held_out(name, value):
                return value
        raise ValueError(
            f"{name}: {MAX_REDRAWS} draws from {self.ranges[name]} were all held out "
            f"({list(self.held_out[name])}); widen the range or hold less out"
        )

    def _check_ranges(self) -> None:
        rng = np.random.default_rng(0)
        for name in self.ranges:
            self._value(name, rng)

    def _changed(self, base: Scenario, values: Mapping[str, Any]) -> Scenario:
        if not values:
            return base
        changed, rescales = apply_knobs(base, values)
        if not rescales:
            return changed
        changed = fitted(changed)
        rates = engine_rates_rps(changed, demand(changed))
        if "engines" in values:
            pairs = zip(changed.engines, rates, strict=True)
            engines = tuple(replace(spec, weight=rate) for spec, rate in pairs)
            changed = replace(changed, engines=engines)
        if not self._rescale:
            return changed
        estimate = len(rates) * min(rates)
        return replace(changed, rate_rps=base.rate_rps * estimate / self._base_estimate(base))

    def _base_estimate(self, base: Scenario) -> float:
        if base.name not in self._rates:
            rates = engine_rates_rps(base, demand(base))
            self._rates[base.name] = len(rates) * min(rates)
        return self._rates[base.name]


class DomainRandomization(gym.Wrapper[Any, Any, Any, Any]):
    """Play every episode in a world of its own.

    At each reset a world is drawn from `ranges` with this environment's own generator, and the
    environment is made for its scenario if that has changed. `reset(seed=n)` plays episode n in
    a world that n alone decides: the same seed gives the same world, traffic and noise.
    `reset()` goes on drawing, worlds and seeds of the split. `info["world"]` of the reset holds
    what was drawn, by name, and `info["load"]` and `info["seed"]` what every reset tells.

    All worlds must have the same spaces: engines with other limits need grid actions
    (`action="grid"`), clusters of other sizes `EngineBlocks(env, max_engines=...)` inside `make`.

    >>> from synergy_gym.envs.engine_batching import EngineBatchingEnv
    >>> from synergy_gym.envs.randomisation.ranges import Uniform
    >>> env = DomainRandomization(
    ...     lambda scenario: EngineBatchingEnv(scenario, action="grid"),
    ...     WorldRanges(["chat-h100", "code-a100"], load=Uniform(0.8, 1.3)),
    ... )
    >>> observation, info = env.reset(seed=0)
    >>> sorted(info["world"])
    ['load', 'scenario']

    Args:
        make: makes the environment of a scenario, with every wrapper that should be inside.
        ranges: the worlds.

    Raises:
        ValueError: two worlds have different spaces.
    """

    def __init__(self, make: Callable[[Scenario], gym.Env[Any, Any]], ranges: WorldRanges) -> None:
        self._make = make
        self.ranges = ranges
        self._generator: np.random.Generator | None = None
        self._scenario = ranges.draw(np.random.default_rng(0), seed=0).scenario
        super().__init__(make(self._scenario))
        self.observation_space = self.env.observation_space
        self.action_space = self.env.action_space

    @property
    def np_random(self) -> np.random.Generator:
        """The generator that worlds are drawn from."""
        if self._generator is None:
            self._generator, _ = seeding.np_random()
        return self._generator

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self._generator = value

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw a world and begin an episode in it.

        Args:
            seed: fixes the world and is the episode's seed; `None` draws both.
            options: as the environment takes them; `load` or `workload` replace what was drawn.
        """
        if seed is not None:
            self._generator, _ = seeding.np_random(seed)
        world = self.ranges.draw(self.np_random, seed)
        self._enter(world.scenario)
        given = dict(options or {})
        if "workload" not in given:
            given.setdefault("load", world.load)
        observation, info = self.env.reset(seed=world.seed, options=given)
        info["world"] = dict(world.drawn)
        return observation, info

    def _enter(self, scenario: Scenario) -> None:
        if scenario is self._scenario:
            return
        env = self._make(scenario)
        for what in ("observation_space", "action_space"):
            here, there = getattr(self, what), getattr(env, what)
            if here != there:
                env.close()
                raise ValueError(
                    f"{what} of scenario {scenario.name!r} is {there}, of "
                    f"{self._scenario.name!r} it is {here}; worlds must agree: use "
                    'action="grid" for engines with other limits, and EngineBlocks(env, '
                    "max_engines=...) for clusters of other sizes"
                )
        self.env.close()
        self.env = env
        self._scenario = scenario


def _name(scenario: Any) -> str:
    if isinstance(scenario, Scenario):
        return scenario.label
    return Path(scenario).stem if str(scenario).endswith(".toml") else str(scenario)


def _loaded(scenario: Any, season: int) -> Scenario:
    return scenario if isinstance(scenario, Scenario) else load_scenario(scenario, season)


def _matches(value: Any, rule: Any) -> bool:
    if isinstance(value, tuple):
        return value == rule or any(_matches(part, rule) for part in value)
    if isinstance(rule, tuple) and len(rule) == 2 and isinstance(value, int | float):
        return bool(rule[0] <= value <= rule[1])
    return bool(value == rule)
