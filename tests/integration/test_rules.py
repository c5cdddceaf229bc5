"""Recording rules and alerts, evaluated by promtool over pages of exporters, and their files."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from brimline.catalog import BY_NAME
from brimline.demo.gpu_recording import write_recording
from brimline.demo.profiles import MODEL_FOLDER
from brimline.thresholds import ALERTS
from brimline_dashboards.alerts import alerts
from brimline_dashboards.recording import recordings
from brimline_dashboards.rules import files
from exporter_process import running_exporter
from prometheus_server import get_text, tool
from rules import alert_cases, quiet_cases, recording_cases
from rules.page import SCRAPE, full_name, healthy
from rules.promtool import Case, Gives, failures, metric_names, stands_on
from simulated_server import simulated_vllm
from waiting import eventually

GENERATED = Path(__file__).parent.parent.parent / "dashboards/generated/rules"
CAUSES = alert_cases.causes()
FIRING = [cause.case() for cause in CAUSES]
MISSING = [cause.missing() for cause in CAUSES]
IDLE, START = quiet_cases.without_traffic(), quiet_cases.after_start()
OTHERS = [
    *quiet_cases.everyday(),
    *quiet_cases.without_families(),
    *quiet_cases.traps(),
    *quiet_cases.near_thresholds(),
    *quiet_cases.growth(),
    *quiet_cases.slower(),
]
RECORDED = recording_cases.cases()
CASES = [*FIRING, *alert_cases.links(), *MISSING, *IDLE, *START, *OTHERS, *RECORDED]

# What alerts are promised to be there for. Two wait for what no engine exports yet.
PROMISED = [
    "BrimlineExporterDown",
    "BrimlineTargetDown",
    "BrimlineTargetSlow",
    "BrimlineEnginePageIncomplete",
    "BrimlineConfigReloadFailed",
    "BrimlineConfigMismatch",
    "BrimlineGpuUnreadable",
    "BrimlineVramHeadroomLow",
    "BrimlineVramWillExhaust",
    "BrimlineVramAbovePlan",
    "BrimlineVramPlanExceedsGpu",
    "BrimlineVramGrowth",
    "BrimlineAllocatorRetries",
    "BrimlineFragmentationHigh",
    "BrimlineForeignProcessOnGpu",
    "BrimlineHostMemoryLow",
    "BrimlineKvCacheWillSaturate",
    "BrimlineKvCacheSaturated",
    "BrimlineKvCachePreempting",
    "BrimlineKvCachePoolBelowPrediction",
    "BrimlineContextWindowDoesNotFit",
    "BrimlineServerRestartedAfterLowHeadroom",
    "BrimlineThroughputRegression",
    "BrimlineVariantWorse",
]
WAITING = {"BrimlineAllocatorRetries": "retries", "BrimlineFragmentationHigh": "fragment"}

# Series that are not of the exporter's own page.
FOREIGN = {
    "up",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_FB_RESERVED",
    "brimline_ab_gate",  # of `brimline ab watch`
    "brimline_ab_verdict",
}


# --- what promtool says of the cases ---


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with each case, if anything; all are run at once."""
    return failures(CASES, tmp_path_factory.mktemp("promtool"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_rules_do_what_the_case_expects(case: Case, failed: dict[str, str]) -> None:
    assert case.name not in failed, failed[case.name]


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("name", "severity"), [(one.name, one.severity) for one in alerts()])
def test_every_alert_is_tested_firing_idle_starting_resolving_and_without_its_series(
    name: str, severity: str
) -> None:
    own = [cause for cause in CAUSES if (cause.alert, cause.severity) == (name, severity)]

    assert own, "write a Cause in tests/rules/alert_cases.py"
    for cause in own:
        assert cause.fires_at < cause.over_at < cause.page.minutes
    # Idle and starting servers are judged by all alerts that there are.
    for case in (*IDLE, *START):
        assert (name, severity) in {(one.name, one.severity) for one in case.rules.alerts}
    # What it stands on is there to be missing, from one of its cases at least.
    scraped = stands_on(next(one.expr for one in alerts() if (one.name, one.severity) == (name, severity)))[1]
    there = set[str]().union(*(cause.page.names() for cause in own))
    assert {one for one in scraped if not one.startswith("DCGM")} <= there


@pytest.mark.parametrize("record", [one.record for one in recordings()])
def test_every_recorded_series_is_tested(record: str) -> None:
    def cases_of(cases: list[Case]) -> list[str]:
        return [
            case.name
            for case in cases
            for one in case.expectations
            if isinstance(one, Gives) and one.samples and record in metric_names(one.expr)
        ]

    expr = next(one.expr for one in recordings() if one.record == record)
    by_dcgm = [case for case in RECORDED if any(name.startswith("DCGM") for name in case.page.names())]

    assert cases_of(RECORDED)
    if record == "target:memory_exhaustion:seconds":
        return  # it grows from what is recorded by either body
    if any(name.startswith("DCGM") for name in stands_on(expr)[1]):
        assert cases_of(by_dcgm), "write a case with memory from dcgm-exporter"


def test_the_healthy_page_is_one_of_the_exporter() -> None:
    """Families and labels are those of the catalog, and none that a rule uses is left out."""
    page = healthy(1)
    labels: dict[str, set[str]] = {}
    for name, own in page.series:
        labels.setdefault(name, set()).update(key for key, _ in own if key not in SCRAPE)
    for name, own_labels in labels.items():
        if name != "up":
            family = BY_NAME[re.sub("_(sum|count)$", "", name.removeprefix("brimline_"))]
            assert own_labels == set(family.labels), name
    expressions = [*(one.expr for one in alerts()), *(one.expr for one in recordings())]
    used = set[str]().union(*(metric_names(expr) for expr in expressions))
    recorded = {one.record for one in recordings()}

    # Of these no series is there while all is well, or what they are of is not used.
    absent = {full_name(name) for name in ("target_missing_quantities", "discovery_up")}

    assert used - recorded - FOREIGN - absent <= set(labels)


# --- expressions ---


def test_every_series_that_a_rule_uses_is_exported_or_recorded_above_it() -> None:
    recorded: set[str] = set()
    exported = {family.full_name for family in BY_NAME.values() if family.kind != "histogram"}
    for family in BY_NAME.values():
        if family.kind == "histogram":
            exported |= {f"{family.full_name}_{part}" for part in ("sum", "count", "bucket")}
    for recording in recordings():
        unknown = metric_names(recording.expr) - exported - recorded - FOREIGN
        assert not unknown, f"{recording.record}: {unknown}"
        recorded.add(recording.record)
    for alert in alerts():
        unknown = metric_names(alert.expr) - exported - recorded - FOREIGN
        assert not unknown, f"{alert.name}: {unknown}"


def test_recorded_series_are_named_by_level_metric_and_operation() -> None:
    names = [one.record for one in recordings()]

    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"(target|gpu|exporter|variant|ab):[a-z_]+:[a-z0-9]+", name)


def _binary_operations(node: Any) -> Iterator[Any]:
    if isinstance(node, promql_parser.BinaryExpr):
        yield node
    for attribute in ("expr", "lhs", "rhs"):
        inner = getattr(node, attribute, None)
        if inner is not None and not isinstance(inner, str):
            yield from _binary_operations(inner)
    for inner in getattr(node, "args", None) or ():
        yield from _binary_operations(inner)


def test_every_alert_compares() -> None:
    """An alert without a comparison fires for as long as its series is there."""
    for alert in alerts():
        operations = [str(one.op) for one in _binary_operations(promql_parser.parse(alert.expr))]
        assert {"<", "<=", ">", ">=", "==", "unless"} & set(operations), alert.name


# --- the list of alerts ---


def test_every_promised_alert_is_there_unless_it_waits_for_its_families() -> None:
    assert list(ALERTS) == [name for name in PROMISED if name not in WAITING]
    assert {alert.name for alert in alerts()} == set(ALERTS)


@pytest.mark.parametrize("waiting", WAITING)
def test_an_alert_waits_only_while_its_families_are_not_exported(waiting: str) -> None:
    assert not [name for name in BY_NAME if WAITING[waiting] in name], f"write {waiting}, and its tests"


# --- the files ---


def _rules(text: str) -> list[dict[str, Any]]:
    document = yaml.safe_load(text)
    groups = document["spec"]["groups"] if document.get("kind") == "PrometheusRule" else document["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_committed_files_are_what_the_code_writes() -> None:
    written = files()

    assert {path.name for path in GENERATED.iterdir()} == set(written)
    for name, text in written.items():
        assert (GENERATED / name).read_text() == text, f"{name}: run `brimline rules -o {GENERATED}`"
        assert text.startswith("# Generated by `brimline rules`; do not edit.\n")


def test_promtool_finds_nothing_to_say_of_the_files(tmp_path: Path) -> None:
    spec = yaml.safe_load(files()["brimline-prometheusrule.yaml"])["spec"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    paths = [
        GENERATED / "brimline-recording.yaml",
        GENERATED / "brimline-alerts.yaml",
        tmp_path / "spec.yaml",
    ]

    done = subprocess.run(
        [tool("promtool"), "check", "rules", "--lint=all", "--lint-fatal", *paths],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_the_prometheus_rule_holds_the_plain_files_rules() -> None:
    written = files()

    plain = [*_rules(written["brimline-recording.yaml"]), *_rules(written["brimline-alerts.yaml"])]

    assert _rules(written["brimline-prometheusrule.yaml"]) == plain


def test_grafanas_alerts_are_prometheus_alerts() -> None:
    written = files()
    mine = [
        (rule["alert"], rule["labels"]["severity"], rule["expr"], rule["for"])
        for rule in _rules(written["brimline-alerts.yaml"])
    ]

    theirs = []
    for rule in _rules(written["brimline-grafana-alerting.yaml"]):
        [query] = [part for part in rule["data"] if part["refId"] == "query"]
        name, _, severity = rule["title"].removesuffix(")").partition(" (")
        assert severity == rule["labels"]["severity"]
        theirs.append((name, severity, query["model"]["expr"], rule["for"]))

    assert theirs == mine


def test_grafanas_rules_have_uids_of_their_own_and_its_own_words() -> None:
    text = files()["brimline-grafana-alerting.yaml"]
    rules = _rules(text)
    uids = [rule["uid"] for rule in rules]

    assert len(set(uids)) == len(uids)
    for rule in rules:
        assert re.fullmatch(r"[a-z-]{1,40}", rule["uid"])
        assert rule["condition"] in {part["refId"] for part in rule["data"]}
        assert rule["noDataState"] == "OK"
    # `$value` is Prometheus' alone: Grafana's holds the text of all values.
    assert not re.search(r"\$value\b", text)
    assert "$values.query.Value" in text


def test_every_alert_says_what_is_what_to_do_and_where_to_look() -> None:
    for rule in _rules(files()["brimline-alerts.yaml"]):
        said = rule["annotations"]
        assert set(said) == {"summary", "description", "runbook_url", "dashboard_url"}
        assert len(said["summary"]) < 160
        assert len(said["description"]) > 80
        assert said["runbook_url"].endswith(f"#{rule['alert'].lower()}")
        assert re.match(r"/d/brimline-(fleet|server|gpu|ab|exporter)", said["dashboard_url"])
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_every_runbook_link_has_its_section() -> None:
    runbook = (GENERATED.parent.parent.parent / "docs/runbook.md").read_text()
    headings = re.findall(r"^## (\w+)$", runbook, re.MULTILINE)

    assert headings == list(ALERTS)


# --- our own page ---

# What rules use and this page may lack: Prometheus makes `up`, a recording of GPUs knows no processes, and a
# server's main memory may have no limit.
NOT_ON_THE_PAGE = {"up"} | {
    full_name(name)
    for name in (
        "gpu_process_memory_bytes",
        "server_host_memory_limit_bytes",
        "server_host_memory_used_bytes",
    )
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page of an exporter with two servers on two replayed GPUs."""
    folder = tmp_path_factory.mktemp("exporter")
    write_recording(folder / "gpu.jsonl")
    gpus = json.loads((folder / "gpu.jsonl").read_text().splitlines()[0])["gpus"]
    with simulated_vllm("short-context") as short, simulated_vllm("long-context") as long:
        targets = [
            {
                "name": name,
                "url": one.url,
                "model": str(MODEL_FOLDER),
                "gpus": [gpu["uuid"]],
                "experiment": "ctx",
                "launch": {"max_model_len": 32768},
            }
            for name, one, gpu in zip(("chat-a", "chat-b"), (short, long), gpus, strict=True)
        ]
        config = {"gpu": {"backend": "replay", "path": str(folder / "gpu.jsonl")}, "targets": targets}
        with running_exporter(folder, yaml.safe_dump(config)) as running:
            yield eventually(
                lambda: (
                    (text := get_text(f"{running.url}/metrics"))
                    and text.count("brimline_memory_headroom_bytes{") == 2
                    and text
                ),
            )


def test_promtool_finds_nothing_to_say_of_our_page(page: str) -> None:
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=page, capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_healthy_page_of_the_tests_is_like_one_of_the_exporter(page: str) -> None:
    """What a real page has, the tests' page has with the same labels, and what rules use is on both."""
    real = {(name, frozenset(re.findall(r'(\w+)="', labels))) for name, labels in
            re.findall(r"^(brimline_\w+)(?:\{(.*)\})? ", page, re.MULTILINE)}  # fmt: skip
    mine = {(name, frozenset(key for key, _ in own if key not in SCRAPE)) for name, own in healthy(1).series}
    used = set[str]().union(*(stands_on(alert.expr)[1] for alert in alerts()))

    assert used & {name for name, _ in mine} - {name for name, _ in real} <= NOT_ON_THE_PAGE
    assert {one for one in real if one[0] in {name for name, _ in mine}} <= mine
