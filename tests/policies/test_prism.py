"""PRISM: the numbers of its terms, and what every parameter and every missing state does."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.latency.models.published import published_advert
from synergy_gym.policies import describe, make_router_policy, prism
from synergy_gym.types import EngineSpec, RouterRow
from tests.engines import A6000, H100, QWQ
from tests.policies.routing import Cluster

MS = 10**6
REFERENCE = {
    "slo_s": 0.05,
    "scale_s": 1.0,
    "latency_weight": 1.0,
    "load_weight": 1.0,
    "mode_weight": 1.0,
    "affinity_weight": 1.0,
    "beta": 1.0,
    "affinity": True,
    "retention_s": 300.0,
    "capacity_units": "code",
    "compensation": False,
    "in_flight_weight": 0.0,
    "in_flight_scale": 24.0,
    "random_ties": False,
    "forget_after_s": 300.0,
    "stale_after_s": 0.0,
    "rate_window_s": 60.0,
    "step_model": "engine",
}
FIXED = {
    "capacity_units": "physical",
    "compensation": True,
    "in_flight_weight": 1.0,
    "random_ties": True,
}


@pytest.mark.parametrize(
    ("engine", "code", "physical"),
    [(QWQ, 0.006, 0.718), (H100, 0.226, 0.897), (A6000, 0.00013, 0.510)],
)
def test_load_of_one_long_prompt(engine: tuple[str, str], code: float, physical: float) -> None:
    """The authors' unit of capacity saturates the term with one prompt of 4,000 tokens."""
    advert = published_advert(EngineSpec("e", *engine, "", 256, 8192, 8192, 20_000))
    assert advert is not None
    capacity = np.array([advert.capacity, advert.peak_tps], float)
    scores = prism.load_score(np.array([4000.0, 4000.0]), capacity, 1.0)
    assert scores[0] == pytest.approx(code, rel=0.05)
    assert scores[1] == pytest.approx(physical, abs=1e-3)


def test_load_score() -> None:
    pending, capacity = np.array([0.0, 50.0, 9e9, 50.0, -5.0]), np.array([100.0] * 3 + [0.0, 100.0])
    scores = prism.load_score(pending, capacity, 1.0)
    assert scores == pytest.approx([1.0, 1 - np.tanh(0.5), 0.0, 1.0, 1.0])
    half = prism.load_score(pending[1:2], capacity[1:2], 0.5)
    assert half == pytest.approx([1 - np.tanh(1.0)])
    least = np.array([1e-6, 2e-6])
    assert prism.load_score(np.full(2, 1.0), least, 1.0).tolist() == [1.0, 0.0]


def test_latency_score_ends_at_the_slo() -> None:
    """LENS aims at 50 ms from five waiting requests on: then this term is 0 everywhere."""
    steps = np.array([0.0, 0.0125, 0.025, 0.05, 0.051, 9.0])
    assert prism.latency_score(steps, 0.05) == pytest.approx([1.0, 0.75, 0.5, 0.0, 0.0, 0.0])
    assert prism.latency_score(steps[2:3], 0.1) == pytest.approx([0.75])


def test_mode_score() -> None:
    assert prism.mode_score(np.array([0, 1, 2, 3, -1])).tolist() == [1.0, 0.5, 0.0, 0.5, 0.5]


def test_affinity_score_lasts_300_s() -> None:
    assert prism.affinity_score(2, 300.0, 1.0, 300.0) == (2, 1.0)
    assert prism.affinity_score(2, 300.1, 1.0, 300.0) == (0, 0.0)
    assert prism.affinity_score(-1, np.inf, 1.0, 300.0) == (0, 0.0)
    assert prism.affinity_score(1, 0.0, 0.3, 300.0) == (1, 0.3)


def test_in_flight_score() -> None:
    assert prism.in_flight_score(np.array([0, 12]), 24.0) == pytest.approx([1, 1 - np.tanh(0.5)])


def loaded(policy: str) -> Cluster:
    """Three engines that differ in every term."""
    cluster = Cluster(policy)
    cluster.set(RouterRow.PUSH_PREDICTED_NS, 10 * MS, 20 * MS, 30 * MS)
    cluster.set(RouterRow.PUSH_PENDING_TOKENS, 1000, 500, 0)
    cluster.set(RouterRow.PUSH_CAPACITY, 1000_000, 2000_000, 1000_000)
    cluster.set(RouterRow.PUSH_PEAK_MILLITPS, 10_000_000, 20_000_000, 5_000_000)
    cluster.set(RouterRow.PUSH_MODE, 2, 1, 0)
    cluster.set(RouterRow.ROUTED_SINCE_PUSH, 0, 0, 2500)
    cluster.set(RouterRow.IN_FLIGHT, 4, 24, 48)
    return cluster


LATENCY = np.array([0.8, 0.6, 0.4])
LOAD = 1 - np.tanh([1.0, 0.25, 0.0])
PHYSICAL = 1 - np.tanh([0.1, 0.025, 0.0])
MODE = np.array([0.0, 0.5, 1.0])
SESSION = np.array([0.0, 1.0, 0.0])
FLIGHT = 1 - np.tanh([4 / 24, 1.0, 2.0])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("prism-ref", LATENCY + LOAD + MODE + SESSION),
        ("prism-ref:latency_weight=0", LOAD + MODE + SESSION),
        ("prism-ref:load_weight=2", LATENCY + 2 * LOAD + MODE + SESSION),
        ("prism-ref:mode_weight=0.5", LATENCY + LOAD + MODE / 2 + SESSION),
        ("prism-ref:affinity_weight=3", LATENCY + LOAD + MODE + 3 * SESSION),
        ("prism-ref:beta=0.25", LATENCY + LOAD + MODE + SESSION / 4),
        ("prism-ref:affinity=no", LATENCY + LOAD + MODE),
        ("prism-ref:retention_s=9.9", LATENCY + LOAD + MODE),
        ("prism-ref:slo_s=0.1", (LATENCY + 1) / 2 + LOAD + MODE + SESSION),
        ("prism-ref:scale_s=2", LATENCY + 1 - np.tanh([0.5, 0.125, 0]) + MODE + SESSION),
        ("prism-ref:capacity_units=physical", LATENCY + PHYSICAL + MODE + SESSION),
        ("prism-ref:compensation=yes", LATENCY + 1 - np.tanh([1, 0.25, 2.5]) + MODE + SESSION),
        ("prism-ref:in_flight_weight=2", LATENCY + LOAD + MODE + SESSION + 2 * FLIGHT),
        (
            "prism-ref:in_flight_weight=1,in_flight_scale=48",
            LATENCY + LOAD + MODE + SESSION + 1 - np.tanh([4 / 48, 0.5, 1.0]),
        ),
        ("prism-fixed", LATENCY + 1 - np.tanh([0.1, 0.025, 0.5]) + MODE + SESSION + FLIGHT),
    ],
)
def test_scores(policy: str, expected: np.ndarray) -> None:
    cluster = loaded(policy)
    view = cluster.view(session=(1, 10.0))
    assert cluster.policy.scores(view, view.pushed) == pytest.approx(expected, abs=1e-12)
    assert cluster.route(session=(1, 10.0)) == int(expected.argmax())


def test_parameters_are_the_authors() -> None:
    assert describe("prism-ref").parameters == REFERENCE
    assert describe("prism-fixed").parameters == REFERENCE | FIXED


@given(
    table=st.lists(st.integers(0, 3), min_size=4 * len(RouterRow), max_size=4 * len(RouterRow)),
    session=st.integers(-1, 3),
)
def test_fixed_with_the_old_values_is_the_reference(table: list[int], session: int) -> None:
    old = ",".join(f"{name}={REFERENCE[name]}" for name in FIXED)
    choices = []
    for policy in ("prism-ref", f"prism-fixed:{old}"):
        cluster = Cluster(policy, engines=4)
        cluster.rows[:] = np.array(table).reshape(4, -1)
        cluster.rows[0, RouterRow.ALIVE] = 1
        choices.append(cluster.route(session=(session, 1.0 if session >= 0 else np.inf)))
    assert choices[0] == choices[1]


@pytest.mark.parametrize("name", ["slo_s", "scale_s", "in_flight_scale", "rate_window_s"])
def test_scales_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"prism-ref: {name} is 0.0; it must be > 0"):
        make_router_policy(f"prism-ref:{name}=0")
    with pytest.raises(ValueError, match="must be >= 0"):
        make_router_policy("prism-ref:load_weight=-1")


def test_ties_go_to_the_first_engine() -> None:
    """At the cold start every engine looks alike: the reference sends all to engine 0."""
    cluster = Cluster("prism-ref", engines=8)
    assert {cluster.route() for _ in range(16)} == {0}


def test_fixed_breaks_ties_at_random() -> None:
    shares = Cluster("prism-fixed", engines=4).shares()
    assert shares == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.parametrize("policy", ["prism-ref", "prism-fixed"])
def test_down_engines_get_nothing(policy: str) -> None:
    cluster = loaded(policy)
    cluster.set(RouterRow.ALIVE, 0, 0, 1)
    assert {cluster.route(session=(1, 1.0)) for _ in range(20)} == {2}


class TestWithoutState:
    """State exists from the start-up message on, and is forgotten with age."""

    def aged(self, policy: str, *ages_s: float) -> Cluster:
        cluster = loaded(policy)
        cluster.now_s = 1000.0
        cluster.set(RouterRow.PUSH_NS, *[(1000.0 - age) * 1e9 for age in ages_s])
        return cluster

    def test_the_start_up_message_is_state(self) -> None:
        cluster = Cluster("prism-ref")
        cluster.route()
        assert cluster.policy.no_state.count == 0

    def test_old_state_is_used(self) -> None:
        """The authors' freshness filter is commented out."""
        assert self.aged("prism-ref", 0.1, 0.1, 299.9).route() == 2

    def test_forgotten_engines_are_no_candidates(self) -> None:
        """Their gateway removes entries older than 5 minutes."""
        assert self.aged("prism-ref", 0.1, 0.1, 300.1).route() == 1

    def test_with_a_filter_stale_engines_are_none_either(self) -> None:
        cluster = self.aged("prism-ref:stale_after_s=3", 3.1, 2.9, 4.0)
        assert cluster.route() == 1
        assert cluster.policy.no_state.count == 0

    def test_no_candidate_goes_by_request_rate(self, caplog: pytest.LogCaptureFixture) -> None:
        cluster = self.aged("prism-ref", 400.0, 400.0, 400.0)
        with caplog.at_level(logging.WARNING):
            assert [cluster.route() for _ in range(4)] == [0, 1, 2, 0]
        assert cluster.policy.no_state.count == 4
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "prism-ref: no engine" in caplog.text

    def test_the_rate_covers_a_minute(self) -> None:
        cluster = self.aged("prism-ref", 400.0, 400.0, 400.0)
        assert cluster.route() == 0
        cluster.now_s += 30
        assert [cluster.route() for _ in range(3)] == [1, 2, 0]
        cluster.now_s += 29.9  # 2, 1, 1
        assert cluster.route() == 1
        cluster.now_s += 0.1  # the first one is out: 1, 2, 1
        assert cluster.route() == 0

    def test_the_last_engine_up_gets_all_even_without_state(self) -> None:
        cluster = self.aged("prism-ref", 0.1, 0.1, 400.0)
        cluster.set(RouterRow.ALIVE, 0, 0, 1)
        assert cluster.route() == 2
        assert cluster.policy.no_state.count == 1

    def test_unknown_physical_capacity_is_loud(self, caplog: pytest.LogCaptureFixture) -> None:
        cluster = Cluster("prism-fixed")
        cluster.set(RouterRow.PUSH_PENDING_TOKENS, 10**6, 10**6, 10**6)
        cluster.set(RouterRow.PUSH_PEAK_MILLITPS, 10**6, 0, 10**6)
        with caplog.at_level(logging.WARNING):
            assert {cluster.route() for _ in range(9)} == {1}
        assert cluster.policy.no_capacity.count == 9
        assert caplog.text.count("never published its peak throughput") == 1

    def test_reset_forgets_the_counts(self) -> None:
        cluster = self.aged("prism-ref", 400.0, 400.0, 400.0)
        cluster.route()
        cluster.policy.reset(cluster.rng, cluster.specs, ())
        assert cluster.policy.no_state.count == 0
        assert cluster.route() == 0


def test_every_parameter_is_tested_here() -> None:
    names = {item.name for item in dataclasses.fields(prism.Prism)}
    assert names == set(REFERENCE)
