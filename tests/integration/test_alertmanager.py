"""From a card that fills to somebody's receiver: the demo's leak, a real Prometheus, a real Alertmanager."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.request
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
from prometheus_server import free_port, get_text, is_up, running_prometheus, tool
from simulated_server import simulated_vllm
from waiting import eventually

FOLDER = Path(__file__).parent.parent.parent / "deploy/alertmanager"
EXAMPLE = FOLDER / "alertmanager.yml"

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
    for route in (config["route"], *config["route"]["routes"]):
        route.update({key: "1s" for key in ("group_wait", "group_interval") if key in route})
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
        eventually(lambda: process.poll() is not None or is_up(f"http://127.0.0.1:{port}/-/ready"))
        if process.poll() is not None:
            pytest.skip(f"no Alertmanager runs here: {(folder / 'alertmanager.log').read_text()[-300:]}")
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _quick_rules() -> dict[str, str]:
    """The rules as they are, but told within seconds instead of minutes."""
    short = {
        "BrimlineVramHeadroomLow": {"warning_for": "2s", "critical_for": "2s"},
        "BrimlineVramAbovePlan": {"for": "2s"},
    }
    return {
        name: re.sub(r"interval: \w+", "interval: 1s", text)
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
    assert "model" not in alert["labels"]  # which may change while it fires
    assert re.fullmatch(
        r"chat has [\d.]+[KMi]*B of GPU memory left: the next larger request may end it",
        alert["annotations"]["summary"],
    )
    assert alert["annotations"]["runbook_url"].endswith("docs/runbook.md#brimlinevramheadroomlow")
    assert "var-target=chat" in alert["annotations"]["dashboard_url"]


def test_a_plan_that_is_exceeded_goes_to_the_team(woken: Receiver) -> None:
    alert = eventually(lambda: woken.alerts("/chat", "BrimlineVramAbovePlan"))[-1]

    assert alert["labels"]["severity"] == "warning"
    assert "more GPU memory than its plan's high bound" in alert["annotations"]["summary"]


def test_the_warning_is_silent_beside_the_critical_one(woken: Receiver) -> None:
    eventually(lambda: woken.alerts("/page", "BrimlineVramHeadroomLow"))
    told = len(woken.alerts("/chat", "BrimlineVramHeadroomLow"))
    deadline = time.monotonic() + 5

    # Some came before the critical one did; none comes any more.
    eventually(lambda: time.monotonic() > deadline)
    assert len(woken.alerts("/chat", "BrimlineVramHeadroomLow")) - told <= 1


# --- Who is silenced by whom ---

SERVER = {"job": "brimline", "instance": "10.0.0.7:10778", "target": "chat", "namespace": "llm"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an Alertmanager to which alerts are told by hand."""
    with receiver() as found, alertmanager(tmp_path_factory.mktemp("inhibition"), found.port) as port:
        yield port


def _alert(name: str, severity: str, **labels: str) -> dict[str, str]:
    return {"alertname": name, "severity": severity, **SERVER, **labels}


def _tell(port: int, alerts: list[Json]) -> str:
    """Tell Alertmanager of alerts, and return where it lists them."""
    address = f"http://127.0.0.1:{port}/api/v2/alerts"
    request = urllib.request.Request(
        address, json.dumps(alerts).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    return address


def _silenced(port: int, case: str, *alerts: dict[str, str]) -> list[tuple[str, str]]:
    """Name and severity of those alerts that another one silences. case: keeps alerts of tests apart."""
    # Told last, so that the others have been weighed when the warning of these two is silent.
    last = [_alert("BrimlineHostMemoryLow", severity, target="last") for severity in ("critical", "warning")]
    told = [
        {"labels": {**labels, "cluster": labels.get("cluster", "") + case}} for labels in (*alerts, *last)
    ]
    base = _tell(port, told)

    def weighed() -> list[tuple[str, str]] | None:
        found = [one for one in json.loads(get_text(base)) if one["labels"]["cluster"].endswith(case)]
        silent = [one["labels"] for one in found if one["status"]["inhibitedBy"]]
        if len(found) < len(told) or not any(labels.get("target") == "last" for labels in silent):
            return None
        names = [
            (labels["alertname"], labels["severity"]) for labels in silent if labels.get("target") != "last"
        ]
        return [("", ""), *sorted(names)]

    return eventually(weighed)[1:]


def test_a_server_that_is_down_silences_what_is_minor_and_nothing_critical(alone: int) -> None:
    down = _alert("BrimlineTargetDown", "critical")
    leak = _alert("BrimlineVramWillExhaust", "critical", gpu="GPU-1")
    growth = _alert("BrimlineVramGrowth", "warning", gpu="GPU-1")
    saturation = _alert("BrimlineKvCacheWillSaturate", "info")

    assert _silenced(alone, "down", down, leak, growth, saturation) == [
        ("BrimlineKvCacheWillSaturate", "info"),
        ("BrimlineVramGrowth", "warning"),
    ]


def test_a_page_that_cannot_be_read_for_a_while_silences_nothing(alone: int) -> None:
    down = _alert("BrimlineTargetDown", "warning")
    leak = _alert("BrimlineVramWillExhaust", "critical", gpu="GPU-1")
    plan = _alert("BrimlineVramAbovePlan", "warning", gpu="GPU-1")

    assert _silenced(alone, "unread", down, leak, plan) == []


def test_a_server_silences_only_its_own_alerts(alone: int) -> None:
    down = _alert("BrimlineTargetDown", "critical")
    others = [
        _alert("BrimlineVramGrowth", "warning", target="code"),
        _alert("BrimlineVramGrowth", "warning", namespace="research"),
        _alert("BrimlineVramGrowth", "warning", cluster="west-"),
    ]

    assert _silenced(alone, "neighbours", down, *others) == []


def test_alerts_of_other_teams_are_left_alone(alone: int) -> None:
    theirs = [{"alertname": "DiskFull", "severity": severity} for severity in ("critical", "warning")]
    ours = [_alert("BrimlineVramHeadroomLow", severity, gpu="GPU-1") for severity in ("critical", "warning")]

    assert _silenced(alone, "teams", *theirs, *ours) == [("BrimlineVramHeadroomLow", "warning")]


def test_an_exporter_that_is_down_silences_what_it_told(alone: int) -> None:
    down = _alert("BrimlineExporterDown", "warning")
    down.pop("target")
    elsewhere = _alert("BrimlineVramGrowth", "warning", instance="10.0.0.8:10778")
    behind = _alert("BrimlineTargetDown", "critical")

    assert _silenced(alone, "exporter", down, elsewhere, behind) == [("BrimlineTargetDown", "critical")]


# --- How often somebody is woken when a fleet is down ---

FLEET = 100


@contextmanager
def fleet_of_alerts(
    folder: Path, alerts: list[dict[str, str]], last: dict[str, str]
) -> Iterator[list[tuple[str, Json]]]:
    """What was posted once all of the alerts were told at once, and behind them the last one."""
    with receiver() as found, alertmanager(folder, found.port) as port:
        _tell(port, [{"labels": labels, "annotations": _SAID} for labels in alerts])
        _tell(port, [{"labels": last, "annotations": _SAID}])
        eventually(lambda: found.alerts("/page", last["alertname"]))
        settled = time.monotonic() + 2
        eventually(lambda: time.monotonic() > settled)
        yield found.posted


_SAID = {"summary": "cannot be read", "runbook_url": "https://wiki/runbook#brimlinetargetdown"}
_LAST = {"alertname": "BrimlineHostMemoryLow", "severity": "critical", **SERVER, "target": "last"}


@pytest.mark.parametrize("exporters", [1, FLEET], ids=["behind one exporter", "each with its sidecar"])
def test_a_fleet_that_is_down_is_one_page_that_names_them_all(exporters: int, tmp_path: Path) -> None:
    servers = [
        {"target": f"chat-{n}", "instance": f"10.0.0.{n % exporters}:10778", "namespace": "llm"}
        for n in range(FLEET)
    ]
    alerts = [
        {"alertname": "BrimlineTargetDown", "severity": severity, "job": "brimline", **server}
        for server in servers
        for severity in ("critical", "warning")
    ]

    with fleet_of_alerts(tmp_path, alerts, _LAST) as posted:
        pages = [message for path, message in posted if path == "/page" and _is_of(message, "TargetDown")]
        chats = [message for path, message in posted if path == "/chat"]

    assert len(pages) == 1
    assert {alert["labels"]["target"] for alert in pages[0]["alerts"]} == {f"chat-{n}" for n in range(FLEET)}
    assert pages[0]["commonAnnotations"]["runbook_url"].endswith("#brimlinetargetdown")
    assert len(chats) <= 1  # those that were told before the critical ones silenced them


def test_sidecars_that_are_down_are_one_message(tmp_path: Path) -> None:
    alerts = [
        {
            "alertname": "BrimlineExporterDown",
            "severity": "warning",
            "job": "llm/chat",
            "instance": f"10.0.{n}.1:1",
        }
        for n in range(FLEET)
    ]

    with fleet_of_alerts(tmp_path, alerts, _LAST) as posted:
        chats = [message for path, message in posted if path == "/chat"]

    assert [len(message["alerts"]) for message in chats] == [FLEET]


def test_each_server_at_the_brim_is_a_page_of_its_own(tmp_path: Path) -> None:
    alerts = [_alert("BrimlineVramHeadroomLow", "critical", target=name, gpu="GPU-1") for name in ("a", "b")]

    with fleet_of_alerts(tmp_path, alerts, _LAST) as posted:
        pages = [message for _, message in posted if _is_of(message, "VramHeadroomLow")]

    assert sorted(page["groupLabels"]["target"] for page in pages) == ["a", "b"]


def _is_of(message: Json, name: str) -> bool:
    return bool(message["groupLabels"]["alertname"] == f"Brimline{name}")


def _rendered(template: str, tmp_path: Path, *labels: dict[str, str], status: str = "firing") -> str:
    """What the template makes of such alerts, by Alertmanager's own tool."""
    alerts = [
        {
            "status": status,
            "labels": {"alertname": "BrimlineTargetDown", **one},
            "annotations": {
                "summary": f"{one['target']} has not been read for 20m",
                "description": "It may be down.",
                "runbook_url": "https://wiki/runbook#brimlinetargetdown",
                "dashboard_url": "https://grafana/d/brimline-server",
            },
        }
        for one in labels
    ]
    message = {
        "status": status,
        "alerts": alerts,
        "groupLabels": {"alertname": "BrimlineTargetDown", "cluster": "west"},
        "externalURL": "http://alertmanager:9093",
    }
    (tmp_path / "message.json").write_text(json.dumps(message))
    command = [
        *(tool("amtool"), "template", "render", f"--template.glob={FOLDER / '*.tmpl'}"),
        *(
            f'--template.text={{{{ template "{template}" . }}}}',
            f"--template.data={tmp_path / 'message.json'}",
        ),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_message_says_how_many_and_which(tmp_path: Path) -> None:
    servers = [{"target": f"chat-{n}", "instance": "node-7:10778"} for n in range(FLEET)]

    title = _rendered("brimline.title", tmp_path, *servers)
    lines = _rendered("brimline.text", tmp_path, *servers).splitlines()

    assert title == "100 × BrimlineTargetDown: chat-0, chat-1, chat-2, … in west"
    assert lines[0] == "- chat-0 has not been read for 20m: chat-0 (exporter node-7:10778)"
    assert len([line for line in lines if line.startswith("- ")]) == 50
    assert lines[50:] == [
        "… the first 50 of 100; all of them: http://alertmanager:9093",
        "It may be down.",
        "Runbook: https://wiki/runbook#brimlinetargetdown",
        "Board: https://grafana/d/brimline-server",
    ]


def test_a_message_on_one_server_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    server = {"target": "chat", "instance": "10.0.0.7:10778", "namespace": "llm", "pod": "chat-0"}

    title = _rendered("brimline.title", tmp_path, server)
    text = _rendered("brimline.text", tmp_path, server)

    assert title == "chat has not been read for 20m in west"
    assert text.startswith("- chat has not been read for 20m: llm/chat-0/chat (exporter 10.0.0.7:10778)\n")
    assert _rendered("brimline.title", tmp_path, server, status="resolved") == (
        "Resolved: chat has not been read for 20m in west"
    )


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        ({"alertname": "BrimlineTargetDown", "severity": "critical"}, "on-call"),
        ({"alertname": "BrimlineTargetDown", "severity": "warning"}, "team-chat"),
        ({"alertname": "BrimlineKvCacheWillSaturate", "severity": "info"}, "nobody"),
        ({"alertname": "DiskFull", "severity": "critical"}, "team-chat"),
    ],
)
def test_the_routes_of_the_example(labels: dict[str, str], receivers: str) -> None:
    words = [f"{name}={value}" for name, value in labels.items()]
    command = [tool("amtool"), "config", "routes", "test", f"--config.file={EXAMPLE}", *words]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.split() == [receivers]
