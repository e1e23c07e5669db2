"""EngineBatching: actions, rewards, ends, seeds, snapshots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from synergy_gym.actions import ORDERS, waiting_order
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.workload.base import Workload, make_workload
from tests.envs.forms import LIMITS

BACKENDS = ("sim", "reference")
NO_SECONDS: list[Any] = [0, -1.0, float("nan"), float("inf"), True, "1"]


@pytest.fixture
def env(short_engine: Scenario, small_traffic: Any) -> EngineBatchingEnv:
    return EngineBatchingEnv(short_engine, workload=small_traffic, **LIMITS)


def play(env: EngineBatchingEnv, seed: int, actions: np.random.Generator) -> list[Any]:
    """One episode with random actions: (observation, reward, info) of every step."""
    env.reset(seed=seed)
    steps: list[Any] = []
    while True:
        action = actions.integers(env.action_space.nvec)
        observation, reward, terminated, truncated, info = env.step(action)
        assert terminated is False
        assert observation in env.observation_space
        steps.append((observation, reward, info))
        if truncated:
            return steps


def test_the_return_counts_requests_that_met_their_slos(
    env: EngineBatchingEnv, rng: np.random.Generator
) -> None:
    steps = play(env, 1, rng)
    metrics = steps[-1][2]["episode_metrics"]
    met = round(metrics["slo_attainment"] * metrics["offered"])
    assert sum(reward for _, reward, _ in steps) == met
    assert metrics["offered"] == 40
    assert all(sum(i["reward_terms"].values()) == r for _, r, i in steps)


def test_time_adds_up(env: EngineBatchingEnv) -> None:
    _, info = env.reset(seed=3)
    elapsed = info["now_s"]
    truncated = False
    while not truncated:
        _, _, _, truncated, step = env.step(np.array([4000, 200]))
        assert step["dt_s"] >= 0
        elapsed += step["dt_s"]
    assert elapsed == pytest.approx(env._sim.now_ns / 1e9)


@pytest.mark.parametrize("interval_s", [None, 0.05])
@pytest.mark.parametrize("action", ["limits", "full", "grid"])
def test_backends_agree(
    short_engine: Scenario, small_traffic: Any, action: Any, interval_s: float | None, seed: int
) -> None:
    given: dict[str, Any] = {"action": action, "decision_interval_s": interval_s}
    runs = []
    for backend in BACKENDS:
        env = EngineBatchingEnv(short_engine, workload=small_traffic, backend=backend, **given)
        runs.append(play(env, 4, np.random.default_rng(seed)))
    assert len(runs[0]) == len(runs[1])
    for (a, reward_a, info_a), (b, reward_b, info_b) in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (reward_a, info_a["dt_s"]) == (reward_b, info_b["dt_s"])
        assert info_a.get("iterations") == info_b.get("iterations")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_seed_fixes_the_episode(
    short_engine: Scenario, small_traffic: Any, backend: str, seed: int
) -> None:
    def run(episode: int) -> str:
        env = EngineBatchingEnv(short_engine, workload=small_traffic, backend=backend)
        hashed: str = play(env, episode, np.random.default_rng(seed))[-1][2]["log_hash"]
        return hashed

    assert run(8) == run(8)
    assert run(8) != run(9)


def test_reset_without_seed_draws_from_the_split(
    short_engine: Scenario, small_traffic: Any
) -> None:
    env = EngineBatchingEnv(short_engine, workload=small_traffic, split="validation")
    seeds = {env.reset()[1]["seed"] for _ in range(8)}
    assert seeds <= set(short_engine.validation_seeds)
    assert env.reset(seed=7)[1]["seed"] == 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_snapshots_come_back(short_engine: Scenario, small_traffic: Any, backend: str) -> None:
    env = EngineBatchingEnv(
        short_engine, workload=small_traffic, backend=backend, shaping="waiting", **LIMITS
    )
    env.reset(seed=2)
    for _ in range(10):
        observation, *_ = env.step([500, 40])
    snapshot = env.snapshot()
    futures = []
    for _ in range(2):
        np.testing.assert_array_equal(env.restore(snapshot), observation)
        future = [env.step([300 + i, 30]) for i in range(30)]
        futures.append([(o.tolist(), r, i) for o, r, _, _, i in future])
        env.reset(seed=99)
    assert futures[0] == futures[1]
    with pytest.raises(ValueError, match="another environment"):
        EngineBatchingEnv(short_engine, workload=small_traffic).restore(snapshot)


def test_reset_also_restores_the_seed_generator(env: EngineBatchingEnv) -> None:
    env.reset(seed=2)
    snapshot = env.snapshot()
    first = env.reset()[1]["seed"]
    env.restore(snapshot)
    assert env.reset()[1]["seed"] == first


@pytest.mark.parametrize(
    "action",
    [[-1, 0], [0, -1], [1 << 20, 0], [0, 1 << 20], [0], [0, 0, 0], 3, [0.5, 1], [1.0, 1.0], "ab"],
    ids=str,
)
def test_an_illegal_action_is_an_error_and_changes_nothing(
    env: EngineBatchingEnv, action: Any
) -> None:
    env.reset(seed=0)
    env.step([100, 10])
    before = env._sim.log_hash()
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    assert env._sim.log_hash() == before
    env.step([100, 10])


def test_the_largest_action_is_the_engine_limit(env: EngineBatchingEnv) -> None:
    env.reset(seed=0)
    assert env.action_space.nvec.tolist() == [
        env.engine.max_num_batched_tokens,
        env.engine.max_num_seqs,
    ]
    env.step(env.action_space.nvec - 1)
    report = env._sim.last_step(0)
    assert report.token_budget == env.engine.max_num_batched_tokens
    env.step([0, 0])
    assert env._sim.last_step(0).token_budget == 1


def test_masks_allow_everything(env: EngineBatchingEnv) -> None:
    _, info = env.reset(seed=0)
    assert "action_mask" not in info
    assert env.action_masks().all()
    assert len(env.action_masks()) == sum(env.action_space.nvec)


def test_full_actions_say_chunk_and_order(short_engine: Scenario, small_traffic: Any) -> None:
    env = EngineBatchingEnv(
        short_engine, workload=small_traffic, action="full", decision_interval_s=None
    )
    assert env.action_space.nvec[2:].tolist() == [
        env.engine.max_num_batched_tokens + 1,
        len(ORDERS),
    ]
    env.reset(seed=0)
    for order in range(len(ORDERS)):
        env.step([2000, 0, 16, order])
    prompts = env._sim.engine_view(0).waiting.prompt_tokens
    env.step([1, 0, 0, ORDERS.index("shortest-prompt")])
    after = env._sim.engine_view(0).waiting.prompt_tokens[: len(prompts)]
    assert after.tolist() == sorted(after.tolist())


def test_earliest_deadline_is_arrival_order_in_one_class(env: EngineBatchingEnv) -> None:
    env.reset(seed=0)
    for _ in range(60):
        env.step([5, 0])
    view = env._sim.engine_view(0)
    assert view.num_waiting > 2
    order = waiting_order("earliest-deadline", view)
    assert order is not None
    assert np.all(np.diff(view.waiting.waited_s[order]) <= 0)
    assert waiting_order("queue", view) is None


def test_steps_outside_an_episode_are_errors(env: EngineBatchingEnv, rng: Any) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        env.step([0, 0])
    with pytest.raises(gym.error.ResetNeeded):
        env.snapshot()
    play(env, 0, rng)
    with pytest.raises(gym.error.ResetNeeded):
        env.step([0, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_episode_without_decisions_has_one_step(short_engine: Scenario, backend: str) -> None:
    nothing = np.empty(0, np.int64)
    too_long = np.array([10**7])
    for workload in (
        make_workload(nothing, nothing, nothing),
        make_workload(np.array([5]), too_long, np.array([1])),
    ):
        env = EngineBatchingEnv(short_engine, workload=workload, backend=backend)
        env.reset(seed=0)
        _, reward, terminated, truncated, info = env.step([0, 0, 0, 0])
        assert (reward, terminated, truncated) == (0.0, False, True)
        assert info["iterations"] == 0
        assert info["episode_metrics"]["offered"] == len(workload)
        with pytest.raises(gym.error.ResetNeeded):
            env.step([0, 0, 0, 0])


def test_shaping_telescopes(short_engine: Scenario, small_traffic: Any, seed: int) -> None:
    returns = []
    for shaping in (None, "waiting", "backlog"):
        env = EngineBatchingEnv(
            short_engine, workload=small_traffic, shaping=shaping, shaping_weight=2.0
        )
        steps = play(env, 5, np.random.default_rng(seed))
        env.reset(seed=5)
        start = 2.0 * env._potential()
        returns.append(sum(reward for _, reward, _ in steps) + (start if shaping else 0.0))
    assert returns[1:] == pytest.approx([returns[0]] * 2)


def test_dict_observations_are_the_flat_ones(short_engine: Scenario, small_traffic: Any) -> None:
    given = {"workload": small_traffic, **LIMITS}
    flat = EngineBatchingEnv(short_engine, **given)
    named = EngineBatchingEnv(short_engine, observation="dict", **given)
    flat.reset(seed=1)
    named.reset(seed=1)
    for _ in range(20):
        a, b = flat.step([700, 50])[0], named.step([700, 50])[0]
        for name, part in flat.observation_layout.items():
            np.testing.assert_array_equal(a[part], b[name])


def test_observations_and_infos_are_fresh_objects(env: EngineBatchingEnv) -> None:
    _, first_info = env.reset(seed=1)
    first, _, _, _, info_1 = env.step([700, 50])
    kept = first.copy()
    second, _, _, _, info_2 = env.step([700, 50])
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    assert info_1["reward_terms"] is not info_2["reward_terms"]
    assert info_1 is not info_2 is not first_info


def test_reset_options_change_one_episode(env: EngineBatchingEnv) -> None:
    def offered(**options: Any) -> int:
        env.reset(seed=1, options=options)
        return len(env._sim.records())

    assert offered() == 40
    assert offered(load=0.5) == 20
    one: Workload = make_workload(np.array([0]), np.array([8]), np.array([2]))
    assert offered(workload=one) == 1
    assert offered() == 40
    with pytest.raises(ValueError, match="laod"):
        env.reset(options={"laod": 2.0})
    with pytest.raises(ValueError, match="load"):
        env.reset(options={"load": -1.0})
    with pytest.raises(ValueError, match="fixed workload"):
        env.reset(options={"load": 2.0, "workload": one})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"backend": "vllm", "clock": "sundial"}, "clock"),
        ({"backend": "cuda"}, "backend"),
        ({"load": 0.0}, "load"),
        ({"load": float("nan")}, "load"),
        ({"split": "holdout"}, "split"),
        ({"observation": "image"}, "observation"),
        ({"action": "budget"}, "action"),
        ({"shaping": "luck"}, "waiting"),
        *(({"decision_interval_s": wrong}, "None asks before every") for wrong in NO_SECONDS),
        *(({"horizon_s": wrong}, "None keeps the scenario's own 2 s") for wrong in NO_SECONDS),
        *(({"warmup_s": wrong}, "None keeps the scenario's own 0 s") for wrong in NO_SECONDS[1:]),
        ({"warmup_s": 2.0}, "no scored window"),
        ({"warmup_s": 1.0, "horizon_s": 1.0}, "choose 0 <= warm-up < horizon"),
        ({"shaping": "waiting", "shaping_weight": float("inf")}, "finite"),
        ({"render_mode": "svg"}, "rgb_array"),
    ],
    ids=str,
)
def test_wrong_arguments_name_the_cure(
    short_engine: Scenario, arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        EngineBatchingEnv(short_engine, **arguments)


def test_a_cluster_is_refused(short_engine: Scenario) -> None:
    with pytest.raises(ValueError, match="ClusterRouting"):
        EngineBatchingEnv("hetero-3")
    with pytest.raises(ValueError, match="no test seeds"):
        EngineBatchingEnv(replace(short_engine, test_seeds=()), split="test")


def test_the_scenario_brings_its_own_traffic() -> None:
    env = EngineBatchingEnv("chat-h100", load=0.5)
    assert env.reset(seed=1)[1] == {
        "scenario": "chat-h100",
        "load": 0.5,
        "seed": 1,
        "now_s": env._sim.now_ns / 1e9,
    }
    assert len(env._sim.records()) == len(load_scenario("chat-h100").workload(0.5, 1))
