"""How long before its event each run was warned, what warned falsely, and the tables of both."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scenarios.evaluate import Firing, Measured, Outcome
from scenarios.stories import BY_NAME, EVENTS, SCENARIOS, Scenario

PREFIX = "Brimline"
# The bar: growth beyond the predicted high that lasts so long is to be warned of so early, in every seed.
BEYOND_SECONDS = 1800.0
AHEAD_MINUTES = 10.0
# Silence after which an alert no longer warns of what comes.
FORGOTTEN_SECONDS = 3600.0


class StoryError(Exception):
    """A run that is not the story it should be."""


def short_name(alert: str) -> str:
    """An alert's name without the prefix that all have."""
    return alert.removeprefix(PREFIX)


def minutes_ahead(outcome: Outcome) -> dict[tuple[str, str], float]:
    """Minutes from each alert to the event, by its short name and severity.

    Only what fires between the onset, when what leads to the event begins, and the event is a warning of it;
    what began before counts from the onset on. An alert may come and go; where it was silent for more than an
    hour, what was before is forgotten.
    """
    run = outcome.run
    if run.event is None or run.onset is None:
        return {}
    found: dict[tuple[str, str], float] = {}
    for firing in sorted(outcome.firings, key=lambda firing: firing.end or math.inf, reverse=True):
        key = short_name(firing.alert), firing.severity
        heard_until = run.event - 60 * found.get(key, 0.0)
        end = math.inf if firing.end is None else firing.end
        if firing.start < run.event and end > run.onset and end >= heard_until - FORGOTTEN_SECONDS:
            found[key] = max(found.get(key, 0.0), (run.event - max(firing.start, run.onset)) / 60)
    return found


def false_alarms(outcome: Outcome) -> list[Firing]:
    """Alerts for nothing: all of a healthy run, and those that fire before anything is wrong in another."""
    onset = outcome.run.onset
    return [firing for firing in outcome.firings if onset is None or firing.start < onset]


def check_story(scenario: Scenario, outcomes: Iterable[Outcome]) -> None:
    """Raises StoryError where a run lacks its event, or the growth that is said of it."""
    for outcome in outcomes:
        run = outcome.run
        where = f"{scenario.name}, seed {run.seed}"
        if (run.event is None) != (scenario.event is None):
            raise StoryError(f"{where}: its event did not happen")
        if scenario.grows_beyond_plan and run.beyond_plan_seconds < BEYOND_SECONDS:
            raise StoryError(f"{where}: beyond its plan for {run.beyond_plan_seconds:.0f} s only")


@dataclass(frozen=True, slots=True)
class Warned:
    """Minutes of warning in each run of a scenario, 0 for none, by its expected alerts."""

    any_severity: tuple[float, ...]
    critical: tuple[float, ...]
    by_alert: Mapping[tuple[str, str], tuple[float, ...]]

    def in_time(self) -> int:
        """Runs that were warned as early as the bar wants."""
        return sum(minutes >= AHEAD_MINUTES for minutes in self.any_severity)


def warned(scenario: Scenario, measured: Measured) -> Warned:
    """How long before its event each run of the scenario was warned."""
    runs = [minutes_ahead(outcome) for outcome in measured.outcomes]
    keys = sorted({key for run in runs for key in run})
    expected = [key for key in keys if key[0] in scenario.alerts]

    def longest(run: Mapping[tuple[str, str], float], wanted: Iterable[tuple[str, str]]) -> float:
        return max((run.get(key, 0.0) for key in wanted), default=0.0)

    critical = [key for key in expected if key[1] == "critical"]
    return Warned(
        any_severity=tuple(longest(run, expected) for run in runs),
        critical=tuple(longest(run, critical) for run in runs),
        by_alert={key: tuple(run.get(key, 0.0) for run in runs) for key in keys},
    )


def _runs_with(outcomes: Iterable[Outcome], severities: Sequence[str]) -> Counter[str]:
    """Runs in which each alert of such severities fired for nothing."""
    counted: Counter[str] = Counter()
    for outcome in outcomes:
        counted.update(
            {short_name(firing.alert) for firing in false_alarms(outcome) if firing.severity in severities}
        )
    return counted


def misses(measured: Mapping[str, Measured]) -> list[str]:
    """Where the bar is missed, a sentence each."""
    found = []
    for name, each in measured.items():
        scenario = BY_NAME[name]
        if scenario.grows_beyond_plan:
            minutes = warned(scenario, each).any_severity
            late = [o.run.seed for o, m in zip(each.outcomes, minutes, strict=True) if m < AHEAD_MINUTES]
            if late:
                found.append(f"{name}: not warned {AHEAD_MINUTES:g} minutes ahead in seeds {late}")
        if scenario.event is None:
            for alert, count in sorted(_runs_with(each.outcomes, ("critical",)).items()):
                found.append(f"{name}: {alert} is critical in {count} healthy runs")
    return found


def as_document(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """All that was measured, as JSON: for each scenario its runs, with alerts in minutes since they began."""

    def minute(run_begin: float, at: float | None) -> float | None:
        return None if at is None else round((at - run_begin) / 60, 2)

    return {
        name: {
            "unattributed": sorted(each.unattributed),
            "runs": [
                {
                    "seed": outcome.run.seed,
                    "minutes": minute(outcome.run.begin, outcome.run.end),
                    "onset": minute(outcome.run.begin, outcome.run.onset),
                    "event": minute(outcome.run.begin, outcome.run.event),
                    "alerts": [
                        {
                            "alert": firing.alert,
                            "severity": firing.severity,
                            "from": minute(outcome.run.begin, firing.start),
                            "to": minute(outcome.run.begin, firing.end),
                        }
                        for firing in outcome.firings
                    ],
                }
                for outcome in each.outcomes
            ],
        }
        for name, each in measured.items()
    }


# --- tables ---


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*titles: str) -> list[str]:
    return [_row(*titles), _row(*("---" for _ in titles))]


def _alerts(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "–"


def scenario_lines() -> Iterator[str]:
    """The table of what is told, without what came of it."""
    yield from _head("scenario", "what happens", "event", "alerts that ought to warn")
    for scenario in SCENARIOS:
        if scenario.event is not None:
            long = " (beyond the plan for half an hour)" if scenario.grows_beyond_plan else ""
            event = f"{EVENTS[scenario.event]}{long}"
            yield _row(scenario.name, scenario.about, event, _alerts(scenario.alerts))
    yield ""
    yield from _head("healthy scenario", "what happens", "warnings that may fire")
    for scenario in SCENARIOS:
        if scenario.event is None:
            yield _row(scenario.name, scenario.about, _alerts(scenario.alerts))


def _minutes(values: Sequence[float]) -> tuple[str, str]:
    return f"{min(values):.0f}", f"{statistics.median(values):.0f}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"`{name}` {count}" for name, count in sorted(counts.items())) or "–"


def measured_lines(measured: Mapping[str, Measured]) -> Iterator[str]:
    """The tables of what came of the scenarios."""
    runs = max(len(each.outcomes) for each in measured.values())
    yield f"Minutes from the first alert that ought to warn to the event, of {runs} runs each; 0: no warning."
    yield ""
    yield from _head(
        "scenario",
        "event",
        f"{AHEAD_MINUTES:g} min ahead",
        "least",
        "median",
        "critical: warned",
        "least",
        "median",
        "critical before anything is wrong",
    )
    harmful = [scenario for scenario in SCENARIOS if scenario.event is not None and scenario.name in measured]
    for scenario in harmful:
        each = measured[scenario.name]
        times = warned(scenario, each)
        count = len(each.outcomes)
        in_time = f"{times.in_time()} of {count}"
        yield _row(
            scenario.name,
            EVENTS[scenario.event or ""],
            f"**{in_time}**" if scenario.grows_beyond_plan else in_time,
            *_minutes(times.any_severity),
            f"{sum(minutes > 0 for minutes in times.critical)} of {count}",
            *_minutes(times.critical),
            _counted(_runs_with(each.outcomes, ("critical",))),
        )
    yield ""
    yield "Bold: growth beyond the predicted high for half an hour or longer, to be warned of in every run."
    yield ""
    yield "By alert, those that were not expected to warn in italics:"
    yield ""
    yield from _head("scenario", "alert", "severity", "warned", "least", "median")
    for scenario in harmful:
        each = measured[scenario.name]
        for (alert, severity), minutes in warned(scenario, each).by_alert.items():
            given = [value for value in minutes if value > 0]
            if given:
                yield _row(
                    scenario.name,
                    f"`{alert}`" if alert in scenario.alerts else f"*`{alert}`*",
                    severity,
                    f"{len(given)} of {len(minutes)}",
                    *_minutes(given),
                )
    yield ""
    yield "Healthy runs in which an alert fired:"
    yield ""
    yield from _head("healthy scenario", "runs", "critical", "warning, foreseen", "warning, not foreseen")
    for scenario in SCENARIOS:
        if scenario.event is None and scenario.name in measured:
            outcomes = measured[scenario.name].outcomes
            others = _runs_with(outcomes, ("warning", "info", "none"))
            foreseen = Counter({name: n for name, n in others.items() if name in scenario.alerts})
            yield _row(
                scenario.name,
                str(len(outcomes)),
                _counted(_runs_with(outcomes, ("critical",))),
                _counted(foreseen),
                _counted(others - foreseen),
            )
