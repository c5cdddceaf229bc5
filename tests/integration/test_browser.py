"""The status page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from exporter_process import running_exporter
from simulated_server import simulated_vllm

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
    with simulated_vllm("long-context") as server:
        config = (
            "gpu: {backend: none}\n"
            f"targets: [{{name: chat, url: '{server.url}'}}, {{name: gone, url: 'http://127.0.0.1:9'}}]\n"
        )
        with running_exporter(tmp_path, config) as exporter:
            dom = rendered(f"{exporter.url}/", tmp_path / "profile", width)

    assert "Simulated servers" in dom
    assert "chat" in dom
    assert "832,976 tokens" in dom
    assert 'class="fill"' in dom
    assert "connection: " in dom
    assert 'href="debug?target=gone"' in dom
