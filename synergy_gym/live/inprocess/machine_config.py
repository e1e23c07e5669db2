"""What an in-process vLLM engine is built from, and what its model folder says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synergy_gym.types import EngineSpec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What a machine is built from; machines of equal configurations are interchangeable."""

    spec: EngineSpec
    """Limits; its names (engine, GPU, model, profile) are left empty."""
    folder: str
    dtype: str = "float32"
    load_format: str | None = None
    threads: int = 1
    engine_args: str = "{}"
    """Further `EngineArgs`, as JSON (so that the configuration can be compared and hashed)."""

    @classmethod
    def of(
        cls,
        spec: EngineSpec,
        folder: Path,
        *,
        dtype: str = "float32",
        load_format: str | None = None,
        threads: int = 1,
        engine_args: Mapping[str, Any] | None = None,
    ) -> MachineConfig:
        """The configuration of an engine with the limits of `spec` and the model in `folder`."""
        limits = replace(spec, name="", gpu="", model="", profile="")
        more = json.dumps(dict(engine_args or {}), sort_keys=True)
        return cls(limits, str(folder), dtype, load_format, threads, more)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of vLLM's `EngineArgs`.

        Raises:
            ValueError: the model folder is unusable or too small for the limits.
        """
        spec, model = self.spec, read_model(Path(self.folder))
        longest = model.get("max_position_embeddings")
        if longest is not None and spec.max_model_len > longest:
            raise ValueError(
                f"max_model_len is {spec.max_model_len}, but the model in {self.folder} ends at "
                f"{longest} tokens; lower the scenario's limit or take a model with more positions"
            )
        blocks = spec.kv_blocks + 1  # block 0 is vLLM's null block
        block_bytes = kv_block_bytes(model, spec.block_size, self.dtype)
        return {
            "model": self.folder,
            "load_format": self.load_format or _default_format(Path(self.folder)),
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "dtype": self.dtype,
            # vLLM does not start if one longest request exceeds the memory; whoever is longer
            # than either is rejected on arrival.
            "max_model_len": min(spec.max_model_len, spec.kv_blocks * spec.block_size),
            "max_num_seqs": spec.max_num_seqs,
            "max_num_batched_tokens": spec.max_num_batched_tokens,
            "block_size": spec.block_size,
            "num_gpu_blocks_override": blocks,
            "kv_cache_memory_bytes": None if block_bytes is None else blocks * block_bytes,
            "enable_prefix_caching": spec.prefix_caching,
            "scheduling_policy": spec.scheduling,
            "async_scheduling": False,  # a step's output is known before the next is planned
            "enable_chunked_prefill": True,
            "seed": 0,
            "disable_log_stats": True,
            **json.loads(self.engine_args),
        }


def read_model(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder.

    Raises:
        ValueError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        model = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {str(folder)!r} cannot be read ({error}); give a size (tiny, mid, big) or a "
            "folder with a config.json"
        ) from error
    if not isinstance(model, dict):
        raise ValueError(f"{path} holds no JSON object; give a model folder as on the hub")
    return model


def kv_block_bytes(model: Mapping[str, Any], block_size: int, dtype: str) -> int | None:
    """Bytes of one KV block of a plain attention model; `None` where the file does not say."""
    heads = model.get("num_key_value_heads", model.get("num_attention_heads"))
    layers, hidden = model.get("num_hidden_layers"), model.get("hidden_size")
    if heads is None or layers is None or hidden is None or dtype not in DTYPE_BYTES:
        return None
    dim = model.get("head_dim") or hidden // model["num_attention_heads"]
    return int(2 * layers * heads * dim * DTYPE_BYTES[dtype] * block_size)


def _default_format(folder: Path) -> str:
    return "auto" if any(next(folder.glob(p), None) for p in WEIGHT_FILES) else "dummy"
