"""From the differences of blocks to a verdict: intervals, multiplicity, bounds for looking at any time.

Everything is on the scale of *harm*: the logarithm of candidate over baseline, with the sign turned where
more is better, so that 0 is no difference and above 0 is worse. A block is a stretch of time long enough
for blocks to be nearly independent; scrapes within it are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

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


def t_quantile(confidence: float, degrees: float) -> float:
    """The quantile of Student's t distribution."""
    return float(special.stdtrit(degrees, confidence))


class Bounded(Protocol):
    """A difference with what it is known to: what a verdict needs of it."""

    @property
    def harm(self) -> float:
        """The estimate."""

    @property
    def p_worse(self) -> float:
        """Probability of so much harm or more where there is none."""

    def bound(self, confidence: float, *, upper: bool) -> float:
        """A one-sided bound of the harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A difference with what it is known to.

    harm: the estimate. standard_error, degrees: of a t distribution. boot_error: what one boot more or less
    would move, which is in no block of this run. blocks: the values behind it, one each. sequential: bounds
    that hold at all counts of blocks at once, so that looking at each of them is allowed. of_servers: known
    from how far servers lie apart, which more blocks do not change.
    """

    harm: float
    standard_error: float
    degrees: float
    boot_error: float = 0.0
    blocks: Floats
    sequential: bool = False
    of_servers: bool = False

    @property
    def error(self) -> float:
        """Standard error with that of the boots."""
        return math.hypot(self.standard_error, self.boot_error)

    def reach(self, confidence: float) -> float:
        """From the estimate to a one-sided bound."""
        fixed = t_quantile(confidence, self.degrees)
        if not self.sequential:
            return fixed * self.error
        # Boots do not come anew with every look.
        looked_at = sequence_factor(len(self.blocks), alpha=2 * (1 - confidence), degrees=self.degrees)
        return math.hypot(looked_at * self.standard_error, fixed * self.boot_error)

    def bound(self, confidence: float, *, upper: bool) -> float:
        """A one-sided bound of the harm."""
        return self.harm + self.reach(confidence) if upper else self.harm - self.reach(confidence)

    @property
    def p_worse(self) -> float:
        """Probability of so much harm or more where there is none."""
        if self.error == 0.0:
            return 0.0 if self.harm > 0 else 1.0
        if not self.sequential:
            return float(special.stdtr(self.degrees, -self.harm / self.error))
        return _p_of(lambda tail: self.harm > self.reach(1 - tail))


def _p_of(excluded: Callable[[float], bool]) -> float:
    """The smallest tail probability, by halving, at which the bound still excludes no harm; else 1."""
    low, high = math.log(1e-12), math.log(0.5)
    if not excluded(math.exp(high)):
        return 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if excluded(math.exp(middle)) else (middle, high)
    return math.exp(high)


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
    return first if first.reach(0.975) >= second.reach(0.975) else second


# --- verdicts ---


def verdict_of(estimate: Bounded, margin: float, *, p_threshold: float = 1 - WORSE_CONFIDENCE) -> Verdict:
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


# Of blocks of a quarter of an hour a hundred years.
_MOST_BLOCKS = 4_000_000


def blocks_needed(
    spread: float,
    margin: float,
    *,
    boot_error: float = 0.0,
    power: float = POWER,
    sequential: bool = False,
) -> float:
    """Blocks until a candidate without any difference passes in so many of all runs; inf where none suffice.

    spread: standard deviation of a block's difference. sequential: by bounds that may be looked at any time.
    """

    def suffice(count: int) -> bool:
        error = spread / math.sqrt(count)
        fixed = t_quantile(PASS_CONFIDENCE, count - 1)
        looked_at = sequence_factor(count, alpha=2 * (1 - PASS_CONFIDENCE)) if sequential else fixed
        bound = math.hypot(looked_at * error, fixed * boot_error)
        return bound + t_quantile(power, count - 1) * math.hypot(error, boot_error) <= margin

    return _fewest(suffice)


def _fewest(suffice: Callable[[int], bool]) -> float:
    """The smallest count, from 2 on, that suffices, where more always do as well; inf where none does."""
    low, high = 1, 2
    while not suffice(high):
        low, high = high, 2 * high
        if high > _MOST_BLOCKS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffice(middle) else (middle, high)
    return high


# --- a band for looking at any time ---


def sequence_factor(
    count: int, *, alpha: float = 0.05, degrees: float | None = None, best_at: int = BAND_BLOCKS
) -> float:
    """How many standard errors the band around a mean of blocks reaches that holds at all counts at once.

    Asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (arXiv 2103.06476,
    theorem 2.2), narrowest at BAND_BLOCKS for alpha 0.05, times t over z for small counts. It must run on
    from the experiment's start: over a sliding window it does not hold.
    """
    if count < 2:
        return math.inf
    # Their equation for the rho that is best at one count (as GrowthBook computes it,
    # docs/statistics/sequential).
    rho_squared = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / best_at
    scaled = count * rho_squared
    normal = math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))
    tail = min(alpha / 2, 0.5 - 1e-9)
    small = t_quantile(1 - tail, count - 1 if degrees is None else degrees) / float(-special.ndtri(tail))
    return normal * max(small, 1.0)


def lasting_factor(block_length: float, time_constant: float) -> float:
    """By how much the error of a mean of blocks is larger than their spread says, for noise that lasts.

    The variance of a mean over a long time of noise with correlation exp(-t / time_constant), over what the
    variance of its block means would make it: blocks of six time constants are still a little alike, and
    looking at each of them adds that up.
    """
    share = time_constant / block_length
    return 1 / math.sqrt(1 - share * -math.expm1(-1 / share))


# --- rare events ---


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRatio:
    """The ratio of two rates of rare events, candidate over baseline.

    baseline, candidate: events. exposure: of the candidate over the baseline's. dispersion: how much more the
    shares of the blocks vary than by chance alone. degrees: of what that is known from. looks: blocks, where
    bounds are to hold at all counts of them; else 0.
    """

    baseline: float
    candidate: float
    exposure: float
    dispersion: float
    degrees: float
    looks: int = 0

    @property
    def ratio(self) -> float:
        """nan where neither arm has any event, infinite where the baseline alone has none."""
        if self.baseline == 0:
            return math.inf if self.candidate > 0 else math.nan
        return self.candidate / self.baseline / self.exposure

    @property
    def harm(self) -> float:
        ratio = self.ratio
        if math.isnan(ratio):
            return 0.0
        return math.log(ratio) if ratio > 0 else -math.inf

    def bound(self, confidence: float, *, upper: bool) -> float:
        """By the exact interval of a binomial share (Clopper and Pearson 1934)."""
        counts = self.candidate / self.dispersion, self.baseline / self.dispersion
        if counts[1 if upper else 0] == 0:
            return math.inf if upper else -math.inf
        if self.looks:
            reach = sequence_factor(self.looks, alpha=2 * (1 - confidence), degrees=self.degrees)
        else:
            reach = t_quantile(confidence, self.degrees)
        # That level of a normal distribution reaches as far as the t distribution at the wanted one.
        tail = max(float(special.ndtr(-reach)), 1e-300)
        if upper:
            chance = float(special.betainccinv(counts[0] + 1, counts[1], tail))
        else:
            chance = float(special.betaincinv(counts[0], counts[1] + 1, tail))
        if chance <= 0 or chance >= 1:
            return -math.inf if chance <= 0 else math.inf
        return math.log(chance / (1 - chance) / self.exposure)

    @property
    def p_worse(self) -> float:
        if self.candidate == 0:
            return 1.0
        return _p_of(lambda tail: self.bound(1 - tail, upper=False) > 0)


def rate_ratio(
    baseline_events: Floats,
    baseline_exposure: Floats,
    candidate_events: Floats,
    candidate_exposure: Floats,
    *,
    groups: Sequence[tuple[Floats, Floats]] = (),
    looks: int = 0,
) -> RateRatio:
    """Rates compared by the share of all events that the candidate has, given how many there were.

    Whatever moves both arms at once drops out of that share. Events that come in bursts make the shares of
    blocks vary more than a binomial's, so that events are divided by that dispersion (quasi-likelihood,
    McCullagh and Nelder 1989, section 4.5), which itself is known from few blocks only: hence t. groups:
    events and exposure of each replica of an arm, where there are at least three; the larger dispersion
    counts.
    """
    total = float(baseline_exposure.sum()), float(candidate_exposure.sum())
    exposure = total[1] / total[0] if min(total) > 0 else 1.0
    dispersion, degrees = _dispersion_of_shares(
        candidate_events, candidate_events + baseline_events, candidate_exposure, baseline_exposure
    )
    for events, exposed in groups:
        among, among_degrees = _dispersion_of_counts(events, exposed)
        if among > dispersion:
            dispersion, degrees = among, among_degrees
    return RateRatio(
        baseline=float(baseline_events.sum()),
        candidate=float(candidate_events.sum()),
        exposure=exposure,
        dispersion=dispersion,
        degrees=degrees,
        looks=looks,
    )


def rare_blocks_needed(
    events_per_block: float,
    margin: float,
    *,
    exposure: float = 1.0,
    dispersion: float = 1.0,
    power: float = POWER,
    sequential: bool = False,
) -> float:
    """Blocks until a candidate whose rate is the baseline's passes in so many of all runs.

    events_per_block: of both arms together. exposure: the candidate's over the baseline's. How many of the
    events of so many blocks are the candidate's is binomial; of events in bursts, as of so many fewer. inf
    where no event ever comes.
    """
    chance = exposure / (1 + exposure)

    def suffice(count: int) -> bool:
        total = count * events_per_block / dispersion
        most = _most_that_pass(total, margin, exposure, count, sequential)
        if most < 0:
            return False
        # Events come whole; the beta function also takes the fractions that they are divided into.
        most = math.floor(most * dispersion + 1e-9) / dispersion
        return most >= total or float(special.betainc(total - most, most + 1, 1 - chance)) >= power

    return _fewest(suffice)


def _most_that_pass(total: float, margin: float, exposure: float, blocks: int, sequential: bool) -> float:
    """Of so many events the most that the candidate may have to pass; negative where none would."""

    def passes(candidate: float) -> bool:
        rates = RateRatio(
            baseline=total - candidate,
            candidate=candidate,
            exposure=exposure,
            dispersion=1.0,
            degrees=blocks - 1,
            looks=blocks if sequential else 0,
        )
        return rates.bound(PASS_CONFIDENCE, upper=True) < margin

    low, high = 0.0, total
    if not passes(low):
        return -1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def rare_blocks_to_decide(rates: RateRatio, blocks: int, margin: float) -> float:
    """Blocks until these rates, if they stay what they are, pass or are worse; inf where neither ever is."""

    def decided(count: int) -> bool:
        share = count / blocks
        grown = replace(
            rates,
            baseline=rates.baseline * share,
            candidate=rates.candidate * share,
            degrees=rates.degrees if rates.degrees >= _CERTAIN else count - 1,
            looks=count if rates.looks else 0,
        )
        if rates.harm > margin:
            return grown.bound(WORSE_CONFIDENCE, upper=False) > 0
        return grown.bound(PASS_CONFIDENCE, upper=True) < margin

    return _fewest(decided)


_CERTAIN = 1e6  # degrees of freedom of what need not be estimated
# Of fewer blocks with events, an arm does not show how its events come.
LEAST_EVENT_BLOCKS = 6


def _dispersion_of_shares(
    candidate: Floats, events: Floats, candidate_exposure: Floats, baseline_exposure: Floats
) -> tuple[float, float]:
    """By how much the blocks' shares vary more than by chance, and from how many degrees; never below 1.

    Where both arms had events in enough blocks: Pearson's chi-square over its degrees of freedom, about the
    share that all blocks have in common. Where one had them in few, that share lies at its end, where it
    takes a burst for an effect. Then the larger: how far the blocks lie from the share without any
    difference, which makes a burst count once, however many events are in it. (That is the variance of all
    ways to give each block's events to the other arm, so that it holds for few blocks, too.)
    """
    counted = (events > 0) & (candidate_exposure > 0) & (baseline_exposure > 0)
    blocks = int(counted.sum())
    if blocks == 0:
        return 1.0, _CERTAIN
    candidate, events = candidate[counted], events[counted]
    odds = candidate_exposure[counted] / baseline_exposure[counted]
    seen = min(int((candidate > 0).sum()), int((events > candidate).sum()))
    dispersion, degrees = 1.0, _CERTAIN
    if seen > 0 and blocks > 1:
        ratio = _common_ratio(float(candidate.sum()), events, odds)
        share = ratio * odds / (1 + ratio * odds)
        chi_square = float(((candidate - events * share) ** 2 / (events * share * (1 - share))).sum())
        dispersion, degrees = max(1.0, chi_square / (blocks - 1)), float(blocks - 1)
    if seen < LEAST_EVENT_BLOCKS:
        share = odds / (1 + odds)
        apart = float(((candidate - events * share) ** 2).sum() / (events * share * (1 - share)).sum())
        if apart >= dispersion:
            dispersion, degrees = apart, _CERTAIN
    return dispersion, degrees


def _common_ratio(candidate: float, events: Floats, odds: Floats) -> float:
    """The ratio of rates at which the blocks' expected shares add up to the candidate's events."""
    low, high = -30.0, 30.0
    for _ in range(80):
        middle = (low + high) / 2
        expected = float((events * odds / (odds + math.exp(-middle))).sum())
        low, high = (middle, high) if expected < candidate else (low, middle)
    return math.exp(low)


def _dispersion_of_counts(events: Floats, exposure: Floats) -> tuple[float, float]:
    """The same for counts that ought to be in proportion to exposure."""
    if len(events) < 2 or events.sum() <= 0 or np.any(exposure <= 0):
        return 1.0, _CERTAIN
    expected = events.sum() * exposure / exposure.sum()
    chi_square = float(((events - expected) ** 2 / expected).sum())
    return max(1.0, chi_square / (len(events) - 1)), float(len(events) - 1)
