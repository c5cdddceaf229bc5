"""Exporters that run beside Brimline on the same machine: Debian's node_exporter and nvitop-exporter.

Taken without installing anything: a package that is unpacked, a virtual environment in the cache. Where
either cannot be had, a row says why.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pynvml
from costs import Scraper, cpu_seconds, resident_bytes, series_of
from fake_gpus import environment

from prometheus_server import free_port

CACHE = (
    Path(os.environ.get("BRIMLINE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "brimline")
    .expanduser()
    .joinpath("neighbours")
)
NVITOP = "nvitop-exporter==1.7.2"
SCRAPES = 100
Row = tuple[str, ...]
Starter = Callable[[int, Path], tuple[list[str | Path], dict[str, str]]]


class NotHereError(Exception):
    """A neighbour cannot be had on this machine."""


def _run(command: Sequence[str | Path], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHereError(str(error)) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotHereError(said[-1] if said else f"{command[0]} failed")


def node_exporter() -> Path:
    """Debian's program, from its package. Raises NotHereError."""
    program = CACHE / "usr/bin/prometheus-node-exporter"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            # A package list of its own, as on a new container there is none.
            own = ["-oDir::State::Lists=" + folder, "-oDir::Cache=" + folder, "-oAPT::Sandbox::User="]
            download = ["download", "prometheus-node-exporter"]
            try:
                _run(["apt-get", *download], Path(folder))
            except NotHereError:
                (Path(folder) / "partial").mkdir(exist_ok=True)
                (Path(folder) / "archives/partial").mkdir(parents=True, exist_ok=True)
                _run(["apt-get", *own, "update"], Path(folder))
                _run(["apt-get", *own, *download], Path(folder))
            [package] = Path(folder).glob("*.deb")
            _run(["dpkg-deb", "-x", package, CACHE], Path(folder))
    return program


def nvitop_exporter() -> Path:
    """nvitop-exporter, from an environment of its own. Raises NotHereError."""
    program = CACHE / "nvitop/bin/nvitop-exporter"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", CACHE / "nvitop"], CACHE)
        _run([CACHE / "nvitop/bin/python", "-m", "pip", "install", "--quiet", NVITOP], CACHE)
    return program


def _measured(command: Sequence[str | Path], port: int, more: Mapping[str, str]) -> Row:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **more})
        try:
            for _ in range(100):
                try:
                    Scraper(port).scrape()
                    break
                except (OSError, AssertionError):
                    time.sleep(0.1)
            if process.poll() is not None:
                log.seek(0)
                raise NotHereError(log.read().decode("utf-8", "replace").strip().splitlines()[-1])
            scraper = Scraper(port)
            blocks = []
            body = b""
            for _ in range(3):
                spent = []
                for _ in range(SCRAPES // 3):
                    before = cpu_seconds(process.pid)
                    body = scraper.scrape()
                    spent.append(cpu_seconds(process.pid) - before)
                blocks.append(statistics.median(spent))
            return (
                f"{min(blocks) * 1e3:.2f} ms",
                f"{resident_bytes(process.pid) / 2**20:.0f} MiB",
                str(series_of(body)),
            )
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def rows(own: Row) -> Iterator[Row]:
    """Each neighbour's cost of a scrape. own: Brimline's CPU, RSS and series, with one target."""
    yield "exporter", "CPU of a scrape", "RSS", "series", "of what"
    yield "Brimline", *own, "one vLLM server's memory, KV cache, load and prediction, eight GPUs' memory"
    yield _row(
        "node_exporter (Debian)",
        lambda port, _: ([node_exporter(), f"--web.listen-address=127.0.0.1:{port}"], {}),
        "this machine's CPU, memory, disks, network",
    )
    yield _row(
        NVITOP.replace("==", " "),
        _nvitop,
        "eight GPUs' memory, load, temperature and processes; this machine's CPU and memory",
    )


def _nvitop(port: int, folder: Path) -> tuple[list[str | Path], dict[str, str]]:
    names = set(re.findall(r"_nvmlGetFunctionPointer\(['\"](\w+)['\"]\)", Path(pynvml.__file__).read_text()))
    command: list[str | Path] = [nvitop_exporter(), "--bind-address", "127.0.0.1", "--port", str(port)]
    return command, environment(folder, stubs=names)


def _row(name: str, start: Starter, of_what: str) -> Row:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        try:
            command, more = start(port, Path(folder))
            return name, *_measured(command, port, more), of_what
        except NotHereError as error:
            return name, "not measured here", "", "", str(error)[:120]
