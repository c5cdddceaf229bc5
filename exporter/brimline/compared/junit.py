"""A comparison as JUnit XML: what CI systems show as tests."""

from __future__ import annotations

import xml.etree.ElementTree as ET  # writes only
from datetime import UTC, datetime

from brimline.ab.result import Comparison, MetricResult, Report, StaticResult
from brimline.compared import wording
from brimline.verdicts import WORDS


def as_junit(report: Report) -> str:
    """A test case for each gate: worse fails, inconclusive is skipped; a guard in the way is an error.

    What passes in a report that is not for a gate is skipped, too.
    """
    root = ET.Element("testsuites", name="brimline ab")
    for comparison in report.comparisons:
        root.append(_suite(report, comparison))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(report: Report, comparison: Comparison) -> ET.Element:
    name = wording.plain(f"{report.experiment}: {comparison.candidate} beside {report.baseline}")
    suite = ET.Element("testsuite", name=name, time="0")
    suite.set("timestamp", datetime.fromtimestamp(report.end, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    for guard in wording.red(comparison):
        case = ET.SubElement(suite, "testcase", classname=name, name=wording.plain(f"guard {guard.name}"))
        error = ET.SubElement(case, "error", message=wording.plain(guard.detail), type="not_comparable")
        error.text = wording.plain(guard.cure)
    decided = bool(wording.red(comparison))
    for metric in comparison.metrics:
        if metric.gate:
            decided = True
            told = (
                f"{wording.plain(metric.title)}: {wording.difference(metric.delta_ratio)} "
                f"({wording.interval(metric.lower_ratio, metric.upper_ratio) or 'no interval'}), "
                f"margin {wording.margin(metric)}: {wording.verdict_of_metric(metric, comparison)}"
            )
            _case(suite, name, metric, told, report.no_gate)
    for static in comparison.static:
        if static.gate:
            decided = True
            told = (
                f"{wording.plain(static.title)}: {wording.difference(static.observed_delta_ratio)}, "
                f"predicted {wording.difference(static.predicted_delta_ratio)}: "
                f"{wording.verdict_of_static(static)}"
            )
            _case(suite, name, static, told, report.no_gate)
    if not decided:
        # A suite without a test would be shown as one that passed.
        case = ET.SubElement(suite, "testcase", classname=name, name="verdict", time="0")
        said = wording.plain("; ".join(comparison.reasons) or WORDS[comparison.verdict])
        ET.SubElement(case, "skipped", message=said)
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("tests", str(len(suite.findall("testcase"))))
    return suite


def _case(
    suite: ET.Element, classname: str, row: MetricResult | StaticResult, told: str, no_gate: str | None
) -> None:
    case = ET.SubElement(suite, "testcase", classname=classname, name=wording.plain(row.name), time="0")
    match row.verdict:
        case "worse":
            failure = ET.SubElement(case, "failure", message=told, type="worse")
            failure.text = "\n".join(map(wording.plain, row.notes))
        case "inconclusive" | "not_comparable":
            ET.SubElement(case, "skipped", message=told)
        case _ if no_gate is not None:
            ET.SubElement(case, "skipped", message=f"{told}; {wording.plain(no_gate)}")
        case _:
            ET.SubElement(case, "system-out").text = told
