"""`SynergyGym/CrossLayer-v1`: routing and batching decisions of one cluster, in time order."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.base import Episode, ServingEnv, Split, WorkloadSource, choice
from synergy_gym.envs.compiled.joint import JointStep, joint_stepper
from synergy_gym.envs.decisions import checked_engine, checked_interval_ns
from synergy_gym.envs.fixed_layers import (
    EnginePolicySpec,
    FixedEngines,
    FixedRouter,
    RouterPolicySpec,
)
from synergy_gym.envs.held import HeldDecisions
from synergy_gym.envs.joint_spaces import LAYERS, JointActions, JointObservation
from synergy_gym.envs.rendering import Frame
from synergy_gym.envs.router_view import cluster_frame, read_router
from synergy_gym.live.backend import LiveOptions, live_options
from synergy_gym.observation import Float32Array
from synergy_gym.policies.base import Layer
from synergy_gym.rewards import SLO_MET, PotentialShaping, find_router_potential
from synergy_gym.scenario import Scenario
from synergy_gym.seasons import SEASON
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.types import NS_PER_S, BoolArray, IntArray, RouterRow

FORMS = ("flat", "dict")
NOTHING_LEFT = (
    "router_policy and engine_policy decide everything; leave one of them out, or play both with "
    "synergy_gym.evaluate"
)


class CrossLayerEnv(ServingEnv):
    """Routing and batching decisions of a cluster of LLM-serving engines, in time order.

    ## Description

    A router in front of a cluster, and the engines behind it, under one clock. The router sends
    every arriving request to an engine (`ClusterRouting-v1`); every engine says before each of its
    iterations what it may take (`EngineBatching-v1`). The layers help or harm each other: a router
    can spare an engine whose queue a small token budget lets grow, and an engine can make room for
    what the router will send.

    A step is one decision of either layer. Decisions come in the order of simulated time. What
    happens at the same instant has this order: iterations end (lowest engine first), events of the
    scenario, clients that give up, arrivals and their routing, then engines that are free plan
    their next iteration (lowest engine first). So an engine that is free when a request arrives
    can take it into the very iteration that it plans then. `info["layer"]` (`"router"` or
    `"engine"`) and `info["agent"]` (`"router"`, `"engine_0"`, ...) say who decides next.

    An engine's decision holds for all of its iterations that begin before `decision_interval_s` has
    passed, whatever is decided elsewhere meanwhile: a grid's cell is applied anew to each. Then the
    engine is asked again; with `None` it is asked before every iteration. `info["iterations"]`
    counts those that began during the step. The router is asked for every request.

    `router_policy=` or `engine_policy=` gives a layer to a policy, as `synergy_gym.evaluate` takes
    it; then the agent decides the other layer alone, and observations and actions are exactly
    those of the other layer's own environment. Equal decisions give the episode (`log_hash`) that
    `evaluate`, `ClusterRouting-v1` and `EngineBatching-v1` give, bit for bit. With
    `router_policy="round-robin"` it is `EngineBatching-v1` for a cluster: one policy steers every
    engine.

    `synergy_gym.envs.pettingzoo` has the same world with an agent per engine (AEC and parallel).

    ## Action Space

    `MultiDiscrete([engines, *batching])`, where `batching` are the sizes of `EngineBatching-v1` in
    the form of `action=` (a grid by default, which fits engines with unlike limits). With
    `action_form="dict"` a `Dict` of `router`, `Discrete(engines)`, and `engine`,
    `MultiDiscrete(batching)`. With a fixed layer the other's space alone.

    | Num | Counts when      | Meaning                                                           |
    |-----|------------------|-------------------------------------------------------------------|
    | 0   | the router decides | the engine that gets the request                                |
    | 1.. | an engine decides  | token budget, admission cap, ... as `EngineBatching-v1` has them |

    Of an action only the part of the layer that decides counts; the other has no effect (a Dict
    may leave it out). An engine that is down cannot be routed to. With `action="limits"` or
    `"full"` the space is that of the largest engine, and what exceeds the engine that decides is
    illegal. Anything illegal is a `ValueError`; while something is, infos carry `action_mask`, in
    the form that `action_space.sample(mask)` takes. `action_masks()` returns a flat mask at any
    time, as maskable algorithms expect; there the idle part has one value left (0), so that they
    learn nothing from it.

    ## Observation Space

    `Box(low, 1, (1 + 10 + 21 * engines + 17,), float32)`. The deciding layer's part is the
    observation of its own environment, the other part is zero.
    `env.unwrapped.observation_layout` maps the groups to slices; `observation="dict"` gives a
    `Dict`.

    | Group                                     | Size         | Observation                        |
    |-------------------------------------------|--------------|------------------------------------|
    | `layer`                                   | 1            | 0: the router decides, 1: an engine |
    | `request`                                 | 10           | as in `ClusterRouting-v1`          |
    | `engines` (Dict: `router`, `pushed`, `scraped`) | 21 * engines | as in `ClusterRouting-v1`    |
    | `running`, `waiting`, `kv`, `last_step`   | 17           | as in `EngineBatching-v1`, of the engine that decides |

    Engine numbers are scaled by the engine's own limits, so that one policy can steer unlike
    engines; `info["agent"]` names the engine.

    ## One policy per layer

    `env.unwrapped.part(observation)` is what the deciding layer's policy sees, and
    `env.unwrapped.joint(action)` the whole action for what it says:

    ```python
    >>> import gymnasium as gym, synergy_gym
    >>> env = gym.make("SynergyGym/CrossLayer-v1", scenario="smoke-cluster")
    >>> policies = {"router": lambda x: 0, "engine": lambda x: [8, 4, 0, 0]}
    >>> observation, info = env.reset(seed=0)
    >>> for _ in range(100):
    ...     action = policies[info["layer"]](env.unwrapped.part(observation))
    ...     observation, reward, _, truncated, info = env.step(env.unwrapped.joint(action))

    ```

    `synergy_gym.envs.wrappers.one_layer.OneLayer` shows one layer's decisions only and lets any function
    decide the other, for training the layers in turn.

    ## Rewards

    1 for every scored request that finished during the step with all SLOs of its class met, so
    the undiscounted return is the number of SLO-attaining requests. Both layers work for the same
    sum. Steps belong to different layers, so a layer's own return is the sum of the rewards from
    one of its decisions to its next: after the router's action also of the engines' steps in
    between. For credit by engine, `info["met_by_engine"]` has the requests of this step by the
    engine that served them to their end; they add up to the reward without shaping.

    `info["reward_terms"]` names the parts: `slo_met`, and `shaping` if `shaping=` names a
    potential of `ClusterRouting-v1`.

    ## Starting State

    An empty cluster at the first arrival. Seeds and options are those of `ClusterRouting-v1`.

    ## Episode End

    As in the other environments: truncated when every request has left or passed its last
    deadline, never terminated. The last info has `episode_metrics` and `log_hash`, and no `layer`.
    The last observation is the router's without a request, or the state of the engine that
    decided last where the router is fixed. An episode without decisions has one step without
    effect.

    ## Arguments

    | Parameter         | Type                     | Default       | Description                             |
    |-------------------|--------------------------|---------------|-----------------------------------------|
    | `scenario`        | name, path or `Scenario` | `"hetero-3"`  | the cluster and its traffic             |
    | `router_policy`   | name, class, instance or None | `None`   | decides the router; `None`: the agent   |
    | `engine_policy`   | name, class, instance or None | `None`   | decides every engine; `None`: the agent |
    | `load`            | float                    | `1.0`         | multiple of the scenario's arrival rate |
    | `workload`        | `Workload`, function or None | `None`    | fixed traffic, or a function of (load, seed) |
    | `split`           | str                      | `"train"`     | seeds of `reset()`: train, validation, test |
    | `horizon_s`, `warmup_s` | float or None      | `None`        | as in `EngineBatching-v1`               |
    | `action`          | str or `EngineGrid`      | `"grid"`      | the engine's part: `"limits"`, `"full"`, `"grid"` or a grid |
    | `decision_interval_s` | float or None        | `2.0`         | how long an engine's decision holds, seconds; `None`: for one iteration. Without effect under `engine_policy` |
    | `action_form`     | str                      | `"flat"`      | `"flat"` or `"dict"`                    |
    | `observation`     | str                      | `"flat"`      | `"flat"` or `"dict"`                    |
    | `shaping`         | str or None              | `None`        | `"in-flight"` or `"imbalance"`          |
    | `shaping_weight`, `shaping_beta_per_s` | float | `1.0`, `0.0` | its factor, and its discount rate, 1/s |
    | `backend`         | str                      | `"sim"`       | `"sim"`, `"reference"` (plain Python) or `"vllm"` (real engines in this process) |
    | `model`, `clock`, `live` | as in `EngineBatching-v1` | `None` | vLLM only                               |
    | `render_mode`     | str or None              | `None`        | `"human"`, `"ansi"` or `"rgb_array"`    |
    | `season`          | int                      | current       | of a scenario's name that says none; 1 in `-v0` |

    `snapshot()` and `restore(snapshot)` go back to any moment of the episode.

    ## Version History

    * v1: an engine's decision holds for `decision_interval_s`; `horizon_s`, `warmup_s`.
    * v0: first version, `decision_interval_s=None`.
    """  # noqa: E501

    def __init__(
        self,
        scenario: str | Path | Scenario = "hetero-3",
        *,
        router_policy: RouterPolicySpec | None = None,
        engine_policy: EnginePolicySpec | None = None,
        load: float = 1.0,
        workload: WorkloadSource | None = None,
        split: Split = "train",
        horizon_s: float | None = None,
        warmup_s: float | None = None,
        action: Literal["limits", "full", "grid"] | EngineGrid = "grid",
        action_form: Literal["flat", "dict"] = "flat",
        decision_interval_s: float | None = 2.0,
        observation: Literal["flat", "dict"] = "flat",
        shaping: str | None = None,
        shaping_weight: float = 1.0,
        shaping_beta_per_s: float = 0.0,
        backend: str = "sim",
        model: str | None = None,
        clock: str | None = None,
        live: LiveOptions | None = None,
        render_mode: str | None = None,
        season: int = SEASON,
    ) -> None:
        self._phi = find_router_potential(shaping) if shaping else None
        super().__init__(
            scenario=scenario,
            season=season,
            load=load,
            workload=workload,
            split=split,
            horizon_s=horizon_s,
            warmup_s=warmup_s,
            observation=observation,
            backend=backend,
            live=live_options(backend, live, model=model, clock=clock),
            shaping=PotentialShaping(shaping_weight, shaping_beta_per_s) if shaping else None,
            render_mode=render_mode,
        )
        self._need_inprocess("CrossLayer")
        self.engines = self.scenario.engines
        self._fix(router_policy, engine_policy)
        is_dict = choice("action_form", action_form, FORMS) == "dict"
        self.actions = JointActions(self.engines, action, is_dict, self.layers)
        self.action_space = self.actions.space
        self._joint = JointObservation(self.engines, self.scenario.slos, self.layers)
        self._observe_as(self._joint.layout, self._joint.views)
        self._can_be_down = any(event.kind == "down" for event in self.scenario.events)
        self.decision_interval_s = None if self._engines else decision_interval_s
        self._held = HeldDecisions(self.actions.engines, checked_interval_ns(decision_interval_s))
        self._controls = self.actions.controls(self.engines, self.scenario.slos)
        self._iterations = 0
        self._compiled: JointStep | None = None
        self._names = [f"engine_{i}" for i in range(len(self.engines))]
        self._point = DONE
        self._engine = 0
        self._rows: IntArray = np.zeros((len(self.engines), len(RouterRow)), np.int64)
        self._met_by: IntArray = np.zeros(len(self.engines), np.int64)

    def _fix(self, router: RouterPolicySpec | None, engine: EnginePolicySpec | None) -> None:
        engines, slos = self.engines, tuple(self.scenario.slos)
        self._router = None if router is None else FixedRouter(router, engines, slos)
        self._engines = None if engine is None else FixedEngines(engine, engines, slos)
        fixed = {"router": self._router, "engine": self._engines}
        self.layers: tuple[Layer, ...] = tuple(x for x in LAYERS if fixed[x] is None)
        if not self.layers:
            raise ValueError(NOTHING_LEFT)

    @property
    def layer(self) -> Layer | None:
        """The layer that decides next, `None` at the end of the episode."""
        point = self._point
        return "engine" if point == BATCH else "router" if point == ROUTE else None

    @property
    def agent(self) -> str | None:
        """Who decides next: `router` or `engine_0`, ..., `None` at the end of the episode."""
        return self._names[self._engine] if self._point == BATCH else self.layer

    @property
    def episode_seed(self) -> int:
        """The seed of the running episode."""
        return self._episode.seed

    @property
    def now_s(self) -> float:
        """The instant of the decision, seconds since the episode began."""
        return float(self._sim.now_ns / NS_PER_S)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one decision; see the class docstring.

        Raises:
            ValueError: the action is outside the space, or illegal now.
            gymnasium.error.ResetNeeded: there is no running episode.
        """
        part = self.actions.part(action, self.layer) if self.layer is not None else None
        reward, info = self.act(part)
        return self._observation(), reward, False, not self._active, info

    def act(self, action: Any) -> tuple[float, dict[str, Any]]:
        """Like `step`, with an action of the deciding agent's own space; returns reward and info.

        The router's is the index of an engine, an engine's is one of `actions.engines[i].space`.

        Raises:
            ValueError: the action is outside the space, or illegal now.
            gymnasium.error.ResetNeeded: there is no running episode.
        """
        if not self._active:
            _, reward, _, _, info = self._step_inactive()
            return reward, info | self._turn()
        if self._compiled is not None:
            return self._act_compiled(self._compiled, action)
        self._iterations = 0
        if self._point == ROUTE:
            self._sim.route(self._checked(action))
        else:
            self._held.take(self._engine, action, self._sim.now_ns)
            self._plan(self._engine)
        ended = self._advance()
        self._read(ended)
        reward, info = self._outcome(ended)
        info |= self._turn()
        if self._human:
            self.render()
        return reward, info

    def _act_compiled(self, step: JointStep, action: Any) -> tuple[float, dict[str, Any]]:
        if self._point == ROUTE:
            result = step.route(self._checked(action))
        else:
            self._held.take(self._engine, action, self._sim.now_ns)
            result = step.batch()
        self._point, engine, dt_s, reward, self._iterations = result
        if self._point == DONE:
            self._read(True)
            reward, info = self._outcome(True)
            return reward, info | self._turn()
        if self._point == BATCH:
            self._engine = engine
        info = {"dt_s": dt_s, "reward_terms": {SLO_MET: reward}}
        return reward, info | self._turn()

    def check_action(self, action: Any) -> None:
        """Raise `ValueError` if the action cannot be taken now."""
        if self.layer is None:
            return
        part = self.actions.part(action, self.layer)
        if self._point == ROUTE:
            self._checked(part)
        else:
            self.actions.engines[self._engine].values(part)

    def _checked(self, action: Any) -> int:
        alive = self._alive() if self._can_be_down else None
        return checked_engine(action, len(self.engines), alive, self._sim.now_ns)

    def _plan(self, engine: int) -> None:
        """Plan the next iteration of an engine by its last decision."""
        view = partial(self._sim.engine_view, engine)
        self._sim.batch(self._held.decision(engine, view))
        self._iterations += 1

    def _turn(self) -> dict[str, Any]:
        """Whose turn is next, what is legal then, and whose requests met their SLOs."""
        met = self._sim.met_by_engine()
        info: dict[str, Any] = {"met_by_engine": met - self._met_by}
        self._met_by = met
        if self.decision_interval_s is not None:
            info["iterations"] = self._iterations
        if self.layer is not None:
            info["layer"], info["agent"] = self.layer, self.agent
            if self._can_be_illegal():
                mask = self.actions.info_mask(self.layer, self.agent_masks())
                info |= {} if mask is None else {"action_mask": mask}
        return info

    def _can_be_illegal(self) -> bool:
        if self._point == ROUTE:
            return self._can_be_down
        return self.actions.is_smaller[self._engine]

    def _alive(self) -> BoolArray:
        if self._sim is None or not self._can_be_down or self._point != ROUTE:
            return np.ones(len(self.engines), np.bool_)
        alive: BoolArray = self._rows[:, RouterRow.ALIVE] != 0
        return alive

    def action_masks(self) -> BoolArray:
        """Which actions make sense now, one flag per value of each number of the flat action.

        That is what is legal for the deciding layer, and 0 alone for the other.
        """
        return self.actions.masks(self.layer or self.layers[0], self.agent_masks())

    def agent_masks(self) -> list[BoolArray]:
        """Which values of each number of the deciding layer's own action are legal."""
        return self.actions.legal(self.layer or self.layers[0], self._engine, self._alive())

    def part(self, observation: Any, layer: Layer | None = None) -> Any:
        """A layer's part of an observation, as the layer's own environment shows it.

        Without `layer` that of the deciding one, at the end of an episode the router's (an
        engine's where the router is fixed).
        """
        return self._joint.part(observation, layer or self.layer or self.layers[0])

    def layer_space(self, layer: Layer) -> spaces.Space[Any]:
        """The observation space of a layer by itself."""
        return self._joint.layer_space(self.observation_space, layer)

    def joint(self, action: Any) -> Any:
        """The whole action that says `action` for the deciding layer (0 for the other)."""
        return self.actions.joint(action, self.layer or self.layers[0])

    def chosen_by(self, router: FixedRouter) -> int:
        """What a policy would decide for the router at this moment."""
        return router.choose(self._sim)

    def agent_space(self, engine: int) -> spaces.Box:
        """The observation space of one engine, or with -1 of the router."""
        return self._joint.agent_space(engine)

    def router_observation(self) -> Float32Array:
        """What the router sees now, as `ClusterRouting-v1` shows it (float32, 10 + 21 * engines).

        The request part is zero unless a request is being routed.
        """
        out = np.empty(self._joint.router.layout.size, np.float32)
        is_routing = self._point == ROUTE
        read_router(self._sim, self._joint.router, self.np_random, out, request=is_routing)
        return out

    def engine_observation(self, engine: int) -> Float32Array:
        """What an engine's policy sees now, as `EngineBatching-v1` shows it (float32, 17)."""
        return self._joint.engines[engine].write(self._sim.engine_state(engine))

    def _reset_info(self) -> dict[str, Any]:
        turn = self._turn()
        for of_a_step in ("met_by_engine", "iterations"):
            turn.pop(of_a_step, None)
        return {**super()._reset_info(), **turn}

    def _build(self, episode: Episode) -> Any:
        self._met_by = np.zeros(len(self.engines), np.int64)
        self._engine = self._iterations = 0
        self._held.table[:] = 0
        if self._router is not None:
            self._router.reset(episode.seed)
        if self._engines is None:
            simulator = self._played(episode)
            self._bind(simulator)
            return simulator
        rules = self._engines.reset(episode.seed)
        return self._played(episode, rules=rules, engine_policy=self._engines.source)

    def _bind(self, simulator: Any) -> None:
        plain = self.layers == LAYERS and self._shaping is None
        joint, made = self._joint, None
        if plain and not self._human and not self._can_be_down:
            scales = [features.scale for features in joint.engines]
            held = self._held.table
            made = joint_stepper(simulator, joint.router.scale, scales, self._controls, held)
        self._compiled = None if made is None else made[0]
        self._fused = self._adopt(None if made is None else made[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled": None}

    def _advance(self) -> bool:
        sim = self._sim
        while True:
            point = sim.advance()
            if point == ROUTE and self._router is not None:
                self._router.answer(sim)
            elif point == BATCH and self._engines is not None:
                self._engines.answer(sim)
            elif point == BATCH and self._held.holds(sim.point_engine, sim.now_ns):
                self._plan(sim.point_engine)
            else:
                break
        self._point = point
        if point == BATCH:
            self._engine = sim.point_engine
        return bool(point == DONE)

    def _read(self, ended: bool) -> None:
        sim, joint = self._sim, self._joint
        if self._router is None and self._point != BATCH:
            out = joint.begin(self._buffer, "router")
            self._rows = read_router(sim, joint.router, self.np_random, out, request=not ended)
            return
        joint.write_engine(sim.engine_state(self._engine), self._engine, self._buffer)
        if self._phi is not None:
            self._rows = sim.router_rows()

    def _potential(self) -> float:
        return self._phi(self._rows, self.engines) if self._phi is not None else 0.0

    def _save(self) -> Any:
        fixed = copy.deepcopy((self._router, self._engines))
        arrays = self._rows.copy(), self._met_by.copy(), self._held.table.copy()
        return self._point, self._engine, arrays, fixed

    def _restore_extra(self, extra: Any) -> None:
        self._point, self._engine, arrays, fixed = copy.deepcopy(extra)
        self._rows, self._met_by, self._held.table = arrays
        self._router, self._engines = fixed
        self._bind(self._sim)

    def _frame(self) -> Frame:
        episode = self._episode
        title = f"{self.scenario.name}  load {episode.load:g}  seed {episode.seed}"
        return cluster_frame(self._sim, self.engines, title)
