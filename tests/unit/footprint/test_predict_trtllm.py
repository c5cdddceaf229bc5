"""TensorRT-LLM's memory by component: a fraction of what is free after weights and activations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.footprint.gpus import Gpu, described_gpu, find_gpu
from brimline.footprint.hf_config import architecture_of_config
from brimline.footprint.predict import Model, as_json, predict
from brimline.readings import Footprint

GIB = 1 << 30
H100 = find_gpu("H100")
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip


def of(gpu: Gpu | None = H100, **flags: Any) -> Footprint:
    model = Model(architecture_of_config(LLAMA_8B, "config.json"))
    return predict("trtllm", model, {name: str(value) for name, value in flags.items()}, gpu=gpu)


def test_the_pool_is_a_fraction_of_what_is_free_and_not_of_the_card() -> None:
    footprint = of(kv_cache_free_gpu_memory_fraction=0.5)

    parts = footprint.fullest.components
    taken = sum(parts[name].expected for name in ("weights", "activations", "runtime"))
    free = H100.visible_bytes.expected - taken
    assert parts["kv_cache"].expected == int(free * 0.5) // (32 * 131072) * (32 * 131072)


def test_the_default_fraction_is_nine_tenths_within_what_the_documents_say() -> None:
    """0.9 in the LLM API, 0.85 in the older C++ documentation."""
    unsaid, stated = (
        footprint.fullest.components["kv_cache"]
        for footprint in (of(), of(kv_cache_free_gpu_memory_fraction=0.9))
    )

    assert unsaid.expected == stated.expected
    assert unsaid.low < stated.low
    assert unsaid.high == stated.high


def test_capacity_is_whole_blocks_of_32_tokens() -> None:
    cache = of(max_seq_len=8192).kv_cache

    assert cache.num_blocks is not None
    assert (cache.block_tokens, cache.block_bytes) == (32, 32 * 131072)
    assert cache.capacity_tokens == cache.num_blocks.expected * 32
    assert cache.max_concurrency_requests == cache.num_blocks.expected / 256
    assert cache.full_request_bytes == 8192 * 131072


def test_the_options_file_speaks_where_no_flag_does() -> None:
    by_file = of(kv_cache_config='{"max_tokens": 1000, "dtype": "fp8"}')
    by_flag = of(kv_cache_config='{"dtype": "fp8"}', kv_cache_dtype="auto")

    assert by_file.kv_cache.capacity_tokens == 32 * 32
    assert by_file.kv_cache.bytes_per_token == 65536
    assert by_flag.kv_cache.bytes_per_token == 131072


def test_without_a_gpu_the_pool_is_not_known_unless_it_is_stated() -> None:
    assert of(None).kv_cache.num_blocks is None
    assert of(None).fits is None
    assert of(None, max_tokens=6400).kv_cache.capacity_tokens == 6400


def test_heads_and_layers_are_split() -> None:
    footprint = of(tp_size=2, pp_size=2)

    assert len(footprint.ranks) == 2
    assert footprint.tensor_parallel == 2
    assert footprint.kv_cache.bytes_per_token == 131072 / 4


def test_it_fits_where_the_smallest_pool_holds_one_request() -> None:
    assert of(max_seq_len=32768).fits is True
    assert of(described_gpu(24 * GIB, 1e12), max_seq_len=131072).fits is False
    assert of(max_seq_len=32768, kv_cache_free_gpu_memory_fraction=0.01).fits is False


def test_what_a_part_takes_more_the_pool_gives_up_most_of() -> None:
    rank = of(kv_cache_free_gpu_memory_fraction=0.9).fullest

    assert rank.total.high < sum(part.high for part in rank.components.values())
    assert rank.total.low > sum(part.low for part in rank.components.values())


def test_the_decode_ceiling_is_bandwidth_over_what_a_step_reads() -> None:
    """Llama-3.1-8B in bf16 on H100 at 3.35 TB/s: 221 tokens/s at 1k of context."""
    footprint = of()

    assert footprint.decode_ceiling is not None
    assert round(footprint.decode_ceiling(1, 1024)) == 221


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ({"tp_size": 3}, "3"),
        ({"kv_cache_dtype": "q8_0"}, "'q8_0'"),
        ({"kv_cache_free_gpu_memory_fraction": 1.5}, "--kv_cache_free_gpu_memory_fraction 1.5"),
        ({"max_seq_len": "long"}, "--max-seq-len"),
        ({"tokens_per_block": 0}, "--tokens-per-block"),
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
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([None, 1000]),
)
def test_bounds_stay_in_order_for_any_card(
    gib: int, ranks: int, fraction: float, max_tokens: int | None
) -> None:
    flags: dict[str, Any] = {"tp_size": ranks, "kv_cache_free_gpu_memory_fraction": fraction}
    if max_tokens is not None:
        flags["max_tokens"] = max_tokens

    document = as_json(of(described_gpu(gib * GIB, 1e12), **flags))

    for part in [*document["per_gpu"]["components"].values(), document["per_gpu"]["total"]]:
        assert 0 <= part["low"] <= part["expected"] <= part["high"]
        assert part["source"]


def test_a_context_above_the_models_is_lowered_to_it_aloud() -> None:
    """_torch/pyexecutor/model_engine.py _init_max_seq_len: "Setting max_seq_len to …" in a warning."""
    footprint = of(max_seq_len=200_000)

    assert footprint.kv_cache.max_model_len_tokens == 131072
    assert any("--max_seq_len 200,000 is lowered to the 131,072 tokens" in t for t in footprint.assumptions)
