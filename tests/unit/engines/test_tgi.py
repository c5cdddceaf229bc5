"""TGI's page and its /info. The pages are written from the metric definitions, not saved from a server."""

from __future__ import annotations

from typing import Any

from brimline.engines import Evidence, engines_on
from brimline.engines.tgi import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading

# Written by hand from the declarations of TGI 3.3.7.
PAGE = """\
# TYPE tgi_queue_size gauge
tgi_queue_size 7

# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 3

tgi_batch_current_max_tokens 9000
tgi_batch_max_total_tokens 64000
tgi_request_count 12
# TYPE tgi_request_input_length histogram
tgi_request_input_length_bucket{le="100"} 9
tgi_request_input_length_bucket{le="+Inf"} 10
tgi_request_input_length_sum 660
tgi_request_input_length_count 10
tgi_request_generated_tokens_bucket{le="+Inf"} 10
tgi_request_generated_tokens_sum 3400
tgi_request_generated_tokens_count 10
tgi_request_duration_bucket{le="+Inf"} 10
tgi_request_duration_sum 54.5
tgi_request_duration_count 10
tgi_request_mean_time_per_token_duration_sum 0.8
tgi_request_mean_time_per_token_duration_count 10
"""


def reading_of(page: str, documents: dict[str, Any] | None = None) -> EngineReading:
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted), documents or {}))


def test_each_quantity_is_what_the_page_states() -> None:
    [rank] = reading_of(PAGE).ranks

    assert (rank.requests_running, rank.requests_waiting) == (3, 7)
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (660, 3400)
    assert rank.kv_cache_capacity_tokens == 64000
    assert rank.request_e2e_latency_seconds is not None
    assert (rank.request_e2e_latency_seconds.sum, rank.request_e2e_latency_seconds.count) == (54.5, 10)
    assert rank.request_prompt_tokens is not None
    assert rank.request_prompt_tokens.buckets == ((100, 9), (float("inf"), 10))


def test_reserved_tokens_are_not_used_ones() -> None:
    [rank] = reading_of(PAGE).ranks

    assert rank.kv_cache_usage_ratio is None
    assert rank.kv_cache_used_tokens is None


def test_a_requests_mean_time_per_token_is_no_inter_token_latency() -> None:
    [rank] = reading_of(PAGE).ranks

    assert rank.inter_token_latency_seconds is None


def test_info_names_the_model_its_version_and_its_limits() -> None:
    documents = {
        "/info": {
            "model_id": "org/model",
            "version": "3.3.7",
            "max_total_tokens": 8192,
            "max_input_tokens": 8000,
            "max_concurrent_requests": 128,
        }
    }

    reading = reading_of(PAGE, documents)

    assert reading.engine_version == "3.3.7"
    assert reading.served_root == "org/model"
    assert [rank.model for rank in reading.ranks] == ["org/model"]
    assert reading.ranks[0].max_model_len_tokens == 8192
    assert reading.settings == {
        "max_concurrent_requests": "128",
        "max_input_tokens": "8000",
        "max_total_tokens": "8192",
        "model_id": "org/model",
    }


def test_without_info_the_model_is_not_named() -> None:
    [rank] = reading_of(PAGE, {"/info": ["no", "object"]}).ranks

    assert rank.model == ""
    assert rank.max_model_len_tokens is None


def test_beside_vllms_names_those_of_tgi_are_an_adapters() -> None:
    assert engines_on(PAGE.encode()) == ["tgi"]
    assert engines_on((PAGE + 'vllm:num_requests_running{model_name="m"} 1\n').encode()) == ["vllm"]
