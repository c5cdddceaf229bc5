"""llama.cpp: its page, and its KV cache from /slots and /props."""

from __future__ import annotations

from typing import Any

import pytest

from brimline.engines.adapter import Endpoint, Evidence
from brimline.engines.llamacpp import ADAPTER
from brimline.exposition_text import scan
from brimline.readings import EngineReading, RankReading

PAGE = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 1200
llamacpp:prompt_tokens_cached_total 300
llamacpp:prompt_seconds_total 4.5
llamacpp:tokens_predicted_total 800
llamacpp:n_decode_total 90
llamacpp:prompt_tokens_seconds 266.667
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
"""

PROPS = {
    "build_info": "b6529-d32676d77",
    "model_path": "/models/llama-3.1-8b-q8_0.gguf",
    "model_alias": "chat",
    "total_slots": 4,
    "is_sleeping": False,
    "default_generation_settings": {"n_ctx": 4096},
}


def slot(
    tokens: int | None, *, is_processing: bool = True, n_ctx: int = 4096, number: int = 0
) -> dict[str, Any]:
    """A slot of /slots; tokens None for one that was never used, which lacks the field."""
    said: dict[str, Any] = {"id": number, "n_ctx": n_ctx, "is_processing": is_processing}
    if tokens is not None:
        said["n_prompt_tokens"] = tokens
    return said


def read(
    page: str = PAGE,
    *,
    slots: object = None,
    props: object = None,
    models: object = None,
    launch: dict[str, str] | None = None,
) -> EngineReading:
    asked = {"/slots": slots, "/props": props, "/v1/models": models}
    documents = {path: document for path, document in asked.items() if document is not None}
    return ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted), documents, {}, launch or {}))


def only_rank(reading: EngineReading) -> RankReading:
    [rank] = reading.ranks
    return rank


def test_the_page_and_its_documents_make_one_rank() -> None:
    slots = [slot(1000, n_ctx=2048, number=i) for i in range(2)] + [
        slot(None, is_processing=False, n_ctx=2048)
    ] * 2

    reading = read(slots=slots, props=PROPS, models={"data": [{"id": "chat"}]}, launch={"parallel": "4"})

    assert reading == EngineReading(
        engine="llamacpp",
        engine_version="b6529-d32676d77",
        settings={
            "model": "/models/llama-3.1-8b-q8_0.gguf",
            "parallel": "4",
            "n_ctx": "2048",
            "kv_unified": "false",
        },
        served_root="/models/llama-3.1-8b-q8_0.gguf",
        sleeping=False,
        ranks=(
            RankReading(
                model="chat",
                rank="0",
                requests_running=2,
                requests_waiting=1,
                prompt_tokens_total=1200,
                generation_tokens_total=800,
                prefix_cache_hits_tokens_total=300,
                prefix_cache_queries_tokens_total=1500,  # processed and found in the cache
                max_model_len_tokens=2048,
                kv_cache_capacity_tokens=4 * 2048,
                kv_cache_used_tokens=2000,
                kv_cache_usage_ratio=2000 / 8192,
                kv_cache_max_concurrency_requests=4,
            ),
        ),
    )


# --- which slots count


def test_used_is_what_the_slots_at_work_hold() -> None:
    slots = [slot(700), slot(300), slot(9, is_processing=False)]

    assert only_rank(read(slots=slots)).kv_cache_used_tokens == 1000


def test_an_idle_slot_keeps_its_last_value_and_counts_as_free() -> None:
    rank = only_rank(read(slots=[slot(4000, is_processing=False)]))

    assert (rank.kv_cache_used_tokens, rank.kv_cache_usage_ratio) == (0, 0.0)
    assert rank.kv_cache_capacity_tokens == 4096


def test_a_slot_that_was_never_used_lacks_the_field_and_holds_nothing() -> None:
    rank = only_rank(read(slots=[slot(None, is_processing=False)]))

    assert rank.kv_cache_used_tokens == 0


def test_a_slot_at_work_that_does_not_say_makes_the_use_unknown() -> None:
    reading = read(slots=[slot(500), slot(None)], launch={"parallel": "2"})
    rank = only_rank(reading)

    assert (rank.kv_cache_used_tokens, rank.kv_cache_usage_ratio) == (None, None)
    assert rank.kv_cache_capacity_tokens == 8192
    assert reading.missing == ("kv_cache_used_tokens",)


def test_a_slot_past_its_context_is_full() -> None:
    assert only_rank(read(slots=[slot(4100)])).kv_cache_usage_ratio == 1.0


# --- how large the cache is


def test_one_slot_is_the_whole_cache() -> None:
    rank = only_rank(read(slots=[slot(1024)]))

    assert (rank.kv_cache_capacity_tokens, rank.kv_cache_usage_ratio) == (4096, 0.25)
    assert (rank.max_model_len_tokens, rank.kv_cache_max_concurrency_requests) == (4096, 1)


@pytest.mark.parametrize(
    ("launch", "capacity"),
    [
        ({"parallel": "4"}, 4 * 4096),  # a number of slots splits the cache
        ({"parallel": "4", "kv_unified": "true"}, 4096),
        ({"parallel": "4", "kv_unified": "false"}, 4 * 4096),
        ({"parallel": "4", "kv_unified": "on"}, 4096),
        ({"parallel": "4", "kv_unified": "0"}, 4 * 4096),
        ({"ctx_size": "4096"}, 4096),  # the server's own choice of slots comes with a unified cache
        ({"ctx_size": "4096", "parallel": "-1"}, 4096),
        ({"ctx_size": "16384", "kv_unified": "false"}, 4 * 4096),
        ({"ctx_size": "0", "parallel": "4"}, 4 * 4096),  # the model's own context
    ],
)
def test_a_unified_cache_is_counted_once(launch: dict[str, str], capacity: int) -> None:
    slots = [slot(512, number=i) for i in range(4)]

    rank = only_rank(read(slots=slots, launch=launch))

    assert rank.kv_cache_capacity_tokens == capacity
    assert rank.kv_cache_used_tokens == 2048
    assert rank.kv_cache_usage_ratio == 2048 / capacity
    assert rank.kv_cache_max_concurrency_requests == capacity / 4096


@pytest.mark.parametrize(
    "launch",
    [
        {"parallel": "2", "ctx_size": "8192"},  # the server has four slots
        {"parallel": "4", "ctx_size": "2048"},  # which would make slots of 512 or 2048
        {"cache_type_k": "q8_0"},  # the number of slots may have come from the environment
        {"ctx_size": "8192", "parallel": "-1"},  # which would make slots of 8192
    ],
)
def test_no_capacity_is_told_where_the_declared_settings_are_not_the_servers(launch: dict[str, str]) -> None:
    rank = only_rank(read(slots=[slot(512, number=i) for i in range(4)], launch=launch))

    assert rank.kv_cache_capacity_tokens is None
    assert rank.kv_cache_usage_ratio is None
    assert rank.kv_cache_used_tokens == 2048


def test_a_context_that_was_rounded_up_agrees_with_the_declared_one() -> None:
    """`-c 1000 -np 3` gives three slots of 512 tokens."""
    slots = [slot(100, n_ctx=512, number=i) for i in range(3)]

    assert (
        only_rank(read(slots=slots, launch={"ctx_size": "1000", "parallel": "3"})).kv_cache_capacity_tokens
        == 1536
    )


def test_the_capacity_of_several_slots_is_unknown_without_launch_settings() -> None:
    reading = read(slots=[slot(512), slot(256)])
    rank = only_rank(reading)

    assert (rank.kv_cache_capacity_tokens, rank.kv_cache_usage_ratio) == (None, None)
    assert rank.kv_cache_max_concurrency_requests is None
    assert (rank.kv_cache_used_tokens, rank.max_model_len_tokens) == (768, 4096)
    assert reading.missing == ()


def test_what_an_operator_can_do_about_an_unknown_capacity_is_said() -> None:
    unknown, known = read(slots=[slot(1), slot(1)]), read(slots=[slot(1)])

    [note] = unknown.notes
    assert note == (
        "whether the 2 slots share one KV cache is not on its pages, so its capacity is not known: "
        "say how it was started, with launch_command or launch: {parallel: N}"
    )
    assert known.notes == ()


def test_slots_of_unequal_context_add_up() -> None:
    slots = [slot(10, n_ctx=1024), slot(10, n_ctx=512)]

    rank = only_rank(read(slots=slots, launch={"parallel": "2"}))

    assert (rank.kv_cache_capacity_tokens, rank.max_model_len_tokens) == (1536, 1024)


def test_a_context_of_zero_divides_nothing() -> None:
    rank = only_rank(read(slots=[slot(0, n_ctx=0)]))

    assert (rank.kv_cache_capacity_tokens, rank.kv_cache_usage_ratio) == (0, None)
    assert rank.kv_cache_max_concurrency_requests == 0


@pytest.mark.parametrize(
    "slots",
    [
        {"error": {"code": 501}},
        "no",
        5,
        [],
        [None, 5, []],
        [{"id": 0}],
        [{"n_ctx": "4096"}],
        [{"n_ctx": True}],
    ],
)
def test_slots_of_another_shape_say_nothing(slots: object) -> None:
    reading = read(slots=slots)
    rank = only_rank(reading)

    assert (rank.kv_cache_used_tokens, rank.kv_cache_capacity_tokens, rank.max_model_len_tokens) == (
        None,
    ) * 3
    assert reading.missing == ("kv_cache_used_tokens",)
    assert rank.requests_running == 2


# --- the page


def test_a_page_from_before_may_2025_states_the_usage_itself() -> None:
    page = PAGE + "llamacpp:kv_cache_usage_ratio 0.375\nllamacpp:kv_cache_tokens 1536\n"

    reading = read(page, props=PROPS)
    rank = only_rank(reading)

    assert (rank.kv_cache_usage_ratio, rank.kv_cache_capacity_tokens) == (0.375, None)
    assert reading.missing == ()


def test_a_server_without_slots_misses_its_cache() -> None:
    assert read(props=PROPS).missing == ("kv_cache_used_tokens",)


def test_a_page_alone_owes_no_cache_figures() -> None:
    assert read().missing == ()


def test_counters_keep_the_six_digits_that_the_server_prints() -> None:
    page = "llamacpp:prompt_tokens_total 1.23457e+06\nllamacpp:tokens_predicted_total 9.87654e+07\n"

    rank = only_rank(read(page))

    assert (rank.prompt_tokens_total, rank.generation_tokens_total) == (1_234_570, 98_765_400)


def test_an_impossible_value_is_dropped_and_named() -> None:
    reading = read(PAGE.replace("requests_processing 2", "requests_processing -1"))

    assert reading.bad_values == ("requests_running",)
    assert reading.missing == ()
    assert only_rank(reading).requests_running is None


def test_a_family_that_is_gone_is_missing() -> None:
    page = PAGE.replace("llamacpp:tokens_predicted_total", "llamacpp:tokens_generated_total")

    assert read(page).missing == ("generation_tokens_total",)


def test_the_cached_prompt_tokens_are_optional() -> None:
    rank = only_rank(read(PAGE.replace("llamacpp:prompt_tokens_cached_total 300\n", "")))

    assert (rank.prefix_cache_hits_tokens_total, rank.prefix_cache_queries_tokens_total) == (None, None)
    assert rank.prompt_tokens_total == 1200


# --- names


def test_the_model_is_named_as_the_models_endpoint_names_it() -> None:
    assert only_rank(read(props=PROPS, models={"data": [{"id": "served"}]})).model == "served"
    assert only_rank(read(props=PROPS)).model == "chat"
    assert only_rank(read(props={"model_path": "/m/x.gguf"})).model == "/m/x.gguf"
    assert only_rank(read()).model == ""


@pytest.mark.parametrize(
    "props", [[], "x", {"build_info": 5, "model_path": [], "total_slots": "4", "is_sleeping": 1}]
)
def test_props_of_another_shape_say_nothing(props: object) -> None:
    reading = read(props=props)

    assert (reading.engine_version, reading.served_root, reading.sleeping) == (None, None, None)
    assert reading.settings == {}


def test_a_sleeping_server_says_so() -> None:
    assert read(props={**PROPS, "is_sleeping": True}).sleeping is True


def test_what_users_wrote_is_not_kept_from_slots_and_props() -> None:
    kept = {endpoint.path: endpoint for endpoint in ADAPTER.endpoints}
    slots = [
        {"id": 0, "n_ctx": 4096, "prompt": "my secret", "next_token": [{"n_decoded": 5, "text": "my secret"}]}
    ]
    props = {
        "total_slots": 1,
        "chat_template": "my secret",
        "default_generation_settings": {"n_ctx": 8, "seed": 1},
    }

    assert kept["/slots"].keep(slots) == [{"id": 0, "n_ctx": 4096, "next_token": [{"n_decoded": 5}]}]
    assert kept["/props"].keep(props) == {"total_slots": 1, "default_generation_settings": {"n_ctx": 8}}


def test_an_endpoint_without_fields_keeps_the_whole_document() -> None:
    assert Endpoint("/v1/models").keep({"data": [{"id": "m"}]}) == {"data": [{"id": "m"}]}


def test_slots_are_asked_while_a_request_runs() -> None:
    assert {endpoint.path: endpoint.live for endpoint in ADAPTER.endpoints} == {
        "/v1/models": False,
        "/props": True,
        "/slots": True,
    }
    [slots] = [endpoint for endpoint in ADAPTER.endpoints if endpoint.when is not None]
    assert slots.path == "/slots"
    assert slots.when is not None
    for page, asked in (
        ("llamacpp:requests_processing 0\n", False),
        ("llamacpp:requests_processing 2\n", True),
        ("llamacpp:requests_deferred 0\n", True),  # what the page does not say is no reason to ask less
    ):
        assert slots.when(scan(page.encode(), ADAPTER.wanted)) is asked


IDLE = "llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\nllamacpp:tokens_predicted_total 5\n"


def test_of_an_idle_server_the_slots_are_those_of_its_props() -> None:
    """Its /slots is not asked: that would wake one that sleeps."""
    documents = {"/props": {"total_slots": 4, "default_generation_settings": {"n_ctx": 2048}}}

    reading = ADAPTER.read(
        Evidence(scan(IDLE.encode(), ADAPTER.wanted), documents, {}, {"parallel": "4", "ctx_size": "8192"})
    )

    [rank] = reading.ranks
    assert (rank.kv_cache_used_tokens, rank.kv_cache_capacity_tokens) == (0, 8192)
    assert (rank.kv_cache_usage_ratio, rank.max_model_len_tokens) == (0, 2048)
    assert "kv_cache_used_tokens" not in reading.missing


def test_of_a_busy_server_without_slots_the_use_is_not_known() -> None:
    documents = {"/props": {"total_slots": 4, "default_generation_settings": {"n_ctx": 2048}}}
    page = IDLE.replace("processing 0", "processing 1")

    reading = ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted), documents))

    assert reading.ranks[0].kv_cache_used_tokens is None
    assert "kv_cache_used_tokens" in reading.missing


@pytest.mark.parametrize("sleeping", [True, False, None])
def test_sleep_is_what_props_say_in_this_round(sleeping: bool | None) -> None:
    documents = {"/props": {} if sleeping is None else {"is_sleeping": sleeping}}

    assert ADAPTER.read(Evidence(scan(IDLE.encode(), ADAPTER.wanted), documents)).sleeping is sleeping


def test_builds_before_may_2025_state_their_cache_on_the_page() -> None:
    page = "llamacpp:kv_cache_usage_ratio 0.25\nllamacpp:kv_cache_tokens 512\n"

    [rank] = ADAPTER.read(Evidence(scan(page.encode(), ADAPTER.wanted), {"/props": {}})).ranks

    assert (rank.kv_cache_usage_ratio, rank.kv_cache_used_tokens) == (0.25, 512)
