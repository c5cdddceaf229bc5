"""Small inference servers on 127.0.0.1, good ones and every kind of bad one, written byte by byte.

An HTTP library would be too polite to send what broken servers and proxies send.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

CLASSIC = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CAP_BYTES = 16 << 20  # the largest answer that is taken


@dataclass(frozen=True)
class Request:
    """One request as it came. headers: lower-case names."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


class Wire:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket, stopped: threading.Event) -> None:
        self._connection = connection
        self._stopped = stopped

    def send(self, content: bytes) -> None:
        """Send all of it. Raises OSError where the client has gone."""
        self._connection.sendall(content)

    def wait(self, seconds: float) -> bool:
        """Wait; True where the server was closed meanwhile."""
        return self._stopped.wait(seconds)


# Sends its answer; the connection stays open where it returns True.
Reply = Callable[[Wire, Request], bool]


def _read_request(connection: socket.socket, buffer: bytearray) -> Request | None:
    while b"\r\n\r\n" not in buffer:
        received = connection.recv(65536)
        if not received:
            return None
        buffer += received
        if buffer[:1] == b"\x16":  # a TLS handshake: no HTTP server reads on
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return None
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    buffer[:] = rest
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    length = int(headers.get("content-length", "0"))
    while len(buffer) < length:
        received = connection.recv(65536)
        if not received:
            return None
        buffer += received
    body = bytes(buffer[:length])
    del buffer[:length]
    return Request(method, path, headers, body)


def _shakes_hands(connection: ssl.SSLSocket) -> bool:
    """True once TLS stands. Where it fails, the client gets to read why, and no reset."""
    try:
        connection.do_handshake()
    except ssl.SSLError:
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while socket.socket.recv(connection, 65536):
            pass
        return False
    return True


class FakeServer:
    """Answers each path by its reply, "*" standing for every other path; without one with 404.

    routes may be changed while it runs. requests: all that came, in order.
    """

    def __init__(
        self,
        routes: Mapping[str, Reply],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.routes = dict(routes)
        self._tls = tls
        self.requests: list[Request] = []
        self._stopped = threading.Event()
        self._listener = socket.create_server((host, port), backlog=128)
        self.host: str = host
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, name="fake-server", daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"http{'' if self._tls is None else 's'}://{self.host}:{self.port}"

    def count(self, path: str) -> int:
        """How often that path was asked for."""
        return self.paths().count(path)

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [request.path for request in self.requests]

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = bytearray()
        with contextlib.ExitStack() as open_ones, contextlib.suppress(OSError):
            open_ones.enter_context(connection)
            if self._tls is not None:
                self._connections.discard(connection)
                tls = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                self._connections.add(open_ones.enter_context(tls))
                if not _shakes_hands(tls):
                    return
                connection = tls
            wire = Wire(connection, self._stopped)
            while (request := _read_request(connection, buffer)) is not None:
                self.requests.append(request)
                reply = self.routes.get(request.path) or self.routes.get("*", NOT_FOUND)
                if not reply(wire, request):
                    break
        self._connections.discard(connection)

    def close(self) -> None:
        """Close the port and every connection, as the end of a process does."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(5)
        self._listener.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def dead_port() -> Iterator[int]:
    """A port that refuses connections and that nobody else can take meanwhile."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# --- replies


def answer(
    body: str | bytes,
    *,
    status: int = 200,
    content_type: str = CLASSIC,
    headers: Mapping[str, str] | None = None,
    keep_alive: bool = False,
) -> Reply:
    """A well-formed HTTP answer."""
    content = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status} Whatever",
        f"Content-Length: {len(content)}",
        f"Content-Type: {content_type}",
    ]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if not keep_alive:
        lines.append("Connection: close")
    whole = "\r\n".join(lines).encode() + b"\r\n\r\n" + content

    def reply(wire: Wire, request: Request) -> bool:
        wire.send(whole)
        return keep_alive

    return reply


def json_answer(document: object, *, status: int = 200) -> Reply:
    """A JSON document."""
    return answer(json.dumps(document), status=status, content_type="application/json")


def raw(content: bytes) -> Reply:
    """These bytes, then the end of the connection."""

    def reply(wire: Wire, request: Request) -> bool:
        wire.send(content)
        return False

    return reply


def redirect(location: str, *, status: int = 302) -> Reply:
    """A redirect."""
    return answer("", status=status, headers={"Location": location})


def hang(wire: Wire, request: Request) -> bool:
    """Accept the request and say nothing."""
    wire.wait(120)
    return False


def when(gate: threading.Event, reply: Reply) -> Reply:
    """The reply, once the gate is open."""

    def wait_first(wire: Wire, request: Request) -> bool:
        while not gate.wait(0.02):
            if wire.wait(0):
                return False
        return reply(wire, request)

    return wait_first


def drip(content: bytes, *, before: bytes = b"") -> Reply:
    """Four bytes each 0.2 s: no single read is slow, the whole takes minutes."""

    def reply(wire: Wire, request: Request) -> bool:
        wire.send(before)
        for start in range(0, len(content), 4):
            wire.send(content[start : start + 4])
            if wire.wait(0.2):
                break
        return False

    return reply


NOT_FOUND = answer("not found\n", status=404)


# --- good servers


@dataclass
class FakeVllm:
    """A vLLM server's pages, from numbers that a test may change while it runs."""

    generation_tokens: int = 1000
    start_time: float = 1_700_000_000.0
    version: str = "0.33.0"
    models: tuple[str, ...] = ("demo-model",)
    ranks: int = 1
    max_model_len: int = 4096
    blocks: int = 1024
    kv_usage: float = 0.25
    keep_alive: bool = False
    more_lines: list[str] = field(default_factory=list)

    def page(self) -> str:
        """The metrics page now."""
        lines = [
            'python_info{implementation="CPython",major="3",minor="12"} 1.0',
            f"process_start_time_seconds {self.start_time}",
        ]
        for model in self.models:
            for rank in range(self.ranks):
                labels = f'model_name="{model}",engine="{rank}"'
                lines += [
                    f"vllm:num_requests_running{{{labels}}} 3.0",
                    f"vllm:num_requests_waiting{{{labels}}} 1.0",
                    f"vllm:kv_cache_usage_perc{{{labels}}} {self.kv_usage}",
                    f"vllm:prompt_tokens_total{{{labels}}} 5000.0",
                    f"vllm:generation_tokens_total{{{labels}}} {float(self.generation_tokens)}",
                    f"vllm:num_preemptions_total{{{labels}}} 0.0",
                    f'vllm:request_success_total{{{labels},finished_reason="stop"}} 7.0',
                ]
        for rank in range(self.ranks):
            lines.append(
                f'vllm:cache_config_info{{engine="{rank}",block_size="16",num_gpu_blocks="{self.blocks}",'
                'gpu_memory_utilization="0.9",cache_dtype="auto"} 1.0'
            )
        lines += self.more_lines
        return "# TYPE vllm:num_requests_running gauge\n" + "\n".join(lines) + "\n"

    def routes(self) -> dict[str, Reply]:
        """What the server answers at each of its paths."""

        def metrics(wire: Wire, request: Request) -> bool:
            return answer(self.page(), keep_alive=self.keep_alive)(wire, request)

        def version(wire: Wire, request: Request) -> bool:
            return json_answer({"version": self.version})(wire, request)

        def models(wire: Wire, request: Request) -> bool:
            entries = [
                {"id": model, "owned_by": "vllm", "root": model, "max_model_len": self.max_model_len}
                for model in self.models
            ]
            return json_answer({"object": "list", "data": entries})(wire, request)

        return {"/metrics": metrics, "/version": version, "/v1/models": models}


LLAMACPP_PAGE = """\
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 111
llamacpp:tokens_predicted_total 222
llamacpp:requests_processing 1
llamacpp:requests_deferred 0
"""


def llamacpp_routes() -> dict[str, Reply]:
    """A llama.cpp server with its metrics on."""
    return {
        "/metrics": answer(LLAMACPP_PAGE),
        "/v1/models": json_answer({"data": [{"id": "tiny.gguf", "owned_by": "llamacpp"}]}),
        "/props": json_answer({"build_info": "b7000", "total_slots": 1}),
        "/slots": json_answer([{"id": 0, "n_ctx": 2048, "is_processing": False, "n_prompt_tokens": 0}]),
    }


# --- bad servers


@functools.cache
def gzip_bomb() -> bytes:
    """A quarter of a megabyte that inflates to 256 MiB of zeros."""
    squeeze = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    return b"".join([squeeze.compress(zeros) for _ in range(256)] + [squeeze.flush()])


def gzipped(content: bytes) -> bytes:
    """The content as a gzip stream."""
    squeeze = zlib.compressobj(wbits=31)
    return squeeze.compress(content) + squeeze.flush()


def gzip_answer(content: bytes) -> Reply:
    """An answer that says it is gzip."""
    return answer(content, headers={"Content-Encoding": "gzip"})


def _with_length(content: bytes, length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (length, content)


@dataclass(frozen=True)
class Fault:
    """What a server does wrong, and the reason by which that must be known.

    slow: nothing but the target's own timeout ends it.
    """

    reason: str
    routes: Mapping[str, Reply]
    slow: bool = False


def _everywhere(reason: str, reply: Reply, *, slow: bool = False) -> Fault:
    return Fault(reason, {"*": reply}, slow)


_PAGE = FakeVllm().page().encode()
_SLOW_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4000\r\n\r\n"
_CUT_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n"
_501 = {
    "error": {
        "code": 501,
        "message": "This server does not support metrics endpoint. Start it with `--metrics`",
        "type": "not_supported_error",
    }
}

FAULTS: dict[str, Fault] = {
    "accepts and hangs": _everywhere("timeout", hang, slow=True),
    "drips the body": _everywhere("timeout", drip(_PAGE, before=_SLOW_HEAD), slow=True),
    "drips the headers": _everywhere("timeout", drip(_SLOW_HEAD), slow=True),
    "closes without an answer": _everywhere("connection", raw(b"")),
    "redirects to another host": _everywhere("redirect", redirect("http://elsewhere.invalid/metrics")),
    "redirects to another scheme": _everywhere("redirect", redirect("https://127.0.0.1/metrics", status=301)),
    "closes in the middle of a number": _everywhere(
        "truncated", raw(_CUT_HEAD + b"vllm:num_requests_running 12")
    ),
    "announces more than it sends": _everywhere("truncated", raw(_with_length(_PAGE, len(_PAGE) + 100))),
    "closes in the middle of a chunk": _everywhere(
        "truncated", raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nvllm:num_requests")
    ),
    "OpenMetrics without its end": _everywhere("truncated", answer(_PAGE, content_type=OPENMETRICS)),
    "gzip that ends early": _everywhere("truncated", gzip_answer(gzipped(_PAGE)[:-20])),
    "gzip bomb": _everywhere("too_large", lambda wire, request: gzip_answer(gzip_bomb())(wire, request)),
    "17 MiB": _everywhere("too_large", answer(b"x 1\n" * (17 << 18))),
    "damaged gzip": _everywhere("encoding", gzip_answer(gzipped(_PAGE)[:60] + b"\0" * 300)),
    "not gzip at all": _everywhere("encoding", gzip_answer(_PAGE)),
    "something behind the gzip": _everywhere("encoding", gzip_answer(gzipped(_PAGE) + gzipped(_PAGE))),
    "unknown encoding": _everywhere("encoding", answer(_PAGE, headers={"Content-Encoding": "zstd"})),
    "HTML": _everywhere("not_an_engine", answer("<!doctype html><p>hello", content_type="text/html")),
    "JSON": _everywhere("not_an_engine", json_answer({"status": "ok"})),
    "an empty page": _everywhere("not_an_engine", answer("")),
    "another program's metrics": _everywhere("not_an_engine", answer("node_load1 0.5\nnode_load5 0.4\n")),
    "401": _everywhere("unauthorized", answer("", status=401)),
    "403": _everywhere("unauthorized", answer("forbidden", status=403)),
    "404": _everywhere("not_found", NOT_FOUND),
    "500": _everywhere("http_status", answer("Internal Server Error", status=500)),
    "500 at the metrics page alone": Fault("http_status", {"/metrics": answer("oops", status=500)}),
    "501 of llama.cpp": _everywhere("metrics_disabled", json_answer(_501, status=501)),
    "vLLM without statistics": Fault(
        "metrics_disabled",
        {
            **FakeVllm().routes(),
            "/metrics": answer(f"python_info 1.0\nprocess_start_time_seconds {FakeVllm.start_time}\n"),
        },
    ),
    "garbage instead of HTTP": _everywhere(
        "http_status", raw(b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(range(256)))
    ),
    "one header of 1 MB": _everywhere(
        "http_status", raw(b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n")
    ),
    "1 MB of headers": _everywhere(
        "http_status", raw(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(100_000)))
    ),
}
