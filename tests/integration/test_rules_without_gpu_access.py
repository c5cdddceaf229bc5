"""The rules where an exporter cannot read its GPUs: memory comes from a page of dcgm-exporter.

The page is made here from dcgm-exporter's counters (etc/default-counters.csv: DCGM_FI_DEV_FB_FREE, _USED and
_RESERVED in MiB) and the labels of its README (gpu, UUID, device, modelName, Hostname, namespace, pod,
container).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from brimline.demo.profiles import MODEL_FOLDER
from brimline_dashboards.rules import plain_files
from exporter_process import running_exporter
from prometheus_server import Prometheus, running_prometheus
from simulated_server import simulated_vllm
from waiting import eventually

MIB = 1 << 20
USED, FREE, RESERVED = 73_700, 7_308, 551


def _page(pod_label: str) -> bytes:
    def rows(field: str, sizes: dict[str, int]) -> list[str]:
        return [f"# TYPE {field} gauge"] + [
            f'{field}{{gpu="{index}",UUID="{uuid}",device="nvidia{index}",modelName="NVIDIA H100 80GB HBM3",'
            f'Hostname="node-7",container="server",namespace="chat",{pod_label}="{pod}"}} {sizes[uuid]}'
            for index, (uuid, pod) in enumerate({"GPU-aaaa": "chat-0", "GPU-bbbb": "chat-1"}.items())
        ]

    lines = [
        *rows("DCGM_FI_DEV_FB_USED", {"GPU-aaaa": USED, "GPU-bbbb": 4}),
        *rows("DCGM_FI_DEV_FB_FREE", {"GPU-aaaa": FREE, "GPU-bbbb": 81_004}),
        *rows("DCGM_FI_DEV_FB_RESERVED", {"GPU-aaaa": RESERVED, "GPU-bbbb": RESERVED}),
    ]
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture(scope="module")
def dcgm_port() -> Iterator[int]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(_page("pod"))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's own)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def prometheus(dcgm_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A sidecar without GPU access in the pod chat/chat-0, the node's dcgm-exporter, and the rules."""
    rules = {name: re.sub(r"interval: \w+", "interval: 1s", text) for name, text in plain_files().items()}
    with simulated_vllm("short-context") as server:
        config = (
            "gpu: {backend: none}\n"
            f"targets: [{{name: chat, url: '{server.url}', model: {MODEL_FOLDER}, "
            "launch: {max_model_len: 32768}}]\n"
        )
        with (
            running_exporter(tmp_path_factory.mktemp("exporter"), config) as exporter,
            running_prometheus(
                tmp_path_factory.mktemp("prometheus"),
                [exporter.port],
                labels={"namespace": "chat", "pod": "chat-0"},
                more={"dcgm": dcgm_port},
                rules=rules,
            ) as running,
        ):
            eventually(lambda: running.query("target:memory_headroom:bytes"))
            yield running


def test_the_pods_gpu_belongs_to_its_server(prometheus: Prometheus) -> None:
    [(labels, value)] = prometheus.query("target:gpu:info")

    assert value == 1
    assert (labels["target"], labels["gpu"], labels["pod"]) == ("chat", "GPU-aaaa", "chat-0")


def test_memory_is_dcgms_in_bytes(prometheus: Prometheus) -> None:
    [(labels, used)] = prometheus.query("target:memory_used:bytes")

    assert used == USED * MIB
    assert labels["namespace"] == "chat"
    assert prometheus.value("target:memory_free:bytes") == FREE * MIB
    assert prometheus.value('gpu:memory_total:bytes{gpu="GPU-aaaa"}') == (USED + FREE + RESERVED) * MIB


def test_headroom_is_what_the_plan_leaves_of_it(prometheus: Prometheus) -> None:
    """Without the GPU the plan is the parts by their high bounds beside the pool that the server states."""
    parts = prometheus.value('sum(brimline_predicted_memory_high_bytes{component!="kv_cache"})')
    pool = prometheus.value("brimline_kv_cache_capacity_bytes")

    assert parts is not None
    assert pool is not None
    expected = FREE * MIB - max(0, parts + pool - USED * MIB)
    assert prometheus.value("target:memory_headroom:bytes") == pytest.approx(expected)


def test_no_rule_fails(prometheus: Prometheus) -> None:
    health = eventually(
        lambda: (said := prometheus.rule_health()) and "unknown" not in said.values() and said
    )

    assert len(health) > 50
    assert set(health.values()) == {"ok"}
