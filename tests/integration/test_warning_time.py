"""The measurement of warning times, against a real Prometheus and against promtool."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from prometheus_server import tool
from scenarios.evaluate import EPOCH, Firing, RuleError, fire, holding_prometheus, query_range, record
from scenarios.remote_write import Samples, SampleTime, time_series, write
from scenarios.rules import Alert, Recording, read_folder
from scenarios.series import Run
from scenarios.stories import SCENARIOS

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "dashboards/generated/rules"

SAMPLE_RULES = """
groups:
  - name: sample
    interval: 30s
    rules:
      - record: gpu:memory_free_bytes:min5m
        expr: >
          brimline_gpu_memory_total_bytes - brimline_gpu_memory_reserved_bytes
          - max_over_time(brimline_gpu_memory_used_peak_bytes[5m])
      - alert: BrimlineVramWillExhaust
        expr: >
          predict_linear(gpu:memory_free_bytes:min5m[30m], 3600) < 0
          and gpu:memory_free_bytes:min5m < 1.5e9
        for: 5m
        labels: {severity: critical}
      - alert: BrimlineHostMemoryLow
        expr: brimline_server_host_memory_used_bytes / brimline_server_host_memory_limit_bytes > 0.9
        for: 5m
        labels: {severity: critical}
      - alert: BrimlineVramAbovePlan
        expr: >
          max by (job, instance, target)
          (brimline_target_gpu_info * on (job, instance, gpu) group_left () brimline_gpu_memory_used_bytes)
          > on (job, instance, target) brimline_predicted_total_memory_high_bytes + 5e8
        for: 5m
        labels: {severity: warning}
"""


@pytest.fixture(scope="module")
def prometheus() -> Iterator[str]:
    with holding_prometheus() as url:
        yield url


def _run(instance: str, minutes: float = 60) -> Run:
    return Run(
        scenario="made-up",
        seed=0,
        instance=instance,
        begin=EPOCH,
        end=EPOCH + 60 * minutes,
        onset=None,
        event=None,
        beyond_plan_seconds=0,
        gpus=(f"GPU-{instance}",),
    )


def _write(url: str, name: str, instance: str, values: Iterable[float | None]) -> None:
    """A series of one value each 15 seconds; None where it is not there, which ends it."""
    samples = Samples()
    was_there = False
    for place, value in enumerate(values):
        time = SampleTime(EPOCH + 15 * place)
        if value is not None:
            samples.add(time, value)
        elif was_there:
            samples.end(time)
        was_there = value is not None
    write(url, [time_series({"__name__": name, "job": "brimline", "instance": instance}, samples)])


def _fired(url: str, alert: Alert, run: Run) -> list[tuple[float, float | None]]:
    """Minutes since the beginning from when to when an alert fired."""
    found, is_stray = fire(url, alert, [run], start=EPOCH, end=run.end)
    assert not is_stray
    return [
        ((firing.start - EPOCH) / 60, None if firing.end is None else (firing.end - EPOCH) / 60)
        for firing in found.get(run.instance, [])
    ]


def test_an_alert_of_a_known_time_fires_then(prometheus: str) -> None:
    """Above its limit from minute 20 to minute 40, and held for five minutes before it fires."""
    _write(prometheus, "known", "a", (float(80 <= place < 160) for place in range(241)))
    alert = Alert(name="A", expr="known > 0.5", interval=30, hold=300)

    assert _fired(prometheus, alert, _run("a")) == [(25, 40)]


def test_a_series_that_vanished_is_gone_at_once(prometheus: str) -> None:
    """Without its end it would be seen for five minutes more."""
    _write(prometheus, "gone", "a", [1.0] * 40 + [None] * 80)

    assert _fired(prometheus, Alert(name="A", expr="gone", interval=15), _run("a", 30)) == [(0, 10)]


def test_a_recorded_series_ends_with_what_it_is_made_of(prometheus: str) -> None:
    _write(prometheus, "source", "a", [1.0] * 40 + [None] * 40 + [2.0] * 40)
    rule = Recording(record="recorded:source", expr="source * 10", interval=30, labels={"made": "yes"})

    record(prometheus, rule, start=EPOCH, end=EPOCH + 1800)

    rows = query_range(prometheus, "recorded:source", start=EPOCH, end=EPOCH + 1770, step=30)
    assert [labels["made"] for labels, _ in rows] == ["yes"]
    minutes = {round((at - EPOCH) / 60, 1): value for at, value in rows[0][1]}
    assert [minute for minute in minutes if 9.5 <= minute < 20] == [9.5]
    assert minutes[9.5] == 10
    assert minutes[20] == 20


def test_an_alert_is_given_to_the_run_of_its_gpu(prometheus: str) -> None:
    samples = Samples()
    samples.add(SampleTime(EPOCH), 1.0)
    write(prometheus, [time_series({"__name__": "by_gpu", "gpu": "GPU-b"}, samples)])

    found, is_stray = fire(
        prometheus, Alert(name="A", expr="by_gpu", interval=15), [_run("b")], start=EPOCH, end=EPOCH + 60
    )

    # One sample, whose end nobody told: it is seen for as long as was asked for.
    assert found == {"b": [Firing("A", "none", EPOCH, EPOCH + 75)]}
    assert not is_stray


def test_an_alert_without_a_run_is_told_apart(prometheus: str) -> None:
    alert = Alert(name="A", expr="vector(1)", interval=15)

    assert fire(prometheus, alert, [_run("a")], start=EPOCH, end=EPOCH + 60) == ({}, True)


def test_a_rule_that_cannot_be_evaluated_says_why(prometheus: str) -> None:
    with pytest.raises(RuleError, match="parse error"):
        query_range(prometheus, "rate(x)", start=EPOCH, end=EPOCH + 60, step=15)


# --- against promtool ---


def _pattern(seed: int) -> list[float | None]:
    """Values that come and go, each for a few scrapes."""
    draw = random.Random(seed)
    values: list[float | None] = []
    while len(values) < 240:
        values += [draw.choice((0.0, 1.0, 1.0, None))] * draw.randint(1, 24)
    return values[:240]


def _notation(values: Iterable[float | None]) -> str:
    """The values as promtool's tests write them."""
    return " ".join("stale" if value is None else f"{value:g}" for value in values)


def _promtool(folder: Path, rules: str, tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    (folder / "rules.yaml").write_text(rules)
    (folder / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": tests})
    )
    return subprocess.run(
        [tool("promtool"), "test", "rules", "tests.yaml"], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("seed", range(4))
def test_alerts_fire_when_promtool_says_so(prometheus: str, tmp_path: Path, seed: int) -> None:
    """Over values that come and go, at every evaluation of an hour: a recording rule, and both holds."""
    rules = (
        "groups:\n- name: a\n  interval: 30s\n  rules:\n"
        f"  - {{record: 'a:x{seed}', expr: 'x{seed} * 2'}}\n"
        f"  - {{alert: A, expr: 'a:x{seed} > 1', for: 2m, keep_firing_for: 90s}}\n"
    )
    values = _pattern(seed)
    (tmp_path / "read").mkdir()
    (tmp_path / "read/rules.yaml").write_text(rules)
    read = read_folder(tmp_path / "read")
    _write(prometheus, f"x{seed}", "a", values)
    run = _run("a", 59.5)

    record(prometheus, read.recordings[0], start=EPOCH, end=run.end)
    fired = _fired(prometheus, read.alerts[0], run)

    assert fired
    labels = {"instance": "a", "job": "brimline"}

    def expected(shift: float) -> list[dict[str, Any]]:
        return [
            {
                "eval_time": f"{step * 30}s",
                "alertname": "A",
                "exp_alerts": [
                    {"exp_labels": labels}
                    for start, end in fired
                    if start + shift <= step / 2 and (end is None or step / 2 < end)
                ],
            }
            for step in range(119)
        ]

    def test(shift: float) -> dict[str, Any]:
        series = f'x{seed}{{job="brimline", instance="a"}}'
        return {
            "interval": "15s",
            "input_series": [{"series": series, "values": _notation(values)}],
            "alert_rule_test": expected(shift),
        }

    agreed = _promtool(tmp_path, rules, [test(0)])
    shifted = _promtool(tmp_path, rules, [test(0.5)])
    assert agreed.returncode == 0, agreed.stdout + agreed.stderr
    assert shifted.returncode != 0


# --- all scenarios ---


def _measured(folder: Path, tmp_path: Path) -> tuple[dict[str, Any], str]:
    output = tmp_path / "measured.json"
    ran = subprocess.run(
        [sys.executable, "tools/measure_warning_time.py", folder, "--seeds", "3", "--json", output],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    document: dict[str, Any] = json.loads(output.read_text())
    return document, ran.stderr


@pytest.mark.long
def test_the_rules_meet_the_bar(tmp_path: Path) -> None:
    """With the rules of this repository; until there are any, with a few of our own that meet it nearly."""
    is_ours = RULES.is_dir()
    folder = RULES
    if not is_ours:
        folder = tmp_path / "rules"
        folder.mkdir()
        (folder / "sample.yaml").write_text(SAMPLE_RULES)

    measured, complaints = _measured(folder, tmp_path)

    assert list(measured) == [scenario.name for scenario in SCENARIOS]
    missed = [line for line in complaints.splitlines() if "not warned" in line or "is critical" in line]
    assert not missed
    for run in measured["host-leak"]["runs"]:
        times = [alert["from"] for alert in run["alerts"] if alert["alert"] == "BrimlineHostMemoryLow"]
        assert times
        assert times[0] < run["event"]
