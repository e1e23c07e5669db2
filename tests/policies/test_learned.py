"""Trained agents as policies: what they decide, what they remember, what they refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.envs.wrappers.authors import AuthorsScheduler
from synergy_gym.evaluation.runner import evaluate
from synergy_gym.features import EngineFeatures
from synergy_gym.policies import agent_file, describe, make_engine_policy, make_router_policy
from synergy_gym.policies.agent_file import Agent, AgentError, save_agent
from synergy_gym.policies.authors_state import AUTHORS_GRID
from synergy_gym.policies.learned import (
    FORECAST_FEATURES,
    LearnedEngine,
    LearnedRouter,
    engine_rows,
)
from synergy_gym.policies.networks import network
from synergy_gym.scenario import Scenario, load_scenario
from synergy_gym.types import NS_PER_S, EngineStateField, RouterRow
from tests.policies.agents import (
    authors_agent,
    changed,
    engine_agent,
    router_mlp,
    scorer_agent,
)
from tests.policies.routing import Cluster
from tests.policies.test_conformance import (
    SLOS,
    SPEC,
    cluster,
    engine_decisions,
    engine_view,
    router_decisions,
)

GRIDS = {
    "default": EngineGrid(),
    "one axis": EngineGrid(budgets=(64, 512), caps=(1.0,), orders=("queue",), holds=(False,)),
    "chunks": EngineGrid(chunks=(0, 256), caps=(0.5, 1.0), orders=("queue", "earliest-deadline")),
}
HORIZON_S = 3.0
Save = Callable[[Agent], str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes an agent and names it as a policy."""

    def write(agent: Agent) -> str:
        path = tmp_path / f"{agent.digest()[:16]}.npz"
        save_agent(path, agent)
        return f"agent:{path}"

    return write


@pytest.fixture(scope="module")
def one_engine() -> Scenario:
    return replace(load_scenario("smoke"), horizon_s=HORIZON_S, warmup_s=0.0)


@pytest.fixture(scope="module")
def several_engines() -> Scenario:
    return replace(load_scenario("smoke-cluster"), horizon_s=HORIZON_S, warmup_s=0.0)


@pytest.mark.parametrize("head", ["multidiscrete", "discrete"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_an_engine_agent_takes_the_cell_with_the_largest_logit(
    save: Save, rng: np.random.Generator, grid: EngineGrid, head: str
) -> None:
    agent = engine_agent(rng, grid=grid, head=head)
    policy = make_engine_policy(save(agent))
    policy.reset(rng, SPEC, SLOS)
    for _ in range(20):
        view = engine_view(rng)
        logits = network(agent)(EngineFeatures(SPEC, SLOS)(view))
        cells = list(np.ndindex(*grid.shape))
        if head == "discrete":
            best = cells[int(logits.argmax())]
        else:
            starts = np.cumsum([0, *grid.shape[:-1]])
            best = max(cells, key=lambda cell: float(logits[starts + np.array(cell)].sum()))
        told, meant = policy.decide(view), grid.decide(best, view)
        assert (told.token_budget, told.max_running) == (meant.token_budget, meant.max_running)
        assert told.prefill_chunk == meant.prefill_chunk
        np.testing.assert_equal(told.waiting_order, meant.waiting_order)


def test_frames_are_stacked_oldest_first(save: Save, rng: np.random.Generator) -> None:
    agent = engine_agent(rng, frames=3)
    policy = make_engine_policy(save(agent))
    assert isinstance(policy, LearnedEngine)
    policy.reset(rng, SPEC, SLOS)
    seen: list[Any] = []
    policy._network = lambda x, mask=None: seen.append(x.copy()) or np.zeros(18)  # type: ignore
    views = [engine_view(rng) for _ in range(4)]
    for view in views:
        policy.decide(view)
    a, b, c, d = (EngineFeatures(SPEC, SLOS)(view) for view in views)
    for found, expected in zip(seen, ([a, a, a], [a, a, b], [a, b, c], [b, c, d]), strict=True):
        np.testing.assert_array_equal(found, np.concatenate(expected))


def test_a_decision_holds_for_the_interval(
    save: Save, rng: np.random.Generator, one_engine: Scenario
) -> None:
    grid = GRIDS["one axis"]
    policy = make_engine_policy(save(engine_agent(rng, grid=grid, interval_s=0.1)))
    assert isinstance(policy, LearnedEngine)
    asked: list[float] = []
    choose = policy._choose
    policy._choose = lambda x: asked.append(now[0]) or choose(x)  # type: ignore
    now, decided = [0.0], 0
    env = EngineBatchingEnv(one_engine, action=grid, decision_interval_s=None)
    env.reset(seed=1000)
    policy.reset(rng, env.engine, one_engine.slos)
    done = False
    while not done:
        view = env.engine_view()
        now[0], decided = view.now_s, decided + 1
        policy.decide(view)
        done = env.step(np.array(policy._indices))[3]
    assert 3 < len(asked) < decided
    assert min(np.diff(asked)) >= 0.1


def test_an_interval_is_counted_in_nanoseconds(save: Save, rng: np.random.Generator) -> None:
    """0.1 + 0.2 > 0.3 in floats: a clock in seconds would decide one iteration late."""
    policy = make_engine_policy(save(engine_agent(rng, interval_s=0.2)))
    assert isinstance(policy, LearnedEngine)
    policy.reset(rng, SPEC, SLOS)
    asked: list[float] = []
    policy._choose = lambda x: asked.append(view.now_s) or (0,) * len(policy._grid.shape)  # type: ignore
    for now_ns in (100_000_000, 299_999_999, 300_000_000, 300_000_001):
        view = engine_view(rng)
        view.state = view.state.copy()
        view.state[EngineStateField.NOW_NS] = now_ns
        view.now_s = now_ns / NS_PER_S
        policy.decide(view)
    assert asked == [0.1, 0.3]


def test_without_a_forecast_an_agent_that_reads_it_sends_to_the_fewest_in_flight(
    save: Save, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    engines = Cluster(save(scorer_agent(rng, FORECAST_FEATURES)))
    engines.set(RouterRow.IN_FLIGHT, 5, 2, 7)
    with caplog.at_level(logging.WARNING):
        assert {engines.route() for _ in range(5)} == {1}
    assert engines.policy.no_model.count == 5
    assert caplog.text.count("never published") == 1
    engines.publish(*[(7.1, 0.0, 0.02, 6e-5, 0.0, 0.0, 0.0, 0.0, 7.2)] * 3)
    engines.policy._network = lambda x, alive: np.array([0.0, 0.0, 1.0])
    assert engines.route() == 2
    assert engines.policy.no_model.count == 5


@pytest.mark.parametrize("interval_s", [None, 0.2])
@pytest.mark.parametrize("frames", [1, 2])
def test_an_engine_agent_plays_as_in_its_environment(
    save: Save,
    rng: np.random.Generator,
    one_engine: Scenario,
    frames: int,
    interval_s: float | None,
) -> None:
    agent = engine_agent(rng, frames=frames, interval_s=interval_s or 0.0)
    env = EngineBatchingEnv(one_engine, load=1.2, decision_interval_s=interval_s)
    observation, _ = env.reset(seed=2000)
    stack, done = [observation] * frames, False
    while not done:
        parts = np.split(network(agent)(np.concatenate(stack)), np.cumsum(EngineGrid().shape)[:-1])
        action = np.array([part.argmax() for part in parts])
        observation, _, _, done, info = env.step(action)
        stack = [*stack[1:], observation]
    played = evaluate(one_engine, save(agent), load=1.2, seed=2000)
    assert played.log_hash == info["log_hash"]


def test_the_authors_agent_plays_as_in_its_environment(
    save: Save, rng: np.random.Generator, one_engine: Scenario
) -> None:
    agent = authors_agent(rng)
    env = AuthorsScheduler(
        EngineBatchingEnv(one_engine, load=1.2, action=AUTHORS_GRID, decision_interval_s=None)
    )
    observation, _ = env.reset(seed=2001)
    done = False
    while not done:
        action = network(agent)(observation).argmax()
        observation, _, _, done, info = env.step(action)
    played = evaluate(one_engine, save(agent), load=1.2, seed=2001)
    assert played.log_hash == info["log_hash"]


@pytest.mark.parametrize("fixed_size", [True, False])
def test_a_router_agent_plays_as_in_its_environment(
    save: Save, rng: np.random.Generator, several_engines: Scenario, fixed_size: bool
) -> None:
    engines = len(several_engines.engines)
    agent = router_mlp(rng, engines) if fixed_size else scorer_agent(rng)
    env = ClusterRoutingEnv(several_engines, load=1.2)
    observation, _ = env.reset(seed=2000)
    done = False
    while not done:
        x = observation if fixed_size else engine_rows(observation)
        scores = np.where(env.action_masks(), network(agent)(x), -np.inf)
        if not fixed_size:
            scores = network(agent)(x, env.action_masks())
        observation, _, _, done, info = env.step(int(scores.argmax()))
    played = evaluate(several_engines, router_policy=save(agent), load=1.2, seed=2000)
    assert played.log_hash == info["log_hash"]


@pytest.mark.parametrize("make", [engine_agent, authors_agent])
def test_engine_agents_are_legal_deterministic_and_reset(save: Save, seed: int, make: Any) -> None:
    name = save(make(np.random.default_rng(seed)))
    policy = make_engine_policy(name)
    decisions = engine_decisions(policy, seed)
    engine_decisions(policy, seed ^ 0xFFFF)
    assert engine_decisions(policy, seed) == decisions, "reset left something behind"
    assert engine_decisions(make_engine_policy(name), seed) == decisions


def test_a_scorer_routes_in_clusters_of_every_size(save: Save, seed: int) -> None:
    policy = make_router_policy(save(scorer_agent(np.random.default_rng(seed))))
    for number in range(30):
        decisions = router_decisions(policy, seed + number, policy.information)
        assert decisions == router_decisions(policy, seed + number, policy.information)


def test_a_router_of_fixed_size_refuses_other_clusters(save: Save, rng: Any) -> None:
    policy = make_router_policy(save(router_mlp(rng, 3)))
    policy.reset(rng, cluster(3), SLOS)
    with pytest.raises(AgentError, match="trained on other observations"):
        policy.reset(rng, cluster(4), SLOS)
    narrow = router_mlp(rng, 3)
    arrays = {"w1": narrow.arrays["w1"][:2], "b1": narrow.arrays["b1"][:2]}
    policy = make_router_policy(save(changed(narrow, arrays)))
    with pytest.raises(AgentError, match="chooses among 2 engines, there are 3"):
        policy.reset(rng, cluster(3), SLOS)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (scorer_agent, {}, "decides for routers, not engines"),
        (engine_agent, {"features": ["a"] * 17}, "first difference is 'a' instead of 'running.re"),
        (engine_agent, {"features": ["a"] * 18}, "trained on other observations"),
        (engine_agent, {"observer": "all"}, "observer 'all' is none of"),
        (engine_agent, {"observer": "authors"}, "trained on other observations"),
        (engine_agent, {"head": "beta"}, "head 'beta' is none of"),
        (engine_agent, {"head": "discrete"}, "gives 18 numbers, a discrete head .* needs 180"),
        (engine_agent, {"grid": {"budgets": [1, 0.5]}}, "budgets=.* must be one or more integers"),
        (engine_agent, {"grid": {"sizes": [1]}}, "a grid has"),
        (engine_agent, {"grid": AUTHORS_GRID.to_dict()}, "gives 18 numbers"),
        (
            engine_agent,
            {"grid": EngineGrid((64,), (1.0,), (0,), ("queue",), (False,)).to_dict()},
            "has one cell",
        ),
    ],
)
def test_an_agent_for_something_else_is_refused(
    save: Save, rng: np.random.Generator, make: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(AgentError, match=message):
        make_engine_policy(save(changed(make(rng), **change)))


@pytest.mark.parametrize("change", [{"frames": 2}, {"interval_s": 0.1}])
def test_a_router_decides_for_every_request(save: Save, rng: Any, change: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match="a router decides for every request on one frame"):
        make_router_policy(save(changed(scorer_agent(rng), **change)))


def test_label_and_hash(save: Save, rng: np.random.Generator) -> None:
    first, second = save(engine_agent(rng)), save(engine_agent(rng))
    policy = make_engine_policy(first)
    assert policy.label == first
    assert make_engine_policy(policy.label).policy_hash() == policy.policy_hash()
    assert make_engine_policy(second).policy_hash() != policy.policy_hash()
    path = Path(first.removeprefix("agent:"))
    save_agent(path, changed(agent_file.load_agent(path), interval_s=0.5))
    assert make_engine_policy(first).policy_hash() != policy.policy_hash(), "same name, other agent"
    assert policy.parameters() == {}, "where the file lies decides nothing"
    elsewhere = Path(second.removeprefix("agent:"))
    save_agent(elsewhere, agent_file.load_agent(path))
    same = [make_engine_policy(f"agent:{file}").policy_hash() for file in (path, elsewhere)]
    assert same[0] == same[1]
    assert (
        evaluate(replace(load_scenario("smoke"), horizon_s=0.3, warmup_s=0.0), first).manifest[
            "engine_policy"
        ]["policy"]
        == first
    )


def test_an_agent_is_described(save: Save, rng: np.random.Generator, monkeypatch: Any) -> None:
    path = Path(save(scorer_agent(rng)).removeprefix("agent:"))
    monkeypatch.setattr(agent_file, "AGENTS", path.parent)
    info = describe(f"agent:{path.stem}")
    assert (info.kind, info.name) == ("router", f"agent:{path.stem}")
    assert info.information == ("pushed", "router", "scraped")
    assert info.summary == (
        "Trained router agent, network `scorer`, trained with none for 1,200 decisions."
    )
    assert info.reference.startswith("# router-test\n")
    assert info.source == str(path)
    assert LearnedRouter.information == set(info.information)
    with pytest.raises(AgentError, match="decides for routers"):
        describe(f"agent:{path.stem}", "engine")
    with pytest.raises(ValueError, match=f"a trained agent is written agent:{path.stem}"):
        make_router_policy(path.stem)
