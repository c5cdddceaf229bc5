"""The Prometheus HTTP API: what is asked, what is taken, and by which words everything else is refused."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import pytest

from brimline.config import BasicAuth, Tls
from brimline.errors import ConfigError, DataSourceError
from brimline.http_session import open_session
from brimline.prometheus_api import (
    Connection,
    PrometheusApi,
    Rows,
    duration,
    one_of,
    quoted,
    shortened,
    stretches,
)
from fake_servers import (
    FakeServer,
    Reply,
    Request,
    Wire,
    answer,
    dead_port,
    drip,
    gzip_answer,
    gzip_bomb,
    hang,
    json_answer,
    raw,
    redirect,
)

T = TypeVar("T")
SECRET = "hunter2"


def vector(*values: object, **more: object) -> dict[str, Any]:
    """A successful answer of one row for each value."""
    result = [{"metric": {"n": str(n)}, "value": [100.5, str(value)]} for n, value in enumerate(values)]
    return {"status": "success", "data": {"resultType": "vector", "result": result}, **more}


def matrix(*pairs: tuple[float, str]) -> dict[str, Any]:
    result = [{"metric": {"__name__": "x"}, "values": [list(pair) for pair in pairs]}]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def failed(kind: str, error: str, status: int) -> Reply:
    return json_answer({"status": "error", "errorType": kind, "error": error}, status=status)


def in_turn(*replies: Reply) -> Reply:
    """The replies one after the other, then the last one again and again."""
    left = list(replies)

    def reply(wire: Wire, request: Request) -> bool:
        return (left.pop(0) if len(left) > 1 else left[0])(wire, request)

    return reply


def form(request: Request) -> dict[str, str]:
    """The fields of a question, however it was sent."""
    text = request.body.decode() if request.method == "POST" else urlsplit(request.path).query
    return {name: values[0] for name, values in parse_qs(text).items()}


def asked(
    server: FakeServer | str,
    question: Callable[[PrometheusApi], Awaitable[T]],
    path: str = "",
    **settings: Any,
) -> T:
    """What the API makes of the question; waiting between attempts takes no time."""
    url = server if isinstance(server, str) else f"{server.url}{path}"

    async def scenario() -> T:
        async def no_wait(seconds: float) -> None:
            waits.append(seconds)

        async with open_session() as session, asyncio.timeout(60):
            return await question(PrometheusApi(session, Connection(url=url, **settings), sleep=no_wait))

    waits: list[float] = []
    return asyncio.run(scenario())


def query(server: FakeServer | str, text: str = "up", **settings: Any) -> Rows:
    return asked(server, lambda api: api.query(text, 100.5), **settings)


def refusal(reply: Reply, text: str = "up", **settings: Any) -> DataSourceError:
    with FakeServer({"*": reply}) as server, pytest.raises(DataSourceError) as refused:
        query(server, text, **settings)
    return refused.value


# --- what is asked and taken


def test_an_instant_query_is_posted_below_the_path_of_the_url() -> None:
    with FakeServer({"*": json_answer(vector(1))}) as server:
        asked(server, lambda api: api.query('up{job="a+b"}', 1700000000.1234), "/prometheus/")

    [request] = server.requests
    assert (request.method, request.path) == ("POST", "/prometheus/api/v1/query")
    assert form(request) == {"query": 'up{job="a+b"}', "time": "1700000000.123", "timeout": "60s"}


def test_numbers_are_read_with_nan_and_infinities_and_labels_as_they_are() -> None:
    document = vector("NaN", "+Inf", "-Inf", "1e+21", "0.1")
    document["data"]["result"][1]["metric"] = {"le": "+Inf", "odd": ',"+Inf"]'}
    with FakeServer({"*": json_answer(document)}) as server:
        rows = query(server).rows

    values = [row.values[0] for row in rows]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, 1e21, 0.1]
    assert rows[1].labels == {"le": "+Inf", "odd": ',"+Inf"]'}
    assert list(rows[4].times) == [100.5]


def test_a_scalar_is_a_row_without_labels() -> None:
    document = {"status": "success", "data": {"resultType": "scalar", "result": [7, "3"]}}
    with FakeServer({"*": json_answer(document)}) as server:
        [row] = query(server).rows

    assert (dict(row.labels), list(row.times), list(row.values)) == ({}, [7.0], [3.0])


def test_native_histograms_are_left_out_with_a_warning() -> None:
    document = vector(1)
    document["data"]["result"].append({"metric": {}, "histogram": [1, {"count": "1", "sum": "2"}]})
    with FakeServer({"*": json_answer(document)}) as server:
        found = query(server)

    assert len(found.rows) == 1
    assert found.warnings == ("1 native histograms, which are not read",)


@pytest.mark.parametrize(
    ("more", "warning"),
    [
        ({"warnings": ["no StoreAPIs matched"]}, "no StoreAPIs matched"),
        ({"isPartial": True}, "the answer is partial: a storage node did not take part"),
    ],
)
def test_partial_answers_are_told(more: dict[str, object], warning: str) -> None:
    with FakeServer({"*": json_answer(vector(1, **more))}) as server:
        assert query(server).warnings == (warning,)


def test_raw_samples_come_in_chunks_without_what_stands_on_the_first_edge() -> None:
    chunks = {
        "21600.000": matrix((0.0, "1"), (15.0, "2")),
        "43200.000": matrix((21600.0, "3"), (43200.0, "NaN")),
    }
    done: list[None] = []

    def reply(wire: Wire, request: Request) -> bool:
        return json_answer(chunks[form(request)["time"]])(wire, request)

    with FakeServer({"*": reply}) as server:
        found = asked(
            server, lambda api: api.raw_samples("x", 0, 43200, after_each=lambda: done.append(None))
        )

    assert {form(request)["query"] for request in server.requests} == {"x[21600s]"}
    [row] = found.rows
    # 21600 stands in the second chunk alone, on its open end.
    assert list(row.times) == [15.0, 43200.0]
    assert len(done) == 2


def test_a_stretch_that_is_too_much_for_the_server_is_asked_in_halves() -> None:
    def reply(wire: Wire, request: Request) -> bool:
        asked_for = form(request)
        if asked_for["query"] == "x[3600s]":
            said = "query processing would load too many samples into memory in query execution"
            return failed("execution", said, 422)(wire, request)
        return json_answer(matrix((float(asked_for["time"]), "1")))(wire, request)

    with FakeServer({"*": reply}) as server:
        [row] = asked(server, lambda api: api.raw_samples("x", 0, 3600)).rows

    assert list(row.times) == [1800.0, 3600.0]


def test_a_range_query_never_asks_for_more_points_than_prometheus_gives() -> None:
    with FakeServer({"*": json_answer(matrix((1.0, "1")))}) as server:
        asked(server, lambda api: api.query_range("x", 0, 25_000, 1))

    stretches_asked = sorted(
        (form(request) for request in server.requests), key=lambda each: float(each["start"])
    )
    assert [(each["start"], each["end"], each["step"]) for each in stretches_asked] == [
        ("0.000", "9999.000", "1"),
        ("10000.000", "19999.000", "1"),
        ("20000.000", "25000.000", "1"),
    ]


def test_label_values_are_asked_by_get() -> None:
    with FakeServer({"*": json_answer({"status": "success", "data": ["a", "b"]})}) as server:
        values, warnings = asked(server, lambda api: api.label_values("variant", ["up"], start=5.0))

    [request] = server.requests
    assert (values, warnings) == (["a", "b"], ())
    assert (request.method, urlsplit(request.path).path) == ("GET", "/api/v1/label/variant/values")
    assert form(request) == {"match[]": "up", "start": "5.000"}


def test_where_post_is_refused_a_get_follows() -> None:
    def reply(wire: Wire, request: Request) -> bool:
        return (answer("", status=405) if request.method == "POST" else json_answer(vector(4)))(wire, request)

    with FakeServer({"*": reply}) as server:
        [row] = query(server).rows

    assert row.values[0] == 4
    assert [request.method for request in server.requests] == ["POST", "GET"]


def test_no_more_questions_are_open_at_once_than_allowed() -> None:
    open_now = most = 0

    def reply(wire: Wire, request: Request) -> bool:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        wire.wait(0.02)
        open_now -= 1
        return json_answer(matrix((1.0, "1")))(wire, request)

    with FakeServer({"*": reply}) as server:
        asked(server, lambda api: api.raw_samples("x", 0, 24 * 3600, chunk=3600), concurrency=4)

    assert len(server.requests) == 24
    assert 2 <= most <= 4


# --- credentials


def test_credentials_come_from_files_and_stand_in_no_error(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    with FakeServer({"*": answer("no", status=401)}) as server:
        for settings in (
            {"bearer_token_file": str(secret)},
            {
                "basic_auth": BasicAuth(username="u", password_file=str(secret)),
                "headers": {"X-Scope-OrgID": "t"},
            },
        ):
            with pytest.raises(DataSourceError) as refused:
                query(server, **settings)
            assert SECRET not in str(refused.value)
            assert "it refused the credentials given" in str(refused.value)

    bearer, basic = server.requests  # neither is asked again: it would be refused again
    assert bearer.headers["authorization"] == f"Bearer {SECRET}"
    assert basic.headers["authorization"] == f"Basic {base64.b64encode(f'u:{SECRET}'.encode()).decode()}"
    assert basic.headers["x-scope-orgid"] == "t"


@pytest.mark.parametrize("form", ["bearer", "basic"])
def test_a_server_that_sends_the_secret_back_does_not_have_it_printed(form: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    pair = base64.b64encode(f"u:{SECRET}".encode()).decode()
    echo = failed("unauthorized", f"bad token {SECRET} in Basic {pair}", 401)
    settings: dict[str, Any] = (
        {"bearer_token_file": str(secret)}
        if form == "bearer"
        else {"basic_auth": BasicAuth(username="u", password_file=str(secret))}
    )

    refused = refusal(echo, **settings)

    assert SECRET not in str(refused)
    assert form == "bearer" or pair not in str(refused)
    assert "bad token *** in Basic " in str(refused)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "prometheus:9090"}, "no address"),
        ({"url": "http://u:hunter2@p"}, "basic_auth"),
        ({"url": "http://p?x=1"}, "query or fragment"),
        ({"url": "http://p", "tls": Tls()}, "https://"),
        ({"url": "https://p", "tls": Tls(cert_file="c")}, "belong together"),
        ({"url": "http://p", "headers": {"Authorization": "x"}}, "hold a secret"),
    ],
)
def test_a_connection_that_cannot_be_one_is_refused(settings: dict[str, Any], said: str) -> None:
    url = settings.pop("url")

    with pytest.raises(ConfigError, match=said) as refused:
        query(url, **settings)

    assert SECRET not in str(refused.value)


# --- faults


FAULTS: dict[str, tuple[str, str, Reply]] = {
    "401": ("unauthorized", "bearer_token_file", answer("", status=401)),
    "403": ("unauthorized", "bearer_token_file", answer("", status=403)),
    "404": ("not_found", "/api/v1", answer("", status=404)),
    "500": ("http_status", "answered 500", answer("oops", status=500)),
    "502": ("http_status", "answered 502", answer("<html>bad gateway", status=502)),
    "HTML": ("not_prometheus", "login page", answer("<!doctype html><p>log in", content_type="text/html")),
    "other JSON": ("not_prometheus", "not an answer of Prometheus", json_answer({"ok": True})),
    "half of a JSON": ("not_prometheus", "not an answer", answer('{"status":"success","data":{"res')),
    "data of another form": (
        "not_prometheus",
        "not an answer",
        json_answer({"status": "success", "data": [1]}),
    ),
    "a string": (
        "not_prometheus",
        "a string is no number",
        json_answer({"status": "success", "data": {"resultType": "string", "result": [1, "a"]}}),
    ),
    "a redirect": (
        "redirect",
        "redirects to elsewhere.invalid",
        redirect("http://elsewhere.invalid/x?token=s"),
    ),
    "a wrong query": ("query", "parse error", failed("bad_data", "1:4: parse error: unexpected", 400)),
    "a failure of its own": ("http_status", "internal: disk", failed("internal", "disk", 500)),
    "too many samples": (
        "limit",
        "too many samples",
        failed("execution", "would load too many samples", 422),
    ),
    "a timeout there": ("limit", "query timed out", failed("timeout", "query timed out in expression", 503)),
    "an announced length": (
        "truncated",
        "ends before",
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
    ),
    "nothing": ("connection", "check prometheus.url", raw(b"")),
    "17 MB": ("too_large", "larger than 1 MiB", answer(b"x" * (17 << 20))),
    "a gzip bomb": (
        "too_large",
        "larger than 1 MiB",
        lambda wire, request: gzip_answer(gzip_bomb())(wire, request),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named_with_the_server_the_query_and_what_to_do(name: str) -> None:
    reason, said, reply = FAULTS[name]

    refused = refusal(reply, "sum(up)", max_body_bytes=1 << 20)

    assert refused.reason == reason
    assert said in str(refused)
    assert "(query: sum(up))" in str(refused)
    assert "http://127.0.0.1:" in str(refused)
    assert "token=s" not in str(refused)


@pytest.mark.parametrize("reply", [hang, drip(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100)])
def test_an_answer_that_does_not_end_is_given_up(reply: Reply) -> None:
    refused = refusal(reply, timeout=0.2, attempts=2)

    assert refused.reason == "timeout"


def test_a_server_that_is_not_there_is_named() -> None:
    with dead_port() as port, pytest.raises(DataSourceError) as refused:
        query(f"http://127.0.0.1:{port}")

    assert f"127.0.0.1:{port} refuses connections" in str(refused.value)


@pytest.mark.parametrize(
    "fault",
    [
        answer("<html>", status=502),
        answer("slow down", status=429, headers={"Retry-After": "3"}),
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
    ],
)
def test_what_may_pass_is_asked_again(fault: Reply) -> None:
    with FakeServer({"*": in_turn(fault, json_answer(vector(8)))}) as server:
        [row] = query(server).rows

    assert row.values[0] == 8
    assert len(server.requests) == 2


def test_attempts_are_bounded_and_what_will_not_pass_is_asked_once() -> None:
    for reply, count in ((answer("", status=502), 3), (failed("bad_data", "parse error", 400), 1)):
        with FakeServer({"*": reply}) as server, pytest.raises(DataSourceError):
            query(server)
        assert len(server.requests) == count


def test_a_long_query_is_shortened_in_errors() -> None:
    refused = refusal(failed("bad_data", "parse error", 400), "sum(" + "x" * 5000 + ")")

    assert len(str(refused)) < 400


# --- texts


def test_texts_of_promql() -> None:
    assert duration(21600) == "21600s"
    assert duration(0.25) == "250ms"
    assert quoted('a"b\\c\n') == '"a\\"b\\\\c\\n"'
    assert one_of(["10.0.0.1:80", "a|b", "10.0.0.1:80"]) == '"10\\\\.0\\\\.0\\\\.1:80|a\\\\|b"'
    assert shortened("a\n  b") == "a b"


def test_a_time_is_cut_into_equal_stretches() -> None:
    assert stretches(0, 10, 4) == [(0, 10 / 3), (10 / 3, 20 / 3), (20 / 3, 10)]
    assert stretches(0, 8, 4) == [(0, 4), (4, 8)]
    assert stretches(0, 1, 4) == [(0, 1)]
