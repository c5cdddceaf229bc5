"""Rule files are read, ordered and held as Prometheus does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.rules import Alert, Episode, Recording, episodes, names_in, ordered, read_folder, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("0s", 0), ("15s", 15), ("1h30m", 5400), ("500ms", 0.5), ("1d", 86400)]
)
def test_durations_are_those_of_prometheus(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "1.5h", "m", "5 m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds_of(text)


def test_names_are_not_looked_for_in_strings_and_comments() -> None:
    found = names_in('sum by (job) (rate(a_total{x="b_total"}[5m])) # c_total')

    assert {"a_total", "sum", "job"} <= found
    assert not {"b_total", "c_total"} & found


def _recording(record: str, expr: str) -> Recording:
    return Recording(record=record, expr=expr, interval=30)


def test_a_rule_comes_after_those_it_reads() -> None:
    rules = [_recording("a:c", "a:b + 1"), _recording("a:b", "rate(a:a[5m])"), _recording("a:a", "x")]

    assert [rule.record for rule in ordered(rules)] == ["a:a", "a:b", "a:c"]


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="in a circle: a:a, a:b"):
        ordered([_recording("a:a", "a:b"), _recording("a:b", "a:a")])


def _fired(pattern: str, *, hold: float = 0, keep: float = 0) -> list[tuple[float, float | None]]:
    """Episodes of an alert that holds where the pattern has a cross; one evaluation each 30 seconds."""
    found = episodes((mark == "x" for mark in pattern), start=0, interval=30, hold=hold, keep=keep)
    return [(episode.start, episode.end) for episode in found]


def test_without_for_an_alert_fires_at_once() -> None:
    assert _fired("..x..x") == [(60, 90), (150, None)]


def test_for_is_counted_from_the_first_evaluation_that_holds() -> None:
    assert _fired("..xxxxx", hold=60) == [(120, None)]
    assert _fired("..xx...", hold=60) == []


def test_one_evaluation_without_it_ends_a_pending_alert() -> None:
    assert _fired("xxxx.xxxxxx", hold=120) == [(270, None)]


def test_a_firing_alert_is_kept_for_a_while() -> None:
    assert _fired("xx.x....x", keep=60) == [(0, 180), (240, None)]
    assert _fired("xx......x", keep=60) == [(0, 120), (240, None)]


def test_a_pending_alert_is_not_kept() -> None:
    assert _fired("x.x.x", hold=30, keep=300) == []


def test_a_folder_is_read_with_intervals_and_labels(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "groups:\n- name: a\n  interval: 15s\n  rules:\n"
        "  - {record: a:b, expr: x, labels: {l: 1}}\n"
        "  - {alert: A, expr: 'a:b > 1', for: 2m, keep_firing_for: 1m, labels: {severity: critical}}\n"
        "- name: b\n  rules: [{alert: B, expr: up == 0}]\n"
    )

    rules = read_folder(tmp_path)

    assert rules.recordings == (Recording(record="a:b", expr="x", interval=15, labels={"l": "1"}),)
    assert rules.alerts == (
        Alert(name="A", expr="a:b > 1", interval=15, hold=120, keep=60, labels={"severity": "critical"}),
        Alert(name="B", expr="up == 0", interval=60),
    )
    assert [alert.severity for alert in rules.alerts] == ["critical", "none"]


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("{alert: A, expr: x, labels: {gpu: '{{ $labels.gpu }}'}}", "templates"),
        ("{alert: A, expr: 'ALERTS{alertname=\"B\"}'}", "read alerts"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, rule: str, complaint: str) -> None:
    (tmp_path / "a.yaml").write_text(f"groups: [{{name: a, rules: [{rule}]}}]\n")

    with pytest.raises(ValueError, match=complaint):
        read_folder(tmp_path)


def test_a_folder_without_rules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rules in no files"):
        read_folder(tmp_path)


def test_other_forms_of_the_same_rules_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("groups: [{name: a, rules: [{alert: A, expr: x}]}]\n")
    (tmp_path / "b.yaml").write_text("apiVersion: 1\ngroups: [{name: a, rules: [{uid: x}]}]\n")
    (tmp_path / "c.yaml").write_text("apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n")

    assert [alert.name for alert in read_folder(tmp_path).alerts] == ["A"]


def test_an_episode_is_open_while_it_lasts() -> None:
    assert episodes([True], start=5, interval=30, hold=0, keep=0) == [Episode(5, None)]
