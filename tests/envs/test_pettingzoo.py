"""PettingZoo's own tests, equality with the single-agent view, credit, masks, steps by arrival."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.evaluation import evaluate
from synergy_gym.scenario import Scenario
from synergy_gym.workload.base import make_workload

pytest.importorskip("pettingzoo", reason="extra pettingzoo")
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.test.state_test import test_parallel_env as parallel_state_test
from pettingzoo.test.state_test import test_state as state_test

from synergy_gym.envs.pettingzoo import env, parallel_env, raw_env

VARIANTS: list[dict[str, Any]] = [
    {},
    {"router_policy": "prism-ref"},
    {"engine_policy": "lens-ref"},
    {"credit": "team", "action": "full", "shaping": "in-flight"},
]
STYLE = (
    "agents to be named in the format",  # there is one router
    "observation space sizes",
    "Observations are different shapes",
    "Action space for each agent probably should be",  # MultiDiscrete
)
SCORED: dict[str, float] = {"warmup_s": 0.0, "horizon_s": 2.0}


@pytest.fixture
def arguments(short_cluster: Scenario, small_traffic: Any) -> dict[str, Any]:
    return {"scenario": short_cluster, "workload": small_traffic}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_pettingzoo_has_nothing_to_complain(
    arguments: dict[str, Any], variant: dict[str, Any]
) -> None:
    kwargs = {**arguments, **variant}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in STYLE:
            warnings.filterwarnings("ignore", f".*{re.escape(text)}")
        api_test(env(**kwargs), num_cycles=100)
        seed_test(lambda: env(**kwargs), num_cycles=50)
        parallel_api_test(parallel_env(**kwargs), num_cycles=100)
        parallel_seed_test(lambda: parallel_env(**kwargs), num_cycles=50)
        state_test(raw_env(**kwargs), num_cycles=50)
        parallel_state_test(parallel_env(**kwargs))


@pytest.mark.parametrize("name", ["hetero-3", "smoke"])
def test_packaged_scenarios_pass(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is allowed to be said is listed above
        api_test(env(name), num_cycles=50)
        seed_test(lambda: env(name), num_cycles=20)
        parallel_api_test(parallel_env(name), num_cycles=20)
        parallel_seed_test(lambda: parallel_env(name), num_cycles=20)


@pytest.mark.parametrize("interval_s", [None, 0.1])
@pytest.mark.parametrize("name", ["short_cluster", "failing_cluster"])
def test_agents_are_asked_as_the_layers_are(
    name: str, interval_s: float | None, request: Any, small_traffic: Any, rng: np.random.Generator
) -> None:
    """Same decisions, same observations, same moments, same episode; compiled and in parts."""
    world = request.getfixturevalue(name)
    given: dict[str, Any] = {"workload": small_traffic, "decision_interval_s": interval_s}
    joint, agents = CrossLayerEnv(world, **given), raw_env(world, **given)
    observation, info = joint.reset(seed=4)
    agents.reset(seed=4)
    acted: dict[str, float] = dict.fromkeys(agents.agents, joint.now_s)
    ended = False
    while not ended:
        name = joint.agent
        seen, _, _, over, told = agents.last()
        assert (name, over) == (agents.agent_selection, False)
        np.testing.assert_array_equal(seen, joint.part(observation))
        assert told["dt_s"] == joint.now_s - acted[str(name)] >= 0.0
        assert told["now_s"] == joint._sim.now_ns / 1e9
        assert ("action_mask" in told) == ("action_mask" in info)
        own = [int(rng.choice(np.flatnonzero(legal))) for legal in joint.agent_masks()]
        action = own[0] if name == "router" else own
        acted[str(name)] = joint.now_s
        agents.step(action)
        observation, _, _, ended, info = joint.step(joint.joint(action))
    for name in list(agents.agents):
        assert agents.truncations[name]
        assert agents.infos[name]["log_hash"] == info["log_hash"]
        assert agents.infos[name]["episode_metrics"] is not info["episode_metrics"]


def returns(agents: Any, seed: int, rng: np.random.Generator) -> tuple[Counter[str], Any]:
    """What `last()` paid each agent in one episode of random decisions."""
    agents.reset(seed=seed)
    for name in agents.possible_agents:
        agents.action_space(name).seed(int(rng.integers(1 << 31)))
    paid: Counter[str] = Counter()
    for name in agents.agent_iter():
        _, reward, _, over, info = agents.last()
        paid[name] += reward
        agents.step(None if over else agents.action_space(name).sample(info.get("action_mask")))
    return paid, info


def test_engines_earn_what_they_served(arguments: dict[str, Any], rng: Any) -> None:
    for _ in range(20):  # now and then random decisions serve nobody in time, or all alike
        paid, info = returns(raw_env(**arguments, load=2.0), 3, rng)
        metrics = info["episode_metrics"]
        assert paid["router"] == round(metrics["slo_attainment"] * metrics["offered"])
        assert sum(paid[f"engine_{i}"] for i in range(3)) == paid["router"]
        if paid["router"] > 0 and len({paid[f"engine_{i}"] for i in range(3)}) > 1:
            return
    pytest.fail("twenty episodes in a row without unlike earnings")


def test_a_team_earns_together(arguments: dict[str, Any], rng: Any) -> None:
    paid, info = returns(raw_env(**arguments, credit="team"), 3, rng)
    metrics = info["episode_metrics"]
    assert set(paid.values()) == {round(metrics["slo_attainment"] * metrics["offered"])}
    assert len(paid) == 4


def test_an_engine_that_is_down_is_masked_and_refused(
    failing_cluster: Scenario, small_traffic: Any
) -> None:
    agents = raw_env(failing_cluster, workload=small_traffic, engine_policy="vllm-v1")
    agents.reset(seed=3)
    downs = 0
    for name in agents.agent_iter():
        *_, over, info = agents.last()
        if "action_mask" in info:
            downs += 1
            assert info["action_mask"].tolist() == [1, 0, 1]
            with pytest.raises(ValueError, match="engine 1 is down"):
                agents.step(1)
        agents.step(None if over else agents.action_space(name).sample(info.get("action_mask")))
    assert downs > 0


def test_spaces_are_those_of_each_engine(arguments: dict[str, Any]) -> None:
    agents = raw_env(**arguments, action="limits")
    for i, spec in enumerate(arguments["scenario"].engines):
        sizes = agents.action_space(f"engine_{i}").nvec.tolist()
        assert sizes == [spec.max_num_batched_tokens, spec.max_num_seqs]


def held(name: str, engines: Any) -> list[int]:
    """A decision that repeats: as much as the engine can take."""
    spec = engines[int(name.removeprefix("engine_"))]
    return [spec.max_num_batched_tokens - 1, spec.max_num_seqs - 1]


@pytest.mark.parametrize("router", [None, "prism-plus", "random"])
def test_repeated_decisions_are_the_same_episode(arguments: dict[str, Any], router: Any) -> None:
    world = arguments["scenario"]
    agents = parallel_env(**arguments, action="limits", router_policy=router)
    agents.reset(seed=4)
    steps, total, dt_s = 0, 0.0, 0.0
    while agents.agents:
        actions = {name: held(name, world.engines) for name in agents.agents if name != "router"}
        if router is None:
            actions["router"] = steps % 3
        _, rewards, _, _, infos = agents.step(actions)
        total += sum(rewards[f"engine_{i}"] for i in range(3))
        dt_s += infos["engine_0"]["dt_s"]
        steps += 1
    traffic = arguments["workload"](1.0, 4)
    wanted = evaluate(world, "vllm-v1", router or "round-robin", seed=4, workload=traffic, **SCORED)
    assert steps == len(traffic)
    assert infos["engine_1"]["log_hash"] == wanted.log_hash
    assert total == round(wanted.summary["slo_attainment"] * wanted.summary["offered"])
    assert dt_s == pytest.approx(infos["engine_0"]["now_s"] - traffic.arrival_ns[0] / 1e9)
    assert infos["engine_0"]["now_s"] > traffic.arrival_ns[-1] / 1e9


def test_every_agent_must_say_something_legal(arguments: dict[str, Any]) -> None:
    agents = parallel_env(**arguments)
    agents.reset(seed=0)
    actions = {name: agents.action_space(name).sample() for name in agents.agents}
    for wrong, match in (({"engine_1": [99] * 4}, "outside"), ({"router": 7}, "no engine")):
        with pytest.raises(ValueError, match=match):
            agents.step({**actions, **wrong})
    del actions["engine_2"]
    with pytest.raises(ValueError, match="engine_2"):
        agents.step(actions)


def test_an_episode_without_decisions_is_over_at_once(short_cluster: Scenario) -> None:
    nothing = np.empty(0, np.int64)
    world: dict[str, Any] = {
        "scenario": short_cluster,
        "workload": make_workload(nothing, nothing, nothing),
    }
    agents = raw_env(**world)
    agents.reset(seed=0)
    assert all(agents.truncations.values())
    for _ in agents.agent_iter():
        assert agents.last()[4]["episode_metrics"]["offered"] == 0
        agents.step(None)
    for router in (None, "preble"):
        together = parallel_env(**world, router_policy=router)
        together.reset(seed=0)
        actions = {name: together.action_space(name).sample() for name in together.agents}
        *_, over, infos = together.step(actions)
        assert all(over.values())
        assert infos["engine_0"]["episode_metrics"]["offered"] == 0
        assert together.step({}) == ({}, {}, {}, {}, {})


def test_wrong_arguments_name_the_cure(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="credit"):
        raw_env(**arguments, credit="none")
    with pytest.raises(TypeError, match="observation"):
        raw_env(**arguments, observation="dict")
    with pytest.raises(TypeError, match="until the next arrival"):
        parallel_env(**arguments, decision_interval_s=0.1)
    for make in (raw_env, parallel_env):
        with pytest.raises(ValueError, match="evaluate"):
            make(**arguments, router_policy="preble", engine_policy="vllm-v1")


def test_a_wrong_order_of_calls_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="reset"):
        env(**arguments).step(0)
