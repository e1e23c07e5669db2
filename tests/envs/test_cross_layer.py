"""CrossLayer: equal to the other environments and to evaluate(), time order, masks, credit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from synergy_gym.actions import EngineGrid
from synergy_gym.envs.cluster_routing import ClusterRoutingEnv
from synergy_gym.envs.cross_layer import CrossLayerEnv
from synergy_gym.envs.engine_batching import EngineBatchingEnv
from synergy_gym.evaluation import evaluate
from synergy_gym.metrics import scored, slo_met
from synergy_gym.policies import RouterPolicy
from synergy_gym.scenario import Scenario
from synergy_gym.types import ClientSpec, ClusterView, Event, RequestView
from synergy_gym.workload.base import Workload, make_workload
from tests.envs.forms import EVERY_ITERATION, LIMITS

BACKENDS = ("sim", "reference")
FORMS = ("limits", "full", "grid")
INTERVALS = (None, 0.05)
SCORED: dict[str, float] = {"warmup_s": 0.0, "horizon_s": 2.0}


class FirstUp(RouterPolicy):
    """Everything to the first engine that is up."""

    def route(self, request: RequestView, cluster: ClusterView) -> int:
        """Index of the first engine that is up."""
        return int(cluster.alive.argmax())


def pairs(a: Any, b: Any, seed: int, actions: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Steps of two environments that get the same actions."""
    first, second = a.reset(seed=seed), b.reset(seed=seed)
    yield (first[0], 0.0, first[1]), (second[0], 0.0, second[1])
    ended = False
    while not ended:
        action = actions(b)
        x, y = a.step(action), b.step(action)
        assert x[2:4] == y[2:4]
        ended = x[3]
        yield (x[0], x[1], x[4]), (y[0], y[1], y[4])


def same_episodes(a: Any, b: Any, seed: int, actions: Callable[[Any], Any]) -> None:
    for (observation, reward, info), other in pairs(a, b, seed, actions):
        np.testing.assert_array_equal(observation, other[0])
        assert reward == other[1]
        for name in ("dt_s", "reward_terms", "log_hash", "now_s", "iterations"):
            assert info.get(name) == other[2].get(name)
        mask, wanted = info.get("action_mask"), other[2].get("action_mask")
        assert (mask is None) == (wanted is None)
        assert mask is None or mask.tolist() == wanted.tolist()
    assert repr(info["episode_metrics"]) == repr(other[2]["episode_metrics"])


def played(env: CrossLayerEnv, seed: int, decide: Callable[[CrossLayerEnv], Any]) -> list[Any]:
    """(observation, reward, info) of every step of an episode."""
    observation, info = env.reset(seed=seed)
    steps = [(observation, 0.0, info)]
    ended = False
    while not ended:
        observation, reward, terminated, ended, info = env.step(decide(env))
        assert terminated is False
        assert observation in env.observation_space
        steps.append((observation, reward, info))
    return steps


def at_random(rng: np.random.Generator) -> Callable[[CrossLayerEnv], Any]:
    def decide(env: CrossLayerEnv) -> Any:
        own = [int(rng.choice(np.flatnonzero(legal))) for legal in env.agent_masks()]
        return env.joint(own[0] if env.layer == "router" else own)

    return decide


def largest(env: CrossLayerEnv) -> list[int]:
    """What `vllm-v1` decides, said with `action="limits"`."""
    return [size - 1 for size in env.actions.engines[env._engine].sizes]


@pytest.mark.parametrize("policy", ["vllm-v1", "lens-ref", "random"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_fixed_engines_it_is_cluster_routing(
    failing_cluster: Scenario, small_traffic: Any, backend: str, policy: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    arguments = {"workload": small_traffic, "engine_policy": policy, "shaping": "imbalance"}
    joint = CrossLayerEnv(failing_cluster, backend=backend, **arguments)
    alone = ClusterRoutingEnv(failing_cluster, backend=backend, **arguments)  # type: ignore[arg-type]
    assert joint.action_space == alone.action_space
    assert joint.observation_space == alone.observation_space
    same_episodes(joint, alone, 3, lambda env: rng.choice(np.flatnonzero(env.action_masks())))


@pytest.mark.parametrize("interval_s", [None, 0.05])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_a_fixed_router_one_engine_is_engine_batching(
    short_engine: Scenario,
    small_traffic: Any,
    backend: str,
    form: Any,
    interval_s: float | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    events = (Event(0.3, "slowdown", 0, factor=1.5), Event(0.9, "down", 0), Event(1.2, "up", 0))
    world = replace(short_engine, events=events, client=ClientSpec(timeout_s=1.0, max_retries=1))
    arguments: dict[str, Any] = {"workload": small_traffic, "action": form, "backend": backend}
    arguments["decision_interval_s"] = interval_s
    joint = CrossLayerEnv(world, router_policy="round-robin", **arguments)
    alone = EngineBatchingEnv(world, **arguments)
    assert joint.action_space == alone.action_space
    assert joint.observation_space == alone.observation_space
    same_episodes(joint, alone, 5, lambda env: rng.integers(env.action_space.nvec))


@pytest.mark.parametrize("policy", ["round-robin", "random", "preble", "prism-plus", "rr-veto"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fixed_router_is_the_one_that_evaluate_plays(
    failing_cluster: Scenario, small_traffic: Any, backend: str, policy: str
) -> None:
    arguments: dict[str, Any] = {"router_policy": policy, "backend": backend, **LIMITS}
    env = CrossLayerEnv(failing_cluster, workload=small_traffic, **arguments)
    steps = played(env, 4, lambda env: env.joint(largest(env)))
    wanted = evaluate(
        failing_cluster, "vllm-v1", policy, seed=4, workload=small_traffic(1.0, 4), **SCORED
    )
    assert steps[-1][2]["log_hash"] == wanted.log_hash
    assert sum(reward for _, reward, _ in steps) == round(
        wanted.summary["slo_attainment"] * wanted.summary["offered"]
    )


@pytest.mark.parametrize("policy", ["vllm-v1", "lens-plus", "lens-ref", "random", "sarathi-512"])
def test_fixed_engines_are_those_that_evaluate_plays(
    failing_cluster: Scenario, small_traffic: Any, policy: str
) -> None:
    env = CrossLayerEnv(failing_cluster, workload=small_traffic, engine_policy=policy)
    first_up = played(env, 6, lambda env: int(env.action_masks().argmax()))
    wanted = evaluate(
        failing_cluster, policy, FirstUp, seed=6, workload=small_traffic(1.0, 6), **SCORED
    )
    assert first_up[-1][2]["log_hash"] == wanted.log_hash


@pytest.mark.parametrize("action_form", ["flat", "dict"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_both_layers_open_give_the_same_episode(
    short_cluster: Scenario, small_traffic: Any, backend: str, action_form: Any
) -> None:
    def decide(env: CrossLayerEnv) -> Any:
        return env.joint(largest(env) if env.layer == "engine" else next(turns) % 3)

    turns = iter(range(1000))
    env = CrossLayerEnv(
        short_cluster,
        workload=small_traffic,
        action_form=action_form,
        backend=backend,
        **LIMITS,
    )
    steps = played(env, 4, decide)
    traffic = small_traffic(1.0, 4)
    wanted = evaluate(short_cluster, "vllm-v1", "round-robin", seed=4, workload=traffic, **SCORED)
    assert steps[-1][2]["log_hash"] == wanted.log_hash


@pytest.mark.parametrize("interval_s", INTERVALS)
@pytest.mark.parametrize("form", FORMS)
def test_backends_agree(
    failing_cluster: Scenario, small_traffic: Any, form: Any, interval_s: float | None, seed: int
) -> None:
    client = ClientSpec(timeout_s=1.5, max_retries=1, backoff_s=0.1)
    world = replace(failing_cluster, client=client)
    runs = []
    for backend in BACKENDS:
        env = CrossLayerEnv(
            world,
            workload=small_traffic,
            action=form,
            decision_interval_s=interval_s,
            backend=backend,
        )
        runs.append(played(env, 7, at_random(np.random.default_rng(seed))))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1] == b[1]
        for name in ("agent", "iterations", "log_hash"):
            assert a[2].get(name) == b[2].get(name)


def sessions_and_classes(load: float, seed: int) -> Workload:
    """A hundred requests in two seconds, in two classes; a third belong to sessions."""
    rng = np.random.default_rng(seed)
    n = round(100 * load)
    return make_workload(
        np.sort(rng.integers(0, 2 * 10**9, n)),
        rng.integers(20, 1500, n),
        rng.integers(1, 60, n),
        session=np.where(rng.random(n) < 0.3, rng.integers(0, 10, n), -1),
        slo_class=rng.integers(0, 2, n),
    )


@pytest.mark.parametrize("form", [*FORMS, EngineGrid(budgets=(64, 256), chunks=(0, 32))], ids=str)
@pytest.mark.parametrize("observation", ["flat", "dict"])
@pytest.mark.parametrize("interval_s", INTERVALS)
def test_compiled_steps_equal_those_in_parts(
    short_cluster: Scenario, form: Any, observation: Any, interval_s: float | None, seed: int
) -> None:
    slow = replace(short_cluster.slos[0], name="slow", ttft_s=None, e2e_s=None)
    client = ClientSpec(timeout_s=1.5, max_retries=1, backoff_s=0.1)
    world = replace(short_cluster, slos=(*short_cluster.slos, slow), client=client)
    runs = []
    for backend, compiled in (("sim", True), ("sim", False), ("reference", False)):
        env = CrossLayerEnv(
            world,
            workload=sessions_and_classes,
            action=form,
            decision_interval_s=interval_s,
            observation=observation,
            backend=backend,
        )
        rng, ended = np.random.default_rng(seed), False
        seen, info = env.reset(seed=seed)
        assert (env._compiled is not None) == (backend == "sim")
        if not compiled:
            env._compiled = env._fused = None
        steps: list[Any] = [(repr(seen), repr(info))]
        while not ended:
            seen, reward, _, ended, info = env.step(at_random(rng)(env))
            info.pop("episode_metrics", None)
            parts = {k: v.tolist() for k, v in seen.items()} if env._dict else seen.tolist()
            steps.append((parts, reward, repr(info)))
        runs.append(steps)
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("interval_s", INTERVALS)
def test_compiled_steps_come_back_to_a_snapshot(
    short_cluster: Scenario, small_traffic: Any, interval_s: float | None, seed: int
) -> None:
    env = CrossLayerEnv(
        short_cluster, workload=small_traffic, load=2.0, decision_interval_s=interval_s
    )
    decide = at_random(np.random.default_rng(seed))
    env.reset(seed=2)
    for steps in (10, 11, 12, 13):
        for _ in range(steps):
            observation, *_ = env.step(decide(env))
        snapshot, futures = env.snapshot(), []
        for _ in range(2):
            np.testing.assert_array_equal(env.restore(snapshot), observation)
            again = at_random(np.random.default_rng(seed))
            future = [env.step(again(env)) for _ in range(20)]
            futures.append([(o.tolist(), r, repr(i)) for o, r, _, _, i in future])
            env.reset(seed=99)
            env.step(decide(env))
        assert futures[0] == futures[1]
        env.restore(snapshot)
    assert env._compiled is not None


def test_decisions_come_in_the_order_of_time(
    short_cluster: Scenario, rng: np.random.Generator
) -> None:
    instants = np.sort(rng.integers(0, 8, 30)) * 10**8  # many requests at one instant
    traffic = make_workload(instants, rng.integers(20, 900, 30), rng.integers(1, 30, 30))
    env = CrossLayerEnv(short_cluster, workload=traffic, **EVERY_ITERATION)
    env.reset(seed=0)
    asked, decide, ended = [(env._sim.now_ns, -1)], at_random(rng), False
    while not ended:
        *_, ended, _ = env.step(decide(env))
        asked.append((env._sim.now_ns, env._engine if env.layer == "engine" else -1))
    assert asked[:-1] == sorted(asked[:-1])
    assert sum(engine < 0 for _, engine in asked[:-1]) == 30
    assert {engine for _, engine in asked} == {-1, 0, 1, 2}


def test_what_comes_later_changes_nothing_before(
    short_cluster: Scenario, small_traffic: Any, seed: int
) -> None:
    past = small_traffic(1.0, 3)
    kept = past.arrival_ns < 10**9
    futures = [
        make_workload(
            past.arrival_ns,
            np.where(kept, past.prompt_tokens, prompt),
            np.where(kept, past.output_tokens, output),
            session=past.session,
        )
        for prompt, output in ((30, 3), (900, 60))
    ]
    runs = []
    for traffic in futures:
        env = CrossLayerEnv(short_cluster, workload=traffic, **EVERY_ITERATION)
        rng, seen, ended = np.random.default_rng(seed), [], False
        observation, _ = env.reset(seed=1)
        while env._sim.now_ns < 10**9 and not ended:
            seen.append((env._sim.now_ns, env.agent, observation.tolist()))
            observation, _, _, ended, _ = env.step(at_random(rng)(env))
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(runs[0]) > 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_credit_goes_to_the_engine_that_served(
    failing_cluster: Scenario, small_traffic: Any, backend: str, rng: np.random.Generator
) -> None:
    client = ClientSpec(max_retries=2, backoff_s=0.05)
    world = replace(failing_cluster, client=client)
    env = CrossLayerEnv(world, workload=small_traffic, load=2.0, backend=backend)
    steps = played(env, 2, at_random(rng))[1:]
    assert all(reward == info["met_by_engine"].sum() for _, reward, info in steps)
    records = env._sim.records()
    met = slo_met(records, world.slos).slo & scored(records, 0, 2 * 10**9)
    wanted = np.bincount(records.engine[met], minlength=3)
    assert sum(info["met_by_engine"] for _, _, info in steps).tolist() == wanted.tolist()
    assert wanted.sum() > 0


@pytest.mark.parametrize("action_form", ["flat", "dict"])
def test_masks_where_an_engine_is_down(
    failing_cluster: Scenario, small_traffic: Any, action_form: Any, rng: np.random.Generator
) -> None:
    env = CrossLayerEnv(failing_cluster, workload=small_traffic, action_form=action_form)
    _, info = env.reset(seed=3)
    env.action_space.seed(int(rng.integers(1 << 30)))
    downs, ended = 0, False
    while not ended:
        layer, masks = env.layer, env.action_masks()
        router, engine = masks[:3], masks[3:]
        up = "action_mask" not in info
        assert router.tolist() == ([True, up, True] if layer == "router" else [True, False, False])
        assert engine.sum() == (len(engine) if layer == "engine" else 4)
        if "action_mask" in info:
            downs += 1
            with pytest.raises(ValueError, match="engine 1 is down"):
                env.step(env.joint(1))
        action = env.action_space.sample(info.get("action_mask"))
        _, _, _, ended, info = env.step(action)
    assert downs > 0


def test_limits_of_unlike_engines_are_masked(
    short_cluster: Scenario, small_traffic: Any, rng: np.random.Generator
) -> None:
    env = CrossLayerEnv(
        short_cluster, workload=small_traffic, router_policy="round-robin", **LIMITS
    )
    _, info = env.reset(seed=3)
    most = np.max([e.max_num_batched_tokens for e in env.engines])
    assert env.action_space.nvec[0] == most  # type: ignore[attr-defined]
    masked, ended = set(), False
    while not ended:
        spec = env.engines[env._engine]
        assert ("action_mask" in info) == (largest(env) != (env.action_space.nvec - 1).tolist())  # type: ignore[attr-defined]
        if "action_mask" in info:
            masked.add(env.agent)
            assert info["action_mask"][0].sum() == spec.max_num_batched_tokens
            with pytest.raises(ValueError, match="outside"):
                env.step([spec.max_num_batched_tokens, 0])
        action = [rng.choice(np.flatnonzero(part)) for part in env.agent_masks()]
        *_, ended, info = env.step(action)
    assert masked


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fixed", [{}, {"router_policy": "preble"}, {"engine_policy": "lens-ref"}])
@pytest.mark.parametrize("interval_s", INTERVALS)
def test_snapshots_come_back(
    failing_cluster: Scenario,
    small_traffic: Any,
    backend: str,
    fixed: Any,
    interval_s: float | None,
    seed: int,
) -> None:
    given = {**fixed, "backend": backend, "decision_interval_s": interval_s}
    env = CrossLayerEnv(failing_cluster, workload=small_traffic, shaping="in-flight", **given)
    decide = at_random(np.random.default_rng(seed))
    env.reset(seed=2)
    for _ in range(15):
        observation, *_ = env.step(decide(env))
    snapshot, futures = env.snapshot(), []
    for _ in range(2):
        np.testing.assert_array_equal(env.restore(snapshot), observation)
        decide = at_random(np.random.default_rng(seed))
        future = [env.step(decide(env)) for _ in range(15)]
        futures.append([(o.tolist(), r, repr(i)) for o, r, _, _, i in future])
        env.reset(seed=99)
    assert futures[0] == futures[1]


def test_dict_observations_are_the_flat_ones(
    short_cluster: Scenario, small_traffic: Any, seed: int
) -> None:
    flat = CrossLayerEnv(short_cluster, workload=small_traffic)
    named = CrossLayerEnv(short_cluster, workload=small_traffic, observation="dict")
    rng = np.random.default_rng(seed)
    for (a, _, info), (b, _, _) in pairs(flat, named, 1, at_random(rng)):
        assert sum(map(len, b.values())) == len(a)
        for name in ("layer", "request", "running", "waiting", "kv", "last_step"):
            np.testing.assert_array_equal(a[flat.observation_layout[name]], b[name])
        if info.get("layer") == "engine":
            assert set(named.part(b)) == {"running", "waiting", "kv", "last_step"}
            np.testing.assert_array_equal(flat.part(a), np.concatenate([*named.part(b).values()]))
            np.testing.assert_array_equal(flat.part(a), flat.engine_observation(flat._engine))
            assert not a[flat.observation_layout["request"]].any()
            assert a[0] == 1.0
        else:
            assert set(named.part(b)) == {"request", "router", "pushed", "scraped"}
            np.testing.assert_array_equal(flat.part(a), flat.router_observation())
            assert not a[flat.observation_layout["running"].start :].any()
            assert a[0] == 0.0


def test_shaping_telescopes(short_cluster: Scenario, small_traffic: Any, seed: int) -> None:
    returns = []
    for shaping in (None, "in-flight", "imbalance"):
        env = CrossLayerEnv(
            short_cluster, workload=small_traffic, shaping=shaping, shaping_weight=2.0
        )
        steps = played(env, 5, at_random(np.random.default_rng(seed)))
        returns.append(sum(reward for _, reward, _ in steps))
    assert returns[1:] == pytest.approx([returns[0]] * 2)


@pytest.mark.parametrize("action_form", ["flat", "dict"])
def test_an_illegal_action_is_an_error_and_changes_nothing(
    short_cluster: Scenario, small_traffic: Any, action_form: Any
) -> None:
    env = CrossLayerEnv(short_cluster, workload=small_traffic, action_form=action_form)
    env.reset(seed=0)
    seen = set()
    for _ in range(12):
        seen.add(env.layer)
        before = env._sim.log_hash()
        for part in (-1, 99, 1.0, "1", None, [-1] * 4, [99] * 4, [0]):
            with pytest.raises(ValueError, match=r"action|engine"):
                env.step(env.joint(part) if action_form == "dict" else part)
        for action in ([99, 0, 0, 0, 0], [0, 0, 0, 0, 99], {"nobody": 0}):
            with pytest.raises(ValueError, match="action"):
                env.step(action)
            with pytest.raises(ValueError, match="action"):
                env.check_action(action)
        assert env._sim.log_hash() == before
        env.check_action(env.joint(2 if env.layer == "router" else [4, 4, 0, 0]))
        env.step(env.joint(2 if env.layer == "router" else [4, 4, 0, 0]))
    assert seen == {"router", "engine"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_episode_without_decisions_has_one_step(short_cluster: Scenario, backend: str) -> None:
    nothing = np.empty(0, np.int64)
    env = CrossLayerEnv(
        short_cluster, workload=make_workload(nothing, nothing, nothing), backend=backend
    )
    _, info = env.reset(seed=0)
    assert "layer" not in info
    assert env.agent is None
    _, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["episode_metrics"]["offered"] == 0
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"router_policy": "prism-ref", "engine_policy": "lens-ref"}, "evaluate"),
        ({"router_policy": "lens-ref"}, "engine"),
        ({"engine_policy": "nobody"}, "nobody"),
        ({"action": "budget"}, "action"),
        ({"action_form": "tuple"}, "action_form"),
        ({"shaping": "backlog"}, "in-flight"),
        ({"decision_interval_s": 0.0}, "None asks before every iteration"),
        ({"horizon_s": float("nan")}, "None keeps the scenario's own 2 s"),
    ],
    ids=str,
)
def test_wrong_arguments_name_the_cure(
    short_cluster: Scenario, arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        CrossLayerEnv(short_cluster, **arguments)


def test_engines_that_run_by_themselves_are_refused(short_cluster: Scenario) -> None:
    from synergy_gym.live.backend import LiveOptions

    with pytest.raises(ValueError, match="ClusterRouting"):
        CrossLayerEnv(short_cluster, backend="vllm", live=LiveOptions(transport="workers"))


def test_rendering_shows_every_engine(short_cluster: Scenario, small_traffic: Any) -> None:
    env = CrossLayerEnv(short_cluster, workload=small_traffic, render_mode="ansi")
    env.reset(seed=1)
    for _ in range(10):
        env.step(env.joint(1 if env.layer == "router" else [8, 4, 0, 0]))
    text = env.render()
    assert all(spec.name in text for spec in short_cluster.engines)
