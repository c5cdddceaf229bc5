"""`brimline rules` as a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from brimline_dashboards.rules import files

NAMES = [
    "brimline-recording.yaml",
    "brimline-alerts.yaml",
    "brimline-prometheusrule.yaml",
    "brimline-grafana-alerting.yaml",
]


def rules(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "brimline", "rules", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_it_writes_the_files_and_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "rules"

    done = rules("-o", folder)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(folder / name) for name in NAMES]
    assert {path.name: path.read_text() for path in folder.iterdir()} == files()


def test_options_reach_the_files(tmp_path: Path) -> None:
    config = tmp_path / "brimline.yaml"
    config.write_text(
        "alerts:\n  BrimlineVramHeadroomLow: {warning_headroom: 2GiB, warning_for: 15m}\ntargets: []\n"
    )

    done = rules(
        "-o",
        tmp_path,
        "--config",
        config,
        "--runbook-url",
        "https://wiki.internal/runbook",
        "--grafana-url",
        "https://grafana.internal",
        "--namespace",
        "monitoring",
        "--label",
        "release=prometheus",
        "--label",
        "team=llm",
        "--datasource-uid",
        "mimir",
        "--dcgm-pod-label",
        "exported_pod",
        "--dcgm-namespace-label",
        "exported_namespace",
    )

    assert done.returncode == 0, done.stderr
    texts = {name: (tmp_path / name).read_text() for name in NAMES}
    [warning] = [
        rule
        for rule in yaml.safe_load(texts["brimline-alerts.yaml"])["groups"][0]["rules"]
        if rule["alert"] == "BrimlineVramHeadroomLow" and rule["labels"]["severity"] == "warning"
    ]
    assert warning["for"] == "15m"
    assert "< 2147483648" in warning["expr"]
    assert warning["annotations"]["runbook_url"] == "https://wiki.internal/runbook#brimlinevramheadroomlow"
    assert warning["annotations"]["dashboard_url"].startswith("https://grafana.internal/d/brimline-server?")
    metadata = yaml.safe_load(texts["brimline-prometheusrule.yaml"])["metadata"]
    assert metadata["namespace"] == "monitoring"
    assert metadata["labels"] == {
        "app.kubernetes.io/name": "brimline",
        "release": "prometheus",
        "team": "llm",
    }
    assert "datasourceUid: mimir" in texts["brimline-grafana-alerting.yaml"]
    assert 'exported_pod!=""' in texts["brimline-recording.yaml"]
    assert '"exported_namespace", "(.+)"' in texts["brimline-recording.yaml"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--label", "release"], "brimline: --label 'release': write NAME=VALUE"),
        (["--label", "=x"], "brimline: --label '': write NAME=VALUE"),
        (["--label", "release="], "brimline: --label release=: no label of Kubernetes; write NAME=VALUE"),
        (["--label", "my team=llm"], "brimline: --label my team=llm: no label of Kubernetes"),
        (["--namespace", "Bad Name"], "brimline: --namespace 'Bad Name' is no namespace of Kubernetes"),
        (["--namespace", ""], "brimline: --namespace '' is no namespace of Kubernetes"),
        (["--datasource-uid", ""], "brimline: --datasource-uid '' is no uid of Grafana"),
        (["--datasource-uid", "a b"], "brimline: --datasource-uid 'a b' is no uid of Grafana"),
        (["--grafana-url", "foo"], "brimline: --grafana-url 'foo' is no address"),
        (
            ["--grafana-url", "grafana.internal:3000"],
            "brimline: --grafana-url 'grafana.internal:3000' is no ",
        ),
        (["--grafana-url", "https://[x"], "brimline: --grafana-url 'https://[x' is no address"),
        (
            ["--grafana-url", "https://admin:hunter2@grafana.internal"],
            "brimline: --grafana-url (not shown) holds a user name, which every alert would show; write it ",
        ),
        (["--runbook-url", "https:/u:hunter2@host"], "brimline: --runbook-url (not shown) is no address"),
        (
            ["--runbook-url", ""],
            "brimline: --runbook-url '' is no address; write it with its scheme, as https:",
        ),
        (["--runbook-url", "wiki/runbook.md"], "brimline: --runbook-url 'wiki/runbook.md' is no address"),
        (
            ["--runbook-url", "ftp://wiki/runbook"],
            "brimline: --runbook-url 'ftp://wiki/runbook' is no address",
        ),
        (
            ["--runbook-url", "javascript:alert(1)"],
            "brimline: --runbook-url 'javascript:alert(1)' is no address",
        ),
        (
            ["--runbook-url", "https://wiki/a\nb"],
            "brimline: --runbook-url 'https://wiki/a\\nb' is no address",
        ),
        (
            ["--runbook-url", "https://wiki/{{ $value }}"],
            "brimline: --runbook-url 'https://wiki/{{ $value }}' is no address",
        ),
        (
            ["--runbook-url", "https://wiki/{{$externalURL}}"],
            "brimline: --runbook-url 'https://wiki/{{$externalURL}}' holds {: it would be a template",
        ),
        (
            ["--runbook-url", "https://wiki/runbook#gpu"],
            "brimline: --runbook-url 'https://wiki/runbook#gpu' has a part behind #, where each alert has",
        ),
        (["--dcgm-pod-label", "a-b"], "brimline: --dcgm-pod-label 'a-b' is no label of Prometheus"),
        (["--dcgm-namespace-label", ""], "brimline: --dcgm-namespace-label '' is no label of Prometheus"),
        (["--config", "/no/such.yaml"], "brimline: /no/such.yaml: "),
    ],
)
def test_a_bad_option_is_told_and_nothing_is_written(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = rules("-o", tmp_path / "rules", *arguments)

    assert done.returncode == 2
    assert done.stderr.startswith(told)
    assert not (tmp_path / "rules").exists()


def test_a_bad_threshold_is_told_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "brimline.yaml"
    config.write_text("targets: []\nalerts:\n  BrimlineTargetSlow: {for: soon}\n")

    done = rules("-o", tmp_path / "rules", "--config", config)

    assert done.returncode == 2
    assert done.stderr == (
        f"brimline: {config}:3: alerts.BrimlineTargetSlow.for: 'soon' is not a duration; "
        "write it with a unit, such as 250ms, 5s or 1m30s\n"
    )


def test_no_folder_is_told() -> None:
    done = rules()

    assert done.returncode == 2
    assert "--output" in done.stderr


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = rules("-o", tmp_path / "file" / "rules")

    assert done.returncode == 2
    assert done.stderr == f"brimline: -o {tmp_path}/file/rules: cannot be written (Not a directory)\n"


def test_a_folder_that_cannot_be_written_is_told() -> None:
    done = rules("-o", "/proc/self/fd/rules")

    assert done.returncode == 2
    assert done.stderr.startswith("brimline: -o /proc/self/fd/rules: cannot be written (")
