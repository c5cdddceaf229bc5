"""The exporter beside a real vLLM server, read back through a real Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.conftest import Server, vllm_server
from exporter_process import Exporter, running_exporter
from prometheus_server import Prometheus, running_prometheus
from waiting import eventually

REQUESTS = 50
AT_ONCE = 16


@pytest.fixture(scope="module")
def server(vllm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with vllm_server(vllm_model, tmp_path_factory.mktemp("vllm"), "--max-num-seqs", str(AT_ONCE)) as running:
        yield running


@pytest.fixture(scope="module")
def exporter(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """Without a configuration: the server is found on its port."""
    folder = tmp_path_factory.mktemp("exporter")
    with running_exporter(folder, None, "--discover-ports", str(server.port)) as running:
        eventually(lambda: "found=" in running.log)
        yield running


@pytest.fixture(scope="module")
def prometheus(exporter: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), [exporter.port]) as running:
        eventually(lambda: running.value("brimline_target_up"))
        yield running


def test_the_kv_cache_is_known_in_tokens_blocks_and_bytes(prometheus: Prometheus) -> None:
    """4 layers, K and V, 2 heads of 32, 2 bytes: 1024 bytes a token; of 1 GiB that makes 1,048,576 tokens."""
    capacity = prometheus.value("brimline_kv_cache_capacity_tokens")
    blocks = prometheus.value("brimline_kv_cache_blocks")
    size = prometheus.value("brimline_kv_cache_block_tokens")

    assert capacity == 1_048_576
    assert blocks is not None
    assert size is not None
    assert blocks * size == 1_048_576
    assert prometheus.value("brimline_kv_cache_capacity_bytes") == 1 << 30
    assert prometheus.value("brimline_kv_cache_capacity_bytes / brimline_kv_cache_capacity_tokens") == 1024
    assert prometheus.value("brimline_max_model_len_tokens") == 2048
    assert prometheus.value("brimline_kv_cache_max_concurrency_requests") == 512


def test_what_is_predicted_of_the_cache_is_what_the_server_has(prometheus: Prometheus) -> None:
    """Model and settings alone give the server's own numbers, to the token."""
    assert prometheus.value("brimline_predicted_kv_cache_bytes_per_token") == 1024
    assert prometheus.value("brimline_predicted_kv_cache_capacity_tokens") == 1_048_576
    assert prometheus.value("brimline_predicted_kv_cache_max_concurrency_requests") == 512
    assert prometheus.value('brimline_predicted_memory_bytes{component="kv_cache"}') == 1 << 30
    assert prometheus.value('brimline_prediction_error_ratio{component="kv_cache"}') == 0
    # No GPU, so nothing is said of a card.
    assert prometheus.query("brimline_memory_bytes") == []
    assert prometheus.query("brimline_memory_headroom_bytes") == []
    assert prometheus.query("brimline_predicted_fits") == []


def test_the_server_is_described_and_nothing_is_missing(prometheus: Prometheus, server: Server) -> None:
    [(labels, one)] = prometheus.query("brimline_target_info")

    assert one == 1
    assert (labels["engine"], labels["engine_version"], labels["simulated"]) == ("vllm", "0.32.0", "false")
    assert prometheus.query("brimline_target_missing_quantities") == []
    assert prometheus.query("brimline_target_problem") == []
    settings = {row["setting"]: row["value"] for row, _ in prometheus.query("brimline_target_setting_info")}
    assert settings["max_num_seqs"] == str(AT_ONCE)  # from the process's own command line
    assert settings["max_model_len"] == "2048"
    assert settings["kv_cache_memory_bytes"] == str(1 << 30)


def test_load_is_seen_while_completions_run_and_every_token_is_counted(
    server: Server, prometheus: Prometheus
) -> None:
    def complete(number: int) -> int:
        answer = server.post(
            "/v1/completions",
            {
                "model": str(server.model),
                "prompt": f"request {number}: the memory of the server",
                "max_tokens": 300,
                "ignore_eos": True,
            },
        )
        return int(answer["usage"]["completion_tokens"])

    before = prometheus.value("brimline_generation_tokens_total")
    with ThreadPoolExecutor(REQUESTS) as pool:
        futures = [pool.submit(complete, number) for number in range(REQUESTS)]
        seen = eventually(
            lambda: prometheus.query("brimline_requests_running > 0 and brimline_requests_waiting > 0"),
        )
        usage = eventually(lambda: prometheus.value("brimline_kv_cache_usage_ratio > 0"))
        used_tokens = eventually(lambda: prometheus.value("brimline_kv_cache_used_tokens > 0"))
        returned = sum(future.result() for future in futures)

    def counted() -> float | None:
        now = prometheus.value("brimline_generation_tokens_total")
        return now if now is not None and now - (before or 0) >= returned else None

    assert seen
    assert 0 < usage < 1
    # No request holds more than its context window, in whole blocks of 128 tokens.
    assert 0 < used_tokens <= AT_ONCE * 2048
    assert returned == REQUESTS * 300
    assert eventually(counted) - (before or 0) == returned
    most = prometheus.value("max_over_time(brimline_requests_running[5m])")
    assert most is not None
    assert 1 <= most <= AT_ONCE
    assert prometheus.value('brimline_requests_finished_total{reason="length"}') == REQUESTS
    # What is seen again from the prefix cache counts as free: nothing is held once all have ended.
    assert eventually(lambda: prometheus.value("brimline_requests_running == 0") is not None)
    assert prometheus.value("brimline_kv_cache_usage_ratio") == 0
    print(f"seen running {most:.0f}, usage {usage:.5f}, used {used_tokens:.0f} tokens, counted {returned}")


def test_the_histograms_count_the_requests(prometheus: Prometheus) -> None:
    assert prometheus.value("brimline_time_to_first_token_seconds_count") == REQUESTS
    assert prometheus.value("brimline_request_generation_tokens_sum") == REQUESTS * 300


def test_preemptions_are_seen_and_a_stopped_server_leaves_no_value_behind(
    vllm_model: Path, tmp_path: Path
) -> None:
    """20 blocks of 128 tokens hold two thirds of what 4 requests of 1,000 tokens want."""
    labels = f'{{model="{vllm_model}",rank="0",target="small"}}'
    arguments = ("--num-gpu-blocks-override", "20", "--block-size", "128", "--max-num-seqs", "4")
    with vllm_server(vllm_model, tmp_path, *arguments) as server:
        config = f"targets: [{{name: small, url: '{server.url}', launch_command: {{from_pid: true}}}}]\n"
        with running_exporter(tmp_path, config) as exporter:

            def complete(number: int) -> None:
                wanted = {"model": str(server.model), "prompt": f"{number} the memory", "max_tokens": 1000}
                server.post("/v1/completions", {**wanted, "ignore_eos": True})

            idle = exporter.metrics()
            with ThreadPoolExecutor(4) as pool:
                futures = [pool.submit(complete, number) for number in range(4)]
                preempted = eventually(
                    lambda: exporter.metrics().get(f"preemptions_total{labels}"), within=120
                )
                for future in futures:
                    future.result()
            server.stop()
            after = exporter.metrics()

    assert idle[f"kv_cache_blocks{labels}"] == 20
    # The override makes the stated budget of 1 GiB untrue; the bytes come from the model's shape instead.
    assert idle[f"kv_cache_capacity_bytes{labels}"] == 20 * 128 * 1024
    assert preempted >= 1
    assert after['target_up{target="small"}'] == 0
    assert after['target_problem{reason="connection",target="small"}'] == 1
    assert not [
        name for name in after if name.startswith(("kv_cache", "requests", "generation", "model_info"))
    ]
