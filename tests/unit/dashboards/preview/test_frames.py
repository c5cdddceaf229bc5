"""Tables come out as Grafana's transformations make them."""

from __future__ import annotations

import pytest

from brimline_dashboards.panels import Column, Computed, Query, table
from brimline_dashboards.preview.asking import Series
from brimline_dashboards.preview.frames import frames, merged, transformed


def series(value: float, **labels: str) -> Series:
    return Series(labels, ((0.0, float(value)),))


def test_rows_that_agree_in_what_all_queries_have_are_one() -> None:
    made = frames(
        {
            "A": [series(1, target="a", engine="vllm"), series(1, target="b", engine="tgi")],
            "B": [series(5, target="a")],
        }
    )

    assert merged(made) == [
        {"target": "a", "engine": "vllm", "Value #A": 1, "Value #B": 5},
        {"target": "b", "engine": "tgi", "Value #A": 1},
    ]


def test_two_exporters_of_one_server_keep_their_rows() -> None:
    made = frames(
        {
            "A": [series(1, target="a", instance="x"), series(1, target="a", instance="y")],
            "B": [series(5, target="a", instance="y")],
        }
    )

    assert [row.get("Value #B") for row in merged(made)] == [None, 5]


def test_a_difference_is_absent_where_one_side_is() -> None:
    panel = table(
        "x",
        "x",
        [Query("a"), Query("b")],
        [
            Column(source="metric", title="Metric"),
            Column(source="d", title="Δ"),
            Column(source="r", title="×"),
        ],
        computed=[
            Computed(name="d", left="Value #B", operator="-", right="Value #A"),
            Computed(name="r", left="Value #B", operator="/", right="Value #A"),
        ],
    ).json
    made = frames(
        {
            "A": [series(4, metric="m"), series(0, metric="zero")],
            "B": [series(6, metric="m"), series(6, metric="zero"), series(1, metric="n")],
        }
    )

    rows = transformed(made, panel["transformations"])

    assert rows == [
        {"metric": "m", "d": 2, "r": 1.5},
        {"metric": "zero", "d": 6, "r": None},
        {"metric": "n", "d": None, "r": None},
    ]


def test_one_query_names_its_value_without_a_letter() -> None:
    assert frames({"A": [series(2, setting="x")]}) == [[{"setting": "x", "Value": 2}]]


def test_an_unknown_transformation_is_no_picture() -> None:
    with pytest.raises(ValueError, match="groupBy"):
        transformed([[{"a": "b"}]], [{"id": "groupBy", "options": {}}])
