"""A Prometheus that does not answer, or answers otherwise, is named with what is wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from brimline.cli import cli
from brimline_dashboards.preview.asking import Prometheus, PrometheusError


@contextmanager
def answering(status: int, body: str, **headers: str) -> Iterator[str]:
    """A server that answers everything alike; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815 (the library's name)

        def log_message(self, *_arguments: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_refused_query_is_quoted() -> None:
    body = json.dumps({"status": "error", "error": "parse error: unexpected )"})

    with answering(400, body) as url, pytest.raises(PrometheusError, match=r"HTTP 400: parse error"):
        Prometheus(url).query(")", 0)


@pytest.mark.parametrize("body", ["<html>", "[]", '{"status": "ok"}'])
def test_another_servers_answer_is_none(body: str) -> None:
    with answering(200, body) as url, pytest.raises(PrometheusError, match="not one of a Prometheus"):
        Prometheus(url).query("up", 0)


def test_a_redirect_is_not_followed() -> None:
    with (
        answering(302, "", Location="http://127.0.0.1:9/") as url,
        pytest.raises(PrometheusError, match="302"),
    ):
        Prometheus(url).query("up", 0)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:9090", "http://u:p@host", "http://"])
def test_only_plain_addresses_are_asked(url: str) -> None:
    with pytest.raises(PrometheusError, match="no address"):
        Prometheus(url)


def test_the_command_says_what_could_not_be_asked(tmp_path: Path) -> None:
    file = tmp_path / "boards.html"

    done = CliRunner().invoke(
        cli, ["dashboards", "--preview", str(file), "--prometheus", "http://127.0.0.1:9"]
    )

    assert done.exit_code == 5
    assert "127.0.0.1:9: cannot be asked" in done.output
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to do"),
        (["--preview", "x.html"], "belong together"),
        (["--prometheus", "http://127.0.0.1:9", "-o", "x"], "belong together"),
        (["--preview", "x.html", "--prometheus", "http://127.0.0.1:9", "--last", "soon"], "--last"),
        (["--preview", "x.html", "--prometheus", "http://127.0.0.1:9", "--variable", "target"], "NAME=VALUE"),
        (
            ["--preview", "x.html", "--prometheus", "http://127.0.0.1:9", "--variable", "nosuch=x"],
            "--variable nosuch: no variable that holds one value; known: experiment, instance, target, ",
        ),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["dashboards", *arguments])

    assert done.exit_code == 2
    assert said in done.output
