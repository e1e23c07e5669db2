"""What weights and KV cache of a model take of a GPU's memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from synergy_gym.latency.kernels.shape import ModelShape

GIB = 2**30
WEIGHT_BYTES: Mapping[str, float] = MappingProxyType(
    {"bfloat16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.56, "int4_wo": 0.53,
     "w4a16_mxfp4": 0.53}
)  # fmt: skip
"""Bytes per weight, scales included (nvfp4: one byte for 16, mxfp4: one for 32)."""
CACHE_BYTES: Mapping[str, int] = MappingProxyType({"bfloat16": 2, "fp8": 1})


def weights_gib(shape: ModelShape) -> float:
    """Memory of all weights, embedding and output head in 16 bits."""
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim * shape.hidden
    dense = 3 * shape.hidden * shape.inter_size * shape.dense_layers
    total = (shape.layers * heads + dense) * WEIGHT_BYTES[shape.gemm]
    if shape.experts is not None:
        e = shape.experts
        each = 3 * shape.hidden * (e.count * e.inter_size + e.shared_size)
        total += (shape.layers - shape.dense_layers) * each * WEIGHT_BYTES[e.dtype]
    return (total + 2 * 2 * shape.vocabulary * shape.hidden) / GIB


def cache_bytes_per_token(shape: ModelShape, tp: int, cache: str) -> int:
    """KV cache of a token on each of `tp` GPUs, in the layers that see all tokens.

    Layers with a sliding window keep their last tokens only, which is left out.

    Args:
        shape: of the model.
        tp: GPUs that share it; a KV head is never divided.
        cache: type of the cache, a key of `CACHE_BYTES`.
    """
    full = sum(window == 0 for window in shape.windows)
    return 2 * full * max(shape.kv_heads // tp, 1) * shape.head_dim * CACHE_BYTES[cache]
