"""A comparison as JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from brimline.ab.inference import Verdict
from brimline.ab.result import Report
from brimline.compared import as_junit
from reports import comparison, hostile, metric, not_comparable, report


def suite(shown: Report) -> ET.Element:
    [found] = ET.fromstring(as_junit(shown)).findall("testsuite")  # noqa: S314 - our own
    return found


def test_there_is_one_case_for_each_gate() -> None:
    assert [case.get("name") for case in suite(report()).findall("testcase")] == ["inter_token_latency"]


@pytest.mark.parametrize(
    ("verdict", "tag"), [("worse", "failure"), ("inconclusive", "skipped"), ("pass", "system-out")]
)
def test_a_verdict_is_what_its_word_means_to_a_ci(verdict: Verdict, tag: str) -> None:
    found = suite(report(comparison(metrics=(metric(verdict=verdict),))))

    [case] = found.findall("testcase")
    [child] = list(case)
    assert child.tag == tag
    assert found.get("failures") == str(int(tag == "failure"))
    assert found.get("skipped") == str(int(tag == "skipped"))


def test_what_passes_without_being_for_a_gate_is_skipped() -> None:
    found = suite(report(no_gate="short blocks: not for a gate"))

    [skipped] = found.findall("testcase/skipped")
    assert "short blocks: not for a gate" in skipped.get("message", "")
    worse = suite(report(comparison(metrics=(metric(verdict="worse"),)), no_gate="short blocks"))
    assert worse.get("failures") == "1"


def test_without_any_gate_there_is_a_test_that_did_not_run() -> None:
    nothing = comparison(
        verdict="inconclusive",
        metrics=(metric(gate=False),),
        static=(),
        reasons=("no gate has anything to compare",),
    )

    found = suite(report(nothing))

    assert (found.get("tests"), found.get("skipped")) == ("1", "1")
    [skipped] = found.findall("testcase/skipped")
    assert skipped.get("message") == "no gate has anything to compare"


def test_a_guard_in_the_way_is_an_error() -> None:
    found = suite(not_comparable())

    [error] = found.findall("testcase/error")
    assert (error.get("message"), error.text) == ("H100 beside A100", "run both variants on one kind of card")
    assert (found.get("errors"), found.get("tests")) == ("1", "2")


def test_hostile_names_leave_it_valid() -> None:
    found = suite(hostile())

    assert found.find("testcase/failure") is not None
    assert "\x1b" not in as_junit(hostile())
