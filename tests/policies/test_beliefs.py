"""What policies believe is pinned: nobody changes a step model, or a forecast, without noticing.

The steps below are timed by a formula of this file, not by the simulator's clock, so that a change
of the clock leaves every number here as it is. A number that changes is another belief: raise the
version of the policies that hold it.
"""

from __future__ import annotations

from random import Random

import pytest

from synergy_gym.latency.models.base import StepFeatures, StepModel
from synergy_gym.latency.models.context import ContextAwareModel
from synergy_gym.latency.models.online import OnlineSaturationModel, online_settings
from synergy_gym.latency.models.published import published_advert, published_model
from synergy_gym.latency.models.saturation import Form
from synergy_gym.policies.forecast import NUM_FORECAST_FEATURES, ForecastFeatures
from synergy_gym.policies.pacing import objectives
from synergy_gym.types import INFORMATION_CLASSES, SLO, EngineSpec, RequestView, RouterRow
from tests.engines import A100, H100, QWQ
from tests.policies.routing import Cluster

EXACT = 1e-12
RECURSIVE = 1e-10
"""Rounding errors of some hundred steps add up."""
ITERATED = 1e-4
"""Fits stop where SciPy is content, which its versions see differently."""
FLOAT32 = 1e-6

DECODES = StepFeatures(24, 24, 60_000, 0, 0, 24)
MIXED = StepFeatures(25, 536, 60_000, 700_000, 2000, 24)
PREFILL = StepFeatures(2, 2048, 0, 2_200_000, 500, 0)
POINTS = (DECODES, MIXED, PREFILL)


def steps(seed: int, count: int, speed: float = 1.0) -> list[tuple[StepFeatures, float]]:
    """Decodes, half of the steps with a prefill beside them, and how long each takes, ms."""
    rng, made = Random(seed), []
    for _ in range(count):
        decodes = 1 + int(59 * rng.random())
        chunk = int(1500 * rng.random()) if rng.random() < 0.5 else 0
        before = int(1000 * rng.random()) if chunk else 0
        context = int(decodes * 3000 * rng.random())
        pairs = chunk * before + chunk * (chunk + 1) // 2
        step = StepFeatures(decodes + (chunk > 0), decodes + chunk, context, pairs, before, decodes)
        linear = max(9.0, 4.0 + 0.1 * step.sequences + 0.03 * step.tokens)
        ms = (linear + 5e-5 * context + 1e-6 * pairs) * (0.95 + 0.1 * rng.random())
        made.append((step, speed * ms))
    return made


def taught(model: StepModel, seed: int, count: int, speed: float = 1.0) -> StepModel:
    """The model after steps that end every 50 ms."""
    for number, (step, ms) in enumerate(steps(seed, count, speed)):
        model.observe(step, ms, number / 20)
    return model


def predictions(model: StepModel) -> list[float]:
    return [model.predict_ms(step) for step in POINTS]


def spec_of(engine: tuple[str, str]) -> EngineSpec:
    return EngineSpec("e", *engine, "", 256, 8192, 8192, 20_000)


def pinned(values: list[float], rel: float) -> object:
    return pytest.approx(values, rel=rel, abs=0)


# --- step models ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "form", "expected"),
    [
        (H100, "stable", [11.0786385261324, 23.4435929040962, 57.4473828877458]),
        (H100, "six", [12.622649477144, 24.9001542234447, 56.6965337670967]),
        (H100, "eight", [12.6108607074748, 21.881473551526, 60.5798148106495]),
        (A100, "stable", [27.0563532538092, 64.0842709285287, 154.324402797897]),
        (QWQ, "stable", [28.1886785048541, 61.3257778818404, 144.190467891967]),
    ],
)
def test_published_models(engine: tuple[str, str], form: Form, expected: list[float]) -> None:
    model = published_model(*engine, form)
    assert model is not None
    found = [model.predict_ms(step.sequences, step.tokens) for step in POINTS]
    assert found == pinned(expected, EXACT)


def test_the_fallback_of_lens() -> None:
    model = OnlineSaturationModel(online_settings("env", mode="online"))
    assert predictions(model) == pinned([9.216, 20.224, 52.732], EXACT)  # 8.7 + 0.0215 S


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("env", {"mode": "online"}, [7.610694434, 24.37210498, 68.77249843]),
        ("adaptive-2025", {"min_samples": 256}, [10.30026849, 25.78232971, 68.52190877]),
        ("multi-timescale-2026", {}, [9.879266023, 25.45089695, 73.07831152]),
    ],
)
def test_models_that_lens_learns(
    preset: str, changes: dict[str, object], expected: list[float]
) -> None:
    model = taught(OnlineSaturationModel(online_settings(preset, **changes)), 1, 300)
    assert model.ready
    assert predictions(model) == pinned(expected, ITERATED)


def test_partial_fits() -> None:
    stored = published_model(*H100, "six")
    model = taught(OnlineSaturationModel(online_settings("partial-fit-2026"), stored), 1, 300)
    assert predictions(model) == pinned([10.47461652, 25.98121535, 69.29146778], ITERATED)


@pytest.mark.parametrize(
    ("engine", "count", "expected"),
    [
        (None, 0, [12.816, 24.384, 54.492]),  # 8.7 + 0.0215 S + 6e-5 C + 8e-7 A
        (None, 20, [11.7804705161509, 27.5243159494891, 71.3093090122695]),
        (None, 400, [12.1575234670745, 26.9523160893201, 68.87739423005]),
        (QWQ, 0, [26.8749208, 61.3257728666667, 141.541928933333]),
        (QWQ, 400, [12.151458969685, 26.8223944136113, 69.0207899989461]),
    ],
)
def test_the_model_of_lens_plus(
    engine: tuple[str, str] | None, count: int, expected: list[float]
) -> None:
    advert = published_advert(spec_of(engine)) if engine else None
    model = ContextAwareModel(advert.step_ms if advert else None)
    taught(model, 2, count)
    assert predictions(model) == pinned(expected, RECURSIVE)


def test_what_lens_plus_makes_of_its_model() -> None:
    model = ContextAwareModel()
    taught(model, 3, 300)
    assert model.invert_tokens(24, 60_000, 40.0, 2000) == 912
    spread = [0.0482991981929413, 0.0493095724648255, 0.0484576042515427]
    assert [model.relative_sd(step) for step in POINTS] == pinned(spread, RECURSIVE)
    published_ms = [
        5.23783353350999, 0.0374299828348839, 0.0301954065952523, 4.84739483387929e-05,
        7.54740031605911e-07, 7.46334299100681e-05, 0.184104803551761, 1.04713217308768e-05,
        8.36762609559966,
    ]  # fmt: skip
    assert list(model.step_ms()) == pinned(published_ms, RECURSIVE)
    assert [model.advert().peak_tps] == pinned([29731.5140708937], RECURSIVE)


def test_an_engine_that_slows_down() -> None:
    model = ContextAwareModel()
    taught(model, 4, 200)
    taught(model, 5, 30, speed=1.6)
    assert model.regime_changes == 1
    slow = [19.4230529198991, 43.3721926783312, 113.438536925434]
    assert predictions(model) == pinned(slow, RECURSIVE)


# --- forecasts of routers -------------------------------------------------------------------------

MS = 10**6
REQUEST = RequestView(1500, 30.0, expected_output_tokens=250.0)
PUBLISHED_MS = (
    (5.0, 0.1, 0.02, 5e-5, 1e-6, 1e-5, 0.2, 1e-5, 7.0),
    (9.0, 0.2, 0.05, 1e-4, 3e-6, 0.0, 0.0, 2e-5, 11.0),
    (4.0, 0.0, 0.03, 0.0, 0.0, 0.0, 0.0, 0.0, 6.0),
)
"""A step model per engine, in the order of `types.ADVERT_TERMS`."""


def busy(policy: str) -> Cluster:
    """Three engines with work, at 30 s, pushed 50 to 150 ms ago."""
    cluster = Cluster(policy)
    cluster.now_s = 30.0
    cluster.publish(*PUBLISHED_MS)
    cluster.set(RouterRow.IN_FLIGHT, 6, 12, 3)
    cluster.set(RouterRow.IN_FLIGHT_TOKENS, 9000, 20_000, 2500)
    cluster.set(RouterRow.ROUTED_SINCE_PUSH, 0, 800, 1200)
    cluster.set(RouterRow.PUSH_PENDING_TOKENS, 2400, 900, 30)
    cluster.set(RouterRow.PUSH_RUNNING, 5, 11, 2)
    cluster.set(RouterRow.PUSH_NS, 29_950 * MS, 29_900 * MS, 29_850 * MS)
    cluster.set(RouterRow.PUSH_STEP_NS, 12 * MS, 22 * MS, 9 * MS)
    cluster.set(RouterRow.PUSH_STEP_MILLITOKENS, 300_000, 11_000, 2000)
    cluster.set(RouterRow.PUSH_USED_BLOCKS, 40, 70, 10)
    cluster.set(RouterRow.PUSH_TOTAL_BLOCKS, 100, 100, 100)
    return cluster


def test_what_block_predicts() -> None:
    cluster = busy("block")
    found = cluster.policy.predict_ms(REQUEST, cluster.view())
    # The third by hand: 3 steps of 6 ms and 2,728 tokens of 0.03 ms, then 250 steps of 6 ms.
    assert found.tolist() == pinned([1886.2911, 3343.4876, 1599.84], EXACT)


def test_what_prism_plus_predicts() -> None:
    cluster = busy("prism-plus")
    cluster.policy._limits = objectives((SLO("chat", 1.0, 0.05, 12.0),))
    found = cluster.policy._predict(REQUEST, cluster.view())
    misses = [0.00460104597168469, 0.0437858749105231, 0.00427130822618692]
    pressure = [0.165595411529434, 0.409578421941628, 0.163878440330777]
    assert found.tolist() == pinned(misses, EXACT)
    assert cluster.policy._pressure.tolist() == pinned(pressure, EXACT)


def test_what_learned_routers_read() -> None:
    cluster = busy("prism-plus")
    cluster.policy.information = frozenset(INFORMATION_CLASSES)
    features = ForecastFeatures(cluster.specs, (SLO("chat", 1.0, 0.05, 12.0),))
    read = features(REQUEST, cluster.view())
    blocks = read[features.layout["engines"]].reshape(3, -1)
    assert features.known
    second = blocks[1, -NUM_FORECAST_FEATURES:].tolist()
    assert second == pytest.approx(
        [
            1.0, 0.0726788, 0.01016895, 0.11411008, 0.22107574, 0.22978684, 0.24328806, 0.0,
            0.01073675, 0.01128014, 0.00674319, 0.426346, 0.0, 0.15844288, 1.0, 1.0, 0.23702691,
        ],
        rel=FLOAT32, abs=FLOAT32,
    )  # fmt: skip
