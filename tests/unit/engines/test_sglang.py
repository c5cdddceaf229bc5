"""SGLang's page and its /server_info, written from the metric definitions, not saved from a server."""

from __future__ import annotations

from typing import Any

import pytest

from brimline.engines import Evidence, engines_on
from brimline.engines.sglang import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading, RankReading, combine_ranks

# Written by hand from the declarations of SGLang 0.5.23.
PAGE = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m",tp_rank="0"} 4.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 2.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.26
sglang:full_token_usage{model_name="m",tp_rank="0"} 0.2578125
sglang:swa_token_usage{model_name="m",tp_rank="0"} 0.0
sglang:mamba_usage{model_name="m",tp_rank="0"} 0.0
sglang:num_used_tokens{model_name="m",tp_rank="0"} 26400.0
sglang:kv_used_tokens{model_name="m",tp_rank="0"} 26400.0
sglang:max_total_num_tokens{model_name="m",tp_rank="0"} 102400.0
sglang:page_size{model_name="m",tp_rank="0"} 64.0
sglang:num_pages{model_name="m",tp_rank="0"} 1600.0
sglang:context_len{model_name="m",tp_rank="0"} 32768.0
sglang:kv_cache_memory_usage_gb{model_name="m",tp_rank="0"} 12.5
sglang:num_retracted_requests_total{model_name="m",tp_rank="0"} 3.0
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="m",is_streaming="true"} 1000.0
sglang:prompt_tokens_total{model_name="m",is_streaming="false"} 500.0
sglang:generation_tokens_total{model_name="m",is_streaming="true"} 300.0
sglang:cached_tokens_total{model_name="m",cache_source="device"} 400.0
sglang:cached_tokens_total{model_name="m",cache_source="total"} 10.0
sglang:time_to_first_token_seconds_bucket{model_name="m",is_streaming="true",le="+Inf"} 2.0
sglang:time_to_first_token_seconds_sum{model_name="m",is_streaming="true"} 0.5
sglang:time_to_first_token_seconds_count{model_name="m",is_streaming="true"} 2.0
sglang:time_to_first_token_seconds_bucket{model_name="m",is_streaming="false",le="+Inf"} 1.0
sglang:time_to_first_token_seconds_sum{model_name="m",is_streaming="false"} 1.5
sglang:time_to_first_token_seconds_count{model_name="m",is_streaming="false"} 1.0
"""


def reading_of(page: str, documents: dict[str, Any] | None = None) -> EngineReading:
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted), documents or {}))


def only_rank(reading: EngineReading) -> RankReading:
    [rank] = reading.ranks
    return rank


def test_each_quantity_is_what_the_page_states() -> None:
    rank = only_rank(reading_of(PAGE))

    assert (rank.model, rank.rank) == ("m", "0")
    assert (rank.requests_running, rank.requests_waiting) == (4, 2)
    assert (rank.kv_cache_used_tokens, rank.kv_cache_capacity_tokens) == (26400, 102400)
    assert (rank.kv_cache_blocks, rank.kv_cache_block_tokens) == (1600, 64)
    assert rank.max_model_len_tokens == 32768
    assert rank.generation_tokens_total == 300
    assert rank.preemptions_total == 3


def test_streamed_and_whole_answers_count_together() -> None:
    rank = only_rank(reading_of(PAGE))

    assert rank.prompt_tokens_total == 1500
    assert rank.time_to_first_token_seconds is not None
    assert (rank.time_to_first_token_seconds.sum, rank.time_to_first_token_seconds.count) == (2.0, 3)


def test_cached_tokens_of_all_sources_are_hits_among_the_prompt_tokens() -> None:
    rank = only_rank(reading_of(PAGE))

    assert rank.prefix_cache_hits_tokens_total == 410
    assert rank.prefix_cache_queries_tokens_total == 1500


def test_without_cached_tokens_it_is_not_known_how_many_were_looked_up() -> None:
    page = "\n".join(line for line in PAGE.splitlines() if "cached_tokens" not in line) + "\n"

    assert only_rank(reading_of(page)).prefix_cache_queries_tokens_total is None


def test_usage_is_the_fullest_pools_unrounded_one_where_the_page_has_it() -> None:
    assert only_rank(reading_of(PAGE)).kv_cache_usage_ratio == 0.2578125

    fuller = PAGE.replace(
        'swa_token_usage{model_name="m",tp_rank="0"} 0.0', 'swa_token_usage{model_name="m"} 0.75'
    )
    assert only_rank(reading_of(fuller)).kv_cache_usage_ratio == 0.75


def test_gb_of_the_pool_are_gib() -> None:
    assert only_rank(reading_of(PAGE)).kv_cache_capacity_bytes == 12.5 * 1024**3


def test_a_pool_of_zero_gb_is_one_that_the_engine_does_not_see() -> None:
    page = PAGE.replace("} 12.5\n", "} 0.0\n")

    assert only_rank(reading_of(page)).kv_cache_capacity_bytes is None


def test_with_priorities_the_row_without_one_is_the_total() -> None:
    page = (
        'sglang:num_running_reqs{model_name="m",priority=""} 5.0\n'
        'sglang:num_running_reqs{model_name="m",priority="0"} 3.0\n'
        'sglang:num_running_reqs{model_name="m",priority="1"} 9.0\n'
    )

    assert only_rank(reading_of(page)).requests_running == 5


def test_copies_of_tensor_parallel_ranks_are_not_added_up() -> None:
    page = "".join(
        f'sglang:num_retracted_requests_total{{model_name="m",tp_rank="{i}"}} 7\n' for i in range(4)
    )

    assert only_rank(reading_of(page)).preemptions_total == 7


def test_data_parallel_ranks_stand_apart_and_the_front_ends_counters_at_the_first() -> None:
    page = (
        'sglang:token_usage{model_name="m",dp_rank="0"} 0.1\n'
        'sglang:token_usage{model_name="m",dp_rank="1"} 0.9\n'
        'sglang:generation_tokens_total{model_name="m"} 12\n'
    )

    ranks = reading_of(page).ranks

    assert [(r.rank, r.kv_cache_usage_ratio, r.generation_tokens_total) for r in ranks] == [
        ("0", 0.1, 12),
        ("1", 0.9, None),
    ]


def test_a_gateway_spells_the_names_without_a_colon_and_its_workers_stand_apart() -> None:
    page = (
        'sglang_num_running_reqs{model_name="m",worker_addr="http://a:30000"} 1\n'
        'sglang_num_running_reqs{model_name="m",worker_addr="http://b:30000"} 2\n'
        'sglang_num_running_reqs{model_name="m",worker_addr="http://b:30000",dp_rank="1"} 3\n'
    )

    ranks = reading_of(page).ranks

    assert engines_on(page.encode()) == ["sglang"]
    assert {r.rank: r.requests_running for r in ranks} == {
        "http://a:30000": 1,
        "http://b:30000": 2,
        "http://b:30000#1": 3,
    }


def test_the_pages_of_0_5_9_and_0_5_10_come_from_the_labels_of_cache_config_info() -> None:
    page = (
        'sglang:num_running_reqs{model_name="m"} 1\n'
        'sglang:cache_config_info{model_name="m",page_size="16",num_pages="4096"} 1\n'
    )

    rank = only_rank(reading_of(page))

    assert (rank.kv_cache_blocks, rank.kv_cache_block_tokens) == (4096, 16)


def test_server_info_gives_the_version_the_settings_and_what_the_page_lacks() -> None:
    documents = {
        "/get_server_info": {
            "version": "0.4.10",
            "model_path": "/models/qwen",
            "tp_size": 2,
            "mem_fraction_static": 0.88,
            "kv_cache_dtype": "auto",
            "max_total_num_tokens": 326223,
            "internal_states": [{"memory_usage": {"weight": 15.2, "kvcache": 40.25}}],
        },
        "/v1/models": {"data": [{"id": "m", "owned_by": "sglang", "max_model_len": 40960}]},
    }

    reading = reading_of('sglang:num_running_reqs{model_name="m"} 1\n', documents)

    rank = only_rank(reading)
    assert reading.engine_version == "0.4.10"
    assert reading.served_root == "/models/qwen"
    assert reading.settings["tp_size"] == "2"
    assert reading.settings["mem_fraction_static"] == "0.88"
    assert rank.kv_cache_capacity_tokens == 326223
    assert rank.kv_cache_capacity_bytes == 40.25 * 1024**3
    assert rank.measured_memory_bytes == {"weights": round(15.2 * 1024**3)}
    assert rank.max_model_len_tokens == 40960


def test_what_the_page_states_wins_over_server_info() -> None:
    documents = {
        "/server_info": {"max_total_num_tokens": 1, "internal_states": [{"memory_usage": {"kvcache": 1}}]}
    }

    rank = only_rank(reading_of(PAGE, documents))

    assert rank.kv_cache_capacity_tokens == 102400
    assert rank.kv_cache_capacity_bytes == 12.5 * 1024**3


def test_the_measured_split_of_newer_pages_wins_and_graphs_of_all_phases_add_up() -> None:
    """0.5.18 and later; several tensor ranks show a copy each, of which the largest counts."""
    page = (
        'sglang:num_running_reqs{model_name="m",tp_rank="0"} 1\n'
        'sglang:weight_memory_usage_gb{model_name="m",tp_rank="0"} 15.0\n'
        'sglang:weight_memory_usage_gb{model_name="m",tp_rank="1"} 15.5\n'
        'sglang:graph_memory_usage_gb{model_name="m",tp_rank="0",phase="decode"} 1.0\n'
        'sglang:graph_memory_usage_gb{model_name="m",tp_rank="1",phase="decode"} 1.25\n'
        'sglang:graph_memory_usage_gb{model_name="m",tp_rank="0",phase="prefill"} 0.5\n'
    )
    documents = {"/server_info": {"internal_states": [{"memory_usage": {"weight": 1.0, "graph": 9.0}}]}}

    measured = only_rank(reading_of(page, documents)).measured_memory_bytes

    assert measured == {"weights": 15.5 * 1024**3, "cuda_graphs": 1.75 * 1024**3}


def test_of_server_info_the_measured_split_is_kept() -> None:
    document = {"internal_states": [{"memory_usage": {"weight": 15.2, "kvcache": 40.25, "graph": 2.5}}]}

    kept = [e.keep(document) for e in ADAPTER.endpoints if e.path.endswith("server_info")]

    assert kept == [document] * 2


def test_of_server_info_no_key_is_kept() -> None:
    document = {"api_key": "s3cret", "version": "0.5.6", "internal_states": [{"admin_api_key": "s3cret"}]}

    kept = [e.keep(document) for e in ADAPTER.endpoints if e.path.endswith("server_info")]

    assert kept == [{"version": "0.5.6", "internal_states": [{}]}] * 2


def test_damaged_documents_cost_nothing_but_what_they_would_have_said() -> None:
    documents = {
        "/server_info": {"version": 7, "max_total_num_tokens": "many", "internal_states": [3]},
        "/v1/models": {"data": [None, {"id": 4}, {"id": "m", "max_model_len": True}]},
    }

    reading = reading_of('sglang:num_running_reqs{model_name="m"} 1\n', documents)

    assert reading.engine_version is None
    assert only_rank(reading) == RankReading(model="m", requests_running=1)


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"tp_size": "4"}, 4),
        ({"tp_size": "4", "pp_size": "2", "dp_size": "1", "attn_dp_size": "4"}, 8),
        # Replicas have GPUs of their own; data-parallel attentions share those of --tp-size.
        ({"tp_size": "4", "dp_size": "2", "enable_dp_attention": "false"}, 8),
        ({"tp_size": "4", "dp_size": "2", "enable_dp_attention": "true"}, 4),
        ({"tp_size": "4", "dp_size": "2", "attn_dp_size": "2", "enable_dp_attention": "true"}, 8),
        ({"tp_size": "4", "dp_size": "2"}, None),
        ({"tp_size": "4", "nnodes": "2"}, None),
    ],
)
def test_gpus_are_those_of_all_ranks(settings: dict[str, str], gpus: int | None) -> None:
    assert ADAPTER.world_size(settings) == gpus


# --- what is exact


def older(used: str, rounded: str, *more: str) -> str:
    """A page of 0.5.6 to 0.5.9, where the usage is rounded."""
    lines = [
        f'sglang:num_used_tokens{{model_name="m"}} {used}',
        f'sglang:token_usage{{model_name="m"}} {rounded}',
    ]
    return "\n".join([*lines, 'sglang:max_total_num_tokens{model_name="m"} 102400.0', *more]) + "\n"


def test_before_0_5_10_the_rounded_usage_is_made_exact_by_the_tokens() -> None:
    assert only_rank(reading_of(older("26400.0", "0.26"))).kv_cache_usage_ratio == 26400 / 102400
    assert only_rank(reading_of(older("200.0", "0.0"))).kv_cache_usage_ratio == 200 / 102400


def test_a_rounded_usage_of_another_pool_stays_as_it_is() -> None:
    """Of a hybrid model the rounded figure is the fullest pool's, the tokens are those of full attention."""
    assert only_rank(reading_of(older("26400.0", "0.9"))).kv_cache_usage_ratio == 0.9


def test_a_capacity_in_the_settings_makes_it_exact_too() -> None:
    page = 'sglang:num_used_tokens{model_name="m"} 250\nsglang:token_usage{model_name="m"} 0.12\n'

    rank = only_rank(reading_of(page, {"/get_server_info": {"max_total_num_tokens": 2000}}))

    assert rank.kv_cache_usage_ratio == 0.125


def test_used_bytes_are_the_usages_share() -> None:
    assert only_rank(reading_of(PAGE)).kv_cache_used_bytes == 0.2578125 * 12.5 * 1024**3


# --- retractions by version


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ('sglang:num_retracted_requests_total{model_name="m"} 3', 3),
        ('sglang:total_retracted_reqs{model_name="m"} 3', 3),  # 0.4.10 to 0.5.2: a gauge that only grows
        ('sglang:num_retracted_reqs{model_name="m",pid="7"} 3', None),  # starts anew at each line of the log
    ],
)
def test_retracted_requests_are_preemptions(line: str, count: float | None) -> None:
    page = f'sglang:num_running_reqs{{model_name="m"}} 1\n{line}\n'

    assert only_rank(reading_of(page)).preemptions_total == count


# --- several schedulers


TWO_RANKS = "".join(f'sglang:token_usage{{model_name="m",dp_rank="{rank}"}} 0.5\n' for rank in range(2))


def info_of(*usages: dict[str, float]) -> dict[str, Any]:
    return {"/server_info": {"internal_states": [{"memory_usage": usage} for usage in usages]}}


def test_what_all_schedulers_state_alike_is_every_ranks() -> None:
    usage = {"weight": 15.5, "kvcache": 40.0, "token_capacity": 300_000}

    ranks = reading_of(TWO_RANKS, info_of(usage, {**usage, "kvcache": 39.0})).ranks

    assert [rank.kv_cache_capacity_tokens for rank in ranks] == [300_000] * 2
    assert [rank.measured_memory_bytes for rank in ranks] == [{"weights": 15.5 * 1024**3}] * 2
    assert [rank.kv_cache_capacity_bytes for rank in ranks] == [None] * 2  # whose is which is not said


def test_behind_a_gateway_the_documents_are_not_the_workers() -> None:
    page = 'sglang_num_running_reqs{model_name="m",worker_addr="http://a:30000"} 1\n'

    rank = only_rank(reading_of(page, info_of({"weight": 15.5, "token_capacity": 300_000})))

    assert (rank.measured_memory_bytes, rank.kv_cache_capacity_tokens) == (None, None)


def test_labels_of_roles_and_ranks_make_no_copies() -> None:
    page = "".join(
        f'sglang:num_running_reqs{{engine_type="unified",model_name="m",moe_ep_rank="{ep}",pp_rank="{pp}",'
        f'tp_rank="{tp}"}} 4\n'
        for ep in range(2)
        for pp in range(2)
        for tp in range(2)
    )

    assert only_rank(reading_of(page)).requests_running == 4


@pytest.mark.parametrize(
    "page",
    [
        'sglang:num_requests_running{name="m"} 4\n',  # 0.3.5
        'sglang:num_running_reqs{model_name="m"} 4\n',  # 0.4.0 to 0.4.3
        'sglang:num_running_reqs{engine_type="unified",model_name="m"} 4\n',  # 0.4.5
        'sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 4\n',  # 0.4.10
    ],
)
def test_every_era_names_its_model(page: str) -> None:
    rank = only_rank(reading_of(page))

    assert (rank.model, rank.rank, rank.requests_running) == ("m", "0", 4)


def test_what_the_front_end_counts_for_all_ranks_is_the_models() -> None:
    page = TWO_RANKS + 'sglang:generation_tokens_total{model_name="m"} 12\n'

    ranks = reading_of(page).ranks

    assert ranks[0].stated_for_all == {"generation_tokens_total"}
    assert combine_ranks(ranks).generation_tokens_total == 12
    assert combine_ranks(ranks).kv_cache_usage_ratio == 0.5
    assert combine_ranks(ranks).prompt_tokens_total is None


def test_workers_behind_a_gateway_count_each_for_itself() -> None:
    page = "".join(
        f'sglang_generation_tokens_total{{model_name="m",worker_addr="http://{worker}:1"}} 5\n'
        for worker in "ab"
    )

    assert combine_ranks(reading_of(page).ranks).generation_tokens_total == 10
