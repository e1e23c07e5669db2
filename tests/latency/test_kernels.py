"""Profiles from measured kernels: sums, fits, what they agree with, and what is refused."""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synergy_gym.latency.kernels.errors import ClockError
from synergy_gym.latency.kernels.fit import KINDS, SMALL, TERMS, fit_steps, timed_steps
from synergy_gym.latency.kernels.hardware import GPUS, find_gpu
from synergy_gym.latency.kernels.make import Request, make_profile
from synergy_gym.latency.kernels.shape import ModelShape
from synergy_gym.latency.kernels.step import StepKernels, Work
from synergy_gym.latency.kernels.tables import LAUNCHED, OUTLIER, Gemm, Source, without_outliers

pytest.importorskip("aiconfigurator_core", reason="needs the extra clocks")

LLAMA, MIXTURE = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B"


@cache
def kernels(model: str, gpu: str = "h100", tp: int = 1, **changes: str) -> StepKernels:
    return Request(model, gpu, tp, **changes).kernels()  # type: ignore[arg-type]


# --- tables -----------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_outliers_are_replaced_and_nothing_else(times: list[float]) -> None:
    """A time stays unless it is more than `OUTLIER` above that of a larger shape."""
    given_times = np.array(times)
    found = without_outliers(given_times)
    for at, (before, after) in enumerate(zip(given_times, found, strict=True)):
        least = given_times[at:].min()
        assert after == (before if before <= OUTLIER * least else least)


def test_unmeasured_shapes_stay_unmeasured() -> None:
    found = without_outliers(np.array([[1.0, np.nan], [5.0, 2.0]]))
    assert np.isnan(found[0, 1])
    assert found[1, 0] == 2.0  # a larger shape took less


@pytest.mark.parametrize("gpu", GPUS)
def test_more_work_takes_longer(gpu: str) -> None:
    """Up to what two measurements of a kernel may differ by."""
    k = kernels(LLAMA, gpu)
    tokens = [k.dense_ms(n) for n in (1, 64, 256, 1024, 4096, 8192, 20_000)]
    assert all(later >= earlier * 0.97 for earlier, later in itertools.pairwise(tokens))
    decodes = [k.decode_attention_ms(64, n) for n in (1, 500, 4000, 32_000, 200_000)]
    assert decodes == sorted(decodes)
    chunks = [k.prefill_attention_ms(n) for n in (16, 512, 4096, 60_000)]
    assert chunks == sorted(chunks)
    histories = [k.prefill_attention_ms(512, n) for n in (0, 1000, 30_000)]
    assert histories == sorted(histories)


def test_a_step_is_the_sum_of_its_parts() -> None:
    k = kernels(LLAMA)
    work = Work(decodes=8, context=8000, chunks=((100, 50),))
    assert (work.sequences, work.tokens) == (9, 108)
    assert (work.pairs, work.prefill_context) == (100 * 50 + 100 * 101 // 2, 50)
    parts = k.dense_ms(108) + k.head_ms(9) + k.attention_ms(work)
    assert k.step_ms(work) == pytest.approx(parts)
    alone = k.step_ms(replace(work, chunks=()))
    assert alone < k.step_ms(work)


def test_experts_are_concave() -> None:
    """Few tokens reach few experts; from some hundred on all of them are read."""
    k = kernels(MIXTURE)
    times = [k.experts_ms(n) for n in (1, 16, 64, 512)]
    assert times == sorted(times)
    slopes = np.diff(times) / np.diff((1, 16, 64, 512))
    assert slopes[0] > 2 * slopes[1] > 4 * slopes[2]
    assert kernels(LLAMA).experts_ms(64) == 0.0


def test_a_sliding_window_bounds_what_a_decode_reads() -> None:
    k = kernels("openai/gpt-oss-20b")
    (_, full), (window, narrow) = sorted(
        ((t.heads.window, t) for _, t in k._attention), key=lambda pair: pair[0]
    )
    assert window == 128
    assert narrow.decode_ms(32, 30_000) == narrow.decode_ms(32, 128)
    assert full.decode_ms(32, 30_000) > 5 * full.decode_ms(32, 128)


def test_more_gpus_are_faster_but_not_in_proportion() -> None:
    one, two, four = (
        kernels("Qwen/Qwen3-32B", tp=tp).step_ms(Work(32, 32_000)) for tp in (1, 2, 4)
    )
    assert four < two < one
    assert two > one / 2
    assert four > two / 2


def test_an_eight_bit_cache_is_read_faster() -> None:
    long = Work(64, 64 * 8000)
    assert kernels(LLAMA, cache="fp8").step_ms(long) < kernels(LLAMA).step_ms(long)


# --- against what is known --------------------------------------------------------------------


def test_weights_bound_a_small_step() -> None:
    """8.03e9 parameters of 2 bytes, the embedding apart, at 3.35 TB/s: 4.48 ms."""
    bound_ms = (8.03e9 - 128256 * 4096) * 2 / 3.35e9
    assert bound_ms < kernels(LLAMA).step_ms(Work(1, 1)) < 1.6 * bound_ms


def test_an_h100_s_long_prompt_step() -> None:
    """4,096 tokens of Llama-3.1-8B: 2 x 7.5e9 x 4,096 operations at 60 to 80 % of 989 TFLOPS."""
    floating = 2 * (8.03e9 - 2 * 128256 * 4096) * 4096
    share = floating / 989e12 / (kernels(LLAMA).dense_ms(4096) / 1e3)
    assert 0.6 < share < 0.8


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "changes", "bound"),
    [
        (LLAMA, "h100", 1, {}, 0.05),
        (LLAMA, "a100", 1, {}, 0.05),
        (LLAMA, "rtxpro6000", 1, {}, 0.05),
        (MIXTURE, "h100", 1, {}, 0.05),
        ("Qwen/Qwen3-32B", "b200", 2, {}, 0.05),
        ("openai/gpt-oss-120b", "h200", 1, {}, 0.05),
        # FP8 layers of 320 tokens take a quarter longer than the line through 256 and 512.
        ("Qwen/QwQ-32B", "h100", 1, {"weights": "fp8"}, 0.06),
    ],
)
def test_the_form_fits_within_five_percent(
    model: str, gpu: str, tp: int, changes: dict[str, str], bound: float
) -> None:
    """Mean absolute error against the kernel sums, per kind of step."""
    fit = fit_steps(timed_steps(kernels(model, gpu, tp, **changes)), resamples=3)
    assert set(fit.errors) == {*KINDS, SMALL}
    assert all(error <= bound for error in fit.errors.values()), fit.errors
    for name in TERMS:
        low, high = fit.ranges[name]
        assert 0 <= low <= high


def test_a_fit_finds_the_terms_that_made_its_steps() -> None:
    steps = timed_steps(kernels(LLAMA))
    truth = np.array([1.5, 0.02, 0.021, 6.2, 0.009, 4.2e-5, 9e-7, 1e-4, 5e-6])
    b, s = steps.features[:, 0], steps.features[:, 1]
    linear = np.maximum(truth[3] + truth[4] * s, truth[0] + truth[1] * b + truth[2] * s)
    made = replace(steps, step_ms=linear + steps.features[:, 2:] @ truth[5:])
    fit = fit_steps(made, resamples=0)
    assert list(fit.terms.values()) == pytest.approx(truth, rel=1e-3)
    assert max(fit.errors.values()) < 1e-4


# --- what is written --------------------------------------------------------------------------


def test_a_profile_says_where_every_number_comes_from() -> None:
    text = make_profile(Request(LLAMA, "h100"), "few points")
    content = tomllib.loads(text)
    assert content["tier"] == "few points"
    assert content["gpu"] == "1xH100"
    assert set(content["ranges"]) == set(TERMS) == set(content["terms"]) - {"noise_sd"}
    for name in TERMS:
        low, high = content["ranges"][name]
        assert low <= content["terms"][name] <= high or low == pytest.approx(high, rel=0.2)
    for part in ("engine", "sampler", "sustained"):
        assert len(content[part]["source"]) > 20
    assert "vllm gemm 0.24.0" in text
    assert f"synergy-gym clock --model {LLAMA} --gpu h100\n" in text


def test_the_same_request_gives_the_same_text() -> None:
    request = Request(LLAMA, "a100")
    assert make_profile(request) == make_profile(request)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request(LLAMA, "h20"), r"GPU 'h20': no kernel tables; did you mean 'h200'\?"),
        (Request(LLAMA, "tpu-v5"), "measured are h100, h200, a100, b200, l40s, rtxpro6000"),
        (Request("org/nobody", "h100"), "no configuration of that name"),
        (Request(LLAMA, "h100", tp=3), "--tp 3 does not divide its 32 query heads"),
        (Request(LLAMA, "h100", tp=16), "outside the tables|sums over 16 GPUs are not"),
        (Request(LLAMA, "h100", cache="int4"), "KV cache 'int4': choose one of bf16, fp8"),
        (Request(LLAMA, "h100", weights="int4"), "weights 'int4': choose one of bfloat16, fp8"),
        (Request(LLAMA, "a100", weights="fp8"), "no linear layers of type fp8 .*measured are bf"),
        (
            Request("openai/gpt-oss-20b", "a100"),
            "decode attention of 64 query .* is outside the tables",
        ),
        (Request("deepseek-ai/DeepSeek-V3", "h200", tp=8), "latent attention"),
    ],
)
def test_what_was_not_measured_is_refused(request_: Request, why: str) -> None:
    with pytest.raises(ClockError, match=why) as caught:
        request_.kernels()
    assert "\n" not in str(caught.value)


SHAPES = st.builds(
    ModelShape,
    name=st.just("mine"),
    layers=st.integers(1, 4),
    hidden=st.integers(1, 40_000),
    heads=st.integers(1, 200),
    kv_heads=st.integers(0, 200),
    head_dim=st.sampled_from([0, 64, 80, 96, 128, 256]),
    inter_size=st.integers(1, 100_000),
    vocabulary=st.integers(1, 300_000),
    windows=st.just((0, 0, 0, 0)),
    dense_layers=st.just(4),
    experts=st.none(),
    gemm=st.sampled_from(["bfloat16", "fp8", "nvfp4"]),
    dynamic=st.booleans(),
    qk_norm=st.booleans(),
)


@settings(max_examples=100)
@given(SHAPES, st.sampled_from(sorted(GPUS)), st.sampled_from([1, 2, 8]))
def test_any_shape_is_timed_or_refused_in_words(shape: ModelShape, gpu: str, tp: int) -> None:
    try:
        time = StepKernels(Source(find_gpu(gpu)), shape, tp).step_ms(Work(4, 4000, ((64, 0),)))
    except ClockError as error:
        text = str(error)
    else:
        assert np.isfinite(time)
        assert time > 0
        return
    assert "\n" not in text


@pytest.mark.parametrize(("engine", "dtype"), sorted(LAUNCHED))
def test_a_launch_that_was_timed_with_a_kernel_is_not_believed(engine: str, dtype: str) -> None:
    """The other engine's shorter time counts; of other types the engine's own table alone."""
    gpu = find_gpu("b200")
    other = "vllm" if engine == "trtllm" else "trtllm"
    both = Gemm(Source(gpu, engine), dtype)
    one = Gemm(Source(gpu, other), dtype)
    for tokens in (8, 64, 512):
        assert both.ms(tokens, 8192, 4096) <= one.ms(tokens, 8192, 4096) * 1.001
    own = Gemm(Source(gpu, engine), "bfloat16")
    assert own.ms(8, 8192, 4096) != Gemm(Source(gpu, other), "bfloat16").ms(8, 8192, 4096)


def test_only_vllm_scales_inputs_in_kernels_of_their_own() -> None:
    request = Request("Qwen/Qwen3-32B", "h100", weights="fp8")
    assert request.kernels()._scaling is not None
    assert replace(request, kernels_of="trtllm").kernels()._scaling is None
