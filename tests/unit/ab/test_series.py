"""Raw samples of counters and gauges, with resets, gaps and what is no number."""

from __future__ import annotations

import numpy as np
import pytest

from brimline.ab import series
from brimline.ab.series import EMPTY, Series


def samples(*pairs: tuple[float, float]) -> Series:
    return Series(np.array([time for time, _ in pairs]), np.array([value for _, value in pairs]))


def test_a_counter_that_fell_began_anew_from_zero() -> None:
    counter = samples((0, 100), (15, 130), (30, 20), (45, 50))

    assert series.growth(counter).values.tolist() == [30, 20, 30]
    assert series.resets(counter).tolist() == [30]


def test_growth_over_a_gap_is_shared_out_by_time() -> None:
    # 10 each 15 s, and nothing read from 60 to 240: two thirds of those 120 are of the stretch before 180.
    times = [*range(0, 75, 15), *range(240, 315, 15)]
    counter = samples(*((time, time * 2 / 3) for time in times))

    grown = series.growth(counter)

    assert grown.times.tolist() == times[1:]
    assert grown.over_gaps == ((60, 240, 120),)
    assert series.in_stretches(grown, np.array([0.0, 180, 300])).tolist() == pytest.approx([120, 80])


def test_a_scrape_that_failed_is_no_gap() -> None:
    counter = samples((0, 100), (15, 110), (45, 160), (60, 170))

    assert series.growth(counter).over_gaps == ()
    assert series.growth(counter).values.tolist() == [10, 50, 10]


def test_each_counter_has_its_own_gaps() -> None:
    steady = samples(*((time, time) for time in range(0, 151, 15)))
    away = samples(*((time, 2 * time) for time in (0, 15, 30, 120, 135, 150)))

    grown = series.total_growth([steady, away])

    assert series.in_stretches(grown, np.array([0.0, 75, 150])).tolist() == pytest.approx([225, 225])


def test_samples_that_are_no_numbers_are_passed_over() -> None:
    counter = samples((0, 100), (15, float("nan")), (30, 120))

    assert series.growth(counter).values.tolist() == [20]
    assert series.resets(counter).tolist() == []
    gauge = samples((10, 1), (20, float("nan")), (30, 3))
    assert series.mean_in_stretches(gauge, np.array([0.0, 30.0])).tolist() == [2]


def test_an_empty_vector_grows_by_nothing() -> None:
    assert len(series.growth(EMPTY).times) == 0
    assert len(series.resets(EMPTY)) == 0
    assert series.in_stretches(EMPTY, np.array([0.0, 60.0, 120.0])).tolist() == [0, 0]
    assert np.isnan(series.mean_in_stretches(EMPTY, np.array([0.0, 60.0]))).all()
    assert np.isnan(series.scrape_interval([EMPTY.times]))


def test_a_sample_on_an_edge_belongs_to_the_stretch_that_ends_there() -> None:
    steps = samples((15, 1), (30, 2), (45, 4), (60, 8))

    assert series.in_stretches(steps, np.array([0.0, 30.0, 60.0])).tolist() == [3, 12]


def test_ranks_are_added_only_where_all_of_them_were_read() -> None:
    both = series.summed([samples((0, 1), (15, 2), (30, 3)), samples((0, 10), (30, 30))])

    assert both.times.tolist() == [0, 30]
    assert both.values.tolist() == [11, 33]


def test_the_fullest_rank_counts() -> None:
    both = series.largest([samples((0, 0.1), (15, 0.9)), samples((0, 0.4))])

    assert both.values.tolist() == [0.4, 0.9]


def test_each_counter_has_its_own_resets() -> None:
    grown = series.total_growth([samples((0, 5), (15, 7)), samples((0, 100), (15, 1))])

    assert grown.values.tolist() == [3]


def test_coverage_is_the_share_of_scrapes_there() -> None:
    times = np.array([15.0, 30, 45, 60, 75])

    assert series.coverage(times, np.array([0.0, 60.0, 120.0]), 15).tolist() == [1.0, 0.25]
