"""SGLang's memory by component: figures of start-up logs, and arithmetic done by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.calibration import Calibration
from brimline.footprint.gpus import Gpu, described_gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, as_json, predict
from brimline.footprint.runtime import sglang_batch_defaults, sglang_prefill_graphs
from brimline.readings import Footprint

GIB = 1 << 30
H100, H200 = find_gpu("H100"), find_gpu("H200")

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
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
QWEN_235B_FP8 = {
    "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288,
    "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "vocab_size": 151936, "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3", "activation_scheme": "dynamic",
    },
}  # fmt: skip


def of(
    config: dict[str, Any] = LLAMA_8B,
    gpu: Gpu | None = H100,
    version: str | None = None,
    calibration: Calibration | None = None,
    **flags: Any,
) -> Footprint:
    model = Model(architecture_of_config(config, "config.json"))
    settings = {name: str(value).lower() for name, value in flags.items()}
    return predict("sglang", model, settings, version=version, gpu=gpu, calibration=calibration)


def test_the_pool_of_a_published_run_is_met_within_half_a_percent_of_the_card() -> None:
    """Gemma 3 4B on H200: weights 8.13 GB, 834,615 tokens of K/V in 108.24 GB (SGLang PR 4826).

    The log's figures are GiB. --mem-fraction-static was 0.88 · 0.95 there, and windows kept all tokens.
    """
    footprint = of(GEMMA_3_4B, H200, mem_fraction_static=0.836, disable_hybrid_swa_memory=True)

    parts, cache = footprint.fullest.components, footprint.kv_cache
    card = H200.memory_bytes
    assert abs(parts["weights"].expected - 8.13 * GIB) < 0.005 * card
    assert abs(parts["kv_cache"].expected - 108.24 * GIB) < 0.005 * card
    assert parts["kv_cache"].low <= 108.24 * GIB <= parts["kv_cache"].high
    assert cache.num_blocks is not None
    assert cache.num_blocks.low <= 834_615 <= cache.num_blocks.high
    assert cache.capacity_tokens == pytest.approx(834_615, rel=0.005)


def test_the_pool_of_a_mixture_of_experts_on_four_gpus_lies_within_its_bounds() -> None:
    """Qwen3-235B-A22B-FP8 on 4 H100 at 0.93: 367,404 tokens in 16.46 GB of each (vLLM issue 21348)."""
    footprint = of(QWEN_235B_FP8, tp_size=4, mem_fraction_static=0.93)

    pool = footprint.fullest.components["kv_cache"]
    assert footprint.kv_cache.bytes_per_token == 94 * 2 * 128 * 2
    assert pool.low <= 16.46 * GIB <= pool.high
    assert abs(pool.expected - 16.46 * GIB) < 0.01 * H100.memory_bytes


def test_the_pool_is_the_static_share_of_what_is_free_less_the_weights() -> None:
    footprint = of(mem_fraction_static=0.8)

    parts = footprint.fullest.components
    free = H100.visible_bytes.expected - round(0.5 * GIB)
    assert parts["kv_cache"].expected == pytest.approx(0.8 * free - parts["weights"].expected, abs=131072)
    assert footprint.kv_cache.capacity_tokens == parts["kv_cache"].expected // 131072


def test_the_static_share_has_the_engines_default() -> None:
    """H100: 512 + 1.5 · 8192 + 128 + 2 · 256 + 8 · 58 MiB are 13,904 of 81,559, which leaves 0.830."""
    assert sglang_batch_defaults(H100.memory_bytes, 1) == (8192, 256)
    assert sglang_prefill_graphs(8192) == 58

    by_default, stated = of(), of(mem_fraction_static=0.83)

    assert by_default.kv_cache.capacity_tokens == stated.kv_cache.capacity_tokens


@pytest.mark.parametrize(
    ("gib", "ranks", "wanted"),
    [(16, 1, (2048, 8)), (24, 1, (4096, 48)), (24, 4, (4096, 160)), (48, 1, (4096, 32)),
     (80, 1, (8192, 256)), (80, 8, (8192, 512)), (141, 1, (8192, 256)), (180, 1, (16384, 512))],
)  # fmt: skip
def test_batches_follow_the_size_of_the_gpu(gib: int, ranks: int, wanted: tuple[int, int]) -> None:
    """SGLang 0.5.23, arg_groups/memory_hook.py, by its comments on each class of GPU."""
    assert sglang_batch_defaults(gib * GIB, ranks) == wanted


def test_larger_graphs_and_chunks_leave_less_for_the_pool() -> None:
    pools = [
        footprint.fullest.components["kv_cache"].expected
        for footprint in (of(), of(cuda_graph_max_bs=1024), of(chunked_prefill_size=16384))
    ]

    assert pools[0] > pools[1]
    assert pools[0] > pools[2]


def test_max_total_tokens_is_the_pool() -> None:
    footprint = of(max_total_tokens=100_000, page_size=64)

    cache = footprint.kv_cache
    assert cache.capacity_tokens == 100_000 // 64 * 64
    assert (cache.block_tokens, cache.block_bytes) == (64, 64 * 131072)
    assert cache.num_blocks is not None
    assert cache.num_blocks.expected == 1562
    assert footprint.fullest.components["kv_cache"].expected == 1562 * 64 * 131072


def test_without_a_gpu_the_pool_is_not_known_unless_it_is_stated() -> None:
    unknown, stated = of(gpu=None), of(gpu=None, max_total_tokens=1000)

    assert "kv_cache" not in unknown.fullest.components
    assert unknown.kv_cache.capacity_tokens is None
    assert unknown.fits is None
    assert stated.kv_cache.capacity_tokens == 1000
    assert any("No GPU is named" in line for line in unknown.assumptions)


def test_heads_and_layers_are_split_and_the_last_stage_takes_the_remainder() -> None:
    model = {**LLAMA_8B, "num_hidden_layers": 33}

    footprint = of(model, tp_size=2, pp_size=2)

    assert len(footprint.ranks) == 2
    assert footprint.tensor_parallel == 2
    assert footprint.kv_cache.bytes_per_token == 17 * 4 * 2 * 128 * 2
    first, last = (rank.components["weights"].expected for rank in footprint.ranks)
    assert last > first


def test_attention_of_replicas_is_split_among_fewer_gpus() -> None:
    """--dp-size 4 of --tp-size 8 with DP attention: two GPUs share one attention."""
    split, replicated = of(tp_size=8), of(tp_size=8, dp_size=4, enable_dp_attention=True)

    attention = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024) * 2
    assert replicated.kv_cache.bytes_per_token == 4 * split.kv_cache.bytes_per_token
    more = [
        one.fullest.components["weights"].expected - other.fullest.components["weights"].expected
        for one, other in [(replicated, split)]
    ]
    assert more[0] == pytest.approx(attention / 2 - attention / 8, rel=0.001)
    assert (replicated.data_parallel, replicated.tensor_parallel, replicated.gpu_count) == (4, 8, 8)


def test_windows_hold_what_they_see_of_a_request() -> None:
    """29 of the 34 layers of Gemma 3 4B see 1024 tokens; a page more is kept."""
    cache = of(GEMMA_3_4B, H200).kv_cache

    layer = 4 * 2 * 256 * 2
    assert cache.bytes_per_token == 5 * layer
    assert cache.full_request_bytes == 131072 * 5 * layer + 29 * layer * 1025
    assert cache.stage_block_bytes == ()


def test_activations_are_between_a_prefill_and_the_slack() -> None:
    rank = of(mem_fraction_static=0.8).fullest

    working, slack = rank.components["activations"], 0.2 * (H100.visible_bytes.high - round(0.15 * GIB))
    assert working.low > 0
    assert working.expected < 2 * GIB
    assert 0.9 * slack < working.high <= slack


def test_the_table_of_requests_is_on_the_gpu() -> None:
    """2048 requests of 131,072 positions and four more, 4 bytes each: 1 GiB."""
    parts = of(mem_fraction_static=0.8).fullest.components
    few = of(mem_fraction_static=0.8, max_running_requests=16).fullest.components

    assert parts["runtime"].expected - few["runtime"].expected == (2048 - 16) * 131_076 * 4


def test_it_fits_where_the_smallest_pool_holds_one_request_and_the_slack_what_is_expected() -> None:
    assert of(context_length=32768).fits is True
    assert of(gpu=described_gpu(24 * GIB, 1e12), context_length=131072).fits is False
    assert of(context_length=32768, mem_fraction_static=0.999).fits is False


def test_a_static_part_smaller_than_the_weights_starts_no_server() -> None:
    """0.5.23, pool_configurator.py: 'Not enough memory. Please try to increase --mem-fraction-static.'"""
    footprint = of(mem_fraction_static=0.1)  # 7.9 GiB, and 15 of weights

    assert (footprint.fits, footprint.starts) == (False, False)
    assert footprint.obstacle is not None
    assert footprint.obstacle.certainty == "certain"
    assert "raise --mem-fraction-static" in footprint.obstacle.text


def test_a_pool_below_the_context_starts_and_does_not_fit() -> None:
    """0.5.23, tp_worker.py: max_req_len is at most the pool's tokens."""
    footprint = of(mem_fraction_static=0.3)  # 23.6 GiB less 15 of weights: 8.6, and a request takes 16

    assert (footprint.fits, footprint.starts) == (False, True)
    assert footprint.obstacle is not None
    assert footprint.obstacle.of == "engine"
    assert "of the 131,072 tokens of one request" in footprint.obstacle.text


def test_the_total_is_known_better_than_its_parts() -> None:
    rank = of(mem_fraction_static=0.8).fullest

    assert rank.total.high < sum(part.high for part in rank.components.values())
    assert rank.total.high <= H100.visible_bytes.high
    assert rank.total.expected == sum(part.expected for part in rank.components.values())


def test_the_decode_ceiling_is_bandwidth_over_what_a_step_reads() -> None:
    """Llama-3.1-8B in bf16 on H100 at 3.35 TB/s: 221 tokens/s at 1k of context."""
    footprint = of()

    assert footprint.decode_ceiling is not None
    assert round(footprint.decode_ceiling(1, 1024)) == 221


def test_tables_of_rotary_positions_are_kept_in_32_bits() -> None:
    """layers/rotary_embedding/base.py: 131,072 positions of 128 elements, no more for three coordinates."""
    in_sections = {**LLAMA_8B, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    none = {**LLAMA_8B, "rope_scaling": {"type": "strange"}}
    plain, sections, unknown = (
        of(config).fullest.components["weights"].expected for config in (LLAMA_8B, in_sections, none)
    )

    assert plain - unknown == 131072 * 128 * 4
    assert sections == plain


def test_a_calibration_replaces_the_table() -> None:
    measured = Calibration(engine="sglang", version="0.5.23", gpu=H100.name, context_bytes=GIB)

    taken = of(version="0.5.23", calibration=measured, mem_fraction_static=0.8, max_running_requests=1)

    assert taken.fullest.components["runtime"].expected == pytest.approx(GIB, rel=0.001)


def test_a_calibration_gives_what_holds_for_the_server_and_says_what_does_not() -> None:
    """15.11 GiB is what SGLang said of the weights of Llama-3.1-8B: tests/measurements/other-engines.yaml."""
    weights = round(15.11 * GIB)
    measured = Calibration(
        engine="sglang",
        version="0.5.23",
        gpu=H100.name,
        parameters=8_030_261_248,
        settings=(("pp_size", "1"), ("tp_size", "1")),
        context_bytes=GIB,
        cuda_graphs_bytes=2 * GIB,
        weights_bytes=weights,
    )

    same = of(version="0.5.23", calibration=measured, mem_fraction_static=0.8)
    split = of(version="0.5.23", calibration=measured, mem_fraction_static=0.8, tp_size=2)
    other = of(QWEN_235B_FP8, version="0.5.23", calibration=measured, mem_fraction_static=0.8, tp_size=4)
    older = of(version="0.4.9", calibration=measured, mem_fraction_static=0.8)

    assert same.fullest.components["weights"].expected == weights
    assert same.fullest.components["cuda_graphs"].expected == 2 * GIB
    assert not any("calibration" in said for said in same.assumptions)
    assert split.fullest.components["weights"].expected < weights
    assert not split.calibrated
    for footprint, lost in ((split, "tp_size 1 (here 2)"), (other, "8,030,261,248 parameters")):
        [said] = [said for said in footprint.assumptions if "calibration" in said]
        assert lost in said
        assert "weights_bytes" in said
        assert "context_bytes" in said
        assert "cuda_graphs_bytes" in said
    assert older.fullest.components["weights"].expected < weights
    assert any("is not used here" in said for said in older.assumptions)


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({"tp_size": 3}, "--tp-size 3"),
        ({"pp_size": 40}, "--pp-size 40"),
        ({"context_length": 1 << 20}, "--context-length 1048576 is above the 131072 tokens"),
        ({"kv_cache_dtype": "fp3"}, "--kv-cache-dtype"),
        ({"mem_fraction_static": 1.5}, "--mem-fraction-static 1.5"),
        ({"page_size": "wide"}, "--page-size"),
        ({"tp_size": 4, "dp_size": 3, "enable_dp_attention": True}, "--dp-size 3 must divide --tp-size 4"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_flag(flags: dict[str, Any], rule: str) -> None:
    with pytest.raises(FootprintError) as error:
        of(**flags)

    assert rule in str(error.value)


@limits(max_examples=40, deadline=None)
@given(
    st.sampled_from([16, 24, 48, 80, 141, 192]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([None, 0.5, 0.9]),
    st.sampled_from([1024, 131072]),
)
def test_bounds_stay_in_order_for_any_card(gib: int, ranks: int, ratio: float | None, context: int) -> None:
    flags: dict[str, Any] = {"tp_size": ranks, "context_length": context}
    if ratio is not None:
        flags["mem_fraction_static"] = ratio

    document = as_json(of(gpu=described_gpu(gib * GIB, 1e12), **flags))

    for part in [*document["per_gpu"]["components"].values(), document["per_gpu"]["total"]]:
        assert 0 <= part["low"] <= part["expected"] <= part["high"]
        assert part["source"]


@limits(max_examples=30, deadline=None)
@given(st.integers(1, 131072), st.integers(1, 131072))
def test_a_longer_request_never_takes_less(first: int, second: int) -> None:
    shorter, longer = (
        of(GEMMA_3_4B, H200, context_length=length, page_size=16).kv_cache
        for length in (min(first, second), max(first, second))
    )

    assert shorter.full_request_bytes <= longer.full_request_bytes


def test_a_model_of_windows_alone_keeps_the_whole_context() -> None:
    """Mistral 7B v0.1 is not among SGLang's hybrids (0.5.23, configs/model_config.py is_hybrid_swa_model)."""
    mistral = {
        **LLAMA_8B, "model_type": "mistral", "vocab_size": 32000, "sliding_window": 4096,
        "max_position_embeddings": 32768,
    }  # fmt: skip

    cache = of(mistral).kv_cache

    assert cache.bytes_per_token == 2 * 8 * 128 * 2 * 32
    assert cache.full_request_bytes == 32768 * 131072


# --- Adapters


def test_slots_for_adapters_are_taken_from_the_pool() -> None:
    """0.5.23, lora/mem_pool.py: 8 slots × rank 16 × Σ (inputs + outputs) of each linear layer × 2 B.

    Of a layer of Llama 8B: q and o 8192 each, k and v 5120 each, three times 18,432: 81,920.
    """
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    flags: dict[str, Any] = {"mem_fraction_static": 0.8, "enable_lora": True, "max_lora_rank": 16}

    plain = of(mem_fraction_static=0.8).fullest.components
    adapted = of(lora_target_modules=" ".join(every), **flags).fullest.components
    stacked = of(lora_target_modules="qkv_proj o_proj gate_up_proj down_proj", **flags).fullest.components

    slots = 8 * 16 * 32 * 81_920 * 2
    assert adapted["lora"].is_exact
    assert adapted["lora"].expected == stacked["lora"].expected == slots
    assert plain["kv_cache"].expected - adapted["kv_cache"].expected == pytest.approx(slots, abs=131072)


def test_half_the_slots_and_twice_the_gpus_take_less() -> None:
    flags: dict[str, Any] = {"lora_target_modules": "o_proj", "enable_lora": True, "max_lora_rank": 24}

    few = of(max_loras_per_batch=4, **flags).fullest.components["lora"]
    split = of(max_loras_per_batch=4, tp_size=2, **flags).fullest.components["lora"]

    assert few.expected == 4 * 24 * 32 * (4096 + 4096) * 2
    assert split.expected == 4 * 24 * 32 * (2048 + 4096) * 2


def test_adapters_of_unknown_rank_are_said_not_to_be_counted() -> None:
    footprint = of(enable_lora=True)

    assert "lora" not in footprint.fullest.components
    assert any("give --max-lora-rank" in text for text in footprint.assumptions)
