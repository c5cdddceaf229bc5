"""`brimline serve` as a process of its own, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_server import free_port, get_text, is_up
from waiting import eventually


@dataclass(frozen=True)
class Exporter:
    """A running exporter."""

    port: int
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def metrics(self) -> dict[str, float]:
        """Every sample of one scrape, by `name{labels}` with the prefix removed."""
        samples = {}
        for line in get_text(f"{self.url}/metrics").splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name.removeprefix("brimline_")] = float(value)
        return samples


@contextmanager
def running_exporter(
    folder: Path, config: str | None, *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[Exporter]:
    """An exporter with that configuration (YAML without `listen`), or none; ended with SIGTERM."""
    port = free_port()
    command = [sys.executable, "-m", "brimline", "serve", "--listen", f"127.0.0.1:{port}", *arguments]
    if config is not None:
        (folder / "brimline.yaml").write_text(config)
        command += ["--config", str(folder / "brimline.yaml")]
    log_file = folder / f"exporter-{port}.log"
    with open(log_file, "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environ or {})})
    exporter = Exporter(port, process, log_file)
    try:
        eventually(lambda: process.poll() is not None or is_up(f"{exporter.url}/-/ready"))
        assert process.poll() is None, exporter.log
        yield exporter
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
