"""The exporter beside a real llama.cpp server, against what /slots says at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.conftest import Server, llamacpp_server
from exporter_process import Exporter, running_exporter
from prometheus_server import Prometheus, running_prometheus
from waiting import eventually

SLOTS = 2
CONTEXT = 8192


@pytest.fixture(scope="module")
def server(llamacpp_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("llamacpp")
    with llamacpp_server(llamacpp_model, folder, context=CONTEXT, slots=SLOTS) as running:
        yield running


@pytest.fixture(scope="module")
def exporter(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    config = (
        f"targets: [{{name: llama, url: '{server.url}', model: '{server.model}', "
        f"launch: {{ctx_size: {CONTEXT}, parallel: {SLOTS}}}}}]\n"
    )
    with running_exporter(tmp_path_factory.mktemp("exporter"), config) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(exporter: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), [exporter.port]) as running:
        eventually(lambda: running.value("brimline_target_up"))
        yield running


def held(server: Server) -> int:
    """Tokens of the slots at work, as /slots says."""
    return sum(slot["n_prompt_tokens"] for slot in server.get("/slots") if slot["is_processing"])


def test_capacity_is_the_slots_contexts_and_bytes_come_from_the_models_shape(prometheus: Prometheus) -> None:
    """8 layers, K and V, 2 heads of 128, 2 bytes: 8192 bytes a token."""
    assert prometheus.value("brimline_kv_cache_capacity_tokens") == CONTEXT
    assert prometheus.value("brimline_kv_cache_capacity_bytes") == CONTEXT * 8192
    assert prometheus.value("brimline_max_model_len_tokens") == CONTEXT / SLOTS
    assert prometheus.value("brimline_kv_cache_max_concurrency_requests") == SLOTS
    assert prometheus.query("brimline_target_problem") == []


def test_used_tokens_are_what_the_slots_at_work_hold(
    server: Server, exporter: Exporter, prometheus: Prometheus
) -> None:
    def complete(number: int) -> int:
        wanted = {
            "prompt": "abab" * (number + 3),
            "n_predict": 1500,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer = server.post("/completion", wanted)
        return int(answer["tokens_predicted"])

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(complete, number) for number in range(3)]
        eventually(lambda: held(server) > 100)
        before = held(server)
        seen = exporter.metrics()
        after = held(server)
        in_prometheus = eventually(lambda: prometheus.value("brimline_kv_cache_used_tokens > 0"))
        waiting = eventually(lambda: prometheus.value("brimline_requests_waiting > 0"))
        returned = sum(future.result() for future in futures)

    [used] = [value for name, value in seen.items() if name.startswith("kv_cache_used_tokens")]
    [ratio] = [value for name, value in seen.items() if name.startswith("kv_cache_usage_ratio")]
    [used_bytes] = [value for name, value in seen.items() if name.startswith("kv_cache_used_bytes")]
    [running] = [value for name, value in seen.items() if name.startswith("requests_running")]
    print(f"/slots before {before}, exporter {used:.0f}, /slots after {after}; ratio {ratio:.4f}")
    assert before <= used <= after
    assert ratio == pytest.approx(used / CONTEXT)
    assert used_bytes == used * 8192
    assert running == SLOTS
    assert waiting == 1
    assert in_prometheus > 0
    assert returned == 3 * 1500
    assert eventually(lambda: prometheus.value("brimline_generation_tokens_total == 4500")) == 4500
    # Idle slots keep their last value on /slots, but hold nothing that could not be dropped.
    assert eventually(lambda: prometheus.value("brimline_requests_running == 0") is not None)
    assert prometheus.value("brimline_kv_cache_used_tokens") == 0


def test_a_server_that_may_sleep_is_not_kept_awake(llamacpp_model: Path, tmp_path: Path) -> None:
    """It frees its model after three idle seconds, and is scraped each half second meanwhile."""

    def asleep(exporter: Exporter) -> bool:
        seen = exporter.metrics()
        assert not [name for name in seen if name.startswith("target_problem")]
        [capacity] = [value for name, value in seen.items() if name.startswith("kv_cache_capacity_tokens")]
        assert capacity == 2 * 1024
        return [value for name, value in seen.items() if name.startswith("target_sleeping")] == [1]

    with llamacpp_server(llamacpp_model, tmp_path, "sleep_idle_seconds=3", context=2048, slots=2) as server:
        config = f"targets: [{{name: t, url: '{server.url}', launch: {{ctx_size: 2048, parallel: 2}}}}]\n"
        with running_exporter(tmp_path, config) as exporter:
            eventually(lambda: asleep(exporter))
            assert all(asleep(exporter) for _ in range(10))
            assert server.get("/props")["is_sleeping"] is True
            server.post("/completion", {"prompt": "ab", "n_predict": 4})
            assert not asleep(exporter)
            eventually(lambda: asleep(exporter))
