"""The status page in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter_process import running_exporter
from prometheus_server import free_port, is_up
from waiting import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium to look at the status page"
)


def rendered(url: str, profile: Path, width: int) -> str:
    """The page's DOM after its scripts ran in a window of that width."""
    command = [
        CHROMIUM or "",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={profile}", f"--window-size={width},900", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("width", [390, 1200])
def test_servers_bars_and_reasons_stand_on_the_page(width: int, tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "brimline.demo.vllm_server",
        "--port",
        str(port),
        "--profile",
        "long-context",
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        eventually(lambda: is_up(f"http://127.0.0.1:{port}/health"), within=20)
        config = (
            "gpu: {backend: none}\n"
            f"targets: [{{name: chat, url: 'http://127.0.0.1:{port}'}}, {{name: gone, url: 'http://127.0.0.1:9'}}]\n"
        )
        with running_exporter(tmp_path, config) as exporter:
            dom = rendered(f"{exporter.url}/", tmp_path / "profile", width)
    finally:
        server.terminate()
        server.wait(10)

    assert "Simulated servers" in dom
    assert "chat" in dom
    assert "832,976 tokens" in dom
    assert 'class="fill"' in dom
    assert "connection: " in dom
    assert 'href="debug?target=gone"' in dom
