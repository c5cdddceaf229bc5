"""trtllm-serve's Prometheus page, written from the metric definitions, not saved from a server."""

from __future__ import annotations

from typing import Any

import pytest

from brimline.engines import ENGINES, METRICS_PATHS, Evidence, engines_on
from brimline.engines.trtllm import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading

LABELS = '{model_name="m",engine_type="trtllm"}'

# Written by hand from the declarations of tensorrt_llm/metrics/collector.py.
PAGE = f"""\
trtllm_num_requests_running{LABELS} 6.0
trtllm_num_requests_waiting{LABELS} 2.0
trtllm_kv_cache_utilization{LABELS} 0.25
trtllm_kv_cache_max_blocks{LABELS} 4000.0
trtllm_kv_cache_free_blocks{LABELS} 3000.0
trtllm_kv_cache_used_blocks{LABELS} 1000.0
trtllm_kv_cache_tokens_per_block{LABELS} 32.0
trtllm_num_paused_requests{LABELS} 1.0
trtllm_prompt_tokens_total{LABELS} 900.0
trtllm_prompt_cached_tokens_total{LABELS} 300.0
trtllm_generation_tokens_total{LABELS} 450.0
trtllm_spec_decode_num_draft_tokens_total{LABELS} 80.0
trtllm_spec_decode_num_accepted_tokens_total{LABELS} 60.0
trtllm_request_success_total{{model_name="m",engine_type="trtllm",finished_reason="stop"}} 9.0
trtllm_request_success_total{{model_name="m",engine_type="trtllm",finished_reason="length"}} 1.0
trtllm_e2e_request_latency_seconds_sum{LABELS} 12.5
trtllm_e2e_request_latency_seconds_count{LABELS} 10.0
trtllm_time_per_output_token_seconds_sum{LABELS} 0.2
trtllm_time_per_output_token_seconds_count{LABELS} 10.0
"""

# Written by hand from what 1.0 and 1.1 are reported to send.
BARE = """\
request_success_total{model_name="undefined",engine_type="undefined",finished_reason="stop"} 3.0
e2e_request_latency_seconds_sum{model_name="undefined",engine_type="undefined"} 4.5
e2e_request_latency_seconds_count{model_name="undefined",engine_type="undefined"} 3.0
time_to_first_token_seconds_sum{model_name="undefined",engine_type="undefined"} 0.75
time_to_first_token_seconds_count{model_name="undefined",engine_type="undefined"} 3.0
"""


def reading_of(page: str, documents: dict[str, Any] | None = None) -> EngineReading:
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted), documents or {}))


@pytest.mark.parametrize("prefix", ["trtllm_", "trtllm:"])
def test_each_quantity_is_what_the_page_states(prefix: str) -> None:
    page = PAGE.replace("trtllm_", prefix)

    [rank] = reading_of(page).ranks

    assert engines_on(page.encode()) == ["trtllm"]
    assert rank.model == "m"
    assert (rank.requests_running, rank.requests_waiting) == (6, 2)
    assert rank.kv_cache_usage_ratio == 0.25
    assert (rank.kv_cache_blocks, rank.kv_cache_used_blocks, rank.kv_cache_block_tokens) == (4000, 1000, 32)
    assert (rank.kv_cache_capacity_tokens, rank.kv_cache_used_tokens) == (128000, 32000)
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (900, 450)
    assert (rank.prefix_cache_queries_tokens_total, rank.prefix_cache_hits_tokens_total) == (900, 300)
    assert (rank.spec_decode_draft_tokens_total, rank.spec_decode_accepted_tokens_total) == (80, 60)
    assert rank.requests_finished_total == {"stop": 9, "length": 1}
    assert rank.request_e2e_latency_seconds is not None
    assert rank.request_e2e_latency_seconds.sum == 12.5


def test_paused_requests_are_no_count_of_preemptions_and_means_no_inter_token_latency() -> None:
    [rank] = reading_of(PAGE).ranks

    assert rank.preemptions_total is None
    assert rank.inter_token_latency_seconds is None


def test_without_iteration_statistics_nothing_is_known_of_the_load() -> None:
    [rank] = reading_of(f"trtllm_generation_tokens_total{LABELS} 450.0\n").ranks

    assert (rank.requests_running, rank.kv_cache_usage_ratio, rank.kv_cache_capacity_tokens) == (
        None,
        None,
        None,
    )


def test_the_first_names_had_no_prefix_and_no_true_labels() -> None:
    [rank] = reading_of(BARE).ranks

    assert engines_on(BARE.encode()) == ["trtllm"]
    assert rank.model == ""
    assert rank.requests_finished_total == {"stop": 3}
    assert rank.time_to_first_token_seconds is not None
    assert rank.time_to_first_token_seconds.sum == 0.75


def test_the_same_names_without_the_label_engine_type_may_be_anyones() -> None:
    assert engines_on(BARE.replace(',engine_type="undefined"', "").encode()) == []


def test_the_version_comes_from_its_own_endpoint() -> None:
    assert reading_of(PAGE, {"/version": {"version": "1.2.0"}}).engine_version == "1.2.0"
    assert reading_of(PAGE, {"/version": "1.2.0"}).engine_version is None


def test_no_queue_that_a_reader_empties_is_asked() -> None:
    asked = {endpoint.path for endpoint in ADAPTER.endpoints} | set(ADAPTER.metrics_paths)

    assert asked.isdisjoint({"/metrics", "/perf_metrics"})
    assert METRICS_PATHS[0] in ADAPTER.metrics_paths
    assert all(e.path not in ("/metrics", "/perf_metrics") for a in ENGINES.values() for e in a.endpoints)


def test_blocks_that_were_reused_stand_for_cached_tokens_where_those_are_not_counted() -> None:
    """With iteration statistics alone the tokens of requests are not there."""
    page = (
        f"trtllm_kv_cache_tokens_per_block{LABELS} 32\n"
        f"trtllm_kv_cache_reused_blocks_total{LABELS} 10\n"
        f"trtllm_kv_cache_missed_blocks_total{LABELS} 30\n"
    )

    [blocks] = reading_of(page).ranks
    [tokens] = reading_of(PAGE + page).ranks

    assert (blocks.prefix_cache_hits_tokens_total, blocks.prefix_cache_queries_tokens_total) == (320, 1280)
    assert (tokens.prefix_cache_hits_tokens_total, tokens.prefix_cache_queries_tokens_total) == (300, 900)


def test_info_rows_give_the_settings_that_their_labels_name() -> None:
    page = PAGE + (
        'trtllm_model_config_info{model_name="m",engine_type="trtllm",model="org/m",dtype="bfloat16",'
        'quantization="FP8",gpu_type="H100"} 1\n'
        'trtllm_parallel_config_info{model_name="m",engine_type="trtllm",tp_size="2",pp_size="1"} 1\n'
        'trtllm_kv_cache_config_info{model_name="m",engine_type="trtllm",page_size="32"} 1\n'
        'trtllm_speculative_config_info{model_name="m",engine_type="trtllm",method="None"} 1\n'
    )

    assert reading_of(page).settings == {
        "model": "org/m",
        "dtype": "bfloat16",
        "quantization": "FP8",
        "tp_size": "2",
        "pp_size": "1",
        "tokens_per_block": "32",
    }


@pytest.mark.parametrize(
    ("body", "drains"),
    [
        (b"[]", True),
        (b" [ ]\n", True),
        (b'[{"iter": 3, "iterLatencyMS": 5.5}]', True),
        (b'[{"gpuMemUsage": 5, "iterLatencyMS": 5.5}]', True),
        (b'[{"name": "something else"}]', False),
        (b"{}", False),
        (b"trtllm_x 1\n", False),
        (b"", False),
    ],
)
def test_the_queue_is_known_by_its_shape(body: bytes, drains: bool) -> None:
    assert ADAPTER.drains(body) is drains
