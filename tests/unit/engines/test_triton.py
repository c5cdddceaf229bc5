"""Triton's page with an LLM backend. The pages are written from the backends' definitions, not saved."""

from __future__ import annotations

import pytest

from brimline.engines import Evidence, engines_on
from brimline.engines.triton import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading

CORE = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="ensemble",version="1"} 40
nv_inference_count{model="ensemble",version="1"} 40
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1000000
"""

# Written by hand from the metric table of tensorrtllm_backend's README.
TRTLLM = """\
nv_trt_llm_request_metrics{model="llm",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="llm",request_type="scheduled",version="1"} 5
nv_trt_llm_request_metrics{model="llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="llm",request_type="active",version="1"} 6
nv_trt_llm_runtime_memory_metrics{memory_type="gpu",model="llm",version="1"} 1610236
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="llm",version="1"} 0.25
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="llm",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="llm",version="1"} 500
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="free",model="llm",version="1"} 1500
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="llm",version="1"} 2000
nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="total_context_tokens",model="llm"} 7
"""

# Written by hand from the metric table of vllm_backend's README.
VLLM = """\
vllm:prompt_tokens_total{model="vllm_model",version="1"} 10
vllm:generation_tokens_total{model="vllm_model",version="1"} 16
vllm:time_to_first_token_seconds_count{model="vllm_model",version="1"} 1
vllm:time_to_first_token_seconds_sum{model="vllm_model",version="1"} 0.03
"""


def reading_of(page: str) -> EngineReading:
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted)))


@pytest.mark.parametrize(
    ("page", "engines"),
    [
        (CORE, []),
        (TRTLLM, ["triton"]),
        (CORE + TRTLLM, ["triton"]),
        (CORE + VLLM, ["triton"]),
        (VLLM, ["vllm"]),
    ],
    ids=["core alone", "TensorRT-LLM alone", "TensorRT-LLM", "vLLM", "vLLM alone"],
)
def test_triton_is_an_engine_where_an_llm_backend_speaks_on_its_page(page: str, engines: list[str]) -> None:
    assert engines_on(page.encode()) == engines


def test_each_quantity_of_tensorrt_llm_is_what_the_page_states() -> None:
    [rank] = reading_of(CORE + TRTLLM).ranks

    assert rank.model == "llm"
    assert (rank.requests_running, rank.requests_waiting) == (6, 2)
    assert rank.kv_cache_usage_ratio == 0.25
    assert (rank.kv_cache_blocks, rank.kv_cache_used_blocks, rank.kv_cache_block_tokens) == (2000, 500, 64)
    assert (rank.kv_cache_capacity_tokens, rank.kv_cache_used_tokens) == (128000, 32000)


def test_tokens_of_one_iteration_are_no_total() -> None:
    [rank] = reading_of(CORE + TRTLLM).ranks

    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (None, None)


def test_used_blocks_of_all_decide_where_the_fraction_says_otherwise() -> None:
    [rank] = reading_of(TRTLLM.replace("} 0.25", "} 0.4875")).ranks

    assert rank.kv_cache_usage_ratio == 0.25


def test_two_versions_of_a_model_count_together() -> None:
    [rank] = reading_of(
        TRTLLM + TRTLLM.replace('version="1"', 'version="2"').replace("} 500", "} 1500")
    ).ranks

    assert rank.requests_running == 12
    assert (rank.kv_cache_blocks, rank.kv_cache_used_blocks) == (4000, 2000)
    assert rank.kv_cache_usage_ratio == 0.5


def test_the_vllm_backends_numbers_are_tritons() -> None:
    reading = reading_of(CORE + VLLM)

    [rank] = reading.ranks
    assert reading.engine == "triton"
    assert rank.model == "vllm_model"
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (10, 16)
    assert rank.requests_running is None


def test_models_of_both_backends_stand_side_by_side() -> None:
    assert [rank.model for rank in reading_of(CORE + TRTLLM + VLLM).ranks] == ["llm", "vllm_model"]


def test_old_batching_shows_a_model_of_which_nothing_is_known() -> None:
    page = 'nv_trt_llm_v1_metrics{model="llm",v1_specific_metric="total_generation_tokens",version="1"} 20\n'

    [rank] = reading_of(page).ranks

    assert (rank.model, rank.generation_tokens_total) == ("llm", None)
