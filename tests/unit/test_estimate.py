"""Estimates: bounds that hold, sums that keep them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brimline.errors import FootprintError
from brimline.estimate import Estimate, between, exact, total

sizes = st.integers(min_value=0, max_value=1 << 50)


def test_a_fraction_of_a_byte_counts_as_a_byte() -> None:
    assert exact(1.25, "x") == Estimate(2, 2, 2, "x")


def test_bounds_round_outwards() -> None:
    assert between(1.9, 2.1, 3.1, "x") == Estimate(1, 3, 4, "x")


def test_sums_add_each_bound() -> None:
    assert total([Estimate(1, 2, 3, "a"), Estimate(10, 20, 30, "b")], "sum") == Estimate(11, 22, 33, "sum")


def test_the_sum_of_nothing_is_nothing() -> None:
    assert total([], "none") == exact(0, "none")


def test_only_an_estimate_without_room_is_exact() -> None:
    assert exact(5, "x").is_exact
    assert not Estimate(1, 2, 3, "x").is_exact


@pytest.mark.parametrize("bounds", [(2, 1, 3), (1, 3, 2), (-1, 0, 1)])
def test_bounds_that_do_not_rise_from_zero_are_refused(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(FootprintError, match="must rise"):
        Estimate(*bounds, "x")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(sizes, sizes, sizes), max_size=8))
def test_the_bounds_of_a_sum_stay_in_order(parts: list[tuple[int, int, int]]) -> None:
    in_order = [Estimate(min(part), sorted(part)[1], max(part), "x") for part in parts]

    summed = total(in_order, "sum")

    assert summed.low <= summed.expected <= summed.high
