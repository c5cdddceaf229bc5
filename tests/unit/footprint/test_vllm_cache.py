"""vLLM's blocks against vLLM 0.32 itself (golden file), published numbers and arithmetic done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
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
    Quantization,
    ShortConvolution,
)
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.vllm_cache import VllmCache, VllmCacheSettings, vllm_cache

GIB = 1 << 30
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vllm_kv_cache.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


def attention(heads: int, dim: int = 128, **more: Any) -> Attention:
    return Attention(query_heads=heads, kv_heads=heads, key_dim=dim, value_dim=dim, **more)


def architecture(*mixers: Mixer, **more: Any) -> Architecture:
    layers = tuple(Layer(mixers=(mixer,), feed_forward=None, norm_elements=0) for mixer in mixers)
    return Architecture(
        **{
            "model_type": "x", "vocabulary": 1, "hidden": 1, "layers": layers, "tied": False,
            "dtype": "bfloat16", **more,
        }
    )  # fmt: skip


def launched(**more: Any) -> VllmCacheSettings:
    return VllmCacheSettings(
        **{"max_model_len": 32768, "max_num_batched_tokens": 8192, "block_size": 16, **more}
    )


def mixer_of(words: dict[str, Any]) -> Mixer:
    kind = words["mixer"]
    rest = {key: value for key, value in words.items() if key not in ("mixer", "kda", "state_dtype")}
    if kind == "attention":
        return Attention(query_heads=words["kv_heads"], **rest)
    if kind == "latent":
        return LatentAttention(query_heads=128, q_lora_rank=None, nope_dim=128, value_dim=128, **rest)
    if kind == "linear":
        return LinearAttention(**rest)
    if kind == "short_convolution":
        return ShortConvolution(**rest)
    if kind == "gated_delta_net":
        return GatedDeltaNet(gate_rank=128 if words.get("kda") else None, **rest)
    return Mamba(version=1 if kind == "mamba1" else 2, **rest)


def layer_of(words: dict[str, Any]) -> Layer:
    mixers = tuple(mixer_of(mixer) for mixer in words.get("mixers", [words]))
    return Layer(mixers=mixers, feed_forward=None, norm_elements=0)


def mixers_of(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [mixer for kind in case["kinds"] for mixer in kind.get("mixers", [kind])]


def cache_of(case: dict[str, Any]) -> VllmCache:
    kinds = [layer_of(kind) for kind in case["kinds"]]
    model = Architecture(
        model_type="x",
        vocabulary=1,
        hidden=1,
        layers=tuple(kinds[kind] for kind in case["layers"]),
        tied=False,
        dtype=case["settings"]["dtype"],
    )
    asked = {
        key: value
        for key, value in case["settings"].items()
        if key not in ("available_bytes", "draft", "skipped_layers")
    }
    # The oracle takes a state's type as what --mamba-ssm-cache-dtype says.
    types = {mixer["state_dtype"] for mixer in mixers_of(case) if "state_dtype" in mixer} or {"auto"}
    return vllm_cache(
        model,
        VllmCacheSettings(
            **asked,
            mamba_ssm_cache_dtype=types.pop(),
            version=(0, 32, 0),
            draft_layers=tuple(layer_of(layer) for layer in case["settings"]["draft"]),
            skipped_layers=frozenset(case["settings"]["skipped_layers"]),
        ),
    )


@pytest.mark.parametrize("name", CASES)
def test_groups_pages_and_pool_are_those_of_vllm(name: str) -> None:
    expected = CASES[name]["expected"]
    longest = CASES[name]["settings"]["max_model_len"]

    cache = cache_of(CASES[name])

    assert [
        {
            "layers": len(group.pages),
            "block_tokens": group.block_tokens,
            "page_bytes": group.page_bytes,
            "mixed": group.mixed,
            "request_blocks": blocks,
        }
        for group, blocks in zip(cache.groups, cache.group_blocks(longest), strict=True)
    ] == expected["groups"]
    blocks = cache.num_blocks(CASES[name]["settings"]["available_bytes"])
    assert blocks == expected["num_blocks"]
    assert [blocks * size for size in cache.stage_block_bytes] == expected["pool_bytes"]
    assert cache.max_concurrency(blocks) == expected["max_concurrency"]
    assert cache.capacity_tokens(blocks) == expected["capacity_tokens"]


# Published and hand-worked numbers.

LLAMA_3_8B = architecture(*[attention(8)] * 32)
LLAMA_3_70B = architecture(*[attention(8)] * 80)
DEEPSEEK_V3 = architecture(
    *[
        LatentAttention(
            query_heads=128, q_lora_rank=1536, kv_lora_rank=512, nope_dim=128, rope_dim=64, value_dim=128
        )
    ]
    * 61
)
GPT_OSS_20B = architecture(*[attention(8, 64, window=128), attention(8, 64)] * 12)
GEMMA_4_26B = architecture(
    *[attention(2, 512) if n % 6 == 5 else attention(8, 256, window=1024) for n in range(30)]
)
DELTA = GatedDeltaNet(key_heads=16, value_heads=48, key_dim=128, value_dim=128, conv=4, state_dtype="float32")
QWEN_3_5_27B = architecture(
    *[attention(4, 256) if n % 4 == 3 else DELTA for n in range(64)], model_type="qwen3_5_text"
)


def test_llama_3_8b_on_an_a100_has_the_blocks_that_vllm_logged() -> None:
    """vllm-project/vllm pull request 12330: 11.12 GiB, logged 5691 (the GiB are rounded), 16 tokens each."""
    cache = vllm_cache(LLAMA_3_8B, launched())

    assert cache.num_blocks(int(11.12 * GIB)) == 5693
    assert abs(5693 - 5691) / 5691 < 0.0005


def test_mistral_small_takes_163840_bytes_a_token() -> None:
    """llm-d planner's report: 28.20 GiB for 184,832 tokens."""
    cache = vllm_cache(architecture(*[attention(8)] * 40), launched())

    assert cache.bytes_per_token == 163_840
    assert cache.written_bytes_per_token == 163_840


def test_a_mistral_small_request_of_15049_tokens_fills_118_blocks_of_128() -> None:
    cache = vllm_cache(architecture(*[attention(8)] * 40), launched(block_size=128))

    assert cache.request_blocks(15_049) == 118


def test_70b_takes_327680_bytes_a_token_and_43_gb_for_32_requests_of_4096() -> None:
    cache = vllm_cache(LLAMA_3_70B, launched())

    assert cache.bytes_per_token == 327_680
    assert 32 * cache.bytes_by_tokens(4096) == 42_949_672_960


def test_tensor_parallel_splits_heads_until_there_is_one() -> None:
    per_token = [vllm_cache(LLAMA_3_70B, launched(tensor_parallel=n)).bytes_per_token for n in (1, 2, 8, 16)]

    assert per_token == [327_680, 163_840, 40_960, 40_960]


def test_latent_attention_takes_1152_bytes_a_token_and_layer_on_every_rank() -> None:
    for ranks in (1, 8):
        cache = vllm_cache(DEEPSEEK_V3, launched(tensor_parallel=ranks))

        assert cache.bytes_per_token == 61 * 1152


def test_fp8_ds_mla_takes_656_bytes_a_token_and_layer() -> None:
    cache = vllm_cache(DEEPSEEK_V3, launched(kv_cache_dtype="fp8_ds_mla"))

    assert cache.bytes_per_token == 61 * 656


# One request of 32,768 tokens, 8192 tokens a batch, one batch in flight, blocks of 16.
ONE_REQUEST = [
    ("llama-3.1-8b", LLAMA_3_8B, {}, 4.0),
    ("qwen3-32b", architecture(*[attention(8)] * 64), {}, 8.0),
    ("gpt-oss-20b", GPT_OSS_20B, {}, 0.941),
    ("deepseek-v3", DEEPSEEK_V3, {}, 2.145),
    ("deepseek-v3 fp8_ds_mla", DEEPSEEK_V3, {"kv_cache_dtype": "fp8_ds_mla"}, 1.221),
    ("gemma-4-26b-a4b", GEMMA_4_26B, {}, 2.386),
]


@pytest.mark.parametrize(("model", "more", "expected"), [row[1:] for row in ONE_REQUEST])
def test_one_request_of_32768_tokens_takes(
    model: Architecture, more: dict[str, Any], expected: float
) -> None:
    cache = vllm_cache(model, launched(async_scheduling=False, **more))

    assert cache.bytes_by_tokens(32_768) / GIB == pytest.approx(expected, abs=0.0006)


def test_async_scheduling_keeps_two_batches_in_every_window() -> None:
    """gpt-oss-20b: 12 layers more of 8192 tokens of 2048 bytes, 0.1875 GiB."""
    cache = vllm_cache(GPT_OSS_20B, launched(async_scheduling=True))

    assert cache.bytes_by_tokens(32_768) / GIB == pytest.approx(1.13, abs=0.005)


def test_qwen_3_5_27b_keeps_two_gib_of_attention_and_147_mib_of_state() -> None:
    """48 layers, each 10,240 channels by 3 columns of 2 bytes and 48 heads of 128 by 128 of 4 bytes."""
    cache = vllm_cache(QWEN_3_5_27B, launched(prefix_caching=False))

    states = [page for group in cache.groups for page in group.pages if page.kind == "state"]
    assert sum(page.content_bytes for page in states) == 48 * (61_440 + 3_145_728)
    assert sum(page.content_bytes for page in states) / (1 << 20) == pytest.approx(146.8, abs=0.05)
    assert cache.written_bytes_per_token * 32_768 == 2 * GIB


def test_qwen_3_6_27b_gets_blocks_of_1600_tokens_and_a_quarter_percent_of_padding() -> None:
    """Log of club-3090 issue 751: 2 GPUs, fp8 cache, 3 drafted tokens."""
    cache = vllm_cache(QWEN_3_5_27B, launched(tensor_parallel=2, kv_cache_dtype="fp8", speculative_tokens=3))

    state = next(page for group in cache.groups for page in group.pages if page.kind == "state")
    assert cache.block_size == 1600
    assert state.content_bytes == 1_634_304
    assert f"{(state.page_bytes - state.content_bytes) / state.content_bytes:.2%}" == "0.25%"


def test_before_0_21_tokens_are_blocks_shared_out_among_groups() -> None:
    """gpt-oss-20b: 2 groups; 10,001 blocks of 16 tokens make 5000 for each."""
    cache = vllm_cache(GPT_OSS_20B, launched(version=(0, 20, 2)))

    assert cache.capacity_tokens(10_001) == 80_000
    assert not cache.capacity_is_published


def test_from_0_21_tokens_are_concurrency_times_the_longest_request() -> None:
    """2048 blocks of full attention and ceil((127 + 8192) / 16) + 1 of windows for one request."""
    cache = vllm_cache(GPT_OSS_20B, launched(version=(0, 21, 0)))

    assert cache.request_blocks(32_768) == 2048 + 521
    assert cache.max_concurrency(10_001) == 10_001 / 2569
    assert cache.capacity_tokens(10_001) == int(10_001 / 2569 * 32_768)


def test_from_0_26_every_batch_in_flight_counts_in_a_window() -> None:
    before = vllm_cache(GPT_OSS_20B, launched(version=(0, 25, 1))).group_blocks(32_768)
    since = vllm_cache(GPT_OSS_20B, launched(version=(0, 26, 0))).group_blocks(32_768)

    assert (before, since) == ((521, 2048), (1033, 2048))


def test_before_0_18_groups_were_widened_to_a_quarter_more_layers_only() -> None:
    """12 windows, 17 full layers: 1.42 times as many."""
    model = architecture(*[attention(8, 64, window=128)] * 12, *[attention(8, 64)] * 17)

    before = vllm_cache(model, launched(version=(0, 17, 0)))
    since = vllm_cache(model, launched(version=(0, 18, 0)))

    assert [len(group.pages) for group in before.groups] == [12, 9, 8]
    assert [len(group.pages) for group in since.groups] == [12, 17]
    assert any("stay empty" in line for line in before.assumptions)


def test_layers_that_share_k_and_v_keep_none() -> None:
    model = architecture(*[attention(2, 256)] * 20, *[attention(2, 256, shares_kv=True)] * 15)

    assert vllm_cache(model, launched()).bytes_per_token == 20 * 2 * 2 * 256 * 2


def test_windows_cost_nothing_per_token_in_the_long_run() -> None:
    cache = vllm_cache(architecture(*[attention(8, window=4096)] * 32), launched())

    assert cache.bytes_per_token == 0
    assert cache.written_bytes_per_token == 131_072


def test_the_fullest_pipeline_stage_decides() -> None:
    """30 layers on 4 stages: 7, 8, 8, 7."""
    cache = vllm_cache(architecture(*[attention(8)] * 30), launched(pipeline_parallel=4))

    assert [size // 65_536 for size in cache.stage_block_bytes] == [7, 8, 8, 7]
    assert cache.block_bytes == 8 * 65_536
    assert cache.num_blocks(8 * 65_536 * 10) == 10
    assert cache.num_blocks([8 * 65_536 * 10, 8 * 65_536 * 9, 1 << 40, 1 << 40]) == 9


def test_a_pipeline_partition_is_taken_as_given() -> None:
    cache = vllm_cache(
        architecture(*[attention(8)] * 30), launched(pipeline_parallel=2, pipeline_partition=(18, 12))
    )

    assert [size // 65_536 for size in cache.stage_block_bytes] == [18, 12]


def test_an_overridden_number_of_blocks_is_the_pool() -> None:
    cache = vllm_cache(LLAMA_3_8B, launched(num_gpu_blocks_override=100))

    assert cache.num_blocks(1 << 50) == 100
    assert cache.pool_bytes(100) == 100 * 2 * (1 << 20)


def test_one_block_is_held_back() -> None:
    cache = vllm_cache(LLAMA_3_8B, launched())

    assert cache.null_blocks == 1
    assert cache.needed_bytes() == 2049 * 2 * (1 << 20)


def test_memory_below_one_block_makes_no_blocks() -> None:
    cache = vllm_cache(LLAMA_3_8B, launched())

    assert cache.num_blocks(1000) == 0
    assert cache.num_blocks(-5) == 0


def test_a_model_without_a_cache_has_one_block_and_no_capacity() -> None:
    cache = vllm_cache(architecture(), launched())

    assert cache.num_blocks(1 << 30) == 1
    assert cache.block_size is None
    assert cache.capacity_tokens(1) is None
    assert cache.max_concurrency(1) is None


def test_auto_follows_the_checkpoint_that_asks_for_a_quantized_cache() -> None:
    quantized = replace(LLAMA_3_8B, quantization=Quantization(method="fp8", bits=8, kv_cache="fp8"))

    assert vllm_cache(quantized, launched()).bytes_per_token == 65_536
    assert vllm_cache(quantized, launched(kv_cache_dtype="bfloat16")).bytes_per_token == 131_072


def test_turboquant_leaves_two_layers_at_either_end_unquantized() -> None:
    """K8V4: 128 + 64 + 4 = 196 bytes a head; 4 layers of 8 heads of 512 bytes stay."""
    cache = vllm_cache(LLAMA_3_8B, launched(kv_cache_dtype="turboquant_k8v4"))

    assert cache.written_bytes_per_token == 8 * (28 * 196 + 4 * 512)
    assert "TurboQuant leaves the first and last 2 layers in bfloat16." in cache.assumptions


# What is assumed is said.


def test_a_block_size_that_is_not_given_is_assumed_aloud() -> None:
    """Where another one would change what a request takes: windows, states and latents."""
    cache = vllm_cache(GPT_OSS_20B, launched(block_size=None))

    assert cache.block_size == 16
    assert "--block-size is not given: blocks of 16 tokens are assumed." in cache.assumptions
    assert vllm_cache(LLAMA_3_8B, launched(block_size=None)).assumptions == ()


# What a token costs within a window.

PHI_3_MINI = architecture(*[attention(32, 96, window=262144)] * 32)  # of 131,072 tokens
MISTRAL_7B_V01 = architecture(*[attention(8, window=4096)] * 32)


def test_a_window_as_long_as_the_context_is_full_attention_to_a_token() -> None:
    """2 × 32 heads × 96 × 2 B × 32 layers; vLLM 0.33 keeps it a window: a block more."""
    cache = vllm_cache(PHI_3_MINI, launched(max_model_len=131072))

    assert cache.bytes_per_token == 393_216
    assert cache.window_tokens is None
    assert cache.request_blocks(131072) == 131072 // 16 + 1


def test_a_shorter_window_costs_a_token_until_it_is_full_and_then_none() -> None:
    cache = vllm_cache(MISTRAL_7B_V01, launched(max_model_len=32768))

    assert cache.bytes_per_token == 0
    assert cache.bytes_per_token_within_window == 2 * 8 * 128 * 2 * 32
    assert cache.window_tokens == 4096


def test_a_drafter_without_layers_is_said_not_to_be_counted() -> None:
    cache = vllm_cache(LLAMA_3_8B, launched(speculative_tokens=2))

    assert "The drafter's own K/V is not counted: its layers are not given." in cache.assumptions


# Types of recurrent states, by what vLLM 0.32 does in models/config.py and mamba_utils.py.

# 128 heads of 64 by 128, and 10,240 channels by 3 columns of 2 bytes.
NEMOTRON_H = {
    "model_type": "nemotron_h", "hidden_size": 4096, "vocab_size": 131072, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 21504, "ssm_state_size": 128,
    "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "conv_kernel": 4,
    "hybrid_override_pattern": "M-M*-M",
}  # fmt: skip
NEMOTRON_STATE = 128 * 64 * 128
NEMOTRON_COLUMNS = 3 * (128 * 64 + 2 * 8 * 128) * 2


def state_bytes(model: Architecture, **more: Any) -> int:
    cache = vllm_cache(model, launched(**more))
    return next(page.content_bytes for group in cache.groups for page in group.pages if page.kind == "state")


@pytest.mark.parametrize(
    ("version", "stated", "element"),
    [
        ((0, 12, 0), "float32", 2),  # before it asked the file
        ((0, 13, 0), "float32", 4),
        ((0, 13, 0), None, 2),  # float16
        ((0, 20, 0), None, 4),
        ((0, 32, 0), "bfloat16", 2),
    ],
)
def test_nemotron_h_says_itself_what_type_its_states_are(
    version: tuple[int, ...], stated: str | None, element: int
) -> None:
    model = architecture_of_config({**NEMOTRON_H, "mamba_ssm_cache_dtype": stated}, "config.json")

    assert state_bytes(model, version=version) == NEMOTRON_COLUMNS + NEMOTRON_STATE * element


def test_qwen_3_5_says_itself_what_type_its_states_are_and_qwen_3_next_is_not_asked() -> None:
    """16 heads of keys, 32 of values, 128 wide; the convolution's 3 columns of 8192 channels in 2 bytes."""
    config = {
        "model_type": "qwen3_5_text", "hidden_size": 2048, "vocab_size": 1000, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 2,
        "mamba_ssm_dtype": "float32", "num_experts": 4, "moe_intermediate_size": 64,
    }  # fmt: skip
    columns, states = 3 * 8192 * 2, 32 * 128 * 128

    assert state_bytes(architecture_of_config(config, "x")) == columns + states * 4
    assert state_bytes(architecture_of_config({**config, "model_type": "qwen3_next"}, "x")) == (
        columns + states * 2
    )
    assert state_bytes(architecture_of_config({**config, "mamba_ssm_dtype": None}, "x")) == (
        columns + states * 2
    )


def test_the_flag_wins_over_what_the_file_says_of_states() -> None:
    model = architecture_of_config({**NEMOTRON_H, "mamba_ssm_cache_dtype": "float32"}, "config.json")

    assert state_bytes(model, mamba_ssm_cache_dtype="bfloat16") == NEMOTRON_COLUMNS + NEMOTRON_STATE * 2
    assert state_bytes(model, mamba_cache_dtype="float32") == 2 * NEMOTRON_COLUMNS + NEMOTRON_STATE * 4


def test_kimi_delta_attention_keeps_float32_states() -> None:
    kimi = replace(DELTA, state_dtype=None, gate_rank=128, key_heads=32, value_heads=32)

    assert state_bytes(architecture(kimi, attention(8))) == 3 * 3 * 4096 * 2 + 32 * 128 * 128 * 4


def test_a_short_convolution_keeps_its_last_columns() -> None:
    """LFM 2: a kernel of 3 keeps 2 columns of 2048 channels."""
    model = architecture(ShortConvolution(width=2048, conv=3), attention(8, 64))

    assert state_bytes(model) == 2 * 2048 * 2
    assert state_bytes(model, tensor_parallel=2) == 2048 * 2


@pytest.mark.parametrize(
    ("mixers", "version", "caches"),
    [
        ([attention(8)], (0, 20, 0), True),
        ([DELTA, attention(8)], (0, 27, 1), False),  # on by default since 0.28 (pull request 50991)
        ([DELTA, attention(8)], (0, 28, 0), True),
        ([Mamba(version=1, inner=5120, state=16, conv=4)], (0, 32, 0), False),
        ([attention(8), attention(8, cross=True)], (0, 32, 0), False),
    ],
)
def test_prefixes_are_cached_by_default_as_the_version_does_for_such_a_model(
    mixers: list[Mixer], version: tuple[int, ...], caches: bool
) -> None:
    assert vllm_cache(architecture(*mixers), launched(version=version)).settings.prefix_caching is caches


def test_mamba_2_keeps_one_state_more_since_it_exports_them_within_a_prefill() -> None:
    model = architecture_of_config(NEMOTRON_H, "config.json")
    counts = [
        vllm_cache(model, launched(version=version, prefix_caching=True)).group_blocks(32_768)
        for version in ((0, 28, 0), (0, 32, 0))
    ]

    assert [min(count) for count in counts] == [2, 3]


def test_from_0_33_gated_delta_nets_do_so_on_blocks_of_64_tokens() -> None:
    """vLLM 0.33, gdn/qwen_gdn_linear_attn.py, where FlashInfer prefills."""
    before = vllm_cache(QWEN_3_5_27B, launched(version=(0, 32, 0)))
    since = vllm_cache(QWEN_3_5_27B, launched(version=(0, 33, 0)))

    assert (min(before.group_blocks(32_768)), min(since.group_blocks(32_768))) == (2, 3)
    # A state of 3,207,168 bytes in tokens of 4096: 783 tokens, in steps of 16 or 64.
    assert (before.block_size, since.block_size) == (784, 832)
    assert any("FlashInfer is assumed" in line for line in since.assumptions)
    assert not any("FlashInfer is assumed" in line for line in before.assumptions)


def test_what_the_model_assumed_is_passed_on() -> None:
    model = replace(LLAMA_3_8B, assumptions=("Heads are assumed.",))

    assert vllm_cache(model, launched()).assumptions == ("Heads are assumed.",)


# What cannot be computed is refused, by the flag's name.


@pytest.mark.parametrize(
    ("model", "more", "named"),
    [
        (LLAMA_3_8B, {"kv_cache_dtype": "int3"}, "--kv-cache-dtype 'int3'"),
        (LLAMA_3_8B, {"dtype": "int8"}, "--dtype 'int8'"),
        (LLAMA_3_8B, {"tensor_parallel": 3}, "--tensor-parallel-size 3"),
        (LLAMA_3_8B, {"tensor_parallel": 0}, "--tensor-parallel-size 0"),
        (LLAMA_3_8B, {"block_size": 0}, "--block-size 0"),
        (LLAMA_3_8B, {"max_model_len": 0}, "--max-model-len 0"),
        (LLAMA_3_8B, {"decode_context_parallel": 4}, "--decode-context-parallel-size 4"),
        (LLAMA_3_8B, {"pipeline_parallel": 2, "pipeline_partition": (1, 2)}, "VLLM_PP_LAYER_PARTITION"),
        (GPT_OSS_20B, {"tensor_parallel": 2, "decode_context_parallel": 2}, "--decode-context-parallel-size"),
        (DEEPSEEK_V3, {"kv_cache_dtype": "nvfp4"}, "--kv-cache-dtype 'nvfp4'"),
        (QWEN_3_5_27B, {"mamba_ssm_cache_dtype": "int8"}, "--mamba-ssm-cache-dtype 'int8'"),
        (QWEN_3_5_27B, {"mamba_cache_mode": "all"}, "--mamba-cache-mode 'all'"),
        (QWEN_3_5_27B, {"tensor_parallel": 32}, "--tensor-parallel-size 32"),
        (QWEN_3_5_27B, {"hybrid_cache_manager": False}, "--disable-hybrid-kv-cache-manager"),
        (GEMMA_4_26B, {"kv_cache_layout": "BLNHC"}, "VLLM_KV_CACHE_LAYOUT"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_followed_is_named(
    model: Architecture, more: dict[str, Any], named: str
) -> None:
    with pytest.raises(FootprintError) as error:
        vllm_cache(model, launched(**more))

    assert named in str(error.value)


# Rules that hold for every model.

heads = st.sampled_from([1, 2, 4, 8])
dims = st.sampled_from([64, 128, 256])
mixers = st.one_of(
    st.builds(attention, heads, dims),
    st.builds(lambda h, d, w: attention(h, d, window=w), heads, dims, st.sampled_from([128, 1024, 4096])),
    st.builds(lambda h, d, c: attention(h, d, chunk=c), heads, dims, st.sampled_from([2048, 8192])),
    st.just(DELTA),
)
models = st.builds(
    lambda kinds, repeats: architecture(*(kinds * repeats)),
    st.lists(mixers, min_size=1, max_size=3),
    st.integers(1, 6),
)


@given(models, st.integers(0, 32_768), st.integers(0, 32_768), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_longer_request_never_takes_less(
    model: Architecture, first: int, second: int, caching: bool
) -> None:
    cache = vllm_cache(model, launched(prefix_caching=caching))

    shorter, longer = sorted((first, second))

    assert cache.bytes_by_tokens(shorter) <= cache.bytes_by_tokens(longer)


@given(models, st.integers(1, 32_768), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_so_many_requests_fit_as_their_bytes_say(model: Architecture, tokens: int, requests: int) -> None:
    cache = vllm_cache(model, launched(max_model_len=tokens))

    blocks = cache.num_blocks(requests * cache.bytes_by_tokens(tokens))

    assert cache.max_concurrency(blocks) == requests


@given(models, st.sampled_from([2, 4, 8, 16]))
@settings(max_examples=60, deadline=None)
def test_shards_together_write_at_least_the_whole(model: Architecture, ranks: int) -> None:
    whole = vllm_cache(model, launched())
    shard = vllm_cache(model, launched(tensor_parallel=ranks))

    assert shard.written_bytes_per_token * ranks >= whole.written_bytes_per_token


@given(models, st.sampled_from([2, 3, 4]))
@settings(max_examples=60, deadline=None)
def test_stages_together_write_exactly_the_whole(model: Architecture, stages: int) -> None:
    whole = vllm_cache(model, launched())
    staged = vllm_cache(model, launched(pipeline_parallel=stages))

    assert sum(staged.stage_written_bytes) == whole.written_bytes_per_token


@given(models)
@settings(max_examples=60, deadline=None)
def test_blocks_hold_what_their_layers_write(model: Architecture) -> None:
    cache = vllm_cache(model, launched())

    for group in cache.groups:
        assert all(page.page_bytes >= page.content_bytes > 0 for page in group.pages)
        assert sum(page.page_bytes for page in group.pages) <= cache.block_bytes
    assert cache.bytes_per_token >= Fraction(0)
