"""Caches of SGLang, llama.cpp and TensorRT-LLM: logs and arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.architecture import (
    Architecture,
    Attention,
    GatedDeltaNet,
    LatentAttention,
    Layer,
    LinearAttention,
    Mamba,
    Mixer,
)
from brimline.footprint.other_caches import (
    LlamacppCache,
    LlamacppCacheSettings,
    SglangCacheSettings,
    TrtllmCacheSettings,
    llamacpp_cache,
    sglang_available_bytes,
    sglang_cache,
    trtllm_cache,
)

GIB = 1 << 30
MIB = 1 << 20


def attention(heads: int, dim: int = 128, **more: Any) -> Attention:
    return Attention(query_heads=heads, kv_heads=heads, key_dim=dim, value_dim=dim, **more)


def architecture(*mixers: Mixer, **more: Any) -> Architecture:
    layers = tuple(Layer(mixers=(mixer,), feed_forward=None, norm_elements=0) for mixer in mixers)
    return Architecture(
        model_type="x", vocabulary=1, hidden=1, layers=layers, tied=False, dtype="bfloat16", **more
    )


LLAMA_3_8B = architecture(*[attention(8)] * 32, max_position=8192)
LATENT = LatentAttention(
    query_heads=128, q_lora_rank=1536, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128
)
DEEPSEEK_V3 = architecture(*[LATENT] * 61)
GPT_OSS_20B = architecture(*[attention(8, 64, window=128), attention(8, 64)] * 12)
DELTA = GatedDeltaNet(key_heads=16, value_heads=48, key_dim=128, value_dim=128, conv=4)
QWEN_3_5_27B = architecture(*[attention(4, 256) if n % 4 == 3 else DELTA for n in range(64)])


def llamacpp(model: Architecture, **more: Any) -> LlamacppCache:
    return llamacpp_cache(model, LlamacppCacheSettings(**more))


# llama.cpp


def test_the_context_of_every_slot_is_rounded_up_to_256_cells() -> None:
    """`-c 1000 -np 3`: 1024 over 3 is 341, so 512 each."""
    cache = llamacpp(LLAMA_3_8B, context=1000, slots=3)

    assert (cache.slot_context, cache.cells) == (512, 1536)
    assert cache.kv_bytes == 1536 * 131_072


def test_a_unified_cache_is_counted_once() -> None:
    cache = llamacpp(LLAMA_3_8B, context=1000, slots=3, unified=True)

    assert (cache.slot_context, cache.cells) == (1024, 1024)
    assert cache.kv_bytes == 1024 * 131_072


def test_gpt_oss_20b_takes_what_llama_cpp_logs() -> None:
    """`llama_kv_cache: size = 1632.00 MiB (131072 cells, 12 layers, 4/1 seqs)`: q8_0, unified."""
    cache = llamacpp(
        GPT_OSS_20B, context=131_072, slots=4, unified=True, cache_type_k="q8_0", cache_type_v="q8_0"
    )

    assert sum(cache.layer_bytes[1::2]) == 1632 * MIB


def test_a_window_keeps_itself_and_a_micro_batch_for_every_slot() -> None:
    """128 + 512 cells, rounded up to 768; unified: 4 · 128 + 512 = 1024. 2048 bytes a cell and layer."""
    apart = llamacpp(GPT_OSS_20B, context=32_768, slots=4)
    together = llamacpp(GPT_OSS_20B, context=32_768, slots=4, unified=True)

    assert apart.layer_bytes[0] == 4 * 768 * 2048
    assert together.layer_bytes[0] == 1024 * 2048


def test_a_window_never_keeps_more_than_the_context() -> None:
    cache = llamacpp(architecture(attention(8, 64, window=4096)), context=1024)

    assert cache.layer_bytes == (1024 * 2048,)


def test_a_request_fills_windows_no_further_than_they_see() -> None:
    """12 layers of 2048 bytes a token see all of it, 12 the last 128 tokens."""
    cache = llamacpp(GPT_OSS_20B, context=32_768, slots=4)

    assert cache.request_bytes(100) == 24 * 2048 * 100
    assert cache.request_bytes(8192) == 12 * 2048 * 8192 + 12 * 2048 * 128


def test_states_of_a_request_are_those_of_one_slot() -> None:
    cache = llamacpp(QWEN_3_5_27B, context=4096, slots=2)

    assert cache.request_bytes(1) == 16 * 2 * 4 * 256 * 2 + 48 * (786_432 + 30_720) * 4


def test_swa_full_keeps_the_whole_context() -> None:
    cache = llamacpp(GPT_OSS_20B, context=32_768, swa_full=True)

    assert cache.kv_bytes == 24 * 32_768 * 2048
    assert cache.bytes_per_token == 24 * 2048


def test_key_and_value_types_cost_their_own_blocks() -> None:
    """q8_0: 34 bytes for 32 elements; q4_0: 18."""
    cache = llamacpp(LLAMA_3_8B, context=256, cache_type_k="q8_0", cache_type_v="q4_0")

    assert cache.bytes_per_token == 32 * (1024 * Fraction(34, 32) + 1024 * Fraction(18, 32))


def test_mla_keeps_a_latent_and_no_values() -> None:
    cache = llamacpp(DEEPSEEK_V3, context=32_768)

    assert cache.bytes_per_token == 61 * 576 * 2
    assert cache.kv_bytes == 61 * 576 * 2 * 32_768


def test_recurrent_states_are_float32_for_every_slot() -> None:
    """Qwen3.6-27B in llama.cpp: 786,432 and 30,720 elements a layer, 48 layers."""
    cache = llamacpp(QWEN_3_5_27B, context=4096, slots=2)

    assert cache.state_bytes == 2 * 48 * (786_432 + 30_720) * 4
    assert cache.kv_bytes == 16 * 2 * 2048 * 4 * 256 * 2 * 2
    assert sum(cache.layer_bytes) == cache.total_bytes


def test_mamba_1_convolves_its_channels_only() -> None:
    """Mamba-130m: 1536 channels, states of 16, a kernel of 4."""
    cache = llamacpp(architecture(Mamba(version=1, inner=1536, state=16, conv=4)), context=256)

    assert cache.state_bytes == 4 * (1536 * 3 + 1536 * 16)


def test_mamba_2_convolves_groups_too() -> None:
    """Mamba2-130m: 24 heads of 64, states of 128, one group."""
    mixer = Mamba(version=2, inner=1536, state=128, conv=4, heads=24, head_dim=64, groups=1)

    assert llamacpp(architecture(mixer), context=256).state_bytes == 4 * (3 * (1536 + 256) + 1536 * 128)


def test_the_models_own_context_is_taken_where_none_is_given() -> None:
    assert llamacpp(LLAMA_3_8B).cells == 8192


def test_without_flash_attention_values_are_as_wide_as_the_widest_layer() -> None:
    model = architecture(attention(2), attention(8))

    assert llamacpp(model, context=256, flash_attention=False).layer_bytes[0] == 256 * (256 + 1024) * 2


def test_layers_that_share_k_and_v_take_nothing() -> None:
    model = architecture(attention(8), attention(8, shares_kv=True))

    assert llamacpp(model, context=256).layer_bytes == (256 * 4096, 0)


@pytest.mark.parametrize(
    ("model", "more", "named"),
    [
        (DEEPSEEK_V3, {}, "--ctx-size is 0"),
        (LLAMA_3_8B, {"slots": 0}, "--parallel 0"),
        (LLAMA_3_8B, {"cache_type_k": "fp8"}, "--cache-type-k 'fp8'"),
        (LLAMA_3_8B, {"cache_type_v": "q3_k"}, "--cache-type-v 'q3_k'"),
        (LLAMA_3_8B, {"cache_type_v": "q8_0", "flash_attention": False}, "--flash-attn"),
        (DEEPSEEK_V3, {"context": 256, "cache_type_k": "q8_0"}, "must be the same for a model with latent"),
        (architecture(attention(1, 80)), {"context": 256, "cache_type_k": "q8_0"}, "--cache-type-k q8_0"),
    ],
)
def test_llamacpp_names_what_it_cannot_follow(model: Architecture, more: dict[str, Any], named: str) -> None:
    with pytest.raises(FootprintError) as error:
        llamacpp(model, **more)

    assert named in str(error.value)


@given(st.integers(1, 200_000), st.integers(1, 200_000), st.integers(1, 8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_longer_context_never_takes_less(first: int, second: int, slots: int, unified: bool) -> None:
    shorter, longer = sorted((first, second))

    assert (
        llamacpp(GPT_OSS_20B, context=shorter, slots=slots, unified=unified).total_bytes
        <= llamacpp(GPT_OSS_20B, context=longer, slots=slots, unified=unified).total_bytes
    )


# SGLang


def test_a_cell_is_k_and_v_of_all_layers() -> None:
    assert sglang_cache(LLAMA_3_8B, SglangCacheSettings()).cell_bytes == 131_072


def test_tokens_are_whole_pages_of_cells() -> None:
    """10,000,000,000 / 131,072 = 76,293.9; 1192 pages of 64."""
    pool = sglang_cache(LLAMA_3_8B, SglangCacheSettings(page_size=64)).pool(10_000_000_000)

    assert pool.tokens == 1192 * 64
    assert pool.kv_bytes == 1192 * 64 * 131_072


def test_the_pools_get_what_the_static_fraction_leaves() -> None:
    """80 GiB free before, 64 after the weights; 12.5 % are not static."""
    available = sglang_available_bytes(
        free_before_load=80 * GIB, free_after_load=64 * GIB, mem_fraction_static=0.875
    )

    assert available == 54 * GIB


def test_heads_are_replicated_once_ranks_exceed_them() -> None:
    cells = [sglang_cache(LLAMA_3_8B, SglangCacheSettings(tensor_parallel=n)).cell_bytes for n in (2, 8, 16)]

    assert cells == [65_536, 16_384, 16_384]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp8_e4m3", 65_536),
        ("bf16", 131_072),
        ("mxfp8", 65_536 + 2048),
        ("nvfp4", 32_768 + 4096),
    ],
)
def test_a_cell_costs_its_format_with_scales(name: str, expected: int) -> None:
    """65,536 elements a token; mxfp8 has a scale byte for 32 of them, nvfp4 one for 16."""
    assert sglang_cache(LLAMA_3_8B, SglangCacheSettings(kv_cache_dtype=name)).cell_bytes == expected


def test_mla_is_one_latent_on_every_rank() -> None:
    assert sglang_cache(DEEPSEEK_V3, SglangCacheSettings(tensor_parallel=8)).cell_bytes == 61 * 1152


def test_sparse_mla_adds_index_keys_with_scales() -> None:
    """128 bytes and one scale of 4; in fp8 the latent's row is 656 bytes."""
    model = architecture(*[replace(LATENT, index_heads=64, index_dim=128)] * 61)

    assert sglang_cache(model, SglangCacheSettings()).cell_bytes == 61 * (1152 + 132)
    assert sglang_cache(model, SglangCacheSettings(kv_cache_dtype="fp8_e4m3")).cell_bytes == 61 * (656 + 132)


def test_windows_get_four_fifths_of_the_tokens() -> None:
    """gpt-oss-20b: 24,576 bytes in either kind of layer, so 44,236.8 bytes a token of the full pool."""
    cache = sglang_cache(GPT_OSS_20B, SglangCacheSettings())

    pool = cache.pool(10 * GIB)

    assert (cache.full_token_bytes, cache.window_token_bytes) == (24_576, 24_576)
    assert pool.tokens == int(10 * GIB // 44_236.8)
    assert pool.window_tokens == int(pool.tokens * 0.8)


def test_a_request_holds_whole_pages_and_of_windows_one_more_than_they_see() -> None:
    """Each kind of layer costs 24,576 bytes a token; windows see 128 tokens, a page has 64."""
    cache = sglang_cache(GPT_OSS_20B, SglangCacheSettings(page_size=64))

    assert cache.request_bytes(1000) == 24_576 * 1024 + 24_576 * (128 + 64)
    assert cache.request_bytes(65) == 2 * 24_576 * 128


def test_windows_only_make_one_pool() -> None:
    pool = sglang_cache(architecture(*[attention(8, window=4096)] * 32), SglangCacheSettings()).pool(10 * GIB)

    assert (pool.tokens, pool.window_tokens) == (10 * GIB // 131_072, None)


def test_without_hybrid_windows_every_layer_keeps_the_context() -> None:
    cache = sglang_cache(GPT_OSS_20B, SglangCacheSettings(hybrid_windows=False))

    assert cache.cell_bytes == 2 * 24_576


def test_states_take_their_share_before_tokens() -> None:
    """A slot is 48 · (61,440 + 3,145,728) bytes; 0.9 / 1.9 of the pool, one slot pads."""
    slot = 48 * (61_440 + 3_145_728)
    pool = sglang_cache(QWEN_3_5_27B, SglangCacheSettings()).pool(20 * GIB)

    expected = int((20 * GIB * 0.9 / 1.9 - slot) // slot)
    assert pool.states == expected
    assert pool.state_bytes == (expected + 1) * slot
    assert pool.tokens == (20 * GIB - pool.state_bytes) // 65_536


def test_a_pipelines_remainder_goes_to_the_last_stages() -> None:
    cache = sglang_cache(architecture(*[attention(8)] * 30), SglangCacheSettings(pipeline_parallel=4))

    assert cache.cell_bytes == 8 * 4096


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"kv_cache_dtype": "int4"}, "--kv-cache-dtype 'int4'"),
        ({"tensor_parallel": 3}, "--tp-size 3"),
        ({"page_size": 0}, "--page-size 0"),
        ({"swa_full_tokens_ratio": 0.0}, "--swa-full-tokens-ratio 0.0"),
    ],
)
def test_sglang_names_what_it_cannot_follow(more: dict[str, Any], named: str) -> None:
    with pytest.raises(FootprintError) as error:
        sglang_cache(LLAMA_3_8B, SglangCacheSettings(**more))

    assert named in str(error.value)


def test_states_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FootprintError, match="--mem-fraction-static"):
        sglang_cache(QWEN_3_5_27B, SglangCacheSettings()).pool(100 * MIB)


def test_a_static_fraction_is_a_fraction() -> None:
    with pytest.raises(FootprintError, match="--mem-fraction-static"):
        sglang_available_bytes(free_before_load=2, free_after_load=1, mem_fraction_static=1.5)


# TensorRT-LLM


def test_a_fraction_of_the_free_memory_makes_blocks() -> None:
    """0.9 of 10 GiB, blocks of 32 tokens of 131,072 bytes."""
    cache = trtllm_cache(LLAMA_3_8B, TrtllmCacheSettings())

    assert cache.bytes_per_token == 131_072
    assert cache.num_blocks(10 * GIB) == 2304
    assert cache.capacity_tokens(10 * GIB) == 73_728
    assert cache.pool_bytes(10 * GIB) == 9 * GIB


def test_max_tokens_is_an_upper_bound() -> None:
    cache = trtllm_cache(LLAMA_3_8B, TrtllmCacheSettings(max_tokens=1000))

    assert cache.num_blocks(10 * GIB) == 32


def test_trtllm_splits_heads_layers_and_elements() -> None:
    half = trtllm_cache(
        LLAMA_3_8B, TrtllmCacheSettings(kv_cache_dtype="fp8", tensor_parallel=2, pipeline_parallel=2)
    )

    assert half.bytes_per_token == 131_072 // 8


def test_trtllm_counts_windows_as_full_and_says_so() -> None:
    cache = trtllm_cache(GPT_OSS_20B, TrtllmCacheSettings())

    assert cache.bytes_per_token == 49_152
    assert any("windows" in line for line in cache.assumptions)


@pytest.mark.parametrize(
    ("model", "more", "named"),
    [
        (LLAMA_3_8B, {"kv_cache_dtype": "q8_0"}, "kv_cache_config.dtype 'q8_0'"),
        (LLAMA_3_8B, {"tensor_parallel": 3}, "--tp_size 3"),
        (LLAMA_3_8B, {"free_gpu_memory_fraction": 0.0}, "free_gpu_memory_fraction 0.0"),
        (architecture(LinearAttention(heads=8, head_dim=64)), {}, "recurrent states"),
    ],
)
def test_trtllm_names_what_it_cannot_follow(model: Architecture, more: dict[str, Any], named: str) -> None:
    with pytest.raises(FootprintError) as error:
        trtllm_cache(model, TrtllmCacheSettings(**more))

    assert named in str(error.value)
