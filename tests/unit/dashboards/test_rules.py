"""Rules as files: what options and thresholds change in them."""

from __future__ import annotations

import re
from typing import Any

import promql_parser
import pytest
import yaml

from brimline.thresholds import ALERTS, Thresholds
from brimline_dashboards.alerts import alerts
from brimline_dashboards.queries import quoted
from brimline_dashboards.recording import Dcgm, recordings
from brimline_dashboards.rules import Options, files, plain_files

# A value that is not the default, as a configuration would say it, and as it stands in an expression.
OTHER = {
    "duration": ("17m", "1020"),
    "bytes": ("3GiB", "3221225472"),
    "ratio": (0.42, "0.42"),
    "number": (17, "17"),
    "count": (17, "17"),
    "pattern": ("sidecars-[0-9]+", "sidecars-[0-9]+"),
}
# Where that would put the warning behind the critical alert.
IN_ORDER = {
    ("BrimlineVramHeadroomLow", "critical_headroom"): ("300MiB", "314572800"),
    ("BrimlineVramWillExhaust", "warning_within"): ("7h", "25200"),
    ("BrimlineHostMemoryLow", "critical_ratio"): (0.99, "0.99"),
}


def _rules(options: Options | None = None) -> list[dict[str, Any]]:
    document = yaml.safe_load(files(options)["brimline-alerts.yaml"])
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(("alert", "key"), [(alert, key) for alert, keys in ALERTS.items() for key in keys])
def test_every_threshold_changes_its_alert_and_no_other(alert: str, key: str) -> None:
    said, written = IN_ORDER.get((alert, key), OTHER[ALERTS[alert][key].kind])

    after = alerts(Thresholds({alert: {key: said}}))

    changed = [(old, new) for old, new in zip(alerts(), after, strict=True) if old != new]
    # The threshold of saturation also ends the warning before it.
    also = {"BrimlineKvCacheWillSaturate"} if (alert, key) == ("BrimlineKvCacheSaturated", "usage") else set()
    assert {new.name for _, new in changed} == {alert} | also
    for old, new in changed:
        assert (new.name, new.severity) == (old.name, old.severity)
        if key == "for" or key.endswith("_for"):
            assert new.for_seconds == 1020
            assert new.expr == old.expr
        else:
            assert new.for_seconds == old.for_seconds
            assert written in new.expr
            assert written not in old.expr
        promql_parser.parse(new.expr)
    severity = key.partition("_")[0]
    if severity in ("warning", "critical"):
        assert {new.severity for _, new in changed} == {severity}


def test_an_alert_that_is_switched_off_is_in_no_file() -> None:
    off = Options(thresholds=Thresholds({"BrimlineTargetDown": {"enabled": False}}))

    for name, text in files(off).items():
        assert "BrimlineTargetDown" not in text, name
    assert len(_rules(off)) == len(_rules()) - 2


def test_links_lead_where_the_options_say() -> None:
    options = Options(runbook_url="https://wiki.internal/brimline", grafana_url="https://grafana.internal/")

    for rule in _rules(options):
        said = rule["annotations"]
        assert said["runbook_url"] == f"https://wiki.internal/brimline#{rule['alert'].lower()}"
        assert said["dashboard_url"].startswith("https://grafana.internal/d/brimline-")


def test_the_prometheus_rule_carries_namespace_and_labels() -> None:
    options = Options(namespace="monitoring", labels={"release": "kube-prometheus-stack"})

    metadata = yaml.safe_load(files(options)["brimline-prometheusrule.yaml"])["metadata"]
    plain = yaml.safe_load(files()["brimline-prometheusrule.yaml"])["metadata"]

    assert metadata == {
        "name": "brimline",
        "namespace": "monitoring",
        "labels": {"app.kubernetes.io/name": "brimline", "release": "kube-prometheus-stack"},
    }
    assert "namespace" not in plain


def test_grafanas_rules_ask_the_named_data_source() -> None:
    document = yaml.safe_load(files(Options(datasource_uid="mimir"))["brimline-grafana-alerting.yaml"])

    asked = {
        part["datasourceUid"]
        for group in document["groups"]
        for rule in group["rules"]
        for part in rule["data"]
    }

    assert asked == {"mimir", "__expr__"}


def test_a_prometheus_that_is_away_makes_one_error_in_grafana() -> None:
    document = yaml.safe_load(files()["brimline-grafana-alerting.yaml"])
    rules = [rule for group in document["groups"] for rule in group["rules"]]

    assert {rule["execErrState"] for rule in rules} == {"OK", "Error"}
    assert [rule["title"] for rule in rules if rule["execErrState"] == "Error"] == [
        "BrimlineExporterDown (critical)"
    ]


def test_without_that_alert_another_tells_grafanas_errors() -> None:
    off = Options(thresholds=Thresholds({"BrimlineExporterDown": {"enabled": False}}))
    document = yaml.safe_load(files(off)["brimline-grafana-alerting.yaml"])
    states = [rule["execErrState"] for group in document["groups"] for rule in group["rules"]]

    assert states.count("Error") == 1


def test_labels_of_dcgm_exporter_stand_in_the_recordings_alone() -> None:
    dcgm = Dcgm(namespace_label="exported_namespace", pod_label="exported_pod")
    before, after = files(), files(Options(dcgm=dcgm))

    assert after["brimline-alerts.yaml"] == before["brimline-alerts.yaml"]
    assert 'exported_pod!=""' in after["brimline-recording.yaml"]
    assert "exported" not in before["brimline-recording.yaml"]
    for recording in recordings(dcgm):
        promql_parser.parse(recording.expr)


def test_the_plain_files_are_among_all_files() -> None:
    assert plain_files() == {name: text for name, text in files().items() if name in plain_files()}


def test_a_pattern_is_written_as_promql_text() -> None:
    assert quoted('a"b\\c\nd') == '"a\\"b\\\\c\\nd"'
    chosen = Thresholds({"BrimlineExporterDown": {"job": 'sidecars\\.".+"'}})

    [warning] = [
        one for one in alerts(chosen) if (one.name, one.severity) == ("BrimlineExporterDown", "warning")
    ]

    promql_parser.parse(warning.expr)
    assert 'up{job=~"sidecars\\\\.\\".+\\""}' in warning.expr


def test_alert_texts_quote_no_name_that_a_server_chooses() -> None:
    """Only those of the configuration, of Prometheus and of the driver."""
    texts = [text for rule in _rules() for text in rule["annotations"].values()]
    quoted_labels = {label for text in texts for label in re.findall(r"\$labels\.(\w+)", text)}

    assert "target" in quoted_labels
    assert quoted_labels <= {"target", "instance", "job", "gpu", "experiment", "candidate"}
