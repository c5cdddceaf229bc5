"""Rules over the runs of a scenario, evaluated by a real Prometheus that holds them all.

Recording rules are asked for over the whole time at their group's interval, and what comes back is written
as their series, with its ends, before the next rule reads it. Alerts are asked for in the same way, and their
`for` is applied afterwards. Two things differ from a Prometheus that lives through it: every group is
evaluated at whole multiples of its interval, and a rule of one group sees what another group recorded at that
very moment, not up to an interval before.
"""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_server import running_prometheus
from scenarios.remote_write import Samples, SampleTime, time_series, write
from scenarios.rules import Alert, Recording, Rules, episodes
from scenarios.series import JOB, LABELS, Run, run_series
from scenarios.stories import Scenario

# A Monday. All runs begin here, so that one query covers them.
EPOCH = 1_767_571_200.0

# Prometheus refuses more steps than 11,000 in one query.
_MOST_STEPS = 10_000
_FLAGS = (
    "--web.enable-remote-write-receiver",
    # One head for all: nothing is too old for it, and nothing is compacted meanwhile.
    "--storage.tsdb.min-block-duration=400h",
    "--storage.tsdb.max-block-duration=400h",
    "--storage.tsdb.retention.time=100y",
    "--query.max-samples=500000000",
    "--query.timeout=10m",
    "--log.level=warn",
)

Points = list[tuple[float, float]]


class RuleError(Exception):
    """A rule that Prometheus cannot evaluate over these series."""


@dataclass(frozen=True, slots=True)
class Firing:
    """A time in which an alert fired for a run; end: None where it did to the end of the run."""

    alert: str
    severity: str
    start: float
    end: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run, and the alerts that fired in it, in the order of time."""

    run: Run
    firings: tuple[Firing, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of a scenario's runs. unattributed: alerts that fired without naming an instance or GPU."""

    outcomes: tuple[Outcome, ...]
    unattributed: frozenset[str]


@contextmanager
def holding_prometheus() -> Iterator[str]:
    """URL of an empty Prometheus that scrapes nothing and takes what is written to it."""
    with (
        tempfile.TemporaryDirectory(prefix="brimline-prometheus-") as folder,
        running_prometheus(Path(folder), [], flags=_FLAGS) as prometheus,
    ):
        yield prometheus.url


def query_range(
    url: str, expr: str, *, start: float, end: float, step: float
) -> list[tuple[dict[str, str], Points]]:
    """Labels and points of each series of a range query. Raises RuleError with what Prometheus says."""
    found: dict[tuple[tuple[str, str], ...], Points] = {}
    while start <= end:
        until = min(end, start + step * (_MOST_STEPS - 1))
        form = {"query": expr, "start": f"{start:.3f}", "end": f"{until:.3f}", "step": f"{step:.3f}"}
        request = urllib.request.Request(
            f"{url}/api/v1/query_range", data=urllib.parse.urlencode(form).encode()
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                document: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise RuleError(f"{expr}\n{said}") from None
        for row in document["data"]["result"]:
            points = found.setdefault(tuple(sorted(row["metric"].items())), [])
            points += [(float(at), float(value)) for at, value in row["values"]]
        start = until + step
    return [(dict(labels), points) for labels, points in found.items()]


def load(url: str, scenario: Scenario, seeds: Iterable[int]) -> list[Run]:
    """Play the seeds of a scenario and write their series."""
    runs = []
    for seed in seeds:
        run, series = run_series(scenario.name, seed, scenario.world(seed), EPOCH)
        scraped = {"job": JOB, "instance": run.instance}
        write(
            url,
            (
                time_series(
                    {
                        "__name__": name,
                        **dict(zip(LABELS.get(name, ()), values, strict=True)),
                        **scraped,
                    },
                    samples,
                )
                for (name, values), samples in series.items()
            ),
        )
        runs.append(run)
    return runs


def record(url: str, rule: Recording, *, start: float, end: float) -> None:
    """Evaluate a recording rule and write what it gives. Raises RuleError."""
    written = []
    for labels, points in query_range(url, rule.expr, start=start, end=end, step=rule.interval):
        samples = Samples()
        before: float | None = None
        for at, value in points:
            if before is not None and at - before > 1.5 * rule.interval:
                samples.end(SampleTime(before + rule.interval))
            samples.add(SampleTime(at), value)
            before = at
        if before is not None:
            samples.end(SampleTime(before + rule.interval))
        named = {**labels, **rule.labels, "__name__": rule.record}
        written.append(time_series(named, samples))
    if written:
        write(url, written)


def fire(
    url: str, alert: Alert, runs: Sequence[Run], *, start: float, end: float
) -> tuple[dict[str, list[Firing]], bool]:
    """When an alert fired, by the run's instance; and whether it did so for no run that it named.

    Raises RuleError.
    """
    by_instance = {run.instance: run for run in runs}
    by_gpu = {gpu: run for run in runs for gpu in run.gpus}
    times: dict[tuple[tuple[str, str], ...], set[int]] = {}
    for labels, points in query_range(url, alert.expr, start=start, end=end, step=alert.interval):
        # As Prometheus does it: an alert is known by its labels, without the metric's name.
        identity = {**labels, **alert.labels}
        identity.pop("__name__", None)
        held = times.setdefault(tuple(sorted(identity.items())), set())
        held.update(round((at - start) / alert.interval) for at, _ in points)
    found: dict[str, list[Firing]] = {}
    is_stray = False
    for labels_, held in times.items():
        named = dict(labels_)
        run = by_instance.get(named.get("instance", "")) or by_gpu.get(named.get("gpu", ""))
        steps = int(((end if run is None else run.end) - start) / alert.interval) + 1
        fired = episodes(
            (place in held for place in range(steps)),
            start=start,
            interval=alert.interval,
            hold=alert.hold,
            keep=alert.keep,
        )
        if run is None:
            is_stray = is_stray or bool(fired)
            continue
        found.setdefault(run.instance, []).extend(
            Firing(alert.name, alert.severity, episode.start, episode.end) for episode in fired
        )
    return found, is_stray


def measure(scenario: Scenario, seeds: Sequence[int], rules: Rules) -> Measured:
    """Play the seeds of a scenario and evaluate all rules over them. Raises RuleError."""
    with holding_prometheus() as url:
        runs = load(url, scenario, seeds)
        end = max(run.end for run in runs)
        for rule in rules.recordings:
            record(url, rule, start=EPOCH, end=end)
        fired: dict[str, list[Firing]] = {run.instance: [] for run in runs}
        stray = set()
        for alert in rules.alerts:
            found, is_stray = fire(url, alert, runs, start=EPOCH, end=end)
            for instance, firings in found.items():
                fired[instance] += firings
            if is_stray:
                stray.add(alert.name)
    outcomes = tuple(
        Outcome(run, tuple(sorted(fired[run.instance], key=lambda firing: (firing.start, firing.alert))))
        for run in runs
    )
    return Measured(outcomes, frozenset(stray))
