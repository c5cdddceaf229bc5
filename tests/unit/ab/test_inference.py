"""The statistics of verdicts, against tables that others published."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from brimline.ab.inference import (
    Estimate,
    RateRatio,
    benjamini_hochberg,
    blocks_needed,
    holm,
    lasting_factor,
    of_blocks,
    of_replicas,
    overall,
    rare_blocks_needed,
    rare_blocks_to_decide,
    rate_ratio,
    sequence_factor,
    t_quantile,
    verdict_of,
    wider,
)

MARGIN = math.log(1.05)
CERTAIN = 1e9


def estimate(harm: float, standard_error: float, blocks: int = 16, *, sequential: bool = False) -> Estimate:
    return Estimate(
        harm=harm,
        standard_error=standard_error,
        degrees=blocks - 1,
        blocks=np.full(blocks, harm),
        sequential=sequential,
    )


@pytest.mark.parametrize(
    ("confidence", "degrees", "value"),
    # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, upper critical values of Student's t.
    [(0.95, 7, 1.895), (0.975, 5, 2.571), (0.975, 15, 2.131), (0.99, 10, 2.764), (0.975, 100, 1.984)],
)
def test_quantiles_of_t_are_those_of_the_table(confidence: float, degrees: int, value: float) -> None:
    assert t_quantile(confidence, degrees) == pytest.approx(value, abs=5e-4)


def test_the_interval_of_blocks_is_that_of_a_published_example() -> None:
    # Student (Biometrika 1908), additional hours of sleep by two drugs: mean difference 1.58, t = 4.06,
    # p = 0.0028 two-sided, 95 % interval 0.70 to 2.46.
    differences = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])

    slept = of_blocks(differences)

    assert slept.harm == pytest.approx(1.58)
    assert slept.bound(0.975, upper=False) == pytest.approx(0.70, abs=0.005)
    assert slept.bound(0.975, upper=True) == pytest.approx(2.46, abs=0.005)
    assert slept.p_worse == pytest.approx(0.0028 / 2, abs=5e-5)


def test_one_block_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two are needed"):
        of_blocks(np.array([0.1]))


def test_replicas_are_compared_as_by_welch() -> None:
    first, second = np.array([1.0, 1.1, 0.9, 1.3]), np.array([1.4, 1.2, 1.9])

    among = of_replicas(first, second)

    oracle = stats.ttest_ind(second, first, equal_var=False)
    assert 2 * among.p_worse == pytest.approx(oracle.pvalue)
    low, high = oracle.confidence_interval(0.95)
    assert among.bound(0.975, upper=False) == pytest.approx(low)
    assert among.bound(0.975, upper=True) == pytest.approx(high)


def test_the_wider_interval_may_come_from_fewer_degrees() -> None:
    narrow, wide = estimate(0.0, 0.01, 16), estimate(0.0, 0.008, 3)

    assert wider(narrow, wide) is wide
    assert wider(wide, narrow) is wide


def test_a_boot_more_widens_the_interval_in_quadrature() -> None:
    plain = Estimate(harm=0.0, standard_error=0.03, degrees=15, boot_error=0.04, blocks=np.zeros(16))

    assert plain.error == pytest.approx(0.05)


# --- verdicts ---


@pytest.mark.parametrize(
    ("harm", "error", "verdict"),
    [
        (0.10, 0.01, "worse"),
        (0.10, 0.06, "inconclusive"),  # beyond the margin, and yet it may be nothing
        (0.04, 0.001, "pass"),  # harm for certain, within the margin
        (0.0, 0.01, "pass"),
        (0.0, 0.04, "inconclusive"),
        (-0.10, 0.01, "better"),
        (-0.01, 0.01, "pass"),
        (MARGIN + 1e-6, 0.001, "worse"),
        (MARGIN - 1e-6, 0.001, "inconclusive"),
    ],
)
def test_verdict_beside_a_margin_of_five_percent(harm: float, error: float, verdict: str) -> None:
    assert verdict_of(estimate(harm, error), MARGIN) == verdict


def test_pass_begins_where_the_bound_of_95_percent_is_inside() -> None:
    reach = t_quantile(0.95, 15) * 0.01

    assert verdict_of(estimate(MARGIN - reach - 1e-6, 0.01), MARGIN) == "pass"
    assert verdict_of(estimate(MARGIN - reach + 1e-6, 0.01), MARGIN) == "inconclusive"


def test_worse_begins_where_the_bound_of_97_5_percent_shows_harm() -> None:
    harm = 0.10
    error = harm / t_quantile(0.975, 15)

    assert verdict_of(estimate(harm, error * 0.999), MARGIN) == "worse"
    assert verdict_of(estimate(harm, error * 1.001), MARGIN) == "inconclusive"


def test_holm_is_that_of_the_published_example() -> None:
    # en.wikipedia.org/wiki/Holm-Bonferroni_method: at 0.05 the first and the last of them are rejected.
    p_values = {"H1": 0.01, "H2": 0.04, "H3": 0.03, "H4": 0.005}

    thresholds = holm(p_values, alpha=0.05)

    assert thresholds["H4"] == pytest.approx(0.05 / 4)
    assert thresholds["H1"] == pytest.approx(0.05 / 3)
    assert {name for name, p in p_values.items() if p <= thresholds[name]} == {"H1", "H4"}


def test_false_discoveries_are_held_as_in_the_published_example() -> None:
    # Benjamini and Hochberg (1995), section 4: of 15 hypotheses four are rejected (three by Bonferroni).
    values = (
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
        0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0,
    )  # fmt: skip

    adjusted = benjamini_hochberg({f"P{place:02}": p for place, p in enumerate(values, 1)})

    assert [name for name, p in sorted(adjusted.items()) if p <= 0.05] == ["P01", "P02", "P03", "P04"]
    assert list(adjusted.values()) == pytest.approx(stats.false_discovery_control(values)[::-1])


@pytest.mark.parametrize(
    ("gates", "verdict"),
    [
        ([], "inconclusive"),
        (["pass", "pass"], "pass"),
        (["pass", "better"], "better"),
        (["pass", "inconclusive"], "inconclusive"),
        (["worse", "inconclusive", "better"], "worse"),
    ],
)
def test_all_gates_together(gates: list[str], verdict: str) -> None:
    assert overall(gates) == verdict  # type: ignore[arg-type]


# --- how long ---


def test_blocks_needed_give_the_wanted_power() -> None:
    spread = 0.06
    count = blocks_needed(spread, MARGIN)

    random = np.random.default_rng(1)
    runs = [of_blocks(random.normal(0, spread, int(count))) for _ in range(2000)]
    passed = np.mean([run.bound(0.95, upper=True) < MARGIN for run in runs])
    assert 0.76 < passed < 0.86


def test_looking_at_any_time_needs_more_blocks() -> None:
    spread = 0.06
    count = int(blocks_needed(spread, MARGIN, sequential=True))

    random = np.random.default_rng(1)
    runs = [
        replace(of_blocks(random.normal(0, spread, count)), sequential=True, degrees=count - 1)
        for _ in range(2000)
    ]
    passed = np.mean([run.bound(0.95, upper=True) < MARGIN for run in runs])
    assert count >= 1.5 * blocks_needed(spread, MARGIN)
    assert 0.76 < passed < 0.86


def passing(
    per_block: float, exposure: float, blocks: int, *, bursts: float, looks: bool = False, ratio: float = 1.0
) -> float:
    """The share of simulated runs of so many blocks that pass. bursts: variance of a block's rate over it."""
    random = np.random.default_rng(2)
    passed = 0
    for _ in range(400):
        rates = per_block / (1 + exposure) * np.array([1.0, exposure * ratio])
        size = (blocks, 2)
        if bursts:
            events = random.poisson(random.gamma(rates / bursts, bursts, size)).astype(float)
        else:
            events = random.poisson(rates, size).astype(float)
        found = rate_ratio(
            events[:, 0],
            np.full(blocks, 1.0),
            events[:, 1],
            np.full(blocks, exposure),
            looks=blocks if looks else 0,
        )
        passed += verdict_of(found, math.log(1.5)) in ("pass", "better") or math.isnan(found.ratio)
    return passed / 400


@pytest.mark.parametrize(
    ("per_block", "exposure", "bursts", "looks"),
    [
        (20.0, 1.0, 0.0, False),
        (4.0, 1.0, 0.0, False),
        (20.0, 0.8, 2.0, False),
        (60.0, 1.2, 4.0, False),
        (20.0, 1.0, 0.0, True),
    ],
)
def test_blocks_needed_for_rare_events_give_the_wanted_power(
    per_block: float, exposure: float, bursts: float, looks: bool
) -> None:
    needed = rare_blocks_needed(
        per_block, math.log(1.5), exposure=exposure, dispersion=1 + bursts, sequential=looks
    )

    count = int(needed)
    # Where a block's rate varies, the dispersion is itself known from these few blocks only.
    assert 0.7 < passing(per_block, exposure, count, bursts=bursts, looks=looks) < 0.9
    assert passing(per_block, exposure, max(count // 3, 2), bursts=bursts, looks=looks) < 0.55


def test_events_that_never_come_are_waited_for_in_vain() -> None:
    assert rare_blocks_needed(0.0, math.log(1.5)) == math.inf


def test_rates_that_stay_as_they_are_are_decided_after_so_many_blocks() -> None:
    """A fifth more: inside a margin of a half, and certain once there are enough events."""
    rates = RateRatio(baseline=100, candidate=120, exposure=1.0, dispersion=1.0, degrees=9)
    margin = math.log(1.5)
    needed = rare_blocks_to_decide(rates, 10, margin)

    def upper(blocks: float) -> float:
        grown = replace(rates, baseline=10 * blocks, candidate=12 * blocks, degrees=blocks - 1)
        return grown.bound(0.95, upper=True)

    assert upper(needed) < margin <= upper(needed - 1)
    # Exactly at the margin nothing is ever decided.
    assert rare_blocks_to_decide(replace(rates, candidate=150), 10, margin) == math.inf


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("boot_error", [0.0, 0.01, 0.01 * math.sqrt(2)])
@pytest.mark.parametrize("spread", [0.002, 0.02, 0.05, 0.12])
@pytest.mark.parametrize("margin", [0.03, 0.05, 0.1])
def test_blocks_needed_are_the_first_count_that_suffices(
    margin: float, spread: float, boot_error: float, sequential: bool
) -> None:
    harm = math.log1p(margin)

    def suffices(count: int) -> bool:
        run = Estimate(
            harm=0.0,
            standard_error=spread / math.sqrt(count),
            degrees=count - 1,
            boot_error=boot_error,
            blocks=np.zeros(count),
            sequential=sequential,
        )
        return run.reach(0.95) + t_quantile(0.8, count - 1) * run.error <= harm

    first = next((count for count in range(2, 3000) if suffices(count)), math.inf)

    needed = blocks_needed(spread, harm, boot_error=boot_error, sequential=sequential)
    assert needed == first or (first == math.inf and needed >= 3000)


def test_no_time_suffices_where_boots_differ_by_the_margin() -> None:
    assert blocks_needed(0.06, 0.02, boot_error=0.02) == math.inf


# --- looking at any time ---


def test_the_band_is_the_two_sided_normal_mixture_of_confseq() -> None:
    # gostevehoward/confseq, test/uniform_boundaries_unittest.cpp: narrowest at 100, bound of the sum of 100.
    assert sequence_factor(100, degrees=CERTAIN, best_at=100) * 10 == pytest.approx(30.35209, abs=1e-4)


def test_the_band_widens_where_few_blocks_tell_their_spread() -> None:
    # The t quantile over the normal one: 2.228 / 1.960 for eleven blocks (the NIST table's for 10 degrees).
    few, certain = sequence_factor(11), sequence_factor(11, degrees=CERTAIN)

    assert few / certain == pytest.approx(2.228 / 1.960, abs=1e-3)


def test_looking_at_any_time_costs_width() -> None:
    once, often = estimate(0.06, 0.02), estimate(0.06, 0.02, sequential=True)

    assert often.bound(0.975, upper=False) < 0 < once.bound(0.975, upper=False)
    assert often.p_worse > 0.025 > once.p_worse


def test_the_probability_belongs_to_the_bound() -> None:
    often = estimate(0.12, 0.03, sequential=True)

    assert often.bound(1 - often.p_worse, upper=False) == pytest.approx(0, abs=1e-6)


def test_noise_that_lasts_makes_means_of_blocks_uncertain_by_more_than_their_spread() -> None:
    # The variance of sums of an autoregressive series, by its autocovariances: of 60 (a block), of 60 * 4000.
    lasting, per_block = 0.9, 60

    def variance_of_sum(count: int) -> float:
        lags = np.arange(1, count)
        return float(count + 2 * ((count - lags) * lasting**lags).sum())

    truth = variance_of_sum(per_block * 4000) / 4000
    naive = variance_of_sum(per_block)

    time_constant = -1 / math.log(lasting)
    assert lasting_factor(per_block, time_constant) == pytest.approx(math.sqrt(truth / naive), rel=1e-3)


# --- rare events ---


@pytest.mark.parametrize(
    ("events", "of", "low", "high"),
    # Newcombe (Statistics in Medicine 1998, 17:857), table I, the exact (Clopper-Pearson) method.
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_bounds_of_a_share_are_the_published_ones(events: int, of: int, low: float, high: float) -> None:
    rates = RateRatio(baseline=of - events, candidate=events, exposure=1.0, dispersion=1.0, degrees=CERTAIN)

    odds = [math.exp(rates.bound(0.975, upper=side)) for side in (False, True)]

    assert [odd / (1 + odd) for odd in odds] == pytest.approx([low, high], abs=5e-5)


def test_rates_are_compared_as_by_the_exact_binomial_test() -> None:
    # Ten of candidate's against four, over twice the exposure.
    rates = RateRatio(baseline=4, candidate=10, exposure=2.0, dispersion=1.0, degrees=CERTAIN)

    oracle = stats.binomtest(10, 14, 2 / 3, alternative="greater")
    assert rates.ratio == pytest.approx(1.25)
    assert rates.p_worse == pytest.approx(oracle.pvalue, rel=1e-4)
    interval = stats.binomtest(10, 14, 2 / 3).proportion_ci(0.95, "exact")
    share = math.exp(rates.bound(0.975, upper=True)) * 2
    assert share / (1 + share) == pytest.approx(interval.high, abs=1e-6)


def test_no_events_in_either_arm_are_no_difference() -> None:
    nothing, tokens = np.zeros(8), np.full(8, 1e6)

    rates = rate_ratio(nothing, tokens, nothing, tokens)

    assert math.isnan(rates.ratio)
    assert rates.harm == 0.0
    assert rates.p_worse == 1.0
    assert rates.bound(0.95, upper=True) == math.inf


def test_events_of_one_arm_alone_have_one_bound() -> None:
    tokens = np.full(8, 1e6)

    rates = rate_ratio(np.zeros(8), tokens, np.array([0, 1, 0, 1, 1, 0, 0, 1.0]), tokens)

    assert rates.ratio == math.inf
    assert math.isfinite(rates.bound(0.975, upper=False))
    assert rates.p_worse == pytest.approx(0.5**4, rel=1e-4)
    assert rates.bound(0.95, upper=True) == math.inf


@pytest.mark.parametrize("size", [1, 10, 300])
@pytest.mark.parametrize("bursts", [2, 3, 5])
def test_a_burst_counts_once_however_many_events_are_in_it(size: int, bursts: int) -> None:
    tokens, events = np.full(16, 1e6), np.zeros(16)
    events[:bursts] = size

    rates = rate_ratio(np.zeros(16), tokens, events, tokens)

    # Each block's burst might as well have been the other arm's: the chance that none was.
    assert rates.p_worse == pytest.approx(0.5**bursts, rel=1e-4)


def test_bursts_of_the_baseline_alone_prove_nothing_either() -> None:
    tokens, events = np.full(16, 1e6), np.zeros(16)
    events[[2, 9, 12]] = 40

    assert rate_ratio(events, tokens, np.zeros(16), tokens).bound(0.95, upper=True) > math.log(1.5)


def test_one_event_of_the_other_arm_makes_no_certainty_of_three_bursts() -> None:
    tokens, few, bursts = np.full(16, 1e6), np.zeros(16), np.zeros(16)
    bursts[[2, 9, 12]] = 10
    few[2] = 1

    assert rate_ratio(few, tokens, bursts, tokens).p_worse > 0.1


def test_as_many_more_in_every_block_is_no_burst() -> None:
    tokens = np.full(16, 1e6)

    rates = rate_ratio(np.full(16, 10.0), tokens, np.full(16, 30.0), tokens)

    assert rates.dispersion == 1.0
    assert rates.bound(0.975, upper=False) > math.log(2.3)


def test_what_moves_both_arms_at_once_is_no_dispersion() -> None:
    peaks = np.array([0, 40, 2, 80, 0, 60, 4, 100.0])
    tokens = np.full(8, 1e6)

    assert rate_ratio(peaks, tokens, peaks, tokens).dispersion == 1.0


def test_bursts_of_one_arm_widen_the_bounds() -> None:
    steady, bursts, tokens = np.full(8, 20.0), np.array([0, 0, 80, 0, 0, 0, 80, 0.0]), np.full(8, 1e6)

    even = rate_ratio(steady, tokens, steady, tokens)
    uneven = rate_ratio(steady, tokens, bursts, tokens)

    assert uneven.dispersion > 10
    assert uneven.bound(0.975, upper=True) > 2 * even.bound(0.975, upper=True)


def test_servers_that_differ_count_as_dispersion() -> None:
    events, tokens = np.full(8, 20.0), np.full(8, 1e6)
    servers = (np.array([150.0, 5.0, 5.0]), np.full(3, 8e6 / 3))

    rates = rate_ratio(events, tokens, events, tokens, groups=[servers])

    assert rates.degrees == 2
    assert rates.dispersion > 10


@pytest.mark.parametrize(("burst", "least", "most"), [(1, 0.04, 0.1), (100, 0.5, 0.9)])
def test_why_no_differences_are_offered_errors_in_bursts_would_pass_them(
    burst: int, least: float, most: float
) -> None:
    """A candidate that is worse by 0.2 % errors, just the margin, over eight blocks of 900 requests."""
    random, margin, runs, requests = np.random.default_rng(7), 0.002, 1000, 900

    errors = random.poisson(margin * requests / burst, (runs, 8)) * burst / requests

    passed = [verdict_of(of_blocks(differences), margin) in ("pass", "better") for differences in errors]
    assert least < np.mean(passed) < most


def test_a_ratio_of_shares_has_the_same_fault() -> None:
    random = np.random.default_rng(7)
    errors = random.poisson(0.002 * 900 / 100, (1000, 8)) * 100 / 900
    harm = -np.log1p(-np.minimum(errors, 0.99))

    passed = [verdict_of(of_blocks(differences), 0.002) in ("pass", "better") for differences in harm]

    assert np.mean(passed) > 0.5
