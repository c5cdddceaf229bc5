"""Rows by server and part: what is one series under changing labels, and what is two."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from brimline.ab.rows import Key, Table, joined, newest, states
from brimline.ab.series import Series
from brimline.prometheus_api import Row

KEY = Key("j", "i", "t")


def row(name: str, times: Sequence[float], values: Sequence[float], **labels: str) -> Row:
    about = {"__name__": f"brimline_{name}", "job": "j", "instance": "i", "target": "t", **labels}
    return Row(about, array("d", times), array("d", values))


def series(times: Sequence[float], values: Sequence[float] | None = None) -> Series:
    return Series(np.array(times, float), np.array(times if values is None else values, float))


def test_ranks_are_parts_and_added_labels_are_not() -> None:
    table = Table(
        [
            row("x", [1, 2], [1, 1], rank="0", pod="a"),
            row("x", [3, 4], [2, 2], rank="0", pod="b"),
            row("x", [1, 2, 3, 4], [7, 7, 7, 7], rank="1", pod="a"),
        ]
    )

    parts = table.parts("x", KEY)
    assert {dict(part)["rank"]: list(found.values) for part, found in parts.items()} == {
        "0": [1, 1, 2, 2],
        "1": [7, 7, 7, 7],
    }


def test_an_arms_labels_on_every_series_make_no_parts_when_they_change() -> None:
    table = Table([row("x", [1], [1], variant="a", role="candidate"), row("x", [2], [1], variant="b")])

    [found] = table.parts("x", KEY).values()
    assert list(found.times) == [1, 2]


def test_a_second_prometheus_adds_nothing() -> None:
    """Two replicas of one Prometheus, half an interval apart, as Thanos gives them undeduplicated."""
    found = joined([series(range(0, 600, 15)), series(np.arange(7.5, 600, 15).tolist())])

    assert list(found.times) == list(range(0, 600, 15))


def test_what_one_row_lacks_is_taken_from_another() -> None:
    gap = [*range(0, 300, 15), *range(450, 900, 15)]
    other = [*range(270, 480, 15)]

    assert list(joined([series(gap), series(other)]).times) == list(range(0, 900, 15))


def test_nan_and_infinity_are_no_samples() -> None:
    table = Table([row("x", [1, 2, 3, 4], [1, float("nan"), float("inf"), 4])])

    [found] = table.parts("x", KEY).values()
    assert list(found.times) == [1, 4]


def test_states_follow_each_other() -> None:
    table = Table(
        [row("f_info", [3, 4], [1, 1], fingerprint="b"), row("f_info", [1, 2, 9], [1] * 3, fingerprint="a")]
    )

    said, times = states(table.parts("f_info", KEY), "fingerprint")

    assert said == ["a", "a", "b", "b", "a"]
    assert list(times) == [1, 2, 3, 4, 9]


def test_the_newest_rows_are_those_of_the_last_scrape() -> None:
    table = Table([row("s_info", [1, 2], [1, 1], setting="a"), row("s_info", [1], [1], setting="b")])

    [part] = newest(table.parts("s_info", KEY))
    assert dict(part) == {"setting": "a"}


def test_parts_are_found_by_their_labels() -> None:
    table = Table([row("m", [1], [1], component="weights"), row("m", [1], [2], component="kv_cache")])

    [found] = table.parts("m", KEY, component="kv_cache").values()
    assert list(found.values) == [2]
    assert table.parts("m", KEY._replace(target="other")) == {}
    assert table.keys("m") == [KEY]
