"""JSON of servers that anybody may run: what is decoded of it, and what it costs where it is hostile."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from brimline import json_text
from brimline.collect import Collector
from brimline.config import Config, GpuConfig, Target
from brimline.server import Exporter
from brimline.strict_yaml import Seconds
from fake_servers import FakeServer, FakeVllm, Reply, answer, gzip_answer, gzipped, json_answer

# Half the bytes are lists of 56 bytes each: the most memory that a byte of JSON can ask for, nearly.
LISTS = b"[" + b"[]," * (5 << 20) + b"1]"
MODELS = b'{"models":[' + b'{"size_vram":1},' * (1 << 20) + b'{"size_vram":1}]}'
IN_ONE_MIB = b"[" + b"[]," * (300 << 10) + b"1]"


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b'{"version": "0.9"}', {"version": "0.9"}),
        (b"[1, 2.5, null]", [1, 2.5, None]),
        (b"", None),
        (b"# HELP x\n", None),
        (b'{"a": 1', None),
        (b"\xff", None),
        (b"9" * 5000, None),
        (b"[" * 32 + b"]" * 32, json.loads("[" * 32 + "]" * 32)),
        (b"[" * 33 + b"]" * 33, None),
        (b'{"a":' * 40 + b"1" + b"}" * 40, None),
        (b"[" * 100_000, None),
        (b"[" + b"0," * 32_000 + b"0]", [0] * 32_001),
        (b"[" + b"0," * 33_000 + b"0]", None),
        (b'"' + b"x" * (1 << 20) + b'"', None),
        (b'["' + b'\\",' * 100_000 + b'"]', ['",' * 100_000]),
        (b'["' + b'\\",' * 100_000, None),
    ],
)
def test_a_document_is_decoded_within_bounds_of_size_values_and_depth(body: bytes, document: object) -> None:
    assert json_text.decode(body) == document


def test_the_beginning_of_a_document_is_that_of_the_whole_one() -> None:
    document = {"data": [{"id": f"m{n}", "n": n} for n in range(100)]}
    whole = json.dumps(document, indent=2)

    assert json_text.beginning(document, 1 << 20) == whole
    assert json_text.beginning(document, 500) == whole[:500]


@pytest.mark.parametrize(
    ("paths", "reply", "reason"),
    [
        (("/version", "/v1/models"), lambda: answer(LISTS), "config_endpoint"),
        (("/version", "/v1/models"), lambda: gzip_answer(gzipped(LISTS)), "config_endpoint"),
        (("/version", "/v1/models"), lambda: gzip_answer(gzipped(IN_ONE_MIB)), "config_endpoint"),
        (("/metrics",), lambda: gzip_answer(gzipped(MODELS)), "too_large"),
        (("/api/ps",), lambda: gzip_answer(gzipped(MODELS)), "too_large"),
    ],
    ids=["plain", "gzip", "values", "in place of a page", "state"],
)
def test_hostile_json_costs_the_target_little_memory_and_no_other_any_time(
    paths: tuple[str, ...], reply: Callable[[], Reply], reason: str
) -> None:
    async def longest_pause(stop: asyncio.Event) -> float:
        """In seconds of this process' own work, as others' may hold it up for any time."""
        longest, before = 0.0, time.process_time()
        while not stop.is_set():
            await asyncio.sleep(0.01)
            now = time.process_time()
            longest, before = max(longest, now - before), now
        return longest

    async def scenario(url: str, good: str) -> None:
        patience = Seconds(60.0)
        targets = [Target(name=f"hostile{n}", url=url, timeout=patience) for n in range(3)]
        targets.append(Target(name="good", url=good, timeout=patience))
        collector = Collector(Config(targets=targets, gpu=GpuConfig(backend="none")))
        await collector.start()
        stop = asyncio.Event()
        pauses = asyncio.ensure_future(longest_pause(stop))
        try:
            snapshot = await collector.snapshot()
        finally:
            stop.set()
            await collector.close()
        met = snapshot.target("hostile0")
        healthy = snapshot.target("good")

        assert met is not None
        assert met.has_problem(reason)
        assert healthy is not None
        assert healthy.up
        assert await pauses < 1.5  # unbounded, it was 3 s for a single one

    routes = FakeVllm().routes() if reason == "config_endpoint" else {}
    with (
        FakeServer({**routes, **dict.fromkeys(paths, reply())}) as hostile,
        FakeServer(FakeVllm().routes()) as good,
    ):
        tracemalloc.start()
        try:
            asyncio.run(scenario(hostile.url, good.url))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    # A page may have 16 MiB, and is copied once; decoded, each of these has 500 MB.
    assert peak < 3 * (40 << 20)


def test_debug_shows_the_beginning_of_a_long_document() -> None:
    models = {"data": [{"id": f"m{n}", "owned_by": "vllm", "root": "x" * 40} for n in range(4000)]}

    async def scenario(url: str) -> str:
        collector = Collector(
            Config(
                targets=[Target(name="chat", url=url, timeout=Seconds(60.0))], gpu=GpuConfig(backend="none")
            )
        )
        await collector.start()
        try:
            exporter = Exporter(collector, None)
            application = exporter.application()
            request = make_mocked_request("GET", "/debug?target=chat", app=application)
            handler = (await application.router.resolve(request)).handler
            response = await handler(request)
            assert isinstance(response, web.Response)
            return str(response.text)
        finally:
            await collector.close()

    with FakeServer({**FakeVllm().routes(), "/v1/models": json_answer(models)}) as server:
        shown = asyncio.run(scenario(server.url))

    assert '"m99"' in shown
    assert '"m3999"' not in shown
    assert "vllm:generation_tokens_total" in shown
