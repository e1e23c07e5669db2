"""Fitting a clock: known terms come back, through noise, stragglers and other load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synergy_gym.latency.clock import StepTerms, step_ns
from synergy_gym.latency.fitting import (
    ALL_TERMS,
    StepColumns,
    best_terms,
    fit_terms,
    predict_ms,
    quality,
    with_noise,
)
from synergy_gym.latency.profile_writer import profile_text, write_profile
from synergy_gym.latency.profiles import ProfileError, load_profile
from synergy_gym.types import StepReport

TRUTH = StepTerms(
    base_ms=1.8, per_sequence_ms=0.03, per_token_ms=0.009, per_decode_context_ms=1e-4,
    per_prefill_pair_ms=1e-5, prefill_step_ms=0.25, floor_ms=1.8,
)  # fmt: skip
PLAIN = {name: getattr(TRUTH, name) for name in (*ALL_TERMS, "floor_ms")}


def random_steps(rng: np.random.Generator, count: int = 3000) -> StepColumns:
    """Decode, prefill and mixed steps of all sizes; their times are still to be set."""
    decodes = rng.integers(0, 33, count)
    prefills = np.where(decodes == 0, 1, rng.integers(0, 2, count))
    chunk = prefills * rng.integers(1, 480, count)
    computed = prefills * rng.integers(0, 2, count) * rng.integers(0, 500, count)
    columns = [
        decodes + prefills, decodes + chunk, decodes, decodes * rng.integers(1, 500, count),
        chunk * computed + chunk * (chunk + 1) // 2, computed,
    ]  # fmt: skip
    return StepColumns(*(c.astype(float) for c in columns), np.ones(count))


def timed(steps: StepColumns, factor: np.ndarray | float = 1.0) -> StepColumns:
    return replace(steps, step_ms=predict_ms(PLAIN, steps) * factor)


def test_the_prediction_is_the_simulators_clock(rng: np.random.Generator) -> None:
    steps = random_steps(rng, 200)
    clock = TRUTH.clock()
    for row, ms in enumerate(predict_ms(PLAIN, steps)):
        values = [int(getattr(steps, name)[row]) for name in StepColumns.__slots__[:-1]]
        b, s, d, c, a, p = values
        ns = step_ns(clock, 0, b, s, c, a, p, int(s > d), int(s > d and d > 0))
        assert ns / 1e6 == pytest.approx(ms, rel=1e-6)


def test_exact_steps_give_the_exact_terms(rng: np.random.Generator) -> None:
    terms, surcharge = fit_terms(timed(random_steps(rng)))
    assert surcharge == 0
    for name, value in PLAIN.items():
        assert terms[name] == pytest.approx(value, rel=1e-3, abs=1e-7), name


def test_a_floor_is_found(rng: np.random.Generator) -> None:
    steps = random_steps(rng)
    floor = PLAIN | {"per_sequence_ms": 0.0, "floor_ms": PLAIN["base_ms"] + 64 * 0.009}
    steps = replace(steps, step_ms=predict_ms(floor, steps))
    terms = best_terms(steps, range(0, 129, 8))
    assert terms["floor_ms"] == pytest.approx(floor["floor_ms"], rel=1e-3)
    assert best_terms(timed(random_steps(rng)), range(0, 129, 8))["per_sequence_ms"] > 0.02
    with pytest.raises(ValueError, match="use FLOOR_TERMS"):
        fit_terms(steps, crossings=[0, 8])


def test_a_busy_machine_does_not_bend_the_terms(rng: np.random.Generator) -> None:
    """A third of the steps takes up to twice as long: least absolute errors look through it."""
    steps = random_steps(rng)
    busy = rng.random(len(steps)) < 1 / 3
    noise = 1 + 0.05 * rng.standard_normal(len(steps))
    slowed = timed(steps, noise * np.where(busy, rng.uniform(1.2, 2.0, len(steps)), 1.0))
    terms, _ = fit_terms(slowed)
    large = timed(random_steps(rng, 500))
    error = predict_ms(terms, large) / large.step_ms
    assert np.median(error) == pytest.approx(1, abs=0.12)
    assert error.std() < 0.05


def test_played_steps_may_cost_a_constant_more(rng: np.random.Generator) -> None:
    steps = timed(random_steps(rng))
    played = (rng.random(len(steps)) < 0.5).astype(float)
    terms, surcharge = fit_terms(
        replace(steps, step_ms=steps.step_ms + 0.2 * played), surcharge=played
    )
    assert surcharge == pytest.approx(0.2, rel=1e-2)
    assert terms["base_ms"] == pytest.approx(PLAIN["base_ms"] + 0.2, rel=1e-2)


def test_noise_and_stragglers_keep_the_total_time(rng: np.random.Generator) -> None:
    steps = random_steps(rng, 20_000)
    slow = rng.random(len(steps)) < 0.05
    factor = (1 + 0.06 * rng.standard_normal(len(steps))) * np.where(slow, 1.8, 1.0)
    found = with_noise(PLAIN, timed(steps, factor))
    assert found.noise_sd == pytest.approx(0.06, rel=0.1)
    assert found.straggler_probability == pytest.approx(0.05, rel=0.15)
    assert found.straggler_factor == pytest.approx(1.8, rel=0.05)
    assert found.base_ms == pytest.approx(PLAIN["base_ms"], rel=0.02)
    score = quality(found, timed(steps, factor))
    assert score.bias_percent == pytest.approx(0, abs=1e-6)
    assert score.r2 > 0.75
    with pytest.raises(ValueError, match="no steps"):
        with_noise(PLAIN, steps.take(np.zeros(len(steps), bool)))


def test_quality_of_a_wrong_clock(rng: np.random.Generator) -> None:
    steps = timed(random_steps(rng), 1.1)
    score = quality(TRUTH, steps)
    assert score.mape_percent == pytest.approx(100 * (1 - 1 / 1.1))
    assert score.bias_percent == pytest.approx(100 * (1 / 1.1 - 1))
    assert score.steps == len(steps)


def test_columns_of_step_reports() -> None:
    report = StepReport(0, 1.0, 0.0025, 3, 50, 2, 48, 300, 16, 1944, 0, 1, 1, 512)
    columns = StepColumns.of([report, report])
    assert columns.sequences.tolist() == [3, 3]
    assert columns.mixed_context.tolist() == [300, 300]
    assert columns.step_ms == pytest.approx([2.5, 2.5])
    assert len(StepColumns.of([])) == 0


def test_a_written_profile_is_read_back(tmp_path: Path) -> None:
    terms = replace(TRUTH, noise_sd=0.04, straggler_probability=0.01, straggler_factor=1.5)
    text = profile_text(
        gpu="g", model='quoted "name"', source="s", terms=terms, head=["one", "two"],
        comments={"base_ms": "every step"},
    )  # fmt: skip
    path = tmp_path / "folder" / "mine.toml"
    write_profile(path, text)
    profile = load_profile(path)
    assert profile.terms == terms
    assert profile.model == "quoted 'name'"
    assert "# two\n" in text
    assert "base_ms = 1.8  # every step" in text
    assert "per_prefill_context_ms" not in text
    with pytest.raises(ProfileError, match="floor_ms"):
        write_profile(
            path, profile_text(gpu="g", model="m", source="s", terms=StepTerms(base_ms=1))
        )
