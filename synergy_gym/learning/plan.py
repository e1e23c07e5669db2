"""What a training run is asked to do: one frozen value, written to and read from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from synergy_gym.actions import DEFAULT_GRID, EngineGrid
from synergy_gym.envs.randomisation.ranges import LogUniform
from synergy_gym.envs.randomisation.worlds import WorldRanges
from synergy_gym.scenario import Scenario, load_scenario

Kind = Literal["engine", "router"]
KINDS: tuple[Kind, ...] = ("engine", "router")

SCENARIOS: Mapping[str, tuple[str, ...]] = {
    "engine": ("chat-h100", "code-a100", "summarization-h100", "two-class-h100"),
    "router": ("hetero-3", "flowgpt-8xh100-llama8b"),
}
"""What is trained on where nothing is named, per kind."""
LOADS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
"""Loads of training episodes; 0.6 and 1.5 are left for the leaderboard to ask about."""
REWARDS: Mapping[str, str] = {"engine": "lost", "router": "met"}
"""What training is paid for where nothing is named, per kind."""
BASELINES: Mapping[str, tuple[str, ...]] = {
    "engine": ("vllm-v1", "lens-ref", "lens-plus"),
    "router": ("round-robin", "least-outstanding", "prism-ref", "prism-plus"),
}
"""Registered policies whose scores are shown beside the agent's, per kind."""

_EXTENDABLE = ("timesteps", "patience")
"""What `--resume` may change: how long a run goes on, not what it learns."""
_COUNTS = (
    "timesteps",
    "num_envs",
    "frames",
    "eval_every",
    "eval_seeds",
    "imitate_rounds",
    "imitate_episodes",
    "imitate_epochs",
)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training run.

    Attributes:
        kind: which layer the agent decides for.
        algorithm: name in `synergy_gym.learning.algorithms`.
        name: what the agent is called.
        scenarios: names or files; every training episode plays one of them.
        loads: multiples of each scenario's rate, equally likely.
        vary: domain randomisation: (lowest, highest) by the name of a knob of
            `synergy_gym.envs.randomisation.knobs`, drawn for every training episode on a
            logarithmic scale.
        episode_s: training episodes end their traffic here and score all of it, which teaches
            faster than long episodes with an unscored warm-up; 0: as the scenario says.
        timesteps: decisions in all, over all environments.
        seed: of weights, exploration and the choice among the scenarios' train seeds.
        num_envs: environments side by side.
        interval_s: engines: shortest time between two decisions; 0: every iteration.
        frames: engines: observations that the network sees, the newest last.
        grid: engines: the decisions that it chooses from.
        engine_policy: routers: how the engines batch.
        hidden: width of the hidden layers; a scorer has two.
        prior: engines: the cell of the grid that an untrained actor prefers, one index per axis.
        prior_logit: by how much, added to the logits of these indices.
        hyper: arguments of the algorithm instead of its defaults.
        reward: "met": the environment's own, requests that met their objectives; "lost": engines
            on the simulator, minus those that cannot meet them any more, as soon as that is so
            (`synergy_gym.learning.sb3.lost_reward`). Best policies are the same.
        shaping: potential of `synergy_gym.rewards` that is added to the reward.
        shaping_weight: its factor.
        imitate: registered policy that is cloned first; empty: none.
        imitate_rounds: 1: the policy plays; each further round the agent plays and the policy
            says what it would have done (DAgger, Ross et al., AISTATS 2011).
        imitate_episodes: episodes per scenario, load and round.
        imitate_epochs: passes over the demonstrations after each round.
        critic_steps: decisions after imitation in which only the critic learns, so that its
            first errors do not undo what was cloned.
        eval_every: decisions between two evaluations; also between two checkpoints.
        eval_loads: loads of the evaluation.
        eval_seeds: validation seeds per scenario and load.
        patience: stop after so many evaluations without a better score; 0: never.
        baselines: registered policies to evaluate beside it.
    """

    kind: Kind
    algorithm: str
    name: str = "agent"
    scenarios: tuple[str, ...]
    loads: tuple[float, ...] = LOADS
    vary: Mapping[str, Sequence[float]] = field(default_factory=dict)
    episode_s: float = 120.0
    timesteps: int = 1_000_000
    seed: int = 0
    num_envs: int = 32
    interval_s: float = 0.2
    frames: int = 1
    grid: EngineGrid = DEFAULT_GRID
    engine_policy: str = "vllm-v1"
    hidden: tuple[int, ...] = (64, 64)
    prior: tuple[int, ...] = ()
    prior_logit: float = 2.0
    hyper: Mapping[str, Any] = field(default_factory=dict)
    reward: str = "met"
    shaping: str = ""
    shaping_weight: float = 1.0
    imitate: str = ""
    imitate_rounds: int = 2
    imitate_episodes: int = 1
    imitate_epochs: int = 10
    critic_steps: int = 20_000
    eval_every: int = 100_000
    eval_loads: tuple[float, ...] = (1.0, 1.2)
    eval_seeds: int = 3
    patience: int = 0
    baselines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges, and that scenarios fit the kind."""
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is unknown; choose one of {list(KINDS)}")
        for name in _COUNTS:
            self._at_least(name, 1)
        for name in ("interval_s", "critic_steps", "patience", "seed", "episode_s"):
            self._at_least(name, 0)
        for name in ("scenarios", "loads", "eval_loads", "hidden"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        for name in ("loads", "eval_loads", "hidden"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.kind == "router" and self.frames != 1:
            raise ValueError("frames > 1 is for engine agents; a router's table has its ages")
        self._check_reward()
        if self.prior:
            self.grid.choices(self.prior)
        for name, bounds in self.vary.items():
            if len(bounds) != 2:
                raise ValueError(f"vary {name}={bounds!r}: give the lowest and the highest value")
        for world in self.worlds:
            self._check_world(world)
        self.ranges(self.worlds)

    def _check_reward(self) -> None:
        if self.reward not in ("met", "lost"):
            raise ValueError(f"reward={self.reward!r} is unknown; choose 'met' or 'lost'")
        if self.reward == "lost" and (self.kind == "router" or self.shaping):
            raise ValueError("reward='lost' is for engines and without shaping; use 'met'")

    def _at_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def _check_world(self, world: Scenario) -> None:
        engines = len(world.engines)
        if (engines == 1) != (self.kind == "engine"):
            fit = "one engine" if self.kind == "engine" else "a cluster"
            raise ValueError(
                f"scenario {world.name!r} has {engines} engine(s); training of an agent of kind "
                f"{self.kind!r} needs {fit}, choose another --scenario"
            )
        if not world.train_seeds or len(world.validation_seeds) < self.eval_seeds:
            raise ValueError(
                f"scenario {world.name!r} has {len(world.train_seeds)} train and "
                f"{len(world.validation_seeds)} validation seeds; training needs 1 and "
                f"{self.eval_seeds}, add some to its file or lower --eval-seeds"
            )

    @cached_property
    def worlds(self) -> tuple[Scenario, ...]:
        """The scenarios, read."""
        return tuple(load_scenario(name) for name in self.scenarios)

    def ranges(self, scenarios: Sequence[Scenario]) -> WorldRanges:
        """The worlds of training episodes in some of the scenarios.

        Raises:
            ValueError: `vary` names no knob, or one that changes the number of engines.
        """
        if "engines" in self.vary:
            raise ValueError("vary cannot change engines; name scenarios with other clusters")
        knobs = {name: LogUniform(low, high) for name, (low, high) in self.vary.items()}
        if self.episode_s:
            scenarios = [
                replace(world, horizon_s=self.episode_s, warmup_s=0.0) for world in scenarios
            ]
        return WorldRanges(list(scenarios), load=list(self.loads), knobs=knobs)

    def recipe(self) -> dict[str, Any]:
        """`to_dict` without how long to train: what an agent on the way was made with."""
        return {name: value for name, value in self.to_dict().items() if name != "timesteps"}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {"grid": self.grid.to_dict(), "hyper": dict(self.hyper)}
        values["vary"] = {name: list(bounds) for name, bounds in sorted(self.vary.items())}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainingPlan:
        """What `to_dict` gave, also after a way through JSON.

        Raises:
            ValueError: an unknown entry or a wrong value.
        """
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        try:
            grid = EngineGrid.from_dict(given.pop("grid"))
            return TrainingPlan(grid=grid, **given)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a training plan: {error}") from None

    def with_hyper(self, hyper: Mapping[str, Any]) -> TrainingPlan:
        """The same plan with further arguments of the algorithm; they win over those it has."""
        return replace(self, hyper={**self.hyper, **hyper})

    def check_resumes(self, begun: TrainingPlan) -> None:
        """Whether a run of plan `begun` can go on as this one.

        Raises:
            ValueError: they differ in more than their length; names the first difference.
        """
        mine, theirs = self.to_dict(), begun.to_dict()
        for name in mine:
            if name not in _EXTENDABLE and mine[name] != theirs[name]:
                raise ValueError(
                    f"the run was begun with {name}={theirs[name]!r}, not {mine[name]!r}; repeat "
                    f"its options to resume (only {' and '.join(_EXTENDABLE)} may differ), or "
                    "choose another --out"
                )


def default_name(kind: Kind, algorithm: str) -> str:
    """What an agent is called that got no name."""
    return f"{kind}-{algorithm}"
