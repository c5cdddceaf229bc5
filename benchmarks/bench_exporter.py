"""Memory and CPU of a serving exporter with one target: a captured vLLM page over a real socket."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from aiohttp import web

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from exporter_process import running_exporter  # noqa: E402
from prometheus_server import free_port, get_text  # noqa: E402

CAPTURE = ROOT / "tests/captures/vllm-0.32.0-cpu"
SCRAPES = 300


def serve_capture(port: int) -> None:
    """Serve the captured page and settings, in a thread that ends with the process."""

    def file_handler(name: str, content_type: str) -> object:
        body = (CAPTURE / name).read_bytes()

        async def handle(_request: web.Request) -> web.Response:
            return web.Response(body=body, content_type=content_type)

        return handle

    async def run() -> None:
        application = web.Application()
        for path, name, kind in (
            ("/metrics", "metrics.prom", "text/plain"),
            ("/version", "version.json", "application/json"),
            ("/v1/models", "v1_models.json", "application/json"),
        ):
            application.router.add_get(path, file_handler(name, kind))  # type: ignore[arg-type]
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()


def resident_bytes(pid: int) -> int:
    """RSS of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    port = free_port()
    serve_capture(port)
    with tempfile.TemporaryDirectory() as folder:
        for histograms in ("none", "sums", "full"):
            config = (
                f"histograms: {histograms}\ngpu: {{backend: none}}\n"
                f"targets: [{{name: a, url: 'http://127.0.0.1:{port}'}}]\n"
            )
            with running_exporter(Path(folder), config) as exporter:
                page = get_text(f"{exporter.url}/metrics")
                first = resident_bytes(exporter.process.pid)
                begun, walls = cpu_seconds(exporter.process.pid), []
                for _ in range(SCRAPES):
                    start = time.perf_counter()
                    get_text(f"{exporter.url}/metrics")
                    walls.append(time.perf_counter() - start)
                spent = cpu_seconds(exporter.process.pid) - begun
                last = resident_bytes(exporter.process.pid)
                series = sum(not line.startswith("#") for line in page.splitlines())
                print(
                    f"histograms {histograms:4}: {series:4} series, "
                    f"{spent / SCRAPES * 1e3:5.2f} ms CPU a scrape, "
                    f"wall median {statistics.median(walls) * 1e3:5.1f} ms, "
                    f"RSS {first / 2**20:5.1f} MiB, after {SCRAPES} scrapes {last / 2**20:5.1f} MiB"
                )
    modules = subprocess.run(
        [sys.executable, "-c", "import brimline.server, sys; print(len(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    print(f"modules imported to serve: {modules.stdout.strip()}")


if __name__ == "__main__":
    main()
