"""Thresholds of alerts: defaults, what replaces them, and what cannot."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from brimline.thresholds import ALERTS, Kind, Threshold, Thresholds, checked

EACH = pytest.mark.parametrize(
    ("alert", "key"), [(alert, key) for alert, keys in ALERTS.items() for key in keys]
)


@EACH
def test_a_default_is_what_a_configuration_could_say(alert: str, key: str) -> None:
    threshold = ALERTS[alert][key]
    said: object = threshold.text
    if threshold.kind in ("ratio", "number", "count"):
        said = float(threshold.text)

    assert checked(alert, key, said) == threshold.default


@EACH
def test_every_key_says_what_it_is(alert: str, key: str) -> None:
    threshold = ALERTS[alert][key]

    assert threshold.kind in get_args(Kind)
    assert re.fullmatch(r"[a-z_]+", key)
    assert key != "enabled"
    assert len(threshold.help) > 10
    assert (threshold.kind == "duration") == (
        key.endswith(("for", "within")) or (alert, key) == ("BrimlineTargetSlow", "duration")
    )


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        ("duration", "90s", 90.0),
        ("duration", "1h30m", 5400.0),
        ("duration", "0s", 0.0),
        ("duration", "30d", 2_592_000.0),
        ("bytes", "512MiB", 536_870_912.0),
        ("bytes", "2GB", 2e9),
        ("bytes", 1000, 1000.0),
        ("ratio", 0, 0.0),
        ("ratio", 0.95, 0.95),
        ("ratio", 1, 1.0),
        ("number", 3, 3.0),
        ("number", 2.5, 2.5),
        ("pattern", "brimline|sidecars-.+", "brimline|sidecars-.+"),
    ],
)
def test_a_value_is_read_with_its_unit(kind: Kind, written: object, value: float | str) -> None:
    assert Threshold(kind, 0.0, "").parse(written) == value


@pytest.mark.parametrize(
    ("kind", "written", "told"),
    [
        ("duration", 5, "5 is not a duration; write it with a unit, such as 5m"),
        ("duration", True, "True is not a duration; write it with a unit, such as 5m"),
        ("duration", "31d", "'31d' is not of whole seconds up to 30 days; write it as 90s or 5m"),
        ("duration", "2.5s", "'2.5s' is not of whole seconds up to 30 days; write it as 90s or 5m"),
        ("count", 0, "0 is not a whole number from 1 on; write 3"),
        ("count", 2.5, "2.5 is not a whole number from 1 on; write 3"),
        ("bytes", "a lot", "'a lot' is not a size in bytes; write it as 512MiB, 2GiB or a plain number"),
        ("bytes", None, "None is not a size; write 512MiB"),
        ("bytes", [1], "a list is not a size; write 512MiB"),
        ("ratio", 90, "90 is above 1, which is all of it; write a number from 0 to 1, such as 0.9"),
        ("ratio", -0.1, "-0.1 is not a ratio; write a number from 0 to 1, such as 0.9"),
        ("ratio", float("nan"), "nan is not a ratio; write a number from 0 to 1, such as 0.9"),
        ("ratio", {"a": 1}, "a mapping is not a ratio; write a number from 0 to 1, such as 0.9"),
        ("number", float("inf"), "inf is not a number; write a number from 0 on"),
        ("number", "3", "'3' is not a number; write a number from 0 on"),
        ("number", False, "False is not a number; write a number from 0 on"),
        ("pattern", "", "'' is not a regular expression; write text such as 'brimline.*'"),
        ("pattern", 3, "3 is not a regular expression; write text such as 'brimline.*'"),
        (
            "pattern",
            "a**",
            "'a**' is not a regular expression (multiple repeat at position 2); write 'brimline.*'",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_write(kind: Kind, written: object, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        Threshold(kind, 0.0, "").parse(written)


@pytest.mark.parametrize(
    "pattern", ["(?!a)b", "(?=a)", "(?<=a)b", "(?<!a)b", "(a)\\1", "(?P<x>a)(?P=x)", "a++", "(?>a)"]
)
def test_a_pattern_that_prometheus_cannot_read_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="looks around or back, which Prometheus cannot"):
        Threshold("pattern", "", "").parse(pattern)


@pytest.mark.parametrize("pattern", ["(?:a|b)+", "(?i)brimline", "(?P<x>a)", "a+|b*", "[+*]+x", "a{2,3}?"])
def test_a_pattern_that_prometheus_reads_is_none_of_them(pattern: str) -> None:
    assert Threshold("pattern", "", "").parse(pattern) == pattern


def test_a_configuration_replaces_what_it_names_and_nothing_else() -> None:
    chosen = Thresholds({"BrimlineVramHeadroomLow": {"warning_headroom": "2GiB"}, "BrimlineTargetSlow": {}})

    assert chosen.number("BrimlineVramHeadroomLow", "warning_headroom") == 2 << 30
    assert chosen.number("BrimlineVramHeadroomLow", "critical_headroom") == 128 << 20
    assert chosen.number("BrimlineTargetSlow", "duration") == 1
    assert chosen.text("BrimlineExporterDown", "job") == ".*brimline.*"
    assert all(chosen.is_enabled(alert) for alert in ALERTS)


def test_an_alert_can_be_switched_off_and_on() -> None:
    chosen = Thresholds({"BrimlineTargetSlow": {"enabled": False}, "BrimlineTargetDown": {"enabled": True}})

    assert not chosen.is_enabled("BrimlineTargetSlow")
    assert chosen.is_enabled("BrimlineTargetDown")
    assert chosen.is_enabled("BrimlineExporterDown")


def test_an_alert_or_key_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"^unknown alert 'BrimlineX'; known: BrimlineExporterDown, "):
        checked("BrimlineX", "for", "5m")
    with pytest.raises(
        ValueError, match=r"^unknown key 'x' of BrimlineTargetSlow; known: enabled, duration, for$"
    ):
        Thresholds({"BrimlineTargetSlow": {"x": "5m"}})
    with pytest.raises(ValueError, match=r"^'yes' is neither true nor false$"):
        checked("BrimlineTargetSlow", "enabled", "yes")


def test_a_critical_default_is_beyond_the_warning_one() -> None:
    low, will, host = (
        ALERTS[f"Brimline{name}"] for name in ("VramHeadroomLow", "VramWillExhaust", "HostMemoryLow")
    )

    assert float(low["critical_headroom"].default) < float(low["warning_headroom"].default)
    assert float(will["critical_within"].default) < float(will["warning_within"].default)
    assert float(host["critical_ratio"].default) > float(host["warning_ratio"].default)
    # A trend is told before it is over.
    assert float(will["critical_for"].default) < float(will["critical_within"].default)


@pytest.mark.parametrize(
    ("alert", "keys", "told"),
    [
        (
            "BrimlineVramHeadroomLow",
            {"warning_headroom": "64MiB"},
            (
                "critical_headroom of 128MiB (the default) is not at most warning_headroom of 64MiB: "
                "the critical alert would come first; change either"
            ),
        ),
        (
            "BrimlineVramWillExhaust",
            {"critical_within": "6h"},
            (
                "critical_within of 6h is not below warning_within of 6h (the default): "
                "the critical alert would come first; change either"
            ),
        ),
        (
            "BrimlineTargetDown",
            {"critical_for": "2m"},
            (
                "warning_for of 5m (the default) is not at most critical_for of 2m: "
                "the critical alert would come first; change either"
            ),
        ),
        (
            "BrimlineHostMemoryLow",
            {"warning_ratio": 0.9, "critical_ratio": 0.8},
            (
                "warning_ratio of 0.9 is not at most critical_ratio of 0.8: "
                "the critical alert would come first; change either"
            ),
        ),
    ],
)
def test_thresholds_that_contradict_each_other_are_refused(
    alert: str, keys: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        Thresholds({alert: keys})
    Thresholds({"BrimlineVramHeadroomLow": {"warning_headroom": "128MiB"}})
