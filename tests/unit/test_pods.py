"""Pods as targets: which, as what, and what is kept while the API server cannot be asked."""

from __future__ import annotations

import re
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config

from brimline.config import KubernetesConfig, PodTargets, Target, Tls, parse
from brimline.errors import ConfigError
from brimline.pods import PodWatch, node_name, official_client, open_watch, pod_target
from brimline.strict_yaml import Seconds
from certificates import Authority
from fake_api_server import FakeApiServer, pod
from waiting import eventually

NODE = KubernetesConfig(node="gpu-7")
HTTP = [{"name": "http", "containerPort": 8000}]


def target(each: dict[str, Any], kubernetes: KubernetesConfig = NODE) -> Target | None:
    return pod_target(each, kubernetes, {"llama": "/models/llama"})


# --- one pod


def test_a_pod_that_asks_for_it_is_a_target_by_its_namespace_and_name() -> None:
    found = target(pod("chat-0", "10.1.2.3", ports=HTTP))

    assert found == Target(name="llm/chat-0", url="http://10.1.2.3:8000")


def test_annotations_say_what_a_configuration_would() -> None:
    annotations = {
        "brimline.io/port": "metrics",
        "brimline.io/scheme": "https",
        "brimline.io/metrics-path": "/own/metrics",
        "brimline.io/engine": "vllm",
        "brimline.io/experiment": "ctx",
        "brimline.io/variant": "long",
        "brimline.io/role": "candidate",
        "brimline.io/model": "llama",
        "brimline.io/launch-command": "vllm serve /models/llama -tp 2",
        "example.com/other": "is none of our business",
    }
    ports = [*HTTP, {"name": "metrics", "containerPort": 9000}]
    common = PodTargets(timeout=Seconds(2), histograms="full", tls=Tls(ca_file="ca.pem"))

    found = target(
        pod("chat-0", "fd00::7", annotations=annotations, ports=ports),
        KubernetesConfig(node="gpu-7", targets=common),
    )

    assert found == Target(
        name="llm/chat-0",
        url="https://[fd00::7]:9000",
        metrics_path="/own/metrics",
        engine="vllm",
        experiment="ctx",
        variant="long",
        role="candidate",
        model="/models/llama",
        launch_command="vllm serve /models/llama -tp 2",
        timeout=Seconds(2),
        histograms="full",
        tls=Tls(ca_file="ca.pem"),
    )


@pytest.mark.parametrize(
    "each",
    [
        pod("a", ports=HTTP, annotations={"brimline.io/scrape": "false"}),
        pod("a", ports=HTTP, phase="Pending"),
        pod("a", ports=HTTP, phase="Succeeded"),
        pod("a", "", ports=HTTP),
        {"metadata": {"namespace": "llm", "name": "a"}},
        {},
    ],
    ids=["not asked", "pending", "ended", "without an address", "without annotations", "empty"],
)
def test_other_pods_are_left_alone(each: dict[str, Any]) -> None:
    assert target(each) is None


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"scrape": "yes"}, 'scrape: \'yes\' is neither; write "true" or "false"'),
        (
            {"prot": "8000"},
            (
                "prot: unknown; did you mean 'port'? known: engine, experiment, launch-command, "
                "metrics-path, model, port, role, scheme, scrape, variant"
            ),
        ),
        ({"port": "0"}, 'port: 0 is no port; write one such as "8000"'),
        ({"port": "metrics"}, "port: the pod has no port of the name 'metrics'; known: http"),
        ({"scheme": "ftp"}, "scheme: unknown 'ftp'; known: http, https"),
        ({"role": "winner"}, "role: unknown 'winner'; known: baseline, candidate"),
        (
            {"model": "/etc/shadow"},
            "model: '/etc/shadow' is no name of models in the exporter's configuration; known: llama",
        ),
        (
            {"metrics-path": "metrics"},
            "metrics-path: the metrics_path does not start with a slash; write /metrics",
        ),
        (
            {"variant": "a b"},
            "variant: variant 'a b' cannot be a label; use letters, digits and . _ : / - (at most 128)",
        ),
    ],
)
def test_a_mistake_is_told_with_its_pod_and_cure(annotations: dict[str, str], said: str) -> None:
    each = pod(
        "chat-0", ports=HTTP, annotations={f"brimline.io/{key}": value for key, value in annotations.items()}
    )

    with pytest.raises(ConfigError) as refused:
        target(each)

    assert str(refused.value) == f"pod llm/chat-0: annotation brimline.io/{said}"


def test_an_engine_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigError, match=r"pod llm/a: annotation brimline\.io/engine: unknown engine 'vlm'"):
        target(pod("a", ports=HTTP, annotations={"brimline.io/engine": "vlm"}))


@pytest.mark.parametrize("ports", [[], [*HTTP, {"containerPort": 9000}]])
def test_a_port_is_not_guessed(ports: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=f"port: is missing, and the pod has {len(ports)} ports"):
        target(pod("a", ports=ports))


TOKEN = KubernetesConfig(
    node="gpu-7", namespaces=["llm"], targets=PodTargets(bearer_token_file="token", headers={"X-Key": "k"})
)


def test_where_tls_is_configured_pods_are_asked_by_https_only() -> None:
    """Else a token would leave in plain text, for whoever stands at that address."""
    kubernetes = KubernetesConfig(node="gpu-7", targets=PodTargets(tls=Tls(ca_file="ca.pem")))

    found = target(pod("a", "10.1.2.3", ports=HTTP), kubernetes)

    assert found is not None
    assert (found.url, found.tls) == ("https://10.1.2.3:8000", Tls(ca_file="ca.pem"))
    with pytest.raises(
        ConfigError, match=r"scheme: the exporter's configuration has kubernetes\.targets\.tls"
    ):
        target(pod("a", "10.1.2.3", ports=HTTP, annotations={"brimline.io/scheme": "http"}), kubernetes)


def on_host_network(address: str = "10.0.0.7", **said: Any) -> dict[str, Any]:
    found = pod("a", address, **said)
    found["spec"]["hostNetwork"] = True
    return found


def test_a_pod_on_the_node_s_network_is_asked_at_its_own_ports_only() -> None:
    """The kubelet and others listen at the same address."""
    found = target(on_host_network(ports=HTTP, annotations={"brimline.io/port": "8000"}))

    assert found is not None
    assert found.url == "http://10.0.0.7:8000"
    with pytest.raises(
        ConfigError, match=r"port: 10250 is a port of the node \(hostNetwork\) that the pod does"
    ):
        target(on_host_network(ports=HTTP, annotations={"brimline.io/port": "10250"}))


def with_the_node_s_address() -> dict[str, Any]:
    found = pod("a", "10.0.0.7", ports=HTTP)
    found["status"]["hostIP"] = "10.0.0.7"
    return found


@pytest.mark.parametrize(
    "each",
    [
        on_host_network(ports=HTTP),
        with_the_node_s_address(),
        *(
            pod("a", address, ports=HTTP)
            for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "0.0.0.0", "localhost")
        ),
    ],
    ids=lambda each: each["status"]["podIP"],
)
def test_credentials_go_to_addresses_of_pods_only(each: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"pod llm/a: it has no address of its own \(hostNetwork\), and cred"
    ):
        target(each, TOKEN)


def test_the_node_is_that_of_the_environment() -> None:
    config = parse("kubernetes:\n  node: ${NODE_NAME}\n").kubernetes
    assert config is not None

    assert node_name(config, {"NODE_NAME": "gpu-7"}) == "gpu-7"
    assert node_name(KubernetesConfig(node="gpu-8"), {}) == "gpu-8"
    assert node_name(KubernetesConfig(node="*"), {}) is None
    with pytest.raises(ConfigError, match="the environment variable NODE_NAME is not set; set it in the pod"):
        node_name(config, {"NODE_NAME": ""})


# --- the watch


class Watching:
    """A watch of a fake API server, and a clock that tests set."""

    def __init__(self, watch: PodWatch, clock: list[float]) -> None:
        self.watch = watch
        self.clock = clock
        self.changes = 0
        self._lock = threading.Lock()

    def note(self) -> None:
        with self._lock:
            self.changes += 1

    def names(self) -> list[str]:
        return [each.name for each in self.watch.targets()]

    def sees(self, *names: str) -> None:
        eventually(lambda: self.names() == list(names))


@contextmanager
def watching(server: FakeApiServer, folder: Path, **settings: Any) -> Iterator[Watching]:
    settings.setdefault("kubeconfig", str(server.kubeconfig(folder)))
    monotonic = settings.pop("monotonic", time.monotonic)
    config = KubernetesConfig(**{"node": "gpu-7", **settings})
    clock = [1000.0]
    watch = PodWatch(
        config,
        {},
        node=node_name(config, {}),
        open_api=official_client,
        clock=lambda: clock[0],
        monotonic=monotonic,
        first_retry_seconds=0.05,
    )
    running = Watching(watch, clock)
    watch.start(running.note)
    try:
        yield running
    finally:
        watch.stop()
        server.end_watches()


@pytest.fixture(name="server")
def _server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as server:
        yield server


def test_pods_of_the_node_come_change_and_go(server: FakeApiServer, tmp_path: Path) -> None:
    server.put(
        pod("a", ports=HTTP), pod("b", ports=HTTP, namespace="other"), pod("c", ports=HTTP, node="gpu-8")
    )
    with watching(server, tmp_path) as running:
        running.sees("llm/a", "other/b")
        eventually(lambda: server.watching == 1)
        server.put(pod("d", ports=HTTP))
        running.sees("llm/a", "llm/d", "other/b")
        server.put(pod("d", "10.9.9.9", ports=HTTP))
        eventually(lambda: running.watch.targets()[1].url == "http://10.9.9.9:8000")
        server.remove("a")
        running.sees("llm/d", "other/b")
        server.put(pod("d", ports=HTTP, annotations={"brimline.io/scrape": "false"}))
        running.sees("other/b")

    assert running.changes >= 4
    assert {path for path, _, _ in server.requests} == {"/api/v1/pods"}
    assert {parameters["fieldSelector"] for _, parameters, _ in server.requests} == {"spec.nodeName=gpu-7"}
    assert len(server.lists()) == 1


def test_only_the_namespaces_and_labels_asked_for_are_listed(server: FakeApiServer, tmp_path: Path) -> None:
    server.put(*(pod("a", ports=HTTP, namespace=name) for name in ("llm", "prod", "other")))
    with watching(server, tmp_path, node="*", namespaces=["llm", "prod"], selector="app=vllm") as running:
        running.sees("llm/a", "prod/a")
        assert running.watch.reading().up

    assert {path for path, _, _ in server.requests} == {
        "/api/v1/namespaces/llm/pods",
        "/api/v1/namespaces/prod/pods",
    }
    assert {parameters["labelSelector"] for _, parameters, _ in server.requests} == {"app=vllm"}
    assert not [parameters for _, parameters, _ in server.requests if "fieldSelector" in parameters]


def test_long_lists_come_in_pages(server: FakeApiServer, tmp_path: Path) -> None:
    server.page_size = 3
    server.put(*(pod(f"p-{number}", ports=HTTP) for number in range(8)))

    with watching(server, tmp_path) as running:
        running.sees(*(f"llm/p-{number}" for number in range(8)))

    assert [parameters.get("continue") for parameters in server.lists()] == [None, "3", "6"]


def test_a_watch_that_ends_goes_on_where_it_was(server: FakeApiServer, tmp_path: Path) -> None:
    server.put(pod("a", ports=HTTP))
    with watching(server, tmp_path) as running:
        running.sees("llm/a")
        eventually(lambda: server.watching == 1)
        server.send({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "500"}}})
        server.end_watches()
        eventually(lambda: server.requests[-1][1].get("resourceVersion") == "500")

    assert len(server.lists()) == 1


def test_what_is_forgotten_is_listed_anew_and_is_no_fault(server: FakeApiServer, tmp_path: Path) -> None:
    server.put(pod("a", ports=HTTP), pod("b", ports=HTTP))
    with watching(server, tmp_path) as running:
        running.sees("llm/a", "llm/b")
        eventually(lambda: server.watching == 1)
        del server.pods["llm", "b"]  # while nobody was told
        server.forget()
        server.end_watches()
        running.sees("llm/a")
        assert running.watch.reading().up
        assert running.watch.reading().errors == 0

    assert len(server.lists()) >= 2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            401,
            "the API server does not know the token (401); see the service account and its token",
        ),
        (
            403,
            "pods may not be listed (403); give the service account get, list and watch by a ClusterRole",
        ),
        (503, "the API server answered 503 (Service Unavailable)"),
    ],
)
def test_pods_known_last_stay_while_the_api_server_refuses(
    server: FakeApiServer, tmp_path: Path, status: int, said: str
) -> None:
    server.put(pod("a", ports=HTTP))
    with watching(server, tmp_path) as running:
        running.sees("llm/a")
        eventually(lambda: server.watching == 1)
        server.status = status
        running.clock[0] = 2000.0
        server.end_watches()
        eventually(lambda: not running.watch.reading().up)
        reading = running.watch.reading()
        assert running.names() == ["llm/a"]
        assert reading.problem == f"kubernetes *: {said}"
        assert reading.targets == 1
        assert reading.success_time == 2000.0  # the watch before ended well then
        eventually(lambda: running.watch.reading().errors >= 2)
        running.clock[0] = 3000.0
        server.status = 200
        eventually(lambda: running.watch.reading().up)
        assert running.watch.reading().success_time == 3000.0
        assert running.names() == ["llm/a"]


def test_pods_known_last_stay_while_the_api_server_is_away(tmp_path: Path) -> None:
    with FakeApiServer() as server:
        server.put(pod("a", ports=HTTP))
        with watching(server, tmp_path) as running:
            running.sees("llm/a")
            server.close()
            eventually(lambda: not running.watch.reading().up)
            assert running.names() == ["llm/a"]
            assert "the API server cannot be reached" in (running.watch.reading().problem or "")


def test_pods_of_an_old_list_are_asked_without_credentials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another tenant's pod may have the address by then."""
    now = [50.0]
    tls = Tls(ca_file="ca.pem", cert_file="client.pem", key_file="client.key")
    targets = PodTargets(bearer_token_file="token", headers={"X-Key": "k"}, tls=tls)
    with FakeApiServer() as server:
        server.put(pod("a", "10.1.2.3", ports=HTTP))
        how = {"namespaces": ["llm"], "targets": targets, "monotonic": lambda: now[0]}
        with watching(server, tmp_path, **how) as running:
            running.sees("llm/a")
            server.close()
            eventually(lambda: not running.watch.reading().up)
            now[0] += 300.0
            [kept] = running.watch.targets()
            assert (kept.bearer_token_file, kept.headers, kept.tls) == ("token", {"X-Key": "k"}, tls)
            now[0] += 1.0
            [old] = running.watch.targets()
            assert old == Target(name="llm/a", url=kept.url, tls=Tls(ca_file="ca.pem"))
            before = running.changes
            eventually(lambda: running.changes > before + 1)

    said = [record.getMessage() for record in caplog.records if "state=old" in record.getMessage()]
    assert len(said) == 1
    assert "they are asked without credentials" in said[0]


def test_a_pod_with_a_mistake_is_left_out_alone(server: FakeApiServer, tmp_path: Path) -> None:
    bad = pod("bad", ports=HTTP, annotations={"brimline.io/engin": "vllm"})
    server.put(pod("a", ports=HTTP), bad)
    with watching(server, tmp_path) as running:
        running.sees("llm/a")
        reading = running.watch.reading()
        assert not reading.up
        assert reading.problem == running.watch.annotation_problem()
        assert (reading.problem or "").startswith("pod llm/bad: annotation brimline.io/engin: unknown;")
        eventually(lambda: server.watching == 1)
        server.put(pod("bad", ports=HTTP))
        running.sees("llm/a", "llm/bad")
        assert running.watch.reading().up


def test_inside_a_cluster_the_service_account_is_used_and_its_token_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue(["127.0.0.1"]).write(tmp_path, "server"))
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    (tmp_path / "token").write_text("a-token")
    # The client has these two paths built in.
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")

    with FakeApiServer(context) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        server.put(pod("a", ports=HTTP))
        with watching(server, tmp_path, kubeconfig=None) as running:
            running.sees("llm/a")
            eventually(lambda: server.watching == 1)
            server.token = "another"
            server.end_watches()
            eventually(lambda: not running.watch.reading().up)
            (tmp_path / "token").write_text("another")
            eventually(lambda: running.watch.reading().up)


def test_without_an_account_it_is_said_what_to_give(tmp_path: Path) -> None:
    with FakeApiServer() as server, watching(server, tmp_path, kubeconfig=str(tmp_path / "none")) as running:
        eventually(lambda: running.watch.is_known)
        reading = running.watch.reading()

    assert not reading.up
    assert reading.success_time is None
    assert "mount a service account's token, or set kubeconfig" in (reading.problem or "")


def test_what_is_no_api_server_is_told(tmp_path: Path) -> None:
    def html(_namespace: str | None, **_parameters: str) -> Any:
        class Answer:
            def stream(self, _amount: int) -> Iterator[bytes]:
                yield b"<html>"

            def close(self) -> None:
                pass

        return Answer()

    watch = PodWatch(NODE, {}, node="gpu-7", open_api=lambda _config: html, first_retry_seconds=0.05)
    watch.start(lambda: None)
    eventually(lambda: watch.is_known)
    watch.stop()

    assert watch.reading().problem == (
        "kubernetes *: the answer is not JSON; is it the API server that is asked?"
    )


def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kubernetes", None)  # as where it is not installed

    with pytest.raises(ConfigError, match=rf"{re.escape(sys.executable)} -m pip install '\.\[kubernetes\]'"):
        open_watch(NODE, {}, {})
