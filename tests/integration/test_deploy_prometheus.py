"""The examples for Prometheus: read by promtool, and run where what they name can run here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from brimline.catalog import METRICS
from brimline.verdicts import FAMILIES
from brimline_dashboards.recording import recordings
from deployment import DEPLOY, REPOSITORY
from exporter_process import running_exporter
from prometheus_server import Prometheus, free_port, get_text, is_up, tool
from simulated_server import simulated_vllm
from waiting import eventually

FOLDER = DEPLOY / "prometheus"
RULES = REPOSITORY / "dashboards/generated/rules"
EXAMPLES = sorted(FOLDER.glob("*.yml"))
REMOTE = sorted(FOLDER.glob("remote-write-*.yml"))


def laid_out(folder: Path) -> Path:
    """A folder as Prometheus has it: the examples with the rules beside them."""
    place = folder / "prometheus"
    shutil.copytree(FOLDER, place)
    shutil.copytree(RULES, place / "rules")
    return place


def test_promtool_reads_every_example(tmp_path: Path) -> None:
    place = laid_out(tmp_path)
    # Debian's Prometheus was built without Kubernetes: the rest of these jobs is read.
    for job in (document := yaml.safe_load((place / "scrape-kubernetes.yml").read_text()))["scrape_configs"]:
        [discovery] = job.pop("kubernetes_sd_configs")
        assert discovery.keys() == {"role", "selectors"}
    (place / "scrape-kubernetes.yml").write_text(yaml.safe_dump(document))

    for example in EXAMPLES:
        done = subprocess.run(
            [tool("promtool"), "check", "config", place / example.name],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{example.name}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("example", REMOTE, ids=lambda path: path.stem)
def test_all_that_boards_and_alerts_stand_on_is_written(example: Path) -> None:
    [write] = yaml.safe_load(example.read_text())["remote_write"]
    [keep] = write["write_relabel_configs"]
    names = {f"brimline_{metric.name}" for metric in METRICS} | {one.record for one in recordings()}

    assert keep["action"] == "keep"
    assert [name for name in names | FAMILIES if not re.fullmatch(keep["regex"], name)] == []
    assert not re.fullmatch(keep["regex"], "vllm:num_requests_running")


@contextmanager
def prometheus(place: Path, example: str, change: Callable[[str], str]) -> Iterator[Prometheus]:
    """A real one with that example, of which only addresses and intervals are changed."""
    port = free_port()
    config = place / example
    config.write_text(change(config.read_text()))
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={place / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: is_up(f"http://127.0.0.1:{port}/-/ready"))
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(60)


def test_exporters_come_and_go_with_a_file(tmp_path: Path) -> None:
    place = laid_out(tmp_path)
    targets = place / "targets/brimline-west.yml"
    with running_exporter(tmp_path, "targets: []\n") as exporter:
        targets.write_text(f"[{{targets: ['127.0.0.1:{exporter.port}'], labels: {{site: west}}}}]\n")
        with prometheus(place, "scrape-files.yml", _quickly) as running:
            found = eventually(lambda: running.query("up == 1"))
            # Another file, put there in one step.
            fresh = place / "targets/fresh"
            fresh.write_text(f"[{{targets: ['localhost:{exporter.port}'], labels: {{site: east}}}}]\n")
            fresh.rename(targets.with_name("brimline-east.yml"))
            targets.unlink()
            moved = eventually(lambda: running.query('up{site="east"} == 1'))
            eventually(lambda: running.query("up") == running.query('up{site="east"}'))

    assert [labels["site"] for labels, _ in found] == ["west"]
    assert [labels["job"] for labels, _ in moved] == ["brimline"]


def _quickly(text: str) -> str:
    return text.replace("scrape_interval: 15s", "scrape_interval: 1s").replace(
        "scrape_timeout: 10s", "scrape_timeout: 1s"
    )


def test_history_is_written_to_victoriametrics(tmp_path: Path) -> None:
    program = shutil.which("victoria-metrics")
    if program is None:
        pytest.skip("victoria-metrics is not on PATH: this Debian has no package of VictoriaMetrics")
    place, port = laid_out(tmp_path), free_port()
    wanted = ("brimline_target_up", "target:up:timestamp", "exporter:seen:info")

    def change(text: str) -> str:
        text = text.replace("http://victoria-metrics.monitoring.svc:8428", f"http://127.0.0.1:{port}")
        # The rules are evaluated every 30 seconds and two minutes by themselves.
        for file in (place / "rules").glob("brimline-[ar]*.yaml"):
            file.write_text(re.sub(r"interval: \w+", "interval: 1s", file.read_text()))
        return _quickly(text.replace("127.0.0.1:10778", f"127.0.0.1:{exporter.port}"))

    with (
        simulated_vllm("short-context") as server,
        running_exporter(tmp_path, f"targets: [{{name: chat, url: '{server.url}'}}]\n") as exporter,
        open(tmp_path / "victoria.log", "wb") as log,
        subprocess.Popen(
            [program, f"-storageDataPath={tmp_path / 'victoria'}", f"-httpListenAddr=127.0.0.1:{port}"],
            stdout=log,
            stderr=log,
        ) as victoria,
    ):
        try:
            eventually(lambda: is_up(f"http://127.0.0.1:{port}/health"))
            with prometheus(place, "remote-write-victoriametrics.yml", change):
                found = {name: eventually(lambda name=name: _kept(port, name)) for name in wanted}  # type: ignore[misc]
        finally:
            victoria.terminate()
            victoria.wait(60)

    assert {row["metric"]["cluster"] for rows in found.values() for row in rows} == {"west"}
    assert found["brimline_target_up"][0]["metric"]["target"] == "chat"


def _kept(port: int, name: str) -> list[dict[str, Any]]:
    """The series of that name in VictoriaMetrics."""
    get_text(f"http://127.0.0.1:{port}/internal/force_flush")
    asked = urllib.parse.urlencode({"query": name, "nocache": 1, "latency_offset": "1ms"})
    document = json.loads(get_text(f"http://127.0.0.1:{port}/api/v1/query?{asked}"))
    rows: list[dict[str, Any]] = document["data"]["result"]
    return rows
