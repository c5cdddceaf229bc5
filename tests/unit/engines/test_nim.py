"""NIM's page. The page is written from the names that NIM 1.x sends, not saved from a server."""

from __future__ import annotations

from typing import Any

import pytest

from brimline.engines import Evidence, engines_on
from brimline.engines.nim import ADAPTER
from brimline.exposition_text import scan

# Written by hand.
PAGE = """\
process_start_time_seconds 1.7e+09
num_requests_running{model_name="m"} 2.0
num_requests_waiting{model_name="m"} 1.0
num_request_max{model_name="m"} 64.0
gpu_cache_usage_perc{model_name="m"} 0.125
prompt_tokens_total{model_name="m"} 109.0
generation_tokens_total{model_name="m"} 174.0
time_per_output_token_seconds_sum{model_name="m"} 1.75
time_per_output_token_seconds_count{model_name="m"} 169.0
request_finish_total{finished_reason="length",model_name="m"} 5.0
request_success_total{model_name="m"} 5.0
"""


def test_each_quantity_is_what_the_page_states() -> None:
    reading = ADAPTER.read(Evidence(scan(PAGE.encode(), ADAPTER.wanted)))

    [rank] = reading.ranks
    assert engines_on(PAGE.encode()) == ["nim"]
    assert reading.start_time == 1.7e9
    assert rank.model == "m"
    assert (rank.requests_running, rank.requests_waiting) == (2, 1)
    assert rank.kv_cache_usage_ratio == 0.125
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (109, 174)
    assert rank.requests_finished_total == {"length": 5}
    assert rank.inter_token_latency_seconds is not None
    assert (rank.inter_token_latency_seconds.sum, rank.inter_token_latency_seconds.count) == (1.75, 169)
    assert (rank.kv_cache_blocks, rank.kv_cache_capacity_tokens) == (None, None)


def test_common_names_alone_are_not_nims() -> None:
    for own in ("num_request_max", "gpu_cache_usage_perc"):
        page = "\n".join(line for line in PAGE.splitlines() if not line.startswith(own))

        assert engines_on(page.encode()) == []


def test_its_page_is_not_at_the_usual_path() -> None:
    assert ADAPTER.metrics_paths == ("/v1/metrics",)


def test_the_model_list_may_state_the_context_length() -> None:
    models = {
        "data": [
            {"id": "lora", "parent": "m", "root": "lora"},
            {"id": "m", "root": "meta/m", "parent": None, "max_model_len": 8192},
        ]
    }

    reading = ADAPTER.read(Evidence(scan(PAGE.encode(), ADAPTER.wanted), {"/v1/models": models}))

    assert reading.ranks[0].max_model_len_tokens == 8192
    assert reading.served_root == "meta/m"


@pytest.mark.parametrize(
    "models", [{"data": [None, {"id": "m", "max_model_len": "many"}]}, [], {"data": 5}, {"data": [{"id": 5}]}]
)
def test_a_damaged_model_list_says_nothing(models: Any) -> None:
    [rank] = ADAPTER.read(Evidence(scan(PAGE.encode(), ADAPTER.wanted), {"/v1/models": models})).ranks

    assert rank.max_model_len_tokens is None
