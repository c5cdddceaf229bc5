"""Who may ask the port: TLS, certificates of clients, users, and files that change while it is open."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
import ssl
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from aiohttp import ClientError, ClientSession, TCPConnector, web

from brimline import guard as guard_module
from brimline.errors import ConfigError
from brimline.guard import (
    MAX_COMPARES,
    MAX_COMPARES_OF_AN_ADDRESS,
    Passwords,
    PortGuard,
    TooManyCompares,
)
from brimline.port import ConnectionLimits, serve_application
from certificates import Authority, Pair

PATIENCE = 60.0  # of a test, however busy the machine is
TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key%s}\n"
CLIENT_CA = ", client_ca_file: clients.pem, client_auth_type: "


def hashed(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


ALICE = hashed("right")
USERS = f"basic_auth_users: {{alice: {ALICE}}}\n"


@dataclass(frozen=True)
class Certificates:
    """An authority of the server, one of clients, and what they issued."""

    folder: Path
    servers: Authority
    clients: Authority
    prometheus: Pair
    stranger: Pair

    def client(self, pair: Pair | None = None, **settings: Any) -> ssl.SSLContext:
        """The TLS of a client that knows the server's authority."""
        context = ssl.create_default_context(cadata=self.servers.certificate.decode())
        if pair is not None:
            context.load_cert_chain(*pair.write(self.folder, f"client-{id(pair)}"))
        for name, value in settings.items():
            setattr(context, name, value)
        return context


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    servers, clients = Authority("of servers"), Authority("of clients")
    return Certificates(
        tmp_path_factory.mktemp("certificates"),
        servers,
        clients,
        prometheus=clients.issue(["prometheus.example"]),
        stranger=Authority("of strangers").issue(["prometheus.example"]),
    )


@dataclass
class Port:
    """An open port that answers everything with `done`, and counts how often."""

    number: int
    guard: PortGuard
    path: Path
    handled: list[str]

    async def get(
        self,
        tls: ssl.SSLContext | None = None,
        user: str | None = None,
        password: str = "right",  # noqa: S107 - of users who exist in tests only
        path: str = "/",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str]]:
        """Status and headers of an answer on a new connection. Raises OSError or ClientError without one."""
        connector = TCPConnector(ssl=tls if tls is not None else True, force_close=True)
        given = dict(headers or {})
        if user is not None:
            given["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
        scheme = "http" if tls is None else "https"
        url = f"{scheme}://127.0.0.1:{self.number}{path}"
        async with (
            ClientSession(connector=connector) as session,
            session.get(url, headers=given) as got,
        ):
            await got.read()
            return got.status, got.headers

    async def status(self, *arguments: Any, **named: Any) -> int:
        return (await self.get(*arguments, **named))[0]

    async def refuses(self, tls: ssl.SSLContext | None = None) -> bool:
        """True where a client gets no answer at all."""
        try:
            await self.get(tls)
        except (ClientError, OSError):
            return True
        return False

    def write(self, text: str) -> None:
        """Another file, seen at the next request however soon."""
        self.path.write_text(text)
        self.guard.expire()


@contextlib.asynccontextmanager
async def opened(made: Certificates, folder: Path, text: str, **how: Any) -> AsyncIterator[Port]:
    made.servers.issue(["127.0.0.1"]).write(folder, "server")
    (folder / "clients.pem").write_bytes(made.clients.certificate)
    path = folder / "web.yaml"
    path.write_text(text)
    limits = ConnectionLimits(**how.pop("limits", {}))
    guard = PortGuard(path, **how)
    handled: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        handled.append(request.path)
        return web.Response(text="done")

    application = web.Application()

    async def long(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(32 << 20))

    application.router.add_route("*", "/", answer)
    application.router.add_get("/long", long)
    stop = asyncio.Event()
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(
        serve_application(
            application, "127.0.0.1", 0, stop, started=bound.set_result, limits=limits, guard=guard
        )
    )
    try:
        yield Port(await bound, guard, path, handled)
    finally:
        stop.set()
        await serving


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario()

    asyncio.run(limited())


# --- TLS


def test_tls_of_1_2_and_1_3_is_answered_and_nothing_older(made: Certificates, tmp_path: Path) -> None:
    def only(version: ssl.TLSVersion) -> ssl.SSLContext:
        context = made.client()
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else this client would refuse the old versions itself
        context.minimum_version = context.maximum_version = version
        return context

    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % "") as port:
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                assert await port.refuses(only(ssl.TLSVersion.TLSv1_1))
            assert await port.status(only(ssl.TLSVersion.TLSv1_2)) == 200
            assert await port.status(only(ssl.TLSVersion.TLSv1_3)) == 200
            assert await port.refuses(None)  # plain HTTP
            port.write(TLS % ", min_version: TLS13")
            assert await port.refuses(only(ssl.TLSVersion.TLSv1_2))
            assert await port.status(only(ssl.TLSVersion.TLSv1_3)) == 200

    run(scenario)


@pytest.mark.parametrize(
    ("policy", "without", "unknown", "known"),
    [
        ("VerifyClientCertIfGiven", True, False, True),
        ("RequireAndVerifyClientCert", False, False, True),
        ("RequireAndVerifyClientCert, client_allowed_sans: [prometheus.example]", False, False, True),
        ("RequireAndVerifyClientCert, client_allowed_sans: [other.example]", False, False, False),
    ],
)
def test_clients_show_the_certificate_that_is_asked_of_them(
    made: Certificates, tmp_path: Path, policy: str, *, without: bool, unknown: bool, known: bool
) -> None:
    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % (CLIENT_CA + policy)) as port:
            assert await port.refuses(made.client()) is not without
            assert await port.refuses(made.client(made.stranger)) is not unknown
            assert await port.refuses(made.client(made.prometheus)) is not known
            assert len(port.handled) == without + unknown + known

    run(scenario)


def test_the_one_curve_of_the_file_is_the_only_one(made: Certificates, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % ", curve_preferences: [CurveP384]") as port:
            context = made.client()
            context.set_ecdh_curve("secp384r1")
            assert await port.status(context) == 200
            context.set_ecdh_curve("prime256v1")
            assert await port.refuses(context)

    run(scenario)


def test_a_handshake_that_does_not_go_on_keeps_nobody_waiting_and_is_ended(
    made: Certificates, tmp_path: Path
) -> None:
    async def scenario() -> None:
        limits = {"header_seconds": 1.0, "connections": 8}
        async with opened(made, tmp_path, TLS % "", limits=limits) as port:
            silent = [await asyncio.open_connection("127.0.0.1", port.number) for _ in range(7)]
            for _, writer in silent[:3]:
                writer.write(b"\x16\x03\x01\x02\x00")  # the beginning of a greeting
            assert await port.status(made.client()) == 200
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()

    run(scenario)


def test_handshakes_count_as_connections_and_give_way(made: Certificates, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % "", limits={"connections": 8}) as port:
            silent = [await asyncio.open_connection("127.0.0.1", port.number) for _ in range(30)]
            assert await port.status(made.client()) == 200
            ended = await asyncio.gather(*(reader.read() for reader, _ in silent[:22]))
            assert set(ended) == {b""}
            for _, writer in silent:
                writer.transport.abort()

    run(scenario)


def test_a_connection_is_kept_and_large_answers_come_whole(made: Certificates, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % "") as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port.number, ssl=made.client())
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(4) == b"done"
            writer.transport.abort()

    run(scenario)


def test_an_answer_that_is_not_fetched_costs_the_connection_with_tls_too(
    made: Certificates, tmp_path: Path
) -> None:
    async def scenario() -> None:
        limits = {"fetch_seconds": 0.3}
        async with opened(made, tmp_path, TLS % "", limits=limits) as port:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port.number, ssl=made.client(), limit=1024
            )
            writer.write(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")  # the rest waits in the port
            await asyncio.sleep(1.0)
            with contextlib.suppress(OSError):
                assert len(await reader.read()) < 32 << 20
            writer.transport.abort()
            assert await port.status(made.client()) == 200

    run(scenario)


def test_a_header_beyond_measure_costs_the_connection_with_tls_too(
    made: Certificates, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % "") as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port.number, ssl=made.client())
            writer.write(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100_000)
            with contextlib.suppress(OSError):
                assert b" 200 " not in await reader.read()
            writer.transport.abort()
            assert port.handled == []

    run(scenario)


def test_a_handshake_that_fails_is_logged_once_a_minute(
    made: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % "") as port:
            for _ in range(5):
                assert await port.refuses(None)  # plain HTTP
            reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
            writer.close()  # as a health probe does that only connects
            assert await reader.read() == b""

    with caplog.at_level(logging.WARNING):
        run(scenario)

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said == ["connection=refused from=127.0.0.1 detail='HTTP_REQUEST' not_logged_before=0"]


# --- users


def test_users_with_their_passwords_are_let_in_and_nobody_else(made: Certificates, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(made, tmp_path, USERS) as port:
            status, headers = await port.get()
            assert (status, headers["WWW-Authenticate"]) == (401, 'Basic realm="Brimline", charset="UTF-8"')
            assert await port.status(user="alice", password="wrong") == 401
            assert await port.status(user="mallory") == 401
            assert await port.status(user="") == 401
            assert await port.status(headers={"Authorization": "Bearer right"}) == 401
            assert await port.status(headers={"Authorization": "Basic %%%"}) == 401
            assert await port.status(headers={"Authorization": "Basic YWxpY2U="}) == 401  # no colon
            assert await port.status(path="/nowhere") == 401
            assert port.handled == []
            assert await port.status(user="alice") == 200
            assert await port.status(user="alice", path="/nowhere") == 404
            assert port.handled == ["/"]

    run(scenario)


def test_users_and_certificates_are_both_asked_for(made: Certificates, tmp_path: Path) -> None:
    async def scenario() -> None:
        text = TLS % (CLIENT_CA + "RequireAndVerifyClientCert") + USERS
        async with opened(made, tmp_path, text) as port:
            assert await port.refuses(made.client())
            assert await port.status(made.client(made.prometheus)) == 401
            assert await port.status(made.client(made.prometheus), "alice") == 200

    run(scenario)


def test_passwords_of_any_letters_and_length_are_compared(made: Certificates, tmp_path: Path) -> None:
    long = "ä" * 60
    text = f"basic_auth_users:\n  bob: {hashed('pässword:with:colons')}\n  eve: {hashed(long[:36])}\n"

    async def scenario() -> None:
        async with opened(made, tmp_path, text) as port:
            assert await port.status(user="bob", password="pässword:with:colons") == 200
            # bcrypt looks at 72 bytes, and htpasswd cuts the rest off without a word.
            assert await port.status(user="eve", password=long) == 200
            assert await port.status(user="eve", password="\0") == 401

    run(scenario)


class Comparing:
    """A compare that the test ends, and that counts."""

    def __init__(self) -> None:
        self.count = 0
        self.at_once = 0
        self.most_at_once = 0
        self.go_on = threading.Event()

    def __call__(self, password: bytes, _hashed: bytes) -> bool:
        self.count += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.go_on.wait(PATIENCE)
        self.at_once -= 1
        return password == b"right"


def test_a_right_password_is_compared_once(made: Certificates, tmp_path: Path) -> None:
    check = Comparing()
    check.go_on.set()

    async def scenario() -> None:
        async with opened(made, tmp_path, USERS, check=check) as port:
            answers = await asyncio.gather(*(port.status(user="alice") for _ in range(10)))
            assert set(answers) == {200}
            assert check.count == 1
            assert await port.status(user="mallory") == 401
            assert check.count == 2

    run(scenario)


def test_a_flood_of_wrong_passwords_is_bounded_and_known_users_pass_it(
    made: Certificates, tmp_path: Path
) -> None:
    check = Comparing()
    check.go_on.set()

    async def scenario() -> None:
        async with opened(made, tmp_path, USERS, check=check) as port:
            assert await port.status(user="alice") == 200
            check.go_on.clear()
            flood = [asyncio.ensure_future(port.get(None, "alice", f"wrong-{n}")) for n in range(50)]
            done, waiting = await asyncio.wait(flood, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            while len(waiting) > MAX_COMPARES_OF_AN_ADDRESS:
                more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done |= more
            assert {task.result()[0] for task in done} == {429}
            assert {task.result()[1]["Retry-After"] for task in done} == {"1"}
            assert await port.status(user="alice") == 200  # while one is compared still
            check.go_on.set()
            assert {(await task)[0] for task in waiting} == {401}
            assert check.most_at_once == 1

    run(scenario)


class Flood:
    """Wrong passwords of many addresses, and what becomes of them."""

    def __init__(self, passwords: Passwords, go_on: threading.Event) -> None:
        self.passwords = passwords
        self.go_on = go_on
        self.begun: list[asyncio.Task[bool]] = []

    async def begin(self, name: str, address: str, password: bytes = b"wrong") -> asyncio.Task[bool]:
        task = asyncio.ensure_future(self.passwords.are_right(name, password, address))
        self.begun.append(task)
        for _ in range(5):  # until one that gave way knows of it
            await asyncio.sleep(0)
        return task

    def refused(self) -> int:
        return sum(task.done() and isinstance(task.exception(), TooManyCompares) for task in self.begun)


async def flooded(*, name: str = "u{}", addresses: int = 5, each: int = 4) -> tuple[Flood, list[bytes]]:
    """A queue that is full of wrong passwords, compared once `go_on` is set; and what was compared."""
    compared: list[bytes] = []
    go_on = threading.Event()

    def check(password: bytes, _hashed: bytes) -> bool:
        go_on.wait(PATIENCE)
        compared.append(password)
        return password == b"right"

    passwords = Passwords(check)
    passwords.take({"alice": ALICE.encode(), "bob": ALICE.encode()})
    flood = Flood(passwords, go_on)
    for number in range(addresses * each):
        address = f"10.0.0.{number // each}"
        await flood.begin(name.format(number), address, f"wrong-{number}".encode())
    return flood, compared


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.0"], ids=["its own address", "that of the flood"])
def test_a_flood_keeps_no_user_from_being_compared(address: str) -> None:
    async def scenario() -> None:
        flood, compared = await flooded()
        assert flood.refused() >= 4
        right = await flood.begin("alice", address, b"right")
        flood.go_on.set()
        assert await right
        # Behind the one in flight and one of each address.
        assert compared.index(b"right") <= 6
        await asyncio.gather(*flood.begun, return_exceptions=True)

    run(scenario)


def test_a_flood_of_wrong_passwords_of_a_user_gives_way_to_other_addresses() -> None:
    async def scenario() -> None:
        flood, compared = await flooded(name="alice")
        refused = flood.refused()
        right = await flood.begin("alice", "192.0.2.1", b"right")
        assert flood.refused() == refused + 1  # one gave way
        flood.go_on.set()
        assert await right
        assert compared.index(b"right") <= 6
        await asyncio.gather(*flood.begun, return_exceptions=True)

    run(scenario)


def test_what_waits_is_bounded_and_all_places_are_free_again() -> None:
    async def scenario() -> None:
        flood, compared = await flooded(addresses=40, each=1)
        assert flood.refused() == 40 - MAX_COMPARES
        wrong = await flood.begin("alice", "10.0.0.0", b"wrong")
        flood.go_on.set()
        assert not await wrong
        await asyncio.gather(*flood.begun, return_exceptions=True)
        assert len(compared) == MAX_COMPARES + 1
        again = [await flood.begin(f"v{number}", f"10.0.1.{number}") for number in range(MAX_COMPARES)]
        assert await asyncio.gather(*again) == [False] * MAX_COMPARES

    run(scenario)


def test_a_compare_that_fails_is_of_its_own_request_only() -> None:
    def check(password: bytes, _hashed: bytes) -> bool:
        if password == b"odd":
            raise RuntimeError("odd")
        return True

    async def scenario() -> None:
        passwords = Passwords(check)
        passwords.take({"alice": ALICE.encode()})
        odd = asyncio.ensure_future(passwords.are_right("alice", b"odd", "10.0.0.1"))
        good = asyncio.ensure_future(passwords.are_right("alice", b"right", "10.0.0.2"))
        assert await good
        with pytest.raises(RuntimeError, match="odd"):
            await odd

    run(scenario)


def test_answers_of_429_are_logged_once_a_minute(
    made: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        text = "rate_limit: {interval: 1h, burst: 1}\n"
        async with opened(made, tmp_path, text) as port:
            assert [await port.status() for _ in range(4)] == [200, 429, 429, 429]

    with caplog.at_level(logging.WARNING):
        run(scenario)

    assert [record.getMessage() for record in caplog.records] == [
        "rate=refused from=127.0.0.1 detail='more requests than rate_limit allows' not_logged_before=0"
    ]


def test_the_time_of_an_answer_tells_nobody_who_exists(made: Certificates, tmp_path: Path) -> None:
    """The median over many tries; a compare that were left out would take a hundredth of one that is not."""
    text = f"basic_auth_users: {{alice: {hashed('right', 9)}, bob: {hashed('right', 4)}}}\n"

    async def seconds(port: Port, user: str, number: int) -> float:
        began = time.perf_counter()
        assert await port.status(user=user, password=f"wrong-{number}") == 401
        return time.perf_counter() - began

    async def scenario() -> None:
        async with opened(made, tmp_path, text) as port:
            known, unknown = [], []
            for number in range(9):
                known.append(await seconds(port, "alice", number))
                unknown.append(await seconds(port, "mallory", number))
            assert 1 / 3 < statistics.median(known) / statistics.median(unknown) < 3

    run(scenario)


# --- headers and the rate


def test_headers_of_the_file_replace_ours(made: Certificates, tmp_path: Path) -> None:
    text = """http_server_config:
  headers: {X-Frame-Options: deny, Content-Security-Policy: "", Strict-Transport-Security: max-age=60}
"""

    async def scenario() -> None:
        async with opened(made, tmp_path, text) as port:
            _, headers = await port.get()
            assert headers["X-Frame-Options"] == "deny"
            assert headers["Strict-Transport-Security"] == "max-age=60"
            assert headers["X-Content-Type-Options"] == "nosniff"  # ours
            assert "Content-Security-Policy" not in headers

    run(scenario)


def test_the_rate_of_requests_is_limited(made: Certificates, tmp_path: Path) -> None:
    clock = [0.0]
    text = "rate_limit: {interval: 2s, burst: 3}\n"

    async def scenario() -> None:
        async with opened(made, tmp_path, text, monotonic=lambda: clock[0]) as port:
            assert [await port.status() for _ in range(5)] == [200, 200, 200, 429, 429]
            clock[0] += 4.0
            assert [await port.status() for _ in range(3)] == [200, 200, 429]
            clock[0] += 3600.0
            assert [await port.status() for _ in range(4)] == [200, 200, 200, 429]

    run(scenario)


# --- files that change


def test_a_renewed_certificate_is_shown_to_the_next_client(made: Certificates, tmp_path: Path) -> None:
    def number(port: Port) -> str:
        context = made.client()
        with (
            socket.create_connection(("127.0.0.1", port.number), timeout=PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
        ):
            certificate = wrapped.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % "") as port:
            first = await asyncio.to_thread(number, port)
            made.servers.issue(["127.0.0.1"]).write(tmp_path, "server")
            port.guard.expire()
            assert await asyncio.to_thread(number, port) != first

    run(scenario)


def test_users_come_and_go_without_a_restart(made: Certificates, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(made, tmp_path, USERS) as port:
            assert await port.status(user="alice") == 200
            port.write(f"basic_auth_users: {{bob: {hashed('right')}}}\n")
            assert await port.status(user="alice") == 401
            assert await port.status(user="bob") == 200
            port.write(f"basic_auth_users: {{alice: {hashed('new')}}}\n")
            assert await port.status(user="alice") == 401
            assert await port.status(user="alice", password="new") == 200

    run(scenario)


def test_a_bad_file_leaves_the_one_before_in_force_and_says_so(
    made: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str | None] = []

    async def scenario() -> None:
        async with opened(made, tmp_path, USERS) as port:
            port.guard.told = told.append
            for _ in range(3):
                port.write("basic_auth_users:\n")
                assert await port.status() == 401
                assert await port.status(user="alice") == 200
            assert port.guard.problem is not None
            port.path.unlink()
            port.guard.expire()
            assert await port.status(user="alice") == 200
            port.write(USERS)
            assert await port.status() == 401
            assert port.guard.problem is None

    with caplog.at_level(logging.INFO):
        run(scenario)

    assert (
        told[0] == f"{tmp_path}/web.yaml:1: basic_auth_users names nobody, which would let everybody in; "
        "add one, or remove the key"
    )
    assert told[-1] is None
    refused = [record.getMessage() for record in caplog.records if "reload=refused" in record.getMessage()]
    assert len(refused) == 2  # the bad one and the one that was not there, once each


def test_a_certificate_without_its_key_is_waited_for(made: Certificates, tmp_path: Path) -> None:
    """Renewing replaces one file after the other."""

    async def scenario() -> None:
        async with opened(made, tmp_path, TLS % "") as port:
            new = made.servers.issue(["127.0.0.1"])
            (tmp_path / "server.pem").write_bytes(new.certificate)
            port.guard.expire()
            assert await port.status(made.client()) == 200
            assert "server.key" not in (port.guard.problem or "")
            assert "key_file is not the key of cert_file" in (port.guard.problem or "")
            (tmp_path / "server.key").write_bytes(new.key)
            port.guard.expire()
            assert await port.status(made.client()) == 200
            assert port.guard.problem is None

    run(scenario)


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        (TLS % "", "", "tls_server_config"),
        (TLS % "", "{}\n", "tls_server_config"),
        (TLS % (CLIENT_CA + "RequireAndVerifyClientCert"), "", "tls_server_config"),
        (
            TLS % (CLIENT_CA + "RequireAndVerifyClientCert"),
            TLS % "",
            "client_auth_type: RequireAndVerifyClientCert",
        ),
        (
            TLS % (CLIENT_CA + "RequireAndVerifyClientCert, client_allowed_sans: [prometheus.example]"),
            TLS % (CLIENT_CA + "RequireAndVerifyClientCert"),
            "client_allowed_sans",
        ),
        (TLS % "" + USERS, TLS % "", "basic_auth_users"),
        (USERS, "# basic_auth_us", "basic_auth_users"),
        ("rate_limit: {interval: 1ms, burst: 30}\n" + USERS, USERS, "rate_limit"),
    ],
    # Not of the hashes, which are salted anew by each process.
    ids=[
        "no file",
        "no keys",
        "no file, clients known",
        "any client",
        "any name",
        "no users",
        "users cut short",
        "no rate",
    ],
)
def test_a_file_that_protects_less_is_taken_at_a_start_only(
    made: Certificates, tmp_path: Path, before: str, now: str, lost: str
) -> None:
    """A file is empty or cut short while it is written, and that must open no door."""
    told: list[str | None] = []

    async def scenario() -> None:
        async with opened(made, tmp_path, before) as port:
            port.guard.told = told.append
            config = port.guard.config
            port.path.write_text(now)
            await port.guard.reload()
            assert port.guard.config is config
            assert f"the file has lost {lost}, as where it is cut short" in (port.guard.problem or "")
            assert told == [port.guard.problem]
            if config.tls is not None:
                assert await port.refuses(None)  # plain HTTP
            elif config.users:
                assert await port.status() == 401
            port.path.write_text(before)
            await port.guard.reload()
            assert (port.guard.problem, told[-1]) == (None, None)
        async with opened(made, tmp_path, now) as port:
            assert port.guard.problem is None

    run(scenario)


def test_a_reload_tells_that_a_file_system_hangs_and_then_takes_what_it_held(
    made: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hang = threading.Event()
    told: list[str | None] = []

    async def scenario() -> None:
        async with opened(made, tmp_path, USERS) as port:
            port.guard.told = told.append
            plain = guard_module._signature

            def signature(paths: tuple[Path, ...]) -> tuple[Any, ...]:
                hang.wait(PATIENCE)
                return plain(paths)

            monkeypatch.setattr(guard_module, "HANGS_AFTER_SECONDS", 0.2)
            monkeypatch.setattr(guard_module, "_signature", signature)  # cannot be made to hang here
            port.path.write_text(f"basic_auth_users: {{bob: {ALICE}}}\n")
            for _ in range(2):
                await port.guard.reload()
                assert "not read within 0.2 s; a file system may hang" in (port.guard.problem or "")
            assert len(told) == 1
            monkeypatch.setattr(guard_module, "HANGS_AFTER_SECONDS", PATIENCE)
            hang.set()
            await port.guard.reload()
            assert port.guard.problem is None
            assert list(port.guard.config.users) == ["bob"]
            assert told[-1] is None

    with caplog.at_level(logging.ERROR):
        run(scenario)

    assert [record.getMessage().count("state=hanging") for record in caplog.records] == [1]


def test_a_reload_sees_what_was_written_after_a_look_had_begun(
    made: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    async def scenario() -> None:
        async with opened(made, tmp_path, USERS) as port:
            plain = port.guard._look
            looks = []

            def look() -> Any:
                seen = plain()
                looks.append(1)
                go_on.wait(PATIENCE)
                return seen

            monkeypatch.setattr(port.guard, "_look", look)  # so that one is in flight for as long as we like
            early = asyncio.ensure_future(port.guard.refresh())
            while not looks:  # noqa: ASYNC110 - it is about what another thread has done
                await asyncio.sleep(0.01)
            port.path.write_text(f"basic_auth_users: {{bob: {ALICE}}}\n")
            asyncio.get_running_loop().call_later(0.05, go_on.set)
            await port.guard.reload()
            assert list(port.guard.config.users) == ["bob"]
            await early

    run(scenario)


def test_a_file_system_that_hangs_keeps_requests_for_a_second_at_most(
    made: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()

    async def scenario() -> None:
        async with opened(made, tmp_path, USERS) as port:
            assert await port.status(user="alice") == 200
            looks = []

            def look() -> None:
                looks.append(1)
                hang.wait(PATIENCE)

            monkeypatch.setattr(port.guard, "_look", look)  # a file system cannot be made to hang here
            port.guard.expire()
            assert await port.status(user="alice") == 200
            assert await port.status(user="alice") == 200
            hang.set()
            assert len(looks) == 1

    run(scenario)


def test_a_file_that_is_wrong_at_the_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text("basic_auth_users: {alice: secret}\n")

    with pytest.raises(ConfigError, match=r"web\.yaml:1: what stands for 'alice' is no bcrypt hash"):
        PortGuard(tmp_path / "web.yaml")
