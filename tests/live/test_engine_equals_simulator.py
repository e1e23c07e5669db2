"""The central test of the live engines: with modelled time they equal the simulator bit for bit.

Both get the same random episodes (tests/strategies.py: several engines, rules and policies, scarce
memory, prefix caching, priorities, closed loops, timeouts, retries and world events) and the same
random answers. vLLM's own state is compared with the mirrored jobs at every step on the way.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.clock import StepTerms
from synergy_gym.live.backend import LiveOptions
from synergy_gym.live.inprocess.engine import LiveEngine, LiveSimulator
from synergy_gym.live.inprocess.machines import engine_house
from synergy_gym.live.vllm.prompts import Prompts
from synergy_gym.scenario import load_scenario
from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.points import DONE
from synergy_gym.types import BatchDecision, ClientSpec, EngineSpec, Outcome
from synergy_gym.workload.base import make_workload
from synergy_gym.workload.blocks import Content
from tests.sim.test_equivalence import gaps, same, same_point
from tests.strategies import (
    CLIENTS,
    FOREVER_NS,
    MS,
    SEEDS,
    SLOS,
    Answer,
    Episode,
    adverts,
    choose,
    content_tree,
    give,
    rules,
    spec,
    step_terms,
    telemetries,
    workloads,
    world_events,
)

pytestmark = pytest.mark.vllm
OPTIONS = LiveOptions(clock="model")
MOST_POINTS = 400
"""Longer episodes are cut here; what has happened by then is compared."""

SHAPE: dict[str, Any] = {"max_num_seqs": 8, "max_num_batched_tokens": 128, "block_size": 32}
# Few engines, because each configuration starts one.
SPECS: dict[tuple[bool, bool], tuple[EngineSpec, ...]] = {
    (caching, priority): tuple(
        spec(
            **SHAPE,
            kv_blocks=blocks,
            max_model_len=256 if blocks == 9 else 4096,
            prefix_caching=caching,
            scheduling="priority" if priority else "fcfs",
            watermark_blocks=2 if blocks == 9 else 0,
        )
        for blocks in (9, 14)
    )
    for caching in (False, True)
    for priority in (False, True)
}


@st.composite
def live_episodes(draw: st.DrawFn) -> Episode:
    """Any episode at all on the engines of `SPECS`."""
    count = draw(st.sampled_from([1, 1, 2]))
    priority, caching = draw(st.booleans()), draw(st.booleans())
    grid = draw(st.integers(0, 3)) == 3
    specs = tuple(draw(st.sampled_from(SPECS[caching, priority])) for _ in range(count))
    specs = tuple(replace(one, name=f"e{i}") for i, one in enumerate(specs))
    closed = draw(st.integers(0, 3)) == 3
    terms, seed = draw(step_terms(grid=grid)), draw(SEEDS)
    arguments = {
        "engines": specs,
        "clocks": tuple(terms.clock(seed + i) for i in range(count)),
        "workload": draw(workloads(caching=caching, priority=priority, grid=grid, closed=closed)),
        "slos": SLOS,
        "telemetry": draw(telemetries()),
        "client": draw(CLIENTS),
        "events": draw(world_events(count)),
        "warmup_ns": draw(st.sampled_from([0, 100 * MS])),
        "horizon_ns": draw(st.sampled_from([FOREVER_NS, 2000 * MS])),
        "rules": [draw(rules(one)) for one in specs],
        "adverts": draw(adverts(count)),
        "auto_route": count == 1 and draw(st.booleans()),
        "record_itl": True,
    }
    return Episode(arguments, seed)


def live_simulator(episode: Episode) -> LiveSimulator:
    """The episode on real engines that serve nobody else until it is closed."""
    house = engine_house()
    machines = house.lease([house.configuration(one, OPTIONS) for one in episode.engines])
    live = []
    for one, machine in zip(episode.engines, machines, strict=True):
        prompts = Prompts(episode.workload, machine.vocabulary, one.block_size)
        live.append(LiveEngine(one, machine, prompts, None, drop_caps=False))
    return LiveSimulator(
        live=live,
        options=OPTIONS,
        release=lambda: house.give_back(machines),
        **episode.arguments,
    )


def possible(answer: Answer) -> Answer:
    """The answer without token caps above zero, which vLLM has no means for."""
    if not isinstance(answer, BatchDecision) or answer.token_caps is None:
        return answer
    return replace(answer, token_caps=np.where(answer.token_caps > 0, -1, answer.token_caps))


def play_both(episode: Episode, most: int = MOST_POINTS) -> tuple[LiveSimulator, Any]:
    """A real and a simulated cluster at the end of the episode, compared on the way."""
    live, reference = live_simulator(episode), episode.build(ReferenceSimulator)
    rng = random.Random(episode.seed)
    try:
        for _ in range(most):
            point = live.advance()
            assert point == reference.advance()
            if point == DONE:
                break
            same_point(live, reference, point, look=rng.random() < 0.7)
            live.check()
            answer = possible(choose(reference, point, rng))
            give(live, point, answer)
            give(reference, point, answer)
    finally:
        live.close()
    return live, reference


@pytest.fixture(autouse=True)
def checked(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here needs vLLM, and compares its state with the jobs at every step."""
    monkeypatch.setenv("SYNERGY_GYM_CHECK", "1")


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(episode=live_episodes())
def test_a_live_episode_equals_the_simulated_one(episode: Episode) -> None:
    live, reference = play_both(episode)
    assert live.log_hash() == reference.log_hash()
    same(live.records(), reference.records(), "records")
    assert live.met() == reference.met()
    assert gaps(live) == gaps(reference)
    assert live.completions() == reference.completions()


def crowded(rng: np.random.Generator, caching: bool, priority: bool) -> Episode:
    """More requests than memory, impatient clients, and prompts that begin alike."""
    count = 60
    content = content_tree(rng, count) if caching else None
    prompt = rng.integers(20, 90, count)
    if content is not None:
        prompt = np.minimum(np.maximum(prompt, content.start[content.leaf] + 1), 180)
    workload = make_workload(
        np.sort(rng.integers(0, 1500 * MS, count)),
        prompt,
        rng.integers(10, 60, count),
        session=rng.integers(-1, 4, count),
        slo_class=rng.integers(0, len(SLOS), count),
        priority=rng.integers(-2, 3, count) if priority else None,
        content=content,
    )
    return Episode(
        {
            "engines": (SPECS[caching, priority][0],),
            "clocks": (StepTerms(base_ms=2.0, per_token_ms=0.02, noise_sd=0.05).clock(7),),
            "workload": workload,
            "slos": SLOS,
            "client": ClientSpec(timeout_s=0.6, max_retries=1, backoff_s=0.1),
            "rules": None,
            "auto_route": True,
            "record_itl": True,
        },
        int(rng.integers(1 << 32)),
    )


def under_pressure(simulator: Any) -> bool:
    """Whether an episode that is over had all that pressure brings."""
    records = simulator.records()
    outcomes = Counter(records.outcome.tolist())
    return bool(
        records.preemptions.sum() >= 3
        and outcomes[Outcome.ABORTED] >= 1
        and outcomes[Outcome.FINISHED] >= 5
        and (records.attempts > 1).any()
    )


def pressed(rng: np.random.Generator, caching: bool, priority: bool) -> Episode:
    """The first random crowd that is under pressure: one in thirty is not."""
    for _ in range(30):
        episode = crowded(rng, caching, priority)
        if under_pressure(play_plain(episode)):
            return episode
    raise AssertionError("thirty crowds in a row without pressure")


def play_plain(episode: Episode) -> ReferenceSimulator:
    """The simulated cluster at the end of an episode, with the answers of `play_both`."""
    simulator: ReferenceSimulator = episode.build(ReferenceSimulator)
    rng = random.Random(episode.seed)
    while (point := simulator.advance()) != DONE:
        rng.random()  # what `play_both` asks before it looks
        give(simulator, point, possible(choose(simulator, point, rng)))
    return simulator


@pytest.mark.parametrize("priority", [False, True], ids=["fcfs", "priority"])
@pytest.mark.parametrize("caching", [False, True], ids=["uncached", "cached"])
def test_equal_under_pressure(caching: bool, priority: bool, rng: np.random.Generator) -> None:
    """Preemptions, timeouts in the middle of an iteration and cache hits do occur."""
    live, reference = play_both(pressed(rng, caching, priority), most=20_000)
    assert live.log_hash() == reference.log_hash()
    records = live.records()
    same(records, reference.records(), "records")
    assert under_pressure(live)
    assert (records.cached_tokens.sum() > 0) == caching


SHORT = {"horizon_s": 1.2, "warmup_s": 0.2}


@pytest.mark.parametrize(
    "policy",
    [
        "vllm-v1",
        "static-256",
        "sarathi-512",
        "shortest-prompt",
        "earliest-deadline",
        "random",
        "vllm-v0",
        "lens-plus",
    ],
)
def test_registered_policies_play_the_same_episode(policy: str) -> None:
    scenario = replace(load_scenario("live-chat"), **SHORT)
    simulated = evaluate(scenario, policy, load=1.5, seed=3)
    live = evaluate(scenario, policy, load=1.5, seed=3, backend="vllm", live=OPTIONS)
    assert live.log_hash == simulated.log_hash
    same(live.records, simulated.records, "records")
    assert repr(live.summary["ttft_p99_s"]) == repr(simulated.summary["ttft_p99_s"])
    assert live.records.cached_tokens.sum() > 0


@pytest.mark.parametrize("router", ["round-robin", "prism-plus"])
def test_engines_of_a_cluster_run_side_by_side_in_virtual_time(router: str) -> None:
    scenario = replace(load_scenario("live-cluster"), **SHORT)
    simulated = evaluate(scenario, "lens-plus", router, seed=4)
    live = evaluate(scenario, "lens-plus", router, seed=4, backend="vllm", live=OPTIONS)
    assert live.log_hash == simulated.log_hash
    same(live.records, simulated.records, "records")
    assert set(live.records.engine.tolist()) == set(range(len(scenario.engines)))


def test_what_is_aborted_in_a_step_is_freed_before_what_finishes_in_it() -> None:
    """The order decides which cached blocks are evicted first.

    Iterations last 10 ms. A (arrives at 0) times out at 35 ms, in the iteration in which B (9 ms)
    emits its last token. C needs all but two of the free blocks, which evicts those of A; so E,
    which begins like B, finds both of B's full blocks, and D, which begins like A, none.
    """
    a, b, c, e, d = range(5)
    content = Content(
        leaf=np.array([0, 1, 2, 1, 0]), parent=np.array([-1, -1, -1]), start=np.zeros(3, np.int64)
    )
    workload = make_workload(
        np.array([0, 9, 50, 100, 150]) * MS,
        np.array([64, 64, 200, 70, 70]),
        np.array([30, 3, 1, 1, 1]),
        content=content,
    )
    arguments = {
        "engines": (SPECS[True, False][0],),
        "clocks": (StepTerms(base_ms=10.0).clock(1),),
        "workload": workload,
        "slos": SLOS,
        "client": ClientSpec(timeout_s=0.035),
        "rules": None,
        "auto_route": True,
        "record_itl": True,
    }
    runs = live_simulator(Episode(arguments, 0)), ReferenceSimulator(**arguments)
    for simulator in runs:
        while simulator.advance() != DONE:
            simulator.batch(BatchDecision(128))
    runs[0].close()
    live, reference = runs[0].records(), runs[1].records()
    same(live, reference, "records")
    assert [Outcome(o) for o in live.outcome] == [Outcome.ABORTED] + [Outcome.FINISHED] * 4
    assert live.finish_ns[b] == 40 * MS
    assert live.cached_tokens[[a, b, c, e, d]].tolist() == [0, 0, 0, 64, 0]
