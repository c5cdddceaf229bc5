"""From the differences of blocks to a verdict: intervals, multiplicity, bounds for looking at any time.

Everything is on the scale of *harm*: the logarithm of candidate over baseline, with the sign turned where
more is better, so that 0 is no difference and above 0 is worse. A block is a stretch of time long enough
for blocks to be nearly independent; scrapes within it are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Verdict = Literal["better", "pass", "worse", "inconclusive", "not_comparable"]

# WORSE: the bound of this one-sided confidence shows harm and the estimate is beyond the margin. PASS:
# the bound of that one is inside the margin. Chosen by simulation (docs/ab.md): +10 % is found within
# four hours, and a difference of just the margin passes in at most 8 % of runs.
WORSE_CONFIDENCE = 0.975
PASS_CONFIDENCE = 0.95
POWER = 0.8

# The count of blocks for which the band that may be looked at any time is narrowest: 16 of a quarter of
# an hour.
BAND_BLOCKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A difference with what it is known to.

    harm: the estimate. standard_error, degrees: of a t distribution. boot_error: what one boot more or less
    would move, which is in no block of this run. blocks: the values behind it, one each.
    """

    harm: float
    standard_error: float
    degrees: float
    boot_error: float = 0.0
    blocks: Floats

    @property
    def error(self) -> float:
        """Standard error with that of the boots."""
        return math.hypot(self.standard_error, self.boot_error)

    def bound(self, confidence: float, *, upper: bool) -> float:
        """A one-sided bound of the harm."""
        reach = float(stats.t.ppf(confidence, self.degrees)) * self.error
        return self.harm + reach if upper else self.harm - reach

    @property
    def p_worse(self) -> float:
        """Probability of so much harm or more where there is none."""
        if self.error == 0.0:
            return 0.0 if self.harm > 0 else 1.0
        return float(stats.t.sf(self.harm / self.error, self.degrees))


def of_blocks(differences: Floats, *, boot_error: float = 0.0) -> Estimate:
    """The mean of the blocks' differences with its t interval. Raises ValueError for fewer than two."""
    count = len(differences)
    if count < 2:
        raise ValueError(f"{count} blocks have no spread; two are needed")
    return Estimate(
        harm=float(np.mean(differences)),
        standard_error=float(np.std(differences, ddof=1)) / math.sqrt(count),
        degrees=count - 1,
        boot_error=boot_error,
        blocks=differences,
    )


def of_replicas(baseline: Floats, candidate: Floats) -> Estimate:
    """The difference of the replicas' means by Welch's t. Raises ValueError for fewer than two in an arm."""
    if min(len(baseline), len(candidate)) < 2:
        raise ValueError("an arm of one replica has no spread; two are needed")
    spread = [float(np.var(arm, ddof=1)) / len(arm) for arm in (baseline, candidate)]
    total = sum(spread)
    degrees = (
        total**2
        / sum(part**2 / (len(arm) - 1) for part, arm in zip(spread, (baseline, candidate), strict=True))
        if total > 0
        else float(len(baseline) + len(candidate) - 2)
    )
    return Estimate(
        harm=float(np.mean(candidate) - np.mean(baseline)),
        standard_error=math.sqrt(total),
        degrees=degrees,
        blocks=candidate,
    )


def wider(first: Estimate, second: Estimate) -> Estimate:
    """The one with the wider two-sided 95 % interval."""
    reach = [float(stats.t.ppf(0.975, one.degrees)) * one.error for one in (first, second)]
    return first if reach[0] >= reach[1] else second


# --- verdicts ---


def verdict_of(estimate: Estimate, margin: float, *, p_threshold: float = 1 - WORSE_CONFIDENCE) -> Verdict:
    """What an estimate says beside a margin of harm. p_threshold: what Holm leaves to this metric."""
    if estimate.p_worse <= p_threshold and estimate.harm > margin:
        return "worse"
    if estimate.bound(PASS_CONFIDENCE, upper=True) < margin:
        return "better" if estimate.bound(WORSE_CONFIDENCE, upper=True) < 0 else "pass"
    return "inconclusive"


def holm(p_values: Mapping[str, float], alpha: float = 1 - WORSE_CONFIDENCE) -> dict[str, float]:
    """For each name, the largest p that is still significant among all of them (Holm 1979).

    A name is significant where its own p is at most what stands here: the smallest is held against alpha/n,
    the next against alpha/(n - 1), and so on until one is not, after which none is.
    """
    thresholds: dict[str, float] = {}
    stopped = False
    ordered = sorted(p_values, key=lambda name: (p_values[name], name))
    for rank, name in enumerate(ordered):
        level = alpha / (len(ordered) - rank)
        thresholds[name] = -1.0 if stopped else level
        stopped = stopped or p_values[name] > level
    return thresholds


def benjamini_hochberg(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values that hold the share of false discoveries (Benjamini and Hochberg 1995)."""
    ordered = sorted(p_values, key=lambda name: p_values[name], reverse=True)
    adjusted: dict[str, float] = {}
    least = 1.0
    for position, name in enumerate(ordered):
        least = min(least, p_values[name] * len(ordered) / (len(ordered) - position))
        adjusted[name] = least
    return adjusted


def overall(gates: Sequence[Verdict]) -> Verdict:
    """The verdict of all gates: one that is worse decides, else one that is undecided, else better or pass.

    That all pass needs no correction, since each of them must (intersection-union).
    """
    if not gates:
        return "inconclusive"
    if "worse" in gates:
        return "worse"
    if "inconclusive" in gates or "not_comparable" in gates:
        return "inconclusive"
    return "better" if "better" in gates else "pass"


# --- how long ---


def blocks_needed(spread: float, margin: float, *, boot_error: float = 0.0) -> float:
    """Blocks until a candidate without any difference passes in four runs of five; inf where none suffice.

    spread: standard deviation of a block's difference. From t quantiles at the count itself, by iteration.
    """
    if margin <= 0:
        return math.inf
    count = 4.0
    for _ in range(50):
        degrees = max(count - 1, 1.0)
        reach = float(stats.t.ppf(PASS_CONFIDENCE, degrees)) + float(stats.t.ppf(POWER, degrees))
        room = (margin / reach) ** 2 - boot_error**2
        if room <= 0:
            return math.inf
        following = max(spread**2 / room, 2.0)
        if abs(following - count) < 0.01:
            break
        count = following
    return math.ceil(count)


# --- a band for looking at any time ---


def sequence_half_width(count: int, standard_deviation: float, *, alpha: float = 0.05) -> float:
    """Half the width of the band around the mean of `count` blocks that holds at all counts at once.

    Asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (arXiv 2103.06476,
    equation for AsympCS), narrowest at BAND_BLOCKS, times t over z for small counts. It must run on from
    the experiment's start: over a sliding window it does not hold.
    """
    if count < 2:
        return math.inf
    rho_squared = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / BAND_BLOCKS
    scaled = count * rho_squared
    width = standard_deviation * math.sqrt(
        2 * (scaled + 1) / (count**2 * rho_squared) * math.log(math.sqrt(scaled + 1) / alpha)
    )
    small = float(stats.t.ppf(1 - alpha / 2, count - 1)) / float(stats.norm.ppf(1 - alpha / 2))
    return width * small


# --- rare events ---


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRatio:
    """The ratio of two rates of rare events, candidate over baseline, with bounds.

    ratio: nan where neither arm has any. dispersion: how much more the counts of blocks vary than by chance
    alone.
    """

    ratio: float
    lower: float
    upper: float
    p_worse: float
    dispersion: float


def rate_ratio(
    baseline_events: Floats,
    baseline_exposure: Floats,
    candidate_events: Floats,
    candidate_exposure: Floats,
    *,
    confidence: float = 0.95,
) -> RateRatio:
    """Rates compared by the exact conditional binomial of their totals (Clopper and Pearson 1934).

    Events that come in bursts make counts vary more than Poisson's: totals are divided by that dispersion
    first.
    """
    dispersion = max(
        _dispersion(baseline_events, baseline_exposure), _dispersion(candidate_events, candidate_exposure)
    )
    exposed = float(candidate_exposure.sum()), float(baseline_exposure.sum())
    candidate, baseline = float(candidate_events.sum()), float(baseline_events.sum())
    if candidate + baseline == 0 or min(exposed) <= 0:
        return RateRatio(ratio=math.nan, lower=0.0, upper=math.inf, p_worse=1.0, dispersion=1.0)
    few_candidate, few_baseline = candidate / dispersion, baseline / dispersion
    share = exposed[0] / (exposed[0] + exposed[1])
    tail = (1 - confidence) / 2
    # Clopper-Pearson by the beta distribution, which takes the fractions that the dispersion leaves.
    low = float(stats.beta.ppf(tail, few_candidate, few_baseline + 1)) if few_candidate > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, few_candidate + 1, few_baseline)) if few_baseline > 0 else 1.0
    p_worse = float(stats.beta.cdf(share, few_candidate, few_baseline + 1)) if few_candidate > 0 else 1.0
    turn = exposed[1] / exposed[0]

    def odds(chance: float) -> float:
        return math.inf if chance >= 1 else chance / (1 - chance) * turn

    return RateRatio(
        ratio=odds(candidate / (candidate + baseline)),
        lower=odds(low),
        upper=odds(high),
        p_worse=p_worse,
        dispersion=dispersion,
    )


def _dispersion(events: Floats, exposure: Floats) -> float:
    """Pearson's chi-square of the blocks over its degrees of freedom; never below 1."""
    expected = events.sum() * exposure / exposure.sum() if exposure.sum() > 0 else exposure
    counted = expected > 0
    if counted.sum() < 2:
        return 1.0
    chi_square = float((((events - expected) ** 2)[counted] / expected[counted]).sum())
    return max(1.0, chi_square / (int(counted.sum()) - 1))
