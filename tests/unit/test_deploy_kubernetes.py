"""Kustomize's overlays and the Helm chart, as the real programs render them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from brimline.ab.experiment import parse as parse_experiment
from brimline.config import Config, GpuSource, Seconds, parse, parse_targets
from brimline_dashboards.recording import Dcgm
from brimline_dashboards.rules import Options, files
from deployment import DEPLOY, REPOSITORY, Json, ask_peers, built, documents, of_kind, only
from prometheus_server import tool
from restricted_pods import containers, violations

CHART = DEPLOY / "helm/brimline"
BOARDS = sorted((REPOSITORY / "dashboards/generated").glob("*.json"))
# The oldest and the newest Kubernetes whose schemas there are.
VERSIONS = ("1.25.0", "1.37.0")
MODES = ("sidecar", "sidecar-nvml", "daemonset")
LATER = 1_796_630_400.0  # a week after the example of an experiment began
NO_SCHEMA = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}  # of Prometheus' operator
LARGEST_CONFIG_MAP = 1 << 20
SERVER_SIDE = "kubectl apply --server-side -n monitoring -k dashboards"
DOCUMENT = (REPOSITORY / "docs/deploy.md").read_text()

EVERYTHING: Json = {
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "boards": {"enabled": True},
}
VALUES: dict[str, Json] = {
    **{mode: {"mode": mode, **EVERYTHING} for mode in MODES},
    "monitoring": {"mode": "monitoring", **EVERYTHING},
    "defaults": {},
    "protected": {
        "mode": "daemonset",
        "serviceMonitor": {"enabled": True, "endpoint": {"scheme": "https"}},
        "webConfig": {"existingSecret": "brimline-web"},
        "runAsUser": None,
        "runtimeClassName": "",
    },
    "changed": {
        "mode": "monitoring",
        "prometheusRule": {
            "enabled": True,
            "labels": {"release": "kube-prometheus-stack"},
            "disabled": ["BrimlineTargetSlow"],
            "runbookUrl": "https://wiki.internal/runbook",
            "grafanaUrl": "https://grafana.internal/",
            "dcgmPodLabel": "pod",
            "dcgmNamespaceLabel": "namespace",
        },
    },
    "everywhere": {"mode": "daemonset", "discovery": {"namespaces": ["*"], "selector": "app=vllm"}},
    "listener": {"mode": "sidecar-nvml", "server": {"gpus": "listener"}},
    "undiscovered": {"mode": "daemonset", "discovery": {"enabled": False}},
    "annotated": {
        "mode": "sidecar",
        "scrapeAnnotations": True,
        "server": {"name": "code", "port": 9000, "args": ["/models/it's mine", "-tp", "2"]},
        "config": {"scrape_timeout": "3s"},
    },
}

HOSTILE: dict[str, tuple[Json, str]] = {
    "a mode that is none": ({"mode": "sidekick"}, "mode"),
    "TLS of which the PodMonitor knows nothing": (
        {"webConfig": {"existingSecret": "brimline-web"}, "podMonitor": {"enabled": True}},
        "podMonitor.endpoint: webConfig.existingSecret puts TLS or users on the port",
    ),
    "TLS of which the ServiceMonitor knows nothing": (
        {"webConfig": {"existingSecret": "brimline-web"}, "serviceMonitor": {"enabled": True}},
        "set serviceMonitor.endpoint.scheme to https",
    ),
    "TLS of which annotations say nothing": (
        {"webConfig": {"existingSecret": "brimline-web"}, "scrapeAnnotations": True},
        "scrapeAnnotations: webConfig.existingSecret",
    ),
    "a key that is none": ({"privileged": True}, "privileged"),
    "a key of the container's security": ({"securityContext": {"privileged": True}}, "securityContext"),
    "YAML in the image": ({"image": {"repository": "brimline\n  privileged: true"}}, "image"),
    "YAML in the tag": ({"image": {"tag": "1\n- name: evil"}}, "tag"),
    "a digest that is none": ({"image": {"digest": "sha256:12"}}, "digest"),
    "root": ({"runAsUser": 0}, "runAsUser"),
    "a GPU of its own": ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "nvidia.com/gpu"),
    "YAML in the server's name": ({"server": {"name": "chat\n---\nkind: Secret"}}, "name"),
    "no command to be wrapped": ({"mode": "sidecar-nvml", "server": {"command": []}}, "command"),
    "a port that is none": ({"server": {"port": 70000}}, "port"),
    "an address that is none": ({"listen": "everywhere"}, "listen"),
    "PromQL in a label": ({"prometheusRule": {"dcgmPodLabel": 'pod!="" or vector(1)'}}, "dcgmPodLabel"),
    "a template in a link": ({"prometheusRule": {"runbookUrl": "https://x/{{ . }}"}}, "runbookUrl"),
    "a link that is none": ({"prometheusRule": {"runbookUrl": "wiki/runbook"}}, "runbookUrl"),
    "a link with a fragment": ({"prometheusRule": {"runbookUrl": "https://x/y#z"}}, "runbookUrl"),
    "a label that is none": ({"podLabels": {"a b": "c"}}, "a b"),
    "a key of the configuration": ({"config": {"lissen": "x"}}, "lissen"),
    "nobody may scrape": ({"networkPolicy": {"from": []}}, "from"),
    "a listener of a user that is not known": (
        {
            "mode": "sidecar-nvml",
            "server": {"gpus": "listener", "securityContext": {"runAsGroup": None}},
        },
        "runAsGroup",
    ),
    "an alert that there is not": (
        {"prometheusRule": {"enabled": True, "disabled": ["BrimlineNothing"]}},
        "no alert BrimlineNothing",
    ),
    "two ways to be scraped": (
        {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        "twice",
    ),
}


class _Strict(yaml.SafeLoader):
    """Refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice: {keys}"
        return super().construct_mapping(node, deep=deep)


@pytest.fixture(scope="module")
def helm() -> dict[str, list[Json]]:
    """The objects of every rendering of the chart."""
    answers = ask_peers(
        [
            {"ask": "render", "chart": str(CHART), "values": values, "namespace": "inference"}
            for values in VALUES.values()
        ]
    )
    rendered = {}
    for name, answer in zip(VALUES, answers, strict=True):
        assert "error" not in answer, f"{name}: {answer}"
        text = "\n---\n".join(text for file, text in answer["manifests"].items() if file.endswith(".yaml"))
        rendered[name] = [each for each in yaml.load_all(text, _Strict) if each]
    return rendered


@pytest.fixture(scope="module")
def kustomize() -> dict[str, list[Json]]:
    """The objects of every overlay, and those of the boards and rules."""
    overlays = {mode: built(DEPLOY / "kubernetes/overlays" / mode) for mode in MODES}
    watch = built(DEPLOY / "kubernetes/ab-watch")
    return {**overlays, "monitoring": built(REPOSITORY / "dashboards"), "ab-watch": watch}


@pytest.fixture(scope="module")
def renderings(helm: dict[str, list[Json]], kustomize: dict[str, list[Json]]) -> dict[str, list[Json]]:
    """All of them."""
    return {f"helm {name}": found for name, found in helm.items()} | {
        f"kustomize {name}": found for name, found in kustomize.items()
    }


def workload(objects: list[Json]) -> Json:
    """The one Deployment or DaemonSet."""
    [found] = [*of_kind(objects, "Deployment"), *of_kind(objects, "DaemonSet")]
    return found


def pod(objects: list[Json]) -> Json:
    found: Json = workload(objects)["spec"]["template"]["spec"]
    return found


def exporter(objects: list[Json]) -> Json:
    """The exporter's container."""
    [found] = [container for container in containers(pod(objects)) if container["name"] == "brimline"]
    return found


def configuration(objects: list[Json]) -> Config:
    """What the mounted ConfigMap says, with the targets of its other file."""
    [volume] = [volume for volume in pod(objects)["volumes"] if volume["name"] == "brimline"]
    files_by_name = dict(only(objects, "ConfigMap", name=volume["configMap"]["name"])["data"])
    config = parse(files_by_name.pop("brimline.yaml"))
    found = [
        target for name in config.targets_files for target in parse_targets(files_by_name[name], name).targets
    ]
    assert set(config.targets_files) == set(files_by_name)
    assert not config.targets
    return msgspec.structs.replace(config, targets=found)


def test_kubernetes_own_schemas_refuse_nothing(renderings: dict[str, list[Json]]) -> None:
    written = {json.dumps(each, sort_keys=True) for found in renderings.values() for each in found}
    objects = [json.loads(text) for text in written]
    broken = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dada": {}}

    *answers, control = ask_peers(
        [{"ask": "validate", "version": version, "objects": objects} for version in VERSIONS]
        + [{"ask": "validate", "version": VERSIONS[-1], "objects": [broken]}]
    )

    for answer in answers:
        assert answer["refused"] == []
        assert {name.partition("/")[0] for name in answer["unknown"]} <= NO_SCHEMA
    assert control["refused"]


def test_every_pod_is_restricted(renderings: dict[str, list[Json]]) -> None:
    pods = {
        name: pod(found)
        for name, found in renderings.items()
        if of_kind(found, "Deployment") or of_kind(found, "DaemonSet")
    }

    assert len(pods) >= 2 * len(MODES)
    assert {name: violations(one) for name, one in pods.items()} == {name: [] for name in pods}


def test_the_standard_would_refuse_what_is_not() -> None:
    bare = {
        "hostPID": True,
        "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        "containers": [{"name": "c", "ports": [{"hostPort": 1}]}],
    }

    assert len(violations(bare)) == 7


def test_the_exporter_asks_for_no_gpu_and_no_token_and_writes_nothing(
    renderings: dict[str, list[Json]],
) -> None:
    for name, found in renderings.items():
        if not (of_kind(found, "Deployment") or of_kind(found, "DaemonSet")):
            continue
        own = exporter(found)
        assert "nvidia.com/gpu" not in json.dumps(own), name
        assert own["securityContext"]["readOnlyRootFilesystem"] is True
        assert set(own["resources"]["limits"]) == {"memory"}  # a limit of CPU would only slow scrapes down
        assert set(own["resources"]["requests"]) == {"cpu", "memory"}
        assert all(mount.get("readOnly") for mount in own["volumeMounts"])
        assert pod(found)["automountServiceAccountToken"] is bool(of_kind(found, "ServiceAccount"))


@pytest.mark.parametrize("by", ["helm", "kustomize"])
def test_the_node_s_exporter_may_see_pods_and_nothing_else(
    by: str, renderings: dict[str, list[Json]]
) -> None:
    found = renderings[f"{by} daemonset"]
    [role], [binding] = of_kind(found, "Role"), of_kind(found, "RoleBinding")
    account = only(found, "ServiceAccount")
    pods = configuration(found).kubernetes

    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "inference"}
    ]
    assert pod(found)["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert pods is not None
    assert (pods.node, pods.namespaces) == ("${NODE_NAME}", [role["metadata"]["namespace"]])
    [node] = [entry for entry in exporter(found)["env"] if entry["name"] == "NODE_NAME"]
    assert node["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_all_namespaces_take_a_cluster_role(helm: dict[str, list[Json]]) -> None:
    found = helm["everywhere"]
    pods = configuration(found).kubernetes

    assert not of_kind(found, "Role")
    assert only(found, "ClusterRole")["rules"][0]["verbs"] == ["list", "watch"]
    assert only(found, "ClusterRoleBinding")["roleRef"]["kind"] == "ClusterRole"
    assert pods is not None
    assert (pods.namespaces, pods.selector) == ([], "app=vllm")
    assert configuration(helm["undiscovered"]).kubernetes is None


@pytest.mark.parametrize("by", ["helm", "kustomize"])
def test_each_gpu_is_told_by_one_exporter(by: str, renderings: dict[str, list[Json]]) -> None:
    """Without access by dcgm-exporter, with it by the sidecar of its server, and by the node's own."""
    visible, configured = {}, {}
    for mode in MODES:
        found = renderings[f"{by} {mode}"]
        environment = {entry["name"]: entry.get("value") for entry in exporter(found)["env"]}
        visible[mode] = environment["NVIDIA_VISIBLE_DEVICES"]
        configured[mode] = configuration(found).gpu
        assert pod(found).get("runtimeClassName") == (None if mode == "sidecar" else "nvidia")

    assert visible == {"sidecar": "void", "sidecar-nvml": "all", "daemonset": "all"}
    assert configured["sidecar"].backend == "none"
    assert (configured["sidecar-nvml"].backend, configured["sidecar-nvml"].devices) == ("nvml", "targets")
    assert (configured["daemonset"].backend, configured["daemonset"].devices) == ("nvml", "all")


@pytest.mark.parametrize("by", ["helm", "kustomize"])
def test_the_sidecar_takes_its_gpus_from_the_file_that_its_server_writes(
    by: str, renderings: dict[str, list[Json]]
) -> None:
    found = renderings[f"{by} sidecar-nvml"]
    [server] = [each for each in containers(pod(found)) if each["name"] != "brimline"]
    [target] = configuration(found).targets
    volumes = {volume["name"]: volume for volume in pod(found)["volumes"]}

    assert isinstance(target.gpus, GpuSource)
    assert target.gpus.file == "/run/gpus/gpus.txt"
    assert server["command"][:4] == [
        "/bin/sh",
        "-c",
        'nvidia-smi -L > /run/gpus/gpus.txt && exec "$@"',
        "server",
    ]
    for container in (server, exporter(found)):
        assert {"name": "gpus", "mountPath": "/run/gpus"}.items() <= dict(
            next(mount for mount in container["volumeMounts"] if mount["name"] == "gpus")
        ).items()
    assert "emptyDir" in volumes["gpus"]


def test_a_sidecar_that_looks_for_the_listening_process_is_of_its_user(
    helm: dict[str, list[Json]],
) -> None:
    found = helm["listener"]
    [server] = [each for each in containers(pod(found)) if each["name"] == "server"]
    [target] = configuration(found).targets
    users = {
        (each["securityContext"]["runAsUser"], each["securityContext"]["runAsGroup"])
        for each in containers(pod(found))
    }

    assert users == {(2000, 2000)}
    assert pod(found)["shareProcessNamespace"] is True
    assert isinstance(target.gpus, GpuSource)
    assert target.gpus.listener
    assert server["command"] == ["vllm", "serve"]
    assert "shareProcessNamespace" not in pod(helm["sidecar-nvml"])


def test_the_wrapped_command_writes_the_file_and_becomes_the_server(
    helm: dict[str, list[Json]], tmp_path: Path
) -> None:
    [server] = [each for each in containers(pod(helm["sidecar-nvml"])) if each["name"] == "server"]
    line = "GPU 0: NVIDIA H100 (UUID: GPU-1)"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{line}'\n")
    (tmp_path / "vllm").write_text('#!/bin/sh\necho "$$ $@"\n')
    for name in ("nvidia-smi", "vllm"):
        (tmp_path / name).chmod(0o755)
    command = [word.replace("/run/gpus", str(tmp_path)) for word in server["command"]]

    with subprocess.Popen(
        [*command, *server["args"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        said = process.communicate(timeout=60)[0]

    assert (tmp_path / "gpus.txt").read_text() == f"{line}\n"
    # The same process: a signal to the container reaches the server.
    assert said.split() == [str(process.pid), "serve", *server["args"]]


@pytest.mark.parametrize("by", ["helm", "kustomize"])
@pytest.mark.parametrize("mode", ["sidecar", "sidecar-nvml"])
def test_the_sidecar_knows_the_server_as_it_is_started(
    by: str, mode: str, renderings: dict[str, list[Json]]
) -> None:
    found = renderings[f"{by} {mode}"]
    [server] = [each for each in containers(pod(found)) if each["name"] != "brimline"]
    [target] = configuration(found).targets
    words = [*server["command"], *server["args"]]

    assert target.launch_command == " ".join(words[4:] if mode == "sidecar-nvml" else words)
    assert target.port == server["ports"][0]["containerPort"]
    models = [mount for mount in exporter(found)["volumeMounts"] if mount["name"] == "models"]
    assert [mount["mountPath"] for mount in models] == ["/models"]


def test_words_of_a_command_are_quoted(helm: dict[str, list[Json]]) -> None:
    [target] = configuration(helm["annotated"]).targets

    assert target.launch_command == "vllm serve '/models/it'\\''s mine' -tp 2"
    assert (target.name, target.url) == ("code", "http://127.0.0.1:9000")
    assert configuration(helm["annotated"]).scrape_timeout == Seconds(3.0)


@pytest.mark.parametrize("mode", MODES)
def test_chart_and_overlays_run_the_same_container(
    mode: str, helm: dict[str, list[Json]], kustomize: dict[str, list[Json]]
) -> None:
    ours, theirs = exporter(helm[mode]), exporter(kustomize[mode])

    for key in ("image", "livenessProbe", "readinessProbe", "ports", "resources", "securityContext"):
        assert ours.get(key) == theirs.get(key), key
    assert ours["args"][:5] == theirs["args"]
    assert {entry["name"]: entry for entry in ours["env"]} == {
        entry["name"]: entry for entry in theirs["env"]
    }


def test_only_the_node_s_exporter_is_probed_for_readiness(renderings: dict[str, list[Json]]) -> None:
    for by in ("helm", "kustomize"):
        assert "readinessProbe" not in exporter(renderings[f"{by} sidecar"])
        assert exporter(renderings[f"{by} daemonset"])["readinessProbe"]["httpGet"]["path"] == "/-/ready"
    assert "tcpSocket" in exporter(renderings["helm protected"])["livenessProbe"]


def _may_reach(policy: Json, port: int, *, from_monitoring: bool) -> bool:
    for rule in policy["spec"]["ingress"]:
        if "from" in rule and not from_monitoring:
            continue
        for one in rule["ports"]:
            if one["protocol"] == "TCP" and one["port"] <= port <= one.get("endPort", one["port"]):
                return True
    return False


@pytest.mark.parametrize("by", ["helm", "kustomize"])
@pytest.mark.parametrize("mode", MODES)
def test_only_prometheus_reaches_the_exporter_and_all_reach_the_server(
    by: str, mode: str, renderings: dict[str, list[Json]]
) -> None:
    [policy] = of_kind(renderings[f"{by} {mode}"], "NetworkPolicy")
    labels = workload(renderings[f"{by} {mode}"])["spec"]["template"]["metadata"]["labels"]

    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert _may_reach(policy, 10778, from_monitoring=True)
    assert not _may_reach(policy, 10778, from_monitoring=False)
    for port in (1, 8000, 10777, 10779, 65535):
        assert _may_reach(policy, port, from_monitoring=False) == (mode != "daemonset")


@pytest.mark.parametrize("by", ["helm", "kustomize"])
@pytest.mark.parametrize("mode", MODES)
def test_prometheus_scrapes_the_exporter_once(by: str, mode: str, renderings: dict[str, list[Json]]) -> None:
    found = renderings[f"{by} {mode}"]
    [monitor] = of_kind(found, "PodMonitor")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    template = workload(found)["spec"]["template"]["metadata"]

    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["labels"].items()
    assert [port["name"] for port in exporter(found)["ports"]] == [endpoint["port"]]
    assert not of_kind(found, "ServiceMonitor")
    assert "prometheus.io/scrape" not in template.get("annotations", {})
    # BrimlineExporterDown goes by the job, which the operator makes of these two.
    assert "brimline" in monitor["metadata"]["name"]


def test_a_service_stands_for_the_service_monitor(helm: dict[str, list[Json]]) -> None:
    [monitor] = of_kind(helm["protected"], "ServiceMonitor")
    [service] = of_kind(helm["protected"], "Service")
    [endpoint] = monitor["spec"]["endpoints"]

    assert endpoint["scheme"] == "https"
    assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert not of_kind(helm["defaults"], "Service")


def test_a_new_configuration_starts_no_server_anew(renderings: dict[str, list[Json]]) -> None:
    for by in ("helm", "kustomize"):
        sidecar = workload(renderings[f"{by} sidecar"])["spec"]["template"]
        assert "checksum/config" not in json.dumps(sidecar)
        [volume] = [each for each in sidecar["spec"]["volumes"] if each["name"] == "brimline"]
        assert volume["configMap"]["name"] == "brimline"


def test_the_boards_fit(renderings: dict[str, list[Json]]) -> None:
    for name in ("helm monitoring", "kustomize monitoring"):
        maps = of_kind(renderings[name], "ConfigMap")
        assert len(maps) == len(BOARDS)
        for one in maps:
            [(file, text)] = one["data"].items()
            assert json.loads(text) == json.loads((REPOSITORY / "dashboards/generated" / file).read_text())
            assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert len(json.dumps(one)) < LARGEST_CONFIG_MAP
    # A plain `kubectl apply` writes the object into one of its annotations, of 256 KiB: it is nearly full.
    assert SERVER_SIDE in (REPOSITORY / "dashboards/kustomization.yaml").read_text()
    assert SERVER_SIDE in DOCUMENT


def test_a_release_fits_into_the_secret_that_helm_keeps_it_in(
    helm: dict[str, list[Json]], tmp_path: Path
) -> None:
    [answer] = ask_peers([{"ask": "package", "chart": str(CHART), "destination": str(tmp_path)}])
    chart = base64.b64encode(Path(answer["archive"]).read_bytes())
    manifest = base64.b64encode(gzip.compress(json.dumps(helm["sidecar"]).encode()))

    assert len(chart) + len(manifest) < LARGEST_CONFIG_MAP * 3 // 4


def _rules(objects: list[Json]) -> list[Json]:
    [rule] = of_kind(objects, "PrometheusRule")
    groups: list[Json] = rule["spec"]["groups"]
    return groups


@pytest.mark.parametrize(
    ("name", "options", "without"),
    [
        ("monitoring", Options(dcgm=Dcgm("exported_namespace", "exported_pod")), ""),
        (
            "changed",
            Options(runbook_url="https://wiki.internal/runbook", grafana_url="https://grafana.internal"),
            "BrimlineTargetSlow",
        ),
    ],
)
def test_the_chart_writes_rules_as_the_command_does(
    name: str, options: Options, without: str, helm: dict[str, list[Json]]
) -> None:
    [rule] = documents(files(options)["brimline-prometheusrule.yaml"])
    groups = rule["spec"]["groups"]
    for group in groups:
        group["rules"] = [one for one in group["rules"] if one.get("alert", "-") != without]

    assert _rules(helm[name]) == groups


def test_promtool_reads_the_rules(renderings: dict[str, list[Json]], tmp_path: Path) -> None:
    for number, name in enumerate(("helm monitoring", "helm changed", "kustomize monitoring")):
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump({"groups": _rules(renderings[name])}))

    done = subprocess.run(
        [tool("promtool"), "check", "rules", *sorted(tmp_path.glob("*.yaml"))],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == 3


def test_the_watch_is_where_argo_and_flagger_ask_for_it(renderings: dict[str, list[Json]]) -> None:
    found = renderings["kustomize ab-watch"]
    [service], [config_map] = of_kind(found, "Service"), of_kind(found, "ConfigMap")
    [port] = service["spec"]["ports"]
    address = f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc:{port['port']}"
    labels = workload(found)["spec"]["template"]["metadata"]["labels"]

    experiment = parse_experiment(config_map["data"]["experiment.yaml"], "experiment.yaml", now=LATER)

    assert experiment.name == "kv-dtype"
    assert address in (DEPLOY / "argo-rollouts/analysistemplate.yaml").read_text()
    assert (
        f"{address}/api/v1/confirm/{experiment.name}" in (DEPLOY / "flagger/metrictemplate.yaml").read_text()
    )
    assert service["spec"]["selector"].items() <= labels.items()
    # Prometheus takes the watch for no exporter's pod.
    assert labels["brimline"] != "exporter"


def test_helm_finds_nothing_to_say() -> None:
    answers = ask_peers(
        [
            {"ask": "lint", "chart": str(CHART), "values": values}
            for values in (VALUES["sidecar-nvml"], VALUES["daemonset"])
        ]
    )

    for answer in answers:
        assert [
            finding for finding in answer["findings"]["messages"] if "icon is recommended" not in str(finding)
        ] == []


@pytest.fixture(scope="module")
def refusals() -> dict[str, Json]:
    answers = ask_peers(
        [
            {"ask": "render", "chart": str(CHART), "values": values, "namespace": "inference"}
            for values, _ in HOSTILE.values()
        ]
    )
    return dict(zip(HOSTILE, answers, strict=True))


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_values_are_refused_by_name(what: str, refusals: dict[str, Json]) -> None:
    assert HOSTILE[what][1] in refusals[what].get("error", "")


def test_every_value_has_its_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def missing(value: Any, part: Json, place: str) -> list[str]:
        if "$ref" in part:
            part = schema["definitions"][part["$ref"].rpartition("/")[2]]
        if not isinstance(value, dict) or "properties" not in part:
            return []
        return [
            text
            for key, inner in value.items()
            for text in (
                missing(inner, part["properties"][key], f"{place}.{key}")
                if key in part["properties"]
                else [f"{place}.{key}"]
            )
        ]

    assert missing(values, schema, "") == []
    # Helm puts `global` there; all else stands in values.yaml, with what it means.
    assert set(schema["properties"]) == {*values, "global"}
    keys = {field.name for field in msgspec.structs.fields(Config)}
    assert set(schema["properties"]["config"]["properties"]) == keys


def test_a_chart_of_somebody_else_takes_the_sidecar(helm: dict[str, list[Json]], tmp_path: Path) -> None:
    """What docs/deploy.md shows of it, in a chart that has ours as a dependency."""
    [shown] = re.findall(r"```yaml\n(      labels:.*?)```", DOCUMENT, re.DOTALL)
    parent = tmp_path / "inference"
    (parent / "templates").mkdir(parents=True)
    (parent / "charts").mkdir()
    (parent / "charts/brimline").symlink_to(CHART)
    (parent / "Chart.yaml").write_text(
        "apiVersion: v2\nname: inference\nversion: 1.0.0\n"
        "dependencies: [{name: brimline, version: 0.1.0, repository: ''}]\n"
    )
    (parent / "templates/server.yaml").write_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: own}\nspec:\n  selector: {}\n"
        f"  template:\n    metadata:\n{shown}"
    )
    own = {"mode": "sidecar-nvml", "server": {"create": False}}

    [answer] = ask_peers(
        [{"ask": "render", "chart": str(parent), "values": {"brimline": own}, "namespace": "inference"}]
    )

    assert "error" not in answer
    objects = [
        each
        for file, text in answer["manifests"].items()
        if file.endswith(".yaml")
        for each in documents(text)
    ]
    assert exporter(objects) == exporter(helm["sidecar-nvml"])
    assert configuration(objects) == configuration(helm["sidecar-nvml"])
    labels = workload(objects)["spec"]["template"]["metadata"]["labels"]
    [policy] = of_kind(objects, "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == labels


COMMANDS = [
    line.replace("\\\n", " ")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    if not language
    for line in re.split(r"(?<!\\)\n", block)
]


def test_the_documented_commands_of_helm_render() -> None:
    """As they are written, with what they set."""
    questions = []
    for command in (line for line in COMMANDS if line.startswith("helm ")):
        words = shlex.split(command)
        sets = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
        _, _, name, chart, _, namespace = words[:6]
        questions.append(
            {
                "ask": "render",
                "chart": str(REPOSITORY / chart),
                "sets": sets,
                "values": {},
                "name": name,
                "namespace": namespace,
            }
        )

    answers = ask_peers(questions)

    assert len(questions) == 3
    assert [answer.get("error") for answer in answers] == [None] * len(questions)


def test_the_documented_overlays_are_there() -> None:
    named = [command.split()[-1] for command in COMMANDS if command.startswith("kubectl apply")]

    assert [name for name in named if not (REPOSITORY / name / "kustomization.yaml").is_file()] == []
    assert {Path(name).name for name in named} == {"ab-watch", "dashboards", *MODES}
