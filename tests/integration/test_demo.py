"""`brimline demo`, as a stranger starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from brimline.demo.run import is_usable, prometheus_lines
from prometheus_server import Prometheus, get_text, is_up, tool
from waiting import eventually


@pytest.fixture(scope="module")
def demo(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """The demo and the addresses that it printed."""
    path = f"{Path(tool('prometheus')).parent}:{os.environ['PATH']}"
    printed = tmp_path_factory.mktemp("demo") / "printed"
    with open(printed, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "brimline", "demo"],
            stdout=output,
            stderr=output,
            env={**os.environ, "PATH": path},
        )
    try:
        eventually(lambda: process.poll() is not None or b"Ctrl-C" in printed.read_bytes())
        text = printed.read_text()
        assert process.poll() is None, text
        assert "SIMULATED" in text
        yield process, dict(re.findall(r"^  (\S+).*?(http://\S+)$", text, re.MULTILINE))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


Demo = tuple[subprocess.Popen[bytes], dict[str, str]]


def _address(demo: Demo) -> str:
    """Of Prometheus, from what was printed."""
    parts = urllib.parse.urlsplit(demo[1]["Prometheus"])
    return f"{parts.scheme}://{parts.netloc}"


def test_every_printed_address_answers(demo: Demo) -> None:
    assert {name: address for name, address in demo[1].items() if not is_up(address)} == {}

    # A page is one with its scripts; where there is none, Prometheus' API is named.
    for name in ("Prometheus", "alerts"):
        path = urllib.parse.urlsplit(demo[1][name]).path
        assert path.startswith("/api/v1/") or is_usable(demo[1][name])


def test_prometheus_holds_both_servers_and_says_that_they_are_simulated(demo: Demo) -> None:
    prometheus = Prometheus(_address(demo))

    eventually(lambda: len(prometheus.query("brimline_target_up == 1")) == 2)

    assert {row["simulated"] for row, _ in prometheus.query("brimline_target_info")} == {"true"}
    lengths = {row["target"]: value for row, value in prometheus.query("brimline_max_model_len_tokens")}
    assert lengths == {"short-context": 32768, "long-context": 131072}
    assert len(prometheus.query("brimline_gpu_memory_used_bytes > 70e9")) == 2
    assert prometheus.query("brimline_target_problem") == []
    assert prometheus.query("brimline_target_config_mismatch == 1") == []
    # 16-bit and 8-bit K/V of Llama-3.1-8B: 32 layers, K and V, 8 heads of 128.
    per_token = prometheus.query("brimline_kv_cache_capacity_bytes / brimline_kv_cache_capacity_tokens")
    assert {row["target"]: value for row, value in per_token} == {
        "short-context": 131072,
        "long-context": 65536,
    }


def test_each_gpu_belongs_to_one_server(demo: Demo) -> None:
    page = get_text(f"{demo[1]['metrics']}")

    rows = re.findall(r'brimline_target_gpu_info\{gpu="([^"]+)",rank="0",target="([^"]+)"\} 1.0', page)

    assert len({gpu for gpu, _ in rows}) == 2
    assert {target for _, target in rows} == {"short-context", "long-context"}


def test_the_page_carries_the_banner(demo: Demo) -> None:
    assert "Simulated servers" in get_text(demo[1]["status"])


def test_the_simulated_server_speaks_as_vllm_does(demo: Demo) -> None:
    address = demo[1]["short-context"].removesuffix("/metrics")

    assert json.loads(get_text(f"{address}/version"))["version"].endswith("+simulated")
    assert "# TYPE vllm:kv_cache_usage_perc gauge" in get_text(f"{address}/metrics")


def test_ctrl_c_ends_everything(demo: Demo) -> None:
    """The last test of this file: it ends the demo."""
    process, addresses = demo

    process.send_signal(signal.SIGINT)

    assert process.wait(60) == 0
    assert not [address for address in addresses.values() if is_up(address)]


# --- Pages that Prometheus has or lacks ---

PAGES = {
    "/graph": b'<script defer="defer" src="./static/js/main.js"></script>',
    "/static/js/main.js": b"",
    "/alerts": b'<script src="/static/none.js"></script>',
    "/": b"<h1>Alertmanager</h1> without a web application",
}


@pytest.fixture
def pages() -> Iterator[int]:
    """The port of a server with pages that work and pages that do not."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = PAGES.get(self.path.partition("?")[0])
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's own)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_pages_without_their_scripts_are_not_named(pages: int) -> None:
    graph, alerts, alertmanager = prometheus_lines(pages, pages)

    assert graph.startswith(f"  Prometheus    http://127.0.0.1:{pages}/graph?g0.expr=")
    assert alerts == f"  alerts        http://127.0.0.1:{pages}/api/v1/alerts"
    assert alertmanager.endswith(f"amtool alert query --alertmanager.url=http://127.0.0.1:{pages}")


def test_without_pages_commands_are_named() -> None:
    first, promtool, boards, _ = prometheus_lines(1)

    query = "brimline_kv_cache_usage_ratio"
    assert first == f"  Prometheus    http://127.0.0.1:1/api/v1/query?query={query}"
    assert promtool.endswith(f"promtool query instant http://127.0.0.1:1 {query}")
    assert boards.endswith(" dashboards --preview boards.html --last 15m --prometheus http://127.0.0.1:1")


# --- The leak ---

SHORT_LEAK = "import brimline.demo.run as demo; demo.LEAK_SECONDS = 4; demo.run(print, {}, 'leak')"


def _started(address: str) -> float | None:
    """When the server says that it began; None while it does not answer."""
    try:
        found = re.search(r"^process_start_time_seconds (\S+)$", get_text(address, timeout=2), re.MULTILINE)
    except OSError:
        return None
    return float(found[1]) if found else None


def test_at_the_end_of_a_leak_the_server_dies_and_comes_back(tmp_path: Path) -> None:
    printed = tmp_path / "printed"
    environment = {**os.environ, "PATH": "", "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with open(printed, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SHORT_LEAK], stdout=output, stderr=output, env=environment
        )
    try:
        eventually(lambda: process.poll() is not None or b"Ctrl-C" in printed.read_bytes())
        assert process.poll() is None, printed.read_text()
        addresses = dict(re.findall(r"^  (\S+).*?(http://\S+)$", printed.read_text(), re.MULTILINE))
        first, other = _started(addresses["short-context"]), _started(addresses["long-context"])

        again = eventually(lambda: (new := _started(addresses["short-context"])) != first and new)

        assert first is not None
        assert again > first
        assert _started(addresses["long-context"]) == other
        [log] = tmp_path.glob("brimline-demo-*/short-context.log")
        assert "CUDA out of memory" in log.read_text()
        assert "short-context ran out of memory (simulated)" in printed.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
