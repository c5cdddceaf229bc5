"""The port in this process: what clients may take of it, and what /debug shows of a target."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.typedefs import Handler

from brimline.collect import Collector
from brimline.config import Config, GpuConfig, Target
from brimline.port import ConnectionLimits, serve_application
from brimline.server import Exporter, scrape_budget, serve
from brimline.strict_yaml import Seconds
from fake_servers import FakeServer, FakeVllm, answer, json_answer, when

PATIENCE = 60.0  # far above what a loaded machine needs
HEALTHY = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("10", 9.5),
        ("15.000000", 14.5),
        (" 5 ", 4.5),
        ("1.5", 1.0),
        ("1", 0.5),
        ("0.8", 0.4),  # half a second would leave too little
        ("0.002", 0.001),
    ],
)
def test_a_scrape_may_take_its_timeout_less_half_a_second(header: str, seconds: float) -> None:
    assert scrape_budget(header) == pytest.approx(seconds)


@pytest.mark.parametrize("header", [None, "", "abc", "5s", "-1", "0", "-0.0", "nan", "inf", "-inf", "1e999"])
def test_a_bad_scrape_timeout_is_none(header: str | None) -> None:
    assert scrape_budget(header) is None


class Port:
    """An exporter's open port."""

    def __init__(self, collector: Collector, number: int) -> None:
        self.collector = collector
        self.number = number
        self.clients: list[Client] = []

    async def connect(self, opening: bytes = b"") -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number)
        client = Client(reader, writer)
        writer.write(opening)
        self.clients.append(client)
        return client

    async def get(self, path: str) -> str:
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{self.number}{path}") as got:
            assert got.status == 200
            return await got.text()


class Client:
    """A client's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """The beginning of an answer. The rest waits, in the exporter where it is long."""
        return await self._reader.readuntil(b"\r\n\r\n")

    async def answer(self) -> bytes:
        """The status line of an answer that was read whole."""
        head = await self.head()
        status, *lines = head.split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b":") for line in lines)}
        await self._reader.readexactly(int(headers[b"content-length"]))
        return status

    async def rest(self) -> bytes:
        """All that comes until the exporter closes."""
        try:
            return await self._reader.read()
        except ConnectionResetError:
            return b""

    def is_closed(self) -> bool:
        return self._reader.at_eof() or self._reader.exception() is not None


@contextlib.asynccontextmanager
async def serving(*targets: Target, **limits: Any) -> AsyncIterator[Port]:
    collector = Collector(Config(targets=list(targets), gpu=GpuConfig(backend="none")))
    await collector.start()
    stop = asyncio.Event()
    opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    exporter = Exporter(collector, None)
    limited = ConnectionLimits(**limits)
    running = asyncio.ensure_future(
        serve(exporter, "127.0.0.1", 0, stop, started=opened.set_result, limits=limited)
    )
    port = Port(collector, await opened)
    try:
        yield port
    finally:
        for client in port.clients:
            client.writer.transport.abort()
        stop.set()
        await running
        await collector.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario()

    asyncio.run(limited())


async def soon(check: Callable[[], object]) -> None:
    """Wait until `check` is true; run() limits how long."""
    while not check():  # noqa: ASYNC110 - it is about what other threads and the port have done
        await asyncio.sleep(0.01)


def patient(server: FakeServer, name: str = "chat", **settings: Any) -> Target:
    return Target(name=name, url=server.url, timeout=Seconds(PATIENCE), **settings)


# --- what clients may take


@pytest.mark.parametrize(
    "opening",
    [b"", b"G", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", HEALTHY[:-1]],
)
def test_a_header_that_does_not_end_costs_the_connection(opening: bytes) -> None:
    async def scenario() -> None:
        async with serving(header_seconds=0.3, idle_seconds=600.0) as port:
            clock = asyncio.get_running_loop().time
            began = clock()
            client = await port.connect(opening)

            assert await client.rest() == b""
            assert clock() - began > 0.25

    run(scenario)


def test_a_header_that_drips_is_not_given_more_time() -> None:
    async def scenario() -> None:
        async with serving(header_seconds=0.3, idle_seconds=600.0) as port:
            client = await port.connect(b"GET /metrics HTTP/1.1\r\n")
            sent = 0
            while not client.is_closed():
                client.writer.write(b"x-header-%d: 1\r\n" % sent)
                sent += 1
                await asyncio.sleep(0.05)

            assert sent > 1

    run(scenario)


def test_the_header_of_a_later_request_has_no_more_time() -> None:
    async def scenario() -> None:
        async with serving(header_seconds=0.3, idle_seconds=600.0) as port:
            client = await port.connect(HEALTHY)
            first = await client.answer()
            client.writer.write(HEALTHY[:20])

            assert first == b"HTTP/1.1 200 OK"
            assert await client.rest() == b""

    run(scenario)


def test_half_a_request_behind_one_in_flight_costs_the_connection_too() -> None:
    async def scenario() -> None:
        gate, vllm = threading.Event(), FakeVllm()
        with FakeServer({**vllm.routes(), "/metrics": when(gate, vllm.routes()["/metrics"])}) as server:
            async with serving(patient(server), header_seconds=0.3, idle_seconds=600.0) as port:
                client = await port.connect(METRICS)
                await soon(lambda: server.count("/metrics"))
                client.writer.write(HEALTHY[:20])
                await (await port.connect(HEALTHY)).answer()  # by now the half request has come in, too
                gate.set()

                assert await client.answer() == b"HTTP/1.1 200 OK"
                assert await client.rest() == b""

    run(scenario)


def test_a_request_that_takes_longer_than_a_header_may_is_answered() -> None:
    async def scenario() -> None:
        gate, vllm = threading.Event(), FakeVllm()
        with FakeServer({**vllm.routes(), "/metrics": when(gate, vllm.routes()["/metrics"])}) as server:
            async with serving(patient(server), header_seconds=0.2) as port:
                client = await port.connect(METRICS)
                await soon(lambda: server.count("/metrics"))
                await asyncio.sleep(0.5)
                gate.set()

                assert await client.answer() == b"HTTP/1.1 200 OK"

    run(scenario)


def test_an_idle_connection_is_kept_for_the_next_request() -> None:
    async def scenario() -> None:
        async with serving(header_seconds=0.2, idle_seconds=600.0) as port:
            client = await port.connect()
            for _ in range(3):
                client.writer.write(HEALTHY)
                assert await client.answer() == b"HTTP/1.1 200 OK"
                await asyncio.sleep(0.4)

            assert not client.is_closed()

    run(scenario)


def test_an_idle_connection_is_not_kept_for_ever() -> None:
    async def scenario() -> None:
        async with serving(header_seconds=600.0, idle_seconds=0.3) as port:
            client = await port.connect(HEALTHY)
            await client.answer()

            assert await client.rest() == b""

    run(scenario)


def test_pipelined_requests_are_answered_in_turn() -> None:
    async def scenario() -> None:
        async with serving(header_seconds=0.3) as port:
            client = await port.connect(HEALTHY * 3 + HEALTHY[:10])
            await asyncio.sleep(0.05)
            client.writer.write(HEALTHY[10:])

            assert [await client.answer() for _ in range(4)] == [b"HTTP/1.1 200 OK"] * 4

    run(scenario)


def test_at_the_limit_the_one_that_has_waited_longest_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "brimline.port")

    async def scenario() -> None:
        async with serving(header_seconds=600.0, connections=4) as port:
            kept_alive = await port.connect(HEALTHY)
            await kept_alive.answer()
            half_open = [await port.connect(HEALTHY[:20]) for _ in range(3)]
            kept_alive.writer.write(HEALTHY)
            await kept_alive.answer()  # from now on it has waited for the shortest time
            scrapes = [await port.connect(HEALTHY) for _ in range(2)]

            assert [await scrape.answer() for scrape in scrapes] == [b"HTTP/1.1 200 OK"] * 2
            assert [await client.rest() for client in half_open[:2]] == [b"", b""]
            kept_alive.writer.write(HEALTHY)
            assert await kept_alive.answer() == b"HTTP/1.1 200 OK"
            assert not half_open[2].is_closed()
            for client in port.clients:
                client.writer.close()
            await soon(lambda: "state=normal" in caplog.text)

    run(scenario)

    lines = [record.getMessage() for record in caplog.records if "connections=" in record.getMessage()]
    assert lines == ["connections=4 state=full", "connections=1 state=normal"]


def test_at_the_limit_no_request_in_flight_gives_way() -> None:
    async def scenario() -> None:
        gate, vllm = threading.Event(), FakeVllm()
        with FakeServer({**vllm.routes(), "/metrics": when(gate, vllm.routes()["/metrics"])}) as server:
            async with serving(patient(server), connections=3) as port:
                scrapes = [await port.connect(METRICS) for _ in range(3)]
                await soon(lambda: server.count("/metrics"))
                await asyncio.sleep(0.1)  # the others have come in as well
                refused = await (await port.connect(HEALTHY)).rest()
                gate.set()

                assert refused == b""
                assert [await scrape.answer() for scrape in scrapes] == [b"HTTP/1.1 200 OK"] * 3
                assert await (await port.connect(HEALTHY)).answer() == b"HTTP/1.1 200 OK"

    run(scenario)


def test_one_that_does_not_fetch_its_answer_gives_way() -> None:
    async def scenario() -> None:
        vllm = FakeVllm()
        # All of it is shown, and it is more than the sockets take.
        page = vllm.page() + "".join(f"# {'x' * 1000}\n" for _ in range(12000))
        with FakeServer({**vllm.routes(), "/metrics": answer(page)}) as server:
            async with serving(patient(server), connections=1) as port:
                slow = await port.connect(b"GET /debug?target=chat HTTP/1.1\r\nHost: x\r\n\r\n")
                head = await slow.head()

                assert head.startswith(b"HTTP/1.1 200 OK")
                assert await (await port.connect(HEALTHY)).answer() == b"HTTP/1.1 200 OK"

    run(scenario)


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20),
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
        HEALTHY + b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20),
    ],
)
def test_headers_beyond_any_measure_are_not_kept(header: bytes) -> None:
    """A hundred of these left 40 MiB behind, until some collection of garbage."""

    async def scenario() -> None:
        async with serving() as port:
            peaks = []
            for _ in range(2):
                tracemalloc.start()
                for _ in range(15):
                    await (await port.connect(header)).rest()
                await asyncio.sleep(0.1)
                peaks.append(tracemalloc.get_traced_memory()[0])
                tracemalloc.stop()

            assert max(peaks) < 8 << 20  # one may be kept until the next is
            assert await (await port.connect(HEALTHY)).answer() == b"HTTP/1.1 200 OK"

    run(scenario)


def test_a_body_may_come_with_its_header_or_behind_it() -> None:
    async def length(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def scenario() -> None:
        async with serving_long_answers(posted=length) as port:
            for size, status in (
                (65536, b"HTTP/1.1 200 OK"),
                (65537, b"HTTP/1.1 413 Request Entity Too Large"),
            ):
                client = await port.connect()
                head = b"POST /posted HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
                client.writer.write(head + b"x" * size)

                assert await client.answer() == status

    run(scenario)


LONG = b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def serving_long_answers(posted: Handler | None = None, **limits: Any) -> AsyncIterator[Port]:
    """A port whose /long is 16 MiB: more than the sockets take. posted: answers POST /posted."""

    async def long(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(16 << 20))

    collector = Collector(Config(gpu=GpuConfig(backend="none")))
    exporter = Exporter(collector, None)
    application = exporter.application()
    application.router.add_get("/long", long)
    if posted is not None:
        application.router.add_post("/posted", posted)
    stop, opened = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(
        serve_application(
            application, "127.0.0.1", 0, stop, started=opened.set_result, limits=ConnectionLimits(**limits)
        )
    )
    port = Port(collector, await opened)
    try:
        yield port
    finally:
        for client in port.clients:
            client.writer.transport.abort()
        stop.set()
        await running


def test_an_answer_that_is_not_fetched_in_time_costs_the_connection() -> None:
    async def scenario() -> None:
        async with serving_long_answers(fetch_seconds=0.3) as port:
            slow = await port.connect(LONG)
            head = await slow.head()
            await asyncio.sleep(0.6)
            fetched = await slow.rest()

            assert head.startswith(b"HTTP/1.1 200 OK")
            assert len(fetched) < 16 << 20

    run(scenario)


def test_an_answer_that_is_fetched_costs_nothing() -> None:
    async def scenario() -> None:
        async with serving_long_answers(fetch_seconds=PATIENCE) as port:
            client = await port.connect()
            for _ in range(3):
                client.writer.write(LONG)
                assert await client.answer() == b"HTTP/1.1 200 OK"

    run(scenario)


def test_all_that_nobody_fetches_is_bounded_and_the_longest_waiting_gives_way() -> None:
    async def scenario() -> None:
        async with serving_long_answers(unfetched_bytes=32 << 20) as port:
            slow = []
            for _ in range(8):
                slow.append(await port.connect(LONG[:-2] + b"Connection: close\r\n\r\n"))
                await slow[-1].head()
            healthy = await (await port.connect(HEALTHY)).answer()
            fetched = [len(await client.rest()) for client in slow]

            # What the sockets took is not counted: two to six of 16 MiB may wait.
            assert fetched[0] < 16 << 20
            assert fetched[-2:] == [16 << 20] * 2
            assert healthy == b"HTTP/1.1 200 OK"

    run(scenario)


def test_a_process_of_few_files_holds_fewer_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {}
    for open_files in (16, 200, 1024, 4096, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda _what, soft=open_files: (soft, soft))
        limits[open_files] = ConnectionLimits.of_this_process().connections

    assert limits == {16: 8, 200: 50, 1024: 256, 4096: 512, resource.RLIM_INFINITY: 512}


def test_a_body_larger_than_64_kib_is_refused() -> None:
    async def length(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def scenario() -> None:
        application = Exporter(Collector(Config()), None).application()
        application.router.add_post("/length", length)  # no page of ours reads a body
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/length"
        async with ClientSession() as session:
            statuses = [(await session.post(url, data=b"x" * size)).status for size in (65536, 65537)]
        await runner.cleanup()

        assert statuses == [200, 413]

    run(scenario)


# --- /debug


def test_two_who_debug_at_once_both_see_the_page() -> None:
    async def scenario() -> None:
        gate, vllm = threading.Event(), FakeVllm(generation_tokens=42)
        with FakeServer({**vllm.routes(), "/metrics": when(gate, vllm.routes()["/metrics"])}) as server:
            async with serving(patient(server)) as port:
                asked = [asyncio.ensure_future(port.get("/debug?target=chat")) for _ in range(3)]
                await soon(lambda: server.count("/metrics"))
                asked.append(asyncio.ensure_future(port.get("/debug?target=chat")))
                await asyncio.sleep(0.1)
                gate.set()
                pages = await asyncio.gather(*asked)
                reader = port.collector.reader("chat")

                assert ["vllm:generation_tokens_total" in page for page in pages] == [True] * 4
                assert server.count("/metrics") == 1
                assert reader is not None
                assert (reader.keep_raw, reader.raw) == (False, None)

    run(scenario)


def test_one_who_debugs_and_leaves_takes_the_page_from_nobody() -> None:
    async def scenario() -> None:
        gate, vllm = threading.Event(), FakeVllm()
        with FakeServer({**vllm.routes(), "/metrics": when(gate, vllm.routes()["/metrics"])}) as server:
            async with serving(patient(server)) as port:
                leaving = await port.connect(b"GET /debug?target=chat HTTP/1.1\r\nHost: x\r\n\r\n")
                await soon(lambda: server.count("/metrics"))
                staying = asyncio.ensure_future(port.get("/debug?target=chat"))
                await asyncio.sleep(0.1)
                leaving.writer.transport.abort()
                await asyncio.sleep(0.1)
                gate.set()

                assert "vllm:generation_tokens_total" in await staying

    run(scenario)


def test_debug_during_a_scrape_that_has_the_page_already_shows_the_next_one() -> None:
    async def scenario() -> None:
        gate, vllm = threading.Event(), FakeVllm()
        held = {**vllm.routes(), "/metrics": when(gate, vllm.routes()["/metrics"])}
        with FakeServer(held) as slow, FakeServer(vllm.routes()) as quick:
            async with serving(patient(slow, "slow"), patient(quick, "quick")) as port:
                scrape = asyncio.ensure_future(port.get("/metrics"))
                await soon(lambda: slow.count("/metrics") and quick.count("/metrics"))
                await asyncio.sleep(0.2)  # the quick one's page has been read
                debug = asyncio.ensure_future(port.get("/debug?target=quick"))
                await asyncio.sleep(0.1)
                gate.set()
                await scrape

                assert "vllm:generation_tokens_total" in await debug

    run(scenario)


def test_debug_says_when_min_interval_is_why_no_page_came() -> None:
    async def scenario() -> None:
        with FakeServer(FakeVllm().routes()) as server:
            async with serving(patient(server, min_interval=Seconds(600.0))) as port:
                pages = [await port.get("/debug?target=chat") for _ in range(2)]

                assert ["one read within min_interval is not kept" in page for page in pages] == [False, True]
                assert "vllm:generation_tokens_total" in pages[0]

    run(scenario)


def test_debug_shows_no_cookie_and_no_challenge_of_a_target() -> None:
    secret = {
        "Set-Cookie": "session=s3cr3t-1",
        "Authorization": "Bearer s3cr3t-2",
        "WWW-Authenticate": 'Digest nonce="s3cr3t-3"',
    }

    async def scenario() -> None:
        vllm = FakeVllm()
        page = answer(vllm.page(), headers={**secret, "X-Shown": "yes"})
        with FakeServer({**vllm.routes(), "/metrics": page, "/version": json_answer({})}) as server:
            async with serving(patient(server)) as port:
                shown = await port.get("/debug?target=chat")

                assert "x-shown: yes" in shown.lower()
                assert "s3cr3t" not in shown
                assert not any(f"{name.lower()}:" in shown.lower() for name in secret)

    run(scenario)


def test_the_configuration_is_shown_as_it_was_given_or_as_it_is_in_force() -> None:
    async def scenario() -> None:
        async with serving(Target(name="chat", url="http://127.0.0.1:9")) as port:
            given, in_force = await port.get("/config"), await port.get("/config?defaults=1")
            async with (
                ClientSession() as session,
                session.get(f"http://127.0.0.1:{port.number}/config?defaults=yes") as refused,
            ):
                assert refused.status == 400
                assert await refused.text() == "defaults is 0 or 1: /config?defaults=1\n"

        assert given == "gpu:\n  backend: none\ntargets:\n- name: chat\n  url: http://127.0.0.1:9\n"
        assert "scrape_timeout: 5s\n" in in_force
        assert "  timeout: 5s\n" in in_force

    run(scenario)
