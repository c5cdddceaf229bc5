"""Ask Prometheus, or what speaks its HTTP API (Mimir, Thanos, VictoriaMetrics), for series.

Whatever goes wrong is a DataSourceError that names the server, the query and what to do. Answers are bounded
in time and size; a question that is too large for one answer is asked in parts.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import math
import re
import ssl
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from brimline.config import BasicAuth, Tls, is_loopback
from brimline.errors import ConfigError, DataSourceError, SourceError
from brimline.http_session import (
    authorized,
    one_line,
    open_session,
    read_body,
    tls_context,
    tls_file_times,
    translate,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")

# Prometheus refuses range queries of more than 11,000 points a series (web/api/v1/api.go, queryRange).
MAX_POINTS = 10_000
# Raw samples of more than this at once would be large in one answer.
MAX_CHUNK_SECONDS = 6 * 3600.0
# A question that is too large is halved, down to this.
MIN_CHUNK_SECONDS = 300.0
MIN_CHUNK_POINTS = 10
# Longer ones have no place in a URL, where POST is refused.
MAX_URL_QUERY = 6000
MAX_RETRY_AFTER = 10.0

# A proxy or an overloaded server may do better a moment later.
_RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
_TOO_LARGE = frozenset({"limit", "too_large"})
_RETRIED_REASONS = frozenset({"connection", "timeout", "truncated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where Prometheus is and how it is asked.

    url: with the path below which `/api/v1` is. timeout: seconds for one attempt. attempts: how often a
    question is asked that fails for a reason that may pass. max_body_bytes: of one answer, inflated.
    concurrency: questions at once.
    """

    url: str
    bearer_token_file: str | None = None
    basic_auth: BasicAuth | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Tls | None = None
    timeout: float = 60.0
    attempts: int = 3
    max_body_bytes: int = 256 << 20
    concurrency: int = 4


@dataclass(frozen=True, slots=True)
class Row:
    """Samples of one series, as they were stored or evaluated. times: seconds since the epoch, rising."""

    labels: Mapping[str, str]
    times: array[float]
    values: array[float]

    def __repr__(self) -> str:
        return f"Row({dict(self.labels)}, {len(self.times)} samples)"


@dataclass(frozen=True, slots=True)
class Rows:
    """An answer. warnings: what Prometheus says about it, such as that a store did not answer."""

    rows: Sequence[Row] = ()
    warnings: tuple[str, ...] = ()


# --- answers as JSON ---


class _Document(msgspec.Struct):
    status: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")
    errorType: str = ""  # noqa: N815 - as Prometheus writes it
    error: str = ""
    warnings: list[str] = []
    isPartial: bool = False  # noqa: N815 - as VictoriaMetrics writes it


class _Data(msgspec.Struct):
    resultType: str  # noqa: N815 - as Prometheus writes it
    result: msgspec.Raw


class _Row(msgspec.Struct):
    metric: dict[str, str] = {}
    value: tuple[float, float] | None = None
    values: list[tuple[float, float]] = []
    histogram: msgspec.Raw = msgspec.Raw()
    histograms: msgspec.Raw = msgspec.Raw()


_DOCUMENT = msgspec.json.Decoder(_Document)
_DATA = msgspec.json.Decoder(_Data)
# Values are written as text, so that they may be NaN and infinite: not strict, text is read as a number.
_ROWS = msgspec.json.Decoder(list[_Row], strict=False)
_SCALAR = msgspec.json.Decoder(tuple[float, float], strict=False)
_NAMES = msgspec.json.Decoder(list[str])
# Prometheus: too many samples, maximum resolution; Mimir and Thanos: exceeded a limit; VictoriaMetrics: too
# many matching timeseries, cannot select more than.
_TOO_MUCH = re.compile(r"too many|maximum resolution|exceed|limit of|more than")
# Errors that no other question would mend (web/api/v1/api.go); bad_data and execution are of the query.
_SERVERS_OWN_ERRORS = frozenset({"internal", "unavailable", "canceled", "not_found"})
# A secret as short as that hides nothing, and would be found in every text.
_SHORTEST_SECRET = 4
_PLUS_INFINITY = re.compile(rb',\s*"\+Inf"\s*\]')


def _rows(raw: bytes) -> Rows:
    """The rows of an answer's data. Raises msgspec.MsgspecError for anything else."""
    data = _DATA.decode(raw)
    # The decoder reads NaN and -Inf, but no +Inf. Within a label the quotes would be escaped.
    result = bytes(data.result)
    if b"+Inf" in result:
        result = _PLUS_INFINITY.sub(b',"Inf"]', result)
    if data.resultType == "scalar":
        time, value = _SCALAR.decode(result)
        return Rows((Row({}, array("d", [time]), array("d", [value])),))
    if data.resultType not in ("vector", "matrix"):
        raise msgspec.ValidationError(f"a {data.resultType} is no number")
    rows = []
    native = 0
    for found in _ROWS.decode(result):
        pairs = found.values if found.value is None else [found.value]
        if bytes(found.histogram) or bytes(found.histograms):
            native += 1
        if pairs:
            flat = array("d", chain.from_iterable(pairs))
            rows.append(Row(found.metric, flat[::2], flat[1::2]))
    warnings = (f"{native} native histograms, which are not read",) if native else ()
    return Rows(tuple(rows), warnings)


def merged(parts: Sequence[Rows]) -> Rows:
    """Answers about one stretch of time after another as one."""
    if len(parts) == 1:
        return parts[0]
    found: dict[frozenset[tuple[str, str]], Row] = {}
    warnings: dict[str, None] = {}
    for part in parts:
        warnings.update(dict.fromkeys(part.warnings))
        for row in part.rows:
            key = frozenset(row.labels.items())
            if (known := found.get(key)) is None:
                found[key] = Row(row.labels, row.times[:], row.values[:])
            else:
                known.times.extend(row.times)
                known.values.extend(row.values)
    return Rows(tuple(found.values()), tuple(warnings))


def _after(rows: Rows, start: float) -> Rows:
    """The rows without samples at or before the start, which Prometheus 2 gives and Prometheus 3 does not."""
    kept = []
    for row in rows.rows:
        first = next((place for place, time in enumerate(row.times) if time > start), len(row.times))
        if first == 0:
            kept.append(row)
        elif first < len(row.times):
            kept.append(Row(row.labels, row.times[first:], row.values[first:]))
    return Rows(tuple(kept), rows.warnings)


# --- texts of questions ---


def duration(seconds: float) -> str:
    """A duration as PromQL has it, to the millisecond."""
    milliseconds = max(round(seconds * 1000), 1)
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def quoted(text: str) -> str:
    """A string of PromQL."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def one_of(values: Sequence[str]) -> str:
    """A regular expression of PromQL, quoted, that matches just these values."""
    return quoted("|".join(re.sub(r"([.\\+*?()|\[\]{}^$])", r"\\\1", value) for value in sorted(set(values))))


def shortened(query: str, length: int = 160) -> str:
    """A query on one line, its middle left out where it is long."""
    line = " ".join(query.split())
    half = (length - 3) // 2
    return line if len(line) <= length else f"{line[:half]} … {line[-half:]}"


def stretches(start: float, end: float, longest: float) -> list[tuple[float, float]]:
    """The time from start to end cut into equal parts of at most that length."""
    count = max(1, math.ceil((end - start) / longest))
    edges = [start + (end - start) * place / count for place in range(count)] + [end]
    return list(pairwise(edges))


def _checked(connection: Connection) -> str:
    """The address without a slash at its end. Raises ConfigError where it cannot be one."""
    try:
        parts = urlsplit(connection.url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        ok, parts = False, urlsplit("")
    if not ok:
        raise ConfigError("prometheus.url is no address; write http://HOST:PORT")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("prometheus.url holds a user name or password; use basic_auth with password_file")
    if parts.query or parts.fragment:
        raise ConfigError("prometheus.url holds a query or fragment; end it before the ? or #")
    if connection.tls is not None and parts.scheme != "https":
        raise ConfigError("prometheus.tls has no effect on an http url; write https:// or remove it")
    if connection.tls is not None and (connection.tls.cert_file is None) != (connection.tls.key_file is None):
        raise ConfigError("prometheus.tls: cert_file and key_file belong together; give both or neither")
    for name, value in connection.headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(
            r"[\x00-\x08\x0a-\x1f\x7f]", value
        ):
            raise ConfigError(f"prometheus.headers: {name!r} is not a valid HTTP header")
        if name.lower() in ("authorization", "proxy-authorization", "cookie"):
            raise ConfigError(
                f"prometheus.headers: {name!r} would hold a secret; use bearer_token_file or basic_auth"
            )
    return connection.url.rstrip("/").removesuffix("/api/v1")


@dataclass(frozen=True, slots=True)
class _Failure:
    """wait: seconds after which another attempt may help; None where none will."""

    error: DataSourceError
    wait: float | None = None


class PrometheusApi:
    """A Prometheus server's HTTP API, over a session that the caller opened."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        connection: Connection,
        *,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        """Raises ConfigError where the connection cannot be one."""
        self.evaluates = True
        self.url = _checked(connection)
        self._session = session
        self._connection = connection
        self._sleep = sleep
        self._slots = asyncio.Semaphore(connection.concurrency)
        self._tls: ssl.SSLContext | bool = True
        self._tls_files: tuple[float, ...] | None = None
        self._posts = True
        # What is sent to prove who asks: a server may send it back in an error.
        self._secrets: tuple[str, ...] = ()

    # --- questions ---

    async def query(self, query: str, at: float) -> Rows:
        """The value of an expression at that time. Raises DataSourceError.

        Of a scalar one row without labels; of a range selector the raw samples.
        """
        return await self._evaluate("query", query, {"time": _instant(at)})

    async def query_range(self, query: str, start: float, end: float, step: float) -> Rows:
        """Values of an expression at start, start + step, and so on up to the end. Raises DataSourceError."""
        step = max(round(step, 3), 0.001)
        count = int((end - start) / step + 1e-6) + 1
        spans = [(first, min(first + MAX_POINTS, count)) for first in range(0, count, MAX_POINTS)]
        return merged(await _all([self._points(query, start, step, *span) for span in spans]))

    async def _points(self, query: str, start: float, step: float, first: int, behind: int) -> Rows:
        times = {
            "start": _instant(start + first * step),
            "end": _instant(start + (behind - 1) * step),
            "step": f"{step:.3f}".rstrip("0").rstrip("."),
        }
        try:
            return await self._evaluate("query_range", query, times)
        except DataSourceError as error:
            if error.reason not in _TOO_LARGE or behind - first < 2 * MIN_CHUNK_POINTS:
                raise
        middle = (first + behind) // 2
        return merged(
            [
                await self._points(query, start, step, first, middle),
                await self._points(query, start, step, middle, behind),
            ]
        )

    async def raw_samples(
        self,
        selector: str,
        start: float,
        end: float,
        *,
        chunk: float = MAX_CHUNK_SECONDS,
        after_each: Callable[[], None] = lambda: None,
    ) -> Rows:
        """The stored samples after the start, up to the end. Raises DataSourceError.

        By range selectors, not by a range query, which would fill gaps with what stood before them.
        after_each: called for each part of `stretches(start, end, chunk)`.
        """

        async def part(first: float, last: float) -> Rows:
            found = await self._raw(selector, first, last)
            after_each()
            return found

        return merged(
            await _all([part(*times) for times in stretches(start, end, min(chunk, MAX_CHUNK_SECONDS))])
        )

    async def _raw(self, selector: str, start: float, end: float) -> Rows:
        # To the millisecond, which is what is stored: the end of one part is the start of the next.
        start, end = round(start, 3), round(end, 3)
        try:
            found = await self.query(f"{selector}[{duration(end - start)}]", end)
        except DataSourceError as error:
            middle = (start + end) / 2
            if error.reason not in _TOO_LARGE or end - start < 2 * MIN_CHUNK_SECONDS:
                raise
            return merged([await self._raw(selector, start, middle), await self._raw(selector, middle, end)])
        return _after(found, start)

    async def label_values(
        self,
        label: str,
        selectors: Sequence[str] = (),
        *,
        start: float | None = None,
        end: float | None = None,
    ) -> tuple[list[str], tuple[str, ...]]:
        """Values of a label among the series of the selectors, and warnings. Raises DataSourceError."""
        form = [("match[]", selector) for selector in selectors]
        form += [
            (name, _instant(time)) for name, time in (("start", start), ("end", end)) if time is not None
        ]
        path = f"label/{quote(label, safe='')}/values"
        said = ", ".join(selectors)
        document = await self._ask(path, form, said, posts=False)
        return self._decoded(lambda: _NAMES.decode(document.data), said), tuple(document.warnings)

    async def _evaluate(self, path: str, query: str, times: Mapping[str, str]) -> Rows:
        form = [("query", query), *times.items(), ("timeout", duration(self._connection.timeout))]
        document = await self._ask(path, form, query, posts=self._posts)
        found = self._decoded(lambda: _rows(document.data), query)
        warnings = [self._masked(one_line(warning)) for warning in document.warnings]
        if document.isPartial:
            warnings.append("the answer is partial: a storage node did not take part")
        return Rows(found.rows, (*found.warnings, *warnings)) if warnings else found

    # --- one answer ---

    def _error(self, reason: str, what: str, query: str) -> DataSourceError:
        asked = f" (query: {shortened(query)})" if query else ""
        return DataSourceError(reason, f"{self.url}: {self._masked(what)}{asked}")

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _decoded(self, decode: Callable[[], T], query: str) -> T:
        try:
            return decode()
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._error("not_prometheus", f"not an answer of Prometheus ({error})", query) from None

    async def _ask(self, path: str, form: Sequence[tuple[str, str]], query: str, *, posts: bool) -> _Document:
        """A successful answer, asked for again where that may help. Raises DataSourceError."""
        attempt = 1
        while True:
            async with self._slots:
                answer = await self._attempt(path, form, query, posts)
            if isinstance(answer, _Document):
                return answer
            error = answer.error
            if error.reason == "method" and posts:
                if len(query) > MAX_URL_QUERY:
                    what = "only GET is allowed there, and the query is too long for it; allow POST"
                    raise self._error("method", what, query)
                posts = self._posts = False
            elif answer.wait is None or attempt >= self._connection.attempts:
                raise error
            else:
                await self._sleep(max(answer.wait, 0.5 * 2 ** (attempt - 1)))
                attempt += 1

    async def _attempt(
        self, path: str, form: Sequence[tuple[str, str]], query: str, posts: bool
    ) -> _Document | _Failure:
        try:
            async with asyncio.timeout(self._connection.timeout):
                status, headers, body = await self._send(path, form, posts)
        except TimeoutError:
            what = f"no whole answer within {self._connection.timeout:g} s; is it overloaded?"
            return _Failure(self._error("timeout", what, query), 0.0)
        except SourceError as error:
            return _Failure(self._refused(error, query), 0.0 if error.reason in _RETRIED_REASONS else None)
        if status in (301, 302, 303, 307, 308):
            place = urlsplit(headers.get("Location", "")).hostname or "another path"
            what = f"redirects to {place}, which is not followed; write the address itself in prometheus.url"
            return _Failure(self._error("redirect", what, query))
        try:
            document = _DOCUMENT.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            document = _Document()
        if status == 200 and document.status == "success":
            return document
        return _Failure(self._failed(status, document, query), _wait(status, document, headers))

    def _refused(self, error: SourceError, query: str) -> DataSourceError:
        if error.reason == "too_large":
            what = f"{error}; ask for less time or fewer servers"
        elif error.reason in ("connection", "dns"):
            what = f"{error}; check prometheus.url"
        else:
            what = str(error)
        return self._error(error.reason, what.removeprefix(f"{self.url}: "), query)

    def _failed(self, status: int, document: _Document, query: str) -> DataSourceError:
        said = one_line(document.error)
        if status in (401, 403):
            what = f"answered {status}{f' ({said})' if said else ''}"
            given = self._connection.bearer_token_file or self._connection.basic_auth
            cure = "it refused the credentials given" if given else "give bearer_token_file or basic_auth"
            return self._error("unauthorized", f"{what}; {cure}", query)
        if status == 405:
            return self._error("method", "answered 405", query)
        if document.status == "error":
            if document.errorType == "timeout" or _TOO_MUCH.search(said):
                return self._error("limit", f"{said}; ask for less time or fewer servers", query)
            ours = document.errorType not in _SERVERS_OWN_ERRORS
            return self._error(
                "query" if ours else "http_status", f"{document.errorType or status}: {said}", query
            )
        if status == 404:
            what = "answered 404; prometheus.url must end where /api/v1 begins (Mimir: /prometheus)"
            return self._error("not_found", what, query)
        if status == 200:
            what = "not an answer of Prometheus: is prometheus.url right, and no login page in between?"
            return self._error("not_prometheus", what, query)
        return self._error(
            "http_status", f"answered {status}; see its log, or that of the proxy before it", query
        )

    async def _send(
        self, path: str, form: Sequence[tuple[str, str]], posts: bool
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body. Raises SourceError."""
        connection = self._connection
        try:
            if (files := tls_file_times(connection.tls)) != self._tls_files:
                self._tls, self._tls_files = tls_context(connection.tls), files
        except SourceError as error:
            # Unlike a handshake that fails, this is what the user wrote.
            raise SourceError("credentials", str(error)) from None
        headers = authorized(connection.headers, connection.bearer_token_file, connection.basic_auth)
        self._secrets = _secrets_of(headers.get("Authorization", ""))
        headers["Accept"] = "application/json"
        # Over loopback nothing is gained by it, and it costs both sides time.
        headers["Accept-Encoding"] = "identity" if is_loopback(self.url) else "gzip"
        url = f"{self.url}/api/v1/{path}"
        ask = (
            functools.partial(self._session.post, data=form)
            if posts
            else functools.partial(self._session.get, params=form)
        )
        try:
            async with ask(
                url,
                headers=headers,
                allow_redirects=False,
                ssl=self._tls,
                server_hostname=connection.tls.server_name if connection.tls else None,
            ) as response:
                body = await read_body(response, connection.max_body_bytes)
                return response.status, response.headers, body
        except aiohttp.ClientError as error:
            raise translate(error, self.url) from None
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise SourceError("connection", f"{error.strerror or error}") from None


def _secrets_of(authorization: str) -> tuple[str, ...]:
    """What of a header may stand in no text: the token, or user and password in both of their forms."""
    kind, _, sent = authorization.partition(" ")
    found = [sent]
    if kind == "Basic":
        found.append(base64.b64decode(sent).decode("utf-8", "replace").partition(":")[2])
    return tuple(secret for secret in found if len(secret) >= _SHORTEST_SECRET)


def _instant(time: float) -> str:
    return f"{time:.3f}"


def _wait(status: int, document: _Document, headers: Mapping[str, str]) -> float | None:
    """Seconds after which the same question may be answered; None where it will not be."""
    if status not in _RETRIED_STATUS or document.errorType == "timeout":
        return None
    said = headers.get("Retry-After", "")
    return min(float(said), MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,6}", said) else 0.0


async def _all(questions: Sequence[Awaitable[T]]) -> list[T]:
    """All answers in order; the first error ends the other questions."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def open_api(connection: Connection) -> AsyncIterator[PrometheusApi]:
    """The API with a session of its own. Raises ConfigError."""
    async with open_session() as session:
        yield PrometheusApi(session, connection)
