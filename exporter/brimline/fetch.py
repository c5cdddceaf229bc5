"""Ask one server for one page: bounded in time and size, without redirects, proxies or stale connections.

Everything that can go wrong is a SourceError with a reason of brimline.readings.TARGET_REASONS.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import ssl
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from brimline import __version__
from brimline.config import Target
from brimline.errors import SourceError
from brimline.exposition_text import looks_complete
from brimline.files import NotARegularFile, open_regular
from brimline.threads import in_daemon_thread

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
MAX_SECRET_BYTES = 64 << 10
CHUNK_BYTES = 64 << 10
# Classic text, and no word of OpenMetrics: prometheus_client's make_asgi_app takes any mention of it as a
# wish, whatever its weight, and then writes `vllm_` for `vllm:`. Who knows nothing else sends it anyway.
ACCEPT = "text/plain;version=0.0.4, */*;q=0.1"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole, decompressed answer. headers: lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    path: str

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            host=str(address[0]),
            port=int(address[1]),
            family=kind,
            proto=protocol,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        for kind, _, protocol, _, address in found
    ]


class DaemonResolver(AbstractResolver):
    """Resolve names in daemon threads, one look-up at a time for each name.

    The event loop's own resolver shares six threads among all names: six hanging look-ups would stop every
    other one.
    """

    def __init__(self) -> None:
        self._pending: dict[tuple[str, int, int], asyncio.Future[list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        key = (host, port, int(family))
        future = self._pending.get(key)
        if future is None:
            future = self._pending[key] = in_daemon_thread(lambda: _look_up(host, port, family), "dns")

            future.add_done_callback(lambda _done: self._pending.pop(key, None))
        try:
            return await asyncio.shield(future)
        except UnicodeError as error:
            raise OSError(None, f"not a host name: {error}") from None

    async def close(self) -> None:
        self._pending.clear()


def open_session() -> aiohttp.ClientSession:
    """The session that all targets share. Never follows the environment's proxies or a cookie."""
    connector = aiohttp.TCPConnector(
        limit=0, resolver=DaemonResolver(), ttl_dns_cache=30, keepalive_timeout=75
    )
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": f"brimline/{__version__}"},
        timeout=aiohttp.ClientTimeout(total=None),
        max_line_size=16 << 10,
        max_field_size=16 << 10,
    )


def _read_secret(path: str) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_SECRET_BYTES)
    except NotARegularFile:
        raise SourceError("credentials", f"{path} is not a regular file") from None
    except OSError as error:
        raise SourceError("credentials", f"{path} cannot be read ({error.strerror})") from None
    text = content.decode("utf-8", "replace").strip()
    if not text or any(ord(character) < 32 for character in text):
        raise SourceError("credentials", f"{path} is empty or holds more than one line")
    return text


def request_headers(target: Target) -> dict[str, str]:
    """Headers of a request, secrets read from their files now. Raises SourceError for an unreadable one."""
    headers = dict(target.headers)
    if target.bearer_token_file is not None:
        headers["Authorization"] = f"Bearer {_read_secret(target.bearer_token_file)}"
    elif target.basic_auth is not None:
        pair = f"{target.basic_auth.username}:{_read_secret(target.basic_auth.password_file)}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    headers["Accept"] = ACCEPT
    # Compressing costs the server a third more time, and over loopback nothing is gained by it.
    headers["Accept-Encoding"] = "identity" if target.is_loopback else "gzip"
    return headers


def tls_context(target: Target) -> ssl.SSLContext | bool:
    """TLS settings of a target; True for the defaults. Raises SourceError where a file cannot be used."""
    tls = target.tls
    if tls is None:
        return True
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ssl.SSLError) as error:
        raise SourceError("tls", f"the TLS files cannot be used ({error})") from None
    if tls.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _tls_file_times(target: Target) -> tuple[float, ...]:
    """When the TLS files were last written: a renewed certificate is to be used without a restart."""
    if target.tls is None:
        return ()
    paths = (target.tls.ca_file, target.tls.cert_file, target.tls.key_file)
    try:
        return tuple(Path(path).stat().st_mtime for path in paths if path is not None)
    except OSError as error:
        raise SourceError("tls", f"the TLS files cannot be used ({error})") from None


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """The body, inflated where it is gzip. Raises SourceError beyond 16 MiB of either form."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip"):
        raise SourceError("encoding", f"the answer is encoded as {encoding[:40]!r}, which was not asked for")
    inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    body = bytearray()
    received = 0
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        received += len(chunk)
        pending = chunk
        while pending:
            if inflate is None:
                body += pending
                pending = b""
            else:
                try:
                    # One byte above the cap is enough to know that there is more.
                    body += inflate.decompress(pending, MAX_BODY_BYTES + 1 - len(body))
                except zlib.error as error:
                    raise SourceError("encoding", f"the compressed answer is damaged ({error})") from None
                if inflate.unused_data:
                    # Kept by the decompressor without limit, and not what was asked for.
                    raise SourceError("encoding", "the compressed answer goes on behind its end")
                pending = inflate.unconsumed_tail
            if max(len(body), received) > MAX_BODY_BYTES:
                raise SourceError("too_large", "the answer is larger than 16 MiB")
    if inflate is not None and not inflate.eof:
        raise SourceError("truncated", "the compressed answer ends in the middle")
    return bytes(body)


class Client:
    """Asks one target; its session is shared.

    trace: a line for each request since the caller last emptied it.
    """

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._target = target
        self._tls: ssl.SSLContext | bool = True
        self._tls_files: tuple[float, ...] | None = None
        self.trace: list[str] = []

    async def get(self, path: str) -> Answer:
        """A whole answer with status 200. Raises SourceError for anything else.

        The caller bounds the time; a redirect is followed only where it does no more than add a slash.
        """
        begun = time.monotonic()
        outcome = "cancelled"
        try:
            answer = await self._get(path)
            outcome = f"{answer.status}, {len(answer.body)} bytes, {answer.content_type or 'no content type'}"
            return answer
        except SourceError as error:
            outcome = f"{error.reason}: {error}"
            raise
        finally:
            self.trace.append(f"GET {path}: {outcome} ({(time.monotonic() - begun) * 1000:.1f} ms)")

    async def _get(self, path: str) -> Answer:
        url = f"{self._target.origin}{self._target.base_path}{path}"
        if (files := _tls_file_times(self._target)) != self._tls_files:
            self._tls = tls_context(self._target)
            self._tls_files = files
        headers = request_headers(self._target)
        server_name = self._target.tls.server_name if self._target.tls else None
        for attempt in range(2):
            try:
                async with self._session.get(
                    url, headers=headers, allow_redirects=False, ssl=self._tls, server_hostname=server_name
                ) as response:
                    location = response.headers.get("Location")
                    if response.status in (301, 302, 307, 308) and location is not None:
                        place = urljoin(url, location)
                        if attempt == 0 and _only_adds_slash(url, place):
                            url = place
                            continue
                        raise SourceError(
                            "redirect", f"{url} redirects to another place; configure that one instead"
                        )
                    body = await _read_body(response)
                    answer = Answer(
                        response.status, {k.lower(): v for k, v in response.headers.items()}, body, path
                    )
            except aiohttp.ClientError as error:
                raise _translate(error, url) from None
            except OSError as error:
                raise SourceError("connection", f"{url}: {error.strerror or error}") from None
            _check_status(answer, url)
            return answer
        raise SourceError("redirect", f"{url} redirects again; configure the page's own address")

    async def get_page(self, path: str) -> Answer:
        """As get, and the page is whole. Raises SourceError."""
        answer = await self.get(path)
        if answer.body and not looks_complete(answer.body, answer.content_type):
            if answer.body.lstrip()[:1] in (b"<", b"{", b"["):
                return answer  # not metrics at all; the caller says so better
            raise SourceError(
                "truncated", f"{path} ends in the middle of a line; the server or a proxy cut it off"
            )
        return answer


def _only_adds_slash(url: str, location: str) -> bool:
    old, new = urlsplit(url), urlsplit(location)
    return (new.scheme, new.netloc, new.path, new.query) == (
        old.scheme,
        old.netloc,
        old.path + "/",
        old.query,
    )


def _translate(error: aiohttp.ClientError, url: str) -> SourceError:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return SourceError("dns", f"{urlsplit(url).hostname} cannot be resolved ({error.os_error})")
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch):
        if "WRONG_VERSION_NUMBER" in str(error):
            return SourceError("tls", f"{url}: the server does not speak TLS; write http:// instead")
        return SourceError("tls", f"{url}: {_one_line(str(error))}; see the target's tls settings")
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, ConnectionRefusedError):
            return SourceError(
                "connection", f"{_place(url)} refuses connections: is the server running there?"
            )
        said = error.os_error.strerror or str(error.os_error)
        return SourceError("connection", f"{_place(url)} cannot be reached ({said})")
    if isinstance(error, aiohttp.ClientPayloadError):
        return SourceError("truncated", f"{url}: the answer ends before its announced length")
    if isinstance(error, aiohttp.ClientResponseError):
        return SourceError("http_status", f"{url}: not an HTTP answer ({_one_line(error.message)})")
    return SourceError("connection", f"{url}: {str(error) or type(error).__name__}")


def _place(url: str) -> str:
    """HOST:PORT of a url; which of its paths was asked first says nothing about a refused connection."""
    return urlsplit(url).netloc


def _check_status(answer: Answer, url: str) -> None:
    if answer.status == 200:
        return
    said = _error_message(answer)
    what = f"{url} answered {answer.status}{f' ({said})' if said else ''}"
    if answer.status in (401, 403):
        raise SourceError("unauthorized", f"{what}; give bearer_token_file or basic_auth")
    if answer.status in (404, 405):
        raise SourceError("not_found", what)
    if answer.status == 501:
        # llama.cpp without --metrics says so with this status.
        raise SourceError("metrics_disabled", f"{what}; start the server with its metrics on")
    raise SourceError("http_status", what)


def _error_message(answer: Answer) -> str:
    document = answer.json() if len(answer.body) < 4096 else None
    message = document.get("error") if isinstance(document, dict) else None
    if isinstance(message, dict):
        message = message.get("message")
    return _one_line(message) if isinstance(message, str) else ""


def _one_line(text: str) -> str:
    """At most 120 printable characters of a server's own words."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:120]


async def get_json(client: Client, path: str) -> Any:
    """A JSON document; None where the server has none. Raises SourceError where it cannot be asked."""
    try:
        return (await client.get(path)).json()
    except SourceError as error:
        if error.reason in ("not_found", "metrics_disabled", "redirect"):
            logger.debug("endpoint=%s reason=%s detail=%s", path, error.reason, error)
            return None
        raise
