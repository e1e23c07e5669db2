"""The clock: compiled and plain versions agree, and it behaves like an engine."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synergy_gym.latency.clock import (
    CLOCK_SIZE,
    FLOOR_NS,
    SLOW,
    TABLES,
    UNIT,
    StepTerms,
    check_reach,
    step_ns,
    step_ns_kernel,
)
from synergy_gym.types import EngineSpec

TERMS = StepTerms(
    base_ms=9.4,
    per_sequence_ms=0.01,
    per_token_ms=0.1,
    per_decode_context_ms=1.3e-4,
    per_prefill_pair_ms=2.6e-6,
    per_prefill_context_ms=3e-4,
    prefill_step_ms=0.2,
    per_mixed_context_ms=2.4e-4,
    floor_ms=13.8,
)


def _terms() -> st.SearchStrategy[StepTerms]:
    small = st.floats(0, 1e-3)
    return st.builds(
        StepTerms,
        base_ms=st.floats(0, 50),
        per_sequence_ms=st.floats(0, 1),
        per_token_ms=st.floats(0, 1),
        per_decode_context_ms=small,
        per_prefill_pair_ms=st.floats(0, 1e-5),
        per_prefill_context_ms=small,
        prefill_step_ms=st.floats(0, 5),
        per_mixed_context_ms=small,
        floor_ms=st.floats(0, 50),
        noise_sd=st.floats(0, 0.25),
        straggler_probability=st.floats(0, 1),
        straggler_factor=st.floats(1, 10),
        floor_per_token_ms=small,
        per_sample_ms=st.floats(0, 1),
        experts_ms=_experts(),
    )


@st.composite
def _experts(draw: st.DrawFn) -> tuple[tuple[int, float], ...]:
    """None, or knots up to the 8,192 tokens of `_features` whose times do not fall."""
    tokens = draw(st.lists(st.integers(0, 8191), max_size=6, unique=True))
    if not tokens:
        return ()
    times = draw(st.lists(st.floats(0, 500), min_size=len(tokens) + 1, max_size=len(tokens) + 1))
    return tuple(zip([*sorted(tokens), 8192], sorted(times), strict=True))


def _features() -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(
        st.integers(0, 10**9),  # step
        st.integers(0, 1024),
        st.integers(0, 8192),
        st.integers(0, 10**6),
        st.integers(0, 10**9),  # 8,192 tokens behind 120,000; times are below 2^63 fs (2.5 h)
        st.integers(0, 10**6),
        st.integers(0, 1),
        st.integers(0, 1),
    )


@settings(max_examples=300, deadline=None)
@given(_terms(), _features(), st.integers(0, 2**62 - 1), st.floats(0.1, 20))
def test_kernel_equals_python(
    terms: StepTerms, features: tuple[int, ...], seed: int, slow: float
) -> None:
    clock = terms.clock(seed)
    clock[SLOW] = round(slow * UNIT)
    expected = step_ns(clock, *features)
    assert step_ns_kernel(clock, 0, *features) == expected
    # In an arena the head lies elsewhere, and positions of tables are those in the arena.
    shifted = np.concatenate([np.full(5, -7), clock])
    shifted[[5 + at for at in TABLES if clock[at]]] += 5
    assert step_ns_kernel(shifted, 5, *features) == expected
    assert expected >= 1


@settings(max_examples=200, deadline=None)
@given(_terms(), _features(), st.integers(1, 7), st.integers(1, 1000))
def test_more_work_never_takes_less_time(
    terms: StepTerms, features: tuple[int, ...], which: int, extra: int
) -> None:
    clock = terms.clock(3)
    more = list(features)
    more[which] = 1 if which >= 6 else more[which] + extra
    more[2] = min(more[2], 8192)  # the experts' table ends there
    assert step_ns(clock, *more) >= step_ns(clock, *features)


def test_formula() -> None:
    clock = TERMS.clock()
    # 4 decodes with 8000 context tokens: the floor bounds the linear part, attention is added.
    assert step_ns(clock, 0, 4, 4, 8000, 0, 0, 0, 0) == 13_800_000 + 1_040_000
    # 512 prefill tokens beside them, 1000 tokens into their prompt.
    pairs = 512 * 1000 + 512 * 513 // 2
    linear = 9.4 + 0.05 + 0.1 * 516
    context = 1.3e-4 * 8000 + 2.6e-6 * pairs + 3e-4 * 1000 + 0.2 + 2.4e-4 * 8000
    assert step_ns(clock, 0, 5, 516, 8000, pairs, 1000, 1, 1) == int((linear + context) * 1e6)


def test_the_floor_has_a_slope_of_its_own() -> None:
    clock = replace(TERMS, per_sequence_ms=0.0, floor_per_token_ms=0.01).clock()
    # 13.8 + 0.01 S against 9.4 + 0.1 S: they cross between 48 and 49 tokens.
    assert step_ns(clock, 0, 1, 48, 0, 0, 0, 0, 0) == 14_280_000
    assert step_ns(clock, 0, 1, 49, 0, 0, 0, 0, 0) == 14_300_000


def test_the_sampler_comes_on_top_of_the_floor() -> None:
    clock = replace(TERMS, per_sample_ms=0.5).clock()
    assert step_ns(clock, 0, 4, 4, 0, 0, 0, 0, 0) == 13_800_000 + 2_000_000


def test_experts_are_a_table() -> None:
    clock = StepTerms(base_ms=1.0, experts_ms=((0, 2.0), (64, 10.0), (512, 12.0))).clock()

    def experts_ns(tokens: int) -> int:
        return step_ns(clock, 0, 1, tokens, 0, 0, 0, 0, 0) - 1_000_000

    assert [experts_ns(n) for n in (0, 32, 64, 288, 512)] == [
        2_000_000, 6_000_000, 10_000_000, 11_000_000, 12_000_000
    ]  # fmt: skip


def test_an_engine_beyond_the_experts_table_is_refused() -> None:
    clock = StepTerms(base_ms=1.0, experts_ms=((0, 2.0), (512, 12.0))).clock()
    fits = EngineSpec("e", "1xG", "m", "p", 8, 512, 8192, 1000)
    check_reach(clock, fits)
    with pytest.raises(ValueError, match=r"'e': max_num_batched_tokens is 513.*ends at 512"):
        check_reach(clock, replace(fits, max_num_batched_tokens=513))


@given(_terms(), st.floats(0.1, 10))
def test_a_slower_engine_takes_longer_for_everything(terms: StepTerms, factor: float) -> None:
    plain = replace(terms, noise_sd=0.0, straggler_probability=0.0)
    one, slow = plain.clock(), plain.scaled(factor).clock()
    for features in ((0, 1, 1, 500, 0, 0, 0, 0), (0, 40, 900, 80_000, 10**6, 512, 1, 1)):
        expected = step_ns(one, *features) * factor
        assert step_ns(slow, *features) == pytest.approx(expected, rel=1e-6, abs=20)


def test_noise_has_mean_one_and_its_standard_deviation() -> None:
    terms = StepTerms(base_ms=100.0, noise_sd=0.05)
    clock = terms.clock(seed=11)
    ratio = (
        np.array([step_ns_kernel(clock, 0, s, 1, 1, 0, 0, 0, 0, 0) for s in range(40_000)]) / 1e8
    )
    assert ratio.mean() == pytest.approx(1, abs=5 * 0.05 / 200)
    assert ratio.std() == pytest.approx(0.05, rel=0.02)
    assert abs(ratio - 1).max() <= 3.47 * 0.05
    other = [step_ns(terms.clock(seed=12), s, 1, 1, 0, 0, 0, 0, 0) for s in range(5)]
    assert other != (ratio[:5] * 1e8).round().tolist()


def test_noise_depends_on_the_step_number_only() -> None:
    clock = StepTerms(base_ms=10.0, noise_sd=0.1).clock(5)
    forward = [step_ns(clock, step, 1, 1, 0, 0, 0, 0, 0) for step in range(50)]
    backward = [step_ns(clock, step, 1, 1, 0, 0, 0, 0, 0) for step in reversed(range(50))]
    assert forward == backward[::-1]
    assert len(set(forward)) > 40


def test_stragglers_come_at_their_rate() -> None:
    clock = StepTerms(base_ms=1.0, straggler_probability=0.02, straggler_factor=8.0).clock(2)
    times = np.array([step_ns_kernel(clock, 0, s, 1, 1, 0, 0, 0, 0, 0) for s in range(50_000)])
    assert set(times.tolist()) == {1_000_000, 8_000_000}
    assert (times > 1_000_000).mean() == pytest.approx(0.02, rel=0.15)


def test_clock_vector() -> None:
    clock = TERMS.clock(seed=-1)
    assert clock.dtype == np.int64
    assert len(clock) == CLOCK_SIZE
    assert clock[0] == 9_400_000_000_000
    assert clock[FLOOR_NS] == 13_800_000
    assert clock[SLOW] == UNIT


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("base_ms", -1.0, "must be finite and >= 0"),
        ("per_token_ms", float("nan"), "must be finite and >= 0"),
        ("floor_ms", float("inf"), "must be finite and >= 0"),
        ("noise_sd", 0.3, "above 0.25"),
        ("straggler_probability", 1.5, "use 0..1"),
        ("floor_per_token_ms", -1.0, "must be finite and >= 0"),
        ("experts_ms", ((5, 1.0), (5, 2.0)), "must be >= 0 and increase"),
        ("experts_ms", ((0, float("nan")),), "times must be finite"),
    ],
)
def test_bad_terms_are_refused(name: str, value: Any, cure: str) -> None:
    with pytest.raises(ValueError, match=cure) as caught:
        StepTerms(**{"base_ms": 1.0, name: value})
    assert name in str(caught.value)
