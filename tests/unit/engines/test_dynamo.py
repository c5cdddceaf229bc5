"""Dynamo's worker and frontend pages, written from the metric definitions, not saved from a server."""

from __future__ import annotations

import pytest

from brimline.engines import Evidence, adapter_of, engines_on, evidence_of
from brimline.engines.dynamo import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading

ADDED = 'dynamo_component="backend",dynamo_namespace="ns",worker_id="7f",model="m"'

# Written by hand from prometheus_names.rs and the declarations of each engine.
COMPONENT = """\
dynamo_component_total_blocks{dynamo_component="backend",dp_rank="0",model="m"} 2000
dynamo_component_gpu_cache_usage_percent{dynamo_component="backend",dp_rank="0",model="m"} 0.4
dynamo_component_uptime_seconds 30
"""
VLLM = f"""\
vllm:num_requests_running{{engine="0",model_name="m",{ADDED}}} 3
vllm:num_requests_waiting{{engine="0",model_name="m",{ADDED}}} 1
vllm:kv_cache_usage_perc{{engine="0",model_name="m",{ADDED}}} 0.5
vllm:generation_tokens_total{{engine="0",model_name="m",{ADDED}}} 90
vllm:prompt_tokens_total{{engine="0",model_name="m",{ADDED}}} 700
"""
SGLANG = f'sglang:num_running_reqs{{model_name="m",{ADDED}}} 3\n'
TRTLLM = f'trtllm_num_requests_running{{model_name="m",engine_type="trtllm",{ADDED}}} 3\n'

FRONTEND = """\
dynamo_frontend_inflight_requests{model="m"} 9
dynamo_frontend_queued_requests{model="m"} 4
dynamo_frontend_model_total_kv_blocks{model="m"} 2000
dynamo_frontend_model_kv_cache_block_size{model="m"} 16
dynamo_frontend_model_context_length{model="m"} 40960
dynamo_frontend_output_tokens_total{model="m"} 5000
dynamo_frontend_input_sequence_tokens_sum{model="m"} 12000
dynamo_frontend_input_sequence_tokens_count{model="m"} 30
dynamo_frontend_inter_token_latency_seconds_sum{model="m"} 40.5
dynamo_frontend_inter_token_latency_seconds_count{model="m"} 4970
"""


def reading_of(page: str) -> EngineReading:
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted)))


@pytest.mark.parametrize("engine", [VLLM, SGLANG, TRTLLM], ids=["vllm", "sglang", "trtllm"])
def test_a_workers_page_is_dynamos_and_holds_what_its_engine_says(engine: str) -> None:
    reading = reading_of(COMPONENT + engine)

    [rank] = reading.ranks
    assert engines_on((COMPONENT + engine).encode()) == ["dynamo"]
    assert reading.engine == "dynamo"
    assert rank.requests_running == 3
    assert rank.kv_cache_blocks == 2000


@pytest.mark.parametrize(("page", "engine"), [(VLLM, "vllm"), (SGLANG, "sglang"), (TRTLLM, "trtllm")])
def test_the_engines_families_alone_are_that_engines(page: str, engine: str) -> None:
    assert engines_on(page.encode()) == [engine]


def test_what_the_engine_states_wins_over_the_component() -> None:
    [rank] = reading_of(COMPONENT + VLLM).ranks

    assert rank.kv_cache_usage_ratio == 0.5
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (700, 90)


def test_percent_runs_from_zero_to_one() -> None:
    [rank] = reading_of(COMPONENT).ranks

    assert rank.kv_cache_usage_ratio == 0.4


def test_a_component_that_names_the_model_otherwise_speaks_of_its_only_engine() -> None:
    page = COMPONENT.replace(',model="m"', ',model="/models/m"') + VLLM

    [rank] = reading_of(page).ranks

    assert (rank.model, rank.kv_cache_blocks) == ("m", 2000)


def test_ranks_of_a_worker_are_matched_by_their_number() -> None:
    page = (
        'sglang:token_usage{model_name="m",dp_rank="0"} 0.1\n'
        'sglang:token_usage{model_name="m",dp_rank="1"} 0.2\n'
        'dynamo_component_total_blocks{dp_rank="0",model="m"} 10\n'
        'dynamo_component_total_blocks{dp_rank="1",model="m"} 20\n'
    )

    assert [(r.rank, r.kv_cache_usage_ratio, r.kv_cache_blocks) for r in reading_of(page).ranks] == [
        ("0", 0.1, 10),
        ("1", 0.2, 20),
    ]


def test_a_frontend_gives_tokens_and_one_workers_geometry() -> None:
    [rank] = reading_of(FRONTEND).ranks

    assert engines_on(FRONTEND.encode()) == ["dynamo"]
    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (12000, 5000)
    assert (rank.kv_cache_blocks, rank.kv_cache_block_tokens) == (2000, 16)
    assert rank.max_model_len_tokens == 40960
    assert rank.inter_token_latency_seconds is not None
    assert rank.inter_token_latency_seconds.count == 4970


def test_a_frontends_requests_are_neither_running_nor_waiting_and_its_blocks_no_capacity() -> None:
    [rank] = reading_of(FRONTEND).ranks

    assert (rank.requests_running, rank.requests_waiting) == (None, None)
    assert rank.kv_cache_capacity_tokens is None


def test_the_names_of_0_7_are_read() -> None:
    page = (
        'dynamo_component_kvstats_total_blocks{model="m"} 100\n'
        'dynamo_component_kvstats_active_blocks{model="m"} 25\n'
        'dynamo_component_kvstats_gpu_cache_usage_percent{model="m"} 0.25\n'
    )

    [rank] = reading_of(page).ranks

    assert (rank.kv_cache_blocks, rank.kv_cache_used_blocks, rank.kv_cache_usage_ratio) == (100, 25, 0.25)


@pytest.mark.parametrize("prefix", ["nim_llm_", "my_frontend_"])
def test_a_frontend_may_begin_its_names_as_its_operator_likes(prefix: str) -> None:
    """DYN_METRICS_PREFIX"""
    body = FRONTEND.replace("dynamo_frontend_", prefix).encode()

    adapter = adapter_of("dynamo", body)
    [rank] = adapter.read(evidence_of(adapter, body)).ranks

    assert engines_on(body) == ["dynamo"]
    assert rank == reading_of(FRONTEND).ranks[0]


def test_the_usual_names_need_no_fitting() -> None:
    assert adapter_of("dynamo", FRONTEND.encode()) is ADAPTER
    assert adapter_of("dynamo", (COMPONENT + VLLM).encode()) is ADAPTER


def test_of_two_beginnings_neither_is_guessed() -> None:
    both = FRONTEND.replace("dynamo_frontend_", "a_") + FRONTEND.replace("dynamo_frontend_", "b_")

    assert adapter_of("dynamo", both.encode()) is ADAPTER
