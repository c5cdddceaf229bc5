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
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5"),
        ({"max_loras": 1, "max_lora_rank": 7}, "max_lora_rank is 7"),
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
