"""Minutes of warning, false alarms, and the tables of both."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scenarios.evaluate import Firing, Measured, Outcome
from scenarios.series import Run
from scenarios.stories import BY_NAME, SCENARIOS
from scenarios.warning_time import (
    StoryError,
    check_story,
    false_alarms,
    measured_lines,
    minutes_ahead,
    misses,
    scenario_lines,
    warned,
)

ROOT = Path(__file__).parent.parent.parent


def _run(
    scenario: str = "slow-leak",
    *,
    onset: float | None = 600,
    event: float | None = 6000,
    beyond_plan_seconds: float = 3600,
) -> Run:
    return Run(
        scenario=scenario,
        seed=0,
        instance="a",
        begin=0,
        end=7000,
        onset=onset,
        event=event,
        beyond_plan_seconds=beyond_plan_seconds,
        gpus=(),
    )


def _ahead(*firings: tuple[float, float | None]) -> float | None:
    fired = tuple(Firing("BrimlineVramGrowth", "warning", start, end) for start, end in firings)
    return minutes_ahead(Outcome(_run(), fired)).get(("VramGrowth", "warning"))


def test_warning_counts_from_the_alert_to_the_event() -> None:
    assert _ahead((4800, None)) == 20
    assert _ahead((4800, 5400)) == 20


def test_what_fires_at_the_event_or_later_is_no_warning() -> None:
    assert _ahead((6000, None)) is None


def test_what_was_over_before_the_onset_is_no_warning() -> None:
    assert _ahead((100, 600)) is None


def test_what_began_before_the_onset_counts_from_there() -> None:
    assert _ahead((100, None)) == 90


def test_an_alert_may_come_and_go() -> None:
    assert _ahead((1800, 2400), (4800, 5400)) == 70


def test_after_an_hour_of_silence_an_alert_is_forgotten() -> None:
    assert _ahead((700, 800)) is None
    assert _ahead((700, 800), (5000, None)) == pytest.approx(1000 / 60)


def test_in_a_healthy_run_every_alert_is_a_false_one() -> None:
    firing = Firing("BrimlineVramGrowth", "warning", 700, None)

    assert false_alarms(Outcome(_run("idle-night", onset=None, event=None), (firing,))) == [firing]
    assert false_alarms(Outcome(_run(), (firing,))) == []
    assert false_alarms(Outcome(_run(onset=800), (firing,))) == [firing]


def test_only_expected_alerts_warn() -> None:
    firings = (
        Firing("BrimlineTargetSlow", "critical", 1200, None),
        Firing("BrimlineVramGrowth", "warning", 3000, None),
    )

    times = warned(BY_NAME["slow-leak"], Measured((Outcome(_run(), firings),), frozenset()))

    assert times.any_severity == (50,)
    assert times.critical == (0,)
    assert times.by_alert["TargetSlow", "critical"] == (80,)


def test_the_bar_is_missed_by_late_warnings_and_by_critical_false_alarms() -> None:
    late = Outcome(_run(), (Firing("BrimlineVramGrowth", "warning", 5700, None),))
    false = Outcome(
        _run("idle-night", onset=None, event=None), (Firing("BrimlineVramGrowth", "critical", 5, 9),)
    )

    found = misses(
        {"slow-leak": Measured((late,), frozenset()), "idle-night": Measured((false,), frozenset())}
    )

    assert found == [
        "slow-leak: not warned 10 minutes ahead in seeds [0]",
        "idle-night: VramGrowth is critical in 1 healthy runs",
    ]


def test_a_run_without_its_event_is_no_story() -> None:
    with pytest.raises(StoryError, match="its event did not happen"):
        check_story(BY_NAME["slow-leak"], [Outcome(_run(event=None), ())])
    with pytest.raises(StoryError, match="beyond its plan for 60 s only"):
        check_story(BY_NAME["slow-leak"], [Outcome(_run(beyond_plan_seconds=60), ())])


def test_tables_name_every_scenario() -> None:
    named = {line.split(" | ")[0].strip("| ") for line in scenario_lines()}

    assert {scenario.name for scenario in SCENARIOS} <= named


def test_measured_tables_hold_minutes_and_false_alarms() -> None:
    outcome = Outcome(_run(), (Firing("BrimlineVramGrowth", "critical", 4800, None),))
    false = Outcome(
        _run("idle-night", onset=None, event=None), (Firing("BrimlineVramGrowth", "warning", 5, 9),)
    )

    lines = list(
        measured_lines(
            {
                "slow-leak": Measured((outcome,), frozenset()),
                "idle-night": Measured((false,), frozenset()),
            }
        )
    )

    assert "| slow-leak | out of memory | **1 of 1** | 20 | 20 | 1 of 1 | 20 | 20 | – |" in lines
    assert "| slow-leak | `VramGrowth` | critical | 1 of 1 | 20 | 20 |" in lines
    assert "| idle-night | 1 | – | – | `VramGrowth` 1 |" in lines


def test_the_document_lists_the_scenarios_of_the_code() -> None:
    checked = subprocess.run(
        [sys.executable, "tools/measure_warning_time.py", "--list", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert checked.returncode == 0, checked.stderr


def test_the_measured_tables_of_the_document_are_of_these_scenarios() -> None:
    text = (ROOT / "docs/alerts.md").read_text()
    begin = text.find("<!-- Generated by tools/measure_warning_time.py --write")
    measured = text[begin : text.find("<!-- End of the times. -->")] if begin >= 0 else ""

    named = set(re.findall(r"^\| ([a-z][a-z0-9-]+) \|", measured, re.MULTILINE))

    assert not measured or named == {scenario.name for scenario in SCENARIOS}
