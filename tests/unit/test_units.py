"""Durations, sizes and counts: what people write, and what they are shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brimline.units import (
    format_bytes,
    format_count,
    format_duration,
    format_ratio,
    parse_bytes,
    parse_count,
    parse_duration,
    write_bytes,
    write_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("5s", 5.0),
        ("2.5s", 2.5),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("1d2h3m4s5ms", 93784.005),
        ("0s", 0.0),
    ],
)
def test_a_duration_is_numbers_with_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-5s", "5 s", "5s ", "1s1", "5sec", "1e3s", "PT5S", "5S", "5s,6s"]
)
def test_a_number_without_a_unit_is_no_duration(text: str) -> None:
    with pytest.raises(
        ValueError, match="is not a duration; write it with a unit, such as 250ms, 5s or 1m30s"
    ):
        parse_duration(text)


def test_a_duration_beyond_any_number_is_refused() -> None:
    with pytest.raises(ValueError, match="is too long a duration; write a shorter one"):
        parse_duration("9" * 400 + "d")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1000000", 1_000_000),
        ("512MiB", 536_870_912),
        ("2GiB", 2_147_483_648),
        ("1.5 GiB", 1_610_612_736),
        ("80GB", 80_000_000_000),
        ("4kB", 4000),
        ("4KiB", 4096),
        ("1TiB", 1_099_511_627_776),
        ("9007199254740993", 9_007_199_254_740_993),  # 2**53 + 1, which no double holds
    ],
)
def test_decimal_and_binary_sizes_differ(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1Gi", "1 G", "1gib", "0x10", "1e9", "1,000"])
def test_a_size_in_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(
        ValueError, match="is not a size in bytes; write it as 512MiB, 2GiB or a plain number"
    ):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("131072", 131_072),
        ("128k", 128_000),
        ("128K", 131_072),
        ("25.6k", 25_600),
        ("1.001k", 1001),
        ("2m", 2_000_000),
        ("2M", 2_097_152),
        (" 8g ", 8_000_000_000),
        ("1T", 1_099_511_627_776),
    ],
)
def test_a_lower_case_unit_is_decimal_and_an_upper_case_one_binary(text: str, count: int) -> None:
    # human_readable_int of vLLM 0.32, engine/arg_utils.py
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-1", "1kk", "128 k", "1e3", "12b", "1.5", "0.0001k"])
def test_what_is_no_whole_number_is_no_count(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a (count|whole number)"):
        parse_count(text)


@given(st.integers(0, 10**9), st.integers(0, 999))
def test_thousands_with_three_decimals_are_exact(thousands: int, rest: int) -> None:
    assert parse_count(f"{thousands}.{rest:03}k") == thousands * 1000 + rest


@pytest.mark.parametrize("parse", [parse_bytes, parse_count])
def test_a_number_of_any_length_is_read_or_refused_with_a_value_error(parse: Callable[[str], int]) -> None:
    assert parse("1" + "0" * 400) == 10**400


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1_610_612_736, "1.50 GiB"),
        (85_520_809_984, "79.65 GiB"),  # an H100 of 81,559 MiB
        (-536_870_912, "-512.00 MiB"),
        (2**45, "32.00 TiB"),
    ],
)
def test_bytes_are_shown_with_a_binary_unit(count: int | None, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("count", "text"), [(None, "–"), (0, "0"), (1_048_576, "1,048,576"), (2.0, "2")])
def test_counts_are_shown_in_groups_of_three(count: float | None, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(None, "–"), (0.0, "0.0 %"), (0.3729, "37.3 %"), (1.0, "100.0 %")]
)
def test_ratios_are_shown_in_percent(ratio: float | None, text: str) -> None:
    assert format_ratio(ratio) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0351, "35 ms"),
        (4.2, "4.2 s"),
        (719.0, "12 min"),
        (5400.0, "90 min"),
        (9000.0, "2.5 h"),
        (3 * 86400.0 + 4 * 3600.0, "3 d 4 h"),
    ],
)
def test_durations_are_shown_in_the_unit_that_people_use(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m"),
        (90, "1m30s"),
        (5400, "1h30m"),
        (86400, "1d"),
        (90061, "1d1h1m1s"),
    ],
)
def test_a_duration_is_written_as_prometheus_reads_it(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text


@given(st.integers(0, 400 * 86400))
def test_a_written_duration_is_read_back(seconds: int) -> None:
    assert parse_duration(write_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1000, "1000"),
        (1023, "1023"),
        (1024, "1KiB"),
        (512 << 20, "512MiB"),
        (1536 << 20, "1536MiB"),
        (2 << 30, "2GiB"),
        (3 << 40, "3TiB"),
    ],
)
def test_a_size_is_written_in_the_largest_unit_that_is_exact(count: float, text: str) -> None:
    assert write_bytes(count) == text


@given(st.integers(0, 1 << 50))
def test_a_written_size_is_read_back(count: int) -> None:
    assert parse_bytes(write_bytes(count)) == count
