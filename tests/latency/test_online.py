"""SynergySched's online model: its rule case by case, its modes, and what may not be fed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from synergy_gym.latency.models import online
from synergy_gym.latency.models.online import (
    PRESETS,
    FitRecord,
    OnlineSaturationModel,
    OnlineSettings,
    StepFeatures,
    StepModel,
    online_settings,
)
from synergy_gym.latency.models.published import published_model
from synergy_gym.latency.models.saturation_fit import FitError, SaturationFit, SaturationModel
from synergy_gym.types import ADVERT_TERMS
from tests.engines import H100

STORED = SaturationModel(
    form="six", b_scale=9, s_scale=10, pmax=4, k_b=10, k_s=1e-4, t_b=1.8, t_s=0.25, w1=0.004
)
FITTED = replace(STORED, t_s=0.5)
OTHER = replace(STORED, t_s=0.75)
SMALL = OnlineSettings(
    mode="online", buffer=8, min_samples=4, mape_trigger=0.2, r2_gate=0.8, check_period_s=10.0
)
STEP = StepFeatures(4, 100)


class Fits:
    """Stands in for the fits: answers from a script and records what it was given."""

    def __init__(self, *answers: tuple[SaturationModel, float] | Exception) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, np.ndarray]] = []

    def full(self, form: str, *columns: np.ndarray) -> SaturationFit:
        return self._answer(form, columns)

    def fast(self, model: SaturationModel, *columns: np.ndarray) -> SaturationFit:
        return self._answer(f"fast from {model.t_s}", columns)

    def _answer(self, what: str, columns: tuple[np.ndarray, ...]) -> SaturationFit:
        self.calls.append((what, np.column_stack(columns)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SaturationFit(answer[0], answer[1], 0.01, 1.0, len(columns[0]), 0)


Install = Callable[..., Fits]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Install:
    def install(*answers: tuple[SaturationModel, float] | Exception) -> Fits:
        stub = Fits(*answers)
        monkeypatch.setattr(online, "fit_saturation", stub.full)
        monkeypatch.setattr(online, "refit_fast", stub.fast)
        return stub

    return install


def feed(model: OnlineSaturationModel, count: int, ms: float = 10.0, start_s: float = 0.0) -> None:
    """`count` equal steps, a tenth of a second apart."""
    for number in range(count):
        model.observe(STEP, ms, start_s + 0.1 * number)


def exact_ms(model: SaturationModel) -> float:
    return model.predict_ms(STEP.sequences, STEP.tokens)


# --- the rule -------------------------------------------------------------------------------


def test_nothing_happens_below_min_samples(fits: Install) -> None:
    stub = fits((FITTED, 0.9))
    model = OnlineSaturationModel(SMALL)
    feed(model, 3)
    assert stub.calls == []
    assert not model.ready
    feed(model, 1)
    assert len(stub.calls) == 1
    assert model.ready
    assert model.current == FITTED


def test_the_buffer_is_first_in_first_out_and_fitted_whole(fits: Install) -> None:
    stub = fits(*[(FITTED, 0.0)] * 8)
    model = OnlineSaturationModel(SMALL)
    for number in range(1, 11):
        model.observe(StepFeatures(number, 10 * number), float(number), 0.1 * number)
    rows = [calls[1][:, 0].tolist() for calls in stub.calls]
    assert rows[0] == [1, 2, 3, 4]
    assert rows[4] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rows[-1] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert stub.calls[-1][0] == "eight"
    assert stub.calls[-1][1][0].tolist() == [3, 30, 3]


@pytest.mark.parametrize(("r2", "accepted"), [(0.8, False), (0.8001, True), (math.nan, False)])
def test_a_fit_is_accepted_above_the_gate(r2: float, accepted: bool, fits: Install) -> None:
    fits((FITTED, r2))
    model = OnlineSaturationModel(SMALL)
    feed(model, 4)
    assert model.ready is accepted
    assert model.parameters == FITTED  # kept also when the gate refused it
    assert model.current == (FITTED if accepted else None)


def test_without_an_accepted_model_every_step_fits_again(fits: Install) -> None:
    stub = fits((OTHER, 0.1), (OTHER, 0.2), (FITTED, 0.9))
    model = OnlineSaturationModel(SMALL)
    feed(model, 6)
    assert [call[0] for call in stub.calls] == ["eight"] * 3
    assert [record.accepted for record in model.history] == [False, False, True]
    assert model.current == FITTED


def test_retry_s_spaces_the_attempts(fits: Install) -> None:
    stub = fits((OTHER, 0.1), (OTHER, 0.2))
    model = OnlineSaturationModel(replace(SMALL, retry_s=1.0))
    feed(model, 14)  # steps 4 to 14 at 0.3 s to 1.3 s
    assert len(stub.calls) == 2
    assert [record.now_s for record in model.history] == pytest.approx([0.3, 1.3])


def test_a_check_looks_at_the_last_min_samples_rows(fits: Install) -> None:
    fits((FITTED, 0.9))
    model = OnlineSaturationModel(replace(SMALL, mape_trigger=9.0))
    feed(model, 4)
    assert math.isnan(model.last_mape)  # the fit itself is no check
    times = [20.0, 30.0, 40.0, 50.0]
    for number, ms in enumerate(times):
        model.observe(STEP, ms, 0.4 + 10 * number)
    expected = np.mean([abs(exact_ms(FITTED) - ms) / ms for ms in times])
    assert model.last_mape == pytest.approx(expected)


def test_checks_come_once_per_period(fits: Install) -> None:
    stub = fits((FITTED, 0.9), *[(FITTED, 0.9)] * 3)
    model = OnlineSaturationModel(SMALL)
    feed(model, 4)
    for number in range(200):  # a bad step every 0.125 s until 25.875 s
        model.observe(STEP, 100.0, 1.0 + 0.125 * number)
    assert len(stub.calls) == 1 + 3
    assert [r.now_s for r in model.history[1:]] == [1.0, 11.0, 21.0]


@pytest.mark.parametrize(("error", "refits"), [(0.19, 1), (0.21, 2)])
def test_a_refit_needs_a_mape_above_the_trigger(error: float, refits: int, fits: Install) -> None:
    fits((FITTED, 0.9), (OTHER, 0.95))
    model = OnlineSaturationModel(SMALL)
    ms = exact_ms(FITTED) / (1 + error)
    feed(model, 5, ms=ms)
    assert model.last_mape == pytest.approx(error)
    assert model.refits == refits
    assert model.current == (FITTED if refits == 1 else OTHER)


@pytest.mark.parametrize("keep", [True, False])
def test_a_later_bad_fit_replaces_a_good_one(keep: bool, fits: Install) -> None:
    fits((FITTED, 0.9), (OTHER, 0.1))
    model = OnlineSaturationModel(replace(SMALL, keep_bad_fits=keep))
    feed(model, 5, ms=100.0)
    assert model.ready  # whatever the gate said
    assert model.current == (OTHER if keep else FITTED)
    assert [record.accepted for record in model.history] == [True, False]


def test_bad_first_fits_can_be_dropped(fits: Install) -> None:
    fits((OTHER, 0.1))
    model = OnlineSaturationModel(replace(SMALL, keep_bad_fits=False))
    feed(model, 4)
    assert (model.ready, model.parameters) == (False, None)


def test_a_fit_that_fails_changes_nothing(fits: Install, caplog: pytest.LogCaptureFixture) -> None:
    fits(FitError("no"), (FITTED, 0.9), FitError("again"))
    model = OnlineSaturationModel(SMALL)
    with caplog.at_level(logging.WARNING):
        feed(model, 4, ms=100.0)
        assert (model.ready, model.parameters) == (False, None)
        feed(model, 2, ms=100.0, start_s=0.4)
    assert (model.ready, model.current) == (True, FITTED)
    assert model.failed_fits == 2
    assert [record.kind for record in model.history] == ["failed", "fit", "failed"]
    assert sum("failed" in message for message in caplog.messages) == 1


OVERWRITTEN = {"b_scale": 3.0, "s_scale": 70.0}


@pytest.mark.parametrize("keep", [True, False])
def test_a_fit_that_raises_half_way_leaves_its_scales(keep: bool, fits: Install) -> None:
    """The authors' object stores the scales of the rows before it fits, and keeps them."""
    fits((FITTED, 0.9), FitError("no", OVERWRITTEN))
    model = OnlineSaturationModel(replace(SMALL, keep_bad_fits=keep))
    feed(model, 5, ms=100.0)
    assert (model.ready, model.failed_fits) == (True, 1)
    assert model.current == (replace(FITTED, b_scale=3.0, s_scale=70.0) if keep else FITTED)


def test_a_first_fit_that_raises_half_way_leaves_nothing(fits: Install) -> None:
    fits(FitError("no", OVERWRITTEN))
    model = OnlineSaturationModel(SMALL)
    feed(model, 4)
    assert (model.ready, model.parameters) == (False, None)


def test_a_six_parameter_engine_whose_steps_grow_long() -> None:
    """0.0235 ms a token are 11.8 ms per median S of 500, above the bound of 10."""
    true = published_model(*H100, "six")
    assert true is not None
    rows = {"buffer": 120, "min_samples": 120}
    model = OnlineSaturationModel(
        replace(SMALL, form="six", mape_trigger=0.0, check_period_s=1000.0, **rows)  # type: ignore[arg-type]
    )
    small = [(b, b + 150 * (b % 3)) for b in range(1, 41)] * 3
    large = [(number % 40 + 1, 440 + number) for number in range(120)]
    last = len(small) + len(large) - 1
    for number, (b, s) in enumerate([*small, *large]):  # checks at 120 s and at the last step
        fitted = model.current
        now_s = 2000.0 if number == last else float(number)
        model.observe(StepFeatures(b, s), true.predict_ms(b, s), now_s)
    assert fitted is not None
    assert fitted.predict_ms(20, 500) == pytest.approx(true.predict_ms(20, 500), rel=0.05)
    assert model.failed_fits == 1
    b_scale, s_scale = np.median(large, axis=0)
    assert (b_scale, s_scale) == (20.5, 499.5)
    assert model.current == replace(fitted, b_scale=b_scale, s_scale=s_scale)
    # What a token costs now counts per 499.5 tokens: the step is predicted far too short.
    assert model.predict(20, 500) < 0.7 * true.predict_ms(20, 500)


def test_time_that_goes_back_makes_a_check_due(fits: Install) -> None:
    stub = fits((FITTED, 0.9), (FITTED, 0.9), (FITTED, 0.9))
    model = OnlineSaturationModel(SMALL)
    feed(model, 5, ms=100.0, start_s=500.0)
    feed(model, 5, ms=100.0, start_s=0.0)
    assert len(stub.calls) == 3


# --- modes ------------------------------------------------------------------------------------


def test_pretrained_never_updates(fits: Install) -> None:
    stub = fits()
    model = OnlineSaturationModel(replace(SMALL, mode="pretrained"), STORED)
    assert model.ready
    feed(model, 300, ms=500.0)
    assert stub.calls == []
    assert model.current == STORED
    assert model.history == []


def test_hybrid_starts_ready_and_updates(fits: Install) -> None:
    stub = fits((FITTED, 0.9))
    model = OnlineSaturationModel(replace(SMALL, mode="hybrid"), STORED)
    assert model.current == STORED
    feed(model, 4, ms=500.0)  # the first check comes with the first full window
    assert [call[0] for call in stub.calls] == ["eight"]
    assert model.current == FITTED


def test_partial_fits_start_from_the_current_model(fits: Install) -> None:
    stub = fits((FITTED, 0.9), (OTHER, 0.9))
    model = OnlineSaturationModel(replace(SMALL, mode="hybrid", partial_fit=True), STORED)
    feed(model, 120, ms=500.0)
    assert [call[0] for call in stub.calls] == ["fast from 0.25", "fast from 0.5"]
    assert [record.kind for record in model.history] == ["partial", "partial"]
    assert model.current == OTHER


@pytest.mark.parametrize("keep", [True, False])
def test_only_the_first_fit_of_a_cold_start_is_full(keep: bool, fits: Install) -> None:
    stub = fits((OTHER, 0.1), (FITTED, 0.9), (OTHER, 0.9))
    model = OnlineSaturationModel(replace(SMALL, partial_fit=True, keep_bad_fits=keep))
    feed(model, 6, ms=500.0)
    second = "fast from 0.75" if keep else "eight"  # accepted or not, as long as it was kept
    assert [call[0] for call in stub.calls] == ["eight", second, "fast from 0.5"]


@pytest.mark.parametrize("mode", ["pretrained", "hybrid"])
def test_evaluation_waits_for_the_trigger_and_looks_at_the_whole_buffer(
    mode: str, fits: Install
) -> None:
    """Steps of p ms, as predicted, then of 2 p: MAPE 1/2, and R2 = 1 - 5 / 1.875 over 8 rows."""
    stub = fits()
    settings = replace(SMALL, mode=mode, eval_only=True)  # type: ignore[arg-type]
    model = OnlineSaturationModel(settings, STORED)
    p = exact_ms(STORED)
    feed(model, 4, ms=p)  # a check, below the trigger
    assert (model.last_mape, model.history) == (0.0, [])
    for number in range(5):
        model.observe(STEP, 2 * p, 4.0 + 2.0 * number)  # the last one after 10 s: a check
    assert model.last_mape == pytest.approx(0.5)
    (record,) = model.history
    assert (record.now_s, record.kind, record.model) == (12.0, "check", STORED)
    assert record.mape == pytest.approx(0.5)  # of the last four
    assert record.r2 == pytest.approx(1 - 5 / 1.875)  # three of p and five of 2 p: mean 13 p / 8
    assert not record.accepted
    assert (stub.calls, model.refits, model.current) == ([], 0, STORED)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("env", (1000, 64, 0.15, 0.8, 30, "pretrained", "stable", False)),
        ("dataclass", (1000, 50, 0.15, 0.8, 30, "pretrained", "eight", False)),
        ("adaptive-2025", (1024, 1024, 0.08, 0.9, 30, "online", "eight", False)),
        ("multi-timescale-2026", (1024, 256, 0.08, 0.9, 15, "online", "six", False)),
        ("partial-fit-2026", (4000, 256, 0.01, 0.8, 15, "hybrid", "six", True)),
        ("long-window-2026", (2048, 2048, 0.08, 0.9, 60, "online", "six", False)),
        ("short-window-2026", (32, 32, 0.08, 0.5, 2, "online", "six", False)),
    ],
)
def test_presets_are_the_authors(preset: str, expected: tuple[object, ...]) -> None:
    s = PRESETS[preset]
    sizes = (s.buffer, s.min_samples, s.mape_trigger, s.r2_gate, s.check_period_s)
    assert (*sizes, s.mode, s.form, s.partial_fit) == expected
    assert (s.keep_bad_fits, s.eval_only, s.retry_s) == (True, False, 0.0)
    assert set(PRESETS) >= {preset}
    assert online_settings(preset, buffer=5000).buffer == 5000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "offline"}, "pretrained, hybrid, online"),
        ({"min_samples": 9}, "min_samples 9 and buffer 8"),
        ({"min_samples": 0}, "min_samples 0"),
        ({"check_period_s": -1.0}, "check_period_s"),
        ({"mape_trigger": math.nan}, "mape_trigger"),
        ({"eval_only": True}, "needs a model"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)  # type: ignore[arg-type]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="adaptive-2025"):
        online_settings("adaptive")


@pytest.mark.parametrize(
    ("mode", "model"), [("pretrained", None), ("hybrid", None), ("online", STORED)]
)
def test_mode_and_model_must_agree(mode: str, model: SaturationModel | None) -> None:
    with pytest.raises(ValueError, match=f"mode '{mode}'"):
        OnlineSaturationModel(replace(SMALL, mode=mode), model)  # type: ignore[arg-type]


# --- what it answers -----------------------------------------------------------------------------


def test_the_fallback_answers_until_a_fit_is_accepted(caplog: pytest.LogCaptureFixture) -> None:
    model = OnlineSaturationModel(SMALL)
    assert isinstance(model, StepModel)
    with caplog.at_level(logging.WARNING):
        assert model.predict(7, 1000) == pytest.approx(8.7 + 21.5)
        assert model.predict_ms(StepFeatures(7, 1000)) == pytest.approx(8.7 + 21.5)
        assert model.predict(0, 0) == pytest.approx(8.7)
    assert model.invert(7, 29.0) == 944  # floor((29 - 8.7) / 0.0215)
    assert model.invert(7, 29.0, limit=512) == 512
    assert model.fallbacks == 5
    assert len(caplog.messages) == 1
    told = dict(zip(ADVERT_TERMS, model.advert().step_ms, strict=True))
    assert {name: x for name, x in told.items() if x} == {
        "base_ms": 8.7,
        "per_token_ms": 0.0215,
        "floor_ms": 0.1,
    }
    assert model.advert().capacity is None


def test_the_model_answers_once_accepted() -> None:
    stored = published_model(*H100, "stable")
    assert stored is not None
    model = OnlineSaturationModel(online_settings("env"), stored)
    assert model.predict(16, 1024) == pytest.approx(33.3, abs=0.05)
    assert model.predict(0, 0) == stored.predict_ms(1, 1)
    assert model.invert(8, 29.0) == stored.invert(8, 29.0) == 896
    advert = model.advert()
    assert advert.capacity == pytest.approx(3884, abs=1)
    assert advert.peak_tps == pytest.approx(38_844, abs=1)
    assert advert.step_ms == stored.linear_ms()
    assert model.fallbacks == 0


# --- what should never be fed ---------------------------------------------------------------


BAD = [(where, bad) for where in ("ms", "tokens", "sequences") for bad in (-1, math.nan, math.inf)]


@pytest.mark.parametrize(("where", "bad"), [("ms", 0.0), *BAD])
def test_impossible_steps_are_rejected(
    where: str, bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = OnlineSaturationModel(SMALL)
    values = {"sequences": 4.0, "tokens": 100.0, "ms": 10.0} | {where: bad}
    step = StepFeatures(values["sequences"], values["tokens"])  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            model.observe(step, values["ms"], 0.0)
    assert (model.rejected, model.accepted, model.history) == (5, 0, [])
    assert len(caplog.messages) == 1


def test_a_step_of_no_known_time_is_rejected() -> None:
    model = OnlineSaturationModel(SMALL)
    model.observe(STEP, 10.0, math.nan)
    assert model.rejected == 1


def test_idle_steps_are_skipped() -> None:
    model = OnlineSaturationModel(SMALL)
    model.observe(StepFeatures(0, 0), 5000.0, 1.0)
    assert (model.idle, model.accepted, model.rejected) == (1, 0, 0)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ([(4, 100, 10.0 + 0.1 * n) for n in range(40)], {}),  # B and S constant
        ([(n, 10 * n, 10.0) for n in range(1, 41)], {}),  # T constant
        ([(n, 10 * n, 10.0 + n) for n in range(1, 20)], {"min_samples": 19}),  # too few rows
        ([(n, 10 * n, 400.0 + n) for n in range(1, 41)], {}),  # all beyond the authors' 300 ms
    ],
    ids=["constant-size", "constant-time", "19-rows", "too-long"],
)
def test_degenerate_data_leave_the_fallback(
    rows: list[tuple[int, int, float]],
    settings: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    knobs = replace(SMALL, **({"buffer": 64, "min_samples": 20} | settings))  # type: ignore[arg-type]
    model = OnlineSaturationModel(knobs)
    with caplog.at_level(logging.WARNING):
        for number, (sequences, tokens, ms) in enumerate(rows):
            model.observe(StepFeatures(sequences, tokens), ms, float(number))
    assert not model.ready
    assert model.failed_fits == len(rows) - knobs.min_samples + 1
    assert "failed" in caplog.text
    assert model.predict(4, 100) == pytest.approx(8.7 + 2.15)


@pytest.mark.parametrize(("form", "spacing"), [("stable", 2), ("six", 10), ("eight", 20)])
def test_constant_b_still_gives_a_model(form: str, spacing: int) -> None:
    model = OnlineSaturationModel(
        replace(SMALL, form=form, buffer=64, min_samples=40)  # type: ignore[arg-type]
    )
    for number in range(40):
        tokens = 8 + spacing * number
        model.observe(StepFeatures(8, tokens), 8 + 0.03 * tokens, float(number))
    assert model.ready
    middle = 8 + 20 * spacing
    assert model.predict(8, middle) == pytest.approx(8 + 0.03 * middle, rel=0.05)


# --- real fits --------------------------------------------------------------------------------


def affine_steps(rng: np.random.Generator, count: int) -> list[StepFeatures]:
    decodes = rng.integers(1, 60, count)
    prefill = rng.integers(0, 1500, count) * (rng.random(count) < 0.4)
    return [
        StepFeatures(int(d + (p > 0)), int(d + p)) for d, p in zip(decodes, prefill, strict=True)
    ]


def affine_ms(step: StepFeatures, rng: np.random.Generator, speed: float = 1.0) -> float:
    noise = 1 + 0.03 * rng.standard_normal()
    return float(speed * (7.1 + 0.206 * step.sequences + 0.0235 * step.tokens) * noise)


def teach(
    model: OnlineSaturationModel, rng: np.random.Generator, count: int, speed: float, start_s: float
) -> np.ndarray:
    """Relative errors of `count` steps, 50 a second, each predicted before it is learned."""
    errors = []
    for number, step in enumerate(affine_steps(rng, count)):
        ms = affine_ms(step, rng, speed)
        errors.append(abs(model.predict_ms(step) / ms - 1))
        model.observe(step, ms, start_s + number / 50)
    return np.array(errors)


def throttled(form: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean errors of an engine once it has settled, when it slows down, and long after."""
    settings = online_settings("multi-timescale-2026", form=form, retry_s=1.0, check_period_s=5.0)
    model = OnlineSaturationModel(settings)
    teach(model, rng, 600, 1.0, 0.0)
    settled = teach(model, rng, 200, 1.0, 12.0).mean()
    thrown = teach(model, rng, 100, 1 / 0.7, 16.0).mean()
    teach(model, rng, 1500, 1 / 0.7, 18.0)  # more than the buffer
    return settled, thrown, teach(model, rng, 200, 1 / 0.7, 48.0).mean()


@pytest.mark.parametrize("form", ["stable", "six", "eight"])
def test_it_converges_and_follows_a_throttled_gpu(form: str, rng: np.random.Generator) -> None:
    """The mean of eight engines: without its constant term, the form of six varies a lot."""
    settled, thrown, after = np.mean([throttled(form, rng) for _ in range(8)], axis=0)
    assert settled <= (0.3 if form == "stable" else 0.12)  # the stable form cannot be affine
    assert thrown >= settled + 0.05
    assert after <= 1.3 * settled + 0.02


def test_partial_fits_freeze_the_structure(rng: np.random.Generator) -> None:
    stored = published_model(*H100, "six")
    assert stored is not None
    settings = online_settings("partial-fit-2026", check_period_s=1.0)
    model = OnlineSaturationModel(settings, stored)
    teach(model, rng, 500, 1.3, 0.0)
    assert model.refits >= 2
    current = model.current
    assert current is not None
    frozen = ("form", "b_scale", "s_scale", "pmax", "k_b", "k_s")
    assert all(getattr(current, name) == getattr(stored, name) for name in frozen)
    assert current.t_s == pytest.approx(1.3 * stored.t_s, rel=0.1)
    assert teach(model, rng, 200, 1.3, 10.0).mean() <= 0.06


def test_history_tells_what_happened(rng: np.random.Generator) -> None:
    model = OnlineSaturationModel(online_settings("multi-timescale-2026", retry_s=1.0))
    teach(model, rng, 400, 1.0, 0.0)
    first: FitRecord = model.history[0]
    assert first.kind == "fit"
    assert first.accepted
    assert first.r2 > 0.9
    assert 0 < first.mape < 0.2
    assert first.now_s == pytest.approx(255 / 50)
