"""Invariant 10: the compiled simulator equals the plain-Python reference, bit for bit.

Both get the same random episodes and the same random answers. At every decision point all that
either of them shows is compared, and at the end every record. The environments' compiled step is
compared with the step in its parts in tests/envs/test_fused.py.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.sim.plain.simulator import ReferenceSimulator
from synergy_gym.sim.points import BATCH, DONE, ROUTE
from synergy_gym.sim.simulator import Simulator
from synergy_gym.types import INFORMATION_CLASSES, BatchDecision, DecisionRule, EngineStateField
from tests.strategies import MAX_POINTS, SIMULATORS, Episode, choose, episodes, give, play

EVERYTHING = frozenset(INFORMATION_CLASSES)


def same(a: Any, b: Any, what: str) -> None:
    """Two records of arrays and plain values are equal, field by field."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        equal = np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        assert equal, f"{what}.{field.name}: compiled {x}, reference {y}"


def same_route_point(a: Simulator, b: ReferenceSimulator) -> None:
    assert a.point_request == b.point_request
    same(a.request_view(), b.request_view(), "request")
    views = [sim.cluster_view(np.random.default_rng(0), EVERYTHING) for sim in (a, b)]
    np.testing.assert_array_equal(views[0].rows, views[1].rows)
    for name in ("now_ns", "session_engine", "session_age_s"):
        assert getattr(views[0], name) == getattr(views[1], name)


def same_batch_point(a: Simulator, b: ReferenceSimulator) -> None:
    assert a.point_engine == b.point_engine
    x, y = a.engine_view(a.point_engine), b.engine_view(b.point_engine)
    np.testing.assert_array_equal(x.state, y.state)
    assert x.last_step == y.last_step
    same(x.running, y.running, "running")
    same(x.waiting, y.waiting, "waiting")


def same_point(a: Simulator, b: ReferenceSimulator, point: int, look: bool) -> None:
    """`look` may be false: reading a table must not change what comes after."""
    assert a.now_ns == b.now_ns
    if look and point == ROUTE:
        same_route_point(a, b)
        assert a.completions() == b.completions()
    elif look and point == BATCH:
        same_batch_point(a, b)


def gaps(sim: Any) -> Counter[int]:
    """Inter-token gaps by length; how equal ones are grouped is each simulator's own affair."""
    result: Counter[int] = Counter()
    for gap, weight in zip(*sim.itl(), strict=True):
        result[int(gap)] += int(weight)
    return result


def same_results(a: Simulator, b: ReferenceSimulator, episode: Episode) -> None:
    same(a.records(), b.records(), "records")
    assert a.met() == b.met() == a.met_by_engine().sum()
    assert a.met_by_engine().tolist() == b.met_by_engine().tolist()
    if episode.arguments["record_itl"]:
        assert gaps(a) == gaps(b)


def same_engines(a: Simulator, b: ReferenceSimulator) -> None:
    """Their state when an episode was cut, maybe in the middle of an iteration.

    The time of the end itself may differ: only one of them stops at timeouts of the departed.
    """
    clocks = [EngineStateField.NOW_NS, EngineStateField.HEAD_WAIT_NS]
    for engine in range(len(a.engines)):
        states = [np.delete(sim.engine_state(engine), clocks) for sim in (a, b)]
        np.testing.assert_array_equal(*states)


def play_both(episode: Episode) -> tuple[Simulator, ReferenceSimulator]:
    """Both simulators at the end of the episode, compared on the way."""
    a, b = episode.build(Simulator), episode.build(ReferenceSimulator)
    rng = random.Random(episode.seed)
    for _ in range(MAX_POINTS):
        point = a.advance()
        assert point == b.advance()
        if point == DONE:
            assert a.now_ns == b.now_ns
            same_engines(a, b)
            break
        same_point(a, b, point, look=rng.random() < 0.7)
        answer = choose(a, point, rng)
        give(a, point, answer)
        give(b, point, answer)
    return a, b


@given(episode=episodes())
def test_compiled_and_reference_agree(episode: Episode) -> None:
    same_results(*play_both(episode), episode)


@given(episode=episodes(saturation=True))
def test_both_agree_where_a_saturation_model_times_the_steps(episode: Episode) -> None:
    same_results(*play_both(episode), episode)


@given(episode=episodes())
def test_completions_agree(episode: Episode) -> None:
    """Nobody routes with `auto_route`, so nobody is told who left either."""
    episode = Episode({**episode.arguments, "auto_route": False}, episode.seed)
    a, b = episode.build(Simulator), episode.build(ReferenceSimulator)
    play(a, episode.seed)
    play(b, episode.seed)
    assert a.completions() == b.completions()


@given(episode=episodes())
def test_log_hashes_agree(episode: Episode) -> None:
    a, b = episode.build(Simulator), episode.build(ReferenceSimulator)
    assert play(a, episode.seed) == play(b, episode.seed)
    assert a.log_hash() == b.log_hash()


def tell(sim: Any, told: list[DecisionRule | None]) -> int:
    """Advance `sim`, answering for the engines in `told` what their rule says."""
    while (point := sim.advance()) == BATCH and (rule := told[sim.point_engine]) is not None:
        sim.batch(BatchDecision(rule.token_budget, rule.max_running, rule.prefill_chunk))
    return int(point)


@given(episode=episodes())
def test_rules_and_points_agree(episode: Episode) -> None:
    """A rule that is carried out from outside, step by step, leads to the same episode."""
    rules = [rule and replace(rule, order="queue") for rule in episode.arguments["rules"]]
    a, b = (
        Episode({**episode.arguments, "rules": said}, 0).build(Simulator) for said in (rules, None)
    )
    rng = random.Random(episode.seed)
    for _ in range(MAX_POINTS):
        point = a.advance()
        assert (point, a.now_ns) == (tell(b, rules), b.now_ns)
        if point == DONE:
            break
        answer = choose(a, point, rng)
        give(a, point, answer)
        give(b, point, answer)
    assert a.log_hash() == b.log_hash()
    assert a.met() == b.met()


@pytest.mark.parametrize("simulator", SIMULATORS)
@given(episode=episodes(), pause=st.integers(0, 30))
def test_restore_goes_back(simulator: type, episode: Episode, pause: int) -> None:
    sim = episode.build(simulator)
    rng = random.Random(episode.seed)
    for _ in range(pause):
        if (point := sim.advance()) == DONE:
            break
        give(sim, point, choose(sim, point, rng))
    saved = sim.snapshot()
    hashes = []
    for _ in range(2):
        play(sim, episode.seed)
        hashes.append((sim.log_hash(), sim.met(), gaps(sim)))
        sim.restore(saved)
    assert hashes[0] == hashes[1]
