"""The whole prediction: numbers of published runs, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import brimline.demo
from brimline.errors import FootprintError
from brimline.footprint.gpus import Gpu, described_gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, as_json, decode_ceilings, predict, read_model
from brimline.readings import Footprint

GIB = 1 << 30
LLAMA_8B = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
H100 = find_gpu("H100")


def of_vllm(model: Model, gpu: Gpu | None = H100, version: str | None = None, **flags: Any) -> Footprint:
    settings = {name: str(value).lower() for name, value in flags.items()}
    return predict("vllm", model, settings, version=version, gpu=gpu)


def model_of(config: dict[str, Any]) -> Model:
    return Model(architecture_of_config(config, "config.json"))


def test_the_pool_of_a_published_run_is_met_within_half_a_percent_of_the_card() -> None:
    """Llama-3.1-8B on H100, vLLM 0.11 to 0.13: 51.38 GiB of K/V cache, 4.76 of activations, 14.99 of weights.

    llm-d-benchmark, config_explorer/empirical-vllm-memory-results.md; utilization 0.9, 1024 sequences.
    """
    model = read_model(LLAMA_8B)

    footprint = of_vllm(model, version="0.12.0", max_model_len=32768)

    components = footprint.fullest.components
    card = H100.memory_bytes
    assert abs(components["kv_cache"].expected - 51.38 * GIB) < 0.005 * card
    assert abs(components["activations"].expected - 4.76 * GIB) < 0.005 * card
    assert abs(components["weights"].expected - 14.99 * GIB) < 0.01 * 14.99 * GIB
    assert components["kv_cache"].low <= 51.38 * GIB <= components["kv_cache"].high


def test_a_token_of_llama_8b_costs_131072_bytes_and_half_of_it_in_fp8() -> None:
    model = read_model(LLAMA_8B)

    assert of_vllm(model).kv_cache.bytes_per_token == 131072
    assert of_vllm(model, kv_cache_dtype="fp8").kv_cache.bytes_per_token == 65536


def test_70b_on_four_gpus_holds_35_gb_of_weights_on_each() -> None:
    model = model_of(LLAMA_70B)

    footprint = of_vllm(model, tensor_parallel_size=4)

    assert round(footprint.fullest.components["weights"].expected / 1e9) == 35
    assert footprint.kv_cache.bytes_per_token == 327680 / 4


def test_70b_in_16_bits_does_not_fit_one_h100_and_awq_fits_two() -> None:
    model = model_of(LLAMA_70B)

    alone = of_vllm(model, max_model_len=8192)
    awq = of_vllm(model, max_model_len=8192, quantization="awq", tensor_parallel_size=2)

    assert alone.fits is False
    assert awq.fits is True
    assert round(awq.fullest.components["weights"].expected / 1e9, 1) == 19.9


def test_32_requests_of_4096_tokens_of_70b_take_43_gb_of_327680_bytes_a_token() -> None:
    footprint = of_vllm(model_of(LLAMA_70B), None, max_model_len=4096, block_size=16)

    assert footprint.kv_cache.bytes_per_token == 327_680
    assert footprint.kv_cache.full_request_bytes == 4096 * 327_680
    assert round(32 * footprint.kv_cache.full_request_bytes / 1e9) == 43


@pytest.mark.parametrize(("gpus", "tokens_per_second"), [(1, 24), (2, 48)])
def test_70b_in_16_bits_by_bandwidth_alone(gpus: int, tokens_per_second: int) -> None:
    """Of one H100, which it does not fit, and of two."""
    footprint = of_vllm(model_of(LLAMA_70B), max_model_len=8192, tensor_parallel_size=gpus)

    assert footprint.fits is False or gpus > 1
    assert footprint.decode_ceiling is not None
    assert round(footprint.decode_ceiling(1, 1)) == tokens_per_second


def test_the_decode_ceiling_is_bandwidth_over_what_a_step_reads() -> None:
    """Llama-3.1-8B in bf16 on H100 at 3.35 TB/s: 221 tokens/s at 1k, 174 at 32k of context."""
    model = read_model(LLAMA_8B)

    rates = {
        (batch, tokens): rate for batch, tokens, rate in decode_ceilings(of_vllm(model, max_model_len=32768))
    }

    assert round(rates[1, 1024]) == 221
    assert round(rates[1, 32768]) == 174


def test_pipeline_stages_are_told_apart_and_the_fullest_stands_for_all() -> None:
    model = model_of(LLAMA_70B)

    footprint = of_vllm(model, pipeline_parallel_size=2, max_model_len=8192)

    assert [rank.pipeline_stage for rank in footprint.ranks] == [0, 1]
    assert footprint.fullest.total.expected == max(rank.total.expected for rank in footprint.ranks)
    # Only the last stage samples.
    first, last = (rank.components["activations"] for rank in footprint.ranks)
    assert first.high < last.high


def test_a_pipeline_is_no_faster_for_one_request_and_nearly_twice_as_fast_for_many() -> None:
    model = model_of(LLAMA_70B)

    alone, two = (of_vllm(model, pipeline_parallel_size=stages, max_model_len=8192) for stages in (1, 2))

    assert alone.decode_ceiling is not None
    assert two.decode_ceiling is not None
    assert two.decode_ceiling(1, 1024) == pytest.approx(alone.decode_ceiling(1, 1024), rel=0.001)
    assert 1.9 < two.decode_ceiling(1024, 1024) / alone.decode_ceiling(1024, 1024) < 2


def test_offloaded_weights_are_on_the_host() -> None:
    model = read_model(LLAMA_8B)

    footprint = of_vllm(model, cpu_offload_gb=4)
    whole = of_vllm(model)

    moved = whole.fullest.components["weights"].expected - footprint.fullest.components["weights"].expected
    assert moved == 4 * GIB
    assert footprint.fullest.host["weights"].expected == 4 * GIB


def test_without_a_gpu_there_is_no_verdict() -> None:
    model = read_model(LLAMA_8B)

    document = as_json(of_vllm(model, None))

    assert document["fits"] is None
    assert document["headroom_bytes"] is None
    assert document["kv_cache"]["num_blocks"] is None
    assert document["kv_cache"]["bytes_per_token"] == 131072
    assert document["parameters"] == 8_030_261_248
    assert any("No GPU is named" in text for text in document["assumptions"])


def test_an_explicit_pool_is_the_pool() -> None:
    """1 GiB at 1024 bytes a token is 1,048,576 tokens: what vLLM 0.32 said of this model on a CPU."""
    tiny = {
        **LLAMA_70B,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 285,
        "max_position_embeddings": 2048,
    }
    footprint = of_vllm(model_of(tiny), None, version="0.32.0", kv_cache_memory_bytes=GIB, block_size=128)

    cache = as_json(footprint)["kv_cache"]

    assert (cache["num_blocks"], cache["capacity_tokens"], cache["max_concurrency"]) == (8192, 1_048_576, 512)


def test_what_one_component_takes_more_the_pool_takes_less_so_the_total_is_known_better_than_its_parts() -> (
    None
):
    model = read_model(LLAMA_8B)

    rank = of_vllm(model, version="0.30.0", max_model_len=32768).fullest

    parts = rank.components.values()
    assert rank.total.high < sum(part.high for part in parts)
    assert rank.total.low > sum(part.low for part in parts)
    assert rank.total.expected == sum(part.expected for part in parts)


def test_every_component_has_bounds_and_a_source() -> None:
    model = read_model(LLAMA_8B)

    document = as_json(of_vllm(model, max_loras=4))

    components = document["per_gpu"]["components"]
    assert {"weights", "kv_cache", "activations", "cuda_graphs", "runtime", "lora"} == set(components)
    for part in [*components.values(), document["per_gpu"]["total"]]:
        assert 0 <= part["low"] <= part["expected"] <= part["high"]
        assert part["source"]


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({"tensor_parallel_size": 3}, "--tensor-parallel-size 3 does not fit 8 K/V heads"),
        ({"max_model_len": 1 << 20}, "--max-model-len 1048576 is above the 131072 tokens"),
        ({"kv_cache_dtype": "fp3"}, "--kv-cache-dtype"),
        ({"dtype": "int2"}, "dtype"),
        ({"max_num_seqs": "many"}, "--max-num-seqs: 'many' is not a count"),
        ({"enforce_eager": "perhaps"}, "--enforce-eager: 'perhaps' is neither true nor false"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization 1.5"),
        ({"max_loras": 1, "max_lora_rank": 7}, "--max-lora-rank 7"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_flag(flags: dict[str, Any], rule: str) -> None:
    model = read_model(LLAMA_8B)

    with pytest.raises(FootprintError, match=rule.replace("(", r"\(")):
        of_vllm(model, H100, None, **flags)


def test_a_gpu_of_tomorrow_is_described_by_its_memory_and_bandwidth() -> None:
    model = read_model(LLAMA_8B)

    small = of_vllm(model, described_gpu(16 * GIB, 1e12))
    large = of_vllm(model, described_gpu(512 * GIB, 20e12))

    assert small.fits is False
    assert large.fits is True
    assert large.headroom_bytes is not None
    assert large.headroom_bytes > 0


# --- Whether it starts


def test_a_budget_too_small_for_one_request_does_not_start_on_a_gpu_however_large() -> None:
    """vLLM refuses to start where its pool holds no full request (0.33, get_kv_cache_configs)."""
    model = read_model(LLAMA_8B)

    footprint = of_vllm(model, gpu_memory_utilization=0.3)

    # 16 GiB for one request of 131,072 tokens; 23.8 GiB of budget less 15 of weights and the rest
    assert footprint.fits is True
    assert footprint.starts is False
    assert footprint.obstacle is not None
    assert footprint.obstacle.of == "engine"
    assert footprint.obstacle.certainty == "certain"
    assert "of the 16.00 GiB that one request of 131,072 tokens takes" in footprint.obstacle.text
    assert "raise --gpu-memory-utilization" in footprint.obstacle.text


def test_where_only_the_bounds_leave_a_doubt_it_fits_and_may_not_start() -> None:
    model = read_model(LLAMA_8B)

    # one request of 32,768 tokens takes 4 GiB, between the bounds of the pool
    footprint = of_vllm(model, gpu_memory_utilization=0.3, max_model_len=32768)

    pool = footprint.fullest.components["kv_cache"]
    assert pool.low < 4 * GIB < pool.expected
    assert footprint.fits is True
    assert footprint.starts is False
    assert footprint.obstacle is not None
    assert footprint.obstacle.certainty == "possible"


def test_the_longest_request_that_starts_does_and_a_block_more_does_not() -> None:
    model = read_model(LLAMA_8B)
    flags: dict[str, Any] = {"gpu_memory_utilization": 0.35}

    longest = of_vllm(model, **flags).longest_start_tokens

    assert longest is not None
    assert longest % 16 == 0
    assert of_vllm(model, max_model_len=longest, **flags).starts is True
    assert of_vllm(model, max_model_len=longest + 1, **flags).starts is False


def test_a_given_pool_must_lie_on_the_gpu_whole() -> None:
    model = read_model(LLAMA_8B)

    fits = of_vllm(model, kv_cache_memory_bytes=40 * GIB, max_model_len=32768)
    too_much = of_vllm(model, kv_cache_memory_bytes=70 * GIB, max_model_len=32768)
    too_little = of_vllm(model, kv_cache_memory_bytes=GIB, max_model_len=32768)

    assert (fits.fits, fits.starts) == (True, True)
    assert (too_much.fits, too_much.starts) == (False, False)
    assert (too_little.fits, too_little.starts) == (True, False)
    # 511 blocks of 16 tokens beside the null block
    assert too_little.longest_start_tokens == 511 * 16


@pytest.mark.parametrize(
    ("name", "value"),
    # 100 GiB, either way: a block of 16 tokens takes 2 MiB
    [("kv_cache_memory_bytes", 100 * GIB), ("num_gpu_blocks_override", 51_200)],
)
def test_a_given_pool_larger_than_the_card_is_what_is_wrong(name: str, value: int) -> None:
    flags: dict[str, Any] = {name: value}

    footprint = of_vllm(read_model(LLAMA_8B), find_gpu("A100-80"), **flags)

    assert (footprint.fits, footprint.starts, footprint.longest_start_tokens) == (False, False, None)
    assert footprint.obstacle is not None
    assert (footprint.obstacle.of, footprint.obstacle.certainty) == ("card", "certain")
    assert f"--{name.replace('_', '-')} asks for a KV cache of 100.00 GiB" in footprint.obstacle.text
    assert "lower --max-model-len" not in footprint.obstacle.text


def test_where_the_weights_alone_exceed_the_card_no_pool_is_to_blame() -> None:
    footprint = of_vllm(model_of(LLAMA_70B), kv_cache_memory_bytes=GIB)

    assert (footprint.fits, footprint.starts, footprint.longest_start_tokens) == (False, False, None)
    assert footprint.obstacle is not None
    assert "more than the GPU has without any KV cache" in footprint.obstacle.text


def test_a_pool_that_only_the_bounds_leave_no_room_for_may_not_fit() -> None:
    footprint = of_vllm(read_model(LLAMA_8B), kv_cache_memory_bytes=60 * GIB, max_model_len=32768)

    assert footprint.headroom_bytes is not None
    assert footprint.headroom_bytes > 0
    assert footprint.obstacle is not None
    assert footprint.obstacle.certainty == "possible"


def test_where_nothing_is_left_for_the_pool_the_total_is_the_plain_sum() -> None:
    """No pool makes up for what a part takes more, so the bounds of the sum are sums of bounds."""
    rank = of_vllm(model_of(LLAMA_70B)).fullest

    parts = rank.components.values()
    assert rank.components["kv_cache"].high == 0
    for bound in ("low", "expected", "high"):
        assert getattr(rank.total, bound) == sum(getattr(part, bound) for part in parts)
    assert rank.total.low < rank.total.expected < rank.total.high


def test_more_than_is_free_beside_the_context_cannot_be_asked_for() -> None:
    """vLLM 0.32, v1/worker/utils.py request_memory."""
    footprint = of_vllm(read_model(LLAMA_8B), gpu_memory_utilization=1.0)

    assert footprint.starts is False
    assert footprint.longest_start_tokens == 0
    assert footprint.obstacle is not None
    assert footprint.obstacle.certainty == "certain"
    assert "are free beside the CUDA context" in footprint.obstacle.text


def test_a_context_left_to_vllm_is_what_the_pool_holds() -> None:
    """--max-model-len -1 (vLLM 0.32, v1/core/kv_cache_utils.py _auto_fit_max_model_len)."""
    model = read_model(LLAMA_8B)

    small = of_vllm(model, gpu_memory_utilization=0.3, max_model_len=-1)
    large = of_vllm(model, max_model_len=-1)

    pool = small.kv_cache.num_blocks
    assert pool is not None
    assert small.kv_cache.max_model_len_tokens == (pool.expected - 1) * 16
    assert small.fits is True
    assert large.kv_cache.max_model_len_tokens == 131072


# --- The context of models with scaled positions


def context(config: dict[str, Any], version: str | None = None, **flags: Any) -> int:
    footprint = of_vllm(model_of({**LLAMA_70B, **config}), None, version, **flags)
    return footprint.kv_cache.max_model_len_tokens


def test_linear_scaling_multiplies_the_context() -> None:
    scaled = {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}

    assert context(scaled) == 16384


def test_llama_3_scaling_is_in_its_context_already() -> None:
    scaled = {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    }

    assert context(scaled) == 131072


def test_yarns_factor_counted_before_0_32() -> None:
    """vLLM PR 56446: since then max_position_embeddings is taken as it is."""
    yarn = {
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    }

    assert context(yarn, "0.19.0") == 131072
    assert context(yarn, "0.32.0") == context(yarn) == 32768


def test_longrope_serves_its_original_context_unless_more_is_asked_for() -> None:
    """vLLM PR 27431, in 0.11.1: Phi-3.5-mini serves 4096 tokens by default, 131,072 at most."""
    longrope = {
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
    }

    assert context(longrope, "0.32.0") == 4096
    assert context(longrope, "0.32.0", max_model_len=131072) == 131072
    assert context(longrope, "0.10.0") == 131072


def test_overrides_raise_the_context() -> None:
    config = {**LLAMA_70B, "max_position_embeddings": 8192}
    model = Model(architecture_of_config(config, "config.json"), config=config)
    flags = {"hf_overrides": '{"max_position_embeddings": 65536}', "max_model_len": "65536"}

    footprint = predict("vllm", model, flags)

    assert footprint.kv_cache.max_model_len_tokens == 65536
    assert footprint.model_source == "config.json with overrides"


def test_above_the_models_context_the_error_names_both_ways_out() -> None:
    with pytest.raises(FootprintError) as refused:
        of_vllm(model_of(LLAMA_70B), max_model_len=1 << 20)

    assert "--hf-overrides" in str(refused.value)
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in str(refused.value)


# --- Host memory, adapters, ranks


def test_old_versions_set_host_memory_aside_for_swapping() -> None:
    """GiB for each GPU, 4 unless --swap-space says otherwise; without effect since 0.8."""
    model = read_model(LLAMA_8B)

    old, given = of_vllm(model, version="0.7.3"), of_vllm(model, version="0.7.3", swap_space=16)
    new = of_vllm(model, version="0.12.0", swap_space=16)

    assert old.fullest.host["kv_cache"].expected == 4 * GIB
    assert given.fullest.host["kv_cache"].expected == 16 * GIB
    assert "kv_cache" not in new.fullest.host
    assert any("--swap-space is without effect" in text for text in new.assumptions)


def test_kv_offloading_is_shared_out_among_the_gpus() -> None:
    """vLLM 0.32, config/cache.py: GiB of all tensor-parallel ranks together."""
    footprint = of_vllm(read_model(LLAMA_8B), kv_offloading_size=32, tensor_parallel_size=2)

    assert footprint.fullest.host["kv_cache"].expected == 16 * GIB


def test_adapters_in_host_memory_are_whole_on_each_gpu() -> None:
    model = read_model(LLAMA_8B)

    footprint = of_vllm(model, max_loras=2, max_lora_rank=16, max_cpu_loras=8, tensor_parallel_size=2)

    # rank 16 of a layer: q and o 8192, k and v 5120 each, three matrices of 4096 and 14336
    adapter = 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * (4096 + 14336)) * 2
    assert footprint.fullest.host["lora"].high == 8 * adapter


def test_full_sharding_divides_the_other_half_of_adapters_too() -> None:
    model = read_model(LLAMA_8B)
    flags: dict[str, Any] = {"max_loras": 4, "max_lora_rank": 64, "tensor_parallel_size": 4}

    half = of_vllm(model, **flags).fullest.components["lora"]
    whole = of_vllm(model, fully_sharded_loras=True, **flags).fullest.components["lora"]

    assert whole.expected < half.expected


def test_layers_offloaded_by_groups_leave_a_buffer_of_one() -> None:
    """vLLM 0.32, config/offload.py: of groups of 8 layers 2 are offloaded, and one is fetched ahead."""
    model = read_model(LLAMA_8B)
    layer = 2 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)

    whole = of_vllm(model).fullest
    footprint = of_vllm(model, offload_group_size=8, offload_num_in_group=2).fullest

    left = whole.components["weights"].expected - footprint.components["weights"].expected
    assert left == pytest.approx(7 * layer, rel=1e-6)
    assert footprint.host["weights"].expected == pytest.approx(8 * layer, rel=1e-6)


MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
    "num_experts_per_tok": 2, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("whole_experts", [False, True])
def test_data_parallel_ranks_share_experts_and_nothing_else(whole_experts: bool) -> None:
    """Experts are on tensor × data parallel ranks, sliced or whole (vLLM 0.32, fused_moe/config.py)."""
    model = model_of(MIXTRAL)

    alone = of_vllm(model).fullest.components["weights"].expected
    shared = of_vllm(model, data_parallel_size=2, enable_expert_parallel=whole_experts)

    experts = 32 * 8 * 3 * 4096 * 14336 * 2
    assert alone - shared.fullest.components["weights"].expected == experts // 2
    assert shared.data_parallel == 2
    assert shared.kv_cache.bytes_per_token == 131072
    assert any("one of 2 data-parallel ranks; 2 GPUs" in text for text in shared.assumptions)


def test_the_ceiling_of_quantized_experts_counts_them_as_they_are_stored() -> None:
    """Two of eight experts of 4.156 bits (AWQ, groups of 128), attention likewise, the head of 16 bits."""
    footprint = of_vllm(model_of(MIXTRAL), quantization="awq")

    linear = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 2 * 3 * 4096 * 14336) * (4 + 20 / 128) / 8
    read = linear + 32000 * 4096 * 2
    assert footprint.decode_ceiling is not None
    assert footprint.decode_ceiling(1, 1) == pytest.approx(3.35e12 / read, rel=0.005)


# --- Images


QWEN25_VL = {
    "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 128000, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}  # fmt: skip


def test_outputs_of_an_image_encoder_are_kept_beside_the_cache() -> None:
    """max(max_num_batched_tokens, tokens of an item) × hidden × 2 (vLLM 0.32, encoder_cache_manager.py)."""
    cached = of_vllm(model_of(QWEN25_VL), max_num_batched_tokens=8192).fullest.components["encoder_cache"]

    assert cached.low == 0
    assert cached.expected == 8192 * 3584 * 2
    assert cached.high == 16384 * 3584 * 2  # Qwen2-VL's largest image


def test_the_pool_is_smaller_by_what_images_need() -> None:
    model = model_of(QWEN25_VL)

    seeing = of_vllm(model).fullest.components
    blind = of_vllm(model, language_model_only=True).fullest.components

    assert "encoder_cache" not in blind
    assert blind["kv_cache"].expected > seeing["kv_cache"].expected
    assert blind["weights"].expected < seeing["weights"].expected


def test_encoding_images_is_bounded_and_said_not_to_be_measured() -> None:
    footprint = of_vllm(model_of(QWEN25_VL), max_num_batched_tokens=16384, max_num_seqs=16)

    # 4 patches a token, 2 hidden states of 1280 and three widths of 3420, of 2 bytes
    work = 16384 * 4 * (2 * 1280 + 3 * 3420) * 2
    assert footprint.fullest.components["activations"].high >= 2 * work
    assert any("no measurement confirms" in text for text in footprint.assumptions)


# --- How it came about


def test_every_number_can_be_followed_to_its_source() -> None:
    footprint = of_vllm(model_of(MIXTRAL), max_model_len=8192, max_loras=2)

    assert footprint.explain is not None
    steps = footprint.explain()

    topics = {step.topic.partition(":")[0] for step in steps}
    assert topics >= {
        "weights",
        "activations",
        "lora",
        "cuda_graphs",
        "runtime",
        "layout",
        "budget",
        "fit",
        "ceiling",
    }
    assert all(step.numbers and step.source for step in steps)


def test_the_explained_budget_adds_up_to_the_pool() -> None:
    footprint = of_vllm(read_model(LLAMA_8B), version="0.30.0")

    assert footprint.explain is not None
    [pool] = [step for step in footprint.explain() if step.topic == "budget: pool"]

    left, _, result = pool.numbers.partition(" = ")
    sizes = {"GiB": 1024.0, "MiB": 1.0}
    terms = [float(term.split()[0]) * sizes[term.split()[1]] for term in left.split(" − ")]
    assert terms[0] - sum(terms[1:]) == pytest.approx(float(result.split()[0]) * 1024, abs=32)
    parts = footprint.fullest.components
    assert f"{parts['weights'].expected / GIB:.2f} GiB weights" in left


def test_the_explained_layout_shows_groups_padding_and_the_null_block() -> None:
    """Qwen3-Next: blocks are aligned to the state of its linear layers."""
    config = {
        "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 8,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
        "num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4, "max_position_embeddings": 262144, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    footprint = of_vllm(model_of(config), max_model_len=8192)

    assert footprint.explain is not None
    text = "\n".join(f"{step.topic} {step.formula} {step.numbers}" for step in footprint.explain())

    assert "group 1 of" in text
    assert "padded by" in text
    assert "null block" in text
    assert f"{footprint.kv_cache.block_bytes:,} B" in text


# --- What is no decoder, and what is said of many GPUs


def test_a_model_without_a_context_length_is_served_with_2048_tokens() -> None:
    """vLLM 0.33, config/model.py _get_and_verify_max_len."""
    unstated = {name: value for name, value in LLAMA_70B.items() if name != "max_position_embeddings"}

    footprint = of_vllm(model_of(unstated), None)

    assert footprint.kv_cache.max_model_len_tokens == 2048
    assert any("states no context length: vLLM serves 2,048" in text for text in footprint.assumptions)
    assert of_vllm(model_of(unstated), None, max_model_len=32768).kv_cache.max_model_len_tokens == 32768


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
         "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512},
        {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"],
         "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
         "vocab_size": 250002, "max_position_embeddings": 8194},
        {**LLAMA_70B, "is_causal": False},
    ],
    ids=["bert", "xlm-roberta", "bidirectional"],
)  # fmt: skip
def test_an_encoder_is_refused_and_not_counted_as_a_decoder(config: dict[str, Any]) -> None:
    with pytest.raises(FootprintError, match="is an encoder, which keeps no K/V cache"):
        model_of(config)


def test_a_head_of_another_task_is_said_to_be_counted_as_an_output_head() -> None:
    model = model_of({**LLAMA_70B, "architectures": ["LlamaForSequenceClassification"]})

    assert any("has a small head of its own" in text for text in of_vllm(model, None).assumptions)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"tensor_parallel_size": 8}, "All figures are of one GPU; 8 GPUs in all."),
        (
            {"tensor_parallel_size": 4, "pipeline_parallel_size": 2},
            "All figures are of one GPU of the fullest of 2 stages; 8 GPUs in all.",
        ),
        (
            {"tensor_parallel_size": 4, "data_parallel_size": 2},
            "All figures are of one of 2 data-parallel ranks; 8 GPUs in all.",
        ),
    ],
)
def test_of_how_many_gpus_the_figures_are_one_is_said(flags: dict[str, int], said: str) -> None:
    footprint = of_vllm(model_of(LLAMA_70B), None, **flags)  # type: ignore[arg-type]

    document = as_json(footprint)
    assert said in footprint.assumptions
    assert document["gpus"] == 8
    assert document["pipeline_parallel"] == flags.get("pipeline_parallel_size", 1)


def test_n_grams_have_no_keys_and_values_to_leave_out() -> None:
    config = '{"method": "ngram", "num_speculative_tokens": 4}'

    said = predict("vllm", read_model(LLAMA_8B), {"speculative_config": config}).assumptions

    assert not any("drafter" in text for text in said)


def test_a_server_on_the_cpu_has_weights_and_cache_in_main_memory_and_nothing_on_a_gpu() -> None:
    """vLLM 0.32 on a CPU: blocks of 128 tokens, as its platform sets them; 131072 B/token."""
    footprint = of_vllm(read_model(LLAMA_8B), device="cpu", kv_cache_memory_bytes=4 * GIB, max_model_len=4096)

    rank = footprint.fullest
    assert rank.components == {}
    assert rank.total.high == 0
    assert set(rank.host) == {"weights", "kv_cache"}
    assert abs(rank.host["weights"].expected - 14.99 * GIB) < 0.01 * 14.99 * GIB
    assert rank.host["kv_cache"].expected == 4 * GIB
    assert footprint.kv_cache.num_blocks is not None
    assert footprint.kv_cache.num_blocks.expected == 4 * GIB // (128 * 131072)
    assert (footprint.fits, footprint.headroom_bytes, footprint.gpu_count) == (None, None, 0)
    assert decode_ceilings(footprint) == []
    assert "no GPU memory is predicted" in footprint.assumptions[0]
    assert "H100 SXM is left out." in footprint.assumptions
    assert footprint.max_running_requests == 128  # vLLM 0.32, get_batch_defaults on a CPU
    assert not any("batch defaults" in assumption for assumption in footprint.assumptions)
