"""`brimline serve` with targets in further files, which come, change and go while it is scraped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter_process import Exporter, running_exporter
from fake_servers import FakeServer, FakeVllm
from waiting import eventually

RELOADED = "config_last_reload_successful"
CONFIG = "gpu: {backend: none}\ntargets_files: ['more/*.yaml']\ntargets: [{name: own, url: '%s'}]\n"


@pytest.fixture(name="vllm", scope="module")
def _vllm() -> Iterator[FakeServer]:
    with FakeServer(FakeVllm(generation_tokens=42).routes()) as server:
        yield server


def up(exporter: Exporter) -> dict[str, float]:
    """target_up by target."""
    return {
        name.partition('"')[2].partition('"')[0]: value
        for name, value in exporter.metrics().items()
        if name.startswith("target_up{")
    }


def write(path: Path, vllm: FakeServer, *names: str) -> None:
    replace(path, json.dumps({"targets": [{"name": name, "url": vllm.url} for name in names]}))


def replace(path: Path, text: str) -> None:
    """Write a file that nobody sees half."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def test_targets_of_files_come_and_go_and_a_bad_file_keeps_what_it_said(
    tmp_path: Path, vllm: FakeServer
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    write(folder / "a.yaml", vllm, "a1", "a2")
    with running_exporter(tmp_path, CONFIG % vllm.url) as exporter:
        assert up(exporter) == {"own": 1, "a1": 1, "a2": 1}

        # Seen by itself within seconds.
        write(folder / "b.yaml", vllm, "b1")
        eventually(lambda: up(exporter) == {"own": 1, "a1": 1, "a2": 1, "b1": 1})

        # By a signal at once: what is gone has no series any more.
        write(folder / "a.yaml", vllm, "a1")
        (folder / "b.yaml").unlink()
        exporter.process.send_signal(signal.SIGHUP)
        eventually(lambda: up(exporter) == {"own": 1, "a1": 1})
        assert not [name for name in exporter.metrics() if '"b1"' in name or '"a2"' in name]

        replace(folder / "a.yaml", "targets: [{name: a1}]\n")
        write(folder / "c.yaml", vllm, "c1", "own")
        exporter.process.send_signal(signal.SIGHUP)
        eventually(lambda: exporter.metrics()[RELOADED] == 0)
        page = exporter.metrics()
        assert up(exporter) == {"own": 1, "a1": 1}
        assert page['discovery_up{source="files"}'] == 0
        assert page['discovery_errors_total{source="files"}'] == 2
        assert page['discovery_targets{source="files"}'] == 1
        assert f"{folder}/a.yaml:1: targets[0]: the key 'url' is missing" in exporter.log
        assert f"the target name 'own' stands in {tmp_path}/brimline.yaml:3, too" in exporter.log

        write(folder / "a.yaml", vllm, "a1", "a3")
        write(folder / "c.yaml", vllm, "c1")
        eventually(lambda: up(exporter) == {"own": 1, "a1": 1, "a3": 1, "c1": 1})
        page = exporter.metrics()
        assert page[RELOADED] == page['discovery_up{source="files"}'] == 1
        assert page['discovery_last_success_timestamp_seconds{source="files"}'] > 1.7e9


def test_a_thousand_targets_of_files_are_exported(tmp_path: Path, vllm: FakeServer) -> None:
    """Servers that are down: a thousand that answer would test the server of this test above all."""
    (tmp_path / "more").mkdir()
    for number in range(4):
        names = [f"{number}-{index}" for index in range(250)]
        entries = [{"name": name, "url": "http://127.0.0.1:9"} for name in names]
        replace(tmp_path / "more" / f"{number}.yaml", json.dumps({"targets": entries}))
    with running_exporter(tmp_path, CONFIG % vllm.url) as exporter:
        known = up(exporter)
        assert len(known) == 1001
        (tmp_path / "more/3.yaml").unlink()
        exporter.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(up(exporter)) == 751)


def test_check_reads_further_files_and_refuses_bad_ones(tmp_path: Path, vllm: FakeServer) -> None:
    config = tmp_path / "brimline.yaml"
    config.write_text("gpu: {backend: none}\ntargets_files: [more.yaml]\n")
    command = [sys.executable, "-m", "brimline", "check", "--config", str(config)]

    write(tmp_path / "more.yaml", vllm, "chat")
    good = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (tmp_path / "more.yaml").write_text("targets: [{name: chat, port: 8000}]\n")
    bad = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert "chat" in good.stdout
    assert bad.returncode == 2
    assert bad.stderr.startswith(f"brimline: {tmp_path}/more.yaml:1: unknown key 'port' in targets[0]")
