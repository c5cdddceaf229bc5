"""vLLM's pages of every era: what each states, in which unit, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from brimline.engines.adapter import Evidence
from brimline.engines.vllm import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading, Histogram, RankReading, combine_ranks

CLASSIC = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def read(
    page: str, *, version: str | None = None, models: list[dict[str, Any]] | None = None, kind: str = CLASSIC
) -> EngineReading:
    """What is read from a page, with what /version and /v1/models answered."""
    documents: dict[str, Any] = {}
    if version is not None:
        documents["/version"] = {"version": version}
    if models is not None:
        documents["/v1/models"] = {"object": "list", "data": models}
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted), documents, {"content-type": kind}))


def only_rank(reading: EngineReading) -> RankReading:
    [rank] = reading.ranks
    return rank


def v1_page(*without: str, labels: str = 'engine="0",model_name="m"', block_labels: str = "") -> str:
    """A page of vLLM 0.32 with every family that is always there, less those named."""
    names = {
        "num_requests_running": "3.0",
        "num_requests_waiting": "1.0",
        "kv_cache_usage_perc": "0.5",
        "prefix_cache_queries_total": "200.0",
        "prefix_cache_hits_total": "50.0",
        "num_preemptions_total": "2.0",
        "prompt_tokens_total": "1000.0",
        "generation_tokens_total": "400.0",
    }
    lines = [f"vllm:{name}{{{labels}}} {value}" for name, value in names.items()]
    lines += [
        f'vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} 1.0',
        f'vllm:request_success_total{{finished_reason="stop",{labels}}} 7.0',
    ]
    for name in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        lines += [
            f'vllm:{name}_bucket{{{labels},le="1.0"}} 1.0',
            f'vllm:{name}_bucket{{{labels},le="+Inf"}} 4.0',
            f"vllm:{name}_count{{{labels}}} 4.0",
            f"vllm:{name}_sum{{{labels}}} 9.5",
        ]
    lines.append(
        'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1001"'
        f"{block_labels or _TOKENS}}} 1.0"
    )
    lines.append("python_info 1.0")
    kept = [line for line in lines if not any(f"vllm:{name}" in line for name in without)]
    return "\n".join(kept) + "\n"


_TOKENS = ',kv_cache_size_tokens="16016",kv_cache_max_concurrency="3.91015625"'


# --- the versions


V0_PAGE = """\
process_start_time_seconds 1.72365683894e+09
vllm:cache_config_info{block_size="16",cache_dtype="auto",cpu_offload_gb="0",enable_prefix_caching="False",gpu_memory_utilization="0.9",num_cpu_blocks="2048",num_gpu_blocks="4574",num_gpu_blocks_override="None",sliding_window="None",swap_space_bytes="4294967296"} 1.0
vllm:num_requests_running{model_name="llama"} 3.0
vllm:num_requests_waiting{model_name="llama"} 2.0
vllm:num_requests_swapped{model_name="llama"} 0.0
vllm:gpu_cache_usage_perc{model_name="llama"} 0.25
vllm:gpu_prefix_cache_hit_rate{model_name="llama"} -1.0
vllm:num_preemptions_total{model_name="llama"} 5.0
vllm:prompt_tokens_total{model_name="llama"} 90.0
vllm:generation_tokens_total{model_name="llama"} 2546.0
vllm:time_per_output_token_seconds_bucket{le="+Inf",model_name="llama"} 10.0
vllm:time_per_output_token_seconds_count{model_name="llama"} 10.0
vllm:time_per_output_token_seconds_sum{model_name="llama"} 0.5
vllm:request_success_total{finished_reason="length",model_name="llama"} 6.0
vllm:request_success_total{finished_reason="stop",model_name="llama"} 1.0
"""  # noqa: E501 - lines of a page


@pytest.mark.parametrize("version", ["0.4.2", "0.5.5", "0.6.3.post1", "0.7.3"])
def test_v0_has_one_rank_without_an_engine_label(version: str) -> None:
    reading = read(V0_PAGE, version=version)

    assert reading == EngineReading(
        engine="vllm",
        engine_version=version,
        start_time=1723656838.94,
        settings={
            "block_size": "16",
            "kv_cache_dtype": "auto",
            "cpu_offload_gb": "0",
            "enable_prefix_caching": "false",
            "gpu_memory_utilization": "0.9",
        },
        ranks=(
            RankReading(
                model="llama",
                rank="0",
                requests_running=3,
                requests_waiting=2,
                requests_finished_total={"length": 6, "stop": 1},
                prompt_tokens_total=90,
                generation_tokens_total=2546,
                preemptions_total=5,
                kv_cache_usage_ratio=0.25,
                kv_cache_blocks=4574,
                kv_cache_block_tokens=16,
                kv_cache_capacity_tokens=4574 * 16,
                kv_cache_used_blocks=1144,  # a quarter of them is 1143.5
                kv_cache_used_tokens=1144 * 16,
                inter_token_latency_seconds=Histogram(((float("inf"), 10.0),), 0.5, 10.0),
            ),
        ),
    )


def test_prefix_cache_counts_of_0_8_5_are_blocks() -> None:
    page = (
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'
        'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
        'vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 10.0\n'
        'vllm:gpu_prefix_cache_hits_total{engine="0",model_name="m"} 4.0\n'
    )

    blocks, tokens = only_rank(read(page, version="0.8.5.post1")), only_rank(read(page, version="0.9.0"))

    assert (blocks.prefix_cache_queries_tokens_total, blocks.prefix_cache_hits_tokens_total) == (160, 64)
    assert (tokens.prefix_cache_queries_tokens_total, tokens.prefix_cache_hits_tokens_total) == (10, 4)


def test_prefix_cache_counts_under_the_old_name_have_no_unit_without_a_version() -> None:
    page = (
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n'
        'vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 10.0\n'
    )

    assert only_rank(read(page)).prefix_cache_queries_tokens_total is None


def test_prefix_cache_blocks_stay_unknown_without_a_block_size() -> None:
    page = 'vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 10.0\n'

    assert only_rank(read(page, version="0.8.5")).prefix_cache_queries_tokens_total is None


def test_of_both_names_in_0_9_2_the_newer_one_is_taken_and_none_added() -> None:
    page = (
        'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.25\n'
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.375\n'
        'vllm:gpu_prefix_cache_queries_total{engine="0",model_name="m"} 100.0\n'
        'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 101.0\n'
        'vllm:gpu_prefix_cache_hits_total{engine="0",model_name="m"} 50.0\n'
        'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 51.0\n'
    )

    rank = only_rank(read(page, version="0.9.2"))

    assert rank.kv_cache_usage_ratio == 0.375
    assert rank.prefix_cache_queries_tokens_total == 101
    assert rank.prefix_cache_hits_tokens_total == 51


@pytest.mark.parametrize("hidden", ["", 'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.1\n'])
def test_names_that_0_11_hides_change_nothing_when_they_are_shown(hidden: str) -> None:
    reading = read(v1_page() + hidden, version="0.11.0")

    assert only_rank(reading).kv_cache_usage_ratio == 0.5
    assert reading.missing == ()


def test_inter_token_latency_of_0_9_stands_under_its_older_name() -> None:
    page = (
        'vllm:time_per_output_token_seconds_count{engine="0",model_name="m"} 4.0\n'
        'vllm:time_per_output_token_seconds_sum{engine="0",model_name="m"} 0.25\n'
    )
    both = page + (
        'vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 5.0\n'
        'vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 0.5\n'
    )

    assert only_rank(read(page)).inter_token_latency_seconds == Histogram((), 0.25, 4.0)
    assert only_rank(read(both)).inter_token_latency_seconds == Histogram((), 0.5, 5.0)


def test_a_whole_page_of_0_32_is_read() -> None:
    reading = read(v1_page(), version="0.32.0", models=[{"id": "m", "max_model_len": 4096}])
    latency = Histogram(((1.0, 1.0), (float("inf"), 4.0)), 9.5, 4.0)

    assert reading.missing == ()
    assert reading.bad_values == ()
    assert only_rank(reading) == RankReading(
        model="m",
        rank="0",
        requests_running=3,
        requests_waiting=1,
        requests_waiting_by_reason={"capacity": 1},
        requests_finished_total={"stop": 7},
        prompt_tokens_total=1000,
        generation_tokens_total=400,
        preemptions_total=2,
        prefix_cache_queries_tokens_total=200,
        prefix_cache_hits_tokens_total=50,
        kv_cache_usage_ratio=0.5,
        kv_cache_blocks=1001,
        kv_cache_used_blocks=500,  # one block of the 1001 is the null block
        kv_cache_block_tokens=16,
        kv_cache_capacity_tokens=16016,
        kv_cache_used_tokens=500 * 16,
        kv_cache_max_concurrency_requests=3.91015625,
        max_model_len_tokens=4096,
        time_to_first_token_seconds=latency,
        inter_token_latency_seconds=latency,
        request_e2e_latency_seconds=latency,
        request_prompt_tokens=latency,
        request_generation_tokens=latency,
    )


def test_from_0_24_on_the_stated_capacity_goes_before_blocks_times_block_size() -> None:
    stated = only_rank(read(v1_page(block_labels=',kv_cache_size_tokens="16000"'), version="0.24.0"))
    derived = only_rank(read(v1_page(block_labels=',x="1"'), version="0.23.0"))

    assert stated.kv_cache_capacity_tokens == 16000
    assert derived.kv_cache_capacity_tokens == 1001 * 16


def test_max_concurrency_is_capacity_over_context_where_it_is_not_stated() -> None:
    page = v1_page(block_labels=',kv_cache_size_tokens="16384"')

    rank = only_rank(read(page, models=[{"id": "m", "max_model_len": 4096}]))

    assert rank.kv_cache_max_concurrency_requests == 4.0


# --- the pool


def test_each_of_two_ranks_has_half_of_the_blocks_that_the_front_end_summed() -> None:
    page = (
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.25\n'
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="2002"} 1.0\n'
        'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="2002"} 1.0\n'
    )

    first, second = read(page, version="0.20.2").ranks

    assert (first.rank, first.kv_cache_blocks, first.kv_cache_used_blocks) == ("0", 1001, 500)
    assert (second.rank, second.kv_cache_blocks, second.kv_cache_used_blocks) == ("1", 1001, 250)
    assert first.kv_cache_capacity_tokens == 1001 * 16
    assert combine_ranks([first, second]).kv_cache_blocks == 2002


def test_the_capacity_in_tokens_is_stated_per_rank_and_not_divided() -> None:
    row = (
        'vllm:cache_config_info{{block_size="16",engine="{}",kv_cache_size_tokens="16000",'
        'num_gpu_blocks="2002"}} 1\n'
    )
    page = "".join(f'vllm:kv_cache_usage_perc{{engine="{rank}",model_name="m"}} 0.5\n' for rank in "01")

    ranks = read(page + row.format(0) + row.format(1), version="0.32.0").ranks

    assert [rank.kv_cache_capacity_tokens for rank in ranks] == [16000, 16000]


def test_one_rank_behind_an_external_balancer_keeps_its_own_blocks() -> None:
    page = (
        'vllm:kv_cache_usage_perc{engine="3",model_name="m"} 0.5\n'
        'vllm:cache_config_info{block_size="16",engine="3",num_gpu_blocks="1001"} 1.0\n'
    )

    rank = only_rank(read(page, version="0.20.2"))

    assert (rank.rank, rank.kv_cache_blocks) == ("3", 1001)


def test_gauges_doubled_by_pid_are_copies_of_each_other() -> None:
    page = (
        'vllm:kv_cache_usage_perc{engine="0",model_name="m",pid="11"} 0.0\n'
        'vllm:kv_cache_usage_perc{engine="0",model_name="m",pid="12"} 0.375\n'
        'vllm:num_requests_running{engine="0",model_name="m",pid="11"} 4.0\n'
        'vllm:num_requests_running{engine="0",model_name="m",pid="12"} 5.0\n'
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="101",pid="11"} 1.0\n'
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="101",pid="12"} 1.0\n'
    )

    rank = only_rank(read(page, version="0.10.2"))

    assert (rank.kv_cache_usage_ratio, rank.requests_running, rank.kv_cache_blocks) == (0.375, 5, 101)


def test_counters_doubled_by_a_label_add_up() -> None:
    page = (
        'vllm:generation_tokens_total{engine="0",model_name="m",pid="11"} 40.0\n'
        'vllm:generation_tokens_total{engine="0",model_name="m",pid="12"} 2.0\n'
    )

    assert only_rank(read(page)).generation_tokens_total == 42


def test_the_text_none_is_nothing() -> None:
    page = (
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
        'vllm:cache_config_info{block_size="None",cache_dtype="None",engine="0",kv_cache_memory_bytes="None",'
        'kv_cache_size_tokens="None",num_gpu_blocks="None"} 1.0\n'
    )

    reading = read(page, version="0.8.5")
    rank = only_rank(reading)

    assert (rank.kv_cache_blocks, rank.kv_cache_block_tokens, rank.kv_cache_capacity_tokens) == (
        None,
        None,
        None,
    )
    assert (rank.kv_cache_used_blocks, rank.kv_cache_used_tokens, rank.kv_cache_capacity_bytes) == (None,) * 3
    assert reading.settings == {}


HYBRID = (
    'vllm:cache_config_info{block_size="4",engine="0",mamba_page_size_padded="65536",num_gpu_blocks="1001"'
)


def test_blocks_times_block_size_is_no_capacity_of_a_hybrid_model() -> None:
    usage = 'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n'

    unstated = only_rank(read(usage + HYBRID + "} 1.0\n", version="0.12.0"))
    stated = only_rank(read(usage + HYBRID + ',kv_cache_size_tokens="90090"} 1.0\n', version="0.24.0"))

    assert (unstated.kv_cache_capacity_tokens, unstated.kv_cache_used_tokens) == (None, None)
    assert (unstated.kv_cache_blocks, unstated.kv_cache_used_blocks) == (1001, 500)
    assert (stated.kv_cache_capacity_tokens, stated.kv_cache_used_tokens) == (90090, 45000)


def test_a_sliding_window_makes_the_product_no_capacity() -> None:
    page = (
        'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\n'
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",sliding_window="4096"} 1.0\n'
    )

    assert only_rank(read(page, version="0.6.0")).kv_cache_capacity_tokens is None


def test_an_explicit_budget_in_bytes_is_the_capacity_unless_blocks_are_overridden() -> None:
    usage = 'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
    info = (
        'vllm:cache_config_info{block_size="16",engine="0",kv_cache_memory_bytes="4294967296",'
        'num_gpu_blocks="9"'
    )

    budget = read(usage + info + ',num_gpu_blocks_override="None"} 1\n')
    overridden = read(usage + info + ',num_gpu_blocks_override="9"} 1\n')

    assert only_rank(budget).kv_cache_capacity_bytes == 4 * 2**30
    assert budget.settings["kv_cache_memory_bytes"] == "4294967296"
    assert only_rank(overridden).kv_cache_capacity_bytes is None


def test_of_two_models_on_one_page_the_pool_belongs_to_neither() -> None:
    page = (
        'vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.5\n'
        'vllm:kv_cache_usage_perc{engine="0",model_name="b"} 0.25\n'
        'vllm:num_requests_running{engine="0",model_name="a"} 1.0\n'
        'vllm:num_requests_running{engine="0",model_name="b"} 2.0\n'
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1001"} 1.0\n'
    )

    a, b = read(page).ranks

    assert (a.model, a.requests_running, a.kv_cache_usage_ratio, a.kv_cache_blocks) == ("a", 1, 0.5, None)
    assert (b.model, b.requests_running, b.kv_cache_usage_ratio, b.kv_cache_blocks) == ("b", 2, 0.25, None)


def test_a_model_with_waiting_requests_only_owns_no_pool() -> None:
    page = V0_PAGE + 'vllm:num_requests_waiting{model_name="other"} 3.0\n'

    llama, other = read(page, version="0.5.5").ranks

    assert (llama.model, llama.kv_cache_blocks) == ("llama", 4574)
    assert other == RankReading(model="other", requests_waiting=3)


def test_usage_without_the_null_block_gives_whole_blocks_from_0_9_on() -> None:
    page = (
        'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 1.0\n'
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="101"} 1.0\n'
    )

    assert only_rank(read(page, version="0.9.2")).kv_cache_used_blocks == 100
    assert only_rank(read(page, version="0.8.5")).kv_cache_used_blocks == 101


# --- the Rust front end


RUST_PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m",engine="0"} 3
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="m",engine="0"} 0.5
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{model_name="m",engine="0"} 42
# EOF
"""


def test_the_rust_front_end_states_no_blocks_and_owes_none() -> None:
    reading = read(RUST_PAGE, version="0.32.0", kind=OPENMETRICS)
    rank = only_rank(reading)

    assert (rank.requests_running, rank.kv_cache_usage_ratio, rank.generation_tokens_total) == (3, 0.5, 42)
    assert (rank.kv_cache_blocks, rank.kv_cache_capacity_tokens, rank.kv_cache_used_blocks) == (
        None,
        None,
        None,
    )
    assert "kv_cache_blocks" not in reading.missing
    assert reading.sleeping is None


def test_the_python_front_end_owes_its_blocks() -> None:
    classic = read(RUST_PAGE, version="0.32.0", kind=CLASSIC)
    asked_for_openmetrics = read("python_info 1\n" + RUST_PAGE, version="0.32.0", kind=OPENMETRICS)

    assert "kv_cache_blocks" in classic.missing
    assert "kv_cache_blocks" in asked_for_openmetrics.missing


# --- sleep


@pytest.mark.parametrize(
    ("states", "sleeping"),
    [
        ({}, None),
        ({"awake": 1, "weights_offloaded": 0, "discard_all": 0}, False),
        ({"awake": 0, "weights_offloaded": 1, "discard_all": 0}, True),
        ({"awake": 0, "weights_offloaded": 0, "discard_all": 1}, True),
        ({"awake": 0, "weights_offloaded": 0, "discard_all": 0}, None),
    ],
)
def test_sleep_is_the_state_that_is_one(states: dict[str, int], sleeping: bool | None) -> None:
    page = "".join(
        f'vllm:engine_sleep_state{{engine="0",model_name="m",sleep_state="{state}"}} {value}\n'
        for state, value in states.items()
    )

    assert read(page).sleeping is sleeping


# --- impossible values


@pytest.mark.parametrize("value", ["NaN", "-1.0", "+Inf", "1.5"])
def test_an_impossible_usage_is_dropped_and_named_and_costs_nothing_else(value: str) -> None:
    page = v1_page("kv_cache_usage_perc") + f'vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {value}\n'

    reading = read(page, version="0.32.0")
    rank = only_rank(reading)

    assert reading.bad_values == ("kv_cache_usage_ratio",)
    assert reading.missing == ()
    assert (rank.kv_cache_usage_ratio, rank.kv_cache_used_blocks, rank.kv_cache_used_tokens) == (
        None,
        None,
        None,
    )
    assert (rank.kv_cache_blocks, rank.kv_cache_capacity_tokens, rank.requests_running) == (1001, 16016, 3)


def test_a_usage_a_hair_above_one_is_one() -> None:
    page = 'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 1.00000001\n'

    reading = read(page)

    assert only_rank(reading).kv_cache_usage_ratio == 1.0
    assert reading.bad_values == ()


def test_every_quantity_with_an_impossible_value_is_named() -> None:
    page = (
        'vllm:num_requests_running{engine="0",model_name="m"} -3\n'
        'vllm:generation_tokens_total{engine="0",model_name="m"} NaN\n'
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} -1\n'
        'vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} NaN\n'
        'vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1\n'
        'vllm:prompt_tokens_total{engine="0",model_name="m"} 5\n'
    )

    reading = read(page)

    assert reading.bad_values == (
        "generation_tokens_total",
        "requests_finished_total",
        "requests_running",
        "time_to_first_token_seconds",
    )
    assert only_rank(reading) == RankReading(model="m", prompt_tokens_total=5)


# --- what should be there


@pytest.mark.parametrize(
    ("family", "quantity"),
    [
        ("kv_cache_usage_perc", "kv_cache_usage_ratio"),
        ("num_requests_running", "requests_running"),
        ("num_preemptions_total", "preemptions_total"),
        ("prefix_cache_queries_total", "prefix_cache_queries_tokens_total"),
        ("inter_token_latency_seconds", "inter_token_latency_seconds"),
        ("num_requests_waiting_by_reason", "requests_waiting_by_reason"),
        ("cache_config_info", "kv_cache_blocks"),
    ],
)
def test_a_family_that_an_upgrade_renamed_is_missing(family: str, quantity: str) -> None:
    reading = read(v1_page(family), version="0.32.0")

    assert reading.missing == (quantity,)


def test_what_a_version_never_gave_is_not_missing() -> None:
    page = v1_page("num_requests_waiting_by_reason", "kv_cache_usage_perc") + (
        'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
    )

    assert read(page, version="0.8.5").missing == ()


@pytest.mark.parametrize("version", [None, "0.7.3", "dev"])
def test_nothing_is_missing_where_the_version_promises_nothing(version: str | None) -> None:
    assert read('vllm:num_requests_running{model_name="m"} 1\n', version=version).missing == ()


# --- /v1/models and /version


def test_the_context_length_comes_from_the_models_endpoint() -> None:
    models: list[dict[str, Any]] = [
        {"id": "m", "root": "/models/llama", "parent": None, "max_model_len": 131072, "owned_by": "vllm"},
        {"id": "sql-lora", "root": "/adapters/sql", "parent": "m", "max_model_len": None, "owned_by": "vllm"},
    ]

    reading = read(v1_page(), version="0.32.0", models=models)

    assert only_rank(reading).max_model_len_tokens == 131072
    assert reading.served_root == "/models/llama"
    assert reading.settings["model"] == "/models/llama"
    assert reading.settings["max_model_len"] == "131072"


def test_an_adapter_before_its_base_model_is_not_taken_for_it() -> None:
    models: list[dict[str, Any]] = [
        {"id": "sql-lora", "root": "/adapters/sql", "parent": "m", "max_model_len": 1},
        {"id": "m", "root": "/models/llama", "parent": None, "max_model_len": 4096},
    ]

    reading = read(v1_page(), models=models)

    assert reading.served_root == "/models/llama"
    assert only_rank(reading).max_model_len_tokens == 4096


@pytest.mark.parametrize(
    "documents",
    [
        {"/v1/models": None, "/version": None},
        {"/v1/models": [], "/version": []},
        {"/v1/models": {"data": {}}, "/version": {"version": 5}},
        {"/v1/models": {"data": [None, 5, {"id": 5, "root": [], "max_model_len": "x"}]}, "/version": {}},
        {"/v1/models": {"error": "no"}, "/version": {"version": ""}},
    ],
)
def test_documents_of_another_shape_say_nothing(documents: dict[str, Any]) -> None:
    page = scan(v1_page().encode(), ADAPTER.wanted)

    reading = ADAPTER.read(Evidence(page, documents, {}))

    assert (reading.engine_version, reading.served_root) == (None, None)
    assert only_rank(reading).max_model_len_tokens is None
    assert only_rank(reading).requests_running == 3


def test_triton_calls_the_models_label_model() -> None:
    page = 'vllm:prompt_tokens_total{model="vllm_model",version="1"} 10\n'

    assert only_rank(read(page)) == RankReading(model="vllm_model", rank="0", prompt_tokens_total=10)


def test_an_empty_page_is_a_reading_without_ranks() -> None:
    assert read("") == EngineReading(engine="vllm")


def test_an_openmetrics_counter_with_exemplars_is_read() -> None:
    page = 'vllm:generation_tokens_total{engine="0",model_name="m"} 42.0 # {trace_id="a"} 1.0 1.7e9\n# EOF\n'

    assert only_rank(read(page, kind=OPENMETRICS)).generation_tokens_total == 42


def test_creation_times_are_not_taken_for_counts() -> None:
    page = (
        'vllm:generation_tokens_total{engine="0",model_name="m"} 42.0\n'
        'vllm:generation_tokens_created{engine="0",model_name="m"} 1.79e+09\n'
    )

    assert only_rank(read(page)).generation_tokens_total == 42


def test_a_simulated_server_says_so() -> None:
    assert read("brimline_simulated_server_info 1\n").simulated is True
    assert read(v1_page()).simulated is False


@pytest.mark.parametrize("version", ["0.8.5", "0.9.2", "0.10.1"])
def test_nothing_is_expected_of_engine_v0_which_lived_beside_v1(version: str) -> None:
    assert read(V0_PAGE, version=version).missing == ()


def test_a_build_from_a_checkout_names_no_release_to_expect_things_of() -> None:
    reading = read(v1_page("kv_cache_usage_perc"), version="0.1.dev9876+g0123abc")

    assert reading.engine_version == "0.1.dev9876+g0123abc"
    assert reading.missing == ()


@pytest.mark.parametrize(
    ("version", "labels", "device"),
    [
        ("0.32.0+cpu", "", "cpu"),
        ("0.20.1", ',cpu_kvcache_space_bytes="4294967296"', "cpu"),
        ("0.20.1", ',cpu_kvcache_space_bytes="None"', None),
        ("0.32.0+cu129", "", None),
        ("0.32.0", "", None),
    ],
)
def test_a_server_on_the_cpu_is_known_by_its_build_or_its_pool(
    version: str, labels: str, device: str | None
) -> None:
    page = v1_page() + f'vllm:cache_config_info{{engine="0",num_gpu_blocks="9"{labels}}} 1.0\n'

    assert read(page, version=version).settings.get("device") == device
