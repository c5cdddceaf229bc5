"""The demo's simulated vLLM server as a process of its own, for tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_server import free_port, is_up
from waiting import eventually


@dataclass(frozen=True)
class SimulatedServer:
    """A running simulated server."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def simulated_vllm(
    profile: str, *, port: int | None = None, requests_per_second: float | None = None
) -> Iterator[SimulatedServer]:
    """A server of that profile, from its first answer to its end."""
    port = port or free_port()
    command = [sys.executable, "-m", "brimline.demo.vllm_server", "--port", str(port), "--profile", profile]
    if requests_per_second is not None:
        command += ["--rate", str(requests_per_second)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: is_up(f"http://127.0.0.1:{port}/health"))
        yield SimulatedServer(port, process.pid)
    finally:
        process.terminate()
        process.wait(60)
