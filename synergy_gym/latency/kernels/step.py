"""The time of an engine's step as a sum of measured kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from synergy_gym.latency.kernels.errors import ClockError
from synergy_gym.latency.kernels.hardware import ELEMENTWISE_BANDWIDTH, ELEMENTWISE_MS
from synergy_gym.latency.kernels.shape import ModelShape
from synergy_gym.latency.kernels.tables import (
    AllReduce,
    AttentionTimes,
    ExpertTimes,
    Gemm,
    Heads,
    Scaling,
    Source,
)

BYTES = 2
"""Of an activation."""
NARROWEST = 32
"""Features of the narrowest linear layer that was measured; a router of fewer takes as long."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes.

    Attributes:
        decodes: requests that decode.
        context: tokens in their KV caches, together.
        chunks: of the prefills: (tokens, tokens computed before them).
    """

    decodes: int = 0
    context: int = 0
    chunks: tuple[tuple[int, int], ...] = ()

    @property
    def sequences(self) -> int:
        """Requests in the step (B)."""
        return self.decodes + len(self.chunks)

    @property
    def tokens(self) -> int:
        """Tokens of the step (S)."""
        return self.decodes + sum(chunk for chunk, _ in self.chunks)

    @property
    def pairs(self) -> int:
        """Prefill attention pairs (A)."""
        return sum(chunk * before + chunk * (chunk + 1) // 2 for chunk, before in self.chunks)

    @property
    def prefill_context(self) -> int:
        """Computed tokens of the prefills (P)."""
        return sum(before for _, before in self.chunks)


class StepKernels:
    """All kernels of a model on an engine's GPUs.

    Args:
        source: whose kernels.
        shape: of the model.
        tp: GPUs that share the model (tensor parallel).
        cache: type of the KV cache, "bfloat16" or "fp8".

    Raises:
        ClockError: a shape that was not measured, or heads that `tp` does not divide.
    """

    def __init__(
        self, source: Source, shape: ModelShape, tp: int = 1, cache: str = "bfloat16"
    ) -> None:
        if shape.heads % tp:
            raise ClockError(
                f"model {shape.name!r}: --tp {tp} does not divide its {shape.heads} query heads"
            )
        self.source, self.shape, self.tp = source, shape, tp
        self._gemm = Gemm(source, shape.gemm)
        self._plain = self._gemm if shape.gemm == "bfloat16" else Gemm(source, "bfloat16")
        heads, kv = shape.heads // tp, max(shape.kv_heads // tp, 1)
        self._attention = [
            (layers, AttentionTimes(source, Heads(heads, kv, shape.head_dim, cache, window)))
            for window, layers in sorted(Counter(shape.windows).items())
        ]
        self._reduce = AllReduce(source, tp) if tp > 1 else None
        fused = Source(source.gpu, "trtllm") if source.gpu.fuses_sums else source
        self._fused = AllReduce(fused, tp) if tp > 1 and source.gpu.fuses_sums else None
        self._experts = self._find_experts()
        # TRT-LLM fuses the scaling of a layer's input with the norm or activation before it.
        scales = shape.dynamic and shape.gemm != "bfloat16" and source.engine == "vllm"
        self._scaling = Scaling(source) if scales else None
        self._query = heads * shape.head_dim
        self._kv = 2 * kv * shape.head_dim
        bandwidth = ELEMENTWISE_BANDWIDTH * source.gpu.bandwidth_bytes_per_ms
        self._ms_per_value = BYTES / bandwidth

    @property
    def versions(self) -> dict[str, str]:
        """Version of the kernels by family."""
        found = {"gemm": self._gemm.version, "attention": self._attention[0][1].version}
        if self._experts is not None:
            found["moe"] = self._experts.version
        if self._reduce is not None:
            found["comm"] = self._reduce.version
        return found

    def step_ms(self, work: Work) -> float:
        """Time of a step without the engine's own work, ms."""
        time = self.dense_ms(work.tokens) + self.experts_ms(work.tokens)
        return time + self.head_ms(work.sequences) + self.attention_ms(work)

    def dense_ms(self, tokens: int) -> float:
        """Everything but experts, attention and head, for so many tokens, ms."""
        s = self.shape
        layer = self._attention_layers_ms(tokens)
        dense, sparse = s.dense_layers, s.layers - s.dense_layers
        time = s.layers * layer + self._elementwise(tokens, s.hidden)
        if dense:
            time += dense * self._feed_forward_ms(tokens, s.inter_size)
        if s.experts is not None and sparse:
            router = self._plain.ms(tokens, max(s.experts.count, NARROWEST), s.hidden)
            shared = s.experts.shared_size
            time += sparse * (router + (self._feed_forward_ms(tokens, shared) if shared else 0.0))
        return time + (self._reduce.ms(tokens * s.hidden) if self._reduce else 0.0)

    def _attention_layers_ms(self, tokens: int) -> float:
        """A layer's projections, norms, rotation, KV write and sums over GPUs."""
        s = self.shape
        time = self._linear_ms(tokens, self._query + self._kv, s.hidden)
        time += self._linear_ms(tokens, s.hidden, self._query)
        time += 2 * self._norm_ms(tokens)
        rotations = 2 if s.qk_norm else 1
        time += rotations * self._elementwise(tokens, 2 * (self._query + self._kv))
        return time + self._elementwise(tokens, 2 * self._kv)

    def _norm_ms(self, tokens: int) -> float:
        """A sum over GPUs, where there are several, and the norm after it; fused where faster."""
        values = tokens * self.shape.hidden
        time = self._elementwise(tokens, 4 * self.shape.hidden)
        if self._reduce is None:
            return time
        time += self._reduce.ms(values)
        return time if self._fused is None else min(time, self._fused.ms(values))

    def _feed_forward_ms(self, tokens: int, width: int) -> float:
        own = width // self.tp
        time = self._linear_ms(tokens, 2 * own, self.shape.hidden)
        time += self._linear_ms(tokens, self.shape.hidden, own)
        return time + self._elementwise(tokens, 3 * own)

    def _linear_ms(self, tokens: int, out: int, into: int) -> float:
        scaling = self._scaling.ms(tokens, into) if self._scaling else 0.0
        return scaling + self._gemm.ms(tokens, out, into)

    def _elementwise(self, tokens: int, values: int) -> float:
        return ELEMENTWISE_MS + tokens * values * self._ms_per_value

    def experts_ms(self, tokens: int) -> float:
        """Time of all layers' experts, ms; 0 for a dense model."""
        if self._experts is None:
            return 0.0
        return (self.shape.layers - self.shape.dense_layers) * self._experts.ms(tokens)

    def expert_tokens(self) -> Sequence[int]:
        """Numbers of tokens at which the experts were measured."""
        return [] if self._experts is None else [int(n) for n in self._experts.tokens]

    def head_ms(self, sequences: int) -> float:
        """Output head of so many sequences, ms."""
        own = -(-self.shape.vocabulary // self.tp)
        return self._plain.head_ms(max(sequences, 1), own, self.shape.hidden)

    def attention_ms(self, work: Work) -> float:
        """Attention of all layers: decodes beside prefills take longer by the kernel's rule, ms."""
        beside = self.source.gpu.attention.mixed if work.chunks else 0.0
        total = 0.0
        for layers, times in self._attention:
            parts = [times.prefill_ms(*chunk) for chunk in work.chunks]
            if work.decodes:
                alone = times.decode_ms(work.decodes, work.context / work.decodes)
                parts.append(alone + beside * max(alone - times.launch_ms, 0.0))
            total += layers * (sum(parts) - times.launch_ms * max(len(parts) - 1, 0))
        return total

    def decode_attention_ms(self, decodes: int, context: float) -> float:
        """Attention of all layers for decodes of equal context, ms."""
        return sum(layers * times.decode_ms(decodes, context) for layers, times in self._attention)

    def prefill_attention_ms(self, chunk: int, history: int = 0) -> float:
        """Attention of all layers for one chunk, ms."""
        return sum(layers * times.prefill_ms(chunk, history) for layers, times in self._attention)

    def _find_experts(self) -> ExpertTimes | None:
        e = self.shape.experts
        if e is None:
            return None
        key = (self.shape.hidden, e.inter_size, e.chosen, e.count, e.dtype)
        return ExpertTimes(self.source, key, self.tp)
