"""A comparison as JSON."""

from __future__ import annotations

import json
from typing import Any

from brimline.compared import as_json
from reports import HOSTILE, START, comparison, hostile, metric, report


def document(**changes: Any) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(json.dumps(as_json(report(**changes)), allow_nan=False))
    return written


def test_the_schema_is_versioned_and_names_what_decides() -> None:
    read = document()

    assert (read["schema_version"], read["experiment"], read["verdict"]) == (1, "kv-dtype", "pass")
    assert read["blocks"] == 8
    assert read["dropped"] == [{"start": START + 7200, "reason": "chat-b restarted"}]


def test_a_metric_carries_numbers_for_other_programs() -> None:
    [one] = document()["comparisons"]
    read = one["metrics"][0]

    assert (read["name"], read["verdict"], read["direction"]) == (
        "inter_token_latency",
        "pass",
        "less_is_better",
    )
    assert (read["delta_ratio"], read["lower_ratio"], read["upper_ratio"]) == (-0.012, -0.035, 0.011)
    assert len(read["blocks"]) == 8
    assert read["blocks"][0].keys() == {"start", "log_ratio"}


def test_static_quantities_carry_both_differences() -> None:
    [one] = document()["comparisons"]

    assert one["static"][0]["observed_delta_ratio"] == 779_760 / 389_872 - 1
    assert one["static"][0]["predicted_delta_ratio"] == 1.0


def test_what_is_no_number_is_null() -> None:
    bad = metric(upper_ratio=float("inf"), delta_ratio=float("nan"), p_worse=None)
    written = as_json(report(comparison(metrics=(bad,))))

    read = json.loads(json.dumps(written, allow_nan=False))["comparisons"][0]["metrics"][0]
    assert (read["upper_ratio"], read["delta_ratio"], read["p_worse"]) == (None, None, None)


def test_hostile_names_come_back_as_they_were() -> None:
    read = json.loads(json.dumps(as_json(hostile())))

    assert read["comparisons"][0]["candidate"] == HOSTILE
