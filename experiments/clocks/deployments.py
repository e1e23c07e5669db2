"""Measured deployments that clocks are held against, and how each is played in the simulator.

Source: `silicon_sample.csv` of aiconfigurator-core (Apache-2.0), 5,221 deployments; used are those
of one node with an aggregated engine, decoders with grouped-query attention, and GPUs that have
kernel tables. Nothing is fitted on them. What the file does not say is fixed here per source, from
the public scripts of whoever measured (`PROTOCOLS`), never per error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from synergy_gym.evaluation.runner import evaluate
from synergy_gym.latency.clock import StepTerms
from synergy_gym.latency.kernels.errors import ClockError
from synergy_gym.latency.kernels.make import CACHES, Request, make_profile
from synergy_gym.latency.kernels.memory import cache_bytes_per_token, weights_gib
from synergy_gym.latency.kernels.shape import ModelShape
from synergy_gym.latency.kernels.tables import package_folder
from synergy_gym.latency.profiles import Loop, Profile, Sampling, load_profile
from synergy_gym.scenario import load_scenario
from synergy_gym.types import EngineSpec
from synergy_gym.workload.base import Workload, make_workload

SYSTEMS: Mapping[str, str] = MappingProxyType(
    {"h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200"}
)
MODELS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "meta-llama/Llama-3.1-70B": ("meta-llama/Llama-3.1-70B", "llama-3"),
        "meta-llama/Llama-3.1-8B-Instruct": ("meta-llama/Llama-3.1-8B-Instruct", "llama-3"),
        "nvidia/Llama-3.1-8B-Instruct-FP8": ("meta-llama/Llama-3.1-8B-Instruct", "llama-3"),
        "Qwen/Qwen3-32B": ("Qwen/Qwen3-32B", "qwen3"),
        "Qwen/Qwen3-235B-A22B-FP8": ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-moe"),
        "openai/gpt-oss-120b": ("openai/gpt-oss-120b", "gpt-oss"),
        "MiniMaxAI/MiniMax-M2.5": ("MiniMaxAI/MiniMax-M2.5", "minimax-m2"),
    }
)
"""Model of a row: what its shape is read from, and its family."""
MOE = ("qwen3-moe", "gpt-oss", "minimax-m2")
IN_BLOCKS = ("MiniMaxAI/MiniMax-M2.5", "Qwen/Qwen3-235B-A22B-FP8")
"""Models whose published FP8 weights are scaled in blocks, whatever a row calls them."""
ENGINES = ("vllm", "trtllm")
VARIANTS: tuple[tuple[Loop, Sampling], ...] = (
    ("async", "greedy"), ("sync", "greedy"), ("async", "top-p"), ("sync", "top-p")
)  # fmt: skip
MEMORY_GIB: Mapping[str, float] = MappingProxyType({"h100": 79.1, "h200": 139.8, "b200": 178.0})
UTILISATION, ACTIVATIONS_GIB = 0.9, 3.0
"""`--gpu-memory-utilization` of InferenceMAX's scripts (vLLM's default; TRT-LLM's share of free
memory), and an estimate of the peak activations."""
BLOCK_TOKENS = 16
BUDGETS: Mapping[str, int] = MappingProxyType({"vllm": 8192, "trtllm": 16384})
"""Tokens of a step: `--max-num-batched-tokens` and `--max_num_tokens` of InferenceMAX's scripts."""
ROUNDS, LONG_ROUNDS = 6, 3
"""Requests per client; fewer where outputs are 8,192 tokens long."""
LARGEST_MFU = 0.9
"""Share of a GPU's dense peak that no serving engine exceeds in prefill."""
PEAK_TFLOPS: Mapping[tuple[str, bool], float] = MappingProxyType(
    {
        ("h100", False): 989, ("h100", True): 1979, ("h200", False): 989, ("h200", True): 1979,
        ("b200", False): 2250, ("b200", True): 4500,
    }
)  # fmt: skip
"""Dense peak by GPU and whether layers have eight bits or fewer (the vendor's data sheets)."""
BILLIONS: Mapping[str, float] = MappingProxyType(
    {
        "meta-llama/Llama-3.1-70B": 70.0, "meta-llama/Llama-3.1-8B-Instruct": 8.0,
        "nvidia/Llama-3.1-8B-Instruct-FP8": 8.0, "Qwen/Qwen3-32B": 32.0,
        "Qwen/Qwen3-235B-A22B-FP8": 22.0, "openai/gpt-oss-120b": 5.1,
        "MiniMaxAI/MiniMax-M2.5": 10.0,
    }
)  # fmt: skip
"""Parameters that a token passes."""
TOTAL_BILLIONS: Mapping[str, float] = MappingProxyType(
    BILLIONS
    | {
        "Qwen/Qwen3-235B-A22B-FP8": 235.0, "openai/gpt-oss-120b": 117.0,
        "MiniMaxAI/MiniMax-M2.5": 230.0,
    }
)  # fmt: skip
FALLING = 1.25
"""A TPOT that was so much longer at half the concurrency or less contradicts it."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a source measured.

    Attributes:
        shortest: lengths are drawn between this share of the stated length and all of it.
        variant: loop and sampling; None where it is unknown and every variant is shown.
        evidence: where that is said.
    """

    shortest: float
    variant: tuple[Loop, Sampling] | None
    evidence: str


INFERENCEMAX = Protocol(
    0.8,
    ("async", "greedy"),
    "InferenceMAX's public scripts: --async-scheduling, --random-range-ratio 0.8, --ignore-eos, "
    "temperature 0, a closed loop of --max-concurrency clients (from vLLM 0.14 on the default)",
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "2026-03-25.csv": INFERENCEMAX,
        "2026-04-06.csv": INFERENCEMAX,
        "db-dump": INFERENCEMAX,
        "trtllm": Protocol(
            1.0, ("async", "greedy"), "TRT-LLM overlaps scheduling and samples greedily by default"
        ),
        "vllm": Protocol(
            1.0, None, "vLLM 0.12: loop and sampling are recorded nowhere (before 0.14: sync by "
            "default; without a temperature the model's own top-p is taken)",
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Deployment:
    """One measured configuration.

    Attributes:
        row_id: in the source.
        gpu, model, family, engine: what ran.
        source: key of `PROTOCOLS`.
        tp: GPUs that share the model.
        precision: of the linear layers, as `Request.weights`; "mxfp4" for gpt-oss.
        cache: of the KV cache.
        prompt, output: lengths in tokens.
        concurrency: clients.
        tpot_ms, ttft_ms: measured.
    """

    row_id: str
    gpu: str
    model: str
    family: str
    engine: str
    source: str
    tp: int
    precision: str
    cache: str
    prompt: int
    output: int
    concurrency: int
    tpot_ms: float
    ttft_ms: float

    @property
    def configuration(self) -> tuple[Any, ...]:
        """What makes it unique, whenever it was measured."""
        return (
            self.gpu, self.model, self.engine, self.tp, self.precision, self.cache, self.prompt,
            self.output, self.concurrency,
        )  # fmt: skip

    @property
    def request(self) -> Request:
        """What its clock is made for."""
        model = MODELS[self.model][0]
        if self.model == "meta-llama/Llama-3.1-70B" and self.precision == "fp8":
            model = "nvidia/Llama-3.1-70B-Instruct-FP8"  # static scales
        weights = None if model.startswith("nvidia/") else self.precision
        if weights == "bfloat16" or (self.family in MOE and weights != "nvfp4"):
            weights = None  # the model's own
        return Request(model, self.gpu, self.tp, self.cache, weights, self.engine)

    @property
    def fits(self) -> bool:
        """Whether the weights fit: else `tp` is not all of the row's parallelism."""
        eight_bits = {"bfloat16": 2.0, "nvfp4": 0.5, "mxfp4": 0.53}.get(self.precision, 1.0)
        return (
            TOTAL_BILLIONS[self.model] * eight_bits / self.tp * 1e9 / 2**30 <= MEMORY_GIB[self.gpu]
        )

    @property
    def is_possible(self) -> bool:
        """Whether its latencies agree with its concurrency.

        By Little's law `concurrency` clients with the measured latencies ask for so many prompt
        tokens per second; a row that would need more than `LARGEST_MFU` of the GPUs' peak was
        not measured at that concurrency.
        """
        latency_s = (self.ttft_ms + self.tpot_ms * (self.output - 1)) / 1e3
        tokens_per_s = self.concurrency / latency_s * (self.prompt + self.output)
        needed = 2 * BILLIONS[self.model] * 1e9 * tokens_per_s / self.tp
        return needed <= LARGEST_MFU * PEAK_TFLOPS[self.gpu, self.precision != "bfloat16"] * 1e12


def read_deployments() -> list[Deployment]:
    """The rows that can be played, in the file's order."""
    table = pd.read_csv(package_folder() / "systems" / "silicon_sample.csv")
    table = table[(table["mode"] == "agg") & (table.tp_size <= 8) & table.system.isin(SYSTEMS)]
    table = table[table.model_path.isin(MODELS) & table.backend.isin(ENGINES)]
    table = table[~(table.attention_dp_size > 1) & ~(table.moe_ep_size > 1) & (table.pp_size == 1)]
    return [_deployment(row) for row in table.itertuples()]


def contradicted(deployments: Sequence[Deployment]) -> frozenset[str]:
    """Ids of rows whose TPOT is far below that of the same engine with half the clients or fewer.

    In a closed loop more clients make no step shorter: such a row was not measured at the
    concurrency that it states, or the other was disturbed; which of them, the file cannot tell.
    """
    alike: dict[tuple[Any, ...], list[Deployment]] = {}
    for row in deployments:
        alike.setdefault((row.source, *row.configuration[:-1]), []).append(row)
    return frozenset(
        row.row_id
        for group in alike.values()
        for row, other in product(group, group)
        if other.concurrency <= row.concurrency / 2 and other.tpot_ms > FALLING * row.tpot_ms
    )


def _deployment(row: Any) -> Deployment:
    origin = str(row.silicon_data_source).split(";")[0].removeprefix("source_file=")
    source = origin.partition("/")[0] if origin.startswith("db-dump") else origin.rpartition("/")[2]
    if source not in PROTOCOLS:
        source = row.backend
    model, gpu = row.model_path, SYSTEMS[row.system]
    precision = _precision(row)
    return Deployment(
        row.id, gpu, model, MODELS[model][1], row.backend, source, int(row.tp_size), precision,
        _cache(model, gpu, row.backend), int(row.isl), int(row.osl),
        int(row.batch_size), float(row.silicon_tpot_ms), float(row.silicon_ttft_ms),
    )  # fmt: skip


def _precision(row: Any) -> str:
    if row.model_path == "openai/gpt-oss-120b":
        return "mxfp4"  # the model has no other weights, whatever the row calls them
    if row.precision == "fp4":
        return "nvfp4"
    if row.model_path in IN_BLOCKS or row.gemm_quant_mode == "fp8_block":
        return "fp8_block"
    return "fp8" if row.precision == "fp8" else "bfloat16"


def _cache(model: str, gpu: str, engine: str) -> str:
    """As InferenceMAX's scripts set it.

    An FP8 cache for Llama-70B, but not with vLLM on the H100, and for gpt-oss on the B200.
    """
    llama = model == "meta-llama/Llama-3.1-70B" and not (engine == "vllm" and gpu == "h100")
    return "fp8" if llama or (model == "openai/gpt-oss-120b" and gpu == "b200") else "bf16"


@lru_cache(maxsize=256)
def _shape(request: Request) -> ModelShape:
    return request.kernels().shape


@lru_cache(maxsize=256)
def profile_of(request: Request) -> Profile:
    """The profile that `synergy-gym clock` writes for a deployment.

    Raises:
        ClockError: a shape outside the kernel tables.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "deployment.toml"
        path.write_text(make_profile(request), encoding="utf-8")
        return load_profile(path)


def closed_loop(deployment: Deployment, shortest: float, seed: int = 0) -> Workload:
    """The client's requests: each starts when the one `concurrency` before it has ended."""
    rng = np.random.default_rng(seed)
    rounds = LONG_ROUNDS if deployment.output >= 8192 else ROUNDS
    count = deployment.concurrency * rounds
    prompts, outputs = (
        rng.integers(int(shortest * length), length + 1, count) if shortest < 1
        else np.full(count, length)
        for length in (deployment.prompt, deployment.output)
    )  # fmt: skip
    index = np.arange(count)
    after = np.where(index < deployment.concurrency, -1, index - deployment.concurrency)
    return make_workload(np.zeros(count, np.int64), prompts, outputs, after=after)


def play(deployment: Deployment, terms: StepTerms, shortest: float) -> tuple[float, float]:
    """Mean TPOT and TTFT of the simulated deployment, ms."""
    base = load_scenario("chat-h100")
    shape = _shape(deployment.request)
    free = MEMORY_GIB[deployment.gpu] * UTILISATION - weights_gib(shape) / deployment.tp
    cache = CACHES[deployment.cache]
    tokens = (free - ACTIVATIONS_GIB) * 2**30 / cache_bytes_per_token(shape, deployment.tp, cache)
    spec = EngineSpec(
        name="engine",
        gpu=deployment.gpu,
        model=deployment.model,
        profile="kernels",
        max_num_seqs=deployment.concurrency,
        max_num_batched_tokens=BUDGETS[deployment.engine],
        max_model_len=deployment.prompt + deployment.output + 16,
        kv_blocks=int(tokens / BLOCK_TOKENS),
    )
    slos = tuple(replace(slo, e2e_s=1e5) for slo in base.slos)
    world = replace(
        base, engines=(spec,), terms=(terms,), measured_terms=(terms,), slos=slos, warmup_s=0.0,
        horizon_s=1e5,
    )  # fmt: skip
    workload = closed_loop(deployment, shortest)
    result = evaluate(world, "vllm-v1", workload=workload, record_itl=False)
    table = result.requests
    tpot = (table.e2e_s - table.ttft_s) / (workload.output_tokens - 1)
    return 1e3 * float(tpot.mean()), 1e3 * float(table.ttft_s.mean())


def predictions(
    deployment: Deployment, contradicted: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """A row per variant; the reason instead where there is none.

    Args:
        deployment: to play.
        contradicted: ids of rows that others contradict.
    """
    protocol = PROTOCOLS[deployment.source]
    request = deployment.request
    chosen = (protocol.variant,) if protocol.variant else VARIANTS
    head = {
        "row_id": deployment.row_id, "gpu": deployment.gpu, "model": deployment.model,
        "family": deployment.family, "engine": deployment.engine, "source": deployment.source,
        "tp": deployment.tp, "precision": deployment.precision, "cache": deployment.cache,
        "prompt": deployment.prompt, "output": deployment.output,
        "concurrency": deployment.concurrency, "measured_tpot_ms": deployment.tpot_ms,
        "measured_ttft_ms": deployment.ttft_ms, "labelled": protocol.variant is not None,
    }  # fmt: skip
    if not deployment.fits:
        return [head | {"left_out": "the weights do not fit: other parallelism than stated"}]
    if not deployment.is_possible:
        return [head | {"left_out": "latencies contradict the stated concurrency"}]
    if deployment.row_id in contradicted:
        return [head | {"left_out": "half the concurrency was measured with a longer TPOT"}]
    rows = []
    for loop, sampling in chosen:
        for sustained in (None, 1.0):
            try:
                terms = profile_of(request).timed(loop, sampling, sustained)
            except ClockError as error:
                return [head | {"left_out": str(error)}]
            tpot, ttft = play(deployment, terms, protocol.shortest)
            rows.append(
                head
                | {
                    "loop": loop, "sampling": sampling, "left_out": "",
                    "sustained": "fitted" if sustained is None else "1.0",
                    "tpot_ms": tpot, "ttft_ms": ttft,
                }
            )  # fmt: skip
    return rows
