"""Prometheus rule files as they are evaluated: groups, their interval, `for` and `keep_firing_for`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DEFAULT_INTERVAL = 60.0  # Prometheus' evaluation_interval

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_PART = re.compile(r"(\d+)(ms|[smhdwy])")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`[^`]*`')
_COMMENT = re.compile(r"#[^\n]*")


def seconds_of(text: str | int) -> float:
    """Seconds of a duration as Prometheus writes it (`1h30m`). Raises ValueError."""
    said = str(text)
    if said == "0":
        return 0.0
    if not said or _PART.sub("", said):
        raise ValueError(f"{said!r} is no duration")
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(said))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording rule. interval: of its group, in seconds."""

    record: str
    expr: str
    interval: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alerting rule. hold, keep: `for` and `keep_firing_for`, in seconds."""

    name: str
    expr: str
    interval: float
    hold: float = 0.0
    keep: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def severity(self) -> str:
        """Its label; `none` where it has none."""
        return self.labels.get("severity", "none")


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a folder; the recording ones in an order in which each finds what it reads."""

    recordings: tuple[Recording, ...]
    alerts: tuple[Alert, ...]


def names_in(expr: str) -> set[str]:
    """Words of an expression that may be names of metrics."""
    return set(_NAME.findall(_COMMENT.sub("", _QUOTED.sub("", expr))))


def ordered(recordings: Iterable[Recording]) -> tuple[Recording, ...]:
    """The rules such that each comes after those whose series it reads. Raises ValueError for a circle."""
    left = list(recordings)
    done: list[Recording] = []
    while left:
        missing = {rule.record for rule in left}
        ready = [rule for rule in left if not names_in(rule.expr) & missing]
        if not ready:
            raise ValueError(f"rules read each other in a circle: {', '.join(sorted(missing))}")
        done += ready
        left = [rule for rule in left if rule not in ready]
    return tuple(done)


def read_rules(paths: Sequence[Path]) -> Rules:
    """The rules of files; those in the forms of Kubernetes and Grafana repeat them and are passed over.

    Raises ValueError for what cannot be evaluated here, and where there is no rule.
    """
    recordings: list[Recording] = []
    alerts: list[Alert] = []
    for path in paths:
        document: Any = yaml.safe_load(path.read_text()) or {}
        if "apiVersion" in document:
            continue
        for group in document.get("groups") or []:
            interval = seconds_of(group["interval"]) if "interval" in group else DEFAULT_INTERVAL
            for rule in group["rules"]:
                labels = {name: str(value) for name, value in (rule.get("labels") or {}).items()}
                where = f"{path.name}: {rule.get('alert') or rule.get('record')}"
                if any("{{" in value for value in labels.values()):
                    raise ValueError(f"{where}: labels made by templates are not evaluated here")
                if names_in(rule["expr"]) & {"ALERTS", "ALERTS_FOR_STATE"}:
                    raise ValueError(f"{where}: rules that read alerts are not evaluated here")
                if "record" in rule:
                    recordings.append(
                        Recording(record=rule["record"], expr=rule["expr"], interval=interval, labels=labels)
                    )
                else:
                    alerts.append(
                        Alert(
                            name=rule["alert"],
                            expr=rule["expr"],
                            interval=interval,
                            hold=seconds_of(rule.get("for", "0s")),
                            keep=seconds_of(rule.get("keep_firing_for", "0s")),
                            labels=labels,
                        )
                    )
    if not recordings and not alerts:
        raise ValueError(f"no rules in {', '.join(map(str, paths)) or 'no files'}")
    return Rules(ordered(recordings), tuple(alerts))


def read_folder(folder: Path) -> Rules:
    """The rules of a folder's YAML files. Raises ValueError where it has none."""
    return read_rules(sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))))


@dataclass(frozen=True, slots=True)
class Episode:
    """A time in which an alert fired; end: when it no longer did, None where it still does."""

    start: float
    end: float | None


def episodes(
    active: Iterable[bool], *, start: float, interval: float, hold: float, keep: float
) -> list[Episode]:
    """When an alert fired, from whether its expression held at each evaluation.

    As rules/alerting.go of Prometheus 2.42 does it: pending from the first evaluation at which it holds, and
    firing once that is `hold` ago; one evaluation without it ends a pending alert, and a firing one too,
    unless it was there less than `keep` before.
    """
    found: list[Episode] = []
    active_since: float | None = None
    firing_since: float | None = None
    kept_since: float | None = None
    now = start
    for place, holds in enumerate(active):
        now = start + place * interval
        if holds:
            kept_since = None
            if active_since is None:
                active_since = now
        elif active_since is not None:
            if firing_since is not None and keep > 0:
                kept_since = now if kept_since is None else kept_since
            if firing_since is None or keep <= 0 or (kept_since is not None and now - kept_since >= keep):
                if firing_since is not None:
                    found.append(Episode(firing_since, now))
                active_since = firing_since = kept_since = None
        if active_since is not None and firing_since is None and now - active_since >= hold:
            firing_since = now
    if firing_since is not None:
        found.append(Episode(firing_since, None))
    return found
