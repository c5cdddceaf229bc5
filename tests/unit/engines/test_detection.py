"""Whose page it is."""

from __future__ import annotations

import pytest

from brimline.engines import (
    ENGINES,
    METRICS_PATHS,
    describe_foreign_page,
    engine_of_models,
    engines_on,
    identify,
)
from brimline.errors import EngineError

VLLM = b'vllm:num_requests_running{model_name="m"} 1\nvllm:num_requests_waiting{model_name="m"} 0\n'
LLAMACPP = b"# HELP llamacpp:requests_processing x\nllamacpp:requests_processing 1\n"
NODE_EXPORTER = (
    b'# HELP go_goroutines Number of goroutines.\ngo_goroutines 8\nnode_cpu_seconds_total{cpu="0"} 5\n'
    b"node_memory_MemTotal_bytes 1e9\nnode_load1 0.5\nprocess_max_fds 1024\n"
)
HTML = b"\n<!doctype html><title>vllm:num_requests_running 1</title>\n"
ERROR = b'{"error": {"code": 501, "message": "This server does not support metrics endpoint."}}'


@pytest.mark.parametrize(
    ("page", "engines"),
    [
        (VLLM, ["vllm"]),
        (LLAMACPP, ["llamacpp"]),
        (LLAMACPP + VLLM, ["vllm", "llamacpp"]),  # the one with more families first
        (NODE_EXPORTER, []),
        (HTML, []),
        (ERROR, []),
        (b"", []),
        (b"# HELP vllm:num_requests_running x\n# TYPE vllm:num_requests_running gauge\n", []),
        (b'node_textfile{file="vllm:x"} 1\n', []),
        (b"\xff\xfe\x00vllm:x 1", []),
    ],
)
def test_an_engine_is_known_by_its_families(page: bytes, engines: list[str]) -> None:
    assert engines_on(page) == engines


def test_auto_takes_the_engine_with_most_families() -> None:
    assert identify(VLLM) == "vllm"
    assert identify(LLAMACPP, "auto") == "llamacpp"
    assert identify(LLAMACPP + VLLM) == "vllm"


def test_of_several_engines_the_configured_one_is_taken() -> None:
    assert identify(LLAMACPP + VLLM, "llamacpp") == "llamacpp"


@pytest.mark.parametrize(
    ("page", "wanted", "message"),
    [
        (VLLM, "llamacpp", "the configuration says llamacpp, but this is a page of vllm"),
        (LLAMACPP, "vllm", "the configuration says vllm, but this is a page of llamacpp"),
        (NODE_EXPORTER, "vllm", "the configuration says vllm, but this is no page of an inference engine"),
    ],
)
def test_another_engine_than_configured_is_refused(page: bytes, wanted: str, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        identify(page, wanted)

    assert (caught.value.reason, str(caught.value)) == ("wrong_engine", message)


@pytest.mark.parametrize("page", [NODE_EXPORTER, HTML, ERROR, b"", b"\x00\xff"])
def test_a_page_of_no_engine_is_refused_with_what_it_is(page: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        identify(page)

    assert (caught.value.reason, str(caught.value)) == ("not_an_engine", describe_foreign_page(page))


@pytest.mark.parametrize(
    ("page", "description"),
    [
        (b"", "the page is empty"),
        (b" \n\t\n", "the page is empty"),
        (HTML, "this is an HTML page, not metrics"),
        (ERROR, "this is JSON, not metrics"),
        (b"[]", "this is JSON, not metrics"),
    ],
)
def test_what_is_no_metrics_page_is_called_by_its_name(page: bytes, description: str) -> None:
    assert describe_foreign_page(page) == description


@pytest.mark.parametrize(
    ("page", "ending"),
    [
        (NODE_EXPORTER, "it has node_… (3), go_… (1), process_… (1)"),
        (b"tgi:x 1\n", "it has tgi_… (1)"),
        (b"# only comments\n", "it has no metric at all"),
    ],
)
def test_a_metrics_page_of_others_is_described_by_its_prefixes(page: bytes, ending: str) -> None:
    description = describe_foreign_page(page)
    beginning, _, rest = description.partition(" (")

    assert beginning == "no metric of a known inference engine"
    assert rest.partition(") stands on this page; ")[0].split(", ") == sorted(ENGINES)
    prefixes = description.rpartition("stands on this page; ")[2]
    assert sorted(prefixes.removeprefix("it has ").split(", ")) == sorted(
        ending.removeprefix("it has ").split(", ")
    )


@pytest.mark.parametrize(
    ("models", "engine"),
    [
        ({"data": [{"id": "m", "owned_by": "vllm"}]}, "vllm"),
        ({"data": [{"id": "m", "owned_by": "llamacpp"}]}, "llamacpp"),
        ({"data": [{"id": "m"}, {"id": "n", "owned_by": "vllm"}]}, "vllm"),
        ({"data": [{"id": "m", "owned_by": "openai"}]}, None),
        ({"data": [{"id": "m", "owned_by": None}, 5, None]}, None),
        ({"data": {}}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_models_endpoint_may_name_the_engine(models: object, engine: str | None) -> None:
    assert engine_of_models(models) == engine


def test_a_page_that_drains_a_queue_is_asked_last() -> None:
    # trtllm-serve answers /metrics with a queue that each reading empties; its Prometheus page is elsewhere
    assert METRICS_PATHS.index("/prometheus/metrics") < METRICS_PATHS.index("/metrics")


def test_every_adapter_is_registered_under_its_own_name() -> None:
    assert {name: adapter.name for name, adapter in ENGINES.items()} == {name: name for name in ENGINES}


@pytest.mark.parametrize(
    ("page", "said"),
    [
        # MLC-LLM: no types, tabs, and labels without quotes.
        (
            (
                b"# NOTE: these metrics count token in the internal tokenizer of the model\n"
                b"prompt_tokens_sum\t25\nengine_decode_time_sum{batch_size=1}\t0.5\n"
            ),
            "this is MLC-LLM",
        ),
        (b'npu_cache_usage_perc{model_name="m"} 0.5\nnum_requests_running{model_name="m"} 1\n', "MindIE"),
        (b'litellm_proxy_total_requests_metric_total{model="m"} 5\n', "LiteLLM, a gateway"),
        (b'nv_inference_count{model="resnet",version="1"} 5\n', "REPORT_CUSTOM_METRICS"),
        (b"ray_node_mem_used 5\nray_serve_num_router_requests 1\n", "Ray without vLLM's metrics"),
        (b'inference_pool_ready_pods{name="p"} 5\n', "endpoint picker"),
        (b'DCGM_FI_DEV_FB_USED{gpu="0"} 5\n', "dcgm-exporter"),
    ],
    ids=["MLC-LLM", "MindIE", "LiteLLM", "Triton alone", "Ray alone", "endpoint picker", "dcgm-exporter"],
)
def test_a_program_that_is_often_taken_for_an_engine_is_named(page: bytes, said: str) -> None:
    assert engines_on(page) == []
    assert said in describe_foreign_page(page)
