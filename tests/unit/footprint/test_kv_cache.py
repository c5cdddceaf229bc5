"""Bytes of K/V cache of one token, for models whose numbers can be worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.kv_cache import (
    KV_LAYOUTS,
    kv_cache_bytes_per_token,
    llamacpp_kv_cache_bytes_per_token,
    vllm_element_bytes,
)
from brimline.footprint.model import ModelShape


def shape(
    *kv_heads: int, head_dim: int = 128, dtype: str | None = "bfloat16", kv_dtype: str | None = None
) -> ModelShape:
    return ModelShape(
        kv_heads=kv_heads, key_dim=head_dim, value_dim=head_dim, dtype=dtype, kv_dtype=kv_dtype, source="x"
    )


LLAMA_3_1_8B = shape(*[8] * 32)  # 32 layers, 8 K/V heads of 128
LLAMA_3_70B = shape(*[8] * 80)  # 80 layers, 8 K/V heads of 128
STARCODER = shape(*[1] * 40)  # multi-query: 40 layers, 1 K/V head of 128


# --- as vLLM lays it out


def test_a_token_of_llama_3_1_8b_takes_128_kib_in_16_bits_and_64_in_8() -> None:
    # 2 (K and V) x 32 layers x 8 heads x 128 elements x 2 bytes
    assert kv_cache_bytes_per_token(LLAMA_3_1_8B, element_bytes=2) == 131072
    assert kv_cache_bytes_per_token(LLAMA_3_1_8B, element_bytes=1) == 65536


@pytest.mark.parametrize(
    ("tensor_parallel", "expected"),
    [
        (1, 327680),  # 2 x 80 x 8 x 128 x 2
        (2, 163840),
        (4, 81920),
        (8, 40960),
        (16, 40960),  # 8 heads on 16 GPUs: one head on each, each head on two GPUs
        (32, 40960),
    ],
)
def test_kv_heads_are_split_among_gpus_until_each_has_one_and_then_replicated(
    tensor_parallel: int, expected: int
) -> None:
    assert kv_cache_bytes_per_token(LLAMA_3_70B, element_bytes=2, tensor_parallel=tensor_parallel) == expected


@pytest.mark.parametrize("tensor_parallel", [1, 2, 4, 8])
def test_the_one_head_of_multi_query_attention_is_on_every_gpu(tensor_parallel: int) -> None:
    # 2 x 40 layers x 1 head x 128 elements x 2 bytes
    assert kv_cache_bytes_per_token(STARCODER, element_bytes=2, tensor_parallel=tensor_parallel) == 20480


@pytest.mark.parametrize(
    ("pipeline_parallel", "layers"), [(1, 80), (2, 40), (3, 27), (4, 20), (7, 12), (80, 1)]
)
def test_the_longest_pipeline_stage_counts(pipeline_parallel: int, layers: int) -> None:
    # 4096 bytes in each layer: 2 x 8 x 128 x 2
    assert (
        kv_cache_bytes_per_token(LLAMA_3_70B, element_bytes=2, pipeline_parallel=pipeline_parallel)
        == layers * 4096
    )


def test_key_and_value_may_differ_in_size() -> None:
    uneven = ModelShape(kv_heads=(4,), key_dim=192, value_dim=128, dtype=None, source="x")

    assert kv_cache_bytes_per_token(uneven, element_bytes=2) == 4 * (192 + 128) * 2


def test_a_layer_without_kv_heads_takes_nothing() -> None:
    assert kv_cache_bytes_per_token(shape(8, 0), element_bytes=2, tensor_parallel=2) == 4 * 256 * 2


def test_heads_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(FootprintError) as caught:
        kv_cache_bytes_per_token(LLAMA_3_1_8B, element_bytes=2, tensor_parallel=3)

    assert str(caught.value) == "8 K/V heads cannot be divided among 3 GPUs"


@pytest.mark.parametrize("sizes", [{"tensor_parallel": 0}, {"pipeline_parallel": 0}, {"tensor_parallel": -1}])
def test_parallel_sizes_start_at_one(sizes: dict[str, int]) -> None:
    with pytest.raises(FootprintError, match=r"^parallel sizes start at 1$"):
        kv_cache_bytes_per_token(LLAMA_3_1_8B, element_bytes=2, **sizes)


@given(st.integers(1, 64), st.integers(0, 5), st.integers(0, 5))
def test_all_gpus_together_hold_at_least_one_whole_cache(layers: int, heads: int, gpus: int) -> None:
    model = shape(*[2**heads] * layers)
    whole = kv_cache_bytes_per_token(model, element_bytes=2)

    on_each = kv_cache_bytes_per_token(model, element_bytes=2, tensor_parallel=2**gpus)

    assert on_each * 2**gpus == whole * max(1, 2 ** (gpus - heads))


# --- the element's size


@pytest.mark.parametrize(
    ("settings", "element_bytes"),
    [
        ({}, 2),
        ({"kv_cache_dtype": "auto"}, 2),
        ({"kv_cache_dtype": "fp8"}, 1),
        ({"kv_cache_dtype": "fp8_e5m2"}, 1),
        ({"kv_cache_dtype": "bfloat16"}, 2),
        ({"dtype": "float32"}, 4),
        ({"dtype": "half"}, 2),
        ({"dtype": "auto"}, 2),
        ({"dtype": "float32", "kv_cache_dtype": "fp8"}, 1),
    ],
)
def test_the_cache_has_its_own_type_else_the_one_the_model_runs_in(
    settings: dict[str, str], element_bytes: int
) -> None:
    assert vllm_element_bytes(LLAMA_3_1_8B, settings) == element_bytes


@pytest.mark.parametrize("dtype", ["float32", "float16", None])
def test_a_float32_checkpoint_runs_in_16_bits(dtype: str | None) -> None:
    # vLLM 0.32, config/model.py _resolve_auto_dtype
    assert vllm_element_bytes(shape(8, dtype=dtype), {}) == 2


@pytest.mark.parametrize("name", ["fp8_ds_mla", "nvfp4", "turboquant"])
def test_a_type_with_a_layout_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(FootprintError) as caught:
        vllm_element_bytes(LLAMA_3_1_8B, {"kv_cache_dtype": name})

    assert str(caught.value) == f"the element size of a K/V cache of type '{name}' is not known here"


def test_a_checkpoint_that_asks_for_a_quantized_cache_is_refused_unless_overridden() -> None:
    asking = shape(8, kv_dtype="stated by the checkpoint")

    with pytest.raises(FootprintError, match="the checkpoint asks for a quantized K/V cache"):
        vllm_element_bytes(asking, {})
    assert vllm_element_bytes(asking, {"kv_cache_dtype": "fp8"}) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 131072),
        ({"tensor_parallel_size": "2"}, 65536),
        ({"tensor_parallel_size": "2", "pipeline_parallel_size": "2", "kv_cache_dtype": "fp8"}, 16384),
    ],
)
def test_vllm_settings_give_the_bytes_on_one_gpu(settings: dict[str, str], expected: int) -> None:
    assert KV_LAYOUTS["torch"](LLAMA_3_1_8B, settings) == expected


@pytest.mark.parametrize("size", ["two", "0", "-1", "1.5", ""])
def test_a_parallel_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(FootprintError) as caught:
        KV_LAYOUTS["torch"](LLAMA_3_1_8B, {"tensor_parallel_size": size})

    assert str(caught.value) == f"tensor_parallel_size {size!r} is not a whole number"


# --- as llama.cpp lays it out


@pytest.mark.parametrize(
    ("cache_type", "bytes_of_32"),
    [
        ("f32", 128),
        ("f16", 64),
        ("bf16", 64),
        ("q8_0", 34),  # 32 bytes and a 16-bit scale
        ("q5_1", 24),  # 16 + 4 bytes, a scale and a minimum
        ("q5_0", 22),  # 16 + 4 bytes and a scale
        ("q4_1", 20),  # 16 bytes, a scale and a minimum
        ("q4_0", 18),  # 16 bytes and a scale
        ("iq4_nl", 18),
    ],
)
def test_a_block_of_32_elements_has_its_scales(cache_type: str, bytes_of_32: int) -> None:
    # ggml/src/ggml-common.h
    one_head = shape(1, head_dim=32)

    both = llamacpp_kv_cache_bytes_per_token(one_head, key_type=cache_type, value_type=cache_type)

    assert both == 2 * bytes_of_32


def test_a_token_of_llama_3_1_8b_in_q8_0_takes_34_32nds_of_a_byte_for_each_element() -> None:
    expected = Fraction(2 * 32 * 8 * 128 * 34, 32)  # 69,632

    assert llamacpp_kv_cache_bytes_per_token(LLAMA_3_1_8B, key_type="q8_0", value_type="q8_0") == expected
    assert expected == 69632


def test_keys_and_values_may_have_other_types() -> None:
    # 32 x 8 x 128 = 32,768 elements each: keys of 34/32 bytes, values of 2
    assert llamacpp_kv_cache_bytes_per_token(LLAMA_3_1_8B, key_type="q8_0", value_type="f16") == 34816 + 65536


def test_llama_cpp_keeps_16_bits_unless_told_otherwise() -> None:
    assert llamacpp_kv_cache_bytes_per_token(LLAMA_3_1_8B) == 131072


def test_layers_with_other_heads_add_up() -> None:
    assert llamacpp_kv_cache_bytes_per_token(shape(3, 4, 0, 5)) == 12 * 256 * 2


def test_llama_cpp_settings_give_the_bytes_on_all_its_devices() -> None:
    layout = KV_LAYOUTS["ggml"]

    assert layout(LLAMA_3_1_8B, {}) == 131072.0
    assert layout(LLAMA_3_1_8B, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}) == 69632.0


def test_an_unknown_cache_type_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FootprintError) as caught:
        llamacpp_kv_cache_bytes_per_token(LLAMA_3_1_8B, key_type="q3_k")

    assert str(caught.value) == (
        "unknown cache type 'q3_k'; known: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl"
    )
