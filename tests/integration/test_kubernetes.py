"""`brimline serve` with the pods of its node as targets, from a small API server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from exporter_process import Exporter, running_exporter
from fake_api_server import FakeApiServer, Pod, pod
from fake_servers import FakeServer, FakeVllm
from waiting import eventually

CONFIG = """
gpu: {backend: none}
kubernetes:
  node: ${NODE_NAME}
  kubeconfig: %s
"""
NODE = {"NODE_NAME": "gpu-7"}


def up(exporter: Exporter) -> dict[str, float]:
    """target_up by target."""
    return {
        name.partition('"')[2].partition('"')[0]: value
        for name, value in exporter.metrics().items()
        if name.startswith("target_up{")
    }


def of(server: FakeServer, name: str, **annotations: str) -> Pod:
    said = {f"brimline.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return pod(name, annotations={"brimline.io/port": str(server.port), **said})


def test_pods_are_scraped_as_they_come_and_kept_while_the_api_server_is_away(tmp_path: Path) -> None:
    with FakeServer(FakeVllm(generation_tokens=42).routes()) as vllm, FakeApiServer() as api:
        api.put(of(vllm, "chat-0", experiment="ctx", variant="long"))
        config = CONFIG % api.kubeconfig(tmp_path)
        with running_exporter(tmp_path, config, environ=NODE) as exporter:
            assert up(exporter) == {"llm/chat-0": 1}
            page = exporter.metrics()
            tokens = [value for name, value in page.items() if name.startswith("generation_tokens_total{")]
            assert tokens == [42]
            assert page['discovery_up{source="kubernetes"}'] == 1
            assert page["config_last_reload_successful"] == 1

            eventually(lambda: api.watching == 1)
            api.put(of(vllm, "chat-1"), of(vllm, "chat-2"))
            eventually(lambda: len(up(exporter)) == 3)
            api.remove("chat-0")
            eventually(lambda: set(up(exporter)) == {"llm/chat-1", "llm/chat-2"})
            assert not [name for name in exporter.metrics() if "llm/chat-0" in name]

            api.put(of(vllm, "chat-2", engin="vllm"))
            eventually(lambda: exporter.metrics()['discovery_up{source="kubernetes"}'] == 0)
            # Whoever may annotate a pod must not make the configuration look refused.
            assert exporter.metrics()["config_last_reload_successful"] == 1
            eventually(lambda: up(exporter) == {"llm/chat-1": 1})
            assert "pod llm/chat-2: annotation brimline.io/engin: unknown" in exporter.log

            api.close()
            eventually(lambda: "the API server cannot be reached" in exporter.log)
            page = exporter.metrics()
            assert up(exporter) == {"llm/chat-1": 1}
            assert page['discovery_up{source="kubernetes"}'] == 0
            assert page['discovery_targets{source="kubernetes"}'] == 1
            assert page['discovery_errors_total{source="kubernetes"}'] >= 1
            assert page['discovery_last_success_timestamp_seconds{source="kubernetes"}'] > 1.7e9
            assert api.token not in exporter.log


def test_a_node_that_nobody_names_is_refused_at_the_start(tmp_path: Path) -> None:
    config = tmp_path / "brimline.yaml"
    config.write_text("kubernetes:\n  node: ${BRIMLINE_NO_SUCH_NODE}\n")

    ended = subprocess.run(
        [sys.executable, "-m", "brimline", "serve", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "brimline: kubernetes.node: the environment variable BRIMLINE_NO_SUCH_NODE is not set"
    )


def test_check_reads_the_pods_of_now(tmp_path: Path) -> None:
    with FakeServer(FakeVllm(generation_tokens=42).routes()) as vllm, FakeApiServer() as api:
        config = tmp_path / "brimline.yaml"
        config.write_text((CONFIG % api.kubeconfig(tmp_path)).replace("${NODE_NAME}", "gpu-7"))
        command = [sys.executable, "-m", "brimline", "check", "--config", str(config)]

        api.put(of(vllm, "chat-0"))
        good = subprocess.run(command, capture_output=True, text=True, timeout=60)
        api.put(of(vllm, "chat-1", scheme="ftp"))
        bad = subprocess.run(command, capture_output=True, text=True, timeout=60)
        api.status = 403
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert "llm/chat-0" in good.stdout
    assert (bad.returncode, bad.stderr) == (
        1,
        "brimline: pod llm/chat-1: annotation brimline.io/scheme: unknown 'ftp'; known: http, https\n",
    )
    assert "pods may not be listed (403)" in refused.stderr
