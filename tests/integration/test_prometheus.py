"""What a real Prometheus makes of the exporter, with the demo's simulated servers as its targets."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from exporter_process import Exporter, running_exporter
from prometheus_server import Prometheus, get_text, running_prometheus, tool
from simulated_server import simulated_vllm
from waiting import eventually


@pytest.fixture(scope="module")
def server_port() -> Iterator[int]:
    with simulated_vllm("short-context") as running:
        yield running.port


CONFIG = """
gpu: {{backend: none}}
targets:
  - name: chat
    url: "http://127.0.0.1:{port}"
    experiment: ctx
    variant: short
    role: baseline
    histograms: full
  - {{name: gone, url: "http://127.0.0.1:9"}}
"""


@pytest.fixture(scope="module")
def exporters(server_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Exporter]]:
    """Two sidecars of one template: the same configuration, the same target names."""
    config = CONFIG.format(port=server_port)
    with (
        running_exporter(tmp_path_factory.mktemp("a"), config) as first,
        running_exporter(tmp_path_factory.mktemp("b"), config) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="module")
def prometheus(exporters: list[Exporter], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    ports = [exporter.port for exporter in exporters]
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), ports) as running:
        eventually(lambda: len(running.query('brimline_target_up{target="chat"} == 1')) == 2)
        yield running


def test_promtool_finds_no_fault_with_the_page(exporters: list[Exporter]) -> None:
    page = get_text(f"{exporters[0].url}/metrics")

    checked = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=page, text=True, capture_output=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_both_formats_are_scraped_without_a_complaint(prometheus: Prometheus) -> None:
    assert [value for _, value in prometheus.query("up")] == [1, 1]
    assert prometheus.value("sum(scrape_samples_scraped > bool 50)") == 2


def test_two_sidecars_with_one_configuration_join_cleanly(prometheus: Prometheus) -> None:
    """`on (job, instance, target)`: the target's name alone stands twice."""
    identity = "on (job, instance, target) group_left (variant, engine) brimline_target_info"
    joined = prometheus.query(f"brimline_kv_cache_usage_ratio * {identity}")

    assert len(joined) == 2
    assert {row["variant"] for row, _ in joined} == {"short"}
    assert {row["engine"] for row, _ in joined} == {"vllm"}
    assert len({row["instance"] for row, _ in joined}) == 2


def test_a_dead_target_has_health_but_no_values(prometheus: Prometheus) -> None:
    assert {value for _, value in prometheus.query('brimline_target_up{target="gone"}')} == {0}
    assert len(prometheus.query('brimline_target_problem{target="gone",reason="connection"}')) == 2
    names = {row["__name__"] for row, _ in prometheus.query('{target="gone"}')}
    assert not {
        name for name in names if name.startswith(("brimline_kv", "brimline_requests", "brimline_model"))
    }


def test_tokens_per_second_can_be_computed(prometheus: Prometheus) -> None:
    rate = eventually(
        lambda: prometheus.value('max(rate(brimline_generation_tokens_total{target="chat"}[10s])) > 0'),
    )

    assert 0 < rate < 50_000


def test_histogram_buckets_are_quantiles_for_prometheus(prometheus: Prometheus) -> None:
    buckets = "sum by (instance, le) (brimline_request_prompt_tokens_bucket)"

    found = eventually(lambda: prometheus.value(f"max(histogram_quantile(0.5, {buckets})) > 0"))

    assert 1 <= found <= 32768
