"""Model folders for engines with random weights: a configuration and a tokenizer, no weights.

vLLM serves them with `load_format="dummy"`, without a hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Shape of a Llama-style model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int


SIZES: Mapping[str, ModelSize] = MappingProxyType(
    {
        "tiny": ModelSize(128, 2, 4, 2, 256, 1024),
        "mid": ModelSize(512, 4, 8, 4, 1536, 4096),
        "big": ModelSize(1024, 8, 16, 8, 3072, 8192),
    }
)
SPECIAL_TOKENS = 4
"""Ids below this are padding, begin, end and unknown; prompts use the others."""


def write_model(folder: Path, size: str = "tiny", max_model_len: int = 4096) -> Path:
    """Write `config.json` and a word-level tokenizer into `folder`; returns it.

    Raises:
        ValueError: an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"model size {size!r} is unknown; choose one of {', '.join(SIZES)}")
    shape = SIZES[size]
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": max_model_len,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **special,
    }
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", special)
    _write(folder / "tokenizer.json", _tokenizer(shape.vocabulary))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "model_max_length": max_model_len,
        },
    )
    return folder


def _tokenizer(vocabulary: int) -> dict[str, object]:
    """A `tokenizers` file: one word `w<id>` per id, separated by white space."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words |= {f"w{i}": i for i in range(SPECIAL_TOKENS, vocabulary)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
