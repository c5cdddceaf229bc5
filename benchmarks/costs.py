"""What a process costs: CPU, memory; and scrapes of it as Prometheus makes them."""

from __future__ import annotations

import gzip
import http.client
import os
import time
from pathlib import Path

# What Prometheus 2.53 and 3 send.
PROMETHEUS = {
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "Accept-Encoding": "gzip",
    "User-Agent": "Prometheus/3.0.0",
}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its threads so far, by its clock: clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def waited_seconds(task: int | str) -> float:
    """How long the first thread of a process (or `thread-self`) was ready to run and had no core."""
    return int(Path(f"/proc/{task}/schedstat").read_text().split()[1]) / 1e9


def resident_bytes(pid: int) -> int:
    """RSS of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Scraper:
    """Asks one /metrics over and over on a kept connection, with the headers of Prometheus."""

    def __init__(self, port: int, timeout: float = 10.0, headers: dict[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout + 20)
        given = PROMETHEUS if headers is None else headers
        self._headers = {**given, "X-Prometheus-Scrape-Timeout-Seconds": f"{timeout:g}"}
        self.wall_seconds = 0.0

    def scrape(self) -> bytes:
        """The page; how long it took is in wall_seconds."""
        begun = time.perf_counter()
        self._connection.request("GET", "/metrics", headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        self.wall_seconds = time.perf_counter() - begun
        assert answer.status == 200, answer.status
        return gzip.decompress(body) if answer.headers["Content-Encoding"] == "gzip" else body


def series_of(body: bytes) -> int:
    """Samples on a page."""
    return sum(not line.startswith(b"#") for line in body.splitlines())
