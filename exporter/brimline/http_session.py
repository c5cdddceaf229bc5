"""The HTTP client that servers and Prometheus are asked with: no proxies, cookies or followed redirects.

Everything that can go wrong is a SourceError with a reason of brimline.readings.TARGET_REASONS.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
import ssl
import zlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from brimline import __version__
from brimline.config import BasicAuth, Tls
from brimline.errors import SourceError
from brimline.files import NotARegularFile, open_regular
from brimline.threads import in_daemon_thread

MAX_SECRET_BYTES = 64 << 10
MAX_TLS_FILE_BYTES = 4 << 20  # the authorities that systems trust have 220 KB together
CHUNK_BYTES = 64 << 10


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


def read_secret(path: str) -> str:
    """The one line of a file with a token or a password. Raises SourceError."""
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


def authorized(
    headers: Mapping[str, str], bearer_token_file: str | None, basic_auth: BasicAuth | None
) -> dict[str, str]:
    """The headers with those of the credentials, read from their files now. Raises SourceError."""
    if bearer_token_file is not None:
        return {**headers, "Authorization": f"Bearer {read_secret(bearer_token_file)}"}
    if basic_auth is not None:
        pair = f"{basic_auth.username}:{read_secret(basic_auth.password_file)}"
        return {**headers, "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return dict(headers)


def tls_context(tls: Tls | None) -> ssl.SSLContext | bool:
    """TLS settings of a connection; True for the defaults. Raises SourceError where a file cannot be used.

    Blocks for as long as the file system does.
    """
    if tls is None:
        return True
    try:
        for path in _tls_files(tls):
            with open_regular(path) as file:  # OpenSSL would wait for a FIFO's writer
                if os.fstat(file.fileno()).st_size > MAX_TLS_FILE_BYTES:
                    raise SourceError("tls", f"{path} is larger than {MAX_TLS_FILE_BYTES >> 20} MiB")
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.cert_file is not None:
            # For the password of a key OpenSSL would ask at the terminal.
            context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    except NotARegularFile as error:
        raise SourceError("tls", f"{error} is not a regular file") from None
    except (OSError, ssl.SSLError) as error:
        raise SourceError("tls", f"the TLS files cannot be used ({error})") from None
    if tls.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _tls_files(tls: Tls) -> list[str]:
    return [path for path in (tls.ca_file, tls.cert_file, tls.key_file) if path is not None]


def tls_file_times(tls: Tls | None) -> tuple[float, ...]:
    """When the TLS files were last written: a renewed certificate is to be used without a restart."""
    if tls is None:
        return ()
    try:
        return tuple(Path(path).stat().st_mtime for path in _tls_files(tls))
    except OSError as error:
        raise SourceError("tls", f"the TLS files cannot be used ({error})") from None


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body, inflated where it is gzip. Raises SourceError beyond max_bytes of either form."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip"):
        raise SourceError("encoding", f"the answer is encoded as {encoding[:40]!r}, which was not asked for")
    if encoding != "gzip":
        # As they came: a page that comes at once is not copied.
        parts, size = [], 0
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            parts.append(chunk)
            size += len(chunk)
            _check_size(size, max_bytes)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    inflate = zlib.decompressobj(wbits=31)
    body = bytearray()
    received = 0
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        received += len(chunk)
        pending = chunk
        while pending:
            try:
                # One byte above the cap is enough to know that there is more.
                body += inflate.decompress(pending, max_bytes + 1 - len(body))
            except zlib.error as error:
                raise SourceError("encoding", f"the compressed answer is damaged ({error})") from None
            if inflate.unused_data:
                # Kept by the decompressor without limit, and not what was asked for.
                raise SourceError("encoding", "the compressed answer goes on behind its end")
            pending = inflate.unconsumed_tail
            _check_size(max(len(body), received), max_bytes)
    if not inflate.eof:
        raise SourceError("truncated", "the compressed answer ends in the middle")
    return bytes(body)


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise SourceError("too_large", f"the answer is larger than {max_bytes >> 20} MiB")


def _forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of what caused it.

    aiohttp's hold the connection in a circle: each page that a server cuts off would leave kilobytes behind,
    until some collection of garbage.
    """
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__


def translate(error: aiohttp.ClientError, url: str) -> SourceError:
    """What went wrong with a request, as a SourceError with its reason; the error loses its traceback."""
    _forget_frames(error)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return SourceError("dns", f"{urlsplit(url).hostname} cannot be resolved ({error.os_error})")
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch):
        return SourceError("tls", f"{url}: {_tls_failure(error)}")
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, ConnectionRefusedError):
            return SourceError(
                "connection", f"{_place(url)} refuses connections: is the server running there?"
            )
        said = error.os_error.strerror or str(error.os_error)
        return SourceError("connection", f"{_place(url)} cannot be reached ({said})")
    if isinstance(_ssl_cause(error), ssl.SSLError):  # TLS 1.3 refuses a client only after the handshake
        return SourceError("tls", f"{url}: {_tls_failure(error)}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return SourceError("truncated", f"{url}: the answer ends before its announced length")
    if isinstance(error, aiohttp.ClientResponseError):
        return SourceError("http_status", f"{url}: not an HTTP answer ({one_line(error.message)})")
    return SourceError("connection", f"{url}: {str(error) or type(error).__name__}")


# What OpenSSL calls the ways in which a certificate fails (x509_vfy.h), and what to do.
_BAD_CERTIFICATE = {
    9: "the server's certificate is not valid yet; look at the clocks of both machines",
    10: "the server's certificate has expired; renew it there",
    18: "the server's certificate is signed by itself; give it as tls.ca_file",
    19: "the issuer of the server's certificate is unknown; give its certificate as tls.ca_file",
    20: "the issuer of the server's certificate is unknown; give its certificate as tls.ca_file",
    21: "the issuer of the server's certificate is unknown; give its certificate as tls.ca_file",
}
_NAME_MISMATCHES = (62, 64)
# What the other side says in an alert of TLS.
_ALERTS = {
    "WRONG_VERSION_NUMBER": "the server does not speak TLS; write http:// instead",
    "CERTIFICATE_REQUIRED": "the server wants a client's certificate; give tls.cert_file and tls.key_file",
    "ALERT_HANDSHAKE_FAILURE": "the server refuses the handshake; it may want a certificate (tls.cert_file)",
    "ALERT_UNKNOWN_CA": "the server does not know the issuer of our certificate; see tls.cert_file",
    "ALERT_CERTIFICATE_EXPIRED": "our certificate has expired; renew tls.cert_file",
    "ALERT_BAD_CERTIFICATE": "the server refuses our certificate; see tls.cert_file",
    "ALERT_PROTOCOL_VERSION": "the server speaks no TLS 1.2 or newer; update it",
    "UNSUPPORTED_PROTOCOL": "the server speaks no TLS 1.2 or newer; update it",
}


def _ssl_cause(error: BaseException) -> BaseException | None:
    """The error of Python's ssl that an error of aiohttp stands for; None where it is of another kind."""
    cause: BaseException | None = error
    while cause is not None:
        for found in (cause, getattr(cause, "certificate_error", None), getattr(cause, "os_error", None)):
            if isinstance(found, ssl.SSLError) and not isinstance(found, aiohttp.ClientError):
                return found
        cause = cause.__cause__ or cause.__context__
    return None


def _tls_failure(error: aiohttp.ClientError) -> str:
    """Why TLS failed, and what to do."""
    cause = _ssl_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _BAD_CERTIFICATE:
            return _BAD_CERTIFICATE[cause.verify_code]
        if cause.verify_code in _NAME_MISMATCHES:
            # OpenSSL names whom the certificate is not for, and gives the certificate itself to nobody.
            wanted = re.search(r"not valid for '([^']*)'", cause.verify_message)
            name = wanted.group(1) if wanted is not None else "the host of the url"
            return (
                f"the server's certificate is not for {one_line(name)}; give a name that it is for as "
                "tls.server_name"
            )
        return f"the server's certificate was refused ({one_line(cause.verify_message)}); see tls.ca_file"
    said = str(cause or error)
    for alert, meaning in _ALERTS.items():
        if alert in said:
            return meaning
    return f"{one_line(said[max(0, said.find('[SSL: ')) :])}; see its tls settings"


def _place(url: str) -> str:
    """HOST:PORT of a url; which of its paths was asked first says nothing about a refused connection."""
    return urlsplit(url).netloc


def one_line(text: str) -> str:
    """At most 120 printable characters of a server's own words."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:120]
