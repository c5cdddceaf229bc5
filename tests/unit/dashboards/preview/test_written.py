"""Numbers as people read them."""

from __future__ import annotations

import pytest

from brimline_dashboards.preview.written import (
    heat_color,
    mapped,
    marks_written,
    step_between_marks,
    threshold_color,
    written,
)


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (85_520_809_984, "bytes", None, "79.6 GiB"),
        (-1_073_741_824, "bytes", None, "-1 GiB"),
        (0, "bytes", None, "0 B"),
        (0.996, "percentunit", None, "99.6%"),
        (0.996, "percentunit", 0, "100%"),
        (416_480, "suffix: tok", None, "416,480 tok"),
        (2740.3, "suffix: tok/s", 0, "2,740 tok/s"),
        (12.71, "suffix: ×", 2, "12.71 ×"),
        (0.0371, "s", None, "37.1 ms"),
        (5400, "s", None, "1.50 hours"),
        (26_030, "short", None, "26.0 K"),
        (3, "none", None, "3"),
        (float("nan"), "none", None, ""),
    ],
)
def test_units(value: float, unit: str, decimals: int | None, text: str) -> None:
    assert written(value, unit, decimals) == text


def test_marks_of_bytes_are_round_in_gib() -> None:
    assert step_between_marks(80 * 2**30, "bytes") == 20 * 2**30
    assert step_between_marks(1, "percentunit") == 0.5


def test_marks_that_lie_near_each_other_can_be_told_apart() -> None:
    assert marks_written([-0.0513, -0.0512, -0.0511], "percentunit") == ["-5.13%", "-5.12%", "-5.11%"]
    assert marks_written([0, 0.5, 1], "percentunit") == ["0%", "50%", "100%"]


def test_the_last_threshold_that_is_reached_colours() -> None:
    steps = {"steps": [{"color": "red", "value": None}, {"color": "green", "value": 2}]}

    assert [threshold_color(value, steps) for value in (-1, 1.9, 2)] == ["red", "red", "green"]


def test_words_stand_for_a_value() -> None:
    mappings = [{"type": "value", "options": {"0": {"text": "DOWN", "color": "red", "index": 0}}}]

    assert mapped(0.0, mappings) == ("DOWN", "red")
    assert mapped(1.0, mappings) is None


def test_text_on_heat_can_be_read() -> None:
    assert heat_color(0.1)[1] == "#111"
    assert heat_color(0.9)[1] == "#fff"
