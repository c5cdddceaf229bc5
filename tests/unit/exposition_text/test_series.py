"""Series with timestamps in text: every way in which dumps write them, and what a bad line costs."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

import ab_fleet
from brimline.exposition_text.series import SeriesReader, TextSeries, TooManySamples


def read(text: str, prefix: str = "x_", *, at: float | None = None) -> list[TextSeries]:
    reader = SeriesReader(lambda name: name.startswith(prefix))
    reader.read([line.encode() + b"\n" for line in text.splitlines()], at=at)
    return [series for group in reader.series_by_group().values() for series in group]


@pytest.mark.parametrize(
    "line",
    [
        'x_a{l="v"} 2.5 1764000000.25',
        'x_a{l="v"} 2.5 1764000000250',
        '{__name__="x_a", l="v"} 2.5 1764000000250',
        'x_a { l = "v" , } 2.5 1764000000250',
        'x_a{l="v"} 2.5 1764000000.25 # {trace_id="a}b"} 0.5 1764000000.1',
    ],
)
def test_one_sample_in_every_way_to_write_it(line: str) -> None:
    [series] = read(line)

    assert (series.name, dict(series.labels)) == ("x_a", {"l": "v"})
    assert (list(series.times), list(series.values)) == ([1764000000.25], [2.5])


def test_label_values_may_hold_anything() -> None:
    [series] = read('x_a{l="a}b # {c=\\"d\\"} 1",m="\\\\"} 1 1764000000')

    assert dict(series.labels) == {"l": 'a}b # {c="d"} 1', "m": "\\"}
    assert list(series.values) == [1]


def test_a_sample_without_labels_is_a_series_of_its_own() -> None:
    [series] = read("x_a 1 1764000000\nx_a 2 1764000015")

    assert (series.name, dict(series.labels), list(series.values)) == ("x_a", {}, [1, 2])


def test_only_names_with_the_prefix_are_kept() -> None:
    assert [series.name for series in read('y_a{l="v"} 1 1764000000\nx_b 1 1764000000')] == ["x_b"]


def test_a_page_takes_the_time_at_which_it_was_saved() -> None:
    [series] = read("x_a 1", at=1764000000.0)

    assert list(series.times) == [1764000000.0]
    assert read("x_a 1")[0].times.tolist() == []


def test_a_bad_line_costs_one_line() -> None:
    reader = SeriesReader(bool)
    reader.read(
        [
            b"x_a 1 1764000000\n",
            b"\n",
            b"# HELP\n",
            b'x_a{l="v" 1 5\n',
            b"x_a two 1764000015\n",
            b"x_a 3 17640000",
        ]
    )

    [series] = [series for group in reader.series_by_group().values() for series in group if series.times]
    assert list(series.values) == [1, 3]
    assert reader.unparsed_lines == 2


def test_more_samples_than_fit_are_refused() -> None:
    reader = SeriesReader(bool, max_samples=2)

    with pytest.raises(TooManySamples):
        reader.read([b"x_a 1 1764000000\n"] * 3)


def test_groups_are_kept_apart() -> None:
    reader = SeriesReader(bool)
    reader.read([b"x_a 1\n"], at=1764000000.0, group="one")
    reader.read([b"x_a 2\n"], at=1764000000.0, group="two")

    found = {group: series[0].values.tolist() for group, series in reader.series_by_group().items()}
    assert found == {"one": [1], "two": [2]}


def test_the_client_library_reads_the_same() -> None:
    lines = [line for line in ab_fleet.open_metrics(ab_fleet.SERVERS[:1]).splitlines() if line[0] != "#"][
        :20_000
    ]
    text = "\n".join(
        f"{head} {round(float(stamp) * 1000)}" for head, _, stamp in (line.rpartition(" ") for line in lines)
    )

    ours = {
        (series.name, frozenset(series.labels.items()), time): str(value)
        for series in read(text, "brimline_")
        for time, value in zip(series.times, series.values, strict=True)
    }
    theirs = {
        (sample.name, frozenset(sample.labels.items()), sample.timestamp): str(float(sample.value))
        for family in text_string_to_metric_families(text + "\n")
        for sample in family.samples
    }
    assert len(ours) == 20_000
    assert ours == theirs
