"""The shape of a decoder model, read from its Hugging Face `config.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from synergy_gym.latency.kernels.errors import ClockError

CONFIGS = Path(__file__).parent / "configs"
"""Configurations that aiconfigurator-core lacks, written by hand; `SOURCES.md` says from what."""
GEMM_TYPES = ("bfloat16", "fp8", "fp8_block", "nvfp4")
MOE_TYPES = (*GEMM_TYPES, "int4_wo", "w4a16_mxfp4")

MOST_LAYERS = 10_000
T = TypeVar("T", dict[str, Any], list[Any])

_STATE_SPACE = (
    "mamba",
    "ssm",
    "hybrid_override_pattern",
    "linear_attn",
    "linear_num",
    "conv_kernel",
)


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a mixture-of-experts layer.

    Attributes:
        count: experts of a layer.
        chosen: of them per token.
        inter_size: width of one.
        shared_size: width of the experts that every token takes, together; 0 for none.
        dtype: of their weights, one of `MOE_TYPES`.
    """

    count: int
    chosen: int
    inter_size: int
    shared_size: int
    dtype: str


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a decoder's kernels depend on.

    Attributes:
        name: of the model.
        layers: decoder layers.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: width of a head.
        inter_size: width of the dense feed-forward part (0: every layer has experts).
        vocabulary: rows of the output head.
        windows: sliding window of each layer in tokens, 0 where attention is full.
        dense_layers: layers without experts.
        experts: of the other layers; None for a dense model.
        gemm: type of the linear layers, one of `GEMM_TYPES`.
        dynamic: whether inputs of quantised layers are scaled by what is in them, which is a
            kernel of its own; fixed scales are fused with what comes before.
        qk_norm: whether queries and keys are normalised.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inter_size: int
    vocabulary: int
    windows: tuple[int, ...]
    dense_layers: int
    experts: Experts | None
    gemm: str
    dynamic: bool
    qk_norm: bool


def find_config(model: str, shipped: Path) -> tuple[str, dict[str, Any]]:
    """Name and configuration of a model.

    Args:
        model: a `config.json`, a folder that holds one, or the name of a model.
        shipped: folder with aiconfigurator-core's configurations.

    Raises:
        ClockError: there is none, or it is no JSON object.
    """
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return _named(path, model), _with_quantisation(path)
    for name in _spellings(model):
        for folder in (CONFIGS, shipped):
            path = folder / f"{name.replace('/', '--')}_config.json"
            if path.is_file():
                return model, _with_quantisation(path)
    raise ClockError(
        f"model {model!r}: no configuration of that name is at hand; give the path of its "
        "config.json (download it from the model's page)"
    )


def _named(path: Path, model: str) -> str:
    """The name that a configuration gives itself, else the folder's."""
    name = _object(path).get("_name_or_path")
    return str(name) if name else (path.parent.name or model)


def _spellings(model: str) -> tuple[str, ...]:
    """The name, and the base model's that has the same shape."""
    owner, _, name = model.rpartition("/")
    plain = re.sub(r"(-Instruct|-Thinking|-Base)?(-\d{4})?$", "", name, count=1)
    found = [model, f"{owner}/{plain}"]
    if plain.startswith("Llama-3.1"):
        found.append(f"meta-llama/Meta-{plain.removesuffix('-FP8')}")
    return tuple(found)


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClockError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise ClockError(f"{path}: no JSON ({error}); give a model's config.json") from None
    if not isinstance(content, dict):
        raise ClockError(f"{path}: holds a {type(content).__name__}; give a model's config.json")
    return content


def _with_quantisation(path: Path) -> dict[str, Any]:
    """The configuration, with ModelOpt's own file (`hf_quant_config.json`) if one lies beside."""
    content = _object(path)
    beside = path.with_name(path.name.replace("config.json", "hf_quant_config.json"))
    if "quantization_config" not in content and beside != path and beside.is_file():
        content["quantization_config"] = {
            "quant_method": "modelopt", **_object(beside).get("quantization", {})
        }  # fmt: skip
    return content


def read_shape(name: str, config: Mapping[str, Any]) -> ModelShape:
    """The shape that a configuration describes.

    Raises:
        ClockError: a model of another kind (latent or linear attention, state-space layers,
            encoder-decoder), an unknown quantisation, or a number that is missing or no number.
    """
    c = {**config, **_part(name, config, "text_config", dict)}
    _refuse_other_kinds(name, c)
    get = _Numbers(name, c)
    layers, hidden, heads = (
        get("num_hidden_layers", most=MOST_LAYERS),
        get("hidden_size"),
        get("num_attention_heads"),
    )
    quantisation = _part(name, {**config, **c}, "quantization_config", dict)
    gemm, moe = _types(name, quantisation)
    experts = _experts(get, c, moe)
    dense = _dense_layers(get, layers) if experts else layers
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=get("num_key_value_heads", heads),
        head_dim=get("head_dim", 0) or hidden // heads,
        inter_size=_dense_size(get, c) if dense else 0,
        vocabulary=get("vocab_size"),
        windows=_windows(get, layers),
        dense_layers=dense,
        experts=experts,
        gemm=gemm,
        dynamic=_is_dynamic(name, quantisation),
        qk_norm=bool(c.get("use_qk_norm")) or str(c.get("model_type", "")).startswith(
            ("qwen3", "gemma3", "olmo2")
        ),
    )  # fmt: skip


def _part(name: str, config: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """A part of a configuration that is an object or a list; an empty one where it is missing."""
    value = config.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ClockError(
            f"model {name!r}: {key} is {value!r} in its configuration; "
            f"{'an object' if kind is dict else 'a list'} belongs there"
        )
    return value


def _groups(name: str, q: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """`weights` or `input_activations` of each group of compressed-tensors."""
    groups = _part(name, q, "config_groups", dict)
    return [_part(name, _part(name, groups, key, dict), part, dict) for key in groups]


def _is_dynamic(name: str, q: Mapping[str, Any]) -> bool:
    if q.get("activation_scheme") == "dynamic":
        return True
    return any(bool(group.get("dynamic")) for group in _groups(name, q, "input_activations"))


class _Numbers:
    """Whole numbers of a configuration by key; an error names the key."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        self.name, self.config = name, config

    def __call__(self, key: str, default: int | None = None, most: int = 10**8) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        least = 1 if default is None else 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ClockError(
                f"model {self.name!r}: {key} is {value!r} in its configuration; a whole number "
                f">= {least} belongs there"
            )
        return value

    def listed(self, key: str) -> list[Any]:
        """A list; empty where it is missing."""
        return _part(self.name, self.config, key, list)


def _refuse_other_kinds(name: str, c: Mapping[str, Any]) -> None:
    kind = ""
    if c.get("kv_lora_rank"):
        kind = "latent attention (MLA)"
    elif "linear_attention" in _part(name, c, "layer_types", list):
        kind = "linear attention"
    elif any(str(key).startswith(_STATE_SPACE) for key in c) or "mamba" in str(c.get("model_type")):
        kind = "state-space layers (Mamba)"
    elif c.get("is_encoder_decoder"):
        kind = "an encoder and a decoder"
    elif c.get("global_head_dim") or c.get("num_global_key_value_heads"):
        kind = "layers whose attention heads differ in width"
    if kind:
        raise ClockError(
            f"model {name!r}: has {kind}; clocks are made of decoders with grouped-query attention "
            "only (measure a running engine instead: synergy-gym calibrate --model)"
        )


def _types(name: str, q: Mapping[str, Any]) -> tuple[str, str]:
    """Types of linear layers and experts."""
    if not q:
        return "bfloat16", "bfloat16"
    method = str(q.get("quant_method", "")).lower()
    algorithm = str(q.get("quant_algo", "")).upper()
    if method == "mxfp4":
        return "bfloat16", "w4a16_mxfp4"  # gpt-oss: only the experts are quantised
    if method == "fp8":
        kind = "fp8_block" if q.get("weight_block_size") else "fp8"
        return kind, kind
    if method == "modelopt" and algorithm in ("FP8", "NVFP4"):
        return (algorithm.lower(),) * 2
    if method == "compressed-tensors" and _is_eight_bit_float(name, q):
        return "fp8", "fp8"
    raise ClockError(
        f"model {name!r}: quantisation {method or '?'} {algorithm} has no kernel tables; known are "
        "unquantised, fp8, fp8 in blocks, nvfp4 (ModelOpt) and mxfp4"
    )


def _is_eight_bit_float(name: str, q: Mapping[str, Any]) -> bool:
    weights = _groups(name, q, "weights")
    return bool(weights) and all(
        w.get("num_bits") == 8 and w.get("type") == "float" for w in weights
    )


def _experts(get: _Numbers, c: Mapping[str, Any], dtype: str) -> Experts | None:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    count = next((get(key) for key in names if c.get(key)), 0)
    if count < 2:
        return None
    chosen = get("num_experts_per_tok", get("experts_per_token", 0))
    if not chosen:
        raise ClockError(f"model {get.name!r}: num_experts_per_tok is missing; add it")
    width = get("moe_intermediate_size", get("intermediate_size", 0))
    shared = get("shared_expert_intermediate_size", 0) or width * get("n_shared_experts", 0)
    if "llama4" in str(c.get("model_type")):
        shared = width
    return Experts(count, chosen, width, shared, dtype)


def _dense_layers(get: _Numbers, layers: int) -> int:
    """Layers without experts of a model that has some."""
    first = get("first_k_dense_replace", 0)
    every = get("decoder_sparse_step", 0) or get("interleave_moe_layer_step", 0) or 1
    listed = get.listed("mlp_only_layers")
    sparse = [i for i in range(first, layers) if (i + 1) % every == 0 and i not in listed]
    return layers - len(sparse)


def _dense_size(get: _Numbers, c: Mapping[str, Any]) -> int:
    return get("intermediate_size_mlp", 0) or get("intermediate_size")


def _windows(get: _Numbers, layers: int) -> tuple[int, ...]:
    """Window of each layer; 0 where a token sees all before it."""
    c = get.config
    width = get("sliding_window", 0) or get("attention_chunk_size", 0)
    if not width or c.get("use_sliding_window") is False:
        return (0,) * layers
    kinds = get.listed("layer_types")
    if kinds:
        if len(kinds) < layers:
            raise ClockError(
                f"model {get.name!r}: layer_types names {len(kinds)} of {layers} layers; name all"
            )
        return tuple(0 if kind == "full_attention" else width for kind in kinds[:layers])
    period = get("sliding_window_pattern", 0)
    if period > 1:
        return tuple(0 if (i + 1) % period == 0 else width for i in range(layers))
    if "llama4" in str(c.get("model_type")):
        return tuple(0 if (i + 1) % 4 == 0 else width for i in range(layers))
    return (width,) * layers
