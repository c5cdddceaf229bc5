"""The exporter under the unit's filter of system calls: scrapes, planning, reloading, ending."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest

from brimline.demo.profiles import MODEL_FOLDER
from deployment import DEPLOY
from prometheus_server import free_port, get_text, is_up
from simulated_server import simulated_vllm
from waiting import eventually

UNIT = DEPLOY / "systemd/brimline.service"
FILTER = Path(__file__).parent.parent / "system_call_filter.py"


def _plan(address: str) -> dict[str, Any]:
    """What the planning page says of the demo's model on an H100."""
    question = {"source": {"config": (MODEL_FOLDER / "config.json").read_text()}, "gpu": {"name": "H100 SXM"}}
    request = urllib.request.Request(
        f"{address}/plan/predict", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        said: dict[str, Any] = json.loads(answer.read())
        return said


NEEDS_SYSTEMD = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or find_library("seccomp") is None, reason="no systemd here"
)


@NEEDS_SYSTEMD
def test_the_filter_refuses_what_the_unit_does_not_name() -> None:
    """The test below tests something."""
    done = subprocess.run(
        [sys.executable, FILTER, UNIT, "unshare", "-m", "true"], capture_output=True, text=True, timeout=60
    )

    assert "Operation not permitted" in done.stderr


@NEEDS_SYSTEMD
def test_the_exporter_needs_no_call_that_the_unit_refuses(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "brimline.yaml"
    with simulated_vllm("short-context") as server:
        config.write_text(f"targets: [{{name: chat, url: '{server.url}'}}]\n")
        serve = [sys.executable, "-m", "brimline", "serve", "--config", str(config)]
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, FILTER, UNIT, *serve, "--listen", f"127.0.0.1:{port}"], stderr=log
            )
        try:
            address = f"http://127.0.0.1:{port}"
            eventually(lambda: is_up(f"{address}/-/ready"))
            status = Path(f"/proc/{process.pid}/status").read_text()
            page = get_text(f"{address}/metrics")
            get_text(f"{address}/")
            planned = _plan(address)
            config.write_text(f"targets: [{{name: talk, url: '{server.url}'}}]\n")
            process.send_signal(signal.SIGHUP)
            eventually(lambda: 'target_up{target="talk"} 1' in get_text(f"{address}/metrics"))
        finally:
            process.terminate()
            ended = process.wait(60)

    assert "Seccomp:\t2" in status
    assert 'brimline_target_up{target="chat"} 1' in page
    assert planned["answer"]["curve"]
    assert ended == 0
    assert "ermission" not in (tmp_path / "log").read_text()
