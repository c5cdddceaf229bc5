"""Saved series: which files are read, which times they have, and which selectors they answer."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from brimline.ab.saved_series import SavedSeries, load, parse_selector, time_of
from brimline.errors import DataSourceError
from brimline.prometheus_api import Rows

DUMP = """
brimline_up{job="j",instance="a",target="t"} 1 1764000000
brimline_up{job="j",instance="a",target="t"} 2 1764000015
brimline_up{job="j",instance="a",target="t"} 4 1764000045
brimline_up{job="j",instance="a",target="t"} 3 1764000030
brimline_up{job="j",instance="b|c",target="{t}"} 9 1764000015
brimline_down{job="j",instance="a",target="t"} 7 1764000015
"""


@pytest.fixture
def dump(tmp_path: Path) -> SavedSeries:
    file = tmp_path / "dump.om"
    file.write_text(DUMP)
    return load(file)


def raw(source: SavedSeries, selector: str, start: float = 0, end: float = 2e9) -> Rows:
    return asyncio.run(source.raw_samples(selector, start, end))


def values(rows: Rows) -> list[list[float]]:
    return [list(row.values) for row in rows.rows]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ('brimline_up{instance="a"}', [[1, 2, 3, 4]]),
        ('brimline_up{instance!="a"}', [[9]]),
        ('brimline_up{instance=~"b\\\\|c"}', [[9]]),
        ('brimline_up{instance=~"b|c"}', []),
        ('brimline_up{target=~"\\\\{t\\\\}"}', [[9]]),
        ('brimline_up{instance!~"b.*", job="j",}', [[1, 2, 3, 4]]),
        ("brimline_up{target='{t}'}", [[9]]),
        ('{__name__=~"brimline_up|brimline_down",instance="a"}', [[1, 2, 3, 4], [7]]),
        ('brimline_up{absent=""}', [[1, 2, 3, 4], [9]]),
        ('brimline_up{absent="x"}', []),
        ("brimline_down", [[7]]),
        ("brimline_none", []),
    ],
)
def test_a_selector_finds_what_prometheus_would(
    dump: SavedSeries, selector: str, found: list[list[float]]
) -> None:
    assert values(raw(dump, selector)) == found


@pytest.mark.parametrize("text", ["sum(up)", "up[5m]", "up{a=b}", "{}", "", 'up{a=~"("}'])
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(DataSourceError) as refused:
        parse_selector(text)

    assert refused.value.reason == "query"


def test_a_stretch_is_open_at_its_start(dump: SavedSeries) -> None:
    assert values(raw(dump, 'brimline_up{instance="a"}', 1764000000, 1764000030)) == [[2, 3]]


def test_a_look_now_and_then_finds_nothing_old(dump: SavedSeries) -> None:
    start = 1764000000.0
    rows = asyncio.run(dump.query_range('brimline_up{instance="a"}', start + 10, start + 130, 20)).rows

    assert [(time - start, value) for time, value in zip(rows[0].times, rows[0].values, strict=True)] == [
        (10, 1),
        (30, 3),
        (50, 4),
        (70, 4),
    ]


def test_pages_of_several_exporters_take_time_and_instance_from_their_files(tmp_path: Path) -> None:
    for name, value in (
        ("one/1764000000.prom", 1),
        ("one/1764000015.5.prom", 2),
        ("two/1764000000123.prom", 3),
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'# TYPE brimline_up gauge\nbrimline_up{{target="t"}} {value}\n')
    (tmp_path / "one/notes.md").write_text("brimline_up 5")

    rows = raw(load(tmp_path), "brimline_up").rows

    assert [
        (row.labels["job"], row.labels["instance"], list(row.times), list(row.values)) for row in rows
    ] == [
        ("saved", "one", [1764000000.0, 1764000015.5], [1, 2]),
        ("saved", "two", [1764000000.123], [3]),
    ]


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("2025-11-24T16:00:00Z.prom", 1764000000.0),
        ("page-20251124T160000Z.txt", 1764000000.0),
        ("2025-11-24_16-00-00.prom", 1764000000.0),
        ("9999-99-99T99-99-99.prom", 1600000000.0),
        ("page.prom", 1600000000.0),
    ],
)
def test_the_time_of_a_page(tmp_path: Path, name: str, time: float) -> None:
    file = tmp_path / name
    file.write_text("")
    os.utime(file, (1600000000, 1600000000))

    assert time_of(file) == time


def test_lines_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    file = tmp_path / "dump.om"
    file.write_text(DUMP + "brimline_up{ 1 1764000000\n")

    assert raw(load(file), "brimline_down").warnings == ("1 lines could not be read",)


@pytest.mark.parametrize(
    ("content", "said"),
    [("up 1 1764000000\n", "holds no samples of brimline_"), ("brimline_up 1\n", "with timestamps")],
)
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "dump.om"
    file.write_text(content)

    with pytest.raises(DataSourceError, match=said):
        load(file)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataSourceError, match="cannot be read"):
        load(tmp_path / "none")
    with pytest.raises(DataSourceError, match="holds no files"):
        load(tmp_path)
