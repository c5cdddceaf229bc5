"""Real engines, installed once per machine and served here with tiny random models."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines import install
from prometheus_server import free_port, get_text, is_up
from waiting import eventually

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Server:
    """A running engine."""

    port: int
    model: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it, as an operator would."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path: str) -> Any:
        return json.loads(get_text(f"{self.url}{path}"))

    def post(self, path: str, document: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(document).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())


def engine_python(name: str) -> Path:
    """Interpreter of an engine's environment. In CI a test that cannot have its engine fails."""
    try:
        return install.ensure(name)
    except (subprocess.CalledProcessError, OSError) as error:
        message = f"{name} cannot be installed here: {error}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def served(
    command: list[str | Path],
    port: int,
    model: Path,
    ready: str,
    folder: Path,
    environ: dict[str, str] | None = None,
) -> Iterator[Server]:
    """A server process, from its first answer at `ready` to its end."""
    log_file = folder / "server.log"
    with open(log_file, "wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=log, stderr=log, env={**os.environ, **(environ or {})}
        )
    server = Server(port, model, process)

    def is_ready() -> bool:
        assert process.poll() is None, log_file.read_text()[-4000:]
        return is_up(f"{server.url}{ready}")

    try:
        eventually(is_ready, within=400)
        yield server
    finally:
        server.stop()


VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@pytest.fixture(scope="session")
def vllm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama that vLLM loads."""
    folder = tmp_path_factory.mktemp("vllm-model") / "tiny-llama"
    subprocess.run([engine_python("vllm"), HERE / "make_vllm_model.py", folder], check=True)
    return folder


@contextmanager
def vllm_server(model: Path, folder: Path, *arguments: str) -> Iterator[Server]:
    """vLLM on the CPU with 1 GiB of KV cache."""
    port = free_port()
    python = engine_python("vllm")
    command: list[str | Path] = [python, python.parent / "vllm", "serve", model, "--load-format", "dummy"]
    command += ["--dtype", "bfloat16", "--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]
    with served([*command, *arguments], port, model, "/health", folder, VLLM_ENVIRONMENT) as server:
        yield server


@pytest.fixture(scope="session")
def llamacpp_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as GGUF."""
    file = tmp_path_factory.mktemp("llamacpp-model") / "tiny.gguf"
    subprocess.run([engine_python("llamacpp"), HERE / "make_gguf.py", file], check=True)
    return file


@contextmanager
def llamacpp_server(model: Path, folder: Path, *changes: str, context: int, slots: int) -> Iterator[Server]:
    """llama.cpp's server with its metrics on. changes: further launch parameters, NAME=VALUE."""
    port = free_port()
    command: list[str | Path] = [engine_python("llamacpp"), HERE / "serve_llamacpp.py", model]
    command += [str(port), str(context), str(slots), *changes]
    with served(command, port, model, "/health", folder) as server:
        yield server
