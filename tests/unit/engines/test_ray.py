"""vLLM on the page of a Ray agent. The pages are written from vLLM's definitions, not saved from a server."""

from __future__ import annotations

import pytest

from brimline.engines import Evidence, engines_on
from brimline.engines.ray import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading

RAY = 'NodeAddress="10.0.0.4",SessionName="s_1",Version="2.32.0",WorkerId="6ad5"'

# Written by hand from vLLM's declarations and Ray's labels.
PAGE = f"""\
process_start_time_seconds 1.7e+09
ray_vllm:num_requests_running{{{RAY},ReplicaId="a",model_name="m"}} 3.0
ray_vllm:num_requests_waiting{{{RAY},ReplicaId="a",model_name="m"}} 1.0
ray_vllm:gpu_cache_usage_perc{{{RAY},ReplicaId="a",model_name="m"}} 0.25
ray_vllm:prompt_tokens_total{{{RAY},ReplicaId="a",model_name="m"}} 58.0
ray_vllm:generation_tokens_total{{{RAY},ReplicaId="a",model_name="m"}} 300.0
ray_vllm:time_to_first_token_seconds_bucket{{{RAY},ReplicaId="a",model_name="m",le="+Inf"}} 2.0
ray_vllm:time_to_first_token_seconds_sum{{{RAY},ReplicaId="a",model_name="m"}} 0.5
ray_vllm:time_to_first_token_seconds_count{{{RAY},ReplicaId="a",model_name="m"}} 2.0
ray_vllm:cache_config_info{{block_size="16",num_gpu_blocks="1000",sliding_window="None"}} 1.0
"""
REPLICA = f"""\
ray_vllm:num_requests_running{{{RAY},ReplicaId="b",model_name="m"}} 2.0
ray_vllm:gpu_cache_usage_perc{{{RAY},ReplicaId="b",model_name="m"}} 0.75
ray_vllm:generation_tokens_total{{{RAY},ReplicaId="b",model_name="m"}} 11.0
ray_vllm:time_to_first_token_seconds_bucket{{{RAY},ReplicaId="b",model_name="m",le="+Inf"}} 1.0
ray_vllm:time_to_first_token_seconds_sum{{{RAY},ReplicaId="b",model_name="m"}} 1.5
ray_vllm:time_to_first_token_seconds_count{{{RAY},ReplicaId="b",model_name="m"}} 1.0
"""


def reading_of(page: str) -> EngineReading:
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted)))


@pytest.mark.parametrize("prefix", ["ray_vllm:", "ray_vllm_"])
def test_both_spellings_are_read(prefix: str) -> None:
    page = PAGE.replace("ray_vllm:", prefix)

    reading = reading_of(page)

    [rank] = reading.ranks
    assert engines_on(page.encode()) == ["ray"]
    assert (reading.engine, reading.engine_version, reading.start_time) == ("ray", None, None)
    assert (rank.model, rank.rank) == ("m", "0")
    assert (rank.requests_running, rank.requests_waiting) == (3, 1)
    assert rank.kv_cache_usage_ratio == 0.25
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (58, 300)
    assert (rank.kv_cache_blocks, rank.kv_cache_capacity_tokens) == (1000, 16000)


def test_replicas_of_a_model_count_together() -> None:
    [rank] = reading_of(PAGE + REPLICA).ranks

    assert rank.requests_running == 5
    assert rank.generation_tokens_total == 311
    assert rank.kv_cache_usage_ratio == 0.75
    assert rank.time_to_first_token_seconds is not None
    assert (rank.time_to_first_token_seconds.sum, rank.time_to_first_token_seconds.count) == (2.0, 3)


def test_a_new_replica_id_makes_no_new_series() -> None:
    renamed = PAGE.replace('ReplicaId="a"', 'ReplicaId="z"').replace("6ad5", "ffff")

    assert reading_of(renamed) == reading_of(PAGE)


def test_with_two_models_it_is_not_known_whose_the_pool_is() -> None:
    page = PAGE + 'ray_vllm:num_requests_running{model_name="other"} 1.0\n'

    assert [rank.kv_cache_blocks for rank in reading_of(page).ranks] == [None, None]


def test_with_two_pools_it_is_not_known_how_large_both_are() -> None:
    page = PAGE + 'ray_vllm:cache_config_info{ReplicaId="b",block_size="16",num_gpu_blocks="900"} 1.0\n'

    [rank] = reading_of(page).ranks

    assert rank.kv_cache_blocks is None


def test_ray_alone_is_no_engine() -> None:
    assert engines_on(b"ray_node_mem_used 1\nray_serve_deployment_replica_starts 2\n") == []
