"""The clock of T(B,S) worlds: the model to the rounding, compiled and plain versions equal."""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from synergy_gym.latency import clock_saturation as saturation_terms
from synergy_gym.latency.clock import (
    BY_SEQUENCES,
    BY_TOKENS,
    CLOCK_SIZE,
    SLOW,
    UNIT,
    StepTerms,
    step_ns,
    step_ns_kernel,
)
from synergy_gym.latency.clock_saturation import SaturationTerms
from synergy_gym.latency.models.published import published_model
from synergy_gym.latency.models.saturation import FORMS, Form, SaturationModel
from synergy_gym.types import SLO, IntArray
from synergy_gym.workload.base import make_workload
from tests import engines
from tests.strategies import SIMULATORS, spec

ENGINES = (engines.A6000, engines.A100, engines.H100, engines.QWQ)

PUBLISHED = {
    (engine, form): model
    for engine, form in itertools.product(ENGINES, FORMS)
    if (model := published_model(*engine, form))
}
H100 = PUBLISHED[engines.H100, "stable"]


def terms_of(model: SaturationModel = H100, **changes: Any) -> SaturationTerms:
    return SaturationTerms(**{"model": model, "max_sequences": 256, "max_tokens": 8192} | changes)


def plain_ns(clock: IntArray, sequences: int, tokens: int, step: int = 0) -> int:
    """A step whose context counts for nothing in such a world."""
    return step_ns(clock, step, sequences, tokens, 4000 * sequences, 10**6, 5000, 1, 1)


@pytest.mark.parametrize("model", PUBLISHED.values(), ids=map(str, PUBLISHED))
def test_a_step_takes_what_the_model_predicts(model: SaturationModel, seed: int) -> None:
    rng = random.Random(seed)
    clock = terms_of(model).clock()
    sizes = [(b, s) for b in (1, 2, 8, 64, 256) for s in (b, 256, 8192)]
    sizes += [(rng.randint(1, 256), rng.randint(1, 8192)) for _ in range(300)]
    for sequences, tokens in sizes:
        predicted_ns = model.predict_ms(sequences, tokens) * 1e6
        step = plain_ns(clock, sequences, tokens)
        assert step == pytest.approx(predicted_ns, rel=1e-6, abs=1), (sequences, tokens)


def test_the_floor_bounds_a_step() -> None:
    fast = replace(H100, base_ms=1e-6, t_b=0.0, t_s=0.0)
    assert plain_ns(terms_of(fast).clock(), 8, 256) == 100_000


PUBLISHED_SHA256 = "512827e01347833a94e423ac290c711eb9cb394ea48ca7e04108f7b8e931f57d"


def test_tables_are_the_same_everywhere() -> None:
    """`decimal` rounds correctly; a platform that disagrees would play other episodes."""
    digest = hashlib.sha256()
    for engine, form in sorted(PUBLISHED, key=lambda key: (ENGINES.index(key[0]), key[1])):
        tables = terms_of(PUBLISHED[engine, form]).clock(7)[CLOCK_SIZE:]
        digest.update(tables.astype("<i8").tobytes())
    assert digest.hexdigest() == PUBLISHED_SHA256


@pytest.mark.parametrize("form", FORMS)
def test_tables_do_not_depend_on_who_computes_decimals(
    form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _pydecimal

    model = PUBLISHED[engines.H100, form]
    usual = saturation_terms._tables(model, 40, 100)
    for name in ("Decimal", "Context", "localcontext"):
        monkeypatch.setattr(saturation_terms, name, getattr(_pydecimal, name))
    assert np.array_equal(saturation_terms._tables.__wrapped__(model, 40, 100), usual)


@st.composite
def models(draw: st.DrawFn) -> SaturationModel:
    """Any T(B,S) with parameters inside the bounds of the fits, if its steps are short enough."""
    rate = st.floats(0.05, 10)
    return SaturationModel(
        form=draw(st.sampled_from(FORMS)),
        b_scale=draw(st.floats(1, 64)),
        s_scale=draw(st.floats(1, 512)),
        pmax=draw(st.floats(0.5, 100)),
        k_b=draw(rate),
        k_s=draw(rate),
        t_b=draw(st.floats(0, 20)),
        t_s=draw(st.floats(0, 10)),
        base_ms=draw(st.floats(0, 20)),
        w0=draw(st.floats(0, 10)),
        w1=draw(st.floats(0, 1)),
    )


@settings(max_examples=60)
@given(model=models(), seed=st.integers(0, 2**62 - 1), slow=st.floats(0.1, 20), data=st.data())
def test_kernel_equals_python(
    model: SaturationModel, seed: int, slow: float, data: st.DataObject
) -> None:
    limits = {"max_sequences": 40, "max_tokens": 600}
    try:
        terms = terms_of(model, **limits, noise_sd=data.draw(st.sampled_from([0.0, 0.1])))
    except ValueError:
        assume(False)
    clock = terms.clock(seed)
    clock[SLOW] = round(slow * UNIT)
    # As in an arena: the head here, the tables there.
    shifted = np.concatenate([np.full(5, -7), clock[:CLOCK_SIZE], [-7], clock[CLOCK_SIZE:]])
    shifted[[5 + BY_SEQUENCES, 5 + BY_TOKENS]] += 6
    for _ in range(5):
        sizes = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 600)))
        features = (data.draw(st.integers(0, 10**9)), *sizes, 10**5, 10**6, 50, 1, 1)
        expected = step_ns(clock, *features)
        assert step_ns_kernel(clock, 0, *features) == expected >= 1
        assert step_ns_kernel(shifted, 5, *features) == expected


def test_noise_and_slowdowns_work_as_on_the_measured_clock() -> None:
    plain, noisy = terms_of().clock(3), terms_of(noise_sd=0.05).clock(3)
    ratio = np.array([plain_ns(noisy, 8, 256, step) for step in range(4000)]) / plain_ns(
        plain, 8, 256
    )
    assert ratio.mean() == pytest.approx(1, abs=5 * 0.05 / 4000**0.5)
    assert ratio.std() == pytest.approx(0.05, rel=0.1)
    plain_before = plain_ns(plain, 8, 256)
    plain[SLOW] = 3 * UNIT
    assert plain_ns(plain, 8, 256) == 3 * plain_before


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"max_sequences": 0}, "max_sequences is 0; it must be >= 1"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be >= 1"),
        ({"noise_sd": 0.3}, "noise_sd is 0.3; use 0 to 0.25"),
        ({"noise_sd": float("nan")}, "use 0 to 0.25"),
        ({"model": replace(H100, k_b=1e-4)}, "more than the clock holds .4.4 s."),
        (
            {"model": replace(PUBLISHED[engines.H100, "six"], pmax=1e-6)},
            "below its least value 1e-9, .* raise pmax",
        ),
    ],
)
def test_what_the_clock_cannot_hold_is_refused(changes: dict[str, Any], cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        terms_of(**changes)


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens"])
def test_tables_must_reach_as_far_as_the_engine(simulator: type, name: str) -> None:
    engine = spec(max_num_seqs=8, max_num_batched_tokens=512)
    arguments: dict[str, Any] = {
        "workload": make_workload(np.array([0]), np.array([10]), np.array([2])),
        "slos": (SLO("all", e2e_s=1.0),),
    }
    terms = terms_of(max_sequences=8, max_tokens=512)
    simulator(engines=(engine,), clocks=[terms.clock()], **arguments)
    larger = replace(engine, **{name: getattr(engine, name) + 1})
    with pytest.raises(ValueError, match=f"{name} is .*table ends at"):
        simulator(engines=(larger,), clocks=[terms.clock()], **arguments)
    simulator(engines=(larger,), clocks=[StepTerms(base_ms=1.0).clock()], **arguments)


def test_a_clock_vector_is_private_to_its_episode() -> None:
    terms = terms_of()
    first = terms.clock()
    first[:] = 0
    assert plain_ns(terms.clock(), 8, 256) > 0
