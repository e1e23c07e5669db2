"""The cluster as a multi-agent environment of PettingZoo: a router and one agent per engine.

    from synergy_gym.envs.pettingzoo import env, parallel_env

`env(...)` is an AEC environment: agents are asked one at a time, in the order of simulated time,
exactly as `SynergyGym/CrossLayer-v1` asks its layers. `parallel_env(...)` asks all agents at every
arrival. Both need the extra `pettingzoo`. Their classes say the rest.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from synergy_gym.envs.base import choice
from synergy_gym.envs.cross_layer import NOTHING_LEFT, CrossLayerEnv
from synergy_gym.envs.fixed_layers import FixedRouter, RouterPolicySpec
from synergy_gym.observation import Float32Array

try:
    from pettingzoo import AECEnv, ParallelEnv
    from pettingzoo.utils import wrappers
except ImportError as error:
    raise ImportError(
        "synergy_gym.envs.pettingzoo needs PettingZoo; pip install 'synergy-gym[pettingzoo]'"
    ) from error

ROUTER = "router"
Credit = Literal["own", "team"]
CREDITS = ("own", "team")
_PROBE = "options"  # PettingZoo's API tests pass {"options": 1} to see that options are taken


class ClusterAgents:
    """What both environments share: agents, spaces, observations, credit and infos.

    Args:
        core: the two-layer environment that plays the episode.
        routes: whether the router is an agent.
        credit: `"own"` or `"team"`.
    """

    def __init__(self, core: CrossLayerEnv, routes: bool, credit: Credit) -> None:
        self.core = core
        self._is_team = choice("credit", credit, CREDITS) == "team"
        batches = "engine" in core.layers
        engines = [f"engine_{i}" for i in range(len(core.engines))] if batches else []
        self.names = [ROUTER] * routes + engines
        self.observation_spaces: dict[str, spaces.Space[Any]] = {}
        self.action_spaces: dict[str, spaces.Space[Any]] = {}
        for name in self.names:
            index = engine_index(name)
            own = core.actions.spaces["router"] if index < 0 else core.actions.engines[index].space
            self.observation_spaces[name] = core.agent_space(index)
            self.action_spaces[name] = own
        bounds = [core.agent_space(-1), *(core.agent_space(i) for i in range(len(core.engines)))]
        low, high = (np.concatenate([getattr(b, side) for b in bounds]) for side in ("low", "high"))
        self.state_space = spaces.Box(low, high)
        self._acted_s: dict[str, float] = {}

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> None:
        """Begin an episode."""
        known = {k: v for k, v in (options or {}).items() if k != _PROBE}
        self.core.reset(seed=seed, options=known)
        self._acted_s = dict.fromkeys(self.names, self.core.now_s)

    def acts(self, name: str) -> None:
        """An agent decides at this moment."""
        self._acted_s[name] = self.core.now_s

    def observe(self, name: str) -> Float32Array:
        """What an agent sees now."""
        index = engine_index(name)
        return self.core.router_observation() if index < 0 else self.core.engine_observation(index)

    def credit(self, reward: float, met_by_engine: Any) -> dict[str, float]:
        """What each agent earns of a step's reward."""
        engines = range(len(self.core.engines))
        own = {f"engine_{i}": reward if self._is_team else float(met_by_engine[i]) for i in engines}
        return {name: own.get(name, reward) for name in self.names}

    def infos(self, final: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """An info per agent; `final` is added to each at the end of the episode."""
        now_s, core = self.core.now_s, self.core
        result: dict[str, dict[str, Any]] = {
            name: {"now_s": now_s, "dt_s": now_s - self._acted_s[name]} for name in self.names
        }
        for name, info in result.items():
            info |= {key: dict(v) if isinstance(v, dict) else v for key, v in final.items()}
            if name == core.agent == ROUTER and not (alive := core.agent_masks()[0]).all():
                info["action_mask"] = alive.astype(np.int8)
        return result

    def state(self) -> Float32Array:
        """The router's observation and those of all engines, in one array."""
        core = self.core
        engines = [core.engine_observation(i) for i in range(len(core.engines))]
        return np.concatenate([core.router_observation(), *engines])


def engine_index(agent: str) -> int:
    """The engine that an agent steers, -1 for the router."""
    return -1 if agent == ROUTER else int(agent.removeprefix("engine_"))


def _final(info: dict[str, Any]) -> dict[str, Any]:
    keys = ("episode_metrics", "log_hash", "live")
    return {key: info[key] for key in keys if key in info}


class _Shown:
    """What both kinds of environment show of their agents."""

    def _show(self, world: ClusterAgents) -> None:
        self._world = world
        self.render_mode = world.core.render_mode
        self.possible_agents = list(world.names)
        self.observation_spaces = world.observation_spaces
        self.action_spaces = world.action_spaces
        self.state_space = world.state_space
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The space of what an agent sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The space of what an agent decides."""
        return self.action_spaces[agent]

    def state(self) -> Float32Array:
        """The global state: the router's observation, then every engine's."""
        return self._world.state()

    def render(self) -> Any:
        """As `CrossLayerEnv.render`."""
        return self._world.core.render()

    def close(self) -> None:
        """Free what the episode and its pictures hold."""
        self._world.core.close()


class ClusterAEC(_Shown, AECEnv):  # type: ignore[misc]
    """A router and engines as agents that are asked one at a time, in time order.

    | Agent          | Asked when                        | Observation (float32)               | Action                   |
    |----------------|-----------------------------------|-------------------------------------|--------------------------|
    | `router`       | a request arrives                 | `ClusterRouting-v1`: 10 + 21 * engines | `Discrete(engines)`   |
    | `engine_0`, .. | it plans an iteration, and its last decision is `decision_interval_s` old | `EngineBatching-v1`: 17 | as `action=` says, within the engine's own limits |

    The order of decisions is that of `SynergyGym/CrossLayer-v1`; agents are not asked in turns,
    and an engine without work is not asked at all. An agent may be observed at any time: it sees
    the present, the router without a request unless one is being routed. While an engine is down
    the router's info has `action_mask` (int8). Every info has `now_s` and `dt_s`, the time since
    the agent's own last decision.

    Rewards: with `credit="own"` an engine earns 1 for every scored request that it served to its
    end with all SLOs met, and the router 1 for each of them on any engine, so that the engines'
    returns add up to the router's, which is what the leaderboard counts. With `credit="team"`
    every agent earns what the router earns (fully cooperative). What happens between two decisions
    of an agent is paid to the first of them. `shaping=` goes to the router, and to all of a team.

    All agents are truncated at the end of the episode; their infos have `episode_metrics` and
    `log_hash`. `state()` is the global state for centralised training: the router's observation,
    then every engine's. Actions outside the space, or illegal, are a `ValueError`.

    Args:
        scenario: as all further arguments, of `CrossLayerEnv` (`load`, `router_policy`, ...). A
            layer with a policy has no agents.
        credit: `"own"` or `"team"`.
        **arguments: of `CrossLayerEnv`, less `observation` and `action_form`.
    """  # noqa: E501

    metadata: dict[str, Any] = {  # noqa: RUF012 - PettingZoo declares it so
        **CrossLayerEnv.metadata,
        "name": "synergy_gym_cross_layer_v1",
        "is_parallelizable": False,
    }

    def __init__(
        self, scenario: Any = "hetero-3", *, credit: Credit = "own", **arguments: Any
    ) -> None:
        super().__init__()
        core = _core(scenario, arguments)
        self._show(ClusterAgents(core, "router" in core.layers, credit))

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin an episode; `seed` and `options` as in `CrossLayerEnv.reset`."""
        self._world.reset(seed, options)
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self._skip_agent_selection = None
        self._go_on({})

    def step(self, action: Any) -> None:
        """Decide for the agent of `agent_selection`, and go on to the next one that is asked."""
        agent = self.agent_selection
        if self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._world.acts(agent)
        reward, info = self._world.core.act(action)
        self._cumulative_rewards[agent] = 0.0
        self.rewards = self._world.credit(reward, info["met_by_engine"])
        self._accumulate_rewards()
        self._go_on(info)

    def _go_on(self, info: dict[str, Any]) -> None:
        """Show the present; an episode that ends before any decision is over at once."""
        core = self._world.core
        if core.agent is None and not info:
            _, info = core.act(None)
        self.infos = self._world.infos(_final(info))
        self.truncations = dict.fromkeys(self.agents, core.agent is None)
        self.agent_selection = core.agent or self.agents[0]

    def observe(self, agent: str) -> Float32Array:
        """What an agent sees now."""
        return self._world.observe(agent)


class ClusterParallel(_Shown, ParallelEnv):  # type: ignore[misc]
    """A router and engines as agents that all decide at every arrival.

    A step lasts from one arrival to the next: the router sends the request that has just arrived,
    and each engine's decision holds for all iterations that it begins until the next arrival (with
    a grid, budgets follow the decodes of each iteration). After the last arrival it holds to the
    end of the episode. Every iteration by itself can be decided in the AEC environment only
    (`decision_interval_s=None`); one that repeats its decisions likewise plays the same episode,
    bit for bit.

    Agents, spaces, observations, rewards, infos and arguments are those of `ClusterAEC`, less
    `decision_interval_s`. A router with a policy is no agent; a step is an arrival all the same.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - PettingZoo declares it so
        **CrossLayerEnv.metadata,
        "name": "synergy_gym_cross_layer_parallel_v1",
    }

    def __init__(
        self,
        scenario: Any = "hetero-3",
        *,
        router_policy: RouterPolicySpec | None = None,
        credit: Credit = "own",
        **arguments: Any,
    ) -> None:
        # Steps end at arrivals, so the core stops there even where a policy answers.
        if "decision_interval_s" in arguments:
            raise TypeError(
                "decision_interval_s means nothing here: decisions hold until the next arrival; "
                "leave it out, or use the AEC environment"
            )
        core = _core(scenario, {**arguments, "decision_interval_s": None})
        self._router: FixedRouter | None = None
        if router_policy is not None:
            if "engine" not in core.layers:
                raise ValueError(NOTHING_LEFT)
            slos = tuple(core.scenario.slos)
            self._router = FixedRouter(router_policy, core.engines, slos)
        self._show(ClusterAgents(core, self._router is None, credit))

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Float32Array], dict[str, dict[str, Any]]]:
        """Begin an episode; `seed` and `options` as in `CrossLayerEnv.reset`."""
        self._world.reset(seed, options)
        if self._router is not None:
            self._router.reset(self._world.core.episode_seed)
        self.agents = list(self.possible_agents)
        return self._observations(), self._world.infos({})

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[
        dict[str, Float32Array],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Decide for every agent, until the next arrival.

        Raises:
            ValueError: an agent has no action, or one that is outside its space or illegal.
        """
        if not self.agents:
            return {}, {}, {}, {}, {}
        self._check(actions)
        for name in self.agents:
            self._world.acts(name)
        earned, info = self._play(actions)
        over = self._world.core.agent is None
        infos = self._world.infos(_final(info))
        result = (
            self._observations(),
            self._world.credit(*earned),
            dict.fromkeys(self.agents, False),
            dict.fromkeys(self.agents, over),
            infos,
        )
        self.agents = [] if over else self.agents
        return result

    def _play(self, actions: dict[str, Any]) -> tuple[tuple[float, Any], dict[str, Any]]:
        """Route, then repeat the engines' actions until the next arrival: (earned, last info)."""
        core = self._world.core
        target = actions.get(ROUTER)
        if self._router is not None and core.layer is not None:
            target = core.chosen_by(self._router)
        reward, info = core.act(target)
        met = info["met_by_engine"]
        while core.layer == "engine":
            more, info = core.act(actions[str(core.agent)])
            reward, met = reward + more, met + info["met_by_engine"]
        return (reward, met), info

    def _check(self, actions: dict[str, Any]) -> None:
        for name in self.agents:
            if name not in actions:
                raise ValueError(f"there is no action for agent {name!r}; give one for each")
            if (index := engine_index(name)) >= 0:
                self._world.core.actions.engines[index].values(actions[name])

    def _observations(self) -> dict[str, Float32Array]:
        return {name: self._world.observe(name) for name in self.agents}


def _core(scenario: Any, arguments: dict[str, Any]) -> CrossLayerEnv:
    unused = sorted({"observation", "action_form"} & set(arguments))
    if unused:
        raise TypeError(f"{unused} mean nothing to single agents, which see and say their own part")
    return CrossLayerEnv(scenario, **arguments)


def raw_env(scenario: Any = "hetero-3", **arguments: Any) -> ClusterAEC:
    """The AEC environment without a wrapper; arguments of `ClusterAEC`."""
    return ClusterAEC(scenario, **arguments)


def env(scenario: Any = "hetero-3", **arguments: Any) -> Any:
    """The AEC environment in PettingZoo's usual wrapper, which refuses a wrong order of calls.

    Actions are checked by the environment itself.
    """
    return wrappers.OrderEnforcingWrapper(ClusterAEC(scenario, **arguments))


def parallel_env(scenario: Any = "hetero-3", **arguments: Any) -> ClusterParallel:
    """The parallel environment; arguments of `ClusterParallel`."""
    return ClusterParallel(scenario, **arguments)
