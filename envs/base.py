"""What the environments share: scenario and seeds, resets, snapshots, masks, rendering."""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from synergy_gym.envs.compiled.step import FusedStep, Outcome, mark_seen, seen
from synergy_gym.envs.rendering import RENDER_FPS, RENDER_MODES, Frame, Renderer, make_renderer
from synergy_gym.envs.simulators import simulator_class
from synergy_gym.live.backend import LiveEpisode, LiveOptions, build_live
from synergy_gym.live.cluster.fleet_pool import FleetPool
from synergy_gym.observation import Float32Array, ObservationLayout
from synergy_gym.rewards import SHAPING, SLO_MET, PotentialShaping
from synergy_gym.scenario import Scenario, load_scenario, windowed
from synergy_gym.sim.build import build_simulator
from synergy_gym.sim.memory import Memory
from synergy_gym.types import NS_PER_S, DecisionRule, IntArray
from synergy_gym.workload.base import Workload

Split = Literal["train", "validation", "test"]
WorkloadSource = Workload | Callable[[float, int], Workload]
"""Fixed traffic, or a function of (load, seed)."""

Part = slice | IntArray
"""Numbers of the flat observation that form one entry of the Dict form."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
OBSERVATIONS = ("flat", "dict")
_OPTIONS = ("load", "workload")

_FIXED_LOAD = (
    "load={load} has no meaning for a fixed workload: its arrival times are given; leave the load "
    "at 1.0, or give the workload as a function of (load, seed)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What fixes an episode: traffic, noise and policy streams follow from these."""

    seed: int
    load: float
    workload: Workload | None
    """`None`: the scenario's own traffic at this load and seed."""


@dataclass(frozen=True, slots=True, eq=False)
class EnvSnapshot:
    """The state of an environment in the middle of an episode; made by `snapshot()`."""

    owner: object
    simulator: Any
    state: object
    episode: Episode
    counters: tuple[int, int, bool, bool, float]
    extra: Any
    observation: Float32Array
    generator: dict[str, Any] | None


class ServingEnv(gym.Env[Any, Any]):
    """Base of the environments: an episode of a scenario on simulated or real engines.

    Subclasses say how an episode is built, what is observed and how an action is answered.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": list(RENDER_MODES),
        "render_fps": RENDER_FPS,
    }

    def __init__(
        self,
        *,
        scenario: str | Path | Scenario,
        season: int,
        load: float,
        workload: WorkloadSource | None,
        split: Split,
        horizon_s: float | None,
        warmup_s: float | None,
        observation: Literal["flat", "dict"],
        backend: str,
        live: LiveOptions | None,
        shaping: PotentialShaping | None,
        render_mode: str | None,
    ) -> None:
        found = scenario if isinstance(scenario, Scenario) else load_scenario(scenario, season)
        self.scenario = windowed(found, warmup_s, horizon_s)
        self.load = _checked_load(load)
        self.render_mode = render_mode
        self._live = live
        self._pool = FleetPool()
        self._spec: EnvSpec | None = None
        self._simulator_class = None if live is not None else simulator_class(backend)
        self._source = workload
        self._seeds = _split_seeds(self.scenario, split)
        self._dict = choice("observation", observation, OBSERVATIONS) == "dict"
        self._shaping = shaping
        self._renderer: Renderer | None = make_renderer(render_mode) if render_mode else None
        self._human = render_mode == "human"
        self._sim: Any = None
        self._active = False
        self._empty = False
        self._token = object()
        self._fused: Callable[..., Outcome] | None = None
        self._io: Float32Array | None = None
        self._now_ns = 0
        self._met = 0
        self._episode = Episode(seed=0, load=self.load, workload=None)

    @property
    def spec(self) -> EnvSpec | None:
        """How the environment was made; nondeterministic where time is measured."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        measured = self._live is not None and self._live.clock != "model"
        self._spec = replace(spec, nondeterministic=True) if spec and measured else spec

    def _need_inprocess(self, name: str) -> None:
        """For environments that decide about iterations."""
        if self._live is not None and self._live.transport != "inprocess":
            raise ValueError(
                f"transport={self._live.transport!r} cannot ask before every iteration; {name} "
                "steps engines of this process: use transport='inprocess', or "
                "SynergyGym/ClusterRouting-v1 with engines that batch by themselves"
            )

    def _observe_as(self, layout: ObservationLayout, views: Mapping[str, Part]) -> None:
        """Fix the observation space; `views` are the parts of the Dict form."""
        self.observation_layout = layout
        self._buffer: Float32Array = np.zeros(layout.size, np.float32)
        self._views = dict(views)
        low, high = layout.low, layout.high
        self.observation_space = (
            spaces.Dict({k: spaces.Box(low[v], high[v]) for k, v in self._views.items()})
            if self._dict
            else spaces.Box(low, high)
        )

    def _adopt(self, fused: FusedStep | None) -> Callable[..., Outcome] | None:
        """Write observations where the fused step does; returns the step, if there is one."""
        self._io = None if fused is None else fused.io
        if fused is None:
            return None
        fused.observation[:] = self._buffer
        self._buffer = fused.observation
        return fused.step

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: the episode's seed: it fixes traffic, noise and everything else, and is
                the one that `synergy-gym run --seed` takes. `None` draws one of the split.
            options: `load` and `workload` of this episode instead of the constructor's.

        Returns:
            The first observation, and an info with `scenario`, `load`, `seed` and `now_s`.

        Raises:
            ValueError: an unknown option, or an episode that cannot be played; then there is none.
        """
        super().reset(seed=seed)
        self._retire()
        # What fails from here on leaves no episode, and not the last one half replaced.
        self._sim = self._fused = self._io = None
        self._active = self._empty = False
        self._episode = self._next_episode(seed, options or {})
        self._sim = self._build(self._episode)
        self._met = 0
        self._empty = self._advance()
        self._active = not self._empty
        self._now_ns = self._sim.now_ns
        if self._fused is not None:
            mark_seen(self._sim.memory, self._now_ns, 0)
        self._read(self._empty)
        if self._shaping is not None:
            self._shaping.start(0.0 if self._empty else self._potential())
        if self._renderer is not None:
            self._renderer.reset()
            if self._human:
                self.render()
        return self._observation(), self._reset_info()

    def _next_episode(self, seed: int | None, options: Mapping[str, Any]) -> Episode:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"reset options {unknown} are unknown; choose from {list(_OPTIONS)}")
        if seed is None:
            seed = int(self._seeds[self.np_random.integers(len(self._seeds))])
        load = _checked_load(options.get("load", self.load))
        source = options.get("workload", self._source)
        if isinstance(source, Workload) and (load != 1.0 or "load" in options):
            raise ValueError(_FIXED_LOAD.format(load=load))
        workload = source(load, seed) if callable(source) else source
        if not (workload is None or isinstance(workload, Workload)):
            raise ValueError(
                f"workload is {reprlib.repr(workload)}; give a Workload, a function of "
                "(load, seed) that makes one, or None for the scenario's own"
            )
        return Episode(seed=seed, load=load, workload=workload)

    @property
    def is_compiled(self) -> bool:
        """Whether a compiled step can take the next decision."""
        return self._fused is not None and self._active

    @property
    def io(self) -> Float32Array | None:
        """Scales and observation of the compiled step, if there is one."""
        return self._io

    @property
    def memory(self) -> Memory:
        """The simulator's memory, where there is a compiled step."""
        memory: Memory = self._sim.memory
        return memory

    @property
    def parts(self) -> dict[str, Part] | None:
        """Where the entries of the Dict form lie in the flat one; `None` in the flat form."""
        return dict(self._views) if self._dict else None

    def end_compiled(self) -> tuple[Float32Array, float, dict[str, Any]]:
        """Flat observation, reward and info of a compiled step that ended the episode."""
        self._read(True)
        reward, info = self._outcome(True)
        return self._buffer, reward, info

    def _reset_info(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario.name,
            "load": self._episode.load,
            "seed": self._episode.seed,
            "now_s": self._now_ns / NS_PER_S,
        }

    def _outcome(self, ended: bool) -> tuple[float, dict[str, Any]]:
        """Reward and info of the step that has just been simulated."""
        self._catch_up()
        sim = self._sim
        now_ns, met = sim.now_ns, sim.met()
        dt_s = (now_ns - self._now_ns) / NS_PER_S
        reward = float(met - self._met)
        self._now_ns = now_ns
        self._met = met
        terms = {SLO_MET: reward}
        if self._shaping is not None:
            terms[SHAPING] = self._shaping.step(0.0 if ended else self._potential(), dt_s)
            reward += terms[SHAPING]
        info: dict[str, Any] = {"dt_s": dt_s, "reward_terms": terms}
        if ended:
            self._active = False
            info.update(self._final_info())
        return reward, info

    def _catch_up(self) -> None:
        """Fused steps count in the memory; take over what they have reported."""
        if self._fused is not None:
            self._now_ns, self._met = seen(self._sim.memory)

    def _final_info(self) -> dict[str, Any]:
        from synergy_gym.metrics import summarize

        scenario = self.scenario
        metrics = summarize(
            self._sim.records(),
            scenario.slos,
            warmup_ns=round(scenario.warmup_s * NS_PER_S),
            horizon_ns=round(scenario.horizon_s * NS_PER_S),
            engines=len(scenario.engines),
        )
        info = {"episode_metrics": metrics, "log_hash": self._sim.log_hash()}
        return info if self._live is None else {**info, "live": self._sim.live_report()}

    def _observation(self) -> Any:
        if not self._dict:
            return self._buffer.copy()
        return {name: np.array(self._buffer[part]) for name, part in self._views.items()}

    def _step_inactive(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The only step of an episode without decisions; anything else needs a reset."""
        if not self._empty:
            raise gym.error.ResetNeeded(
                "step() was called before reset() or after the end of an episode; call reset()"
            )
        self._empty = False
        reward, info = self._outcome(True)
        return self._observation(), reward, False, True, info

    def snapshot(self) -> EnvSnapshot:
        """The whole state of the running episode, to come back to with `restore()`.

        Raises:
            gymnasium.error.ResetNeeded: no episode was begun.
        """
        if self._sim is None:
            raise gym.error.ResetNeeded("there is nothing to snapshot before reset(); call reset()")
        self._catch_up()
        phi = self._shaping.last if self._shaping is not None else 0.0
        generator = self._np_random
        return EnvSnapshot(
            owner=self._token,
            simulator=self._sim,
            state=self._sim.snapshot(),
            episode=self._episode,
            counters=(self._now_ns, self._met, self._active, self._empty, phi),
            extra=self._save(),
            observation=self._buffer.copy(),
            generator=None if generator is None else dict(generator.bit_generator.state),
        )

    def restore(self, snapshot: EnvSnapshot) -> Any:
        """Go back to a snapshot of this environment; returns the observation of that moment.

        Raises:
            ValueError: the snapshot was taken from another environment.
        """
        if snapshot.owner is not self._token:
            raise ValueError("this snapshot belongs to another environment; take one from this env")
        self._sim = snapshot.simulator
        self._sim.restore(snapshot.state)
        self._episode = snapshot.episode
        self._now_ns, self._met, self._active, self._empty, phi = snapshot.counters
        self._buffer[:] = snapshot.observation
        if self._shaping is not None:
            self._shaping.last = phi
        if snapshot.generator is not None:
            self.np_random.bit_generator.state = snapshot.generator
        self._restore_extra(snapshot.extra)
        return self._observation()

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and pickle, at any moment of an episode: a copy shares nothing.

        Raises:
            TypeError: real engines cannot be copied.
        """
        if self._live is not None:
            raise TypeError("an environment on real engines cannot be copied; make another one")
        # What holds addresses of this one's memory is bound anew.
        return {
            **self.__dict__, "_fused": None, "_io": None, "_renderer": None,
            "_buffer": self._buffer.copy(), "_was_bound": self._fused is not None,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        was_bound = state.pop("_was_bound")
        self.__dict__.update(state)
        self._renderer = make_renderer(self.render_mode) if self.render_mode else None
        if was_bound:
            self._bind(self._sim)

    def render(self) -> Any:
        """Draw the current state: text (`ansi`), an image (`rgb_array`), or live (`human`).

        Raises:
            gymnasium.error.ResetNeeded: no episode was begun.
        """
        if self._renderer is None:
            gym.logger.warn(
                "render() was called without a render mode; give one to the constructor, "
                f'e.g. gym.make("{self.spec.id if self.spec else type(self).__name__}", '
                'render_mode="ansi")'
            )
            return None
        if self._sim is None:
            raise gym.error.ResetNeeded("there is nothing to draw before reset(); call reset()")
        return self._renderer.draw(self._frame())

    def close(self) -> None:
        """Free the terminal or the figure, if one is open, and real engines."""
        if self._renderer is not None:
            self._renderer.close()
        self._retire()
        self._pool.close()

    def _retire(self) -> None:
        """Give back what the last episode held, so that the next one can have it."""
        if self._live is not None and self._sim is not None:
            self._active = self._empty = False
            self._sim.close()

    def _played(
        self,
        episode: Episode,
        *,
        rules: Sequence[DecisionRule | None] | None = None,
        auto_route: bool = False,
        engine_policy: Any = "vllm-v1",
    ) -> Any:
        """What plays an episode: a simulator, or real engines with its interface."""
        traffic: dict[str, Any] = {
            "load": episode.load,
            "seed": episode.seed,
            "workload": episode.workload,
        }
        if self._live is None:
            return build_simulator(
                self.scenario,
                rules=rules,
                auto_route=auto_route,
                cls=self._simulator_class,
                **traffic,
            )
        assert self._live is not None
        return build_live(
            LiveEpisode(
                scenario=self.scenario,
                options=self._live,
                rules=rules,
                auto_route=auto_route,
                engine_policy=engine_policy,
                pool=self._pool,
                **traffic,
            )
        )

    def _save(self) -> Any:
        """Further state of a subclass, for `snapshot()`."""
        return None

    @abstractmethod
    def _bind(self, simulator: Any) -> None:
        """Find the compiled step of a simulator, if it has one."""

    def _restore_extra(self, extra: Any) -> None:
        """Take back what `_save` returned."""

    @abstractmethod
    def action_masks(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which actions are legal now (True), as maskable algorithms expect them."""

    @abstractmethod
    def check_action(self, action: Any) -> None:
        """Raise `ValueError` if the action cannot be taken now."""

    @abstractmethod
    def _build(self, episode: Episode) -> Any:
        """The simulator of an episode."""

    @abstractmethod
    def _advance(self) -> bool:
        """Run to the next decision of the agent; True at the end of the episode."""

    @abstractmethod
    def _read(self, ended: bool) -> None:
        """Write the observation of this moment into the buffer."""

    @abstractmethod
    def _potential(self) -> float:
        """Phi of this moment."""

    @abstractmethod
    def _frame(self) -> Frame:
        """This moment as a renderer draws it."""


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value` if it is allowed.

    Raises:
        ValueError: it is not; the message names the argument and lists the values.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {list(allowed)}")
    return value


def _checked_load(load: Any) -> float:
    if not (isinstance(load, int | float | np.number) and 0 < float(load) < float("inf")):
        raise ValueError(f"load={load!r} must be a positive number; 1.0 is the scenario's own rate")
    return float(load)


def _split_seeds(scenario: Scenario, split: str) -> tuple[int, ...]:
    choice("split", split, SPLITS)
    seeds: tuple[int, ...] = getattr(scenario, f"{split}_seeds")
    if not seeds:
        raise ValueError(f"scenario {scenario.name!r} has no {split} seeds; add some to its file")
    return seeds
