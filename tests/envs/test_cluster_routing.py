"""ClusterRouting-v0: actions, masks, rewards, engine policies, snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.fixed_layers import FixedEngines
from synergy_gym.evaluation import evaluate
from synergy_gym.features import NUM_REQUEST_FEATURES, NUM_ROUTER_FEATURES, RouterFeatures
from synergy_gym.policies import EnginePolicy
from synergy_gym.scenario import Scenario
from synergy_gym.types import (
    SLO,
    BatchDecision,
    DecisionRule,
    EngineSpec,
    EngineView,
    RouterRow,
    StepReport,
)
from synergy_gym.workload.base import make_workload

BACKENDS = ("sim", "reference")


@pytest.fixture
def env(short_cluster: Scenario, small_traffic: Any) -> ClusterRoutingEnv:
    return ClusterRoutingEnv(short_cluster, workload=small_traffic)


@dataclass
class Plain(EnginePolicy):
    """`vllm-v1` without a compiled rule; remembers what it observed."""

    def decide(self, engine: EngineView) -> BatchDecision:
        """Everything that the server's limits allow."""
        return BatchDecision(engine.spec.max_num_batched_tokens)

    def observe(self, step: StepReport) -> None:
        """Count the steps."""
        self.steps = getattr(self, "steps", 0) + 1


def play(env: ClusterRoutingEnv, seed: int, actions: np.random.Generator) -> list[Any]:
    """One episode with random legal actions: (observation, reward, info) of every step."""
    env.reset(seed=seed)
    steps: list[Any] = []
    while True:
        action = actions.choice(np.flatnonzero(env.action_masks()))
        observation, reward, terminated, truncated, info = env.step(action)
        assert terminated is False
        assert observation in env.observation_space
        steps.append((observation, reward, info))
        if truncated:
            return steps


@dataclass
class Kept(EnginePolicy):
    """Says in its rule how often it was begun."""

    token_budget: int = 100
    begun: int = field(default=0, init=False)

    def reset(self, rng: np.random.Generator, spec: EngineSpec, slos: tuple[SLO, ...]) -> None:
        """Count."""
        self.begun += 1

    def rule(self) -> DecisionRule:
        """The budget, and one token more per episode."""
        return DecisionRule(self.token_budget + self.begun)


def test_every_reset_begins_with_a_policy_that_has_played_nothing(short_cluster: Scenario) -> None:
    mine = Kept(200)
    name = f"{Kept.__module__}:Kept:token_budget=300"
    for source, budget in ((Kept, 101), (mine, 201), (name, 301)):
        layer = FixedEngines(source, short_cluster.engines, short_cluster.slos)
        for seed in range(3):
            budgets = [rule.token_budget for rule in layer.reset(seed) if rule is not None]
            assert budgets == [budget] * len(short_cluster.engines)
            assert len({id(policy) for policy in layer.policies}) == len(budgets)
    mine.token_budget = 250  # its owner goes on: the next episode is played by what it is then
    layer = FixedEngines(mine, short_cluster.engines, short_cluster.slos)
    mine.token_budget = 260
    assert [rule.token_budget for rule in layer.reset(0) if rule] == [261] * len(layer.policies)


def test_one_step_is_one_request(env: ClusterRoutingEnv, rng: np.random.Generator) -> None:
    steps = play(env, 1, rng)
    metrics = steps[-1][2]["episode_metrics"]
    assert len(steps) == metrics["offered"] == 40
    met = round(metrics["slo_attainment"] * metrics["offered"])
    assert sum(reward for _, reward, _ in steps) == met
    assert all("action_mask" not in info for _, _, info in steps)


def test_requests_go_where_they_are_sent(env: ClusterRoutingEnv) -> None:
    env.reset(seed=1)
    sent = [i % 3 for i in range(40)]
    for engine in sent:
        env.step(engine)
    assert env._sim.records().engine.tolist() == sent


@pytest.mark.parametrize("policy", ["vllm-v1", Plain], ids=str)
def test_backends_agree(
    short_cluster: Scenario, small_traffic: Any, policy: Any, seed: int
) -> None:
    runs = []
    for backend in BACKENDS:
        env = ClusterRoutingEnv(
            short_cluster, workload=small_traffic, engine_policy=policy, backend=backend
        )
        runs.append(play(env, 4, np.random.default_rng(seed)))
    for (a, reward_a, info_a), (b, reward_b, info_b) in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (reward_a, info_a["dt_s"]) == (reward_b, info_b["dt_s"])


def test_a_policy_plays_like_its_rule(
    short_cluster: Scenario, small_traffic: Any, seed: int
) -> None:
    hashes = []
    for policy in ("vllm-v1", Plain, Plain()):
        env = ClusterRoutingEnv(short_cluster, workload=small_traffic, engine_policy=policy)
        hashes.append(play(env, 4, np.random.default_rng(seed))[-1][2]["log_hash"])
        policies = env._layer.policies
        assert len({id(p) for p in policies}) == 3
    assert hashes[0] == hashes[1] == hashes[2]
    assert all(policy.steps > 0 for policy in policies)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_where_an_engine_is_down(
    failing_cluster: Scenario, small_traffic: Any, backend: str, rng: np.random.Generator
) -> None:
    env = ClusterRoutingEnv(failing_cluster, workload=small_traffic, backend=backend)
    assert env.action_masks().all()
    env.reset(seed=3)
    downs = 0
    truncated = False
    while not truncated:
        mask = env.action_masks()
        if not mask.all():
            downs += 1
            assert mask.tolist() == [True, False, True]
            with pytest.raises(ValueError, match="engine 1 is down"):
                env.step(1)
        _, _, _, truncated, info = env.step(rng.choice(np.flatnonzero(mask)))
        assert ("action_mask" in info) == (not env.action_masks().all())
        if "action_mask" in info:
            assert info["action_mask"].dtype == np.int8
            assert env.action_space.sample(mask=info["action_mask"]) != 1
    assert downs > 0


@pytest.mark.parametrize("action", [-1, 3, 1.0, "1", None, [0, 1]], ids=str)
def test_an_illegal_action_is_an_error_and_changes_nothing(
    env: ClusterRoutingEnv, action: Any
) -> None:
    env.reset(seed=0)
    env.step(0)
    before = env._sim.log_hash()
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    assert env._sim.log_hash() == before
    env.step(np.int64(2))
    env.step(np.array(1))


@pytest.mark.parametrize("policy", ["vllm-v1", Plain], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_snapshots_come_back(
    short_cluster: Scenario, small_traffic: Any, backend: str, policy: Any
) -> None:
    env = ClusterRoutingEnv(
        short_cluster,
        workload=small_traffic,
        backend=backend,
        engine_policy=policy,
        shaping="imbalance",
    )
    env.reset(seed=2)
    for i in range(10):
        observation, *_ = env.step(i % 3)
    snapshot = env.snapshot()
    futures = []
    for _ in range(2):
        np.testing.assert_array_equal(env.restore(snapshot), observation)
        future = [env.step(i % 2) for i in range(15)]
        futures.append([(o.tolist(), r, i) for o, r, _, _, i in future])
        env.reset(seed=99)
    assert futures[0] == futures[1]


def test_observations_are_what_a_learned_policy_computes(env: ClusterRoutingEnv) -> None:
    features = RouterFeatures(env.engines, env.scenario.slos)
    observation, _ = env.reset(seed=1)
    information = frozenset({"router", "pushed", "scraped"})
    for i in range(20):
        cluster = env._sim.cluster_view(np.random.default_rng(0), information)
        np.testing.assert_array_equal(features(env._sim.request_view(), cluster), observation)
        observation, *_ = env.step(i % 3)


def test_layout_names_what_it_says(env: ClusterRoutingEnv) -> None:
    env.reset(seed=1)
    layout = env.observation_layout
    for _ in range(5):
        observation, *_ = env.step(2)
    table = observation[layout["engines"]].reshape(3, NUM_ROUTER_FEATURES)
    column = layout.names()[NUM_REQUEST_FEATURES:].index("engines[0].router.in_flight")
    counts = env._sim.router_rows()[:, RouterRow.IN_FLIGHT]
    in_flight = counts / (counts + [e.max_num_seqs for e in env.engines])
    np.testing.assert_allclose(table[:, column], in_flight, rtol=1e-6)
    assert in_flight[2] > 0


def test_dict_observations_are_the_flat_ones(short_cluster: Scenario, small_traffic: Any) -> None:
    flat = ClusterRoutingEnv(short_cluster, workload=small_traffic)
    named = ClusterRoutingEnv(short_cluster, workload=small_traffic, observation="dict")
    flat.reset(seed=1)
    named.reset(seed=1)
    names = np.array(flat.observation_layout.names())
    for i in range(20):
        a, b = flat.step(i % 3)[0], named.step(i % 3)[0]
        assert sum(map(len, b.values())) == len(a)
        np.testing.assert_array_equal(a[:NUM_REQUEST_FEATURES], b["request"])
        for kind in ("router", "pushed", "scraped"):
            part = [f".{kind}." in name for name in names]
            np.testing.assert_array_equal(a[part], b[kind])


def test_the_last_observation_has_no_request(env: ClusterRoutingEnv, rng: Any) -> None:
    observation, _, _ = play(env, 1, rng)[-1]
    assert not observation[env.observation_layout["request"]].any()


def test_an_empty_trace_has_one_step(short_cluster: Scenario) -> None:
    nothing = np.empty(0, np.int64)
    env = ClusterRoutingEnv(short_cluster, workload=make_workload(nothing, nothing, nothing))
    env.reset(seed=0)
    _, reward, _, truncated, info = env.step(0)
    assert (reward, truncated, info["episode_metrics"]["offered"]) == (0.0, True, 0)


def test_wrong_arguments_name_the_cure(short_cluster: Scenario) -> None:
    with pytest.raises(ValueError, match="vllm-v1"):
        ClusterRoutingEnv(short_cluster, engine_policy="vllm-v2")
    with pytest.raises(ValueError, match="imbalance"):
        ClusterRoutingEnv(short_cluster, shaping="waiting")
    with pytest.raises(ValueError, match="'sim', 'reference' or 'vllm'"):
        ClusterRoutingEnv(short_cluster, backend="cuda")


def test_a_policy_that_draws_decides_as_in_evaluation() -> None:
    env = ClusterRoutingEnv("smoke-cluster", engine_policy="random", load=0.3)
    env.reset(seed=5)
    ended, turn, info = False, 0, {}
    while not ended:
        _, _, _, ended, info = env.step(turn % int(env.action_space.n))
        turn += 1
    result = evaluate("smoke-cluster", "random", "round-robin", load=0.3, seed=5)
    assert info["log_hash"] == result.log_hash
