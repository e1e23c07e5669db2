"""Native vector environments equal Gymnasium's `SyncVectorEnv` over single ones, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.compiled.vector import WHO_KERNEL, WHO_PYTHON
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.randomisation.ranges import Uniform
from synergy_gym.envs.randomisation.worlds import DomainRandomization, WorldRanges
from synergy_gym.envs.vector import ClusterRoutingVectorEnv, EngineBatchingVectorEnv
from synergy_gym.envs.vector_base import ServingVectorEnv
from synergy_gym.envs.wrappers.actions import DecisionInterval
from synergy_gym.scenario import Scenario
from synergy_gym.workload.base import Workload, make_workload
from tests.envs.forms import EVERY_ITERATION, LIMITS

MODES = list(AutoresetMode)
N = 4
STEPS = 150
ORDERED = EngineGrid(
    budgets=(0, 32, 4096),
    caps=(0.02, 1.0),
    chunks=(0, 64),
    orders=("queue", "shortest-prompt", "earliest-deadline", "late-last", "late-last-shortest"),
)


def same(left: Any, right: Any, where: str = "") -> None:
    """Values, dtypes and keys are equal, all the way down."""
    assert type(left) is type(right), (where, type(left), type(right))
    if isinstance(left, dict):
        assert set(left) == set(right), where
        for key in left:
            same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, (where, left.dtype, right.dtype)
        if left.dtype == object:
            same(left.tolist(), right.tolist(), where)
        else:
            np.testing.assert_array_equal(left, right, err_msg=where)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            same(a, b, f"{where}[{i}]")
    else:
        assert left == right or (left != left and right != right), where


def play(native: Any, single: list[Any], mode: AutoresetMode, seed: int, steps: int = STEPS) -> int:
    """Play both with the same actions and compare everything; returns the episodes that ended."""
    sync = SyncVectorEnv([lambda env=env: env for env in single], autoreset_mode=mode)
    same(native.metadata["autoreset_mode"], sync.metadata["autoreset_mode"])
    assert native.action_space == sync.action_space
    assert native.observation_space == sync.observation_space
    same(native.reset(seed=seed), sync.reset(seed=seed), "reset")
    sync.action_space.seed(seed % 2**31)
    ended = 0
    for step in range(steps):
        actions = legal(sync, sync.action_space.sample())
        mine, theirs = native.step(actions), sync.step(actions)
        same(mine, theirs, f"step {step}")
        same(native.action_masks(), np.stack(sync.call("action_masks")))
        over = mine[3]
        ended += int(over.sum())
        if mode == AutoresetMode.DISABLED and over.any():
            options = {"reset_mask": over}
            same(native.reset(options=dict(options)), sync.reset(options=dict(options)), "mask")
    native.close()
    return ended


def legal(envs: Any, actions: Any) -> Any:
    """Every number that is masked becomes the first legal value."""
    space = envs.single_action_space
    sizes = np.atleast_1d(space.nvec if actions.ndim == 2 else space.n)
    for mask, row in zip(
        envs.call("action_masks"), actions.reshape(envs.num_envs, -1), strict=True
    ):
        for k, own in enumerate(np.split(mask, np.cumsum(sizes)[:-1])):
            if not own[row[k]]:
                row[k] = int(own.argmax())
    return actions


@pytest.fixture
def tight_engine(short_engine: Scenario) -> Scenario:
    """An engine whose KV cache forces preemptions, with two SLO classes."""
    spec = replace(short_engine.engines[0], kv_blocks=160, max_num_seqs=24)
    slos = tuple(
        replace(short_engine.slos[0], name=n, ttft_s=t) for n, t in (("a", 0.2), ("b", None))
    )
    return replace(short_engine, engines=(spec,), slos=slos)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("action", ["limits", "full", "grid", ORDERED], ids=str)
@pytest.mark.parametrize("interval_s", [None, 0.05])
def test_engines(
    tight_engine: Scenario,
    small_traffic: Callable[..., Any],
    mode: AutoresetMode,
    action: Any,
    interval_s: float | None,
    seed: int,
) -> None:
    given: dict[str, Any] = {"workload": small_traffic, "action": action, "load": 3.0}
    given["decision_interval_s"] = interval_s
    native = EngineBatchingVectorEnv(N, scenario=tight_engine, autoreset_mode=mode, **given)
    single = [EngineBatchingEnv(tight_engine, **given) for _ in range(N)]
    assert play(native, single, mode, seed) >= 0


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_routers(
    short_cluster: Scenario, small_traffic: Callable[..., Any], mode: AutoresetMode, seed: int
) -> None:
    given: dict[str, Any] = {"workload": small_traffic}
    native = ClusterRoutingVectorEnv(N, scenario=short_cluster, autoreset_mode=mode, **given)
    single = [ClusterRoutingEnv(short_cluster, **given) for _ in range(N)]
    assert play(native, single, mode, seed) >= N


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "option",
    [
        {"shaping": "waiting", "shaping_beta_per_s": 0.1},
        {"shaping": "waiting", "shaping_beta_per_s": 0.1, **EVERY_ITERATION},
        {"backend": "reference"},
        {"backend": "reference", **EVERY_ITERATION},
        {"observation": "dict"},
        {"observation": "dict", "action": "full", **EVERY_ITERATION},
    ],
    ids=str,
)
def test_engine_options(
    short_engine: Scenario,
    small_traffic: Callable[..., Any],
    mode: AutoresetMode,
    option: dict[str, Any],
    seed: int,
) -> None:
    given = {"workload": small_traffic, **option}
    native = EngineBatchingVectorEnv(2, scenario=short_engine, autoreset_mode=mode, **given)
    single = [EngineBatchingEnv(short_engine, **given) for _ in range(2)]
    play(native, single, mode, seed, 60)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "option",
    [
        {"engine_policy": "lens-ref"},
        {"shaping": "in-flight"},
        {"observation": "dict"},
    ],
    ids=str,
)
def test_router_options(
    short_cluster: Scenario,
    small_traffic: Callable[..., Any],
    mode: AutoresetMode,
    option: dict[str, Any],
    seed: int,
) -> None:
    given = {"workload": small_traffic, **option}
    native = ClusterRoutingVectorEnv(2, scenario=short_cluster, autoreset_mode=mode, **given)
    single = [ClusterRoutingEnv(short_cluster, **given) for _ in range(2)]
    assert play(native, single, mode, seed, 60) > 0


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_engines_that_go_down(
    failing_cluster: Scenario, small_traffic: Callable[..., Any], mode: AutoresetMode, seed: int
) -> None:
    native = ClusterRoutingVectorEnv(
        N, scenario=failing_cluster, workload=small_traffic, autoreset_mode=mode
    )
    single = [ClusterRoutingEnv(failing_cluster, workload=small_traffic) for _ in range(N)]
    assert play(native, single, mode, seed) >= N


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_retries_and_closed_loops(short_cluster: Scenario, mode: AutoresetMode, seed: int) -> None:
    def sessions(load: float, seed: int) -> Workload:
        rng = np.random.default_rng(seed)
        after = np.where(np.arange(30) % 3 == 0, -1, np.arange(30) - 1)
        times = np.where(after < 0, np.arange(30) * 50_000_000, 10_000_000)
        return make_workload(times, rng.integers(20, 900, 30), rng.integers(1, 30, 30), after=after)

    client = replace(short_cluster.client, timeout_s=0.5, max_retries=1)
    scenario = replace(short_cluster, client=client)
    native = ClusterRoutingVectorEnv(N, scenario=scenario, workload=sessions, autoreset_mode=mode)
    single = [ClusterRoutingEnv(scenario, workload=sessions) for _ in range(N)]
    assert play(native, single, mode, seed) >= N


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("action", [ORDERED, "limits"], ids=str)
def test_an_interval_equals_the_wrapper(
    tight_engine: Scenario,
    small_traffic: Callable[..., Any],
    mode: AutoresetMode,
    action: Any,
    seed: int,
) -> None:
    given: dict[str, Any] = {"workload": small_traffic, "action": action}
    native = EngineBatchingVectorEnv(
        N, scenario=tight_engine, autoreset_mode=mode, decision_interval_s=0.05, **given
    )
    given["decision_interval_s"] = None
    single = [DecisionInterval(EngineBatchingEnv(tight_engine, **given), 0.05) for _ in range(N)]
    play(native, single, mode, seed)


def test_one_value_each(
    tight_engine: Scenario, short_engine: Scenario, small_traffic: Callable[..., Any], seed: int
) -> None:
    scenarios, loads = [tight_engine, short_engine] * 2, [0.5, 1.0, 2.0, 3.0]
    given: dict[str, Any] = {"workload": small_traffic, "action": "grid"}
    native = EngineBatchingVectorEnv(N, scenario=scenarios, load=loads, **given)
    single = [
        EngineBatchingEnv(s, load=load, **given) for s, load in zip(scenarios, loads, strict=True)
    ]
    play(native, single, AutoresetMode.NEXT_STEP, seed)


def test_random_worlds(short_engine: Scenario, tight_engine: Scenario, seed: int) -> None:
    worlds = WorldRanges([short_engine, tight_engine], load=Uniform(0.5, 3.0))
    native = EngineBatchingVectorEnv(N, worlds=worlds, action="grid", autoreset_mode="SameStep")
    single = [
        DomainRandomization(lambda scenario: EngineBatchingEnv(scenario, action="grid"), worlds)
        for _ in range(N)
    ]
    play(native, single, AutoresetMode.SAME_STEP, seed, 400)


def test_seeds_of_the_split(short_engine: Scenario) -> None:
    envs = EngineBatchingVectorEnv(3, scenario=short_engine, split="validation")
    _, infos = envs.reset(seed=[11, None, 13])
    assert infos["seed"][[0, 2]].tolist() == [11, 13]
    assert infos["seed"][1] in short_engine.validation_seeds
    with pytest.raises(ValueError, match="2 seeds for 3 sub-environments"):
        envs.reset(seed=[1, 2])


def test_an_illegal_action_names_its_environment_and_changes_nothing(
    short_engine: Scenario, failing_cluster: Scenario, small_traffic: Callable[..., Any]
) -> None:
    engines = EngineBatchingVectorEnv(3, scenario=short_engine, workload=small_traffic, **LIMITS)
    engines.reset(seed=0)
    before = [env.unwrapped.memory.bytes() for env in engines.envs]
    actions = np.zeros((3, 2), np.int64)
    actions[2, 0] = engines.single_action_space.nvec[0]
    with pytest.raises(ValueError, match=r"sub-environment 2: action \[\d+, 0\] is outside"):
        engines.step(actions)
    for env, arena in zip(engines.envs, before, strict=True):
        np.testing.assert_array_equal(env.unwrapped.memory.bytes(), arena)
    with pytest.raises(ValueError, match="need \\(3, 2\\)"):
        engines.step(actions[:2])
    with pytest.raises(ValueError, match=r"sub-environment 0: .* integers of token budget"):
        engines.step(actions + 0.5)

    routers = ClusterRoutingVectorEnv(2, scenario=failing_cluster, workload=small_traffic)
    _, infos = routers.reset(seed=0)
    while "action_mask" not in infos:
        *_, infos = routers.step(np.zeros(2, np.int64))
    i = int(infos["_action_mask"].argmax())
    clocks = [env.unwrapped._sim.now_ns for env in routers.envs]
    choice = np.where(np.arange(2) == i, 1, 0)
    with pytest.raises(ValueError, match=f"sub-environment {i}: engine 1 is down"):
        routers.step(choice)
    assert [env.unwrapped._sim.now_ns for env in routers.envs] == clocks


def test_missing_resets_are_named(
    short_cluster: Scenario, small_traffic: Callable[..., Any]
) -> None:
    envs = ClusterRoutingVectorEnv(
        2,
        scenario=short_cluster,
        workload=small_traffic,
        load=[0.5, 1.0],
        autoreset_mode="Disabled",
    )
    actions = np.zeros(2, np.int64)
    with pytest.raises(gym.error.ResetNeeded, match="before reset"):
        envs.step(actions)
    envs.reset(seed=0)
    truncated = np.zeros(2, np.bool_)
    while not truncated.any():
        truncated = envs.step(actions)[3]
    with pytest.raises(gym.error.ResetNeeded, match=r"sub-environments \[0\] have ended"):
        envs.step(actions)
    with pytest.raises(TypeError, match="array of booleans"):
        envs.reset(options={"reset_mask": [True, False]})
    with pytest.raises(ValueError, match="at least one True"):
        envs.reset(options={"reset_mask": np.zeros(2, np.bool_)})
    envs.reset(options={"reset_mask": truncated})
    envs.step(actions)


def test_what_is_compiled(short_engine: Scenario, failing_cluster: Scenario) -> None:
    def who(envs: Any) -> list[int]:
        envs.reset(seed=0)
        found: list[int] = envs._table[:, 0].tolist()
        return found

    for action in ("limits", "full", "grid"):
        envs = EngineBatchingVectorEnv(2, scenario=short_engine, action=action)
        assert who(envs) == [WHO_KERNEL] * 2
    shaped = EngineBatchingVectorEnv(1, scenario=short_engine, shaping="waiting")
    assert who(shaped) == [WHO_PYTHON]
    assert who(ClusterRoutingVectorEnv(1, scenario=failing_cluster)) == [WHO_PYTHON]


def test_arguments_are_checked(short_engine: Scenario) -> None:
    with pytest.raises(ValueError, match="num_envs=0"):
        EngineBatchingVectorEnv(0)
    with pytest.raises(ValueError, match="load lists 2 values for 3"):
        EngineBatchingVectorEnv(3, scenario=short_engine, load=[1.0, 2.0])
    with pytest.raises(ValueError, match="come from `worlds`"):
        EngineBatchingVectorEnv(1, load=1.0, worlds=WorldRanges([short_engine]))
    smaller = replace(short_engine, engines=(replace(short_engine.engines[0], max_num_seqs=8),))
    with pytest.raises(ValueError, match="sub-environment 1 has action_space"):
        EngineBatchingVectorEnv(2, scenario=[short_engine, smaller], action="limits")


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("name", ["EngineBatching", "ClusterRouting"])
def test_made_by_gymnasium(name: str, version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*-v0 is out of date")
        envs = gym.make_vec(
            f"SynergyGym/{name}-{version}", num_envs=3, vectorization_mode="vector_entry_point"
        )
    assert isinstance(envs.unwrapped, ServingVectorEnv)
    observations, _ = envs.reset(seed=1)
    assert envs.observation_space.contains(observations)
    observations = envs.step(envs.action_space.sample())[0]
    assert envs.observation_space.contains(observations)
    recorded = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    recorded.reset(seed=1)
    recorded.step(envs.action_space.sample())
    recorded.close()
