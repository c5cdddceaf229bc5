"""Ask one server for one page: bounded in time and size, without redirects, proxies or stale connections.

Everything that can go wrong is a SourceError with a reason of brimline.readings.TARGET_REASONS.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec
from yarl import URL

from brimline import json_text
from brimline.config import Target
from brimline.errors import SourceError
from brimline.exposition_text import looks_complete
from brimline.http_session import (
    authorized,
    one_line,
    open_session,
    read_body,
    tls_context,
    tls_file_times,
    translate,
)
from brimline.threads import in_daemon_thread

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
# How long a request waits for the files of its credentials.
FILE_PATIENCE = 1.5
# Classic text, and no word of OpenMetrics: prometheus_client's make_asgi_app takes any mention of it as a
# wish, whatever its weight, and then writes `vllm_` for `vllm:`. Who knows nothing else sends it anyway.
ACCEPT = "text/plain;version=0.0.4, */*;q=0.1"


class Answer(msgspec.Struct, frozen=True):
    """A whole, decompressed answer. headers: lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    path: str

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    def json(self) -> Any:
        """The body as JSON; None where it is none, or a larger one than any server's."""
        return json_text.decode(self.body)


def request_headers(target: Target) -> dict[str, str]:
    """Headers of a request, secrets read from their files now. Raises SourceError for an unreadable one."""
    headers = authorized(target.headers, target.bearer_token_file, target.basic_auth)
    headers["Accept"] = ACCEPT
    # Compressing costs the server a third more time, and over loopback nothing is gained by it.
    headers["Accept-Encoding"] = "identity" if target.is_loopback else "gzip"
    return headers


class Client:
    """Asks one target; its session is shared.

    trace: a line for each request since the caller last emptied it.
    """

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._target = target
        self._base = f"{target.origin}{target.base_path}"
        self._urls: dict[str, URL] = {}
        self._tls: ssl.SSLContext | bool = True
        self._tls_files: tuple[float, ...] | None = None
        tls = target.tls
        self._names_tls_files = tls is not None and any((tls.ca_file, tls.cert_file, tls.key_file))
        self._names_secrets = target.bearer_token_file is not None or target.basic_auth is not None
        self._reading: asyncio.Future[dict[str, str]] | None = None
        self.trace: list[str] = []

    async def get(self, path: str, max_bytes: int = MAX_BODY_BYTES) -> Answer:
        """A whole answer with status 200. Raises SourceError for anything else, and beyond max_bytes.

        The caller bounds the time; a redirect is followed only where it does no more than add a slash.
        """
        begun = time.monotonic()
        outcome = "cancelled"
        try:
            answer = await self._get(path, max_bytes)
            outcome = f"{answer.status}, {len(answer.body)} bytes, {answer.content_type or 'no content type'}"
            return answer
        except SourceError as error:
            outcome = f"{error.reason}: {error}"
            raise
        finally:
            self.trace.append(f"GET {path}: {outcome} ({(time.monotonic() - begun) * 1000:.1f} ms)")

    async def _get(self, path: str, max_bytes: int) -> Answer:
        url = self._base + path
        place = self._urls.get(path)
        if place is None:
            # aiohttp's own cache of what it has taken apart is too small for a thousand targets.
            place = self._urls[path] = URL(url)
        headers = await self._prepared()
        server_name = self._target.tls.server_name if self._target.tls else None
        for attempt in range(2):
            try:
                async with self._session.get(
                    place, headers=headers, allow_redirects=False, ssl=self._tls, server_hostname=server_name
                ) as response:
                    location = response.headers.get("Location")
                    if response.status in (301, 302, 307, 308) and location is not None:
                        other = urljoin(url, location)
                        if attempt == 0 and _only_adds_slash(url, other):
                            url, place = other, URL(other)
                            continue
                        raise SourceError(
                            "redirect", f"{url} redirects to another place; configure that one instead"
                        )
                    body = await read_body(response, max_bytes)
                    answer = Answer(
                        response.status, {k.lower(): v for k, v in response.headers.items()}, body, path
                    )
            except aiohttp.ClientError as error:
                raise translate(error, url) from None
            except OSError as error:
                raise SourceError("connection", f"{url}: {error.strerror or error}") from None
            _check_status(answer, url, is_known="Authorization" in headers)
            return answer
        raise SourceError("redirect", f"{url} redirects again; configure the page's own address")

    async def _prepared(self) -> dict[str, str]:
        """Headers of a request, TLS settings being ready for it. Raises SourceError.

        Files are read in a daemon thread, one at a time: their file system may hang.
        """
        if not self._names_tls_files and not self._names_secrets:
            return self._prepare()
        if self._reading is None or self._reading.done():
            self._reading = in_daemon_thread(self._prepare, "credentials")
        reading = self._reading
        await asyncio.wait([reading], timeout=FILE_PATIENCE)
        if not reading.done():
            reason = "tls" if self._names_tls_files else "credentials"
            raise SourceError(
                reason, f"its files could not be read within {FILE_PATIENCE:g} s: do they hang?"
            )
        return reading.result()

    def _prepare(self) -> dict[str, str]:
        if (files := tls_file_times(self._target.tls)) != self._tls_files:
            self._tls = tls_context(self._target.tls)
            self._tls_files = files
        return request_headers(self._target)

    async def get_page(self, path: str) -> Answer:
        """As get, and the page is whole. Raises SourceError, also for JSON larger than any server's."""
        answer = await self.get(path)
        if _is_object(answer.body) and (how := json_text.excess(answer.body)) is not None:
            raise SourceError("too_large", f"{path} is JSON, and {how}")
        if answer.body and not looks_complete(answer.body, answer.content_type):
            if answer.body.lstrip()[:1] in (b"<", b"{", b"["):
                return answer  # not metrics at all; the caller says so better
            raise SourceError(
                "truncated", f"{path} ends in the middle of a line; the server or a proxy cut it off"
            )
        return answer


def _is_object(body: bytes) -> bool:
    return body[:512].lstrip()[:1] == b"{" and body[-512:].rstrip()[-1:] == b"}"


def _only_adds_slash(url: str, location: str) -> bool:
    old, new = urlsplit(url), urlsplit(location)
    return (new.scheme, new.netloc, new.path, new.query) == (
        old.scheme,
        old.netloc,
        old.path + "/",
        old.query,
    )


def _check_status(answer: Answer, url: str, *, is_known: bool) -> None:
    if answer.status == 200:
        return
    said = _error_message(answer)
    what = f"{url} answered {answer.status}{f' ({said})' if said else ''}"
    if answer.status in (401, 403):
        cure = "it refused the credentials given" if is_known else "give bearer_token_file or basic_auth"
        raise SourceError("unauthorized", f"{what}; {cure}")
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
    return one_line(message) if isinstance(message, str) else ""


async def get_json(client: Client, path: str) -> Any:
    """A JSON document; None where the server has none. Raises SourceError where it cannot be asked."""
    try:
        answer = await client.get(path, json_text.MAX_BYTES)
        if (how := json_text.excess(answer.body)) is not None:
            raise SourceError("too_large", f"{path} has {how}")
        return answer.json()
    except SourceError as error:
        if error.reason in ("not_found", "metrics_disabled", "redirect"):
            logger.debug("endpoint=%s reason=%s detail=%s", path, error.reason, error)
            return None
        raise


__all__ = ["ACCEPT", "MAX_BODY_BYTES", "Answer", "Client", "get_json", "open_session", "request_headers"]
