"""`brimline serve` with one to a thousand targets, whose pages another process serves over real sockets."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from costs import Scraper, cpu_seconds, resident_bytes, series_of, waited_seconds
from fake_gpus import environment
from scanning import client_seconds

import brimline.demo
from exporter_process import Exporter, running_exporter
from fake_servers import dead_port
from faulty_fleet import running_fleet
from page_server import address, running_pages
from prometheus_server import free_port

MODEL = Path(brimline.demo.__file__).parent / "llama-3.1-8b"
Row = tuple[str, ...]


@dataclass
class Measured:
    """What scrapes of one exporter cost. The best block of each: others measure what else the machine does.

    cpu_seconds: of a scrape, the median of a block. server_seconds: of the page server in a scrape.
    unhindered_p95_seconds: of the wall time less what exporter and scraper waited for a core.
    """

    targets: int
    gpus: int
    cpu_seconds: float
    wall_p95_seconds: float
    unhindered_p95_seconds: float
    server_seconds: float
    first_cpu_seconds: float
    first_wall_seconds: float
    rss_bytes: int
    series: int
    body_bytes: int
    up: int
    client_seconds: float


@dataclass
class _Block:
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    unhindered: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)


def _target(number: int, port: int, more: str = "") -> str:
    """A target at an address of its own, with a model, so that its memory is predicted."""
    return (
        f"  - {{name: chat-{number:04}, url: 'http://{address(number)}:{port}', model: {MODEL}, "
        f"launch: {{max_model_len: 2048}}{more}}}"
    )


def config(targets: int, port: int, gpus: int, histograms: str) -> str:
    """So many targets at addresses of their own, each with a model, so that its memory is predicted.

    gpus: of the machine; a single target has the first. 0 for a sidecar without access to any, as the chart
    makes it.
    """
    lines = [f"histograms: {histograms}", "scrape_timeout: 60s"]
    if not gpus:
        lines.append("gpu: {backend: none}")
    lines.append("targets:")
    for number in range(targets):
        owned = ", gpus: [0]" if gpus and targets == 1 else ""
        lines.append(_target(number, port, owned))
    return "\n".join(lines) + "\n"


@contextmanager
def exporter(
    targets: int, port: int, folder: Path, gpus: int = 8, histograms: str = "sums"
) -> Iterator[Exporter]:
    """An exporter with so many targets and GPUs."""
    asked = config(targets, port, gpus, histograms)
    with running_exporter(folder, asked, environ=environment(folder, gpus)) as running:
        yield running


def measure(targets: int, *, blocks: int, scrapes: int, gpus: int = 8, histograms: str = "sums") -> Measured:
    """Scrape an exporter of so many targets, in blocks."""
    with (
        running_pages(port := free_port()) as server,
        tempfile.TemporaryDirectory() as folder,
        exporter(targets, port, Path(folder), gpus, histograms) as running,
    ):
        pid = running.process.pid
        scraper = Scraper(running.port, timeout=60)
        begun = cpu_seconds(pid)
        scraper.scrape()
        first_cpu, first_wall = cpu_seconds(pid) - begun, scraper.wall_seconds
        _wait_until_quiet(pid, scraper)
        done, yards = [], []
        body = b""
        for _ in range(blocks):
            yards.append(client_seconds(3))
            block = _Block()
            for _ in range(scrapes):
                cpu, of_server = cpu_seconds(pid), cpu_seconds(server)
                waited = waited_seconds(pid) + waited_seconds("thread-self")
                body = scraper.scrape()
                block.cpu.append(cpu_seconds(pid) - cpu)
                block.server.append(cpu_seconds(server) - of_server)
                block.wall.append(scraper.wall_seconds)
                waited = waited_seconds(pid) + waited_seconds("thread-self") - waited
                block.unhindered.append(max(0.0, scraper.wall_seconds - waited))
            done.append(block)
        return Measured(
            targets=targets,
            gpus=gpus,
            cpu_seconds=min(statistics.median(block.cpu) for block in done),
            wall_p95_seconds=min(_p95(block.wall) for block in done),
            unhindered_p95_seconds=min(_p95(block.unhindered) for block in done),
            server_seconds=min(statistics.median(block.server) for block in done),
            first_cpu_seconds=first_cpu,
            first_wall_seconds=first_wall,
            rss_bytes=resident_bytes(pid),
            series=series_of(body),
            body_bytes=len(body),
            up=_up(body),
            client_seconds=min(yards),
        )


def _up(body: bytes) -> int:
    """How many targets a page has as up."""
    return sum(
        line.startswith(b"brimline_target_up{") and line.endswith(b" 1.0") for line in body.splitlines()
    )


def _wait_until_quiet(pid: int, scraper: Scraper) -> None:
    """Scrape until predictions and whatever else comes with the first ones are done."""
    for _ in range(20):
        before = cpu_seconds(pid)
        time.sleep(0.5)
        scraper.scrape() if cpu_seconds(pid) - before > 0.05 else None
        if cpu_seconds(pid) - before <= 0.05:
            break
    for _ in range(3):
        scraper.scrape()


def _p95(values: list[float]) -> float:
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def rows_by_targets(measured: list[Measured]) -> Iterator[Row]:
    """The cost of a scrape by the number of targets, the ratio first."""
    bars = {1: (None, 60), 100: (0.15, 70), 1000: (1.5, 110)}
    yield (
        "targets",
        "GPUs",
        "CPU per target ÷ client parser on one page",
        "CPU per target (bar 1 ms)",
        "wall p95 (bar)",
        "less waiting for a core",
        "RSS (bar)",
        "series",
        "page server's CPU per target",
    )
    for each in measured:
        wall_bar, rss_bar = bars[each.targets]
        assert each.up == each.targets, each
        yield (
            str(each.targets),
            str(each.gpus) if each.gpus else "none (sidecar)",
            f"{each.cpu_seconds / each.targets / each.client_seconds:.2f}",
            f"{each.cpu_seconds / each.targets * 1e3:.2f} ms",
            f"{each.wall_p95_seconds * 1e3:.0f} ms" + (f" ({wall_bar * 1e3:.0f} ms)" if wall_bar else ""),
            f"{each.unhindered_p95_seconds * 1e3:.0f} ms",
            f"{_mib(each.rss_bytes)} ({rss_bar} MiB)",
            str(each.series),
            f"{each.server_seconds / each.targets * 1e3:.2f} ms",
        )


def rows_by_histograms() -> Iterator[Row]:
    """What histograms cost, with 100 targets."""
    yield "histograms", "CPU per target ÷ that of sums", "CPU per target", "series per target", "bytes", "RSS"
    found = {kind: measure(100, blocks=6, scrapes=6, histograms=kind) for kind in ("sums", "none", "full")}
    for kind in ("none", "sums", "full"):
        each = found[kind]
        yield (
            kind,
            f"{each.cpu_seconds / found['sums'].cpu_seconds:.2f}",
            f"{each.cpu_seconds / 100 * 1e3:.2f} ms",
            f"{each.series / 100:.0f}",
            f"{each.body_bytes / 100 / 1024:.1f} KB",
            _mib(each.rss_bytes),
        )


def _faulty_config(well: int, hanging: int, dead: int) -> str:
    """A thousand targets: ten of each hundred are dead and ten never answer."""
    lines = ["gpu: {backend: none}", "targets:"]
    for number in range(1000):
        port = {0: dead, 1: hanging}.get(number % 10, well)
        lines.append(_target(number, port))
    return "\n".join(lines) + "\n"


def rows_with_faults() -> Iterator[Row]:
    """Wall time of scrapes of a thousand targets, a fifth of them broken, with the usual timeout of 5 s."""
    yield "1,000 targets, 100 dead, 100 hanging", "wall", "bar: the timeout and 0.5 s", "servers read"
    with (
        running_pages(well := free_port()),
        running_fleet() as fleet,
        dead_port() as dead,
        tempfile.TemporaryDirectory() as folder,
        running_exporter(Path(folder), _faulty_config(well, fleet.hanging, dead)) as running,
    ):
        scraper = Scraper(running.port, timeout=60)
        for name in ("first scrape", "second", "third"):
            up = _up(scraper.scrape())
            yield name, f"{scraper.wall_seconds:.2f} s", "5.5 s", f"{up} of 800"


def rows_of_start() -> Iterator[Row]:
    """CPU until the first answer, and while nobody asks, with one target and eight GPUs."""
    yield "one target, eight GPUs", "measured", "bar"
    with running_pages(port := free_port()), tempfile.TemporaryDirectory() as folder:
        starts, rests = [], []
        for _ in range(3):
            with exporter(1, port, Path(folder)) as running:
                scraper = Scraper(running.port)
                scraper.scrape()
                starts.append(cpu_seconds(running.process.pid))
                _wait_until_quiet(running.process.pid, scraper)
                begun, before = time.monotonic(), cpu_seconds(running.process.pid)
                time.sleep(6)
                rests.append((cpu_seconds(running.process.pid) - before) / (time.monotonic() - begun))
        yield (
            "CPU from start to the first answered /metrics, prediction included",
            f"{min(starts):.2f} s",
            "0.5 s",
        )
        yield "CPU while nobody scrapes", f"{min(rests) * 100:.2f} % of a core", "0.1 %"
