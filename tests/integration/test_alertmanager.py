"""From a card that fills to somebody's receiver: the demo's leak, a real Prometheus, a real Alertmanager."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from brimline.demo.gpu_recording import LEAK_SECONDS, recording
from brimline.demo.profiles import MODEL_FOLDER, SHORT_CONTEXT
from brimline.thresholds import Thresholds
from brimline_dashboards.rules import Options, plain_files
from exporter_process import running_exporter
from prometheus_server import free_port, is_up, running_prometheus, tool
from simulated_server import simulated_vllm
from waiting import eventually

EXAMPLE = Path(__file__).parent.parent.parent / "deploy/alertmanager/alertmanager.yml"

Json = dict[str, Any]


@dataclass
class Receiver:
    """Who is woken: what Alertmanager posted, by the receiver's path."""

    port: int
    posted: list[tuple[str, Json]] = field(default_factory=list)

    def alerts(self, path: str, name: str) -> list[Json]:
        """The firing alerts of that name that came to a path."""
        return [
            alert
            for where, message in list(self.posted)
            if where == path
            for alert in message["alerts"]
            if alert["labels"]["alertname"] == name and alert["status"] == "firing"
        ]


@contextmanager
def receiver() -> Iterator[Receiver]:
    class Posts(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.posted.append((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's own)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Posts)
    found = Receiver(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


@contextmanager
def alertmanager(folder: Path, to: int) -> Iterator[int]:
    """Alertmanager with the example's routes and inhibitions, at once and to the receiver's port."""
    config = yaml.safe_load(EXAMPLE.read_text())
    for key in ("group_wait", "group_interval"):
        config["route"][key] = "1s"
    text = yaml.safe_dump(config).replace("127.0.0.1:9095", f"127.0.0.1:{to}")
    (folder / "alertmanager.yml").write_text(text)
    port = free_port()
    with open(folder / "alertmanager.log", "wb") as log:
        process = subprocess.Popen(
            [
                tool("alertmanager"),
                f"--config.file={folder / 'alertmanager.yml'}",
                f"--storage.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: process.poll() is not None or is_up(f"http://127.0.0.1:{port}/-/ready"), within=30)
        if process.poll() is not None:
            pytest.skip(f"no Alertmanager runs here: {(folder / 'alertmanager.log').read_text()[-300:]}")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _quick_rules() -> dict[str, str]:
    """The rules as they are, but told within seconds instead of minutes."""
    short = {
        "BrimlineVramHeadroomLow": {"warning_for": "2s", "critical_for": "2s"},
        "BrimlineVramAbovePlan": {"for": "2s"},
    }
    return {
        name: re.sub(r"interval: 30s", "interval: 1s", text)
        for name, text in plain_files(Options(thresholds=Thresholds(short))).items()
    }


def _late_leak(path: Path, seconds: int) -> None:
    """The demo's leak from where the card is nearly full, so that the test need not wait for half an hour."""
    head, *documents = recording(scenario="leak")
    late = documents[LEAK_SECONDS - seconds :]
    last = late[-1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps({**head, "gpus": head["gpus"]}) + "\n")
        for second, document in enumerate([*late, *([last] * 600)]):
            file.write(json.dumps({**document, "t": second}) + "\n")


@pytest.fixture(scope="module")
def woken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """The receiver, after the leak has ended in a full card."""
    folder = tmp_path_factory.mktemp("leak")
    _late_leak(folder / "gpu.jsonl", 40)
    with receiver() as found, simulated_vllm("short-context") as server:
        config = (
            f"gpu: {{backend: replay, path: {folder / 'gpu.jsonl'}}}\n"
            f"targets: [{{name: chat, url: '{server.url}', model: {MODEL_FOLDER}, "
            f"gpus: [{SHORT_CONTEXT.gpu_uuid}], launch: {{max_model_len: 32768}}}}]\n"
        )
        with (
            running_exporter(tmp_path_factory.mktemp("exporter"), config) as exporter,
            alertmanager(tmp_path_factory.mktemp("alertmanager"), found.port) as port,
            running_prometheus(
                tmp_path_factory.mktemp("prometheus"),
                [exporter.port],
                rules=_quick_rules(),
                alertmanager_port=port,
            ),
        ):
            eventually(lambda: found.alerts("/page", "BrimlineVramHeadroomLow"), within=120)
            yield found


def test_a_full_card_wakes_the_one_on_call(woken: Receiver) -> None:
    alert = woken.alerts("/page", "BrimlineVramHeadroomLow")[-1]

    assert alert["labels"]["severity"] == "critical"
    assert alert["labels"]["target"] == "chat"
    assert alert["labels"]["model"] == "simulated-llama-3.1-8b"
    assert re.fullmatch(
        r"chat has [\d.]+[KMi]*B of GPU memory left: the next larger request may end it",
        alert["annotations"]["summary"],
    )
    assert alert["annotations"]["runbook_url"].endswith("docs/runbook.md#brimlinevramheadroomlow")
    assert "var-target=chat" in alert["annotations"]["dashboard_url"]


def test_a_plan_that_is_exceeded_goes_to_the_team(woken: Receiver) -> None:
    alert = eventually(lambda: woken.alerts("/chat", "BrimlineVramAbovePlan"), within=60)[-1]

    assert alert["labels"]["severity"] == "warning"
    assert "more GPU memory than its plan's high bound" in alert["annotations"]["summary"]


def test_the_warning_is_silent_beside_the_critical_one(woken: Receiver) -> None:
    eventually(lambda: woken.alerts("/page", "BrimlineVramHeadroomLow"), within=60)
    told = len(woken.alerts("/chat", "BrimlineVramHeadroomLow"))
    deadline = time.monotonic() + 5

    # Some came before the critical one did; none comes any more.
    eventually(lambda: time.monotonic() > deadline)
    assert len(woken.alerts("/chat", "BrimlineVramHeadroomLow")) - told <= 1
