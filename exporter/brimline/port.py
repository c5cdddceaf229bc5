"""A port that answers over HTTP, of which no client can take more than its share."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from yarl import URL

from brimline import __version__

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
MAX_UNFETCHED_BYTES = 64 << 20
MAX_HEADER_BYTES = 64 << 10
MAX_BODY_BYTES = 256 << 10
# aiohttp keeps what came of a header that is none, several times over, in circles that only the collector of
# garbage finds; and that counts objects, not their size.
COLLECT_AFTER_BYTES = 16 << 20

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What clients may take of the port.

    header_seconds: until a header is complete, from its first byte or from the connection's opening.
    idle_seconds: between two requests. fetch_seconds: until an answer is fetched that is more than the
    sockets take. unfetched_bytes: of all such answers together. connections: open at once.
    """

    header_seconds: float = 10.0
    idle_seconds: float = 75.0
    fetch_seconds: float = 30.0
    unfetched_bytes: int = MAX_UNFETCHED_BYTES
    connections: int = MAX_CONNECTIONS

    @classmethod
    def of_this_process(cls) -> ConnectionLimits:
        """Fewer connections than usual where the process may open few files, which the targets need too."""
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if open_files == resource.RLIM_INFINITY:
            return cls()
        return cls(connections=max(8, min(MAX_CONNECTIONS, open_files // 4)))


class Guard(Protocol):
    """Who may ask, and what goes with each answer; asked anew for each connection and request."""

    async def refresh(self) -> None:
        """Take note of files that have changed."""

    def tls(self) -> ssl.SSLContext | None:
        """The TLS settings of a new connection; None for plain HTTP."""

    def certificate_problem(self, certificate: Mapping[str, Any] | None) -> str | None:
        """Why the client that showed this certificate is sent away; None for one that may ask."""

    def turned_away(self, address: Any, why: str) -> None:
        """Take note of a TLS connection that came to nothing."""

    async def refusal(self, request: web.Request) -> web.Response | None:
        """The answer to a request that may not be handled; None for one that may."""

    def headers(self) -> Mapping[str, str]:
        """Headers of every answer; an empty one is left out."""


def _add_headers(guard: Guard | None) -> Callable[[web.Request, web.StreamResponse], Any]:
    async def add(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = f"brimline/{__version__}"
        for name, value in _SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        for name, value in (guard.headers() if guard is not None else {}).items():
            response.headers.popall(name, None)
            if value:
                response.headers[name] = value

    return add


def _is_our_fault(record: logging.LogRecord) -> bool:
    """False for what a client did wrong, or where it left: it must not fill the log with tracebacks."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | ConnectionError))


def _forgiving(make_request: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """`make_request` for two broken requests by which aiohttp itself falls, with a traceback in the log.

    One has no path, and is asked for a path that there is none of. The other has an Expect header of bytes
    that are no text, which aiohttp wants to repeat in its answer: a server may do without such a header
    (RFC 9110, 10.1.1), and it does without others like it.
    """

    def make(message: Any, *rest: Any) -> web.BaseRequest:
        if message.url is None:
            message = message._replace(url=URL(""))
        request = make_request(message, *rest)
        if request.headers.get(hdrs.EXPECT, "").isascii():
            return request
        return request.clone(headers=[header for header in request.headers.items() if header[1].isascii()])

    return make


class _Connections:
    """The open connections, none of which is held for nothing.

    aiohttp has a time limit for a connection between two requests, but none for the header of a request or
    for fetching an answer, and no limit on how many there are. At the limit the one that has waited longest
    gives way; a connection whose request is being handled never does, but one whose answer is not being
    fetched does.
    """

    def __init__(self, limits: ConnectionLimits, guard: Guard | None = None) -> None:
        self.limits = limits
        self.guard = guard
        self.waiting: dict[_Connection, None] = {}  # an ordered set: who has waited longest comes first
        self._open: dict[web.RequestHandler, _Connection] = {}
        self._unfetched: dict[_Connection, int] = {}  # bytes; who began to fetch first comes first
        self._full = False
        self._received_bytes = 0

    def received(self, size_bytes: int) -> None:
        """Take note of what came in."""
        self._received_bytes += size_bytes

    def collect_garbage(self) -> None:
        """Free what clients that have left had sent, where it was much."""
        if self._received_bytes > COLLECT_AFTER_BYTES:
            self._received_bytes = 0
            gc.collect()

    @web.middleware
    async def watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Tell a connection when the handling of a request begins and ends."""
        connection = self._open.get(request.protocol)
        if connection is None:
            return await self._admit(request, handler)
        connection.request_began()
        try:
            return await self._admit(request, handler)
        finally:
            connection.request_ended()

    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The answer to a request, or that to one that may not be handled."""
        if self.guard is not None:
            await self.guard.refresh()
            refused = await self.guard.refusal(request)
            if refused is not None:
                return refused
        return await handler(request)

    def make_room(self) -> bool:
        """Have a place for one more connection; False where all are busy."""
        if len(self._open) < self.limits.connections:
            return True
        if not self._full:
            self._full = True
            logger.warning("connections=%d state=full", len(self._open))
        longest_waiting = next(iter(self.waiting), None)
        if longest_waiting is None:
            return False
        longest_waiting.abort()
        return True

    def unfetched(self, connection: _Connection, size_bytes: int) -> None:
        """An answer waits for its client. Beyond the limit those that have waited longest are given up."""
        self._unfetched[connection] = size_bytes
        while sum(self._unfetched.values()) > self.limits.unfetched_bytes and len(self._unfetched) > 1:
            next(iter(self._unfetched)).abort()

    def fetched(self, connection: _Connection) -> None:
        self._unfetched.pop(connection, None)

    def add(self, handler: web.RequestHandler, connection: _Connection) -> None:
        self._open[handler] = connection
        self.waiting[connection] = None

    def has(self, handler: web.RequestHandler) -> bool:
        return handler in self._open

    def remove(self, handler: web.RequestHandler, connection: _Connection) -> None:
        self._open.pop(handler, None)
        self._unfetched.pop(connection, None)
        self.waiting.pop(connection, None)
        if self._full and len(self._open) < self.limits.connections / 2:
            self._full = False
            logger.info("connections=%d state=normal", len(self._open))


# For the farewell of a TLS connection; a client that does not return it must not be waited for.
_TLS_CLOSING_SECONDS = 2.0
_TLS_LOOK_SECONDS = 0.1


class _Connection(asyncio.Protocol):
    """Stands between a transport and aiohttp's protocol, to see when a request begins to come in.

    It counts from the moment that the client has connected, so that a TLS handshake has the deadline of a
    header, and its connection gives way like any other that waits.
    """

    def __init__(self, connections: _Connections, make_handler: Callable[[], web.RequestHandler]) -> None:
        self._connections = connections
        self._make_handler = make_handler
        self._handler: web.RequestHandler | None = None
        self._transport: asyncio.Transport | None = None
        self._encrypted: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fetch_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._received_while_busy = False
        self._header_bytes = 0
        self._opening: asyncio.Task[None] | None = None
        self._early: list[bytes] = []  # what came with the last part of the handshake
        self._ended_early = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._connections.make_room():
            self._transport.abort()
            return
        self._handler = self._make_handler()
        self._connections.add(self._handler, self)
        self._expect_header()
        if self._connections.guard is None:
            self._handler.connection_made(transport)
            return
        self._transport.pause_reading()
        self._opening = asyncio.ensure_future(self._open(self._connections.guard, self._transport))

    async def _open(self, guard: Guard, transport: asyncio.Transport) -> None:
        """Hand the connection to aiohttp, after the TLS handshake where there is one."""
        try:
            await guard.refresh()
            opened: asyncio.Transport | None = transport
            if transport.is_closing():  # a handshake would wait for bytes that cannot come
                self.abort()
                return
            if (context := guard.tls()) is not None:
                opened = await self._shake_hands(guard, context, transport)
            if opened is None or transport.is_closing() or self._handler is None:
                self.abort()
                return
            self._encrypted = None if opened is transport else opened
            self._handler.connection_made(opened)
            self._opening = None
            early, self._early = self._early, []
            for data in early:
                if not transport.is_closing():
                    self.data_received(data)
            if self._ended_early:
                self._handler.eof_received()
            if opened is transport:
                transport.resume_reading()
        except Exception:  # a defect here must cost this connection only
            logger.exception("a connection could not be opened")
            self.abort()

    async def _shake_hands(
        self, guard: Guard, context: ssl.SSLContext, transport: asyncio.Transport
    ) -> asyncio.Transport | None:
        """The encrypted transport; None where the handshake failed or the client is not wanted."""
        seconds = self._connections.limits.header_seconds
        try:
            opened = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=_TLS_CLOSING_SECONDS,
            )
        except ssl.SSLError as error:
            guard.turned_away(transport.get_extra_info("peername"), error.reason or str(error))
            return None
        except OSError:  # left, as a health probe does that only connects
            return None
        if opened is None:  # aborted meanwhile
            return None
        peer = opened.get_extra_info("ssl_object")
        problem = guard.certificate_problem(peer.getpeercert() if peer is not None else None)
        if problem is not None:
            guard.turned_away(transport.get_extra_info("peername"), problem)
            return None
        return opened

    def data_received(self, data: bytes) -> None:
        if self._handler is None:
            return
        if self._opening is not None:
            self._early.append(data)
            return
        if self._busy:
            self._received_while_busy = True
        elif self._timer is None:
            self._expect_header()
        self._connections.received(len(data))
        if not self._busy and self._is_header_too_large(data):
            self.abort()
            return
        self._handler.data_received(data)

    def _is_header_too_large(self, data: bytes) -> bool:
        if data.find(b"\r\n\r\n", 0, MAX_HEADER_BYTES) >= 0:
            self._header_bytes = -MAX_BODY_BYTES  # which may come in before the handling begins
            return False
        self._header_bytes += len(data)
        return self._header_bytes > MAX_HEADER_BYTES

    def eof_received(self) -> None:
        if self._opening is not None:
            self._ended_early = True
        elif self._handler is not None:
            self._handler.eof_received()

    def pause_writing(self) -> None:
        if self._handler is None or self._transport is None:
            return
        self._handler.pause_writing()
        if self._encrypted is not None:
            self._look_at_fetching()
            return
        self._expect_fetching()
        self._connections.unfetched(self, self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._encrypted is None:
            self._stop_fetch_timer()
            self._connections.fetched(self)
        if self._handler is not None:
            self._handler.resume_writing()

    def _look_at_fetching(self) -> None:
        """See how much of an encrypted answer waits, and look again until it is fetched.

        asyncio's TLS hands an answer whole to the socket's buffer, and tells nobody what waits there:
        pause_writing() is not called.
        """
        self._look_timer = None
        if self._transport is None or self._encrypted is None or self._transport.is_closing():
            return
        held = self._transport.get_write_buffer_size() + self._encrypted.get_write_buffer_size()
        if not held:
            self._stop_fetch_timer()
            self._connections.fetched(self)
            return
        if self._fetch_timer is None:
            self._expect_fetching()
        self._look_again()
        self._connections.unfetched(self, held)

    def _look_again(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        loop = asyncio.get_running_loop()
        self._look_timer = loop.call_later(_TLS_LOOK_SECONDS, self._look_at_fetching)

    def _expect_fetching(self) -> None:
        loop = asyncio.get_running_loop()
        self._fetch_timer = loop.call_later(self._connections.limits.fetch_seconds, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._forget()
        if self._handler is not None and self._opening is None:
            self._handler.connection_lost(error)
        self._connections.collect_garbage()

    def request_began(self) -> None:
        """A header is complete."""
        self._busy, self._received_while_busy, self._header_bytes = True, False, 0
        self._connections.waiting.pop(self, None)
        self._stop_timer()

    def request_ended(self) -> None:
        """The answer is known, and about to be sent."""
        self._busy = False
        if self._handler is None or not self._connections.has(self._handler):
            return  # the client has left meanwhile
        self._connections.waiting[self] = None
        if self._encrypted is not None:
            self._look_again()
        if self._received_while_busy:
            self._expect_header()

    def abort(self) -> None:
        """Close at once, also where the client does not fetch what is still to be sent."""
        self._forget()
        if self._transport is not None:
            self._transport.abort()

    def _expect_header(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._connections.limits.header_seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_fetch_timer(self) -> None:
        if self._fetch_timer is not None:
            self._fetch_timer.cancel()
            self._fetch_timer = None

    def _forget(self) -> None:
        self._stop_timer()
        self._stop_fetch_timer()
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        if self._handler is not None:
            self._connections.remove(self._handler, self)


async def serve_application(
    application: web.Application,
    host: str,
    port: int,
    stop: asyncio.Event,
    *,
    started: Callable[[int], None] | None = None,
    stopping: Callable[[], None] | None = None,
    limits: ConnectionLimits | None = None,
    guard: Guard | None = None,
) -> None:
    """Serve until `stop` is set; then answer the requests in flight and return within a second.

    started: called with the port once it is open. stopping: called before it is closed. limits: None for
    those that suit this process. guard: None where everybody may ask. Raises OSError where the port cannot be
    opened.
    """
    limits = limits or ConnectionLimits.of_this_process()
    protocol_logger = logging.getLogger(f"{__name__}.protocol")
    protocol_logger.addFilter(_is_our_fault)
    connections = _Connections(limits, guard)
    application.middlewares.append(connections.watch)
    application.on_response_prepare.append(_add_headers(guard))
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=protocol_logger,
        handle_signals=False,
        shutdown_timeout=1.0,
        keepalive_timeout=limits.idle_seconds,
    )
    server: asyncio.Server | None = None
    await runner.setup()
    try:
        if runner.server is None:
            raise RuntimeError("setup() makes the server")
        make_handler = runner.server
        make_handler.request_factory = _forgiving(make_handler.request_factory)
        server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(connections, make_handler), host, port, backlog=limits.connections
        )
        if started is not None:
            started(server.sockets[0].getsockname()[1])
        await stop.wait()
        if stopping is not None:
            stopping()
    finally:
        if server is not None:
            server.close()
        await runner.cleanup()
