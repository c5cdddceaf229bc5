"""What is fetched of an experiment from a real Prometheus, filled with a fleet in which all goes wrong."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ab_fleet
from ab_alike import same
from brimline.ab.experiment import Experiment, parse
from brimline.ab.fetch import observe, open_source
from brimline.ab.observations import Observations, ReplicaObservations
from brimline.ab.procedure import judge
from brimline.ab.saved_series import load
from brimline.ab.series import Series, in_stretches
from brimline.config import BasicAuth, Tls
from brimline.errors import ConfigError, DataSourceError
from brimline.prometheus_api import Connection, open_api
from exporter_process import running_exporter
from prometheus_server import Prometheus, free_port, is_up, running_prometheus, tool
from simulated_server import simulated_vllm
from waiting import eventually

MAX_SAMPLES = 12_000
FOR_EVER = "--storage.tsdb.retention.time=100y"


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dump") / "fleet.om"
    file.write_text(ab_fleet.open_metrics())
    return file


@pytest.fixture(scope="module")
def prometheus(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    subprocess.run(
        [
            tool("promtool"),
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            "-q",
            str(dump),
            str(folder / "tsdb"),
        ],
        check=True,
    )
    # So few samples at once that some questions must be asked in parts.
    with running_prometheus(folder, [], flags=[FOR_EVER, f"--query.max-samples={MAX_SAMPLES}"]) as running:
        yield running


@pytest.fixture(scope="module")
def victoria_metrics(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("victoria-metrics")
    if program is None:
        pytest.skip("victoria-metrics is not on PATH; only some releases of Debian have it")
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        program,
        f"-httpListenAddr={url.removeprefix('http://')}",
        f"-storageDataPath={tmp_path_factory.mktemp('victoria')}",
        "-retentionPeriod=100y",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: is_up(f"{url}/health"))
        urllib.request.urlopen(
            urllib.request.Request(f"{url}/api/v1/import/prometheus", _in_milliseconds(dump), method="POST"),
            timeout=60,
        ).close()
        urllib.request.urlopen(f"{url}/internal/force_flush", timeout=60).close()
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _in_milliseconds(dump: Path) -> bytes:
    lines = []
    for line in dump.read_text().splitlines():
        if not line.startswith("#"):
            head, _, stamp = line.rpartition(" ")
            lines.append(f"{head} {round(float(stamp) * 1000)}\n")
    return "".join(lines).encode()


def experiment(text: str = ab_fleet.EXPERIMENT) -> Experiment:
    return parse(text, now=2e9)


def fetched(url: str, about: Experiment | None = None, **settings: Any) -> Observations:
    async def scenario() -> Observations:
        async with open_api(Connection(url=url, **settings)) as api:
            return await observe(about or experiment(), api)

    return asyncio.run(scenario())


@pytest.fixture(scope="module")
def observations(prometheus: Prometheus) -> Observations:
    about = experiment(ab_fleet.EXPERIMENT + f'prometheus: {{url: "{prometheus.url}/"}}')

    async def scenario() -> Observations:
        async with open_source(about) as source:
            return await observe(about, source)

    return asyncio.run(scenario())


@pytest.fixture(scope="module")
def saved(dump: Path) -> Observations:
    async def scenario() -> Observations:
        async with open_source(experiment(), dump) as source:
            return await observe(experiment(), source)

    return asyncio.run(scenario())


def replica(observations: Observations, name: str) -> ReplicaObservations:
    [found] = [each for arm in observations.arms.values() for each in arm.replicas if each.name == name]
    return found


def per_block(series: Series) -> np.ndarray:
    return in_stretches(series, np.array(experiment().block_edges))


# --- the fleet


def test_each_server_is_found_once_in_its_arm(observations: Observations) -> None:
    names = {arm: [each.name for each in found.replicas] for arm, found in observations.arms.items()}

    assert names == {"short": ["short-a", "short-b"], "long": ["long-a", "long-b"]}
    [note] = [gap for gap in observations.gaps if "two exporters" in gap]
    assert note == (
        "long-a is read by two exporters, 10.0.0.3:10778 and 10.0.0.9:10778; "
        "it is counted once, as 10.0.0.3:10778 saw it"
    )
    assert observations.scrape_interval == pytest.approx(15, abs=0.01)


def test_counters_grow_by_what_the_servers_did(observations: Observations) -> None:
    steady = replica(observations, "short-a").series

    # A label that appeared half way makes no second server and costs one scrape at most.
    grown = per_block(steady.counters["generation_tokens_total"])
    whole = ab_fleet.GENERATED_PER_SECOND * 900
    assert grown[[0, 1, 2, 3, 4, 5, 7, 8, 15]] == pytest.approx(whole, rel=1e-3)
    assert grown[6] == pytest.approx(whole, rel=0.02)
    seconds, count = (
        per_block(steady.counters[f"inter_token_latency_seconds_{part}"]) for part in ("sum", "count")
    )
    assert seconds / count == pytest.approx(ab_fleet.SECONDS_PER_TOKEN)
    assert len(steady.resets) == 0


def test_buckets_grow_from_edge_to_edge(observations: Observations) -> None:
    buckets = replica(observations, "short-a").series.buckets["inter_token_latency_seconds"]

    assert list(buckets) == [0.01, 0.05, 0.1, float("inf")]
    total = buckets[float("inf")]
    assert list(total.times) == list(experiment().block_edges[1:])
    assert total.values == pytest.approx(ab_fleet.GENERATED_PER_SECOND * 900, rel=0.02)
    assert buckets[0.05].values / total.values == pytest.approx(0.9)


def test_a_restart_is_seen_with_both_starts(observations: Observations) -> None:
    restarted = replica(observations, "short-b")

    assert list(restarted.starts) == [ab_fleet.BOOTED, ab_fleet.RESTART + ab_fleet.DOWN_SECONDS]
    assert len(restarted.series.resets) == 1
    assert ab_fleet.RESTART < restarted.series.resets[0] < ab_fleet.RESTART + 90
    assert (restarted.up.values == 0).sum() == 3
    assert [boot.start for boot in restarted.boots] == list(restarted.starts)
    assert per_block(restarted.series.counters["generation_tokens_total"]).min() > 0
    assert len(restarted.changes) == 0


def test_a_gap_stays_a_gap(observations: Observations) -> None:
    """A range query would have filled five minutes of it."""
    times = replica(observations, "long-a").up.times
    first, last = ab_fleet.GAP

    assert not ((times > first) & (times < last)).any()
    assert np.diff(times).max() == pytest.approx(last - first, abs=2 * ab_fleet.INTERVAL)
    buckets = replica(observations, "long-a").series.buckets["time_to_first_token_seconds"][float("inf")]
    edges = set(experiment().block_edges[1:])
    # The edge at 75 minutes lies within the gap: what ends and what begins there is not known.
    assert edges - set(buckets.times) == {ab_fleet.START + 4500, ab_fleet.START + 5400}


def test_a_server_that_appears_later_has_nothing_before(observations: Observations) -> None:
    late = replica(observations, "long-b")

    assert late.up.times[0] >= ab_fleet.APPEARS
    assert per_block(late.series.counters["generation_tokens_total"])[:2].tolist() == [0, 0]
    assert "long-b: not there during the first 1839 s" in observations.gaps


def test_nan_is_no_sample(observations: Observations) -> None:
    usage = replica(observations, "short-a").series.gauges["kv_cache_usage_ratio"]

    assert np.isfinite(usage.values).all()
    assert not (abs(usage.times - ab_fleet.NAN_AT) < 7).any()


def test_what_identifies_a_server_is_read_at_its_end(observations: Observations) -> None:
    found = replica(observations, "long-a")

    assert found.settings == {"max_model_len": "131072", "block_size": "16", "model": "llama"}
    assert (found.engine, found.engine_version, found.models) == ("vllm", "0.33.0", ["llama"])
    assert found.fingerprint == "f-long"
    assert "kv_cache_dtype" in found.unpublished_settings
    [gpu] = found.gpus
    assert (gpu.name, gpu.memory_total_bytes, gpu.driver) == ("NVIDIA H200", 150e9, "570.1")
    assert set(found.other_processes_bytes.values) == {5e8}


def test_what_a_boot_settled_stands_beside_its_prediction(observations: Observations) -> None:
    earlier, boot = replica(observations, "short-a").boots

    assert (earlier.start, earlier.in_window) == (ab_fleet.EARLIER_BOOT, False)
    assert earlier.observed["kv_cache_capacity_tokens"] == pytest.approx(
        1.05 * boot.observed["kv_cache_capacity_tokens"]
    )
    assert boot.in_window
    assert boot.observed == pytest.approx(
        {
            "kv_cache_capacity_bytes": 50e9,
            "kv_cache_capacity_tokens": 50e9 / 131072,
            "kv_cache_bytes_per_token": 131072,
            "weights_bytes": 15e9,
            "memory_used_peak_bytes": 130e9,
        }
    )
    assert boot.predicted == pytest.approx(
        {
            "kv_cache_capacity_bytes": 50.5e9,
            "kv_cache_capacity_tokens": 50.5e9 / 131072,
            "kv_cache_bytes_per_token": 131072,
            "weights_bytes": 15.1e9,
            "memory_used_peak_bytes": 125e9,
        }
    )


# --- the same from elsewhere


def test_a_dump_of_the_samples_says_the_same_as_prometheus(
    observations: Observations, saved: Observations
) -> None:
    same(observations.arms, saved.arms, nearly=True)
    assert observations.gaps == saved.gaps


def test_what_promtool_dumps_is_read(
    observations: Observations, prometheus: Prometheus, tmp_path: Path
) -> None:
    """promtool's own format: the name among the labels, milliseconds."""
    dumped = tmp_path / "dump.txt"
    folder = tmp_path / "tsdb"
    source = tmp_path / "few.om"
    source.write_text(ab_fleet.open_metrics(ab_fleet.SERVERS[:1]))
    subprocess.run(
        [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", "-q", str(source), str(folder)],
        check=True,
    )
    (folder / "wal").mkdir()
    with open(dumped, "wb") as file:
        subprocess.run([tool("promtool"), "tsdb", "dump", str(folder)], stdout=file, check=True)

    found = asyncio.run(observe(experiment(), load(dumped)))

    same(replica(observations, "short-a"), replica(found, "short-a"), nearly=True)


def test_victoria_metrics_says_the_same_as_prometheus(
    observations: Observations, victoria_metrics: str
) -> None:
    found = fetched(f"{victoria_metrics}/prometheus")

    same(observations.arms, found.arms, nearly=True)


# --- the user's own metrics

OWN = (
    ab_fleet.EXPERIMENT
    + """
metrics:
  - {name: quality, query: 'QUERY', kind: intensity, margin: 0.05}
"""
)


def with_query(query: str) -> Experiment:
    return experiment(OWN.replace("QUERY", query.replace("'", "''")))


def test_a_query_of_the_users_own_is_asked_for_each_arm_and_block(prometheus: Prometheus) -> None:
    query = (
        'sum(increase(brimline_generation_tokens_total{target=~"$variant-.*"}[$block])) '
        "* scalar(count(brimline_target_info{$selector} offset 10m) > bool 0)"
    )

    found = fetched(prometheus.url, with_query(query))

    own = {arm: each.own_metrics["quality"] for arm, each in found.arms.items()}
    assert list(own["short"].times) == list(experiment().block_edges[1:])
    assert own["short"].values[0] == pytest.approx(2 * 120 * 900, rel=0.05)
    assert own["long"].values[-1] == pytest.approx(
        3 * 120 * 900, rel=0.05
    )  # two exporters count one server twice


def test_no_answer_is_nan_and_told(prometheus: Prometheus) -> None:
    found = fetched(
        prometheus.url, with_query('max(brimline_requests_running{target="long-b",variant!="$variant"}) ')
    )

    values = found.arms["long"].own_metrics["quality"].values
    assert np.isnan(values[:2]).all()
    assert values[-1] == 6
    assert "long: quality has no answer for 2 blocks" in found.gaps


def test_several_series_for_an_arm_are_refused(prometheus: Prometheus) -> None:
    with pytest.raises(
        ConfigError, match=r"metric 'quality': its query gives 5 series for (?:short|long); make it one"
    ):
        fetched(prometheus.url, with_query('brimline_target_up{target!="long-b"}'))


def test_a_wrong_query_is_named_with_its_metric(prometheus: Prometheus) -> None:
    with pytest.raises(ConfigError, match=r"metric 'quality': .*parse error"):
        fetched(prometheus.url, with_query("sum(("))


def test_a_wrong_selector_is_named_with_its_variant(prometheus: Prometheus) -> None:
    text = ab_fleet.EXPERIMENT.replace("role: baseline", "role: baseline, selector: 'target~\"x\"'")

    with pytest.raises(ConfigError, match=r"the selector of short: .*parse error"):
        fetched(prometheus.url, experiment(text))


# --- the API itself


def test_a_question_for_more_samples_than_the_server_takes_is_halved(prometheus: Prometheus) -> None:
    async def scenario() -> None:
        async with open_api(Connection(url=prometheus.url)) as api:
            everything = '{__name__=~"brimline_requests.*"}'
            with pytest.raises(DataSourceError, match="too many samples") as refused:
                await api.query(f"{everything}[4h]", ab_fleet.END)
            assert refused.value.reason == "limit"
            found = await api.raw_samples(everything, ab_fleet.START, ab_fleet.END)
            assert sum(len(row.times) for row in found.rows) > MAX_SAMPLES
            assert all(np.diff(np.frombuffer(row.times)).min() > 0 for row in found.rows)

    asyncio.run(scenario())


def test_scalars_label_values_and_infinities_of_a_real_server(prometheus: Prometheus) -> None:
    async def scenario() -> None:
        async with open_api(Connection(url=prometheus.url)) as api:
            [scalar] = (await api.query("1 / 0", ab_fleet.END)).rows
            assert (dict(scalar.labels), list(scalar.values)) == ({}, [float("inf")])
            [vector] = (await api.query("vector(-1) / 0", ab_fleet.END)).rows
            assert list(vector.values) == [float("-inf")]
            variants, _ = await api.label_values("variant", ["brimline_target_info"], start=ab_fleet.START)
            assert variants == ["long", "short"]

    asyncio.run(scenario())


def test_tls_and_basic_auth_of_a_real_server(tmp_path: Path) -> None:
    key, certificate, password = (tmp_path / name for name in ("key.pem", "cert.pem", "password"))
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=prometheus.test", "-addext", "subjectAltName=DNS:prometheus.test"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    password.write_text("test\n")
    web_config = tmp_path / "web.yml"
    # The example of Prometheus' own guide to basic authentication: admin, test.
    web_config.write_text(
        f"tls_server_config: {{cert_file: {certificate}, key_file: {key}}}\n"
        "basic_auth_users: {admin: $2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay}\n"
    )
    empty = tmp_path / "prometheus.yml"
    empty.write_text("{}")
    port = free_port()
    command = [tool("prometheus"), f"--config.file={empty}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", f"--web.config.file={web_config}"]
    trusting = Tls(ca_file=str(certificate), server_name="prometheus.test")
    admin = BasicAuth(username="admin", password_file=str(password))

    async def two(**settings: Any) -> float:
        async with open_api(Connection(url=f"https://127.0.0.1:{port}", attempts=1, **settings)) as api:
            return (await api.query("1 + 1", time.time())).rows[0].values[0]

    def is_answered() -> bool:
        try:
            return asyncio.run(two(tls=trusting, basic_auth=admin)) == 2
        except DataSourceError:
            return False

    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(is_answered)
        assert asyncio.run(two(tls=Tls(insecure_skip_verify=True), basic_auth=admin)) == 2
        for settings, reason in (
            ({"tls": trusting}, "unauthorized"),
            ({"basic_auth": admin}, "tls"),
            ({"tls": Tls(ca_file=str(certificate)), "basic_auth": admin}, "tls"),
        ):
            with pytest.raises(DataSourceError) as refused:
                asyncio.run(two(**settings))
            assert refused.value.reason == reason
    finally:
        process.terminate()
        process.wait(60)


# --- nothing there


def test_a_selector_that_matches_nothing_leaves_an_empty_arm_and_says_so(prometheus: Prometheus) -> None:
    text = ab_fleet.EXPERIMENT.replace("role: candidate", "role: candidate, selector: 'variant=\"longer\"'")

    found = fetched(prometheus.url, experiment(text))

    assert found.arms["long"].replicas == []
    assert len(found.arms["short"].replicas) == 2
    assert any('no brimline_target_info{variant="longer"} within the window' in gap for gap in found.gaps)


def test_a_window_without_samples_is_an_empty_answer(prometheus: Prometheus) -> None:
    text = ab_fleet.EXPERIMENT.replace("2025-11-24", "2025-10-24")

    found = fetched(prometheus.url, experiment(text))

    assert [arm.replicas for arm in found.arms.values()] == [[], []]
    assert found.scrape_interval is None


# --- live

LIVE = """
gpu: {{backend: none}}
targets:
  - {{name: a, url: "http://127.0.0.1:{short}", experiment: live, variant: short, role: baseline}}
  - {{name: b, url: "http://127.0.0.1:{long}", experiment: live, variant: long, role: candidate}}
"""
LIVE_EXPERIMENT = """
name: live
variants:
  - {name: short, role: baseline}
  - {name: long, role: candidate}
window: {last: 12s}
block_length: 5s
"""


def test_simulated_servers_are_observed_while_they_run(tmp_path: Path) -> None:
    with (
        simulated_vllm("short-context") as short,
        simulated_vllm("long-context") as long,
        running_exporter(tmp_path, LIVE.format(short=short.port, long=long.port)) as exporter,
        running_prometheus(tmp_path, [exporter.port]) as prometheus,
    ):
        counted = 'min(count_over_time(brimline_target_up{target=~"a|b"}[1m]))'
        eventually(lambda: (prometheus.value(counted) or 0) >= 15)

        found = fetched(prometheus.url, parse(LIVE_EXPERIMENT, now=time.time()))

    assert found.simulated
    assert found.scrape_interval == pytest.approx(1, abs=0.1)
    for arm, length in (("short", "32768"), ("long", "131072")):
        [each] = found.arms[arm].replicas
        assert each.engine == "vllm"
        assert each.series.counters["generation_tokens_total"].values.sum() > 0
        assert len(each.up.times) >= 10
        assert len(each.starts) == 1
        assert each.settings["max_model_len"] == length
        assert each.boots[0].observed["kv_cache_capacity_tokens"] > 0
        assert float("inf") in each.series.buckets["time_to_first_token_seconds"]


ONE_PORT = """
gpu: {{backend: none}}
targets:
  - {{name: chat, url: "http://127.0.0.1:{port}", experiment: live, variant: {variant}, role: {role}}}
"""


def test_on_one_gpu_the_restart_divides_the_variants_though_name_and_port_stay(tmp_path: Path) -> None:
    """The label is changed a while after the server is: what it did meanwhile is the new variant's."""

    def scraped(prometheus: Prometheus, variant: str, length: int) -> Callable[[], bool]:
        joined = "brimline_max_model_len_tokens * on (job, instance, target) group_left (variant) "
        query = f'{joined} brimline_target_info{{variant="{variant}"}} == {length}'
        return lambda: (prometheus.value(f"count_over_time(({query})[2m:1s])") or 0) >= 3

    port, begun = free_port(), time.time()
    treatment = "treatment: [kv_cache_dtype, max_model_len]\nwarmup: 0s\n"
    with ExitStack() as stack:
        with simulated_vllm("short-context", port=port):
            config = ONE_PORT.format(port=port, variant="short", role="baseline")
            exporter = stack.enter_context(running_exporter(tmp_path, config))
            prometheus = stack.enter_context(running_prometheus(tmp_path, [exporter.port]))
            eventually(scraped(prometheus, "short", 32768))
        with simulated_vllm("long-context", port=port):
            eventually(scraped(prometheus, "short", 131072))
            (tmp_path / "brimline.yaml").write_text(
                ONE_PORT.format(port=port, variant="long", role="candidate")
            )
            exporter.process.send_signal(signal.SIGHUP)
            eventually(scraped(prometheus, "long", 131072))
            window = f"{time.time() - begun:.0f}s"
            planned = parse(LIVE_EXPERIMENT.replace("12s", window) + treatment, now=time.time())
            found = fetched(prometheus.url, planned)

    settings = {arm: each.replicas[0].settings["max_model_len"] for arm, each in found.arms.items()}
    [comparison] = judge(planned, found).comparisons
    static = {row.name: row for row in comparison.static}
    assert settings == {"short": "32768", "long": "131072"}
    assert "chat" in " ".join(gap for gap in found.gaps if "was short, then long, started anew" in gap)
    assert comparison.verdict == "inconclusive"
    assert static["kv_cache_capacity_tokens"].observed_delta_ratio == pytest.approx(1.0, abs=0.01)
