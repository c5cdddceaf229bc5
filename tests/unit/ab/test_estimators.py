"""Differences of two arms from their blocks."""

from __future__ import annotations

import numpy as np
import pytest

from brimline.ab.estimators import (
    Arm,
    NotEnough,
    affine,
    intensity,
    load_overlap,
    quantile_of_buckets,
)

LOADS = np.array([0.8, 1.1, 1.3, 0.9, 1.0, 1.2, 0.7, 1.05])
NOTHING = np.full(8, np.nan)


def test_equal_arms_do_not_differ() -> None:
    values = np.linspace(1, 2, 8)

    compared = intensity(Arm(values, NOTHING), Arm(values, NOTHING), more_is_better=False, boot_error=0.0)

    assert compared.estimate.harm == 0


def test_more_of_what_is_better_is_no_harm() -> None:
    values = np.linspace(1, 2, 8)
    arms = Arm(values, NOTHING), Arm(1.1 * values, NOTHING)

    assert intensity(*arms, more_is_better=True, boot_error=0.0).estimate.harm == pytest.approx(-np.log(1.1))
    assert intensity(*arms, more_is_better=False, boot_error=0.0).estimate.harm == pytest.approx(np.log(1.1))


def test_blocks_in_which_an_arm_has_nothing_are_left_out() -> None:
    values = np.array([1.0, np.nan, 0.0, 1, 1, 1, 1, 1])

    compared = intensity(Arm(values, NOTHING), Arm(np.ones(8), NOTHING), more_is_better=False, boot_error=0.0)

    assert compared.places == (0, 3, 4, 5, 6, 7)


def test_one_block_is_not_enough() -> None:
    alone = Arm(np.array([1.0, np.nan]), NOTHING[:2])

    with pytest.raises(NotEnough, match="1 blocks"):
        intensity(alone, alone, more_is_better=False, boot_error=0.0)


def test_load_explains_what_is_in_proportion_to_it() -> None:
    baseline, candidate = Arm(0.3 * LOADS, LOADS), Arm(0.3 * 1.4 * LOADS[::-1], 1.4 * LOADS[::-1])

    compared = affine(baseline, candidate, more_is_better=False, boot_error=0.0)

    assert compared.estimate.harm == pytest.approx(0, abs=1e-9)
    assert compared.slope == pytest.approx(1)


def test_a_difference_at_equal_load_is_found_beside_that_of_load() -> None:
    noise = 0.01 * np.sin(np.arange(8))
    baseline = Arm(np.exp(noise) * LOADS**0.5, LOADS)
    candidate = Arm(1.1 * np.exp(-noise) * (1.2 * LOADS) ** 0.5, 1.2 * LOADS)

    compared = affine(baseline, candidate, more_is_better=False, boot_error=0.0)

    assert compared.estimate.harm == pytest.approx(np.log(1.1), abs=0.02)
    assert compared.estimate.degrees == 6


def test_its_error_is_that_of_leaving_out_each_block() -> None:
    random = np.random.default_rng(3)
    values = np.exp(0.1 * random.standard_normal((2, 8)))
    loads = LOADS * np.array([[1.0], [1.2]])

    def fitted(kept: np.ndarray) -> float:
        count = int(kept.sum())
        design = np.column_stack(
            [np.ones(2 * count), np.repeat([0.0, 1.0], count), np.log(loads[:, kept]).ravel()]
        )
        return float(np.linalg.lstsq(design, np.log(values[:, kept]).ravel(), rcond=None)[0][1])

    compared = affine(
        Arm(values[0], loads[0]), Arm(values[1], loads[1]), more_is_better=False, boot_error=0.0
    )

    without = np.array([fitted(np.arange(8) != place) for place in range(8)])
    assert compared.estimate.harm == pytest.approx(fitted(np.ones(8, bool)))
    assert compared.estimate.standard_error == pytest.approx(
        np.sqrt(7 / 8 * ((without - without.mean()) ** 2).sum())
    )


def test_equal_loads_that_never_vary_need_no_adjustment() -> None:
    values = np.array([1.0, 1.1, 0.9, 1.0])
    steady = np.ones(4)

    compared = affine(Arm(values, steady), Arm(1.2 * values, steady), more_is_better=False, boot_error=0.0)

    assert compared.estimate.harm == pytest.approx(np.log(1.2))
    assert compared.slope == 0


def test_unequal_loads_that_never_vary_cannot_be_adjusted_for() -> None:
    values = np.array([1.0, 1.1, 0.9, 1.0])

    with pytest.raises(NotEnough, match="never vary"):
        affine(Arm(values, np.ones(4)), Arm(values, 1.3 * np.ones(4)), more_is_better=False, boot_error=0.0)


def test_loads_overlap_by_the_share_of_their_common_range() -> None:
    low, high = np.linspace(0, 10, 1001), np.linspace(5, 15, 1001)

    assert load_overlap(low, low) == pytest.approx(1)
    assert load_overlap(low, high) == pytest.approx(4 / 14)
    assert load_overlap(low, high + 20) == 0


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    bounds, counts = np.array([0.1, 0.2, 0.4, np.inf]), np.array([50.0, 90.0, 100.0, 100.0])

    # As histogram_quantile(0.95, …) of Prometheus: 0.2 + 0.2 * (95 - 90) / 10.
    assert quantile_of_buckets(bounds, counts, 0.95) == pytest.approx((0.3, 0.2 / 0.3))


def test_a_quantile_beyond_the_last_bound_is_not_known() -> None:
    bounds, counts = np.array([0.1, np.inf]), np.array([50.0, 100.0])

    assert np.isnan(quantile_of_buckets(bounds, counts, 0.95)[0])
    assert np.isnan(quantile_of_buckets(bounds, np.zeros(2), 0.95)[0])
    assert np.isnan(quantile_of_buckets(np.empty(0), np.empty(0), 0.95)[0])
