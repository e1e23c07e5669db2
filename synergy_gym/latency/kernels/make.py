"""Make a latency profile from measured kernels: what `synergy-gym clock` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synergy_gym.latency.grids import BATCHES, CONTEXTS, PAIRS
from synergy_gym.latency.kernels.engine import ASYNC, SYNC, TOP_P
from synergy_gym.latency.kernels.errors import ClockError
from synergy_gym.latency.kernels.fit import (
    EXPERT_KNOTS,
    SMALL,
    Fit,
    expert_knots,
    fit_steps,
    timed_steps,
)
from synergy_gym.latency.kernels.hardware import find_gpu
from synergy_gym.latency.kernels.shape import GEMM_TYPES, ModelShape, find_config, read_shape
from synergy_gym.latency.kernels.step import StepKernels
from synergy_gym.latency.kernels.tables import Source, package_folder, package_version
from synergy_gym.latency.profile_schema import Tier
from synergy_gym.latency.profiles import Loop

CACHES = {"bf16": "bfloat16", "fp8": "fp8"}
NOISE_SD = 0.03
"""Step-to-step noise: 3,058 steps of 4,096 tokens of SynergySched's authors' H100 log, sd 3.4 %."""
SEQUENCES = (0, 1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Where the output head is put into the table."""
SMALLEST = 1e-12
"""Coefficients below are zero to the fit."""
DIGITS = 5


@dataclass(frozen=True, slots=True)
class Request:
    """What a profile is made for.

    Attributes:
        model: a `config.json`, a folder that holds one, or the name of a model.
        gpu: a name of `hardware.GPUS`.
        tp: GPUs that share the model.
        cache: type of the KV cache, a key of `CACHES`.
        weights: type of the linear layers instead of the configuration's, of `GEMM_TYPES`.
        kernels_of: whose kernels, "vllm" or "trtllm".
        name: how the profile calls the model; by default as `model` says.
        loop: what the profile stands for by default.
    """

    model: str
    gpu: str
    tp: int = 1
    cache: str = "bf16"
    weights: str | None = None
    kernels_of: str = "vllm"
    name: str | None = None
    loop: Loop = "async"

    def kernels(self) -> StepKernels:
        """The kernels that are summed.

        Raises:
            ClockError: an unknown GPU or model, or shapes that were not measured.
        """
        if self.cache not in CACHES:
            raise ClockError(f"KV cache {self.cache!r}: choose one of {', '.join(CACHES)}")
        gpu = find_gpu(self.gpu)
        shape = self._shape()
        return StepKernels(Source(gpu, self.kernels_of), shape, self.tp, CACHES[self.cache])

    def _shape(self) -> ModelShape:
        name, config = find_config(self.model, package_folder() / "model_configs")
        shape = read_shape(self.name or name, config)
        if self.weights is None:
            return shape
        if self.weights not in GEMM_TYPES:
            raise ClockError(f"weights {self.weights!r}: choose one of {', '.join(GEMM_TYPES)}")
        experts = shape.experts and replace(shape.experts, dtype=self.weights)
        # vLLM quantises an unquantised model when it loads it, with dynamic scales.
        return replace(shape, gemm=self.weights, experts=experts, dynamic=True)


def make_profile(request: Request, tier: Tier = "kernels only") -> str:
    """The text of a profile.

    Args:
        request: what it is made for.
        tier: how far it was checked.

    Raises:
        ClockError: as `Request.kernels`.
    """
    kernels = request.kernels()
    fit = fit_steps(timed_steps(kernels))
    return "\n".join(
        [*_head(request, kernels, tier), *_terms(fit), *_parts(request, kernels), *_tables(kernels)]
    )


def _head(request: Request, kernels: StepKernels, tier: Tier) -> Iterator[str]:
    gpu, shape = kernels.source.gpu, kernels.shape
    versions = ", ".join(f"{name} {version}" for name, version in kernels.versions.items())
    yield f"# {gpu.engine_label(kernels.tp)}, {shape.name}: {_types(request, shape)}."
    yield f"# Sum of kernels that aiconfigurator-core {package_version()} (Apache-2.0) holds:"
    yield f"# {request.kernels_of} {versions}; {gpu.attention.name}."
    yield "# Made by"
    yield f"#     {_command(request)}"
    yield "# which says again where each number comes from (docs/clocks.md has the method)."
    yield ""
    yield f"gpu = {_text(gpu.engine_label(kernels.tp))}"
    yield f"model = {_text(shape.name)}"
    yield (
        'source = "kernel timings of aiconfigurator-core '
        f'{package_version()} ({request.kernels_of}), added up; see docs/clocks.md"'
    )
    yield f"tier = {_text(tier)}"


def _types(request: Request, shape: ModelShape) -> str:
    experts = "" if shape.experts is None else f", experts {shape.experts.dtype}"
    return f"linear layers {shape.gemm}{experts}, KV cache {request.cache}"


def _command(request: Request) -> str:
    parts = [f"synergy-gym clock --model {request.model} --gpu {request.gpu}"]
    defaults = Request(request.model, request.gpu)
    for name, option in (("tp", "--tp"), ("cache", "--kv"), ("weights", "--weights"),
                         ("kernels_of", "--kernels"), ("loop", "--engine"),
                         ("name", "--name")):  # fmt: skip
        value = getattr(request, name)
        if value != getattr(defaults, name):
            parts.append(f"{option} {value}")
    return " ".join(parts)


_MEANING: Mapping[str, str] = {
    "base_ms": "where the line through steps limited by computation meets zero tokens",
    "per_sequence_ms": "output head and uneven batches",
    "per_token_ms": "linear layers of steps limited by computation",
    "floor_ms": "the weights are read once, however small the step",
    "floor_per_token_ms": "slope of steps limited by memory",
    "per_decode_context_ms": "decode attention per token in the cache",
    "per_prefill_pair_ms": "prefill attention per pair of tokens",
    "per_prefill_context_ms": "short chunks with history that do not fill the GPU",
    "per_mixed_context_ms": "decode attention beside prefills",
}


def _terms(fit: Fit) -> Iterator[str]:
    yield ""
    yield "[terms]  # the GPU's part; fitted on kernel sums"
    for name, value in fit.terms.items():
        least, most = (_number(v) for v in fit.ranges[name])
        yield f"{name} = {_number(value)}  # {_MEANING[name]} ({least} to {most})"
    yield f"noise_sd = {NOISE_SD}  # as measured on an H100 (3.4 %)"
    yield ""
    yield "[ranges]  # 95 %, bootstrap over the steps"
    for name, (low, high) in fit.ranges.items():
        yield f"{name} = [{_number(low)}, {_number(high)}]"
    yield ""
    yield "[fit_error_percent]  # of the form against the kernel sums, mean absolute"
    for kind, key in (*((k, k) for k in ("decode", "prefill", "mixed")), (SMALL, "small")):
        yield f"{key} = {100 * fit.errors[kind]:.2f}"


def _parts(request: Request, kernels: StepKernels) -> Iterator[str]:
    yield from _table("engine  # what an engine adds to every step", {
        "loop": request.loop,
        "async_ms": ASYNC.ms, "async_range": [ASYNC.low, ASYNC.high],
        "sync_ms": SYNC.ms, "sync_range": [SYNC.low, SYNC.high],
        "source": f"async: {ASYNC.source}; sync: {SYNC.source}",
    })  # fmt: skip
    yield from _table("sampler  # with top-k / top-p sampling only", {
        "step_ms": TOP_P.step_ms, "step_range": [TOP_P.low[0], TOP_P.high[0]],
        "per_sequence_ms": TOP_P.per_sequence_ms,
        "per_sequence_range": [TOP_P.low[1], TOP_P.high[1]],
        "source": TOP_P.source,
    })  # fmt: skip
    busy = kernels.source.gpu.sustained_for(kernels.shape.gemm)
    yield from _table("sustained  # compute-bound work of a busy GPU", {
        "factor": busy.factor, "range": [busy.low, busy.high], "source": busy.source,
    })  # fmt: skip


def _table(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    name, _, comment = title.partition("  # ")
    yield ""
    yield f"[{name}]" + (f"  # {comment}" if comment else "")
    for key, value in values.items():
        yield f"{key} = {_text(value) if isinstance(value, str) else _listed(value)}"


def _tables(kernels: StepKernels) -> Iterator[str]:
    """Experts' times, and the tables behind the terms."""
    knots = expert_knots(kernels)
    if knots:
        yield ""
        yield "[experts]  # all layers' experts together, by tokens"
        yield f"tokens = {_listed([n for n, _ in knots])}"
        yield f"ms = {_listed([ms for _, ms in knots])}"
    tokens = [n for n in EXPERT_KNOTS if n <= 16384]
    dense = [kernels.dense_ms(max(n, 1)) + kernels.experts_ms(max(n, 1)) for n in tokens]
    yield ""
    yield "[table]  # the kernel sums themselves, for the clock `table`"
    yield f"tokens = {_listed(tokens)}"
    yield f"dense_ms = {_listed(dense)}"
    yield f"sequences = {_listed(SEQUENCES)}"
    yield f"head_ms = {_listed([kernels.head_ms(n) for n in SEQUENCES])}"
    yield "decode_ms = ["
    for i in range(BATCHES):
        row = [kernels.decode_attention_ms(1 << i, float(1 << j)) for j in range(CONTEXTS)]
        yield f"    {_listed(row)},"
    yield "]"
    prefill = [kernels.prefill_attention_ms(_chunk(1 << i)) for i in range(PAIRS)]
    yield f"prefill_ms = {_listed(prefill)}"
    yield f"per_prefill_context_ms = {_number(_history_ms(kernels))}"
    yield f"mixed = {kernels.source.gpu.attention.mixed}"
    yield ""


def _chunk(pairs: int) -> int:
    """Tokens of a chunk without history that has about so many pairs."""
    return max(int(((8 * pairs + 1) ** 0.5 - 1) / 2), 1)


def _history_ms(kernels: StepKernels) -> float:
    """What history costs a short chunk beyond its pairs, per context token."""
    chunk, history = 128, 4096
    pairs = chunk * history
    longer = kernels.prefill_attention_ms(chunk, history) - kernels.prefill_attention_ms(chunk)
    alone = kernels.prefill_attention_ms(_chunk(pairs + chunk * (chunk + 1) // 2))
    return max(longer - (alone - kernels.prefill_attention_ms(chunk)), 0.0) / history


def _listed(values: float | Sequence[float]) -> str:
    if isinstance(values, (int, float)):
        return _number(values)
    return f"[{', '.join(map(_number, values))}]"


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    text = f"{0.0 if abs(value) < SMALLEST else value:.{DIGITS}g}"
    return text if any(c in text for c in ".e") else f"{text}.0"


def _text(value: str) -> str:
    return '"' + value.replace("\\", "/").replace('"', "'").replace("\n", " ") + '"'
