"""How rows of a page become quantities: names, labels, combining, limits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.engines.families import (
    MAX_BUCKETS,
    MAX_RANKS,
    MAX_REASONS,
    MAX_SERIES,
    ByLabel,
    HistogramOf,
    Key,
    Quantity,
    Scalar,
    TableReading,
    clean_label,
    counter,
    gauge,
    missing_quantities,
    parse_version,
    read_table,
    wanted_names,
)
from brimline.exposition_text import Page, Sample, scan
from brimline.readings import Histogram


def key(labels: Mapping[str, str]) -> Key:
    return labels.get("model", ""), labels.get("rank", "0")


def read(page: str, **table: Quantity) -> TableReading:
    return read_table(scan(page.encode(), wanted_names(table)), table, key)


def value(page: str, quantity: Quantity) -> object:
    """What one quantity is for the model "" and rank "0"; None where nothing is said."""
    return read(page, x=quantity).values.get(("", "0"), {}).get("x")


# --- numbers


def test_the_newest_name_on_the_page_is_taken() -> None:
    quantity = gauge("new", "old")

    assert value("old 1\n", quantity) == 1.0
    assert value("old 1\nnew 2\n", quantity) == 2.0


def test_gauges_combine_by_max_and_counters_by_sum() -> None:
    page = 'x{pid="1"} 3\nx{pid="2"} 5\n'

    assert value(page, gauge("x")) == 5.0
    assert value(page, counter("x")) == 8.0


def test_a_counter_is_found_with_and_without_its_suffix() -> None:
    assert value("x_total 3\n", counter("x_total")) == 3.0
    assert value("x 3\n", counter("x_total")) == 3.0
    assert value("x 3\nx_total 4\n", counter("x_total")) == 4.0


def test_every_model_and_rank_has_its_own_value() -> None:
    reading = read('x{model="a"} 1\nx{model="a",rank="1"} 2\nx{model="b"} 3\n', x=gauge("x"))

    assert reading.values == {("a", "0"): {"x": 1.0}, ("a", "1"): {"x": 2.0}, ("b", "0"): {"x": 3.0}}


def test_only_rows_with_the_wanted_labels_count() -> None:
    quantity = Scalar(("x",), sum, where={"state": "on"})

    assert value('x{state="on"} 1\nx{state="off"} 2\nx 4\n', quantity) == 1.0


@pytest.mark.parametrize("written", ["NaN", "-1", "-Inf", "+Inf", "1e308", "9223372036854775808"])
def test_what_is_no_count_is_dropped_and_named(written: str) -> None:
    reading = read(f"x {written}\ny 2\n", x=gauge("x"), y=gauge("y"))

    assert reading.bad == {"x"}
    assert reading.values == {("", "0"): {"y": 2.0}}


def test_a_bad_row_costs_only_its_own_rank() -> None:
    reading = read('x{rank="0"} NaN\nx{rank="1"} 2\n', x=gauge("x"))

    assert reading.values == {("", "1"): {"x": 2.0}}
    assert reading.bad == {"x"}


@pytest.mark.parametrize(
    ("written", "ratio"),
    [("0", 0.0), ("0.5", 0.5), ("1", 1.0), ("1.0001", 1.0), ("1.001", None), ("37.5", None)],
)
def test_a_ratio_lies_between_zero_and_one(written: str, ratio: float | None) -> None:
    reading = read(f"x {written}\n", x=gauge("x", ratio=True))

    assert reading.values.get(("", "0"), {}).get("x") == ratio
    assert reading.bad == ({"x"} if ratio is None else set())


# --- numbers by label


def test_values_are_kept_apart_by_their_label() -> None:
    page = 'x{reason="stop",pid="1"} 1\nx{reason="stop",pid="2"} 2\nx{reason="length"} 4\n'

    assert value(page, ByLabel(("x",), "reason")) == {"stop": 3.0, "length": 4.0}
    assert value(page, ByLabel(("x",), "reason", max)) == {"stop": 2.0, "length": 4.0}


def test_reasons_beyond_the_limit_are_dropped_and_counted() -> None:
    page = "".join(f'x{{reason="r{i}"}} 1\n' for i in range(MAX_REASONS + 3))

    reading = read(page, x=ByLabel(("x",), "reason"))

    assert len(reading.values["", "0"]["x"]) == MAX_REASONS
    assert reading.dropped == 3


def test_ranks_beyond_the_limit_are_dropped_and_counted() -> None:
    page = "".join(f'x{{rank="{i}"}} 1\n' for i in range(MAX_RANKS + 5))

    reading = read(page, x=gauge("x"))

    assert len(reading.values) == MAX_RANKS
    assert reading.dropped == 5


# --- histograms


def histogram(*buckets: tuple[str, float], count: float = 4, total: float = 9.5, labels: str = "") -> str:
    lines = [f'h_bucket{{le="{bound}"{labels}}} {number}' for bound, number in buckets]
    return "\n".join(
        [*lines, f"h_count{{{labels.lstrip(',')}}} {count}", f"h_sum{{{labels.lstrip(',')}}} {total}", ""]
    )


def test_a_histogram_is_its_buckets_its_sum_and_its_count() -> None:
    page = histogram(("+Inf", 4), ("0.5", 1), ("2.0", 3))

    assert value(page, HistogramOf(("h",))) == Histogram(((0.5, 1.0), (2.0, 3.0), (math.inf, 4.0)), 9.5, 4.0)


def test_rows_of_a_histogram_with_other_labels_add_up() -> None:
    page = histogram(("1", 1), ("+Inf", 4), labels=',pid="1"') + histogram(
        ("1", 2), ("+Inf", 4), labels=',pid="2"'
    )

    assert value(page, HistogramOf(("h",))) == Histogram(((1.0, 3.0), (math.inf, 8.0)), 19.0, 8.0)


def test_sums_without_buckets_are_a_histogram_without_buckets() -> None:
    assert value(histogram(), HistogramOf(("h",))) == Histogram((), 9.5, 4.0)


@pytest.mark.parametrize(
    "buckets",
    [
        (("0.5", 3), ("1.0", 2), ("+Inf", 4)),  # falls
        (("0.5", 3), ("+Inf", 5)),  # another count
        (("0.5", 3), ("1.0", 4)),  # no infinite bucket
        (*((str(bound), 0) for bound in range(MAX_BUCKETS)), ("+Inf", 4)),  # too many
    ],
)
def test_buckets_that_cannot_be_are_dropped_and_named(buckets: tuple[tuple[str, float], ...]) -> None:
    reading = read(histogram(*buckets), x=HistogramOf(("h",)))

    assert reading.values["", "0"]["x"] == Histogram((), 9.5, 4.0)
    assert reading.bad == {"x"}


@pytest.mark.parametrize("bound", ["NaN", "-Inf", "x", ""])
def test_a_bound_that_is_none_is_passed_over(bound: str) -> None:
    page = histogram((bound, 1), ("1.0", 2), ("+Inf", 4))

    assert value(page, HistogramOf(("h",))) == Histogram(((1.0, 2.0), (math.inf, 4.0)), 9.5, 4.0)


@pytest.mark.parametrize(("count", "total"), [(math.nan, 1.0), (-1, 1.0), (4, math.nan), (4, math.inf)])
def test_a_histogram_with_an_impossible_sum_or_count_is_dropped_and_named(count: float, total: float) -> None:
    reading = read(histogram(count=count, total=total), x=HistogramOf(("h",)))

    assert reading.values == {}
    assert reading.bad == {"x"}


def test_a_histogram_without_its_sum_is_dropped_and_named() -> None:
    assert read("h_count 4\n", x=HistogramOf(("h",))).bad == {"x"}


def test_the_newest_name_of_a_histogram_is_taken() -> None:
    page = histogram() + histogram(count=7).replace("h_", "new_")

    assert value(page, HistogramOf(("new", "h"))) == Histogram((), 9.5, 7.0)


def test_the_scanner_is_asked_for_every_name() -> None:
    table: dict[str, Quantity] = {"g": gauge("g"), "c": counter("c_total"), "h": HistogramOf(("h", "old"))}

    assert wanted_names(table, "info") == {
        *(b"g", b"c_total", b"c", b"info"),
        *(b"h_bucket", b"h_sum", b"h_count", b"old_bucket", b"old_sum", b"old_count"),
    }


# --- what one page can turn into

LATENCIES = ("ttft", "itl", "e2e", "prompt", "generation")
WIDE: dict[str, Quantity] = {
    **{f"g{i}": gauge(f"g{i}") for i in range(20)},
    **{name: HistogramOf((name,)) for name in LATENCIES},
}


def wide_page(ranks: int, *, buckets: int) -> str:
    """20 gauges and five histograms for each rank."""
    lines = []
    for rank in range(ranks):
        lines += [f'g{i}{{rank="{rank}"}} 1' for i in range(20)]
        for name in LATENCIES:
            bounds = [*range(buckets - 1), "+Inf"]
            lines += [f'{name}_bucket{{rank="{rank}",le="{bound}"}} 3' for bound in bounds]
            lines += [f'{name}_sum{{rank="{rank}"}} 2', f'{name}_count{{rank="{rank}"}} 3']
    return "\n".join(lines) + "\n"


def series(reading: TableReading) -> int:
    """What a reading is when it is exposed: numbers, reasons, sums, counts and buckets."""
    values = [value for rank in reading.values.values() for value in rank.values()]
    return sum(
        2 + len(value.buckets)
        if isinstance(value, Histogram)
        else len(value)
        if isinstance(value, dict)
        else 1
        for value in values
    )


def test_64_data_parallel_ranks_with_full_histograms_are_read_whole() -> None:
    reading = read(wide_page(64, buckets=25), **WIDE)

    assert series(reading) == 64 * (20 + 5 * (2 + 25))
    assert reading.dropped == 0


def test_with_more_ranks_the_first_keep_their_buckets_and_the_others_their_sums() -> None:
    reading = read(wide_page(MAX_RANKS, buckets=25), **WIDE)

    buckets = [sum(len(rank[name].buckets) for name in LATENCIES) for rank in reading.values.values()]
    whole = (MAX_SERIES - MAX_RANKS * 30) // 125
    assert [len(rank) for rank in reading.values.values()] == [25] * MAX_RANKS
    assert buckets == [125] * whole + [0] * (MAX_RANKS - whole)
    assert reading.dropped == (MAX_RANKS - whole) * 125
    assert reading.values["", "255"]["ttft"] == Histogram((), 2.0, 3.0)


def test_the_largest_page_becomes_no_more_series_than_the_cap_and_the_rest_is_counted() -> None:
    table: dict[str, Quantity] = {
        "a": ByLabel(("a",), "reason"),
        "b": ByLabel(("b",), "reason"),
        "h": HistogramOf(("h",)),
    }
    lines = [f'{n}{{rank="{r}",reason="{i}"}} 1\n' for n in "ab" for r in range(MAX_RANKS) for i in range(32)]
    lines += [f'h_{suffix}{{rank="{r}"}} 1\n' for r in range(MAX_RANKS) for suffix in ("sum", "count")]

    reading = read("".join(lines), **table)

    assert MAX_SERIES - 66 < series(reading) <= MAX_SERIES
    assert series(reading) + reading.dropped == MAX_RANKS * (32 + 32 + 2)


def test_what_the_scanner_dropped_is_counted_with_the_rest() -> None:
    page = Page({"x": (Sample({}, 1.0),)}, dropped_samples=7)

    assert read_table(page, {"x": gauge("x")}, key).dropped == 7


# --- versions


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.9.2", (0, 9, 2)),
        ("v0.9.2", (0, 9, 2)),
        ("0.8.5.post1", (0, 8, 5)),
        ("0.11.0rc2.dev5+gabc.cu128", (0, 11, 0)),
        ("0.32.0+cpu", (0, 32, 0)),
        ("1", (1,)),
        ("dev", None),
        ("", None),
        (None, None),
    ],
)
def test_a_version_is_its_leading_numbers(text: str | None, version: tuple[int, ...] | None) -> None:
    assert parse_version(text) == version


TABLE: dict[str, Quantity] = {
    "always": gauge("a", expected=True),
    "since_2": gauge("b", expected=True, since=(2,)),
    "until_3": gauge("c", expected=True, until=(3,)),
    "optional": gauge("d"),
}


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        (None, ("always",)),
        ((1, 9), ("always", "until_3")),
        ((2, 0), ("always", "since_2", "until_3")),
        ((3, 0), ("always", "since_2")),
    ],
)
def test_only_what_the_version_promises_is_missing(
    version: tuple[int, ...] | None, missing: tuple[str, ...]
) -> None:
    assert missing_quantities(TABLE, TableReading(), version) == missing


def test_what_is_on_the_page_or_was_impossible_is_not_missing() -> None:
    reading = read_table(scan(b"a 1\nb NaN\nc 1\n", wanted_names(TABLE)), TABLE, key)

    assert missing_quantities(TABLE, reading, (2, 0)) == ()
    assert reading.bad == {"since_2"}


# --- labels


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("süß 模型", "süß 模型"),
        ("a\nb\x00c\x1b[0m", "abc[0m"),
        ("evil\u202egpj.exe\u2066", "evilgpj.exe"),
        ("lone \ud800 half", "lone  half"),
        ("x" * 128, "x" * 128),
        ("x" * 129, "x" * 79 + "…" + "x" * 39 + "~0ec9eb33"),
    ],
)
def test_a_label_from_elsewhere_is_short_and_printable(text: str, label: str) -> None:
    assert clean_label(text) == label


def test_two_long_names_stay_two() -> None:
    middle = "/models/" + "x" * 200
    names = [f"{middle}/snapshots/{name}/{'y' * 200}" for name in ("a", "b")]

    assert len({clean_label(name) for name in names}) == 2


@settings(deadline=None)
@given(st.text(st.characters()))
def test_any_text_gives_a_label_that_can_be_written(text: str) -> None:
    label = clean_label(text)

    assert len(label) <= 128
    assert label.encode().decode() == label
    assert label.isprintable()
