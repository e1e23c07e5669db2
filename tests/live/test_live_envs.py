"""The environments on real engines: the checkers, equality with the simulator, the command."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import synergy_gym  # noqa: F401 - registers the ids
from synergy_gym.cli.app import main
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.live.backend import LiveOptions
from synergy_gym.live.inprocess.machines import engine_house
from synergy_gym.policies import EnginePolicy
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.seats import PolicyError
from synergy_gym.types import BatchDecision, ClientSpec, EngineView

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("vllm")]
ENGINE, ROUTER = "SynergyGym/EngineBatching-v1", "SynergyGym/ClusterRouting-v1"
JOINT = "SynergyGym/CrossLayer-v1"


def short(name: str, **changes: Any) -> Scenario:
    return replace(load_scenario(name), horizon_s=0.4, warmup_s=0.05, **changes)


HELD: dict[str, Any] = {"decision_interval_s": 0.01}
WORLDS = {ENGINE: short("live-chat"), ROUTER: short("live-cluster"), JOINT: short("live-cluster")}


@pytest.mark.parametrize("clock", ["model", "cpu"])
@pytest.mark.parametrize("name", [ENGINE, ROUTER])
def test_the_checkers_have_no_warning(name: str, clock: str) -> None:
    """Measured time differs from run to run; the environment's spec says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = HELD if name == ENGINE else {}  # the default holds longer than this world lasts
        env = gym.make(name, scenario=WORLDS[name], backend="vllm", clock=clock, **held)
        assert env.spec is not None
        assert env.spec.nondeterministic == (clock != "model")
        check_env(env, skip_render_check=True)
        checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="extra rl")
        checker.check_env(env)
        env.close()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (ENGINE, HELD),
        (ENGINE, {"action": "limits", "decision_interval_s": None}),
        (ENGINE, {"action": "full", "shaping": "backlog", "observation": "dict", **HELD}),
        (ROUTER, {}),
        (ROUTER, {"engine_policy": "lens-plus", "shaping": "in-flight"}),
        (JOINT, {"decision_interval_s": None}),
        (JOINT, HELD),
        (JOINT, {"router_policy": "preble", "observation": "dict", **HELD}),
    ],
    ids=str,
)
def test_with_modelled_time_an_episode_equals_the_simulated_one(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    client = ClientSpec(timeout_s=0.3, max_retries=1, backoff_s=0.05)
    world = replace(WORLDS[name], client=client)
    kwargs = {"scenario": world, "load": 2.0, **arguments}
    live = gym.make(name, backend="vllm", clock="model", **kwargs)
    simulated = gym.make(name, **kwargs)
    for seed in (3, 4):
        same(live.reset(seed=seed)[0], simulated.reset(seed=seed)[0])
        ended = False
        while not ended:
            action = rng.integers(0, space_sizes(simulated))
            a, b = live.step(action), simulated.step(action)
            same(a[0], b[0])
            assert a[1:4] == b[1:4]
            assert a[4]["reward_terms"] == b[4]["reward_terms"]
            assert a[4]["dt_s"] == b[4]["dt_s"]
            assert a[4].get("iterations") == b[4].get("iterations")
            ended = a[3]
        assert a[4]["log_hash"] == b[4]["log_hash"]
        assert repr(a[4]["episode_metrics"]) == repr(b[4]["episode_metrics"])
        assert a[4]["live"]["clock"] == "model"
    live.close()


def space_sizes(env: Any) -> Any:
    space = env.action_space
    return space.nvec if hasattr(space, "nvec") else space.n


def same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key, value in a.items():
            np.testing.assert_array_equal(value, b[key])
    else:
        np.testing.assert_array_equal(a, b)


def test_a_reset_in_the_middle_reuses_the_engine() -> None:
    env = gym.make(ENGINE, scenario=WORLDS[ENGINE], backend="vllm", clock="model", **HELD)
    first, _ = env.reset(seed=1)
    started = engine_house().started
    for _ in range(3):
        for _ in range(10):
            env.step(env.action_space.sample())
        again, _ = env.reset(seed=1)
        np.testing.assert_array_equal(first, again)
    assert engine_house().started == started
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


def test_snapshots_are_refused() -> None:
    env: Any = gym.make(ENGINE, scenario=WORLDS[ENGINE], backend="vllm").unwrapped
    env.reset(seed=1)
    with pytest.raises(NotImplementedError, match="backend='sim'"):
        env.snapshot()
    env.close()


class Capping(EnginePolicy):
    """Gives every request at most two tokens."""

    uses_token_caps = True

    def decide(self, view: EngineView) -> BatchDecision:
        caps = np.full(view.num_running + view.num_waiting, 2, np.int64)
        return BatchDecision(view.spec.max_num_batched_tokens, token_caps=caps)


def test_a_policy_that_vllm_cannot_follow_is_refused() -> None:
    world = short("live-chat")
    with pytest.raises(PolicyError, match=r"Capping.*token_caps='drop'"):
        evaluate(world, Capping, backend="vllm")
    result = evaluate(world, Capping, backend="vllm", live=LiveOptions(token_caps="drop"))
    assert result.manifest["live"]["dropped_token_caps"] > 0
    plain = evaluate(world, "vllm-v1", backend="vllm", live=LiveOptions(clock="model"))
    assert plain.manifest["live"]["dropped_token_caps"] == 0


def test_the_command_plays_on_a_real_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--backend", "vllm", "--model", "tiny", "--clock", "cpu", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(["run", "live-chat", "--engine-policy", "vllm-v1", "--load", "0.1", *arguments])
    assert ended.value.code == 0
    out, _ = capsys.readouterr()
    assert "vLLM, cpu clock" in out
    assert "simulated" not in out
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["live"]["clock"] == "cpu"
    assert manifest["live"]["vllm"].startswith("0.32")
