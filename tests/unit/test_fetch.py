"""Fetching one page: what is sent, what is taken, and the reason by which everything else is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from cryptography.hazmat.primitives import serialization
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from brimline.config import BasicAuth, Target, Tls
from brimline.errors import SourceError
from brimline.fetch import ACCEPT, Answer, Client, get_json, open_session
from brimline.files import open_regular
from certificates import Authority
from fake_servers import (
    CAP_BYTES,
    FAULTS,
    OPENMETRICS,
    FakeServer,
    FakeVllm,
    Reply,
    Request,
    Wire,
    answer,
    dead_port,
    gzip_answer,
    gzip_bomb,
    gzipped,
    hang,
    json_answer,
    redirect,
)
from waiting import eventually

PAGE = FakeVllm().page().encode()
# Reasons that the fetching itself finds out; the others need a look at what stands on the page.
FETCHED = (
    "connection",
    "redirect",
    "truncated",
    "too_large",
    "encoding",
    "unauthorized",
    "not_found",
    "http_status",
)


def target_at(url: str, **settings: Any) -> Target:
    return Target(name="t", url=url, **settings)


def ask(target: Target, *paths: str, within: float = 60.0) -> list[Answer]:
    """The answers of one client to several requests, one after the other; /metrics unless told otherwise."""

    async def scenario() -> list[Answer]:
        async with open_session() as session, asyncio.timeout(within):
            client = Client(session, target)
            return [await client.get_page(path) for path in paths or ("/metrics",)]

    return asyncio.run(scenario())


def refusal(target: Target, path: str = "/metrics", *, within: float = 60.0) -> SourceError:
    with pytest.raises(SourceError) as refused:
        ask(target, path, within=within)
    return refused.value


def names_to_loopback(monkeypatch: pytest.MonkeyPatch, look_up: Callable[[str], None] | None = None) -> None:
    """Let names under .test be 127.0.0.1, after `look_up`: a test must not depend on a name server."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(host, str) and host.endswith(".test"):
            if look_up is not None:
                look_up(host)
            host = "127.0.0.1"
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


# --- what is taken


def test_a_whole_page_is_taken_with_its_headers() -> None:
    with FakeServer({"/metrics": answer(PAGE, headers={"X-Some": "value"})}) as server:
        [page] = ask(target_at(server.url))

    assert (page.status, page.body, page.headers["x-some"], page.path) == (200, PAGE, "value", "/metrics")


def test_gzip_is_inflated_whoever_asked_for_it() -> None:
    with FakeServer({"/metrics": gzip_answer(gzipped(PAGE))}) as server:
        [page] = ask(target_at(server.url))

    assert page.body == PAGE


def test_openmetrics_with_its_end_is_taken_without_a_newline_behind_it() -> None:
    with FakeServer({"/metrics": answer("a 1\n# EOF", content_type=OPENMETRICS)}) as server:
        [page] = ask(target_at(server.url))

    assert page.body == b"a 1\n# EOF"


def test_a_page_of_exactly_the_cap_is_taken() -> None:
    content = b"x 1\n" * (CAP_BYTES // 4)
    with FakeServer({"/metrics": gzip_answer(gzipped(content)), "/plain": answer(content)}) as server:
        pages = ask(target_at(server.url), "/metrics", "/plain")

    assert [len(page.body) for page in pages] == [CAP_BYTES, CAP_BYTES]


def test_the_path_of_the_url_stands_before_every_path() -> None:
    with FakeServer({"/model-a/metrics": answer(PAGE)}) as server:
        [page] = ask(target_at(f"{server.url}/model-a/"))

    assert page.body == PAGE


def test_a_connection_is_kept_and_a_stale_one_is_replaced() -> None:
    async def scenario() -> list[bytes]:
        bodies = []
        async with open_session() as session:
            first = FakeServer({"/metrics": answer(PAGE, keep_alive=True)})
            client = Client(session, target_at(first.url))
            with first:
                bodies += [(await client.get_page("/metrics")).body for _ in range(3)]
            with FakeServer({"/metrics": answer("b 2\n", keep_alive=True)}, port=first.port):
                bodies.append((await client.get_page("/metrics")).body)
        return bodies

    assert asyncio.run(scenario()) == [PAGE, PAGE, PAGE, b"b 2\n"]


def test_cookies_are_not_kept() -> None:
    with FakeServer({"/metrics": answer(PAGE, headers={"Set-Cookie": "session=1"})}) as server:
        ask(target_at(server.url), "/metrics", "/metrics")

    assert ["cookie" in request.headers for request in server.requests] == [False, False]


# --- what is refused


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.reason in FETCHED])
def test_each_fault_has_its_reason(name: str) -> None:
    with FakeServer(FAULTS[name].routes) as server:
        refused = refusal(target_at(server.url))

    assert refused.reason == FAULTS[name].reason
    assert len(str(refused)) < 400  # it stands in logs and on pages: a server must not fill them
    assert str(refused).isprintable()


def test_a_dead_port_is_a_connection_problem() -> None:
    with dead_port() as port:
        assert refusal(target_at(f"http://127.0.0.1:{port}")).reason == "connection"


def test_a_server_without_tls_at_an_https_url_is_a_tls_problem() -> None:
    with FakeServer({"/metrics": answer(PAGE)}) as server:
        refused = refusal(target_at(server.url.replace("http", "https")))

    assert refused.reason == "tls"
    assert str(refused).endswith("the server does not speak TLS; write http:// instead")


@pytest.mark.parametrize(
    ("issued", "trusts", "why"),
    [
        ({"days": -1.0}, True, "the server's certificate has expired; renew it there"),
        ({}, False, "the issuer of the server's certificate is unknown; give its certificate as tls.ca_file"),
        (
            {"names": ["localhost"]},
            True,
            "the server's certificate is not for 127.0.0.1; give a name that it is for as tls.server_name",
        ),
        (
            {"wants_ours": True},
            True,
            "the server refuses the handshake; it may want a certificate (tls.cert_file)",
        ),
    ],
    ids=["expired", "unknown issuer", "another name", "client certificate"],
)
def test_a_handshake_that_fails_says_why_and_what_to_do(
    issued: dict[str, Any], trusts: bool, why: str, tmp_path: Path
) -> None:
    authority = Authority()
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority.certificate)
    pair = authority.issue(issued.get("names", ["127.0.0.1"]), days=issued.get("days", 1.0))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*pair.write(tmp_path, "server"))
    if issued.get("wants_ours"):
        context.load_verify_locations(ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
        # With 1.3 its word comes after the handshake, and may be lost in the connection's end.
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    with FakeServer({"/metrics": answer(PAGE)}, tls=context) as server:
        refused = refusal(target_at(server.url, tls=Tls(ca_file=str(ca_file)) if trusts else None))

    assert (refused.reason, str(refused)) == ("tls", f"{server.url}/metrics: {why}")


def test_credentials_that_are_refused_are_not_asked_for(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("wrong")
    given = BasicAuth(username="u", password_file=str(password))
    with FakeServer({"/metrics": answer("", status=401)}) as server:
        without, with_them = refusal(target_at(server.url)), refusal(target_at(server.url, basic_auth=given))

    assert str(without).endswith("answered 401; give bearer_token_file or basic_auth")
    assert str(with_them).endswith("answered 401; it refused the credentials given")


def test_tls_files_that_cannot_be_read_are_a_tls_problem(tmp_path: Path) -> None:
    target = target_at("https://127.0.0.1:1", tls=Tls(ca_file=str(tmp_path / "missing.pem")))

    assert refusal(target).reason == "tls"


@pytest.mark.parametrize("key", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "endless"])
def test_a_tls_file_that_is_no_file_is_a_tls_problem_and_nobody_waits_for_it(
    key: str, kind: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.pem"
    if kind == "pipe":
        os.mkfifo(bad)
    elif kind == "folder":
        bad.mkdir()
    elif kind == "device":
        bad.symlink_to("/dev/zero")
    else:
        with bad.open("wb") as file:
            file.truncate(64 << 30)
    pair = Authority().issue(["127.0.0.1"]).write(tmp_path, "client")
    files: dict[str, Any] = {
        **dict(zip(("cert_file", "key_file"), map(str, pair), strict=True)),
        key: str(bad),
    }

    assert refusal(target_at("https://127.0.0.1:1", tls=Tls(**files)), within=20.0).reason == "tls"


def test_a_key_with_a_password_is_a_tls_problem_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    certificate, key = Authority().issue(["127.0.0.1"]).write(tmp_path, "client")
    loaded = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    Path(key).write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    tls = Tls(cert_file=str(certificate), key_file=str(key))

    assert refusal(target_at("https://127.0.0.1:1", tls=tls), within=20.0).reason == "tls"


@pytest.mark.parametrize("reason", ["tls", "credentials"])
def test_files_that_hang_cost_one_target_and_one_thread_until_they_do_no_more(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    token = tmp_path / "token"
    token.write_text("tok-1\n")

    @contextlib.contextmanager
    def hanging(path: str | Path) -> Iterator[BinaryIO]:
        gate.wait(60.0)  # no file system can be made to hang for a test
        with open_regular(path) as file:
            yield file

    monkeypatch.setattr("brimline.http_session.open_regular", hanging)
    monkeypatch.setattr("brimline.fetch.FILE_PATIENCE", 0.2)

    async def scenario(url: str) -> None:
        async with open_session() as session, asyncio.timeout(60.0):
            tls = Tls(ca_file=str(token)) if reason == "tls" else None
            stuck = Client(session, target_at(url, bearer_token_file=str(token), tls=tls))
            other = Client(session, target_at(url))
            for _ in range(3):
                with pytest.raises(SourceError) as refused:
                    await stuck.get("/metrics")
                assert refused.value.reason == reason
                assert (await other.get("/metrics")).body == PAGE
            threads = [thread for thread in threading.enumerate() if "credentials" in thread.name]
            assert len(threads) == 1
            gate.set()
            await asyncio.to_thread(threads[0].join, 60.0)
            monkeypatch.setattr("brimline.fetch.FILE_PATIENCE", 60.0)
            if reason == "credentials":
                assert (await stuck.get("/metrics")).body == PAGE

    try:
        with FakeServer({"/metrics": answer(PAGE)}) as server:
            asyncio.run(scenario(server.url))
    finally:
        gate.set()


@pytest.mark.parametrize(
    "body",
    [lambda: gzip_answer(gzip_bomb()), lambda: answer(b"x 1\n" * (64 << 18))],
    ids=["gzip", "plain"],
)
def test_memory_stays_bounded_under_too_large_an_answer(body: Callable[[], Reply]) -> None:
    with FakeServer({"/metrics": body()}) as server:
        tracemalloc.start()
        try:
            refused = refusal(target_at(server.url))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert refused.reason == "too_large"
    assert peak < 5 * CAP_BYTES  # the gzip inflates to sixteen times the cap


def test_an_endless_tail_behind_a_gzip_stream_is_not_collected() -> None:
    def endless(wire: Wire, request: Request) -> bool:
        wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n\r\n" + gzipped(PAGE)
        )
        for _ in range(64):
            wire.send(bytes(1 << 20))
        return False

    with FakeServer({"/metrics": endless}) as server:
        tracemalloc.start()
        try:
            refused = refusal(target_at(server.url))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert refused.reason == "encoding"
    assert peak < CAP_BYTES


def test_a_gzip_stream_of_endless_nothing_is_too_large() -> None:
    empty_block = b"\x00\x00\x00\xff\xff"
    content = gzipped(b"")[:10] + empty_block * (CAP_BYTES // 4)
    with FakeServer({"/metrics": gzip_answer(content)}) as server:
        refused = refusal(target_at(server.url))

    assert refused.reason == "too_large"


def test_the_servers_own_words_are_passed_on_for_a_known_form() -> None:
    with FakeServer(FAULTS["501 of llama.cpp"].routes) as server:
        refused = refusal(target_at(server.url))

    assert refused.reason == "metrics_disabled"
    assert "Start it with `--metrics`" in str(refused)


@pytest.mark.parametrize("status", [404, 501])
def test_a_document_that_the_server_does_not_have_is_none(status: int) -> None:
    async def scenario(url: str) -> Any:
        async with open_session() as session:
            return await get_json(Client(session, target_at(url)), "/version")

    with FakeServer({"/version": answer("no", status=status)}) as server:
        assert asyncio.run(scenario(server.url)) is None


def test_a_document_that_the_server_fails_to_give_is_an_error() -> None:
    async def scenario(url: str) -> Any:
        async with open_session() as session:
            return await get_json(Client(session, target_at(url)), "/version")

    with FakeServer({"/version": answer("no", status=503)}) as server, pytest.raises(SourceError) as caught:
        asyncio.run(scenario(server.url))

    assert caught.value.reason == "http_status"


def test_a_document_that_is_no_json_is_none() -> None:
    async def scenario(url: str) -> list[Any]:
        async with open_session() as session:
            client = Client(session, target_at(url))
            return [await get_json(client, path) for path in ("/html", "/deep", "/good")]

    routes = {"/html": answer("<p>"), "/deep": answer("[" * 20_000), "/good": json_answer({"a": 1})}
    with FakeServer(routes) as server:
        assert asyncio.run(scenario(server.url)) == [None, None, {"a": 1}]


# --- redirects


def test_a_redirect_to_another_host_is_not_followed_and_gets_no_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("tok-1\n")
    with (
        FakeServer({"*": answer(PAGE)}, host="127.0.0.2") as elsewhere,
        FakeServer({"/metrics": redirect(f"{elsewhere.url}/metrics")}) as server,
    ):
        refused = refusal(target_at(server.url, bearer_token_file=str(token)))

    assert refused.reason == "redirect"
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer tok-1"]
    assert elsewhere.requests == []


@pytest.mark.parametrize("location", ["/metrics/", "metrics/", "{url}/metrics/"])
def test_a_redirect_that_adds_a_slash_is_followed(location: str) -> None:
    with FakeServer({"/metrics/": answer(PAGE)}) as server:
        server.routes["/metrics"] = redirect(location.format(url=server.url), status=307)
        [page] = ask(target_at(server.url))

    assert page.body == PAGE
    assert server.paths() == ["/metrics", "/metrics/"]


def test_a_slash_is_added_to_the_path_and_not_to_the_query() -> None:
    with FakeServer({"/page?a=1": redirect("/page/?a=1"), "/page/?a=1": answer(PAGE)}) as server:
        [page] = ask(target_at(server.url), "/page?a=1")

    assert page.body == PAGE


def test_a_slash_is_added_only_once() -> None:
    with FakeServer({"/metrics": redirect("/metrics/"), "/metrics/": redirect("/metrics//")}) as server:
        refused = refusal(target_at(server.url))

    assert refused.reason == "redirect"
    assert server.paths() == ["/metrics", "/metrics/"]


@pytest.mark.parametrize(
    "location", ["/login", "/metrics/?next=1", "//127.0.0.2/metrics/", "https://{host}/metrics/"]
)
def test_a_redirect_that_does_more_is_refused(location: str) -> None:
    with FakeServer({"*": answer(PAGE)}) as server:
        server.routes["/metrics"] = redirect(location.format(host=f"127.0.0.1:{server.port}"))
        refused = refusal(target_at(server.url))

    assert refused.reason == "redirect"
    assert server.paths() == ["/metrics"]


# --- what is sent


def test_the_token_is_read_again_at_each_request(tmp_path: Path) -> None:
    token = tmp_path / "token"

    async def scenario(url: str) -> None:
        async with open_session() as session:
            client = Client(session, target_at(url, bearer_token_file=str(token)))
            for text in ("tok-1\n", "tok-2"):
                token.write_text(text)
                await client.get("/metrics")

    with FakeServer({"/metrics": answer(PAGE)}) as server:
        asyncio.run(scenario(server.url))

    assert [request.headers["authorization"] for request in server.requests] == [
        "Bearer tok-1",
        "Bearer tok-2",
    ]


def test_basic_auth_and_headers_are_sent(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("pässword\n")
    with FakeServer({"/metrics": answer(PAGE)}) as server:
        ask(
            target_at(
                server.url,
                basic_auth=BasicAuth(username="me", password_file=str(password)),
                headers={"X-Team": "a"},
            )
        )

    [request] = server.requests
    assert base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode() == "me:pässword"
    assert request.headers["x-team"] == "a"


def _missing(path: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.write_text("\n")


def _two_lines(path: Path) -> None:
    path.write_text("one\ntwo\n")


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [_missing, _empty, _two_lines, _folder, _pipe])
def test_a_token_file_that_holds_no_token_is_a_credentials_problem(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    make(token)
    with FakeServer({"/metrics": answer(PAGE)}) as server:
        refused = refusal(target_at(server.url, bearer_token_file=str(token)))

    assert refused.reason == "credentials"
    assert server.requests == []
    assert "one" not in str(refused).replace("more than one line", "")


def test_compression_is_asked_for_beyond_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    names_to_loopback(monkeypatch)
    with FakeServer({"/metrics": answer(PAGE)}) as server:
        ask(target_at(server.url))
        ask(target_at(f"http://inference.test:{server.port}"))

    assert [request.headers["accept-encoding"] for request in server.requests] == ["identity", "gzip"]


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with dead_port() as port, FakeServer({"/metrics": answer(PAGE)}) as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        [page] = ask(target_at(server.url))

    assert page.body == PAGE


# --- names


def test_a_name_that_is_not_known_is_a_dns_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    names_to_loopback(monkeypatch, unknown)

    refused = refusal(target_at("http://gone.test:8000"))

    assert refused.reason == "dns"
    assert "gone.test" in str(refused)


@pytest.mark.parametrize("host", ["a" * 70, "a..b"])
def test_what_cannot_be_a_name_is_a_dns_problem(host: str) -> None:
    assert refusal(target_at(f"http://{host}:8000")).reason == "dns"


def test_a_hanging_look_up_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, looked_up = threading.Event(), list[str]()

    def hanging(name: str) -> None:
        looked_up.append(name)
        gate.wait(60)

    names_to_loopback(monkeypatch, hanging)

    async def impatient(client: Client) -> str:
        try:
            async with asyncio.timeout(0.2):
                await client.get("/metrics")
        except TimeoutError:
            return "timeout"
        return "answered"

    async def scenario() -> list[str]:
        async with open_session() as session:
            clients = [Client(session, target_at("http://slow.test:8000")) for _ in range(3)]
            return [await impatient(client) for client in clients]

    try:
        outcomes = asyncio.run(scenario())
    finally:
        gate.set()
    eventually(lambda: not any(thread.name == "brimline-dns" for thread in threading.enumerate()))

    assert outcomes == ["timeout"] * 3
    assert looked_up == ["slow.test"]


# --- the trace


def test_the_trace_tells_each_request_and_its_outcome() -> None:
    async def scenario(url: str) -> list[str]:
        async with open_session() as session:
            client = Client(session, target_at(url))
            await client.get("/metrics")
            for path in ("/missing", "/slow"):
                try:
                    async with asyncio.timeout(0.3):
                        await client.get(path)
                except (SourceError, TimeoutError):
                    continue
            return client.trace

    with FakeServer({"/metrics": answer(PAGE), "/slow": hang}) as server:
        page, missing, slow = asyncio.run(scenario(server.url))

    assert page.startswith(f"GET /metrics: 200, {len(PAGE)} bytes, text/plain")
    assert missing.startswith("GET /missing: not_found: ")
    assert slow.startswith("GET /slow: cancelled (")


def test_what_we_accept_keeps_the_colons_of_names_that_prometheus_client_serves() -> None:
    """It takes any mention of OpenMetrics as a wish, and escapes `vllm:` to `vllm_` in that format."""
    registry = CollectorRegistry()
    Gauge("vllm:num_requests_running", "Running.", registry=registry).set(3)
    encoder, content_type = choose_encoder(ACCEPT)

    assert b"\nvllm:num_requests_running 3.0\n" in encoder(registry)
    assert content_type.startswith("text/plain")


def test_a_page_that_is_cut_off_leaves_nothing_to_collect() -> None:
    """aiohttp's error holds the connection in a circle of frames."""

    async def scenario(url: str) -> int:
        async with open_session() as session:
            client = Client(session, target_at(url))
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    with pytest.raises(SourceError, match="ends before its announced length"):
                        await client.get_page("/metrics")
                await asyncio.sleep(0)
                return gc.collect()
            finally:
                gc.enable()

    with FakeServer(FAULTS["announces more than it sends"].routes) as server:
        assert asyncio.run(scenario(server.url)) < 300  # sixty for each, were it not for that
