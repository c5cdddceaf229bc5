"""`brimline serve` and `brimline ab watch` behind --web.config.file, and a real Prometheus before them."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import pytest

from certificates import Authority
from prometheus_server import free_port, running_prometheus
from waiting import eventually

CONFIG = "gpu: {backend: none}\ntargets: [{name: gone, url: 'http://127.0.0.1:9'}]\n"
WEB = """tls_server_config: {{cert_file: server.pem, key_file: server.key}}
basic_auth_users: {{prometheus: "{hashed}"}}
"""


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


@dataclass
class Protected:
    """An exporter behind a web configuration that users of tests may change."""

    folder: Path
    authority: Authority
    port: int
    process: subprocess.Popen[bytes]
    body: str = ""  # of the last good answer

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def status(self, password: str | None, path: str = "/metrics", method: str = "GET") -> int:
        """The status of an answer to that password."""
        request = urllib.request.Request(f"https://127.0.0.1:{self.port}{path}", method=method)
        if password is not None:
            pair = b64encode(f"prometheus:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {pair}")
        context = ssl.create_default_context(cadata=self.authority.certificate.decode())
        try:
            with urllib.request.urlopen(request, context=context, timeout=60) as answer:
                self.body = answer.read().decode()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@contextmanager
def protected(folder: Path, *command: str, host: str = "127.0.0.1") -> Iterator[Protected]:
    authority = Authority()
    authority.issue(["127.0.0.1"]).write(folder, "server")
    (folder / "ca.pem").write_bytes(authority.certificate)
    (folder / "web.yaml").write_text(WEB.format(hashed=hashed("right")))
    port = free_port()
    arguments = [*command, "--listen", f"{host}:{port}", "--web.config.file", str(folder / "web.yaml")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "brimline", *arguments], stdout=log, stderr=log)
    running = Protected(folder, authority, port, process)
    try:
        eventually(lambda: process.poll() is not None or "listening=https://" in running.log)
        assert process.poll() is None, running.log
        yield running
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(name="exporter", scope="module")
def _exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    folder = tmp_path_factory.mktemp("exporter")
    (folder / "brimline.yaml").write_text(CONFIG)
    with protected(folder, "serve", "--config", str(folder / "brimline.yaml")) as running:
        yield running


@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy", "/-/ready", "/config", "/plan", "/nowhere"])
def test_every_path_asks_for_a_user(exporter: Protected, path: str) -> None:
    assert exporter.status(None, path) == 401
    assert exporter.status("wrong", path) == 401
    assert exporter.status("right", path) == (404 if path == "/nowhere" else 200)


def test_nobody_reloads_without_a_password(exporter: Protected) -> None:
    assert exporter.status(None, "/-/reload", "POST") == 401
    assert "reload=done" not in exporter.log.replace("web_config=", "")
    assert exporter.status("right", "/-/reload", "POST") == 200


def test_prometheus_scrapes_with_tls_and_a_password(exporter: Protected, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("right")
    how = {
        "scheme": "https",
        "tls_config": {"ca_file": str(exporter.folder / "ca.pem")},
        "basic_auth": {"username": "prometheus", "password_file": str(tmp_path / "password")},
    }
    with running_prometheus(tmp_path, [exporter.port], scrape=how) as prometheus:
        eventually(lambda: prometheus.value("up") == 1)
        assert prometheus.value("brimline_config_last_reload_successful") == 1
        (tmp_path / "password").write_text("wrong")
        eventually(lambda: prometheus.value("up") == 0)


def test_a_bad_file_shows_in_the_metrics_until_it_is_mended(exporter: Protected) -> None:
    path = exporter.folder / "web.yaml"
    name = "brimline_config_last_reload_successful"
    before = path.read_text()
    path.write_text("basic_auth_users: {prometheus: secret}\n")
    try:
        # At a request, and within a second of the last look.
        eventually(lambda: exporter.status("right") == 200 and f"{name} 0.0" in exporter.body)
        assert exporter.status("right", "/-/reload", "POST") == 400
        assert exporter.status("right", "/") == 200
        assert "what it said before is in force" in exporter.body
    finally:
        path.write_text(before)
    assert exporter.status("right", "/-/reload", "POST") == 200
    assert exporter.status("right") == 200
    assert f"{name} 1.0" in exporter.body
    assert "secret" not in exporter.log


def test_what_is_wrong_beyond_loopback_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "brimline.yaml").write_text(CONFIG)
    said = {}
    for name, web in {
        "open": None,
        "headers": "http_server_config: {headers: {X-Frame-Options: deny}}\n",
        "plain": f'basic_auth_users: {{a: "{hashed("right")}"}}\n',
        "good": WEB.format(hashed=hashed("right")),
    }.items():
        Authority().issue(["127.0.0.1"]).write(tmp_path, "server")
        arguments = ["serve", "--config", str(tmp_path / "brimline.yaml"), "--listen", "0.0.0.0:0"]
        if web is not None:
            (tmp_path / "web.yaml").write_text(web)
            arguments += ["--web.config.file", str(tmp_path / "web.yaml")]
        process = subprocess.Popen(
            [sys.executable, "-m", "brimline", *arguments], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while "listening=" not in lines[-1]:
            lines.append(process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        with process.stderr:  # communicate() would lose what came together with the line before
            lines += process.stderr.read().splitlines()
        process.wait(timeout=60)
        said[name] = [line.partition("WARNING ")[2] for line in lines if "WARNING" in line]

    assert len(said["open"]) == len(said["headers"]) == len(said["plain"]) == 1
    assert "without authentication" in said["open"][0]
    assert "without authentication" in said["headers"][0]
    assert "passwords over an unencrypted network" in said["plain"][0]
    assert said["good"] == []


@pytest.mark.parametrize("command", [["serve"], ["check"], ["ab", "watch", "experiment.yaml"]])
def test_a_bad_file_is_refused_at_the_start(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "web.yaml"
    path.write_text("tls_server_config:\n  cert: x\n")

    ended = subprocess.run(
        [sys.executable, "-m", "brimline", *command, "--web.config.file", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 2
    assert ended.stderr == (f"brimline: {path}:1: key_file is missing; TLS needs a certificate and its key\n")


def test_check_says_that_a_good_file_is_right_and_when_its_certificate_ends(tmp_path: Path) -> None:
    Authority().issue(["127.0.0.1"], days=3).write(tmp_path, "server")
    path = tmp_path / "web.yaml"
    path.write_text("tls_server_config: {cert_file: server.pem, key_file: server.key}\n")
    (tmp_path / "brimline.yaml").write_text(CONFIG)

    command = ["check", "--web.config.file", str(path), "--config", str(tmp_path / "brimline.yaml")]
    ended = subprocess.run(
        [sys.executable, "-m", "brimline", *command], capture_output=True, text=True, timeout=60
    )

    assert f"{path}: right: TLS 1.2 or newer, everybody may ask" in ended.stdout
    assert f"brimline: {path}: the certificate of tls_server_config ends on " in ended.stderr


WATCHED = """
name: kv-dtype
prometheus: {url: http://127.0.0.1:9}
variants: [{name: bf16, role: baseline}, {name: fp8, role: candidate}]
treatment: [kv_cache_dtype]
window: {start: 2026-11-30T08:00:00Z}
routing: per_request
metrics: [{name: inter_token_latency, margin: 0.05}]
"""


def test_a_watch_is_protected_by_the_same_file(tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(WATCHED)
    with protected(tmp_path, "ab", "watch", str(experiment)) as watch:
        assert watch.status(None) == 401
        assert watch.status("right") == 200
        assert "brimline_config_last_reload_successful 1.0" in watch.body
        assert watch.status(None, "/api/v1/ab") == 401
        assert watch.status("right", "/api/v1/ab") == 200
        assert json.loads(watch.body)["experiments"][0]["experiment"] == "kv-dtype"
