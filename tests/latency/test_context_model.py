"""The context-aware model: convergence, intervals, regime changes, robustness, equal to NumPy."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.latency.clock import NOISE, SLOW, STRAGGLER_P, UNIT, StepTerms, step_ns
from synergy_gym.latency.models import rls
from synergy_gym.latency.models.context import (
    GENERIC_STEP_MS,
    MIN_STEP_MS,
    ContextAwareModel,
    ContextSettings,
    StepFeatures,
    StepModel,
)
from synergy_gym.latency.profiles import list_profiles, load_profile
from synergy_gym.types import ADVERT_TERMS, StepReport

H100, A6000 = "h100-llama-3.1-8b", "2xa6000-llama-3.1-8b"
OWN_FORM = list_profiles(season=1)
"""Clocks of exactly the terms that the model has; later ones have terms that it lacks."""
LATER = [name for name in list_profiles() if not name.startswith("cpu-")]
THROTTLED = round(UNIT / 0.7)


def random_step(rng: np.random.Generator) -> StepFeatures:
    """Decodes with their context, and in four of ten steps a prefill chunk."""
    decodes = int(rng.integers(0, 100))
    chunk = int(rng.integers(1, 2048)) if rng.random() < 0.4 or decodes == 0 else 0
    computed = int(rng.integers(0, 4000)) if chunk and rng.random() < 0.5 else 0
    pairs = chunk * computed + chunk * (chunk + 1) // 2
    context = int(decodes * rng.uniform(500, 3000))
    sequences = decodes + (chunk > 0)
    return StepFeatures(sequences, decodes + chunk, context, pairs, computed, decodes)


def decode_step(decodes: int, context: int = 1000) -> StepFeatures:
    return StepFeatures(decodes, decodes, decodes * context, 0, 0, decodes)


class World:
    """An engine with the simulator's clock."""

    def __init__(self, terms: StepTerms, seed: int, rng: np.random.Generator) -> None:
        self.clock = terms.clock(seed)
        self.rng = rng
        self.count = 0

    def ms(self, step: StepFeatures) -> float:
        """Duration of the next step, noise included."""
        self.count += 1
        return clock_ms(self.clock, step, self.count)

    def truth_ms(self, step: StepFeatures) -> float:
        """Duration without noise."""
        clock = self.clock.copy()
        clock[NOISE] = clock[STRAGGLER_P] = 0
        return clock_ms(clock, step)

    def teach(self, model: ContextAwareModel, steps: int) -> Iterator[tuple[StepFeatures, float]]:
        """Let the model learn random steps; yields each with its time before it is learned."""
        for _ in range(steps):
            step = random_step(self.rng)
            ms = self.ms(step)
            yield step, ms
            model.observe(step, ms)

    def errors(self, model: ContextAwareModel, steps: int) -> np.ndarray:
        """Relative errors of the predictions against the noisy times."""
        taught = self.teach(model, steps)
        return np.array([abs(model.predict_ms(step) / ms - 1) for step, ms in taught])


def clock_ms(clock: np.ndarray, step: StepFeatures, number: int = 0) -> float:
    prefill = int(step.tokens > step.decodes)
    ns = step_ns(
        clock,
        number,
        step.sequences,
        step.tokens,
        step.decode_context_tokens,
        step.prefill_pairs,
        step.prefill_context_tokens,
        prefill,
        int(prefill and step.decodes > 0),
    )
    return ns / 1e6


def world(profile: str, rng: np.random.Generator, season: int = 1, **changes: float) -> World:
    terms = replace(load_profile(profile, season).terms, **changes)  # type: ignore[arg-type]
    return World(terms, int(rng.integers(2**40)), rng)


def prior_of(terms: StepTerms) -> tuple[float, ...]:
    return tuple(getattr(terms, name) for name in ADVERT_TERMS)


# --- the compiled filter is the one that this NumPy version spells out ----------------------


class Plain:
    """`rls.observe` in NumPy, for well-formed steps."""

    def __init__(self, model: ContextAwareModel) -> None:
        state, n = model.state, rls.NUM_TERMS
        self.theta = state[rls.THETA : rls.THETA + n].copy()
        self.scale = state[rls.SCALE : rls.SCALE + n].copy()
        self.cap = state[rls.CAP : rls.CAP + n].copy()
        self.knots = state[rls.KNOTS : rls.KNOTS + rls.NUM_KNOTS].copy()
        self.covariance = state[rls.COVARIANCE : rls.SCRATCH].reshape(n, n).copy()
        self.variance, self.memory = state[rls.VARIANCE], state[rls.MEMORY]
        self.accepted = self.changes = 0
        self.sums = np.zeros(2)
        self.surprise = 1.0
        self.recent: list[float] = []

    def row(self, step: StepFeatures) -> np.ndarray:
        prefill = float(step.tokens > step.decodes)
        mixed = prefill * (step.decodes > 0)
        context = step.decode_context_tokens
        hinges = np.maximum(step.tokens - self.knots, 0)
        tail = (step.prefill_pairs, step.prefill_context_tokens, prefill, context * mixed)
        return np.array([1, step.sequences, *hinges, context, *tail]) / self.scale

    def predict_ms(self, step: StepFeatures) -> float:
        return max(float(self.row(step) @ self.theta), 0.1)

    def observe(self, step: StepFeatures, ms: float) -> None:
        predicted = self.predict_ms(step)
        row = self.row(step) / predicted
        gain = self.covariance @ row
        spread = float(row @ gain)
        sd = math.sqrt(self.variance * (1 + spread))
        z = float(np.clip((ms / predicted - 1) / sd, -3, 3))
        self.theta += gain * z * sd / (1 + spread)
        weight = self.memory - (1 - self.memory) / spread  # information kept along the row
        self.covariance -= np.outer(gain, gain) * weight / (1 + weight * spread)
        self.limit()
        self.project()
        self.accepted += 1
        rate = max(1 / (self.accepted + 20), 1 / 500)
        self.variance = float(np.clip(self.variance * (1 + rate * (z * z - 1)), 4e-6, 0.25))
        self.follow(z, math.log(ms / predicted))

    def limit(self) -> None:
        for i, cap in enumerate(self.cap):
            factor = min(math.sqrt(cap / self.covariance[i, i]), 1)
            self.covariance[i] *= factor
            self.covariance[:, i] *= factor

    def project(self) -> None:
        """Equality-constrained least squares with the negative coefficients at 0."""
        zero: list[int] = []
        start = self.theta.copy()
        while self.theta.min() < 0:
            zero.append(int(self.theta.argmin()))
            block = self.covariance[np.ix_(zero, zero)]
            moved = self.covariance[:, zero] @ np.linalg.solve(block, start[zero])
            self.theta = start - moved
            self.theta[zero] = 0

    def follow(self, z: float, log_ratio: float) -> None:
        self.recent = [*self.recent, log_ratio][-5:]
        self.sums = np.maximum(self.sums + np.array([z - 0.5, -z - 0.5]), 0)
        self.surprise += (z * z - self.surprise) / 16
        if self.sums.max() <= 12 and self.surprise <= 3:
            return
        self.sums, self.surprise = np.zeros(2), 1.0
        change = float(np.median(self.recent))
        common = abs(change) > math.log(1.08)
        if common:
            self.theta *= math.exp(change)
            self.cap *= math.exp(2 * change)
            self.covariance *= math.exp(2 * change)
            self.changes += 1
        self.covariance *= 4
        if common:
            self.covariance += np.outer(self.theta, self.theta)  # the factor is uncertain
        self.limit()


@given(seed=st.integers(0, 2**32 - 1), speed=st.floats(0.3, 3), memory=st.floats(20, 5000))
def test_the_kernel_equals_the_numpy_version(seed: int, speed: float, memory: float) -> None:
    rng = np.random.default_rng(seed)
    engine = world(str(rng.choice(OWN_FORM)), rng)
    model = ContextAwareModel(settings=ContextSettings(memory_steps=memory))
    plain = Plain(model)
    n = rls.NUM_TERMS
    for number in range(80):
        step = random_step(rng)
        ms = engine.ms(step) * (speed if number >= 40 else 1)
        assert model.predict_ms(step) == pytest.approx(plain.predict_ms(step), rel=1e-6)
        model.observe(step, ms)
        plain.observe(step, ms)
    covariance = model.state[rls.COVARIANCE : rls.SCRATCH].reshape(n, n)
    sds = np.sqrt(np.diag(plain.covariance))
    assert np.abs(covariance - plain.covariance).max() <= 1e-6 * sds.max() ** 2
    assert np.abs(model.state[rls.THETA : rls.THETA + n] - plain.theta).max() <= 1e-5
    assert model.noise_sd == pytest.approx(math.sqrt(plain.variance), rel=1e-6)
    assert model.regime_changes == plain.changes


# --- what it learns ---------------------------------------------------------------------------


@pytest.mark.parametrize("profile", OWN_FORM)
def test_the_clock_as_prior_is_predicted_exactly(profile: str, rng: np.random.Generator) -> None:
    """Within 6 % where a floor is left after so many sequences: the model's has tokens only."""
    terms = load_profile(profile, season=1).terms
    floored = terms.floor_ms > terms.base_ms and terms.per_sequence_ms > 0
    rel = 0.06 if floored else 1e-6
    engine, model = World(terms, 0, rng), ContextAwareModel(prior_of(terms))
    for _ in range(300):
        step = random_step(rng)
        assert model.predict_ms(step) == pytest.approx(engine.truth_ms(step), rel=rel)
    assert model.step_ms() == pytest.approx(prior_of(terms), rel=1e-9, abs=1e-12)


class Convergence(NamedTuple):
    """How a model that knew nothing ends: relative errors, and its noise over the true one."""

    first: float
    last: float
    noise: float


def converge(profile: str, rng: np.random.Generator, season: int) -> Convergence:
    engine, model = world(profile, rng, season), ContextAwareModel()
    first = engine.errors(model, 200)[50:].mean()
    engine.errors(model, 1500)
    steps = [random_step(rng) for _ in range(500)]
    truth = np.array([engine.truth_ms(step) for step in steps])
    error = np.array([model.predict_ms(step) for step in steps]) / truth - 1
    noise = load_profile(profile, season).terms.noise_sd
    return Convergence(first, float(np.abs(error).mean()), model.noise_sd / noise)


def typical(profile: str, rng: np.random.Generator, season: int) -> Convergence:
    """The median of five engines: about one in 150 is taken for a changed one and begins again."""
    return Convergence(*np.median([converge(profile, rng, season) for _ in range(5)], axis=0))


@pytest.mark.parametrize("profile", [p for p in OWN_FORM if not p.startswith("cpu-")])
def test_it_converges_from_an_unknown_engine(profile: str, rng: np.random.Generator) -> None:
    found = typical(profile, rng, season=1)
    assert found.first <= 0.05
    assert found.last <= 0.02
    assert found.noise == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize("profile", LATER)
def test_how_well_it_follows_a_clock_of_another_form(
    profile: str, rng: np.random.Generator
) -> None:
    """The slope below the floor costs it up to 3 %, experts of a mixture up to 14 %."""
    mixture = bool(load_profile(profile).terms.experts_ms)
    found = typical(profile, rng, season=2)
    assert found.last <= (0.14 if mixture else 0.03)
    assert (found.last > 0.03) == mixture  # the form does matter


def test_it_learns_where_a_small_step_stops_being_constant(rng: np.random.Generator) -> None:
    """2xA6000: 13.84 ms up to 44 tokens; the generic prior has no such floor."""
    engine, model = world(A6000, rng), ContextAwareModel()
    engine.errors(model, 4000)
    for decodes in (1, 20, 40, 80):
        step = decode_step(decodes)
        assert model.predict_ms(step) == pytest.approx(engine.truth_ms(step), rel=0.07)


def test_the_advert_is_the_clock(rng: np.random.Generator) -> None:
    engine, model = world(A6000, rng), ContextAwareModel()
    engine.errors(model, 4000)
    advert = model.advert()
    told = StepTerms(**dict(zip(ADVERT_TERMS, advert.step_ms, strict=True)))
    clock = told.clock()
    for _ in range(50):
        step = random_step(rng)
        assert clock_ms(clock, step) == pytest.approx(engine.truth_ms(step), rel=0.06)
    full = engine.truth_ms(StepFeatures(1, 2048, 0, 2048 * 2049 // 2))
    assert advert.peak_tps == pytest.approx(2048e3 / full, rel=0.03)
    assert advert.capacity is None
    assert advert.predicted_step_s is None


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.99])
def test_intervals_cover_what_they_promise(coverage: float, rng: np.random.Generator) -> None:
    """The median of 15 engines: one in some hundred takes its noise for too large."""
    shares = [share_inside(coverage, rng) for _ in range(15)]
    assert np.median(shares) == pytest.approx(coverage, abs=0.03 if coverage < 0.99 else 0.008)


def share_inside(coverage: float, rng: np.random.Generator) -> float:
    """The share of an engine's times that were inside of the interval for them."""
    engine, model = world(H100, rng), ContextAwareModel()
    engine.errors(model, 300)
    inside = []
    for step, ms in engine.teach(model, 1000):
        low, high = model.interval_ms(step, coverage)
        inside.append(low <= ms <= high)
    return float(np.mean(inside))


def test_the_interval_is_wide_where_nothing_was_seen(rng: np.random.Generator) -> None:
    model, engine = ContextAwareModel(), world(H100, rng)
    for _ in range(500):
        step = decode_step(int(rng.integers(1, 50)))
        model.observe(step, engine.ms(step))
    known, unknown = decode_step(20), StepFeatures(21, 2068, 20_000, 2048 * 1000, 0, 20)
    assert model.relative_sd(unknown) > 3 * model.relative_sd(known)


# --- a world that changes -----------------------------------------------------------------------


@pytest.mark.parametrize("speed", [1 / 0.7, 0.7])
def test_a_change_of_speed_is_followed_in_few_steps(speed: float, rng: np.random.Generator) -> None:
    engine, model = world(H100, rng), ContextAwareModel()
    engine.errors(model, 1000)
    before = model.regime_changes
    engine.clock[SLOW] = round(UNIT * speed)
    error = engine.errors(model, 300)
    assert model.regime_changes == before + 1
    assert error[:3].mean() > 0.2
    assert error[10:60].mean() <= 0.05
    assert error[100:].mean() <= 0.035


def test_terms_that_do_not_occur_change_with_the_speed(rng: np.random.Generator) -> None:
    engine, model = world(H100, rng), ContextAwareModel()
    engine.errors(model, 2000)
    engine.clock[SLOW] = THROTTLED
    for _ in range(100):  # decodes only
        step = decode_step(int(rng.integers(5, 60)))
        model.observe(step, engine.ms(step))
    step = StepFeatures(1, 2048, 0, 2048 * 2049 // 2)
    assert model.predict_ms(step) == pytest.approx(engine.truth_ms(step), rel=0.15)


def with_slower_terms(terms: tuple[int, ...], rng: np.random.Generator) -> tuple[float, float]:
    """Mean errors of an engine right after some of its terms have changed, and once learned."""
    engine, model = world(H100, rng), ContextAwareModel()
    engine.errors(model, 1500)
    for term in terms:
        engine.clock[term] = round(engine.clock[term] / 0.7)
    thrown = engine.errors(model, 20).mean()
    engine.errors(model, 180)
    learned = engine.errors(model, 300).mean()
    assert model.state[rls.ALARMS] >= 1
    return thrown, learned


@pytest.mark.parametrize("terms", [(2, 4), (0, 3, 8)], ids=["compute", "memory"])
def test_a_change_of_some_terms_is_learned(
    terms: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Power capping slows the arithmetic only: no common factor fits (the mean of five engines)."""
    thrown, learned = np.mean([with_slower_terms(terms, rng) for _ in range(5)], axis=0)
    assert thrown >= 0.05
    assert learned <= 0.045


@pytest.mark.parametrize("noise_sd", [0.03, 0.1, 0.25])
def test_noise_is_no_change_of_speed(noise_sd: float, rng: np.random.Generator) -> None:
    """A false alarm comes once in 700,000 steps (7 in 1,000 runs of 5,000), so one is let pass."""
    engine, model = world(H100, rng, noise_sd=noise_sd), ContextAwareModel()
    engine.errors(model, 600)
    at_first = model.regime_changes  # the generic prior may be another engine's
    engine.errors(model, 5000)
    assert model.regime_changes <= at_first + 1


def changes_by_stragglers(rng: np.random.Generator) -> int:
    """How often a model takes slow single steps for another speed, in 3000 steps."""
    engine = world(H100, rng, straggler_probability=0.02, straggler_factor=5.0)
    model = ContextAwareModel()
    engine.errors(model, 600)
    at_first = model.regime_changes
    engine.errors(model, 3000)
    step = decode_step(30)
    assert model.predict_ms(step) == pytest.approx(engine.truth_ms(step), rel=0.02)
    return model.regime_changes - at_first


def test_stragglers_are_no_change_of_speed(rng: np.random.Generator) -> None:
    """The median of five engines: in one of 180 so many come at once that it is taken for one."""
    assert np.median([changes_by_stragglers(rng) for _ in range(5)]) == 0


def test_slow_drift_is_followed_by_forgetting(rng: np.random.Generator) -> None:
    engine, model = world(H100, rng), ContextAwareModel(settings=ContextSettings(memory_steps=200))
    engine.errors(model, 500)
    for number in range(2000):  # 30 % slower in the end
        engine.clock[SLOW] = round(UNIT * (1 + 0.3 * number / 2000))
        engine.errors(model, 1)
    assert engine.errors(model, 200).mean() <= 0.06


def test_monotony_does_not_forget_the_rest(rng: np.random.Generator) -> None:
    """100 memories of one kind of step: variances stay capped, prefills stay known."""
    engine, model = world(H100, rng), ContextAwareModel(settings=ContextSettings(memory_steps=200))
    engine.errors(model, 2000)
    step = StepFeatures(1, 2048, 0, 2048 * 2049 // 2)
    before = model.predict_ms(step)
    for _ in range(20_000):
        decodes = decode_step(8)
        model.observe(decodes, engine.ms(decodes))
    n = rls.NUM_TERMS
    covariance = model.state[rls.COVARIANCE : rls.SCRATCH].reshape(n, n)
    assert np.all(np.diag(covariance) <= model.state[rls.CAP : rls.CAP + n] * (1 + 1e-9))
    assert np.linalg.eigvalsh(covariance).min() > -1e-9 * np.trace(covariance)
    assert model.predict_ms(step) == pytest.approx(before, rel=0.05)
    assert model.state[rls.RESETS] == 0


def test_variances_stay_capped_however_fast_it_forgets(rng: np.random.Generator) -> None:
    engine, model = (
        world(H100, rng),
        ContextAwareModel(settings=ContextSettings(memory_steps=1.001)),
    )
    for _ in range(100):
        step = decode_step(8)
        model.observe(step, engine.ms(step))
        diagonal = model.state[rls.COVARIANCE : rls.SCRATCH : rls.NUM_TERMS + 1]
        cap = model.state[rls.CAP : rls.CAP + rls.NUM_TERMS]
        assert np.all(diagonal <= cap * (1 + 1e-9))


def test_a_change_of_the_noise_is_learned(rng: np.random.Generator) -> None:
    quiet, loud = world(H100, rng, noise_sd=0.03), world(H100, rng, noise_sd=0.045)
    model = ContextAwareModel()
    quiet.errors(model, 3000)
    loud.errors(model, 2500)
    assert model.noise_sd == pytest.approx(0.045, rel=0.1)


# --- what schedulers ask --------------------------------------------------------------------------


def test_many_predictions_equal_single_ones(rng: np.random.Generator) -> None:
    engine, model = world(H100, rng), ContextAwareModel()
    engine.errors(model, 100)
    steps = [random_step(rng) for _ in range(12)]
    columns = np.array(
        [[getattr(step, name) for name in StepFeatures.__slots__] for step in steps]
    ).T.reshape(6, 3, 4)
    many = model.predict_many_ms(*columns)
    assert many.shape == (3, 4)
    assert many.ravel().tolist() == [model.predict_ms(step) for step in steps]
    assert model.predict_many_ms(1, np.array([1, 2])).shape == (2,)


@pytest.mark.parametrize("target_ms", [5.0, 8.0, 12.0, 20.0, 50.0, 400.0])
@pytest.mark.parametrize("prefilled", [0, 3000])
def test_inversion_is_the_largest_step_within_the_target(
    target_ms: float, prefilled: int, rng: np.random.Generator
) -> None:
    engine, model = world(H100, rng), ContextAwareModel()
    engine.errors(model, 500)
    decodes, context, limit = 30, 40_000, 4096
    x = np.arange(1, limit + 1)
    times = model.predict_many_ms(
        decodes + 1, decodes + x, context, x * prefilled + x * (x + 1) / 2, prefilled, decodes
    )
    found = model.invert_tokens(decodes, context, target_ms, prefilled, limit)
    assert found == int(np.count_nonzero(times <= target_ms))
    assert np.all(np.diff(times) >= 0)


def test_inversion_of_what_no_step_can_reach() -> None:
    model = ContextAwareModel()
    for target in (0.0, -1.0, math.nan):
        assert model.invert_tokens(8, 8000, target) == 0
    assert model.invert_tokens(8, 8000, math.inf) == 8192
    assert model.invert_tokens(8, 8000, 1e9, limit=0) == 0


def test_readiness() -> None:
    step = decode_step(4)
    unknown = ContextAwareModel(settings=ContextSettings(min_samples=3))
    known = ContextAwareModel(GENERIC_STEP_MS)
    assert isinstance(unknown, StepModel)
    assert known.ready
    seen = []
    for _ in range(3):
        seen.append(unknown.ready)
        unknown.observe(step, 9.0)
    assert seen == [False, False, False]
    assert unknown.ready


def test_features_of_a_report() -> None:
    report = StepReport(0, 1.0, 0.02, 5, 130, 4, 126, 9000, 700, 96_201, 0, 1, 0, 2048)
    assert StepFeatures.of(report) == StepFeatures(5, 130, 9000, 96_201, 700, 4)


def test_copies_are_independent() -> None:
    model = ContextAwareModel()
    other = copy.deepcopy(model)
    other.observe(decode_step(4), 90.0)
    assert other.accepted == 1
    assert model.accepted == 0
    assert model.predict_ms(decode_step(4)) < other.predict_ms(decode_step(4))


# --- what should never be fed -----------------------------------------------------------------


@pytest.mark.parametrize("ms", [0.0, -3.0, math.nan, math.inf, 10_001.0])
def test_impossible_times_are_rejected(ms: float, caplog: pytest.LogCaptureFixture) -> None:
    model = ContextAwareModel()
    before = model.state.copy()
    with caplog.at_level(logging.WARNING):
        model.observe(decode_step(4), ms)
        model.observe(decode_step(4), ms)
    assert model.rejected == 2
    assert model.accepted == 0
    assert [r.message for r in caplog.records if "rejected" in r.message] == caplog.messages
    assert len(caplog.messages) == 1
    before[rls.REJECTED] = 2
    assert np.array_equal(model.state, before)


@pytest.mark.parametrize("name", StepFeatures.__slots__)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_impossible_features(name: str, value: float, caplog: pytest.LogCaptureFixture) -> None:
    values = {key: 5 for key in StepFeatures.__slots__} | {name: value}
    step = StepFeatures(**values)  # type: ignore[arg-type]
    model = ContextAwareModel()
    with caplog.at_level(logging.WARNING):
        model.observe(step, 9.0)
        for _ in range(2):
            assert model.predict_ms(step) >= MIN_STEP_MS
            assert np.all(model.predict_many_ms(*values.values()) >= MIN_STEP_MS)
    assert (model.rejected, model.accepted, model.rejected_queries) == (1, 0, 4)
    assert len(caplog.messages) == 2  # one for the step, one for the queries


def test_idle_steps_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = ContextAwareModel()
    model.observe(StepFeatures(0, 0), 30_000.0)
    assert (model.accepted, model.rejected, int(model.state[rls.IDLE])) == (0, 0, 1)
    assert caplog.messages == []


@given(
    times=st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=40),
    sizes=st.lists(st.integers(0, 10**9), min_size=6, max_size=30),
)
def test_nothing_makes_it_lose_its_numbers(times: list[float], sizes: list[int]) -> None:
    model = ContextAwareModel()
    values = itertools.cycle(sizes)
    for ms in times:
        step = StepFeatures(*[next(values) for _ in range(6)])
        model.observe(step, ms)
        assert math.isfinite(model.predict_ms(step))
        assert model.predict_ms(step) >= MIN_STEP_MS
        low, high = model.interval_ms(step)
        assert 0 <= low <= high < math.inf
    assert np.all(np.isfinite(model.state))
    assert np.all(model.coefficients() >= 0)
    assert 0 <= model.invert_tokens(4, 4000, 50.0) <= 8192


def test_a_lost_covariance_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    model = ContextAwareModel()
    model.state[rls.COVARIANCE : rls.SCRATCH] = math.nan
    with caplog.at_level(logging.WARNING):
        model.observe(decode_step(4), 9.0)
    assert "covariance lost" in caplog.text
    assert model.state[rls.RESETS] == 1
    assert np.all(np.isfinite(model.state))


@pytest.mark.parametrize("prior", [(1.0,) * 8, (math.nan,) * 9, (-1.0,) * 9])
def test_a_wrong_prior_is_refused(prior: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="prior"):
        ContextAwareModel(prior)


@pytest.mark.parametrize(
    "knobs",
    [
        {"memory_steps": 1.0},
        {"noise_sd": 0.0},
        {"prior_sd": math.nan},
        {"max_step_ms": -1.0},
        {"knots_tokens": (0.0, 1.0)},
        {"knots_tokens": (0.0, 16.0, 8.0, 48.0, 64.0, 128.0)},
    ],
)
def test_wrong_settings_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        ContextSettings(**knobs)  # type: ignore[arg-type]
