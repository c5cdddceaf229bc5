"""Thresholds and durations of the alert rules, in one place: the defaults and what replaces them.

`alerts:` of the configuration overrides them by the alert's name and the key:

    alerts:
      BrimlineVramHeadroomLow: {warning_headroom: 2GiB, warning_for: 15m}
      BrimlineTargetSlow: {enabled: false}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from brimline import units
from brimline.spelling import known_names

Kind = Literal["duration", "bytes", "ratio", "number", "count", "pattern"]

# The longest duration that a rule may look back or wait: history beyond it is not kept everywhere.
MAX_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Threshold:
    """One key of an alert. default: seconds, bytes, a ratio (0 to 1), a number, or a regular expression."""

    kind: Kind
    default: float | str
    help: str

    def parse(self, value: object) -> float | str:
        """What stands in a configuration, in seconds, bytes or as it is. Raises ValueError."""
        if self.kind == "pattern":
            return _pattern(value)
        if self.kind == "duration":
            if not isinstance(value, str):
                raise ValueError(f"{value!r} is not a duration; write it with a unit, such as 5m")
            seconds = units.parse_duration(value)
            if seconds > MAX_SECONDS or seconds != int(seconds):
                raise ValueError(f"{value!r} is not of whole seconds up to 30 days; write it as 90s or 5m")
            return seconds
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{_shown(value)} is not a {_NOUNS[self.kind]}; write {_EXAMPLES[self.kind]}")
        if self.kind == "bytes":
            return float(units.parse_bytes(str(value)))
        if isinstance(value, str) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{value!r} is not a {_NOUNS[self.kind]}; write {_EXAMPLES[self.kind]}")
        if self.kind == "count" and (value < 1 or value != int(value)):
            raise ValueError(f"{value!r} is not a {_NOUNS[self.kind]}; write {_EXAMPLES[self.kind]}")
        if self.kind == "ratio" and value > 1:
            raise ValueError(f"{value!r} is above 1, which is all of it; write {_EXAMPLES[self.kind]}")
        return float(value)

    @property
    def text(self) -> str:
        """The default as a configuration would say it."""
        return self.said(self.default)

    def said(self, value: float | str) -> str:
        """A value as a configuration would say it."""
        if isinstance(value, str):
            return value
        if self.kind == "duration":
            return units.write_duration(value)
        if self.kind == "bytes":
            return units.write_bytes(value)
        return f"{value:g}"


_NOUNS = {"bytes": "size", "ratio": "ratio", "number": "number", "count": "whole number from 1 on"}
_EXAMPLES = {
    "bytes": "512MiB",
    "ratio": "a number from 0 to 1, such as 0.9",
    "number": "a number from 0 on",
    "count": "3",
}


def _shown(value: object) -> str:
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else repr(value)


# Lookaround, back references, comments, conditions, atomic groups and possessive repetition.
_NOT_RE2 = re.compile(r"\(\?(?:[=!#(>]|<[=!]|P[=>])|\\[1-9]|[*+?}]\+")


def _pattern(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{_shown(value)} is not a regular expression; write text such as 'brimline.*'")
    try:
        re.compile(value)
    except (re.error, RecursionError) as error:
        raise ValueError(f"{value!r} is not a regular expression ({error}); write 'brimline.*'") from None
    if _NOT_RE2.search(value):
        raise ValueError(f"{value!r} looks around or back, which Prometheus cannot; write 'brimline.*'")
    return value


def _for(default: float, what: str = "it must last before it is told") -> Threshold:
    return Threshold("duration", default, f"how long {what}")


MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
MIB, GIB = float(1 << 20), float(1 << 30)

# Every alert, in the order of the rule file, and its keys. `enabled` is a key of each.
ALERTS: Mapping[str, Mapping[str, Threshold]] = {
    "BrimlineExporterDown": {
        "job": Threshold(
            "pattern", ".*brimline.*", "jobs of exporters, also of those that were never reached"
        ),
        "warning_for": _for(5 * MINUTE),
        "critical_for": _for(10 * MINUTE, "all exporters must be gone"),
    },
    "BrimlineTargetDown": {
        "warning_for": _for(5 * MINUTE),
        "critical_for": _for(20 * MINUTE, "the server must be down; loading a large model takes minutes"),
    },
    "BrimlineTargetSlow": {
        "duration": Threshold("duration", 1.0, "mean time to read the server, over five minutes"),
        "for": _for(10 * MINUTE),
    },
    "BrimlineEnginePageIncomplete": {"for": _for(15 * MINUTE)},
    "BrimlineConfigReloadFailed": {"for": _for(5 * MINUTE)},
    "BrimlineConfigMismatch": {"for": _for(15 * MINUTE)},
    "BrimlineGpuUnreadable": {"for": _for(5 * MINUTE)},
    "BrimlineVramHeadroomLow": {
        "warning_headroom": Threshold("bytes", 512 * MIB, "headroom, or free memory at the peak, below it"),
        "critical_headroom": Threshold("bytes", 128 * MIB, "headroom, or free memory at the peak, below it"),
        "warning_for": _for(5 * MINUTE),
        "critical_for": _for(2 * MINUTE),
    },
    "BrimlineVramWillExhaust": {
        "warning_within": Threshold("duration", 6 * HOUR, "time to exhaustion, by the growth of an hour"),
        "critical_within": Threshold("duration", HOUR, "time to exhaustion, by the growth of 15 minutes"),
        "free_ratio": Threshold(
            "ratio", 0.2, "free share of the GPU below which a server without a plan counts"
        ),
        "warning_for": _for(15 * MINUTE),
        "critical_for": _for(3 * MINUTE),
    },
    "BrimlineVramAbovePlan": {
        "above": Threshold("bytes", 256 * MIB, "use above the plan's high bound"),
        "peak_above": Threshold(
            "bytes", 512 * MIB, "a spike of the last 15 minutes above the plan's high bound"
        ),
        "for": _for(5 * MINUTE),
    },
    "BrimlineVramPlanExceedsGpu": {"for": _for(5 * MINUTE)},
    "BrimlineVramGrowth": {
        "growth": Threshold("bytes", 256 * MIB, "least growth over six hours, half of it in the later three"),
        "for": _for(15 * MINUTE),
    },
    "BrimlineForeignProcessOnGpu": {
        "memory": Threshold("bytes", 256 * MIB, "memory that processes of no server hold on a server's GPU"),
        "for": _for(5 * MINUTE),
    },
    "BrimlineHostMemoryLow": {
        "warning_ratio": Threshold("ratio", 0.9, "share of the server's limit, or of the machine, in use"),
        "critical_ratio": Threshold("ratio", 0.97, "share of the server's limit, or of the machine, in use"),
        "growing_ratio": Threshold("ratio", 0.7, "share in use from which growth is looked at"),
        "within": Threshold("duration", HOUR, "time until the limit, by the growth of half an hour"),
        "warning_for": _for(10 * MINUTE),
        "critical_for": _for(2 * MINUTE),
    },
    "BrimlineKvCacheWillSaturate": {
        "usage": Threshold("ratio", 0.7, "highest use of the KV cache within ten minutes"),
        "within": Threshold(
            "duration", HOUR, "time until it is full, by the growth of its peaks over an hour"
        ),
        "for": _for(10 * MINUTE),
    },
    "BrimlineKvCacheSaturated": {
        "usage": Threshold(
            "ratio", 0.95, "highest use of the KV cache within five minutes, while requests wait"
        ),
        "for": _for(10 * MINUTE),
    },
    "BrimlineKvCachePreempting": {
        "per_minute": Threshold("number", 1.0, "preemptions a minute, over five minutes"),
        "for": _for(10 * MINUTE),
    },
    "BrimlineKvCachePoolBelowPrediction": {"for": _for(10 * MINUTE)},
    "BrimlineContextWindowDoesNotFit": {"for": _for(5 * MINUTE)},
    "BrimlineServerRestartedAfterLowHeadroom": {
        "headroom": Threshold("bytes", 512 * MIB, "headroom within the hour before the restart"),
        "host_ratio": Threshold("ratio", 0.95, "share of main memory in use within the hour before"),
        "restarts": Threshold("count", 3.0, "restarts within an hour that make it critical"),
    },
    "BrimlineThroughputRegression": {
        "ratio": Threshold("ratio", 0.7, "tokens per second under load, beside those of the day before"),
        "for": _for(15 * MINUTE),
    },
    "BrimlineVariantWorse": {"for": _for(0.0)},
}


# Keys of an alert of which the first must be below the second, or at most equal to it.
_IN_ORDER: Mapping[str, tuple[str, str, bool]] = {
    "BrimlineTargetDown": ("warning_for", "critical_for", True),
    "BrimlineVramHeadroomLow": ("critical_headroom", "warning_headroom", True),
    "BrimlineVramWillExhaust": ("critical_within", "warning_within", False),
    "BrimlineHostMemoryLow": ("warning_ratio", "critical_ratio", True),
}


def check_order(alert: str, keys: Mapping[str, object]) -> None:
    """Raises ValueError where the keys that a configuration sets, with the defaults of others, contradict."""
    if alert not in _IN_ORDER:
        return
    first, second, may_be_equal = _IN_ORDER[alert]
    low, high = (
        ALERTS[alert][key].parse(keys[key]) if key in keys else ALERTS[alert][key].default
        for key in (first, second)
    )
    if float(low) > float(high) or (low == high and not may_be_equal):
        said = [
            f"{key} of {ALERTS[alert][key].said(value)}{'' if key in keys else ' (the default)'}"
            for key, value in ((first, low), (second, high))
        ]
        bound = "at most" if may_be_equal else "below"
        raise ValueError(
            f"{said[0]} is not {bound} {said[1]}: the critical alert would come first; change either"
        )


class Thresholds:
    """Every key of every alert, with what a configuration says in place of the defaults."""

    def __init__(self, overrides: Mapping[str, Mapping[str, object]] | None = None) -> None:
        """Raises ValueError for an alert, key or value that cannot be; `checked` says where."""
        self._values = {
            (alert, key): threshold.default
            for alert, keys in ALERTS.items()
            for key, threshold in keys.items()
        }
        self._disabled = set()
        for alert, keys in (overrides or {}).items():
            for key, value in keys.items():
                parsed = checked(alert, key, value)
                if key == "enabled":
                    if not parsed:
                        self._disabled.add(alert)
                else:
                    self._values[alert, key] = parsed
            check_order(alert, keys)

    def is_enabled(self, alert: str) -> bool:
        """True unless the configuration switches the alert off."""
        return alert not in self._disabled

    def number(self, alert: str, key: str) -> float:
        """Seconds, bytes, a ratio or a number."""
        return float(self._values[alert, key])

    def text(self, alert: str, key: str) -> str:
        """A regular expression."""
        return str(self._values[alert, key])


def checked(alert: str, key: str, value: object) -> float | str | bool:
    """A value of the configuration as the rules use it. Raises ValueError saying what to write."""
    if alert not in ALERTS:
        raise ValueError(f"unknown alert {alert!r}; {known_names(alert, ALERTS)}")
    if key == "enabled":
        if not isinstance(value, bool):
            raise ValueError(f"{_shown(value)} is neither true nor false")
        return value
    if key not in ALERTS[alert]:
        raise ValueError(f"unknown key {key!r} of {alert}; {known_names(key, ('enabled', *ALERTS[alert]))}")
    return ALERTS[alert][key].parse(value)
