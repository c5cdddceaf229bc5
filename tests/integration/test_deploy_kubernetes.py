"""The configurations that the overlays mount, in a real exporter beside a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployment import DEPLOY, Json, built, of_kind
from exporter_process import Exporter, running_exporter
from fake_api_server import FakeApiServer, pod
from fake_nvml import State, build
from simulated_server import simulated_vllm
from waiting import eventually

GIB = 1 << 30
MACHINE: dict[str, int | str] = {
    "count": 2,
    "driver": "580.95.05",
    "total": 80 * GIB,
    "reserved": GIB // 2,
    "used.0": 10 * GIB,
    "used.1": 20 * GIB,
    "uuid.0": "GPU-fake-0",
    "uuid.1": "GPU-fake-1",
}
PRINTED = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-fake-1)\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with simulated_vllm("short-context") as server:
        yield server.port


@pytest.fixture
def library(tmp_path: Path) -> dict[str, str]:
    """The environment in which there are two GPUs."""
    folder = tmp_path / "library"
    folder.mkdir()
    build(folder)
    return {**State(folder, MACHINE).environment, "LD_LIBRARY_PATH": str(folder)}


@contextmanager
def exporter(
    folder: Path, mode: str, replaced: Mapping[str, str], environ: Mapping[str, str]
) -> Iterator[Exporter]:
    """One with the files of that overlay's ConfigMap, of which only addresses and paths are others."""
    [config_map] = of_kind(built(DEPLOY / "kubernetes/overlays" / mode), "ConfigMap")
    files: Json = config_map["data"]
    for name, text in files.items():
        for there, here in replaced.items():
            text = text.replace(there, here)
        files[name] = text
        (folder / name).write_text(text)
    with running_exporter(folder, files["brimline.yaml"], environ=environ) as running:
        yield running


def gpus(metrics: Mapping[str, float]) -> set[str]:
    """The GPUs whose memory is told."""
    prefix = 'gpu_memory_used_bytes{gpu="'
    return {name[len(prefix) : -2] for name in metrics if name.startswith(prefix)}


def test_a_sidecar_without_access_tells_its_server_and_no_gpu(port: int, tmp_path: Path) -> None:
    with exporter(tmp_path, "sidecar", {":8000": f":{port}"}, {}) as running:
        metrics = eventually(lambda: _of_target(running, "chat"))

    assert gpus(metrics) == set()
    assert not [name for name in metrics if name.startswith(("nvml_up", "gpu_problem"))]


def test_a_sidecar_with_nvml_tells_its_server_s_gpu_alone(
    port: int, library: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "gpus.txt").write_text(PRINTED)
    replaced = {":8000": f":{port}", "/run/gpus": str(tmp_path)}

    with exporter(tmp_path, "sidecar-nvml", replaced, library) as running:
        metrics = eventually(lambda: _of_target(running, "chat", gpu_count=1))

    assert gpus(metrics) == {"GPU-fake-1"}
    assert metrics['target_gpu_info{gpu="GPU-fake-1",rank="0",target="chat"}'] == 1


def test_the_node_s_exporter_tells_all_gpus_and_the_pods_that_say_so(
    port: int, library: dict[str, str], tmp_path: Path
) -> None:
    api = FakeApiServer()
    listed = pod(
        "chat-0",
        namespace="inference",
        ports=[{"name": "http", "containerPort": port}],
        node="gpu-7",
    )
    api.put(listed)
    # In place of the token that only a pod has.
    kubeconfig = {"kubernetes: {": f"kubernetes: {{kubeconfig: {api.kubeconfig(tmp_path)}, "}

    with exporter(tmp_path, "daemonset", kubeconfig, {**library, "NODE_NAME": "gpu-7"}) as running:
        metrics = eventually(lambda: _of_target(running, "inference/chat-0", gpu_count=2))
    asked = {path for path, _, _ in api.requests}
    api.close()

    assert gpus(metrics) == {"GPU-fake-0", "GPU-fake-1"}
    # The Role lets it list and watch there, and nothing else.
    assert asked == {"/api/v1/namespaces/inference/pods"}


def _of_target(running: Exporter, name: str, *, gpu_count: int = 0) -> dict[str, float] | None:
    """A scrape in which that server is up, and as many GPUs are told."""
    metrics = running.metrics()
    is_up = metrics.get(f'target_up{{target="{name}"}}') == 1
    return metrics if is_up and len(gpus(metrics)) >= gpu_count else None
