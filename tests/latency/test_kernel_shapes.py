"""Shapes of models from their configurations: what is read, and what is refused and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from synergy_gym.latency.kernels.errors import ClockError
from synergy_gym.latency.kernels.shape import CONFIGS, ModelShape, find_config, read_shape
from synergy_gym.latency.kernels.tables import package_folder

pytest.importorskip("aiconfigurator_core", reason="needs the extra clocks")

SHIPPED = package_folder() / "model_configs"
DENSE: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
MIXTURE = DENSE | {
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}


def test_a_dense_decoder() -> None:
    shape = read_shape("mine", DENSE)
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads) == (32, 4096, 32, 8)
    assert (shape.head_dim, shape.inter_size, shape.gemm) == (128, 14336, "bfloat16")
    assert shape.windows == (0,) * 32
    assert shape.experts is None
    assert not shape.qk_norm


def test_a_mixture_of_experts() -> None:
    shape = read_shape("mine", MIXTURE)
    assert shape.experts is not None
    assert (shape.experts.count, shape.experts.chosen, shape.experts.inter_size) == (128, 8, 768)
    assert shape.dense_layers == 0
    assert shape.qk_norm
    first = read_shape("mine", MIXTURE | {"first_k_dense_replace": 2})
    assert (first.dense_layers, first.inter_size) == (2, 14336)
    assert read_shape("mine", MIXTURE | {"decoder_sparse_step": 2}).dense_layers == 16
    shared = read_shape("mine", MIXTURE | {"n_shared_experts": 2})
    assert shared.experts is not None
    assert shared.experts.shared_size == 2 * 768


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 4096}, (4096,) * 4),
        ({"sliding_window": 4096, "use_sliding_window": False}, (0,) * 4),
        ({"sliding_window": 128, "sliding_window_pattern": 2}, (128, 0, 128, 0)),
        (
            {
                "sliding_window": 128,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (128, 0, 128, 0),
        ),
        (
            {"attention_chunk_size": 8192, "model_type": "llama4_text"},
            (8192, 8192, 8192, 0),
        ),
    ],
)
def test_sliding_windows(changes: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert read_shape("mine", DENSE | {"num_hidden_layers": 4} | changes).windows == windows


@pytest.mark.parametrize(
    ("quantisation", "gemm", "dynamic"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8", True),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", False),
        (
            {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
            },
            "fp8_block",
            True,
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", False),
        ({"quant_method": "mxfp4"}, "bfloat16", False),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "float"},
                        "input_activations": {"dynamic": True},
                    }
                },
            },
            "fp8",
            True,
        ),
    ],
)
def test_quantisation(quantisation: dict[str, Any], gemm: str, dynamic: bool) -> None:
    shape = read_shape("mine", DENSE | {"quantization_config": quantisation})
    assert (shape.gemm, shape.dynamic) == (gemm, dynamic)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kv_lora_rank": 512}, r"'mine': has latent attention \(MLA\); clocks are made of"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "has linear attention"),
        ({"mamba_d_state": 128}, r"has state-space layers \(Mamba\)"),
        ({"hybrid_override_pattern": "M-M*"}, r"has state-space layers \(Mamba\)"),
        ({"model_type": "mamba2"}, r"has state-space layers \(Mamba\)"),
        ({"is_encoder_decoder": True}, "has an encoder and a decoder"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None.*a whole number >= 1 belongs"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        (
            {"quantization_config": {"quant_method": "awq"}},
            "quantisation awq .*has no kernel tables; known are unquantised, fp8",
        ),
        ({"num_experts": 8}, "num_experts_per_tok is missing; add it"),
    ],
)
def test_other_kinds_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ClockError, match=why):
        read_shape("mine", DENSE | changes)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("deepseek-ai--DeepSeek-V3", "latent attention"),
        ("Qwen--Qwen3.5-27B", "linear attention"),
        ("nvidia--Nemotron-H-56B-Base-8K", "state-space"),
    ],
)
def test_real_configurations_of_other_kinds(name: str, why: str) -> None:
    found, config = find_config(name.replace("--", "/"), SHIPPED)
    with pytest.raises(ClockError, match=why):
        read_shape(found, config)


def test_every_configuration_is_read_or_refused_in_words() -> None:
    """Whatever a model's page may hold: a shape, or one line that names the model."""
    read = 0
    for path in sorted(SHIPPED.glob("*_config.json")):
        shape = shape_or_line(*find_config(str(path), SHIPPED))
        read += shape is not None
    assert read >= 20


def shape_or_line(name: str, config: dict[str, Any]) -> ModelShape | None:
    """The shape, or None where one line names the model."""
    try:
        shape = read_shape(name, config)
    except ClockError as error:
        text = str(error)
    else:
        assert len(shape.windows) == shape.layers
        return shape
    assert "\n" not in text
    assert name in text
    return None


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 300), st.floats(), st.text(max_size=5),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.sampled_from(["weights", "num_bits", "a"]), st.integers(), max_size=2),
)  # fmt: skip
KEYS = (
    *MIXTURE, "head_dim", "text_config", "quantization_config", "layer_types", "sliding_window",
    "sliding_window_pattern", "first_k_dense_replace", "decoder_sparse_step", "mlp_only_layers",
    "n_shared_experts", "kv_lora_rank", "use_qk_norm", "attention_chunk_size", "num_local_experts",
)  # fmt: skip


@given(st.sampled_from([DENSE, MIXTURE]), st.dictionaries(st.sampled_from(KEYS), VALUES))
@example(DENSE, {"quantization_config": {"quant_method": "fp8", "config_groups": [1]}})
@example(DENSE, {"num_hidden_layers": 10**12})
def test_any_value_anywhere(base: dict[str, Any], changes: dict[str, Any]) -> None:
    shape_or_line("mine", base | changes)


def test_a_name_a_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    file = tmp_path / "my-model" / "config.json"
    file.write_text(json.dumps(DENSE))
    for place in (file, file.parent):
        name, config = find_config(str(place), SHIPPED)
        assert name == "my-model"
        assert config == DENSE
    name, config = find_config("meta-llama/Llama-3.1-8B-Instruct", SHIPPED)
    assert name == "meta-llama/Llama-3.1-8B-Instruct"
    assert config["hidden_size"] == 4096


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match=r"'org/nobody': no configuration.*give the path of its"):
        find_config("org/nobody", SHIPPED)
    for content, why in (("[1]", "holds a list"), ("{", "no JSON"), ("\xff", "no JSON")):
        file = tmp_path / "config.json"
        file.write_text(content)
        with pytest.raises(ClockError, match=f"config.json: {why}"):
            find_config(str(file), SHIPPED)
    with pytest.raises(ClockError, match="cannot be read"):
        find_config(str(tmp_path / "none.json"), SHIPPED)


def test_configurations_of_our_own_name_their_sources() -> None:
    sources = (CONFIGS / "SOURCES.md").read_text()
    for path in CONFIGS.glob("*.json"):
        name = path.name.removesuffix("_config.json").replace("--", "/")
        assert name in sources
        assert read_shape(name, find_config(name, SHIPPED)[1]).layers
        assert not (SHIPPED / path.name).exists(), "the wheel has it now; remove ours"
