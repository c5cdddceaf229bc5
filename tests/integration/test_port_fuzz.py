"""The port of a running exporter under everything that a client may do wrong, all of it at once."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_servers import FakeServer, FakeVllm
from serving import Serving, serving

SEED = 20_261_130
SECONDS = 8.0
HALF_SENT = 300
HEADER_SECONDS = 10.0  # brimline.port

METHODS = (
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"CONNECT",
    b"TRACE",
    b"PRI",
    b"get",
    b"G\0T",
    b"",
)
PATHS = (
    b"/metrics",
    b"/",
    b"/config",
    b"/debug?target=chat",
    b"/-/healthy",
    b"/-/reload",
    b"/plan",
    b"/nothing",
    b"/metrics/../config",
    b"/../../etc/passwd",
    b"/%2e%2e/%2e%2e/etc/passwd",
    b"//metrics",
    b"/metrics%00",
    b"/%ff%fe",
    b"/debug?target=http://169.254.169.254/",
    b"/debug?target=%0d%0aX:1",
    b"http://127.0.0.1/metrics",
    b"*",
    b"",
    b"?",
    b"http://169.254.169.254/latest",
    b"/" + b"a" * 9000,
    b"/debug?" + b"target=chat&" * 2000,
    b"/\xe2\x80\xae",
)
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"HTTP", b"")
HEADERS = (
    b"Host: x",
    b"Host: x\r\nHost: y",
    b"Connection: keep-alive",
    b"Connection: close",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Content-Length: 10",
    b"Content-Length: -1",
    b"Content-Length: 99999999999",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Expect: 100-continue",
    b"Expect: \xc7",
    b"Accept-Encoding: gzip;q=nan",
    b"Accept: " + b"text/plain;q=0.1," * 300,
    b"Accept: \xff",
    b"X-Prometheus-Scrape-Timeout-Seconds: 1e999",
    b"X: " + b"a" * 20_000,
    b": empty",
    b"X",
    b"X :1",
    b"\0: \0",
    b"X-Forwarded-For: 1",
    b"Range: bytes=0-1",
    b"Cookie: " + b"a=b;" * 500,
    b"Cookie: \xc7=\xc7",
    b"Authorization: Basic \xc7",
    b"If-None-Match: \xc7",
    b"X-Prometheus-Scrape-Timeout-Seconds: \xc7",
    b"Content-Encoding: deflate",
    b" folded",
)
BODIES = (
    b"",
    b"",
    b"0123456789",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"zz\r\n",
    b"ffffffffffffffff\r\n",
    b"\0" * 100,
)
OPENINGS = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"SSH-2.0-x\r\n",
    b"\r\n" * 100,
    b"GET / HTTP/1.1\r\nX: " + b"a" * (1 << 20),
    b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100_000,
    b"\0" * 1000,
    b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100,
)


def request(rng: random.Random) -> bytes:
    """One or several requests, hardly any of them right."""
    if rng.random() < 0.1:
        return rng.choice(OPENINGS)
    method = b"GET" if rng.random() < 0.6 else rng.choice(METHODS)
    version = b"HTTP/1.1" if rng.random() < 0.8 else rng.choice(VERSIONS)
    lines = [b" ".join((method, rng.choice(PATHS), version))]
    lines += [b"Host: x"] * (rng.random() < 0.7) + rng.sample(HEADERS, rng.choice((0, 0, 1, 2, 4)))
    whole = b"\r\n".join(lines) + b"\r\n\r\n" + rng.choice(BODIES)
    if rng.random() < 0.4:
        broken = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        whole = bytes(broken)
    return whole * rng.choice((1, 1, 1, 2, 5))


class Attack(threading.Thread):
    """Sends requests until the time is over."""

    def __init__(self, port: int, number: int, over: float) -> None:
        super().__init__(daemon=True)
        self._rng = random.Random(SEED + number)
        self._port = port
        self._over = over
        self.sent = 0
        self.statuses: set[bytes] = set()

    def run(self) -> None:
        while time.monotonic() < self._over:
            content = request(self._rng)
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), timeout=5) as client,
            ):
                self.sent += 1
                client.sendall(content)
                if self._rng.random() < 0.3:
                    continue  # leaves without a look at the answer
                client.shutdown(socket.SHUT_WR)
                if first := client.recv(65536):
                    self.statuses.add(first.split(b"\r\n")[0])


def _usage(pid: int) -> tuple[int, int, float]:
    """Threads, open files and resident MiB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert rss is not None
    threads, files = (len(list(Path(f"/proc/{pid}/{kind}").iterdir())) for kind in ("task", "fd"))
    return threads, files, int(rss.group(1)) / 1024


def is_closed(client: socket.socket) -> bool:
    """True once the other end has closed; waits for half a minute."""
    client.settimeout(30)
    try:
        return client.recv(1 << 16) == b"" or is_closed(client)
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@pytest.fixture(name="exporter")
def _exporter(tmp_path: Path) -> Iterator[Serving]:
    with FakeServer(FakeVllm().routes()) as vllm, serving(tmp_path, {"chat": vllm.url}) as running:
        yield running


def test_no_client_takes_the_port_from_the_others(
    exporter: Serving, record_property: Callable[[str, object], None]
) -> None:
    address = ("127.0.0.1", exporter.port)
    for path in (*["/metrics"] * 20, "/", "/config", "/plan", "/debug?target=chat"):
        exporter.ask(path)  # some load what they need when they are first asked for
    _, files_before, rss_before = _usage(exporter.process.pid)
    good = []

    with contextlib.ExitStack() as stack:
        half_sent = []
        for number in range(HALF_SENT):
            client = stack.enter_context(socket.create_connection(address, timeout=30))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n"[: number % 34])
            half_sent.append(client)
        opened = time.monotonic()
        slow = []
        for _ in range(20):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(address)
            client.sendall(b"GET /debug?target=chat HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
            slow.append(client)  # and fetches nothing
        attacks = [Attack(exporter.port, number, opened + SECONDS) for number in range(3)]
        for attack in attacks:
            attack.start()
        while any(attack.is_alive() for attack in attacks):
            good.append(exporter.metrics().values("brimline_target_up"))
            time.sleep(0.1)
        threads, _, rss = _usage(exporter.process.pid)
        closed = [is_closed(client) for client in half_sent]
        took = time.monotonic() - opened
        exporter.metrics()

    sent = sum(attack.sent for attack in attacks)
    statuses = {status.split(b" ")[1] for attack in attacks for status in attack.statuses}
    record_property(
        "requests sent", f"{sent}, {len(good)} good scrapes between; {rss - rss_before:.1f} MiB more"
    )
    assert exporter.process.poll() is None
    assert good == [{"chat": 1}] * len(good)
    assert sent > 100
    assert len(good) > 5
    assert all(closed)
    assert took < HEADER_SECONDS + 30
    assert threads <= 64
    assert rss < rss_before + 32
    assert {b"200", b"400"} <= statuses
    assert not any(status.startswith(b"5") for status in statuses), statuses
    assert "Traceback" not in exporter.log, exporter.log
    assert len(exporter.log) < 20_000
    files = _usage(exporter.process.pid)[1]
    assert files <= files_before + 25  # what a keep-alive may still hold
