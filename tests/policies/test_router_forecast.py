"""The observation with forecasts: what stands in it, and that no place in the cluster does."""

from __future__ import annotations

import numpy as np
import pytest

from synergy_gym.features import NUM_REQUEST_FEATURES, NUM_ROUTER_FEATURES, RouterFeatures
from synergy_gym.policies.forecast import (
    BLOCK_SLOTS,
    NUM_BLOCK_FEATURES,
    ForecastFeatures,
    forecast_layout,
)
from synergy_gym.policies.outlook import RECENT_LENGTHS, RecentLengths, share_within
from synergy_gym.types import (
    NS_PER_S,
    SLO,
    ClusterView,
    CompletionView,
    FloatArray,
    Outcome,
    RequestView,
    RouterRow,
)
from tests.policies.routing import Cluster

SLOS = (SLO("default", ttft_s=1.0, tpot_s=0.05, e2e_s=10.0),)
FAST = (7.1, 0.0, 0.0214, 6e-5, 8e-7, 0.0, 0.0, 0.0, 7.2)
SLOW = (10.0, 0.0, 0.1, 1.3e-4, 2.6e-6, 0.0, 0.0, 2.4e-4, 13.8)
REQUEST = RequestView(prompt_tokens=2000, arrival_s=10.0)


def column(name: str) -> int:
    return [slot.name for slot in BLOCK_SLOTS].index(name)


def cluster(*models: tuple[float, ...]) -> Cluster:
    made = Cluster("prism-plus", len(models))
    made.policy.reset(made.rng, made.specs, SLOS)
    made.publish(*models)
    made.now_s = 10.0
    made.set(RouterRow.PUSH_NS, *[10 * NS_PER_S] * len(models))
    return made


def view(made: Cluster) -> ClusterView:
    """What a router sees that may read everything."""
    return ClusterView(
        now_ns=round(made.now_s * NS_PER_S),
        engines=made.specs,
        rows=made.rows,
        session_engine=-1,
        session_age_s=np.inf,
        rng=made.rng,
    )


def blocks(made: Cluster, features: ForecastFeatures | None = None) -> FloatArray:
    features = features or ForecastFeatures(made.specs, SLOS)
    table = features(REQUEST, view(made))[NUM_REQUEST_FEATURES:]
    return table.reshape(len(made.specs), NUM_BLOCK_FEATURES).astype(np.float64)


def completion(made: Cluster, engine: int, age_s: float, tokens: int = 100) -> CompletionView:
    return CompletionView(
        made.now_s, engine, -1, 2000, tokens, ttft_s=0.1, e2e_s=age_s, outcome=Outcome.FINISHED
    )


def test_the_table_is_that_of_the_plain_features(rng: np.random.Generator) -> None:
    made = cluster(FAST, SLOW, FAST)
    made.rows[:, RouterRow.IN_FLIGHT] = rng.integers(1, 30, 3)
    plain = RouterFeatures(made.specs, SLOS)(REQUEST, view(made))
    features = ForecastFeatures(made.specs, SLOS)(REQUEST, view(made))
    assert np.array_equal(plain[:NUM_REQUEST_FEATURES], features[:NUM_REQUEST_FEATURES])
    table = plain[NUM_REQUEST_FEATURES:].reshape(3, -1)
    assert np.array_equal(table, blocks(made)[:, :NUM_ROUTER_FEATURES])
    layout = forecast_layout(3)
    assert layout.size == len(features)
    assert np.all(features >= layout.low)
    assert np.all(features <= layout.high)


def test_no_regret_where_prism_plus_sends_it(rng: np.random.Generator) -> None:
    for _ in range(20):
        made = cluster(*[FAST if rng.random() < 0.5 else SLOW for _ in range(4)])
        made.rows[:, RouterRow.IN_FLIGHT] = rng.integers(0, 60, 4)
        made.rows[:, RouterRow.IN_FLIGHT_TOKENS] = 1500 * made.rows[:, RouterRow.IN_FLIGHT]
        made.rows[:, RouterRow.PUSH_PENDING_TOKENS] = rng.integers(0, 9000, 4)
        regret = blocks(made)[:, column("forecast.regret")]
        # prism-plus adds 1e-3 of the pressure, which breaks ties among the hopeless.
        assert regret[made.route(2000)] < 0.03
        assert regret.min() == 0.0


def test_an_engines_block_does_not_depend_on_its_place(rng: np.random.Generator) -> None:
    models = [FAST, SLOW, FAST, SLOW]
    made = cluster(*models)
    made.rows[:, RouterRow.IN_FLIGHT] = rng.integers(0, 60, 4)
    order = rng.permutation(4)
    other = cluster(*[models[i] for i in order])
    other.rows[:] = made.rows[order]
    assert np.array_equal(blocks(other), blocks(made)[order])


def test_a_down_engine_has_full_regret() -> None:
    made = cluster(FAST, SLOW)
    made.set(RouterRow.ALIVE, 0, 1)
    assert blocks(made)[:, column("forecast.regret")].tolist() == [1.0, 0.0]


def test_nothing_is_foreseen_before_models_are_known() -> None:
    made = Cluster("prism-plus", 2)
    assert not blocks(made)[:, NUM_ROUTER_FEATURES:].any()


def test_requests_are_late_until_they_leave() -> None:
    made = cluster(FAST, FAST)
    features = ForecastFeatures(made.specs, SLOS)
    blocks(made, features)
    features.sent(1)
    made.now_s = 21.0
    late = column("forecast.late")
    assert blocks(made, features)[:, late] == pytest.approx([0.0, 1 / 17])
    features.observe(completion(made, 1, age_s=11.0))
    assert not blocks(made, features)[:, late].any()


def test_shorter_outputs_fit_better() -> None:
    made = cluster(SLOW, SLOW)
    made.set(RouterRow.IN_FLIGHT, 10, 10)
    fits = column("forecast.fits")
    shares = []
    for tokens in (10, 100_000):
        features = ForecastFeatures(made.specs, SLOS)
        for _ in range(5):
            features.observe(completion(made, 0, age_s=1.0, tokens=tokens))
        shares.append(blocks(made, features)[0, fits])
    assert shares == [1.0, 0.0]


def test_recent_lengths_are_the_last_ones_in_order(rng: np.random.Generator) -> None:
    lengths = RecentLengths()
    drawn = rng.integers(1, 50, RECENT_LENGTHS + 100).astype(np.float64)
    for value in drawn.tolist():
        lengths.add(value)
    last = np.sort(drawn[-RECENT_LENGTHS:])
    assert np.array_equal(lengths.ordered, last)
    for limit in (0.0, 7.0, 25.5, 99.0):
        assert share_within(lengths.ordered, limit) == np.mean(last <= limit)
