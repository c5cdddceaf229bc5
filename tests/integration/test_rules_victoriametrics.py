"""The rules in VictoriaMetrics: vmalert reads them, and they give what they give in Prometheus.

Debian's package of VictoriaMetrics is brought by tools/prometheus.sh where Debian has it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from brimline_dashboards.alerts import alerts
from brimline_dashboards.recording import recordings
from brimline_dashboards.rules import plain_files
from prometheus_server import free_port, get_text, is_up
from rules.page import CHAT_A, SCRAPE, STARTED, Page, during, healthy, server
from rules.promtool import written_labels
from rules.recording_cases import AT, LAST, OF_CHAT_A, OF_CHAT_B, PARTS_HIGH, USED, dcgm, sidecar
from waiting import eventually


def program(name: str) -> str:
    """Path of a program of VictoriaMetrics; the test is skipped where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on PATH: this Debian has no package of VictoriaMetrics")
    return path


def test_vmalert_reads_the_rules(tmp_path: Path) -> None:
    for name, text in plain_files().items():
        (tmp_path / name).write_text(text)

    done = subprocess.run(
        [program("vmalert"), "-dryRun", f"-rule={tmp_path}/*.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr


def test_vmalert_would_refuse_a_bad_rule(tmp_path: Path) -> None:
    """The check above checks something."""
    rules = plain_files()["brimline-alerts.yaml"].replace("group_left (", "group_up (", 1)
    (tmp_path / "bad.yaml").write_text(rules)

    done = subprocess.run(
        [program("vmalert"), "-dryRun", f"-rule={tmp_path}/bad.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode != 0


@dataclass(frozen=True)
class VictoriaMetrics:
    """A running one. start: the second that is minute 0 of pages."""

    url: str
    start: int

    def load(self, page: Page) -> None:
        """The samples of a page, whose clock begins at 0."""
        if page.matching("target_start_time_seconds", {}):
            page = page.changed("target_start_time_seconds", STARTED + self.start)
        lines = []
        for (name, labels), values in page.series.items():
            series = written_labels({"__name__": name, **dict(labels)})
            lines += [
                f"{series} {value} {(self.start + minute * 60) * 1000}"
                for minute, value in enumerate(values)
                if value is not None
            ]
        self._write(lines)

    def _write(self, lines: list[str]) -> None:
        body = "\n".join(lines).encode()
        urllib.request.urlopen(f"{self.url}/api/v1/import/prometheus", body, timeout=60).close()
        get_text(f"{self.url}/internal/force_flush")

    def query(self, expr: str, minute: int) -> list[tuple[dict[str, str], float]]:
        """Labels and values at a minute; a failed query raises HTTPError."""
        asked = urllib.parse.urlencode({"query": expr, "time": self.start + minute * 60, "nocache": 1})
        document: dict[str, Any] = json.loads(get_text(f"{self.url}/api/v1/query?{asked}"))
        assert document["status"] == "success", document
        return [(row["metric"], float(row["value"][1])) for row in document["data"]["result"]]

    def record(self, minutes: range) -> None:
        """All recording rules, one after the other, as vmalert evaluates those of a group."""
        for rule in recordings():
            lines = []
            for minute in minutes:
                for labels, value in self.query(rule.expr, minute):
                    series = written_labels({**labels, "__name__": rule.record})
                    lines.append(f"{series} {value!r} {(self.start + minute * 60) * 1000}")
            if lines:
                self._write(lines)


@pytest.fixture(scope="module")
def victoria(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VictoriaMetrics]:
    """One with a healthy page, that of a sidecar without access to its GPU and others; recorded."""
    folder, port = tmp_path_factory.mktemp("victoria"), free_port()
    command = [
        program("victoria-metrics"),
        f"-storageDataPath={folder}",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-search.latencyOffset=0s",
        "-memory.allowedBytes=64MB",
    ]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        running = VictoriaMetrics(f"http://127.0.0.1:{port}", int(time.time()) // 60 * 60 - 3600)
        eventually(lambda: is_up(f"{running.url}/health"))
        running.load(healthy(LAST))
        alone = sidecar().relabelled(job="sidecars", instance="10.0.0.9:10778", pod="chat-7")
        running.load(alone.beside(dcgm(USED, "GPU-cccc", namespace="chat", pod="chat-7")))
        silent = server(LAST, CHAT_A).without("target_start_time_seconds")
        down = silent.changed("target_up", during(0, 5, 10)).relabelled(instance="was-down")
        running.load(silent.relabelled(instance="never-down").beside(down))
        running.record(range(AT + 1))
        yield running
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("target", ["chat-a", "chat-b"])
def test_recorded_series_hold_the_same_as_in_prometheus(victoria: VictoriaMetrics, target: str) -> None:
    expected: Mapping[str, float | None] = {"chat-a": OF_CHAT_A, "chat-b": OF_CHAT_B}[target]

    for record, value in expected.items():
        rows = victoria.query(f'{record}{{instance="{SCRAPE["instance"]}", target="{target}"}}', AT)
        assert [got for _, got in rows] == ([] if value is None else [pytest.approx(value)]), record
        for labels, _ in rows:
            assert {labels["namespace"], labels["engine"], labels["model"]} == {"chat", "vllm", "llama"}


def test_memory_comes_from_dcgm_exporter_there_too(victoria: VictoriaMetrics) -> None:
    own = 'job="sidecars"'

    assert [value for _, value in victoria.query(f"target:memory_used:bytes{{{own}}}", AT)] == [USED]
    assert [value for _, value in victoria.query(f"target:memory_planned_high:bytes{{{own}}}", AT)] == [
        PARTS_HIGH
    ]


def test_uptime_without_a_start_is_counted_there_too(victoria: VictoriaMetrics) -> None:
    rows = victoria.query('target:uptime:seconds{instance=~".*-down"}', AT)

    uptime = {labels["instance"]: value for labels, value in rows}

    # Last seen down at minute 9; the other one was up at minute 0 already.
    assert uptime["was-down"] == (AT - 9) * 60
    assert uptime["never-down"] == pytest.approx(AT * 60, abs=60)


def test_no_alert_fails_and_none_is_there_on_a_healthy_server(victoria: VictoriaMetrics) -> None:
    for alert in alerts():
        assert victoria.query(alert.expr, AT) == [], alert.name
