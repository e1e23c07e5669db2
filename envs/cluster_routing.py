"""`SynergyGym/ClusterRouting-v1`: which engine gets the request that has just arrived."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from synergy_gym.envs.base import Episode, Part, ServingEnv, Split, WorkloadSource
from synergy_gym.envs.compiled.step import router_stepper
from synergy_gym.envs.decisions import checked_engine
from synergy_gym.envs.fixed_layers import FixedEngines
from synergy_gym.envs.rendering import Frame
from synergy_gym.envs.router_view import EVERYTHING, cluster_frame, no_request, read_router
from synergy_gym.features import (
    NUM_ROUTER_FEATURES,
    ROUTER_SLOTS,
    RouterFeatures,
)
from synergy_gym.live.backend import REAL_TIME, LiveOptions, live_options
from synergy_gym.observation import ObservationLayout
from synergy_gym.policies import EnginePolicy
from synergy_gym.rewards import SLO_MET, PotentialShaping, find_router_potential
from synergy_gym.scenario import Scenario
from synergy_gym.seasons import SEASON
from synergy_gym.sim.points import BATCH, DONE
from synergy_gym.types import (
    BoolArray,
    ClusterView,
    CompletionView,
    IntArray,
    RequestView,
    RouterRow,
)


class ClusterRoutingEnv(ServingEnv):
    """Routing decisions in front of a cluster of LLM-serving engines.

    ## Description

    A router in front of a cluster of LLM-serving engines. Every arriving request (a client's
    retry arrives again) is sent to one engine at once and stays there. The router knows its own
    counts exactly; engine state reaches it as pushed vectors and scraped metrics that are older
    than the moment, with their age. Each engine batches by its own policy (`engine_policy`).

    A step is one routed request: the request goes to the engine, and time goes on to the next
    arrival (or to the end). `info["dt_s"]` says how long that was. There is no longer decision:
    every request needs an engine at once.

    ## Action Space

    `Discrete(engines)`: the engine that gets the request.

    An engine that is down (scenario events) is illegal: routing to it is a `ValueError`, never a
    silent change. While some engine is down, infos carry `action_mask` (int8, 1 = legal);
    `action_masks()` returns the mask at any time (bool), as maskable algorithms expect.
    `synergy_gym.envs.wrappers.discount.RerouteIllegal` is for algorithms without masks.

    ## Observation Space

    `Box(low, 1, (10 + 21 * engines,), float32)`: the request, then one block per engine.
    `env.unwrapped.observation_layout` maps `request` and `engines` to slices;
    `obs[layout["engines"]].reshape(engines, 21)` is the table. With `observation="dict"` a `Dict` of
    `request` (10,), `router` (6 * engines,), `pushed` (7 * engines,) and `scraped` (8 * engines,),
    engine by engine. share(x, c) = min(x / c, 1), sat(x, c) = x / (x + c).

    | Num | Request                                | Formula                                     |
    |-----|----------------------------------------|---------------------------------------------|
    | 0   | prompt tokens                          | sat(x, largest max_num_batched_tokens)      |
    | 1   | prompt tokens                          | share(x, largest max_model_len)             |
    | 2   | published expected output              | sat(x, 256), 0 without one                  |
    | 3   | its session has an engine              | 0 or 1                                      |
    | 4   | how recently that engine got it        | 60 / (age + 60 s), 0 without one            |
    | 5   | retries so far                         | sat(x, 1)                                   |
    | 6   | priority                               | x / (abs(x) + 1), in [-1, 1]                |
    | 7-9 | TTFT, TPOT, E2E objective of its class | sat(x, 1 s / 50 ms / 10 s), 1 without one   |

    | Num   | Engine                                 | Formula                                   |
    |-------|----------------------------------------|-------------------------------------------|
    | 0     | router: is up                          | 0 or 1                                    |
    | 1     | router: configured weight              | x / largest                               |
    | 2     | router: last engine of the session     | 0 or 1                                    |
    | 3     | router: requests in flight             | sat(x, max_num_seqs)                      |
    | 4     | router: their prompt tokens            | sat(x, KV capacity in tokens)             |
    | 5     | router: prompt tokens routed since the last push | sat(x, max_num_batched_tokens)  |
    | 6     | pushed: age of the snapshot            | sat(x, 1 s)                               |
    | 7, 8  | pushed: running, waiting               | share(x, max_num_seqs), sat(x, max_num_seqs) |
    | 9     | pushed: used KV blocks                 | share(x, total)                           |
    | 10    | pushed: tokens still to compute        | sat(x, max_num_batched_tokens)            |
    | 11    | pushed: mean duration of 10 iterations | sat(x, tightest TPOT objective)           |
    | 12    | pushed: mean tokens of 10 iterations   | share(x, max_num_batched_tokens)          |
    | 13    | scraped: age                           | sat(x, 10 s)                              |
    | 14-16 | scraped: running, waiting, KV          | as pushed                                 |
    | 17-19 | scraped: mean TTFT, TPOT, E2E of the window | sat(x, tightest objective)           |
    | 20    | scraped: requests finished in the window | sat(x, max_num_seqs)                    |

    Without a declared objective its time scale is 1 s (TTFT), 50 ms (TPOT) or 10 s (E2E).

    ## Rewards

    1 for every scored request that finished during the step with all SLOs of its class met, so
    the undiscounted return is the number of SLO-attaining requests. Scored are arrivals in
    [warm-up, horizon). `info["reward_terms"]` names the parts: `slo_met`, and `shaping` if
    `shaping=` names a potential Phi: weight * (exp(-beta dt) * Phi(s') - Phi(s)), Phi = 0 at the
    end, which does not change the optimal policy.

    | `shaping`   | Phi                                                                       |
    |-------------|---------------------------------------------------------------------------|
    | `in-flight` | -(requests in flight) / sum of max_num_seqs                               |
    | `imbalance` | -(largest - smallest in flight / max_num_seqs) over engines that are up   |

    ## Starting State

    An empty cluster at the first arrival. `reset(seed=n)` plays episode n of the scenario: the
    seed fixes traffic and noise. `reset()` draws a seed of the split.
    `reset(options={"load": 1.2, "workload": w})` changes the traffic of one episode.

    ## Episode End

    Arrivals stop at the horizon. After the last one the episode runs on until every request has
    left or passed its last deadline, and is truncated; it never terminates. The last info has
    `episode_metrics` (what the leaderboard reports) and `log_hash`. The request part of the last
    observation is zero. An episode without arrivals has one step without effect.

    ## Arguments

    ```python
    >>> import gymnasium as gym, synergy_gym
    >>> env = gym.make("SynergyGym/ClusterRouting-v1", scenario="hetero-3", load=0.8)
    >>> observation, info = env.reset(seed=0)

    ```

    | Parameter         | Type                     | Default       | Description                             |
    |-------------------|--------------------------|---------------|-----------------------------------------|
    | `scenario`        | name, path or `Scenario` | `"hetero-3"`  | the cluster and its traffic             |
    | `load`            | float                    | `1.0`         | multiple of the scenario's arrival rate |
    | `workload`        | `Workload`, function or None | `None`    | fixed traffic, or a function of (load, seed) |
    | `engine_policy`   | name, class or instance  | `"vllm-v1"`   | how every engine batches                |
    | `split`           | str                      | `"train"`     | seeds of `reset()`: train, validation, test |
    | `horizon_s`, `warmup_s` | float or None      | `None`        | as in `EngineBatching-v1`               |
    | `observation`     | str                      | `"flat"`      | `"flat"` or `"dict"`                    |
    | `shaping`         | str or None              | `None`        | a potential of the table above          |
    | `shaping_weight`  | float                    | `1.0`         | its factor                              |
    | `shaping_beta_per_s` | float                 | `0.0`         | its discount rate, 1/s                  |
    | `backend`         | str                      | `"sim"`       | `"sim"`, `"reference"` (plain Python) or `"vllm"` (real engines) |
    | `transport`       | str or None              | `None`        | vLLM: how the engines are reached, see below |
    | `urls`            | list of str or None      | `None`        | vLLM: running servers, one per engine   |
    | `model`           | str or None              | `None`        | vLLM: `"tiny"` (default), `"mid"`, `"big"` (random weights) or a model folder |
    | `clock`           | str or None              | `None`        | vLLM: `"wall"` (default), `"cpu"` or `"model"` |
    | `live`            | `LiveOptions` or None    | `None`        | vLLM: all its options (`synergy_gym.live.backend`) |
    | `render_mode`     | str or None              | `None`        | `"human"`, `"ansi"` or `"rgb_array"`    |
    | `season`          | int                      | current       | of a scenario's name that says none; 1 in `-v0` |

    With `backend="vllm"` the engines are real and have the scenario's limits.

    | `transport`   | Engines                                                            | Time    |
    |---------------|--------------------------------------------------------------------|---------|
    | `"inprocess"` | in this process (default); iterations last what was measured, or what the scenario's clock says, and run side by side in virtual time | virtual |
    | `"workers"`   | a process each on this machine, started by the first `reset()`, ended by `close()` | real |
    | `"http"`      | OpenAI-compatible servers: those of `urls`, which batch as they were started, or new ones of this machine, which run `engine_policy`; `close()` ends these | real |

    With `clock="model"` in-process episodes equal the simulated ones bit for bit. The last info
    has `live`. Real engines have no `snapshot()` (`NotImplementedError`).

    In real time a step lasts until the next request is due, and requests that became due while
    the agent was thinking follow at once; their latencies count from when they were due. An
    engine that dies, hangs or fails is masked until it is healthy again. A request that it had
    not begun to answer is the next step's, with that engine masked; one whose answer had begun
    fails, and its client retries if the scenario's clients do. Of the events only `down` and `up`
    are possible. What only the engine knows stays 0 where it does not tell (servers: preemptions;
    their own start of a request: -1). Servers keep what their policies have learned, and state is
    pushed only by servers that run a policy of this package.

    `snapshot()` and `restore(snapshot)` go back to any moment of the episode.

    ## Version History

    * v1: `horizon_s`, `warmup_s`; every request is a decision, as before.
    * v0: first version.
    """  # noqa: E501

    def __init__(
        self,
        scenario: str | Path | Scenario = "hetero-3",
        *,
        load: float = 1.0,
        workload: WorkloadSource | None = None,
        engine_policy: str | EnginePolicy | type[EnginePolicy] = "vllm-v1",
        split: Split = "train",
        horizon_s: float | None = None,
        warmup_s: float | None = None,
        observation: Literal["flat", "dict"] = "flat",
        shaping: str | None = None,
        shaping_weight: float = 1.0,
        shaping_beta_per_s: float = 0.0,
        backend: str = "sim",
        transport: str | None = None,
        urls: Sequence[str] | None = None,
        model: str | None = None,
        clock: str | None = None,
        live: LiveOptions | None = None,
        render_mode: str | None = None,
        season: int = SEASON,
    ) -> None:
        self._phi = find_router_potential(shaping) if shaping else None
        given = {"transport": transport, "model": model, "clock": clock}
        given["urls"] = None if urls is None else tuple(urls)  # type: ignore[assignment]
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
            live=live_options(backend, live, **given),
            shaping=PotentialShaping(shaping_weight, shaping_beta_per_s) if shaping else None,
            render_mode=render_mode,
        )
        self.engines = self.scenario.engines
        self._num = len(self.engines)
        self._layer = FixedEngines(engine_policy, self.engines, tuple(self.scenario.slos))
        is_real_time = self._live is not None and self._live.transport in REAL_TIME
        self._can_be_down = is_real_time or any(
            event.kind == "down" for event in self.scenario.events
        )
        self.action_space = spaces.Discrete(self._num)
        self._features = RouterFeatures(self.engines, self.scenario.slos)
        self._observe_as(self._features.layout, router_parts(self._features.layout, self._num))
        self._ruled = False
        self._rows: IntArray = np.zeros((self._num, len(RouterRow)), np.int64)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Route one request; see the class docstring.

        Raises:
            ValueError: there is no such engine, or it is down.
            gymnasium.error.ResetNeeded: there is no running episode.
        """
        fused = self._fused
        if fused is None or not self._active:
            return self._step_apart(action)
        is_engine = type(action) is int and 0 <= action < self._num
        point, dt_s, reward = fused(action if is_engine else self._checked(action))
        if point == DONE:
            self._read(True)
            reward, info = self._outcome(True)
            return self._observation(), reward, False, True, info
        info = {"dt_s": dt_s, "reward_terms": {SLO_MET: reward}}
        observation = self._observation() if self._dict else self._buffer.copy()
        return observation, reward, False, False, info

    def _step_apart(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The step in its parts, for every simulator, policy and option."""
        if not self._active:
            return self._step_inactive()
        self._sim.route(self._checked(action))
        ended = self._advance()
        self._read(ended)
        reward, info = self._outcome(ended)
        if self._can_be_down:
            self._add_mask(info)
        if self._human:
            self.render()
        return self._observation(), reward, False, ended, info

    def action_masks(self) -> BoolArray:
        """Which engines are up (all True before the first reset)."""
        if self._sim is None or not self._can_be_down:
            return np.ones(self._num, np.bool_)
        alive: BoolArray = self._rows[:, RouterRow.ALIVE] != 0
        return alive

    def views(self) -> tuple[RequestView, ClusterView, list[CompletionView]] | None:
        """What a router policy sees now, and what has left since the last call.

        For policies and features in Python that are played step by step (imitation, wrappers):
        `policy.observe` the completions, then `policy.route(request, cluster)` is an action.
        `None` when no request waits: before an episode and after its end.
        """
        if self._sim is None or not self._active:
            return None
        sim = self._sim
        cluster = sim.cluster_view(self.np_random, EVERYTHING)
        return sim.request_view(), cluster, list(sim.completions())

    def check_action(self, action: Any) -> None:
        """Raise `ValueError` if there is no such engine, or it is down."""
        self._checked(action)

    def _checked(self, action: Any) -> int:
        alive = self.action_masks() if self._can_be_down else None
        return checked_engine(action, self._num, alive, self._now_ns)

    def _add_mask(self, info: dict[str, Any]) -> None:
        mask = self.action_masks()
        if not mask.all():
            info["action_mask"] = mask.astype(np.int8)

    def _reset_info(self) -> dict[str, Any]:
        info = super()._reset_info()
        self._add_mask(info)
        return info

    def _build(self, episode: Episode) -> Any:
        rules = self._layer.reset(episode.seed)
        simulator = self._played(episode, rules=rules, engine_policy=self._layer.source)
        self._ruled = None not in rules
        self._bind(simulator)
        if self._live is not None:  # what compiles on first use must not take real time
            self._features.write(self._rows, no_request(0), self._buffer)
        return simulator

    def _bind(self, simulator: Any) -> None:
        plain = self._shaping is None and not self._human and not self._can_be_down
        scale = self._features.scale
        usable = plain and self._ruled
        fused = router_stepper(simulator, scale, len(self._buffer)) if usable else None
        self._fused = self._adopt(fused)

    def _advance(self) -> bool:
        sim = self._sim
        while (point := sim.advance()) == BATCH:
            self._layer.answer(sim)
        return bool(point == DONE)

    def _read(self, ended: bool) -> None:
        self._rows = read_router(
            self._sim, self._features, self.np_random, self._buffer, request=not ended
        )

    def _potential(self) -> float:
        return self._phi(self._rows, self.engines) if self._phi is not None else 0.0

    def _save(self) -> Any:
        return self._rows.copy(), copy.deepcopy(self._layer), self._ruled

    def _restore_extra(self, extra: Any) -> None:
        self._rows, self._layer, self._ruled = copy.deepcopy(extra)
        self._bind(self._sim)

    def _frame(self) -> Frame:
        episode = self._episode
        title = f"{self.scenario.name}  load {episode.load:g}  seed {episode.seed}"
        return cluster_frame(self._sim, self.engines, title)


def router_parts(layout: ObservationLayout, engines: int) -> dict[str, Part]:
    """The entries that the router's part of a flat observation has in its Dict form."""
    parts: dict[str, Part] = {"request": layout["request"]}
    for kind in ("router", "pushed", "scraped"):
        columns = [i for i, s in enumerate(ROUTER_SLOTS) if s.name.startswith(f"{kind}.")]
        table = np.arange(engines)[:, None] * NUM_ROUTER_FEATURES + np.array(columns)
        parts[kind] = (layout["engines"].start + table).ravel()
    return parts
