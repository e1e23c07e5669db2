"""What environments refuse, alike in all of them, and what they are after they refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

import synergy_gym  # noqa: F401  # registers the environments
from synergy_gym.workload.base import make_workload

IDS = {
    "EngineBatching": {"scenario": "smoke"},
    "ClusterRouting": {"scenario": "smoke-cluster"},
    "CrossLayer": {"scenario": "smoke-cluster"},
}
FORMS = [
    *((name, {}) for name in IDS),
    ("EngineBatching", {"action": "limits", "decision_interval_s": None}),
    ("EngineBatching", {"action": "full"}),
    ("ClusterRouting", {"backend": "reference"}),
    ("CrossLayer", {"backend": "reference"}),
    ("CrossLayer", {"shaping": "in-flight"}),
]
SHORT = {"horizon_s": 3.0, "warmup_s": 0.5}
BAD_WORKLOADS = {
    "no workload": 3,
    "no class": make_workload(np.array([0]), np.array([1]), np.array([1]), slo_class=np.array([9])),
}


def make(name: str, more: dict[str, Any]) -> Any:
    """One environment without Gymnasium's wrappers, which check for themselves."""
    env = gym.make(f"SynergyGym/{name}-v1", disable_env_checker=True, **IDS[name], **SHORT, **more)
    return env.unwrapped


def make_many(name: str, more: dict[str, Any], count: int = 3) -> Any:
    return gym.make_vec(f"SynergyGym/{name}-v1", num_envs=count, **IDS[name], **SHORT, **more)


def bad_actions(space: Any) -> list[Any]:
    """Actions that no space has, in the forms that people give them in."""
    if isinstance(space, gym.spaces.Discrete):
        return [2**70, -(2**70), 2**63, -1, int(space.n), True, False, np.True_, 1.0, None, "a"]
    zeros = np.zeros(space.shape, np.int64)
    bad: list[Any] = [zeros - 1, zeros + 10**9, zeros.astype(bool), zeros.astype(float), None]
    bad += [[value] + [0] * (len(zeros) - 1) for value in (2**70, True, np.True_, 0.0, -1)]
    bad += [np.array([value] + [0] * (len(zeros) - 1), object) for value in (2**70, True, 1.0)]
    bad += [zeros.astype(np.uint64) + np.uint64(2**63), zeros.astype("M8[ns]"), zeros[:-1]]
    return bad


@pytest.mark.parametrize(("name", "more"), FORMS, ids=str)
def test_an_action_that_does_not_exist(name: str, more: dict[str, Any]) -> None:
    env, twin = make(name, more), make(name, more)
    for one in (env, twin):
        one.reset(seed=1)
    for action in bad_actions(env.action_space):
        with pytest.raises(ValueError, match=r"^action "):
            env.step(action)
    idle = env.action_space.sample() * 0
    for _ in range(5):  # nothing has happened
        first, second = env.step(idle), twin.step(idle)
        assert np.array_equal(first[0], second[0])
        assert first[1] == second[1]


@pytest.mark.parametrize(("name", "more"), FORMS, ids=str)
def test_a_vector_refuses_in_the_same_words(name: str, more: dict[str, Any]) -> None:
    env, envs = make(name, more), make_many(name, more)
    env.reset(seed=2)
    envs.reset(seed=1)
    idle = np.zeros(env.action_space.shape, np.int64)
    for action in bad_actions(env.action_space):
        if np.shape(action) != idle.shape or not isinstance(action, int | list | np.ndarray):
            with pytest.raises(ValueError, match="action"):
                envs.step([idle, action, idle])
            continue
        with pytest.raises(ValueError, match=r"^action ") as single:
            env.step(action)
        rows: Any = [idle.tolist(), action, idle.tolist()]
        if isinstance(action, np.ndarray):
            rows = np.stack([idle.astype(action.dtype), action, idle.astype(action.dtype)])
        with pytest.raises(ValueError, match=r"^sub-environment [01]: action ") as several:
            envs.step(rows)
        if isinstance(action, int | list):
            assert str(several.value) == f"sub-environment 1: {single.value}"
    envs.step(np.zeros(envs.action_space.shape, np.int64))


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint64, ">i8", object])
def test_every_type_of_whole_number_is_one(name: str, dtype: Any) -> None:
    env, envs = make(name, {}), make_many(name, {})
    env.reset(seed=1)
    envs.reset(seed=1)
    one = np.zeros(env.action_space.shape, dtype)
    env.step(one if one.shape else one.item())
    envs.step(np.zeros(envs.action_space.shape, dtype))


# -- resets that fail ------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(
    "options",
    [*({"workload": bad} for bad in BAD_WORKLOADS.values()), {"load": -1}, {"foo": 1}],
    ids=[*BAD_WORKLOADS, "load", "unknown"],
)
def test_a_failed_reset_leaves_no_episode(name: str, options: dict[str, Any]) -> None:
    """Neither the last one, nor anything to step."""
    env = make(name, {})
    env.reset(seed=1)
    idle = env.action_space.sample() * 0
    for _ in range(3):
        env.step(idle)
    with pytest.raises(ValueError, match=r"workload|load|foo") as caught:
        env.reset(seed=2, options=options)
    assert "\n" not in str(caught.value)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(idle)
    with pytest.raises(ResetNeeded):
        env.snapshot()
    env.reset(seed=1)
    env.step(idle)


@pytest.mark.parametrize("name", IDS)
def test_a_failed_reset_of_a_vector_leaves_no_episode(name: str) -> None:
    envs = make_many(name, {})
    envs.reset(seed=1)
    idle = np.zeros(envs.action_space.shape, np.int64)
    envs.step(idle)
    mask = np.array([False, True, False])
    for options in ({"workload": 3}, {"workload": 3, "reset_mask": mask}):
        with pytest.raises(ValueError, match="workload is 3; give a Workload"):
            envs.reset(options=options)
        with pytest.raises(ResetNeeded):
            envs.step(idle)
        envs.reset(seed=1)
        envs.step(idle)


# -- sub-environments without an episode: what crashed is tried in another process -----

PARTIAL = """
import sys
import gymnasium as gym, numpy as np, synergy_gym
name, scenario, mode = sys.argv[1:4]
given = dict(scenario=scenario, horizon_s=3.0, warmup_s=0.5)
envs = gym.make_vec(f"SynergyGym/{name}-v1", num_envs=3, autoreset_mode=mode, **given)
whole = gym.make_vec(f"SynergyGym/{name}-v1", num_envs=3, autoreset_mode=mode, **given)
whole.reset(seed=1)
envs.reset(seed=1, options=dict(reset_mask=np.array([True, False, False])))
idle = np.zeros(envs.action_space.shape, np.int64)
observation, reward, _, truncated, infos = envs.step(idle)
assert infos["_seed"].tolist() == [False, True, True], "rows without an episode are reset"
assert observation.any(axis=1).all() and not reward[1:].any() and not truncated.any()
assert np.array_equal(observation[0], whole.step(idle)[0][0])
for _ in range(3):
    assert np.array_equal(envs.step(idle)[0][0], whole.step(idle)[0][0])
print("stepped")
"""
OVER = """
import pickle, sys
import gymnasium as gym, numpy as np, synergy_gym
name, scenario, mode = sys.argv[1:4]
envs = gym.make_vec(
    f"SynergyGym/{name}-v1", num_envs=3, scenario=scenario, horizon_s=3.0, warmup_s=0.5,
    autoreset_mode=mode,
)
envs.reset(seed=1)
idle = np.zeros(envs.action_space.shape, np.int64)
while not envs.step(idle)[3].any():
    pass
sys.stdout.buffer.write(pickle.dumps(envs))
"""
RESUME = """
import pickle, sys
import numpy as np, synergy_gym
envs = pickle.load(sys.stdin.buffer)
over = envs._table[:, 0] == 0
assert over.any() and not envs._table[over].any(), "addresses of another process"
idle = np.zeros(envs.action_space.shape, np.int64)
for _ in range(3):
    envs.step(idle)
print("stepped")
"""


def child(code: str, *arguments: str, given: bytes = b"") -> bytes:
    """What a program of its own prints; it may crash."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", IDS)
def test_rows_that_were_never_reset_are_reset_by_the_next_step(name: str) -> None:
    assert b"stepped" in child(PARTIAL, name, IDS[name]["scenario"], "NextStep")


@pytest.mark.slow
@pytest.mark.parametrize("name", IDS)
def test_a_pickle_of_ended_episodes_goes_on_elsewhere(name: str) -> None:
    pickled = child(OVER, name, IDS[name]["scenario"], "NextStep")
    assert b"stepped" in child(RESUME, given=pickled)


@pytest.mark.parametrize("name", IDS)
def test_nobodys_row_leads_nowhere(name: str) -> None:
    """The table keeps no address of an array that may be gone."""
    envs = make_many(name, {}, 2)
    envs.reset(seed=1)
    idle = np.zeros(envs.action_space.shape, np.int64)
    while not (over := envs.step(idle)[3]).any():
        pass
    assert not envs._table[over].any()
