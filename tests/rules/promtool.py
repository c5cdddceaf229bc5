"""Cases written as test files for `promtool test rules`, and its answer told case by case."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import promql_parser

from brimline.units import write_duration
from brimline_dashboards.alerts import Alert, alerts
from brimline_dashboards.recording import Dcgm, recordings
from brimline_dashboards.rules import ALERT_GROUP, RECORDING_GROUP
from prometheus_server import tool
from rules.page import Key, Page, Value

Json = dict[str, Any]


# --- rules ---


@dataclass(frozen=True)
class RuleSet:
    """Rules that a case is evaluated with: all, or one alert with what it stands on."""

    alerts: tuple[Alert, ...] = field(default_factory=alerts)
    dcgm: Dcgm = field(default_factory=Dcgm)
    records: frozenset[str] | None = None

    def document(self) -> Json:
        """The rule file; of the annotations the summary alone, as promtool compares all that are there."""
        recording = [
            {"record": one.record, "expr": one.expr}
            for one in recordings(self.dcgm)
            if self.records is None or one.record in self.records
        ]
        alerting = [
            {
                "alert": one.name,
                "expr": one.expr,
                "for": write_duration(one.for_seconds),
                "labels": {"severity": one.severity},
                "annotations": {"summary": one.summary},
            }
            for one in self.alerts
        ]
        groups = [{"name": RECORDING_GROUP, "rules": recording}, {"name": ALERT_GROUP, "rules": alerting}]
        return {"groups": [group for group in groups if group["rules"]]}


@cache
def metric_names(expr: str) -> frozenset[str]:
    """Names of all series that an expression selects."""
    found: set[str] = set()
    _select(promql_parser.parse(expr), found)
    return frozenset(found)


def _select(node: Any, found: set[str]) -> None:
    if isinstance(node, promql_parser.VectorSelector):
        found.add(str(node.name))
    for attribute in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(node, attribute, None)
        if inner is not None and not isinstance(inner, str):
            _select(inner, found)
    for inner in getattr(node, "args", None) or ():
        _select(inner, found)


def stands_on(expr: str, dcgm: Dcgm | None = None) -> tuple[frozenset[str], frozenset[str]]:
    """Recorded and scraped series that an expression needs, those of its recordings included."""
    by_record = {one.record: metric_names(one.expr) for one in recordings(dcgm)}
    records: set[str] = set()
    scraped: set[str] = set()
    waiting = list(metric_names(expr))
    while waiting:
        name = waiting.pop()
        if name not in by_record:
            scraped.add(name)
        elif name not in records:
            records.add(name)
            waiting += by_record[name]
    return frozenset(records), frozenset(scraped)


# --- cases ---


@dataclass(frozen=True)
class Firing:
    """The alerts of one name that fire at a minute: labels (but the alert's name) and summary of each."""

    minute: int
    alert: str
    fire: tuple[tuple[Mapping[str, str], str], ...] = ()

    def rendered(self) -> tuple[str, Json]:
        """Section and entry of the test file."""
        expected = [
            {"exp_labels": dict(labels), "exp_annotations": {"summary": summary}}
            for labels, summary in self.fire
        ]
        entry = {"eval_time": f"{self.minute}m", "alertname": self.alert, "exp_alerts": expected}
        return "alert_rule_test", entry


@dataclass(frozen=True)
class Gives:
    """What a query gives at a minute: labels, and the value of each series."""

    minute: int
    expr: str
    samples: tuple[tuple[Mapping[str, str], float], ...] = ()

    def rendered(self) -> tuple[str, Json]:
        """Section and entry of the test file."""
        expected = [{"labels": written_labels(labels), "value": value} for labels, value in self.samples]
        return "promql_expr_test", {
            "expr": self.expr,
            "eval_time": f"{self.minute}m",
            "exp_samples": expected,
        }


Expectation = Firing | Gives


@dataclass(frozen=True)
class Case:
    """Series over time and what is expected of rules. name: said where it fails; unique."""

    name: str
    page: Page
    expectations: tuple[Expectation, ...]
    rules: RuleSet = field(default_factory=RuleSet)
    interval_seconds: int = 60


def nothing_fires(minute: int, *, since: int = 0) -> Gives:
    """No alert has fired from one minute to another."""
    window = write_duration((minute - since) * 60 + 30)
    fired = f'count_over_time(ALERTS{{alertstate="firing"}}[{window}])'
    return Gives(minute, f"count by (alertname, severity, instance, target) ({fired})")


# --- as promtool reads them ---


def written_labels(labels: Mapping[str, str]) -> str:
    """`name{label="value"}`; the name is the label `__name__`."""
    name = labels.get("__name__", "")
    rest = ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items()) if key != "__name__")
    return f"{name}{{{rest}}}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def written_values(values: Sequence[Value]) -> str:
    """A course in promtool's notation; what ends gets the mark of staleness that a scrape would set."""
    words: list[str] = []
    last: Value = None
    for value, run in groupby(values):
        count = len(list(run))
        if value is not None:
            words.append(f"{_number(value)}x{count - 1}" if count > 1 else _number(value))
        else:
            if last is not None:
                words.append("stale")
                count -= 1
            words += [f"_x{count}"] if count else []
        last = value
    return " ".join(words)


def _series(key: Key, values: Sequence[Value]) -> Json:
    name, labels = key
    return {"series": written_labels({"__name__": name, **dict(labels)}), "values": written_values(values)}


def _test(case: Case) -> Json:
    test: Json = {
        "name": case.name,
        "interval": "1m",
        "input_series": [
            _series(key, values)
            for key, values in case.page.series.items()
            if any(value is not None for value in values)
        ],
    }
    for expectation in case.expectations:
        section, entry = expectation.rendered()
        test.setdefault(section, []).append(entry)
    return test


def written(cases: Sequence[Case], folder: Path) -> dict[Path, str]:
    """Test files (JSON, which is YAML) for the cases, one for each; path and case's name."""
    rule_files: dict[bytes, Path] = {}
    files: dict[Path, str] = {}
    for index, case in enumerate(cases):
        text = msgspec.json.encode(case.rules.document())
        if text not in rule_files:
            rule_files[text] = folder / f"rules-{len(rule_files)}.yaml"
            rule_files[text].write_bytes(text)
        path = folder / f"case-{index}.yaml"
        document = {
            "rule_files": [str(rule_files[text])],
            "evaluation_interval": f"{case.interval_seconds}s",
            "group_eval_order": [RECORDING_GROUP, ALERT_GROUP],
            "tests": [_test(case)],
        }
        path.write_bytes(msgspec.json.encode(document))
        files[path] = case.name
    return files


_BEGINS = re.compile(r"^Unit Testing:\s+(\S+)", re.MULTILINE)


def failures(cases: Sequence[Case], folder: Path) -> dict[str, str]:
    """What promtool found wrong, by the case's name; empty where all is well."""
    files = written(cases, folder)
    paths = list(files)
    workers = min(len(paths), os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        outputs = list(pool.map(_run, (paths[number::workers] for number in range(workers))))
    told: dict[str, str] = {}
    for output in outputs:
        pieces = _BEGINS.split(output)
        for path, said in zip(pieces[1::2], pieces[2::2], strict=True):
            if "SUCCESS" not in said:
                told[files.pop(Path(path))] = said.strip()
            else:
                files.pop(Path(path))
    told.update(dict.fromkeys(files.values(), "promtool said nothing of it"))
    return told


def _run(paths: Sequence[Path]) -> str:
    done = subprocess.run(
        [tool("promtool"), "test", "rules", *map(str, paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # in the order in which it is said
        # It collects garbage for a quarter of its time otherwise.
        env={**os.environ, "GOGC": "off", "GOMEMLIMIT": "700MiB"},
        text=True,
        timeout=600,
    )
    return done.stdout
