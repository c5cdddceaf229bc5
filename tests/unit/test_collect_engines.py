"""Finding the engine of a server over real sockets: what is asked, and what never is."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from brimline.capture import write_capture
from brimline.collect import Collector
from brimline.config import Config, GpuConfig, PidSource, Target
from brimline.discovery import Discovery, usual_ports
from brimline.exposition import render
from brimline.readings import Snapshot, TargetSnapshot
from brimline.saved_page import as_json, open_saved, read_saved
from brimline.strict_yaml import Seconds
from fake_servers import NOT_FOUND, FakeServer, FakeVllm, Reply, answer, json_answer, llamacpp_routes

GIB = 1 << 30
OLLAMA: dict[str, Reply] = {
    "/api/ps": json_answer(
        {
            "models": [
                {
                    "name": "llama3.1:8b",
                    "model": "llama3.1:8b",
                    "size": 8 * GIB,
                    "size_vram": 6 * GIB,
                    "context_length": 8192,
                    "details": {"quantization_level": "Q4_K_M"},
                }
            ]
        }
    ),
    "/api/version": json_answer({"version": "0.13.1"}),
    "/v1/models": json_answer({"object": "list", "data": [{"id": "llama3.1:8b", "owned_by": "library"}]}),
    "/": answer("Ollama is running", content_type="text/plain"),
}
TRTLLM_PAGE = 'trtllm_num_requests_running{model_name="m",engine_type="trtllm"} 2.0\n'
ITERATIONS = [{"iter": 1, "iterLatencyMS": 4.2, "numActiveRequests": 2}]


def rounds(server: FakeServer, count: int = 1, **settings: Any) -> list[TargetSnapshot]:
    """What so many scrapes of the server give."""

    async def scenario() -> list[Snapshot]:
        target = Target(name="t", url=server.url, **{"timeout": Seconds(60.0), **settings})
        collector = Collector(Config(targets=[target], gpu=GpuConfig(backend="none")))
        await collector.start()
        try:
            return [await collector.snapshot() for _ in range(count)]
        finally:
            await collector.close()

    return [snapshot.targets[0] for snapshot in asyncio.run(scenario())]


# --- an engine without a page of metrics


@pytest.mark.parametrize("engine", ["auto", "ollama"])
def test_ollama_is_read_from_its_state(engine: str) -> None:
    with FakeServer(OLLAMA) as server:
        [snapshot] = rounds(server, engine=engine)

    assert (snapshot.up, snapshot.problems) == (True, ())
    assert snapshot.reading is not None
    assert (snapshot.reading.engine, snapshot.reading.engine_version) == ("ollama", "0.13.1")
    [rank] = snapshot.reading.ranks
    assert rank.model_memory_bytes == {"gpu": 6 * GIB, "host": 2 * GIB}
    assert snapshot.settings["context_length"] == "8192"


def test_a_found_ollama_is_asked_for_its_state_alone() -> None:
    with FakeServer(OLLAMA) as server:
        rounds(server)
        server.requests.clear()
        rounds(server, 3, engine="ollama")

    assert server.paths() == ["/api/ps", "/api/version", "/api/ps", "/api/ps"]


def test_models_that_come_and_go_are_no_fault() -> None:
    with FakeServer({**OLLAMA, "/api/ps": json_answer({"models": []})}) as server:
        [snapshot] = rounds(server)

    assert (snapshot.up, snapshot.problems) == (True, ())
    assert snapshot.reading is not None
    assert snapshot.reading.ranks == ()


def test_the_memory_of_a_model_is_exposed_by_place() -> None:
    with FakeServer(OLLAMA) as server:
        [snapshot] = rounds(server)
        page, _ = render(Snapshot(time=0.0, targets=(snapshot,)))

    samples = [one for family in text_string_to_metric_families(page.decode()) for one in family.samples]
    memory = {one.labels["place"]: one.value for one in samples if one.name == "brimline_model_memory_bytes"}
    assert memory == {"gpu": 6 * GIB, "host": 2 * GIB}
    assert "brimline_generation_tokens_total" not in {one.name for one in samples}


def test_a_declared_context_that_does_not_run_differs() -> None:
    with FakeServer(OLLAMA) as server:
        [snapshot] = rounds(server, launch={"context_length": 131072})

    assert snapshot.mismatches == {"context_length": True}


def test_a_state_that_is_cut_off_or_another_servers_is_not_taken_for_ollamas() -> None:
    with FakeServer({"/api/ps": answer('{"models": [{"na', content_type="application/json")}) as server:
        [cut] = rounds(server, engine="ollama")
    with FakeServer({"*": json_answer({"status": "ok"})}) as server:
        [other] = rounds(server, engine="ollama")

    assert [(one.up, one.problems[0].reason) for one in (cut, other)] == [(False, "wrong_engine")] * 2


def test_a_capture_of_ollama_reads_as_the_server_did(tmp_path: Path) -> None:
    async def captured(url: str) -> None:
        collector = Collector(Config(targets=[Target(name="t", url=url)], gpu=GpuConfig(backend="none")))
        await collector.start()
        try:
            reader = collector.reader("t")
            assert reader is not None
            reader.keep_raw = True
            snapshot = await reader.read()
            write_capture(tmp_path / "capture", snapshot, reader)
        finally:
            await collector.close()

    with FakeServer(OLLAMA) as server:
        asyncio.run(captured(server.url))

    names = sorted(path.name for path in (tmp_path / "capture").iterdir())
    assert names == ["api_ps.json", "api_version.json", "capture.json", "v1_models.json"]
    [engine] = as_json(read_saved(open_saved(str(tmp_path / "capture"))))["engines"]
    assert (engine["engine"], engine["engine_version"]) == ("ollama", "0.13.1")
    assert engine["models"][0]["ranks"][0]["model_memory_bytes"] == {"gpu": 6 * GIB, "host": 2 * GIB}


def test_a_local_ollama_is_discovered_at_its_usual_port() -> None:
    async def look(port: int) -> list[Target]:
        return await Discovery([port]).look()

    with FakeServer(OLLAMA) as server:
        [found] = asyncio.run(look(server.port))

    assert 11434 in usual_ports()
    assert found.url == server.url


# --- trtllm-serve's queue


def test_the_queue_of_a_trtllm_server_that_names_itself_is_never_asked() -> None:
    routes = {
        "/v1/models": json_answer({"data": [{"id": "m", "owned_by": "tensorrt_llm"}]}),
        "/prometheus/metrics": answer(TRTLLM_PAGE),
        "/metrics": json_answer(ITERATIONS),
    }
    with FakeServer(routes) as server:
        snapshots = rounds(server, 3)
    with FakeServer({**routes, "/prometheus/metrics": NOT_FOUND}) as without:
        disabled = rounds(without, 3)

    assert [snapshot.up for snapshot in snapshots] == [True] * 3
    assert [one.problems[0].reason for one in disabled] == ["metrics_disabled"] * 3
    assert "return_perf_metrics: true" in disabled[0].problems[0].detail
    assert [one.count("/metrics") + one.count("/perf_metrics") for one in (server, without)] == [0, 0]


@pytest.mark.parametrize("queue", [ITERATIONS, []], ids=["iterations", "nothing since the last reader"])
def test_a_queue_is_asked_once_where_nothing_else_told_whose_it_is(queue: list[Any]) -> None:
    with FakeServer(
        {"/metrics": json_answer(queue), "/version": json_answer({"version": "1.1.0"})}
    ) as server:
        snapshots = rounds(server, 4)

    assert [one.problems[0].reason for one in snapshots] == ["metrics_disabled"] * 4
    assert server.count("/metrics") == 1
    assert server.count("/prometheus/metrics") == 4  # it may be started with its metrics on any time


def test_a_configured_path_that_is_a_queue_is_read_once() -> None:
    with FakeServer({"/metrics": json_answer(ITERATIONS)}) as server:
        snapshots = rounds(server, 3, metrics_path="/metrics")
        configured = rounds(server, 3, metrics_path="/metrics", engine="trtllm")

    assert [one.problems[0].reason for one in snapshots + configured] == ["metrics_disabled"] * 6
    assert "remove metrics_path" in snapshots[0].problems[0].detail
    assert server.count("/metrics") == 2  # by two exporters


def test_a_configured_engine_without_its_page_says_what_to_do() -> None:
    with FakeServer({}) as server:
        [snapshot] = rounds(server, engine="sglang")

    [problem] = snapshot.problems
    assert problem.reason == "not_found"
    assert problem.detail.endswith("set metrics_path, or start it with --enable-metrics")


def test_another_server_behind_the_same_address_is_looked_at_anew() -> None:
    with FakeServer({"/metrics": json_answer([]), "/version": json_answer({"version": "1.1.0"})}) as server:

        async def scenario() -> list[Snapshot]:
            target = Target(name="t", url=server.url)
            collector = Collector(Config(targets=[target], gpu=GpuConfig(backend="none")))
            await collector.start()
            try:
                before = await collector.snapshot()
                server.routes.update(
                    {
                        "/metrics": answer('vllm:num_requests_running{model_name="m"} 1\n'),
                        "/version": json_answer({"version": "0.32.0"}),
                    }
                )
                return [before, await collector.snapshot()]
            finally:
                await collector.close()

        before, after = (snapshot.targets[0] for snapshot in asyncio.run(scenario()))

    assert before.problems[0].reason == "metrics_disabled"
    assert (after.up, after.reading.engine if after.reading else None) == (True, "vllm")


# --- metrics that are switched off


@pytest.mark.parametrize(
    ("owner", "cure"),
    [("sglang", "--enable-metrics"), ("lmdeploy", "--disable-metrics"), ("vllm", "--disable-log-stats")],
)
def test_an_engine_without_its_metrics_says_how_they_are_switched_on(owner: str, cure: str) -> None:
    routes = {"/v1/models": json_answer({"data": [{"id": "m", "owned_by": owner}]})}
    with FakeServer(routes) as server:
        [snapshot] = rounds(server)

    assert snapshot.problems[0].reason == "metrics_disabled"
    assert cure in snapshot.problems[0].detail


# --- an engine that sleeps


def test_an_idle_llamacpp_server_is_left_asleep() -> None:
    """Reading /slots would load its model again, or keep it from ever being put away."""
    idle = "llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\nllamacpp:tokens_predicted_total 5\n"
    props = {"total_slots": 1, "default_generation_settings": {"n_ctx": 2048}, "is_sleeping": True}
    routes = {**llamacpp_routes(), "/metrics": answer(idle), "/props": json_answer(props)}
    with FakeServer(routes) as server:
        asleep = rounds(server, 3)
        assert server.count("/slots") == 0
        server.routes["/metrics"] = answer(idle.replace("processing 0", "processing 1"))
        server.routes["/props"] = json_answer({**props, "is_sleeping": False})
        rounds(server, 2)
        assert server.count("/slots") == 2

    assert [one.reading.sleeping for one in asleep if one.reading is not None] == [True] * 3
    assert [one.problems for one in asleep] == [()] * 3


# --- a process list that is slow to read


def test_a_launch_command_that_is_slow_to_read_is_taken_over_once_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process list of a busy machine: patched, because nothing else makes it slow for sure."""
    gate = threading.Event()

    def slowly(_port: int) -> int:
        gate.wait(60)
        return os.getpid()

    monkeypatch.setattr("brimline.collect.listening_pid", slowly)
    monkeypatch.setattr("brimline.collect.command_line", lambda _pid: ["vllm", "serve", "m", "-tp", "2"])
    monkeypatch.setattr("brimline.collect.MODEL_PATIENCE", 0.05)

    async def scenario(url: str) -> list[Snapshot]:
        target = Target(name="t", url=url, launch_command=PidSource(from_pid=True))
        collector = Collector(Config(targets=[target], gpu=GpuConfig(backend="none")))
        await collector.start()
        try:
            before = await collector.snapshot()
            pending = collector.is_predicting
            gate.set()
            deadline = asyncio.get_running_loop().time() + 60
            while collector.is_predicting and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.05)
                await collector.snapshot()
            assert pending
            return [before, await collector.snapshot()]
        finally:
            await collector.close()

    with FakeServer(FakeVllm().routes()) as server:
        before, after = (snapshot.targets[0] for snapshot in asyncio.run(scenario(server.url)))

    assert (before.up, [problem.reason for problem in before.problems]) == (True, ["launch_command"])
    assert "tensor_parallel_size" not in before.settings
    assert after.problems == ()
    assert after.settings["tensor_parallel_size"] == "2"
