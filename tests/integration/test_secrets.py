"""Planted secrets are in no output of any command, whatever goes wrong; they reach only whom they are for."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fake_servers import FAULTS, FakeServer, FakeVllm, json_answer
from serving import Serving, serving, write_config
from waiting import eventually

TOKEN, PASSWORD, HEADER, USERINFO = "s3cr3t-token", "s3cr3t-password", "s3cr3t-header", "s3cr3t-userinfo"
BASIC = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
PLANTED = (TOKEN, PASSWORD, HEADER, USERINFO, BASIC)
# Each kind of failure that quotes something: its own words, what came, where it went, how it was asked.
FAULTY = (
    "401",
    "500",
    "redirects to another host",
    "garbage instead of HTTP",
    "HTML",
    "damaged gzip",
    "closes without an answer",
)


def planted_in(text: str) -> list[str]:
    return [secret for secret in PLANTED if secret in text]


def brimline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "brimline", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(name="secrets")
def _secrets(tmp_path: Path) -> dict[str, object]:
    """Credentials of a target, in files of their own."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "password").write_text(PASSWORD)
    return {
        "bearer": {"bearer_token_file": str(tmp_path / "token"), "headers": {"X-Key": HEADER}},
        "basic": {
            "basic_auth": {"username": "me", "password_file": str(tmp_path / "password")},
            "headers": {"X-Key": HEADER},
        },
    }


def test_a_running_exporter_shows_none_on_its_port_in_its_log_or_to_other_processes(
    tmp_path: Path, secrets: dict[str, dict[str, object]]
) -> None:
    with contextlib.ExitStack() as stack:
        vllm = stack.enter_context(FakeServer(FakeVllm().routes()))
        urls = {"well": vllm.url} | {
            f"faulty-{n}": stack.enter_context(FakeServer(FAULTS[name].routes)).url
            for n, name in enumerate(FAULTY)
        }
        targets: dict[str, object] = {
            f"{name}-{kind}": {"url": url, **secrets[kind]} for name, url in urls.items() for kind in secrets
        }
        exporter = stack.enter_context(serving(tmp_path, targets, "--log-level", "debug"))
        pages = [
            "/metrics",
            "/",
            "/config",
            "/config?defaults=1",
            "/plan",
            "/-/healthy",
            "/nothing",
            "/debug",
        ]
        shown = [exporter.ask(path).text for path in (*pages, *(f"/debug?target={name}" for name in targets))]
        shown.append(exporter.metrics(Accept="application/openmetrics-text").text)
        write_config(tmp_path, {**targets, "wrong": f"http://me:{USERINFO}@127.0.0.1:1"})
        shown.append(exporter.reload().text)
        exporter.process.send_signal(signal.SIGHUP)
        eventually(lambda: exporter.log.count("reload=refused") == 2)
        shown += [exporter.metrics().text, exporter.ask("/").text]
        for name in ("cmdline", "environ"):
            shown.append(Path(f"/proc/{exporter.process.pid}/{name}").read_text(errors="replace"))
        exporter.terminate(within=60)
        shown.append(exporter.log)
        sent = str([request.headers for request in vllm.requests])

    assert [planted_in(text) for text in shown] == [[]] * len(shown)
    assert planted_in(sent) == [TOKEN, HEADER, BASIC]
    assert "user name or password" in exporter.log  # why the last configuration was refused


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path, command: str) -> None:
    config = write_config(tmp_path, {"a": f"http://me:{USERINFO}@127.0.0.1:1"})

    done = brimline(command, "--config", config)

    assert done.returncode == 2
    assert "the url holds a user name or password" in done.stderr
    assert planted_in(done.stdout + done.stderr) == []


def test_commands_that_ask_a_server_show_none(tmp_path: Path, secrets: dict[str, dict[str, object]]) -> None:
    token = str(tmp_path / "token")
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(FakeServer(FAULTS[name].routes)).url for name in ("401", "damaged gzip")]
        vllm = stack.enter_context(FakeServer(FakeVllm().routes()))
        targets: dict[str, object] = {
            f"{n}-{kind}": {"url": url, **secrets[kind]}
            for n, url in enumerate([vllm.url, *urls])
            for kind in secrets
        }
        config = write_config(tmp_path, targets)
        commands: list[tuple[str | Path, ...]] = [("check", "--config", config)]
        for n, url in enumerate([vllm.url, *urls]):
            commands.append(
                ("capture", "--target", url, "--bearer-token-file", token, "-o", tmp_path / f"saved-{n}")
            )
        commands.append(("capture", "--target", f"http://me:{USERINFO}@127.0.0.1:1", "-o", tmp_path / "none"))
        commands.append(("calibrate", "--config", config, "--target", "0-bearer"))
        commands.append(("calibrate", "--target", f"http://me:{USERINFO}@127.0.0.1:1"))
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda command: brimline(*command), commands))
        saved = [file.read_text() for file in tmp_path.glob("saved-*/*")]
        sent = str([request.headers for request in vllm.requests])

    assert [planted_in(one.stdout + one.stderr) for one in done] == [[]] * len(done)
    assert [planted_in(text) for text in saved] == [[]] * len(saved)
    assert saved
    assert TOKEN in sent
    assert all("Traceback" not in one.stderr for one in done)


EXPERIMENT = """\
name: ctx
variants:
- {{name: short, role: baseline}}
- {{name: long, role: candidate}}
treatment: [max_model_len]
window: {{{window}}}
prometheus: {{url: "{url}", {credentials}}}
"""


@pytest.fixture(name="of_prometheus")
def _of_prometheus(tmp_path: Path) -> dict[str, str]:
    """Credentials for Prometheus, as an experiment file has them."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "password").write_text(PASSWORD)
    return {
        "bearer": f"bearer_token_file: {tmp_path / 'token'}",
        "basic": f"basic_auth: {{username: me, password_file: {tmp_path / 'password'}}}",
        "header": f"headers: {{X-Scope-OrgID: {HEADER}}}",
    }


def test_a_running_watch_shows_none_on_its_port_or_in_its_log(
    tmp_path: Path, of_prometheus: dict[str, str]
) -> None:
    begun = datetime.now(UTC) - timedelta(hours=2)
    files = []
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(FakeServer(FAULTS[name].routes)) for name in FAULTY]
        for number, server in enumerate(servers):
            for kind, credentials in of_prometheus.items():
                file = tmp_path / f"{kind}-{number}.yaml"
                text = EXPERIMENT.format(
                    url=server.url, credentials=credentials, window=f"start: {begun.isoformat()}"
                )
                file.write_text(text.replace("name: ctx", f"name: {file.stem}"))
                files.append(file)
        watch = stack.enter_context(
            Serving(
                tmp_path,
                *map(str, files),
                "--log-level=debug",
                "--listen=127.0.0.1:0",
                command=("ab", "watch"),
            )
        )
        asked = [f"/api/v1/ab/{file.stem}" for file in files]
        eventually(lambda: all(json.loads(watch.ask(path).body).get("problem") for path in asked))
        shown = [watch.ask(path).text for path in ("/metrics", "/api/v1/ab", "/-/ready", "/nothing")]
        shown += [watch.ask(path).text for path in asked]
        for name in ("cmdline", "environ"):
            shown.append(Path(f"/proc/{watch.process.pid}/{name}").read_text(errors="replace"))
        watch.terminate(within=60)
        shown.append(watch.log)
        sent = str([request.headers for server in servers for request in server.requests])

    assert [planted_in(text) for text in shown] == [[]] * len(shown)
    assert set(planted_in(sent)) == {TOKEN, HEADER, BASIC}
    assert "Traceback" not in watch.log


def test_comparing_over_prometheus_shows_none(tmp_path: Path, of_prometheus: dict[str, str]) -> None:
    empty = json_answer({"status": "success", "data": {"resultType": "vector", "result": []}})
    commands: list[tuple[str | Path, ...]] = []
    with contextlib.ExitStack() as stack:
        answering = stack.enter_context(FakeServer({"*": empty}))
        refusing = [stack.enter_context(FakeServer(FAULTS["401"].routes))]
        for n, server in enumerate([answering, *refusing]):
            for command, (kind, written) in zip(("run", "plan", "aa"), of_prometheus.items(), strict=True):
                file = tmp_path / f"{kind}-{n}.yaml"
                file.write_text(EXPERIMENT.format(url=server.url, credentials=written, window="last: 2h"))
                commands.append(("ab", command, file))
            commands.append(
                ("ab", "init", "--prometheus", server.url, "--bearer-token-file", tmp_path / "token")
            )
        (tmp_path / "wrong.yaml").write_text(
            EXPERIMENT.format(
                url=f"http://me:{USERINFO}@127.0.0.1:1", credentials="headers: {}", window="last: 2h"
            )
        )
        commands.append(("ab", "run", tmp_path / "wrong.yaml"))
        commands.append(("ab", "init", "--prometheus", f"http://me:{USERINFO}@127.0.0.1:1"))
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda command: brimline(*command), commands))
        sent = str([request.headers for server in (answering, *refusing) for request in server.requests])

    for words, one in zip(commands, done, strict=True):
        assert planted_in(one.stdout + one.stderr) == [], words
        assert "Traceback" not in one.stderr, words
        assert one.returncode != 0, words
    assert set(planted_in(sent)) == {TOKEN, HEADER, BASIC}
