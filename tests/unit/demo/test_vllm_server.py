"""The simulated server as a real process, read the way every server is read."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from brimline.demo.profiles import LONG_CONTEXT, PROFILES, SHORT_CONTEXT, ServerProfile
from brimline.demo.vllm_server import RunningServer
from brimline.engines.adapter import Evidence
from brimline.engines.families import parse_version
from brimline.engines.vllm import ADAPTER
from brimline.exposition_text import looks_complete, scan
from brimline.readings import EngineReading
from waiting import eventually


@dataclass(frozen=True)
class Served:
    profile: ServerProfile
    url: str
    started: float

    def body(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def document(self, path: str) -> Any:
        return json.loads(self.body(path))

    def reading(self) -> EngineReading:
        documents = {path: self.document(path) for path in ("/version", "/v1/models")}
        return ADAPTER.read(Evidence(scan(self.body("/metrics"), ADAPTER.wanted), documents))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture(name="server", scope="module", params=sorted(PROFILES))
def _server(request: pytest.FixtureRequest) -> Iterator[Served]:
    port = free_port()
    started = time.time()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "brimline.demo.vllm_server"),
            *("--port", str(port), "--profile", request.param, "--seed", "1", "--rate", "20"),
        ]
    )
    served = Served(PROFILES[request.param], f"http://127.0.0.1:{port}", started)

    def is_up() -> bool:
        assert process.poll() is None
        try:
            return served.body("/health") == b""
        except OSError:
            return False

    try:
        eventually(is_up)
        yield served
    finally:
        process.terminate()
        process.wait(60)


def test_the_adapter_reads_all_that_vllm_033_gives(server: Served) -> None:
    reading = server.reading()

    assert reading.missing == ()
    assert reading.bad_values == ()
    assert reading.unparsed_lines == reading.dropped_series == 0
    assert parse_version(reading.engine_version) == (0, 33, 0)
    assert reading.sleeping is False


def test_everything_says_that_it_is_simulated(server: Served) -> None:
    reading = server.reading()
    helps = [
        line for line in server.body("/metrics").decode().splitlines() if line.startswith("# HELP vllm:")
    ]

    assert reading.simulated
    assert reading.engine_version == "0.33.0+simulated"
    assert [rank.model for rank in reading.ranks] == ["simulated-llama-3.1-8b"]
    assert helps
    assert all(line.split(None, 3)[3].startswith("Simulated: ") for line in helps)


def test_the_pool_is_what_the_budget_of_an_h100_leaves(server: Served) -> None:
    # ceil(84,943,044,608 · 0.9) less 14.96 GiB weights, 4.76 activations, 0.14 outside torch, 0.5 graphs
    # is 50.84 GiB; a token costs 131,072 bytes in bf16 and half of it in fp8.
    expected = {"short-context": (26_030, 416_480, 32_768), "long-context": (52_061, 832_976, 131_072)}
    (rank,) = server.reading().ranks
    blocks, tokens, context = expected[server.profile.name]

    assert (rank.kv_cache_blocks, rank.kv_cache_block_tokens) == (blocks, 16)
    assert rank.kv_cache_capacity_tokens == tokens
    assert rank.max_model_len_tokens == context
    assert rank.kv_cache_max_concurrency_requests == pytest.approx(tokens / context)
    assert rank.kv_cache_capacity_bytes is None


def test_the_settings_and_the_model_folder_are_stated(server: Served) -> None:
    reading = server.reading()
    dtype = {"short-context": "auto", "long-context": "fp8"}[server.profile.name]

    assert reading.settings["kv_cache_dtype"] == dtype
    assert reading.settings["gpu_memory_utilization"] == "0.9"
    assert b'enable_prefix_caching="True"' in server.body("/metrics")
    assert reading.start_time == pytest.approx(server.started, abs=15)
    assert reading.served_root is not None
    shape = json.loads((Path(reading.served_root) / "config.json").read_text(encoding="utf-8"))
    assert (shape["num_hidden_layers"], shape["num_key_value_heads"], shape["head_dim"]) == (32, 8, 128)


def test_the_traffic_flows_in_real_time(server: Served) -> None:
    def generated() -> float:
        (rank,) = server.reading().ranks
        return rank.generation_tokens_total or 0.0

    first = eventually(generated)

    assert eventually(lambda: generated() > first)
    (rank,) = server.reading().ranks
    assert rank.kv_cache_usage_ratio is not None
    assert 0 < rank.kv_cache_usage_ratio <= 1
    assert rank.time_to_first_token_seconds is not None
    assert rank.time_to_first_token_seconds.count > 0


def test_the_page_keeps_to_the_exposition_format(server: Served) -> None:
    body = server.body("/metrics")
    families = {family.name for family in text_string_to_metric_families(body.decode())}

    assert looks_complete(body, "text/plain")
    assert {"vllm:cache_config_info", "vllm:request_success", "python_info"} <= families


def test_waiting_is_split_by_reason_and_sums_up(server: Served) -> None:
    (rank,) = server.reading().ranks

    assert rank.requests_waiting_by_reason is not None
    assert set(rank.requests_waiting_by_reason) == {"capacity", "deferred"}
    assert sum(rank.requests_waiting_by_reason.values()) == rank.requests_waiting


def test_the_models_document_has_the_form_of_vllms(server: Served) -> None:
    (entry,) = server.document("/v1/models")["data"]

    assert (entry["owned_by"], entry["parent"]) == ("vllm", None)
    assert entry["max_model_len"] == server.profile.max_model_len
    assert Path(entry["root"]).is_absolute()


def test_a_long_pause_is_not_caught_up_with() -> None:
    seconds = [0.0]
    server = RunningServer(
        SHORT_CONTEXT, SHORT_CONTEXT.simulation(seed=1), clock=lambda: seconds[0], start_time=0.0
    )
    seconds[0] = 3.0
    server.follow()
    seconds[0] = 10_000.0

    server.follow()

    assert 8.0 <= server.simulation.engine.now < 9.0


@pytest.mark.parametrize("seed", [1, 2])
def test_the_short_context_overflows_at_the_peak_and_recovers(seed: int) -> None:
    simulation = SHORT_CONTEXT.simulation(seed=seed)
    engine = simulation.engine
    waiting = {}
    usage = {}
    for second in range(1, 481):
        simulation.advance_to(second)
        waiting[second] = len(engine.waiting)
        usage[second] = engine.kv_cache_usage_ratio

    assert max(usage.values()) > 0.99
    assert max(waiting.values()) > 10
    assert engine.preemptions_total > 10
    assert min(usage[second] for second in range(180, 241)) < 0.3
    assert waiting[210] == waiting[450] == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_the_long_context_takes_the_same_traffic_with_room_to_spare(seed: int) -> None:
    simulation = LONG_CONTEXT.simulation(seed=seed)
    highest = 0.0
    for second in range(1, 481):
        simulation.advance_to(second)
        highest = max(highest, simulation.engine.kv_cache_usage_ratio)

    assert 0.25 < highest < 0.8
    assert simulation.engine.preemptions_total == 0
