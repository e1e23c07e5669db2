"""`SynergyGym/EngineBatching-v1`: what one engine may take into its iterations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.base import Episode, ServingEnv, Split, WorkloadSource
from synergy_gym.envs.compiled.engine import controlled_stepper, engine_control
from synergy_gym.envs.compiled.step import ILLEGAL, FusedStep, Outcome, engine_stepper
from synergy_gym.envs.decisions import EngineActions, checked_interval_ns
from synergy_gym.envs.rendering import Frame, Gauge
from synergy_gym.features import EngineFeatures
from synergy_gym.live.backend import LiveOptions, live_options
from synergy_gym.rewards import SLO_MET, PotentialShaping, find_engine_potential
from synergy_gym.scenario import Scenario
from synergy_gym.seasons import SEASON
from synergy_gym.sim.points import DONE
from synergy_gym.types import (
    NS_PER_S,
    BoolArray,
    EngineStateField,
    EngineView,
    IntArray,
)

_INT64 = np.dtype(np.int64)


class EngineBatchingEnv(ServingEnv):
    """Batching decisions of one LLM-serving engine.

    ## Description

    One LLM-serving engine with continuous batching (vLLM's V1 scheduler). Once a second, or before
    every iteration, the agent says how many tokens an iteration may take and how many requests may
    run. Large iterations serve prompts sooner (time to first token), small ones keep the running
    conversations smooth (time per output token); memory for the KV cache is limited, and admitting
    too much ends in preemptions.

    A step is one decision. It holds for every iteration that begins before `decision_interval_s`
    has passed: their tokens are computed, requests that finished leave, and time goes on to the
    start of the iteration after. With `decision_interval_s=None` a step is one iteration. Time
    without work is skipped inside `step()`. `info["dt_s"]` says how long the step lasted (an
    interval, and what is left of the iteration that it ends in), `info["iterations"]` how many
    iterations it had.

    ## Action Space

    `MultiDiscrete([9, 5, 2, 2])`, a cell of `synergy_gym.actions.DEFAULT_GRID`, or
    `MultiDiscrete(grid.shape)` of an `EngineGrid` of your own: a choice of a few values per axis,
    small enough to learn, and the same for engines with other limits.

    | Num | Meaning                                                          | Values                                |
    |-----|------------------------------------------------------------------|---------------------------------------|
    | 0   | prompt tokens of an iteration, beside one for each running decode | 0, 64, 128, ..., 4096, 8192           |
    | 1   | admission cap: none is admitted while so many run                | 1/32, 1/16, 1/8, 1/4, 1 of max_num_seqs |
    | 2   | order of the waiting queue                                       | as it is; late last and shortest first |
    | 3   | hold: no request that is late is admitted                        | no, yes                               |

    A cell is a rule: within an interval it is applied to every iteration anew. What exceeds a limit
    of the engine stands for the limit.

    With `action="limits"` the space is `MultiDiscrete([max_num_batched_tokens, max_num_seqs])`,
    with `action="full"`
    `MultiDiscrete([max_num_batched_tokens, max_num_seqs, max_num_batched_tokens + 1, 5])`:

    | Num | Meaning                                              | Value a stands for                        |
    |-----|------------------------------------------------------|-------------------------------------------|
    | 0   | token budget of the iteration                        | a + 1 tokens                              |
    | 1   | admission cap: none is admitted while this many run  | a + 1 requests                            |
    | 2   | chunk cap: most prompt tokens of one request         | a tokens, 0: no cap                       |
    | 3   | order of the waiting queue                           | 0 as it is, 1 shortest prompt, 2 earliest deadline, 3 late last, 4 late last and shortest first |

    Every value is legal: `action_masks()` is all True, and infos carry no mask. A budget below the
    number of decodes serves the head of the running list. The cap never evicts. The chunk cap
    applies while more than one request is in the engine. An order rule sorts the waiting queue
    (stable, and it stays sorted); the deadline is arrival + the class's TTFT objective, classes
    without one come last; late are requests without a first token after 0.7 of their TTFT objective. An
    engine with priority scheduling keeps its own order. Anything outside the space is a
    `ValueError`.

    ## Observation Space

    `Box(0, 1, (17,), float32)`; with `observation="dict"` a `Dict` of the four groups.
    `env.unwrapped.observation_layout` maps the groups to slices of the flat form.
    share(x, c) = min(x / c, 1), sat(x, c) = x / (x + c).

    | Num | Group     | Observation                                   | Formula                               |
    |-----|-----------|-----------------------------------------------|---------------------------------------|
    | 0   | running   | running requests                              | share(x, max_num_seqs)                |
    | 1   | running   | of these, decodes                             | share(x, max_num_seqs)                |
    | 2   | running   | prompt tokens that running requests still need| sat(x, max_num_batched_tokens)        |
    | 3   | running   | KV tokens of the decodes                      | sat(x, KV capacity in tokens)         |
    | 4   | running   | KV tokens per decode                          | share(x, max_model_len)               |
    | 5   | waiting   | waiting requests                              | sat(x, max_num_seqs)                  |
    | 6   | waiting   | their tokens                                  | sat(x, max_num_batched_tokens)        |
    | 7   | waiting   | tokens per waiting request                    | share(x, max_model_len)               |
    | 8   | waiting   | age of the head of the queue                  | sat(x, tightest TTFT objective, else 1 s) |
    | 9   | kv        | free KV blocks                                | share(x, KV blocks now)               |
    | 10  | kv        | KV blocks now (events can take some)          | share(x, KV blocks configured)        |
    | 11  | last_step | duration of the last iteration                | sat(x, tightest TPOT objective, else 50 ms) |
    | 12  | last_step | its requests                                  | share(x, max_num_seqs)                |
    | 13  | last_step | its tokens                                    | share(x, max_num_batched_tokens)      |
    | 14  | last_step | its decodes                                   | share(x, max_num_seqs)                |
    | 15  | last_step | its preemptions                               | sat(x, 8)                             |
    | 16  | last_step | its token budget                              | share(x, max_num_batched_tokens)      |

    ## Rewards

    1 for every scored request that finished during the step with all SLOs of its class met, so
    the undiscounted return is the number of SLO-attaining requests. Scored are arrivals in
    [warm-up, horizon). `info["reward_terms"]` names the parts: `slo_met`, and `shaping` if
    `shaping=` names a potential Phi: weight * (exp(-beta dt) * Phi(s') - Phi(s)), Phi = 0 at the
    end, which does not change the optimal policy; s and s' are the ends of the step.

    | `shaping` | Phi                                                              |
    |-----------|------------------------------------------------------------------|
    | `waiting` | -(waiting requests) / max_num_seqs                               |
    | `backlog` | -(prompt tokens to compute or waiting) / max_num_batched_tokens  |

    ## Starting State

    An empty engine at the first arrival. `reset(seed=n)` plays episode n of the scenario: the
    seed fixes traffic and noise. `reset()` draws a seed of the split.
    `reset(options={"load": 1.2, "workload": w})` changes the traffic of one episode.

    ## Episode End

    Arrivals stop at the horizon. The episode is truncated when every request has left or passed
    its last deadline; it never terminates. The last info has `episode_metrics` (what the
    leaderboard reports) and `log_hash` (equal hashes: equal decisions in equal traffic). An episode
    in which no iteration can be planned (no request, or all rejected) has one step without
    effect. With the defaults an episode has about 300 steps.

    ## Arguments

    ```python
    >>> import gymnasium as gym, synergy_gym
    >>> env = gym.make("SynergyGym/EngineBatching-v1", scenario="chat-h100", load=0.8)
    >>> observation, info = env.reset(seed=0)

    ```

    | Parameter         | Type                     | Default       | Description                             |
    |-------------------|--------------------------|---------------|-----------------------------------------|
    | `scenario`        | name, path or `Scenario` | `"chat-h100"` | must have one engine                    |
    | `load`            | float                    | `1.0`         | multiple of the scenario's arrival rate |
    | `workload`        | `Workload`, function or None | `None`    | fixed traffic, or a function of (load, seed) |
    | `split`           | str                      | `"train"`     | seeds of `reset()`: train, validation, test |
    | `horizon_s`       | float or None            | `None`        | arrivals stop here, seconds; `None`: as the scenario says. A given workload keeps its arrivals |
    | `warmup_s`        | float or None            | `None`        | arrivals before this are not scored; `None`: as the scenario says |
    | `action`          | str or `EngineGrid`      | `"grid"`      | `"grid"`, a grid, `"limits"` or `"full"` |
    | `decision_interval_s` | float or None        | `1.0`         | how long a decision holds, seconds; `None`: for one iteration |
    | `observation`     | str                      | `"flat"`      | `"flat"` or `"dict"`                    |
    | `shaping`         | str or None              | `None`        | a potential of the table above          |
    | `shaping_weight`  | float                    | `1.0`         | its factor                              |
    | `shaping_beta_per_s` | float                 | `0.0`         | its discount rate, 1/s                  |
    | `backend`         | str                      | `"sim"`       | `"sim"`, `"reference"` (plain Python) or `"vllm"` (a real engine in this process) |
    | `model`           | str or None              | `None`        | vLLM: `"tiny"` (default), `"mid"`, `"big"` (random weights) or a model folder |
    | `clock`           | str or None              | `None`        | vLLM: an iteration lasts its `"wall"` time (default), its `"cpu"` time, or what the scenario's `"model"` says |
    | `live`            | `LiveOptions` or None    | `None`        | vLLM: all its options (`synergy_gym.live.backend`) |
    | `render_mode`     | str or None              | `None`        | `"human"`, `"ansi"` or `"rgb_array"`    |
    | `season`          | int                      | current       | of a scenario's name that says none; 1 in `-v0` |

    With `backend="vllm"` an iteration is one `LLMEngine.step()` of a real engine with the
    scenario's limits. Time is virtual all the same: iterations last what was measured (or
    modelled), time between requests is skipped. With `clock="model"` episodes equal the simulated
    ones bit for bit; with a measured clock no two are alike. The engine is started by the first
    `reset()` (seconds) and lent from episode to episode (milliseconds). All events work: a slowdown
    stretches measured time, a down engine loses its requests and its cache, lost blocks are kept
    from use. There is no `snapshot()` (`NotImplementedError`). The last info has `live`.

    `snapshot()` and `restore(snapshot)` go back to any moment of the episode.

    ## Version History

    * v1: grid actions that hold for `decision_interval_s`; `horizon_s`, `warmup_s`.
    * v0: first version, `action="limits", decision_interval_s=None`.
    """  # noqa: E501

    def __init__(
        self,
        scenario: str | Path | Scenario = "chat-h100",
        *,
        load: float = 1.0,
        workload: WorkloadSource | None = None,
        split: Split = "train",
        horizon_s: float | None = None,
        warmup_s: float | None = None,
        action: Literal["limits", "full", "grid"] | EngineGrid = "grid",
        decision_interval_s: float | None = 1.0,
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
        self._phi = find_engine_potential(shaping) if shaping else None
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
        if len(self.scenario.engines) != 1:
            raise ValueError(
                f"scenario {self.scenario.name!r} has {len(self.scenario.engines)} engines; "
                "EngineBatching needs one (use SynergyGym/ClusterRouting-v1 for a cluster)"
            )
        self._need_inprocess("EngineBatching")
        spec = self.scenario.engines[0]
        self.engine = spec
        self._actions = EngineActions(action, spec)
        self.grid = self._actions.grid
        self.decision_interval_s = decision_interval_s
        self._interval_ns = checked_interval_ns(decision_interval_s)
        self._budgets, self._caps = spec.max_num_batched_tokens, spec.max_num_seqs
        self.action_space = self._actions.space
        self._shape = (len(self._actions.sizes),)
        plain = self.grid is None and not self._actions.is_full
        self._limits = plain and decision_interval_s is None
        self.control = engine_control(
            spec, self.scenario.slos, self._actions.sizes, self.grid, self._interval_ns
        )
        self._features = EngineFeatures(spec, self.scenario.slos)
        self._observe_as(self._features.layout, self._features.layout)
        self._state: IntArray = np.zeros(len(EngineStateField), np.int64)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run the iterations of one decision; see the class docstring.

        Raises:
            ValueError: the action lies outside the action space.
            gymnasium.error.ResetNeeded: there is no running episode.
        """
        fused = self._fused
        if fused is None or not self._active:
            return self._step_apart(action)
        if not self._limits:
            return self._step_held(fused, action)
        try:
            budget, cap = (
                action.tolist() if action.dtype is _INT64 else self._actions.values(action)
            )
        except (AttributeError, TypeError, ValueError):
            budget, cap = self._actions.values(action)
        if not type(budget) is int is type(cap):
            self._actions.values(action)
        point, dt_s, reward = fused(budget, cap)
        if point == ILLEGAL:
            self._actions.values(action)
        observation = self._observation() if self._dict else self._buffer.copy()
        if point == DONE:
            reward, info = self._outcome(True)
            return observation, reward, False, True, info
        info = {"dt_s": dt_s, "reward_terms": {SLO_MET: reward}}
        return observation, reward, False, False, info

    def _step_held(
        self, fused: Callable[..., Outcome], action: Any
    ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The compiled step of every form of action, as long as its interval."""
        point, dt_s, reward, iterations = fused(self._encoded(action))
        if point == ILLEGAL:
            self._actions.values(action)
        observation = self._observation() if self._dict else self._buffer.copy()
        info = {"dt_s": dt_s, "reward_terms": {SLO_MET: reward}}
        if point == DONE:
            reward, info = self._outcome(True)
        return observation, reward, False, point == DONE, self._counted(info, iterations)

    def _encoded(self, action: Any) -> IntArray:
        """The action as the compiled step reads it, which finds out whether it is legal."""
        if (
            type(action) is np.ndarray
            and action.dtype == _INT64
            and action.shape == self._shape
            and action.flags.carray
        ):
            return action
        return np.array(self._actions.values(action), np.int64)

    def _counted(self, info: dict[str, Any], iterations: int) -> dict[str, Any]:
        """The info, with the number of iterations where that is not always one."""
        if self.decision_interval_s is not None:
            info["iterations"] = iterations
        return info

    def _step_apart(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The step in its parts, for every simulator and every option."""
        if not self._active:
            observation, reward, _, _, info = self._step_inactive()
            return observation, reward, False, True, self._counted(info, 0)
        sim, values = self._sim, self._actions.values(action)
        begin_ns, iterations, ended = sim.now_ns, 0, False
        while not ended and (not iterations or sim.now_ns - begin_ns < self._interval_ns):
            sim.batch(self._actions.decision(values, partial(sim.engine_view, 0)))
            ended = self._advance()
            iterations += 1
        self._read(ended)
        reward, info = self._outcome(ended)
        if self._human:
            self.render()
        return self._observation(), reward, False, ended, self._counted(info, iterations)

    def engine_view(self) -> EngineView:
        """What an engine policy would see now; a snapshot.

        Raises:
            gymnasium.error.ResetNeeded: no episode was begun.
        """
        if self._sim is None:
            raise gym.error.ResetNeeded("there is nothing to see before reset(); call reset()")
        self._catch_up()
        view: EngineView = self._sim.engine_view(0)
        return view

    def action_masks(self) -> BoolArray:
        """All True: every action is legal (one entry per value of each dimension)."""
        return np.ones(sum(self._actions.sizes), np.bool_)

    def check_action(self, action: Any) -> None:
        """Raise `ValueError` if the action lies outside the space."""
        self._actions.values(action)

    def _build(self, episode: Episode) -> Any:
        simulator = self._played(episode, auto_route=True)
        self._bind(simulator)
        return simulator

    def _bind(self, simulator: Any) -> None:
        self._fused = self._adopt(self._compiled(simulator))

    def _compiled(self, simulator: Any) -> FusedStep | None:
        if self._shaping is not None or self._human:
            return None
        scale, size = self._features.scale, len(self._buffer)
        if self._limits:
            return engine_stepper(simulator, scale, size)
        return controlled_stepper(simulator, scale, size, self.control)

    def _restore_extra(self, extra: Any) -> None:
        self._bind(self._sim)

    def _advance(self) -> bool:
        return bool(self._sim.advance() == DONE)

    def _read(self, ended: bool) -> None:
        self._state = self._sim.engine_state(0)
        self._features.write(self._state, self._buffer)

    def _potential(self) -> float:
        return self._phi(self._state, self.engine) if self._phi is not None else 0.0

    def _frame(self) -> Frame:
        state = dict(zip(EngineStateField, self._sim.engine_state(0).tolist(), strict=True))
        field = EngineStateField
        now_s = state[field.NOW_NS] / NS_PER_S
        step_ms = state[field.LAST_STEP_NS] / 1e6
        gauges = _gauges(state, self._caps, self._budgets)
        return Frame(
            title=f"{self.scenario.name}  load {self._episode.load:g}  seed {self._episode.seed}",
            facts=f"t = {now_s:.3f} s   last step {step_ms:.2f} ms   SLOs met {self._sim.met()}",
            gauges=gauges,
            points={gauge.label: gauge.value for gauge in gauges},
        )


def _gauges(state: dict[EngineStateField, int], seqs: int, tokens: int) -> tuple[Gauge, ...]:
    field = EngineStateField
    running, waiting = state[field.RUNNING], state[field.WAITING]
    total = max(state[field.KV_TOTAL_BLOCKS], 1)
    used = total - state[field.KV_FREE_BLOCKS]
    last, budget = state[field.LAST_TOKENS], state[field.LAST_BUDGET]
    return (
        Gauge("running", running / seqs, f"{running} of {seqs}, {state[field.DECODES]} decoding"),
        Gauge("waiting", waiting / (waiting + seqs), f"{waiting} requests"),
        Gauge("KV cache", min(max(used / total, 0.0), 1.0), f"{used} of {total} blocks"),
        Gauge("last step", min(last / tokens, 1.0), f"{last} tokens of {budget} allowed"),
    )
