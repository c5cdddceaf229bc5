"""How checkpoints say that they are quantized, from published files and from what vLLM 0.32 reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brimline.errors import FootprintError
from brimline.footprint.architecture import Architecture, Quantization
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.hf_quantization import quantization_of
from brimline.footprint.weights import weight_bytes

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "parameter_counts.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in GOLDEN["cases"]}
GIB = 1 << 30


def quantization(**stated: Any) -> Quantization:
    return quantization_of(stated, "config.json: quantization_config")


def stored(name: str, **stated: Any) -> Architecture:
    config = {**CASES[name]["config"], "torch_dtype": "bfloat16", "quantization_config": stated}
    return architecture_of_config(config, "config.json")


def expected_bytes(model: Architecture) -> int:
    return weight_bytes(model)[0].total.expected


# --- Methods


def test_awq_states_bits_group_and_zero_points() -> None:
    # https://huggingface.co/casperhansen/llama-3-70b-instruct-awq/blob/main/config.json
    stated = quantization(
        quant_method="awq", bits=4, group_size=128, zero_point=True, version="gemm",
        modules_to_not_convert=None,
    )  # fmt: skip

    assert stated == Quantization(method="awq", bits=4, group=128, zeros=True)


def test_gptqmodel_leaves_some_modules_alone_and_gives_others_more_bits() -> None:
    """GPTQModel, `dynamic` (vLLM 0.32, quantization/utils/gptq_utils.py): -: excludes, +: changes."""
    stated = quantization(
        quant_method="gptq", bits=4, group_size=128, sym=True, desc_act=False,
        dynamic={r"-:.*mlp\.gate_proj": {}, r"+:.*\.18\..*down_proj": {"bits": 8, "group_size": 64}},
    )  # fmt: skip

    base = Quantization(method="gptq", bits=4, group=128, zeros=True)
    assert stated.skipped == (r"re:.*mlp\.gate_proj",)
    assert stated.others == (replace(base, bits=8, targets=(r"re:.*\.18\..*down_proj",)),)


def test_auto_round_packs_as_awq_or_gptq_and_leaves_16_bit_layers_alone() -> None:
    """vLLM 0.32, quantization/inc: packing_format and extra_config."""
    stated = quantization(
        quant_method="auto-round", bits=4, group_size=128, packing_format="auto_round:auto_awq",
        extra_config={"lm_head": {"bits": 16}, "model.layers.0.mlp.down_proj": {"bits": 8}},
    )  # fmt: skip

    assert (stated.method, stated.skipped) == ("awq", ("lm_head",))
    assert [(other.bits, other.targets) for other in stated.others] == [
        (8, ("model.layers.0.mlp.down_proj",))
    ]


def test_deepseek_states_blocks_of_fp8() -> None:
    # https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json
    stated = quantization(
        quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[128, 128]
    )

    assert stated == Quantization(method="fp8", bits=8, block=(128, 128))


def test_fbgemm_scales_every_output() -> None:
    # https://huggingface.co/meta-llama/Llama-3.1-405B-Instruct-FP8/blob/main/config.json
    stated = quantization(
        quant_method="fbgemm_fp8", activation_scale_ub=1200.0,
        modules_to_not_convert=["model.layers.0.mlp.up_proj", "lm_head"],
    )  # fmt: skip

    assert stated == Quantization(
        method="fp8", bits=8, per_channel=True, skipped=("model.layers.0.mlp.up_proj", "lm_head")
    )


def test_gpt_oss_leaves_all_but_its_experts_alone() -> None:
    # https://huggingface.co/openai/gpt-oss-20b/blob/main/config.json
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]

    stated = quantization(quant_method="mxfp4", modules_to_not_convert=skipped)

    assert stated == Quantization(method="mxfp4", bits=4, group=32, scale_bits=8, skipped=tuple(skipped))


def test_gpt_oss_20b_takes_what_vllm_measured_with_its_kernels_padding() -> None:
    """llm-d-planner's report: 13.47 GiB; 12.82 without padding the experts' widths."""
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]

    model = stored("openai/gpt-oss-20b", quant_method="mxfp4", modules_to_not_convert=skipped)

    assert expected_bytes(model) / GIB == pytest.approx(13.47, rel=0.003)


def test_bitsandbytes_of_four_bits_may_quantize_its_scales() -> None:
    stated = quantization(
        quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
    )  # fmt: skip

    assert stated == Quantization(method="bitsandbytes", bits=4, group=64, double_quant=True, scale_bits=32)


def test_doubly_quantized_bitsandbytes_takes_4_127_bits_and_16_for_the_tables() -> None:
    """QLoRA, arXiv 2305.14314: 8-bit absmax of 64 weights, with one fp32 for 256 of them."""
    whole = CASES["meta-llama/Llama-3.1-8B"]["parameters"]
    unquantized = 2 * 128_256 * 4096 + 65 * 4096

    model = stored(
        "meta-llama/Llama-3.1-8B", quant_method="bitsandbytes", _load_in_4bit=True,
        bnb_4bit_use_double_quant=True,
    )  # fmt: skip

    bits = 4 + 8 / 64 + 32 / (64 * 256)
    assert expected_bytes(model) == pytest.approx((whole - unquantized) * bits / 8 + 2 * unquantized)


def test_a_method_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(FootprintError, match=r"quant_method 'magic' is not known here; known: .*awq, "):
        quantization(quant_method="magic")


def test_modules_that_are_not_converted_may_be_regular_expressions() -> None:
    """transformers matches them from the front; names and file patterns stay what they are."""
    stated = quantization(
        quant_method="fp8", modules_to_not_convert=[r"model\.layers\.\d+\.mlp\.gate$", "lm_head", "*.gate"]
    )

    assert stated.skipped == (r"re:model\.layers\.\d+\.mlp\.gate$", "lm_head", "*.gate")


# --- compressed-tensors


def test_compressed_tensors_states_its_groups() -> None:
    # https://huggingface.co/RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16/blob/main/config.json
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}

    stated = quantization(
        quant_method="compressed-tensors", format="pack-quantized", ignore=["lm_head"],
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
    )  # fmt: skip

    assert stated == Quantization(method="compressed-tensors", bits=4, group=128, skipped=("lm_head",))


def test_compressed_tensors_of_channels_and_a_quantized_kv_cache() -> None:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "group_size": None}

    stated = quantization(
        quant_method="compressed-tensors", config_groups={"group_0": {"weights": weights}},
        kv_cache_scheme={"num_bits": 8, "type": "float"},
    )  # fmt: skip

    assert stated == Quantization(method="compressed-tensors", bits=8, per_channel=True, kv_cache="fp8")


NVFP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}


def test_groups_of_different_types_are_told_apart_by_their_targets() -> None:
    """Attention in FP8, the rest in NVFP4: 4096-wide projections, 4 a layer, of which K and V are 1024."""
    model = stored(
        "meta-llama/Llama-3.1-8B", quant_method="compressed-tensors", ignore=["lm_head"],
        config_groups={
            "group_0": {"targets": [r"re:.*self_attn\.(q|k|v|o)_proj$"], "weights": FP8},
            "group_1": {"targets": ["Linear"], "weights": NVFP4},
        },
    )  # fmt: skip
    parts = weight_bytes(model)[0].parts

    inputs = 4096
    attention = sum(inputs * outputs + 4 * outputs for outputs in (4096, 1024, 1024, 4096))
    feed_forward = 3 * 4096 * 14336 * (4 / 8 + 1 / 16) + 3 * 8
    assert parts["attention"].expected == 32 * attention
    assert parts["mlp"].expected == 32 * feed_forward


def test_layers_that_no_group_names_stay_as_they_are() -> None:
    model = stored(
        "meta-llama/Llama-3.1-8B", quant_method="compressed-tensors",
        config_groups={"group_0": {"targets": ["re:.*mlp.*"], "weights": FP8}},
    )  # fmt: skip

    assert weight_bytes(model)[0].parts["attention"].expected == 32 * 2 * 4096 * (4096 + 1024) * 2


def test_groups_for_the_experts_of_a_mixture_reach_them_by_the_name_of_one() -> None:
    config = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}
    named = stored(
        "Qwen/Qwen3-30B-A3B", **config,
        config_groups={
            "a": {"targets": [r"re:.*mlp\.experts\.\d+\.(gate|up|down)_proj$"], "weights": NVFP4}
        },
    )  # fmt: skip
    whole = stored("Qwen/Qwen3-30B-A3B", **config, config_groups={"a": {"weights": NVFP4}})

    assert weight_bytes(named)[0].parts["experts"] == weight_bytes(whole)[0].parts["experts"]
    assert weight_bytes(named)[0].parts["attention"].expected == 48 * 2 * 2 * 2048 * (4096 + 512)


def test_a_head_is_quantized_where_it_is_a_target() -> None:
    groups = {"a": {"targets": ["Linear"], "weights": FP8}, "b": {"targets": ["lm_head"], "weights": FP8}}

    stated = quantization(quant_method="compressed-tensors", config_groups=groups)

    assert stated.quantizes_head


def test_groups_that_store_the_same_layers_in_two_types_are_refused() -> None:
    groups = {
        "a": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}},
        "b": {"weights": {"num_bits": 8, "type": "int", "group_size": 128}},
    }

    with pytest.raises(FootprintError, match="the same layers in different types"):
        quantization(quant_method="compressed-tensors", config_groups=groups)


# --- ModelOpt


def test_modelopt_states_nvfp4() -> None:
    # https://huggingface.co/nvidia/Llama-3.1-8B-Instruct-FP4/blob/main/config.json
    stated = quantization(
        quant_method="modelopt", quant_algo="NVFP4", ignore=["lm_head"], kv_cache_quant_algo="FP8"
    )

    assert stated == Quantization(
        method="nvfp4", bits=4, group=16, scale_bits=8, skipped=("lm_head",), kv_cache="fp8"
    )


@pytest.mark.parametrize(
    ("algorithm", "more", "stored_as"),
    [
        ("FP8", {}, Quantization(method="fp8", bits=8)),
        ("FP8_PER_CHANNEL_PER_TOKEN", {}, Quantization(method="fp8", bits=8, per_channel=True)),
        ("FP8_PB_WO", {}, Quantization(method="fp8", bits=8, block=(128, 128))),
        ("nvfp4", {"group_size": 16}, Quantization(method="nvfp4", bits=4, group=16, scale_bits=8)),
        ("W4A16_NVFP4", {}, Quantization(method="nvfp4", bits=4, group=16, scale_bits=8)),
        ("MXFP8", {}, Quantization(method="mxfp8", bits=8, group=32, scale_bits=8)),
        ("W4A16_AWQ", {"group_size": 128}, Quantization(method="awq", bits=4, group=128)),
    ],
)
def test_modelopt_s_own_file_nests_what_it_says(
    algorithm: str, more: dict[str, Any], stored_as: Quantization
) -> None:
    stated = quantization(
        producer={"name": "modelopt", "version": "0.29.0"},
        quantization={"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", **more},
    )

    assert stated == replace(stored_as, kv_cache="fp8")


def test_modelopt_names_each_module_s_algorithm_where_it_mixes_them() -> None:
    """vLLM 0.32, modelopt.py ModelOptMixedPrecisionConfig; what is not named stays in 16 bits."""
    layers: dict[str, dict[str, Any]] = {
        f"model.layers.{n}.self_attn.{p}_proj": {"quant_algo": "FP8"} for n in range(32) for p in "qkvo"
    }
    layers |= {
        f"model.layers.{n}.mlp.{p}_proj": {"quant_algo": "NVFP4", "group_size": 16}
        for n in range(31)
        for p in ("gate", "up", "down")
    }

    model = stored(
        "meta-llama/Llama-3.1-8B", quant_method="modelopt", quant_algo="MIXED_PRECISION",
        quantized_layers=layers,
    )  # fmt: skip
    parts = weight_bytes(model)[0].parts

    matrix = 4096 * 14336
    assert parts["attention"].expected == 32 * (2 * 4096 * (4096 + 1024) + 4 * 4)
    assert parts["mlp"].expected == 31 * 3 * (matrix * 9 // 16 + 8) + 3 * matrix * 2


def test_modelopt_s_mixture_without_its_layers_is_refused() -> None:
    with pytest.raises(FootprintError, match="quantized_layers is missing"):
        quantization(quant_algo="MIXED_PRECISION")


# --- Quark and torchao


def test_quark_states_its_weights_and_excludes_by_name() -> None:
    # https://huggingface.co/amd/Llama-3.1-8B-Instruct-FP8-KV/blob/main/config.json
    tensor = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}
    stated = quantization(
        quant_method="quark", exclude=["lm_head"],
        export={"kv_cache_group": ["*k_proj", "*v_proj"], "pack_method": "reorder"},
        global_quant_config={"weight": tensor, "input_tensors": tensor},
        layer_quant_config={
            "*k_proj": {"weight": tensor, "output_tensors": tensor},
            "*v_proj": {"weight": tensor, "output_tensors": tensor},
        },
    )  # fmt: skip

    assert stated == Quantization(method="quark", bits=8, skipped=("lm_head",), kv_cache="fp8")


def test_quark_s_blocks_of_4_bits_are_mxfp4_and_may_be_of_some_layers_only() -> None:
    # https://huggingface.co/amd/DeepSeek-R1-MXFP4: blocks of 32, exponents of 8 bits
    micro = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
    stated = quantization(
        quant_method="quark", global_quant_config={"weight": micro},
        layer_quant_config={"*self_attn*": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel"}}},
    )  # fmt: skip

    assert stated == Quantization(
        method="mxfp4", bits=4, group=32, scale_bits=8,
        others=(Quantization(method="quark", bits=8, per_channel=True, targets=("*self_attn*",)),),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("quant_type", "stored_as"),
    [
        (
            {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 128}}},
            Quantization(method="torchao", bits=4, group=128, zeros=True),
        ),
        (
            {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}},
            Quantization(method="torchao", bits=8, per_channel=True),
        ),
        (
            {"default": {"_type": "Float8DynamicActivationFloat8WeightConfig", "_data": {}}},
            Quantization(method="torchao", bits=8),
        ),
        ("int4_weight_only", Quantization(method="torchao", bits=4, group=128, zeros=True)),
    ],
)
def test_torchao_names_its_configuration(quant_type: Any, stored_as: Quantization) -> None:
    assert quantization(quant_method="torchao", quant_type=quant_type) == stored_as


def test_a_torchao_configuration_that_is_not_known_is_named() -> None:
    with pytest.raises(FootprintError, match="quant_type 'SparseThing' of torchao"):
        quantization(quant_method="torchao", quant_type={"default": {"_type": "SparseThing"}})
