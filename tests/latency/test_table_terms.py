"""The third truth: compiled and plain versions agree, tables are met, residuals come from data."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.latency.clock import CLOCK_SIZE, GRID, SLOW, check_reach, step_ns, step_ns_kernel
from synergy_gym.latency.clock_table import (
    TableTerms,
    held_out_errors,
    residual_field,
    table_terms,
)
from synergy_gym.latency.grids import BATCHES, CONTEXTS, PAIRS, UNIT, grid_ns
from synergy_gym.latency.profiles import Loop, ProfileError, load_profile
from synergy_gym.types import EngineSpec, IntArray

MOST_SEQUENCES, MOST_TOKENS = 256, 2048
PROFILES = ("h100-llama-3.1-8b", "a100-qwen3-30b-a3b", "2xa6000-llama-3.1-8b", "b200-gpt-oss-20b")


@cache
def world(profile: str, loop: Loop | None = None, draw: int = 0) -> TableTerms:
    return table_terms(load_profile(profile), loop, MOST_SEQUENCES, MOST_TOKENS, draw)


@cache
def clock_of(profile: str, loop: Loop | None, draw: int) -> IntArray:
    return world(profile, loop, draw).clock(11)


FEATURES = st.tuples(
    st.integers(0, 10**6),  # step
    st.integers(0, MOST_SEQUENCES),
    st.integers(0, MOST_TOKENS),
    st.one_of(st.integers(0, 300), st.integers(0, 4 * 10**7)),
    st.one_of(st.integers(0, 300), st.integers(0, 2**35)),
    st.integers(0, 10**6),
    st.integers(0, 1),
    st.integers(0, 1),
)


@given(
    st.sampled_from(PROFILES),
    st.sampled_from(["async", "sync"]),
    st.integers(0, 5),
    FEATURES,
    st.floats(0.1, 20),
)
def test_kernel_equals_python(
    profile: str, loop: Loop, draw: int, features: tuple[int, ...], slow: float
) -> None:
    clock = clock_of(profile, loop, draw).copy()
    clock[SLOW] = round(slow * UNIT)
    expected = step_ns(clock, *features)
    assert step_ns_kernel(clock, 0, *features) == expected
    arena = np.concatenate([np.full(7, -3), clock])
    arena[7 + GRID] += 7
    assert step_ns_kernel(arena, 7, *features) == expected
    assert expected >= 1


def unbent(profile: str) -> TableTerms:
    """Without residuals and noise."""
    terms = world(profile, "async")
    flat = tuple((0,) * len(row) for row in terms.field)
    return replace(terms, field=flat, noise_sd=0.0)


def ms(terms: TableTerms, *features: int) -> float:
    return step_ns(terms.clock(), 0, *features) / 1e6


@pytest.mark.parametrize("profile", PROFILES)
def test_a_step_at_the_knots_takes_what_the_tables_hold(profile: str) -> None:
    t = unbent(profile)
    for at, tokens in enumerate(t.tokens):
        if not 64 <= tokens <= MOST_TOKENS:
            continue
        expected = t.dense_ms[at] + t.overhead_ms + np.interp(64, t.sequences, t.head_ms)
        assert ms(t, 64, tokens, 0, 0, 0, 1, 0) == pytest.approx(expected, rel=1e-5)
        decode = expected + t.decode_ms[6][10]  # 64 decodes with 1,024 tokens each
        assert ms(t, 64, tokens, 64 * 1024, 0, 0, 0, 0) == pytest.approx(decode, rel=1e-5)
        pairs = expected + t.prefill_ms[20]
        assert ms(t, 64, tokens, 0, 1 << 20, 0, 1, 0) == pytest.approx(pairs, rel=1e-5)


@pytest.mark.parametrize("profile", ["h100-llama-3.1-8b", "h200-qwen3-32b", "2xh100-qwen3-32b"])
def test_tables_and_terms_tell_about_the_same(profile: str) -> None:
    """They differ as the form's fit error says, and by what residuals bend."""
    spread = load_profile(profile)
    t = table_terms(spread, "async", MOST_SEQUENCES, MOST_TOKENS)
    flat = replace(t, field=tuple((0,) * len(row) for row in t.field), noise_sd=0.0)
    clock = replace(spread.timed("async"), noise_sd=0.0).clock()
    differ = []
    for decodes in (1, 8, 64, 256):
        for each in (100, 1000, 4000):
            features = (0, decodes, decodes, decodes * each, 0, 0, 0, 0)
            differ.append(step_ns(flat.clock(), *features) / step_ns(clock, *features) - 1)
    for chunk in (16, 256, 1024, 2048):
        features = (0, 1, chunk, 0, chunk * (chunk + 1) // 2, 0, 1, 0)
        differ.append(step_ns(flat.clock(), *features) / step_ns(clock, *features) - 1)
    assert np.abs(differ).mean() <= 0.05
    assert np.abs(differ).max() <= 0.20
    assert np.abs(differ).max() > 0.005  # otherwise it would be no other truth


def test_a_measured_profile_has_its_terms_as_tables() -> None:
    profile = load_profile("2xa6000-llama-3.1-8b")
    t = unbent("2xa6000-llama-3.1-8b")
    clock = replace(profile.timed("async"), noise_sd=0.0).clock()
    for decodes, each in ((1, 1024), (8, 512), (64, 2048)):
        features = (0, decodes, decodes, decodes * each, 0, 0, 0, 0)
        told = step_ns(t.clock(), *features)
        assert told == pytest.approx(step_ns(clock, *features), rel=0.03)


def test_the_loop_and_a_busy_gpu_are_in_the_tables() -> None:
    fast, slow = (replace(world(PROFILES[0], loop), noise_sd=0.0) for loop in ("async", "sync"))
    decodes = (8, 8, 8000, 0, 0, 0, 0)
    assert ms(slow, *decodes) - ms(fast, *decodes) == pytest.approx(1.0, rel=0.2)
    profile = load_profile(PROFILES[0])
    assert profile.file.table is not None
    assert profile.file.sustained is not None
    at = profile.file.table.tokens.index(2048)
    grown = fast.dense_ms[at] / profile.file.table.dense_ms[at]
    assert 1 < grown < profile.file.sustained.factor


def test_tables_end_where_the_engine_does() -> None:
    clock = clock_of(PROFILES[0], "async", 0)
    fits = EngineSpec("e", "1xG", "m", "p", MOST_SEQUENCES, MOST_TOKENS, 8192, 1000)
    check_reach(clock, fits)
    with pytest.raises(ValueError, match="max_num_batched_tokens is 2049"):
        check_reach(clock, replace(fits, max_num_batched_tokens=MOST_TOKENS + 1))
    with pytest.raises(ValueError, match="max_num_seqs is 257"):
        check_reach(clock, replace(fits, max_num_seqs=MOST_SEQUENCES + 1))


@given(st.integers(1, 255), st.integers(1, 2000))
def test_beyond_the_tables_attention_goes_on_in_proportion(decodes: int, each: int) -> None:
    t = unbent(PROFILES[0])
    g = CLOCK_SIZE
    values = t.clock()
    base = grid_ns(values, g, decodes, decodes, 0, 0, 0, 0)
    far = grid_ns(values, g, decodes, decodes, decodes << (CONTEXTS - 1), 0, 0, 0)
    assert far > base
    assert len(t.decode_ms) <= BATCHES
    assert len(t.prefill_ms) <= PAIRS


def test_residuals_are_held_out_errors() -> None:
    errors = held_out_errors()
    assert len(errors) >= 50
    assert 0.01 <= np.std(errors) / UNIT <= 0.3
    field = np.array(residual_field("h100-llama-3.1-8b", 0))
    knots = field[::3, ::3]
    offset = knots - knots.flat[0]
    drawn = {error - first for error in errors for first in errors if abs(error) < UNIT}
    assert set(offset.ravel().tolist()) <= drawn


def test_a_draw_makes_no_gpu_faster_or_slower() -> None:
    """Over all knots the mean is 0; the last ones lie beyond the field."""
    spread = np.std(held_out_errors())
    for draw in range(20):
        field = np.array(residual_field("h100-llama-3.1-8b", draw))
        assert abs(field.mean()) < 0.4 * spread
        assert field.std() > 0.3 * spread
        assert np.abs(field).max() < UNIT


def test_draws_and_profiles_differ_and_repeat() -> None:
    fields = [residual_field(name, draw) for name in ("a", "b") for draw in (0, 1)]
    assert len(set(fields)) == 4
    assert residual_field("a", 1) == fields[1]


def test_a_profile_of_whole_steps_has_no_loops() -> None:
    with pytest.raises(ProfileError, match="has no sync variant"):
        table_terms(load_profile("cpu-tiny-llama"), "sync", 8, 64)
