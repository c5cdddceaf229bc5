"""/sd: a real Prometheus finds the servers' own pages by the exporter's list of targets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter_process import Exporter, running_exporter
from fake_servers import FakeServer, FakeVllm, Reply, dead_port
from prometheus_server import get_text, running_prometheus
from simulated_server import simulated_vllm
from waiting import eventually

CONFIG = """
gpu: {{backend: none}}
targets:
  - name: chat
    url: "http://127.0.0.1:{chat}"
    experiment: ctx
    variant: short
    role: baseline
    headers: {{X-Team: PLANTED}}
  - {{name: behind-a-proxy, url: "http://localhost:{vllm}/tenants/a/", engine: vllm}}
  - {{name: declared, url: "https://[::1]:{dead}", engine: trtllm}}
  - {{name: unknown, url: "http://127.0.0.1:{dead}"}}
  - {{name: without-a-page, url: "http://127.0.0.1:{dead}", engine: ollama}}
"""


def behind_proxy() -> dict[str, Reply]:
    return {f"/tenants/a{path}": reply for path, reply in FakeVllm(generation_tokens=42).routes().items()}


@pytest.fixture(name="exporter", scope="module")
def _exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    with (
        simulated_vllm("short-context") as chat,
        FakeServer(behind_proxy()) as vllm,
        dead_port() as dead,
        running_exporter(
            tmp_path_factory.mktemp("exporter"),
            CONFIG.format(chat=chat.port, vllm=vllm.port, dead=dead),
        ) as running,
    ):
        yield running


def test_every_page_that_is_known_is_listed_without_secrets(exporter: Exporter) -> None:
    text = get_text(f"{exporter.url}/sd")
    listed = {entry["labels"]["target"]: entry for entry in json.loads(text)}

    assert list(listed) == ["chat", "behind-a-proxy", "declared"]
    assert listed["chat"]["labels"] == {
        "__scheme__": "http",
        "__metrics_path__": "/metrics",
        "__meta_brimline_engine": "vllm",
        "target": "chat",
        "experiment": "ctx",
        "variant": "short",
        "role": "baseline",
    }
    assert listed["chat"]["targets"][0].startswith("127.0.0.1:")
    assert listed["behind-a-proxy"]["labels"]["__metrics_path__"] == "/tenants/a/metrics"
    assert listed["declared"]["labels"]["__metrics_path__"] == "/prometheus/metrics"
    assert listed["declared"]["targets"][0].startswith("[::1]:")
    assert "PLANTED" not in text


def test_prometheus_scrapes_the_servers_own_pages_by_the_list(exporter: Exporter, tmp_path: Path) -> None:
    found = {
        "job_name": "engines",
        "http_sd_configs": [{"url": f"{exporter.url}/sd", "refresh_interval": "1s"}],
        "relabel_configs": [{"source_labels": ["__meta_brimline_engine"], "target_label": "engine_name"}],
    }
    with running_prometheus(tmp_path, [exporter.port], jobs=[found]) as prometheus:
        up = 'up{job="engines",target="chat"} == 1'
        eventually(lambda: prometheus.value(up))
        [(labels, _)] = prometheus.query('up{job="engines",target="chat"}')
        eventually(lambda: prometheus.query('vllm:num_requests_running{job="engines",target="chat"}'))
        [(series, _)] = prometheus.query('vllm:num_requests_running{job="engines",target="chat"}')

    assert labels.items() >= {"experiment": "ctx", "variant": "short", "role": "baseline"}.items()
    assert labels["engine_name"] == "vllm"
    # vLLM's own label stays what its own boards know.
    assert series["engine"] == "0"
    assert not [name for name in series if name.startswith("exported_")]


def test_a_page_stays_listed_while_its_server_is_down(tmp_path: Path) -> None:
    with FakeServer(FakeVllm(generation_tokens=42).routes()) as vllm:
        config = f"gpu: {{backend: none}}\ntargets: [{{name: chat, url: '{vllm.url}'}}]\n"
        with running_exporter(tmp_path, config) as exporter:
            before = get_text(f"{exporter.url}/sd")
            vllm.close()
            assert exporter.metrics()['target_up{target="chat"}'] == 0
            after = get_text(f"{exporter.url}/sd")

    assert json.loads(before)[0]["labels"]["target"] == "chat"
    assert after == before
