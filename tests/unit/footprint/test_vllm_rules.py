"""Launches that vLLM refuses: rules of its source, and what its own messages said of published models."""

from __future__ import annotations

from typing import Any

import pytest

from brimline.errors import FootprintError
from brimline.footprint.gpus import Gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, predict
from brimline.readings import Footprint

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
# Qwen3-32B-FP8: 25,600 = 200 × 128, which 16 ranks cut into 1,600 = 12.5 × 128.
QWEN3_32B_FP8 = {
    "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"},
}  # fmt: skip
GEMMA_3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "sliding_window": 1024, "vocab_size": 262208, "max_position_embeddings": 131072,
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
    },
    "mm_tokens_per_image": 256, "torch_dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}


def of(
    config: dict[str, Any] | None = None, gpu: Gpu | None = None, version: str | None = None, **flags: Any
) -> Footprint:
    model = Model(architecture_of_config(config or LLAMA_8B, "config.json"))
    settings = {name: str(value).lower() for name, value in flags.items()}
    return predict("vllm", model, settings, version=version, gpu=gpu or find_gpu("H100"))


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        # config/model.py: "greater than the model's total number of KV heads"
        ({"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, "above the model's 8 K/V heads"),
        ({"tensor_parallel_size": 16, "decode_context_parallel_size": 4}, "is more than 2"),
        ({"block_size": 17}, "--block-size 17: attention kernels take multiples of 16"),
        # config/scheduler.py
        ({"max_num_seqs": 512, "max_num_batched_tokens": 256}, "--max-num-seqs 512 is more than"),
        (
            {"max_num_batched_tokens": 4096, "max_model_len": 8192, "enable_chunked_prefill": False},
            "--no-enable-chunked-prefill does not allow",
        ),
    ],
)
def test_a_launch_that_vllm_refuses_is_refused_by_flag_and_rule(flags: dict[str, Any], rule: str) -> None:
    with pytest.raises(FootprintError) as error:
        of(**flags)

    assert rule in str(error.value)


def test_context_parallel_ranks_may_share_a_head_that_they_repeat() -> None:
    assert of(tensor_parallel_size=16, decode_context_parallel_size=2).fits is True


def test_blocks_of_a_length_that_vllm_has_been_seen_with_are_taken() -> None:
    """A hybrid's label after its start may be 1600 or 528, both multiples of 16."""
    assert of(block_size=528).kv_cache.block_tokens == 528


def test_no_rank_cuts_a_block_of_scales() -> None:
    """quantization/utils/fp8_utils.py validate_fp8_block_shape."""
    assert of(QWEN3_32B_FP8, tensor_parallel_size=8).tensor_parallel == 8
    with pytest.raises(FootprintError, match=r"--tensor-parallel-size 16: 25,600 of mlp.* are 1,600 on each"):
        of(QWEN3_32B_FP8, tensor_parallel_size=16)


@pytest.mark.parametrize("gpu", ["T4", "V100"])
def test_bfloat16_needs_ampere(gpu: str) -> None:
    """platforms/cuda.py: "Bfloat16 is only supported on GPUs with compute capability of at least 8.0"."""
    card = find_gpu(gpu)

    assert of(gpu=card, max_model_len=1024).fits is not None
    with pytest.raises(FootprintError, match=r"--dtype bfloat16 needs compute capability 8\.0"):
        of(gpu=card, max_model_len=1024, dtype="bfloat16")


def test_a_checkpoint_is_loaded_only_as_what_it_is() -> None:
    """config/model.py: "Quantization method specified in the model config (awq) does not match …"."""
    awq = {**LLAMA_8B, "quantization_config": AWQ}

    assert of(awq, quantization="awq_marlin").parameters == of(awq).parameters
    with pytest.raises(
        FootprintError, match="--quantization fp8 is not how the model is stored, which is awq"
    ):
        of(awq, quantization="fp8")


@pytest.mark.parametrize(
    ("name", "bits"),
    # Bits of a weight of a linear layer, scales of 128 weights included.
    [
        ("awq_marlin", 4 + 20 / 128),
        ("fp8_per_tensor", 8),
        ("modelopt", 8),
        ("modelopt_fp4", 4.5),
        ("ptpc_fp8", 8),
        ("gpt_oss_mxfp4", 4.25),
    ],
)
def test_vllms_names_of_quantizations_mean_their_formats(name: str, bits: float) -> None:
    weights = of(quantization=name).fullest.components["weights"].expected

    linear, rest = 32 * (4096 * (4096 * 2 + 1024 * 2) + 3 * 4096 * 14336), 2 * 128256 * 4096 + 65 * 4096
    rotary_table = 131_072 * 128 * 2
    # What PyTorch's allocator leaves over beside each tensor: more where a weight has several.
    assert weights == pytest.approx(linear * bits / 8 + rest * 2 + rotary_table, rel=0.006)


@pytest.mark.parametrize("name", ["gguf", "torchao", "moe_wna16", "inc"])
def test_a_name_that_says_no_format_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(FootprintError, match=f"--quantization {name} stands for several formats"):
        of(quantization=name)


def test_what_a_name_leaves_open_is_said() -> None:
    assumptions = of(quantization="compressed-tensors").assumptions

    assert any("is taken as 4 bits in groups of 128" in text for text in assumptions)
    assert any("kernels" in text for text in assumptions)


def test_a_model_that_takes_images_alone_needs_no_limit_of_videos() -> None:
    """models/gemma3_mm.py: _mark_tower_model(vllm_config, "image"). The encoder has 0.4 billion weights."""
    whole = of(GEMMA_3_4B).fullest.components
    text = of(GEMMA_3_4B, limit_mm_per_prompt='{"image": 0}').fullest.components

    assert "encoder_cache" in whole
    assert "encoder_cache" not in text
    assert whole["weights"].expected - text["weights"].expected > 0.8e9
