"""LMDeploy's page. The page is written from the metric definitions, not saved from a server."""

from __future__ import annotations

from typing import Any

import pytest

from brimline.engines import Evidence, engine_of_models, engines_on
from brimline.engines.lmdeploy import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading

# Written by hand from lmdeploy/metrics/loggers.py of 0.16.0.
PAGE = """\
process_start_time_seconds 1.7e+09
lmdeploy:backend_config_info 1.0
lmdeploy:num_api_requests_waiting{engine="0",model_name="m"} 4.0
lmdeploy:num_requests_running{engine="0",model_name="m"} 3.0
lmdeploy:num_requests_waiting{engine="0",model_name="m"} 2.0
lmdeploy:num_requests_running{engine="1",model_name="m"} 1.0
lmdeploy:gpu_cache_usage_perc{engine="0",model_name="m"} 0.5
lmdeploy:gpu_cache_usage_perc{engine="1",model_name="m"} 0.25
lmdeploy:prompt_tokens_total{engine="0",model_name="m"} 700.0
lmdeploy:generation_tokens_total{engine="0",model_name="m"} 90.0
lmdeploy:cached_tokens_total{engine="0",model_name="m"} 64.0
lmdeploy:request_success_total{engine="0",finished_reason="ResponseType.FINISH",model_name="m"} 5.0
lmdeploy:iteration_tokens_total_sum{engine="0",model_name="m"} 790.0
lmdeploy:iteration_tokens_total_count{engine="0",model_name="m"} 11.0
lmdeploy:iter_token_latency_sum{engine="0",model_name="m"} 1.5
lmdeploy:iter_token_latency_count{engine="0",model_name="m"} 85.0
lmdeploy:time_per_output_token_seconds_sum{engine="0",model_name="m"} 0.09
lmdeploy:time_per_output_token_seconds_count{engine="0",model_name="m"} 5.0
"""


def reading_of(page: str, documents: dict[str, Any] | None = None) -> EngineReading:
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted), documents or {}))


def test_each_quantity_is_what_the_page_states() -> None:
    reading = reading_of(PAGE)

    first, second = reading.ranks
    assert engines_on(PAGE.encode()) == ["lmdeploy"]
    assert (first.model, first.rank, second.rank) == ("m", "0", "1")
    assert (first.requests_running, second.requests_running) == (3, 1)
    assert (first.kv_cache_usage_ratio, second.kv_cache_usage_ratio) == (0.5, 0.25)
    assert (first.prompt_tokens_total, first.generation_tokens_total) == (700, 90)
    assert first.prefix_cache_hits_tokens_total == 64
    assert first.requests_finished_total == {"ResponseType.FINISH": 5}
    assert reading.start_time == 1.7e9


def test_requests_that_wait_for_a_handle_wait_too() -> None:
    assert reading_of(PAGE).ranks[0].requests_waiting == 6


def test_where_the_engine_states_no_queue_none_is_made_of_the_handles() -> None:
    [rank] = reading_of('lmdeploy:num_api_requests_waiting{engine="0",model_name="m"} 4.0\n').ranks

    assert rank.requests_waiting is None


def test_inter_token_latency_is_the_iterations_not_the_requests_mean() -> None:
    latency = reading_of(PAGE).ranks[0].inter_token_latency_seconds

    assert latency is not None
    assert (latency.sum, latency.count) == (1.5, 85)


def test_neither_blocks_nor_tokens_of_the_cache_are_stated() -> None:
    rank = reading_of(PAGE).ranks[0]

    assert (rank.kv_cache_blocks, rank.kv_cache_capacity_tokens, rank.kv_cache_used_tokens) == (
        None,
        None,
        None,
    )


def test_the_model_list_tells_the_engine_and_the_models_path() -> None:
    models = {"data": [{"id": "m", "owned_by": "lmdeploy", "root": "/models/m"}]}

    reading = reading_of(PAGE, {"/v1/models": models})

    assert engine_of_models(models) == "lmdeploy"
    assert reading.served_root == "/models/m"
    assert reading.settings == {"model_path": "/models/m"}


@pytest.mark.parametrize(
    ("document", "sleeping"),
    [
        ({"is_sleeping": True}, True),
        ({"is_sleeping": False}, False),
        ({"is_sleeping": "yes"}, None),
        ([], None),
    ],
)
def test_sleep_has_an_endpoint_of_its_own(document: Any, sleeping: bool | None) -> None:
    assert reading_of(PAGE, {"/is_sleeping": document}).sleeping is sleeping
