"""SynergySched's T(B, S): published tables, inversion, units, and what the forms do."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synergy_gym.latency.models import saturation as slots
from synergy_gym.latency.models.published import (
    AUTHORS_DEFAULT,
    loaded_model,
    published_advert,
    published_model,
    same_work,
)
from synergy_gym.latency.models.saturation_fit import (
    Form,
    SaturationModel,
    fallback_invert,
    fallback_ms,
)
from synergy_gym.latency.profiles import list_profiles, load_profile
from synergy_gym.types import ADVERT_TERMS, EngineSpec
from tests.engines import A100, A6000, H100, LLAMA_8B, QWQ

Engine = tuple[str, str]
FORMS: tuple[Form, ...] = ("stable", "six", "eight")

# Predicted T in ms, published to one decimal.
COLUMNS: tuple[tuple[Engine, Form], ...] = (
    (H100, "stable"), (H100, "eight"), (H100, "six"), (A100, "stable"), (A100, "eight"),
    (A6000, "stable"), (A6000, "eight"), (QWQ, "stable"),
)  # fmt: skip
PREDICTED = {
    (1, 1): (90.5, 16.1, 10.8, 58.6, 15.7, 23.1, 16.4, 193.6),
    (4, 4): (14.2, 9.3, 8.1, 14.1, 13.4, 10.1, 14.4, 29.0),
    (8, 8): (9.6, 9.5, 9.0, 14.1, 15.6, 14.9, 17.7, 20.2),
    (16, 16): (9.6, 11.0, 10.8, 20.1, 20.7, 26.7, 25.3, 22.5),
    (32, 32): (12.9, 14.3, 14.5, 34.1, 31.2, 51.1, 41.0, 34.7),
    (64, 64): (20.4, 21.1, 21.8, 62.3, 52.2, 100.1, 72.4, 62.7),
    (8, 256): (13.1, 12.8, 14.8, 30.5, 32.7, 43.7, 47.3, 28.9),
    (16, 512): (20.9, 19.5, 22.5, 55.1, 55.2, 85.3, 85.4, 52.3),
    (16, 1024): (33.3, 31.6, 34.6, 91.3, 90.9, 145.7, 147.7, 85.9),
    (32, 2048): (61.3, 60.4, 62.0, 176.8, 171.6, 289.3, 286.1, 166.4),
    (32, 4096): (110.6, 111.8, 110.3, 321.8, 314.3, 531.2, 535.2, 300.9),
}

# Stable form: raw kB, raw kS, ms per sequence, ms per token, Pmax in tokens/ms, "capacity";
# each as printed.
EQUIVALENTS = {
    H100: ("0.5556", "0.14543", "0.2138", "0.024052", "38.84", "3884"),
    A100: ("0.7143", "0.22222", "0.8108", "0.070792", "12.23", "1359"),
    A6000: ("0.7143", "0.22222", "1.4114", "0.118118", "7.47", "830"),
    QWQ: ("0.5556", "0.06795", "0.8292", "0.065667", "13.81", "1381"),
}

# Every published parameter, as printed: scales, kB, kS, tB, tS, base, w0, w1, Pmax.
PARAMETERS = {
    (H100, "stable"): (9, 10, 5.0, 1.454348, 1.924476, 0.240524, 5.205735, 0, 0, 3.884416),
    (A100, "stable"): (7, 9, 5.0, 2.0, 5.675449, 0.637130, 5.870179, 0, 0, 1.358783),
    (A6000, "stable"): (7, 9, 5.0, 2.0, 9.879871, 1.063064, 2.191305, 0, 0, 0.830376),
    (QWQ, "stable"): (9, 10, 5.0, 0.679512, 7.463211, 0.656672, 5.397012, 0, 0, 1.381462),
    (H100, "six"): (9, 10, 10.0, 0.000134, 1.8512, 0.2353, 0, 0, 0.003907, 4.0949),
    (H100, "eight"): (
        9, 10, 10, 0.052799, 1.816008, 3.2e-10, 2.522155, 0.026559, 0.299833, 1.195061,
    ),
    (A100, "eight"): (
        7, 9, 10, 1.711141, 4.117527, 0.626882, 9.402611, 9.989563, 5.5e-8, 13.449053,
    ),
    (A6000, "eight"): (
        7, 9, 10, 2.28372e-4, 6.052494, 1.094971, 9.242766, 0.009438, 1e-9, 79.655663,
    ),
}  # fmt: skip

BATCHES = (1, 4, 8, 16, 24, 32, 48, 64)
BUDGETS = {  # solved token budgets of the stable form, by target in ms
    (H100, 15): (128, 384, 320, 256, 192, 128, 1, 1),
    (H100, 29): (704, 896, 896, 832, 768, 704, 576, 384),
    (H100, 50): (1536, 1792, 1792, 1728, 1664, 1600, 1408, 1280),
    (A100, 15): (32, 64, 32, 1, 1, 1, 1, 1),
    (A100, 29): (224, 288, 224, 144, 64, 1, 1, 1),
    (A100, 50): (544, 576, 544, 448, 352, 256, 64, 1),
    (A6000, 15): (80, 64, 16, 1, 1, 1, 1, 1),
    (A6000, 29): (192, 176, 128, 32, 1, 1, 1, 1),
    (A6000, 50): (368, 352, 304, 208, 112, 16, 1, 1),
    (QWQ, 15): (1, 96, 32, 1, 1, 1, 1, 1),
    (QWQ, 29): (224, 288, 256, 160, 64, 1, 1, 1),
    (QWQ, 50): (544, 608, 576, 480, 384, 288, 64, 1),
}


def model_of(engine: Engine, form: Form) -> SaturationModel:
    model = published_model(*engine, form)
    assert model is not None
    return model


def spec_of(gpu: str, model: str) -> EngineSpec:
    return EngineSpec("e", gpu, model, "a clock of any name", 256, 8192, 8192, 20_000)


@pytest.mark.parametrize(
    ("column", "point"), [(c, p) for c in range(len(COLUMNS)) for p in PREDICTED]
)
def test_published_predictions(column: int, point: tuple[int, int]) -> None:
    predicted = model_of(*COLUMNS[column]).predict_ms(*point)
    assert predicted == pytest.approx(PREDICTED[point][column], abs=0.0501)


def test_the_value_that_a_real_engine_pushed() -> None:
    assert round(model_of(H100, "eight").predict_ms(1, 1), 3) == 16.118


@pytest.mark.parametrize("engine", EQUIVALENTS)
def test_raw_equivalents(engine: Engine) -> None:
    model = model_of(engine, "stable")
    terms = dict(zip(ADVERT_TERMS, model.linear_ms(), strict=True))
    values = (
        model.k_b / model.b_scale,
        model.k_s / model.s_scale,
        terms["per_sequence_ms"],
        terms["per_token_ms"],
        model.capacity("physical") / 1000,
        model.capacity("code"),
    )
    for value, printed in zip(values, EQUIVALENTS[engine], strict=True):
        last_digit = 10.0 ** -len(printed.partition(".")[2])
        assert value == pytest.approx(float(printed), abs=0.501 * last_digit)


@pytest.mark.parametrize("key", PARAMETERS)
def test_published_parameters(key: tuple[Engine, Form]) -> None:
    model = model_of(*key)
    names = ("b_scale", "s_scale", "k_b", "k_s", "t_b", "t_s", "base_ms", "w0", "w1", "pmax")
    assert tuple(getattr(model, name) for name in names) == PARAMETERS[key]
    assert model.form == key[1]


def test_nothing_else_is_published() -> None:
    clocks = [load_profile(name) for name in list_profiles()]
    timed = {(clock.gpu, clock.model) for clock in clocks}
    found = {(e, f) for e in timed for f in FORMS if published_model(*e, f)}
    assert found == set(PARAMETERS)
    for engine in (("1xGH200", LLAMA_8B), ("4xH100", LLAMA_8B), ("1xH100", "Qwen/Qwen3-32B")):
        assert published_model(*engine, "stable") is None
    with pytest.raises(ValueError, match=r"'four'.*stable, six, eight"):
        published_model(*H100, "four")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "same"),
    [
        (LLAMA_8B, "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("unsloth/llama-3.1-8b-instruct", "llama-3.1-8b"),
        ("Llama-3.1-8B", "llama-3.1-8b"),
        ("Qwen/QwQ-32B", "qwq-32b"),
        ("Qwen/QwQ-32B-FP8", "qwq-32b"),  # what the authors' engines made of the plain weights
        ("RedHatAI/QwQ-32B-FP8-dynamic", "qwq-32b"),
    ],
)
def test_names_of_the_same_work(name: str, same: str) -> None:
    assert same_work(name) == same


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8",  # the authors served bf16
        "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
        "Qwen/QwQ-32B-AWQ",
        "Qwen/QwQ-32B-Preview",
        "Qwen/Qwen2.5-32B-Instruct",
    ],
)
def test_names_of_other_work(name: str) -> None:
    assert same_work(name) not in {same_work(LLAMA_8B), same_work(QWQ[1])}
    assert published_model("1xH100", name, "stable") is None


def test_the_file_that_an_engine_loads() -> None:
    for engine in (H100, A6000, QWQ):
        assert loaded_model(spec_of(*engine), "stable", "engine") == model_of(engine, "stable")
    assert AUTHORS_DEFAULT == H100
    for engine in (H100, A6000, QWQ, ("1xGH200", "m")):
        for form in FORMS:
            default = loaded_model(spec_of(*engine), form, "authors-default")
            assert default == model_of(H100, form)
    assert loaded_model(spec_of("1xGH200", "m"), "stable", "engine") is None


@pytest.mark.parametrize(
    ("engine", "target", "index"), [(*key, i) for key in BUDGETS for i in range(len(BATCHES))]
)
def test_published_budgets(engine: Engine, target: int, index: int) -> None:
    solved = model_of(engine, "stable").invert(BATCHES[index], target)
    assert solved == BUDGETS[engine, target][index]


def test_starving_step_of_the_authors_diary() -> None:
    model = model_of(QWQ, "stable")
    assert model.invert(11, 15.0) == 1
    assert round(model.predict_ms(1, 1), 1) == 193.6


@pytest.fixture
def line() -> SaturationModel:
    """T = 1 + S ms, whatever the batch."""
    return SaturationModel(
        form="eight", b_scale=1, s_scale=1, pmax=1e9, k_b=9, k_s=9, t_b=0, t_s=1, base_ms=1
    )


def test_inversion_by_hand(line: SaturationModel) -> None:
    assert line.invert(1, 4.0, limit=8) == 3  # 4 and 2 are exactly 1 ms away: not near enough
    assert line.invert(1, 4.01, limit=8) == 4  # the first midpoint is within 1 ms
    assert line.invert(1, 1000.0, limit=8) == 8
    assert line.invert(1, 0.5, limit=8) == 1
    assert line.invert(1, 1e9) == 8192
    assert line.invert(1, 4097.999) == 4096  # the first midpoint of 1..8192
    assert line.invert(1, 4098.0) == 4097


def test_twenty_halvings(line: SaturationModel) -> None:
    # The k-th midpoint of 1..2^n is 2^(n-k); only S = 2 is within 1 ms of the target.
    assert line.invert(1, 3.0, limit=2**21) == 2
    assert line.invert(1, 3.0, limit=2**22) == 1


@pytest.mark.parametrize("key", PARAMETERS)
def test_formulas_by_hand(key: tuple[Engine, Form]) -> None:
    model, point = model_of(*key), (5, 77)
    b, s = point[0] / model.b_scale, point[1] / model.s_scale
    gain = (1 - math.exp(-model.k_b * b)) * (1 - math.exp(-model.k_s * s))
    expected = {
        "stable": model.base_ms / gain,
        "six": model.w1 * s / (model.pmax * gain),
        "eight": model.base_ms + (model.w0 + model.w1 * s) / (model.pmax * gain),
    }[model.form]
    expected += model.t_b * b + model.t_s * s
    assert model.predict_ms(*point) == pytest.approx(expected, rel=1e-12)


def test_clamps() -> None:
    tiny = SaturationModel(
        form="stable", b_scale=1, s_scale=1, pmax=1, k_b=1e-9, k_s=1e-9, t_b=0, t_s=0, base_ms=1e-9
    )
    assert tiny.predict_ms(1, 1) == pytest.approx(1e-9 / 1e-12)
    idle = SaturationModel(
        form="six", b_scale=1, s_scale=1, pmax=1e-9, k_b=1e-9, k_s=1, t_b=0, t_s=0, w1=1e-6
    )
    assert idle.predict_ms(1, 1) == pytest.approx(1e-6 / 1e-9)
    assert idle.predict_many_ms([1], [1])[0] == pytest.approx(1e3)
    free = SaturationModel(form="six", b_scale=1, s_scale=1, pmax=1, k_b=1, k_s=1, t_b=0, t_s=0)
    assert free.predict_ms(1, 1) == free.predict_many_ms(1, 1) == 0.1


@pytest.mark.parametrize("key", PARAMETERS)
@given(seed=st.integers(0, 2**32 - 1))
def test_arrays_equal_scalars(key: tuple[Engine, Form], seed: int) -> None:
    rng, model = np.random.default_rng(seed), model_of(*key)
    sequences, tokens = rng.integers(1, 300, 5), rng.integers(1, 9000, 5)
    scalars = [model.predict_ms(int(b), int(s)) for b, s in zip(sequences, tokens, strict=True)]
    np.testing.assert_allclose(model.predict_many_ms(sequences, tokens), scalars, rtol=1e-12)


@pytest.mark.parametrize(
    ("key", "base", "per_sequence", "per_token"),
    [
        ((H100, "six"), 7.12, 0.2057, 0.02353),
        ((A100, "eight"), 10.145, 0.5882, 0.06965),
        ((A6000, "eight"), 9.2434, 0.8646, 0.12166),
        ((H100, "eight"), 2.5444, 0.2018, 0.025089),
        ((H100, "stable"), 5.2057, 0.2138, 0.024052),
    ],
)
def test_affine_limits(
    key: tuple[Engine, Form], base: float, per_sequence: float, per_token: float
) -> None:
    terms = dict(zip(ADVERT_TERMS, model_of(*key).linear_ms(), strict=True))
    assert terms.pop("base_ms") == pytest.approx(base, rel=2e-4)
    assert terms.pop("per_sequence_ms") == pytest.approx(per_sequence, rel=4e-4)
    assert terms.pop("per_token_ms") == pytest.approx(per_token, rel=4e-4)
    assert terms.pop("floor_ms") == 0.1
    assert set(terms.values()) == {0.0}


def test_affine_limit_of_half_saturated_tokens() -> None:
    values = {"b_scale": 1, "s_scale": 8, "pmax": 2.0, "k_b": 1, "t_b": 0, "t_s": 0.8, "w1": 4.0}
    below, above = (
        SaturationModel(form="six", k_s=k / 1024, **values).linear_ms()  # type: ignore[arg-type]
        for k in (0.99, 1.01)
    )
    assert below[0] == pytest.approx(4.0 / (2.0 * 0.99 / 1024))
    assert (below[2], above[0]) == (pytest.approx(0.1), 0)
    assert above[2] == pytest.approx((0.8 + 4.0 / 2.0) / 8)


@pytest.mark.parametrize("key", PARAMETERS)
def test_affine_limit_is_near_large_steps(key: tuple[Engine, Form]) -> None:
    model = model_of(*key)
    base, per_sequence, per_token = model.linear_ms()[:3]
    for batch, tokens in ((64, 2048), (32, 4096), (64, 8192)):
        line = base + per_sequence * batch + per_token * tokens
        assert line == pytest.approx(model.predict_ms(batch, tokens), rel=0.005)


def test_published_advert() -> None:
    advert = published_advert(spec_of(*QWQ))
    assert advert is not None
    assert advert.predicted_step_s is None
    assert advert.capacity == pytest.approx(1381.462)
    assert advert.peak_tps == pytest.approx(13814.62)
    assert advert.step_ms == model_of(QWQ, "stable").linear_ms()
    assert published_advert(spec_of("1xGH200", LLAMA_8B)) is None


def test_vector_slots() -> None:
    v = model_of(H100, "eight").vector()
    assert v.dtype == np.float64
    named = (slots.B_SCALE, slots.OFFSET, slots.WORK, slots.PEAK)
    assert [v[slot] for slot in named] == [9, 2.522155, 0.026559, 1.195061]
    v = model_of(H100, "stable").vector()
    assert [v[slot] for slot in named] == [9, 0, 5.205735, 1]


def test_linear_fallback() -> None:
    assert fallback_ms(1000) == 8.7 + 21.5
    assert fallback_ms(-1000) == 0.1
    assert fallback_invert(50.0) == 1920  # (50 - 8.7) / 0.0215 = 1920.93
    assert fallback_invert(8.7 + 0.0215 * 2.5) == 2
    assert fallback_invert(3.0) == 1


def test_empty_steps_and_bad_units_are_refused() -> None:
    model = model_of(H100, "stable")
    for step in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="empty step"):
            model.predict_ms(*step)
    units: Literal["code"] = "tokens"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="'tokens'; use 'code' or 'physical'"):
        model.capacity(units)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "nine"}, "'nine'; use one of stable, six, eight"),
        ({"k_s": float("nan")}, "k_s is nan"),
        ({"t_b": -1.0}, "t_b is -1.0; it must be finite and at least 0"),
        ({"s_scale": 0.5}, "s_scale is 0.5; it must be finite and at least 1"),
        ({"b_scale": 0}, "b_scale is 0; it must be finite and at least 1"),
    ],
)
def test_impossible_models_are_refused(change: dict[str, object], message: str) -> None:
    values = {"form": "six", "b_scale": 1, "s_scale": 1, "pmax": 1, "k_b": 1, "k_s": 1}
    with pytest.raises(ValueError, match=message):
        SaturationModel(**({**values, "t_b": 0, "t_s": 0} | change))  # type: ignore[arg-type]
