"""Differences of two arms by kind of metric, one for each block of time.

An arm's block is the sum over its replicas: of numerators and denominators, never a mean of ratios. `harm`
is the logarithm of candidate over baseline, with the sign turned where more is better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from brimline.ab.inference import Estimate, Floats, of_blocks


class NotEnough(ValueError):  # noqa: N818 - it is no error of the program: the text says what is missing
    """Too little to compare; the text says what."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Sums of one arm in each block, and in each minute for metrics that depend on load.

    numerator, denominator: per block. minute_*: per minute, with `block_of` naming each minute's block.
    load: what was asked of a replica in each minute (requests or prompt tokens per second).
    """

    numerator: Floats
    denominator: Floats


def log_ratios(baseline: Arm, candidate: Arm, *, more_is_better: bool) -> Floats:
    """The block's log-ratio of ratios of sums; blocks in which either has nothing are left out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.log(candidate.numerator / candidate.denominator) - np.log(
            baseline.numerator / baseline.denominator
        )
    difference = np.asarray(difference[np.isfinite(difference)])
    return -difference if more_is_better else difference


def intensity(baseline: Arm, candidate: Arm, *, more_is_better: bool, boot_error: float) -> Estimate:
    """The mean of the blocks' log-ratios. Raises NotEnough for fewer than two of them."""
    differences = log_ratios(baseline, candidate, more_is_better=more_is_better)
    if len(differences) < 2:
        raise NotEnough(f"{len(differences)} blocks in which both arms had anything to count; two are needed")
    return of_blocks(differences, boot_error=boot_error)


@dataclass(frozen=True, slots=True)
class LoadedArm:
    """An arm's metric and the load it was under, in short stretches (minutes).

    values: the metric (a ratio of sums). load: offered load of a replica. block: which block each stretch
    is in.
    """

    values: Floats
    load: Floats
    block: Floats


def affine(baseline: LoadedArm, candidate: LoadedArm, *, more_is_better: bool, boot_error: float) -> Estimate:
    """The difference at equal offered load, for metrics with a fixed part and one that grows with load.

    Least squares of log value on arm, log load and its square, over both arms' stretches; its error from
    the mean influence of each block, so that what is alike within a block counts once. Raises NotEnough.
    """
    arms = (baseline, candidate)
    kept = [
        (arm.values > 0) & (arm.load > 0) & np.isfinite(arm.values) & np.isfinite(arm.load) for arm in arms
    ]
    values = np.concatenate([np.log(arm.values[keep]) for arm, keep in zip(arms, kept, strict=True)])
    load = np.concatenate([np.log(arm.load[keep]) for arm, keep in zip(arms, kept, strict=True)])
    block = np.concatenate([arm.block[keep] for arm, keep in zip(arms, kept, strict=True)])
    is_candidate = np.concatenate([np.full(int(keep.sum()), float(place)) for place, keep in enumerate(kept)])
    names = np.intersect1d(block[is_candidate == 0], block[is_candidate == 1])
    inside = np.isin(block, names)
    values, load, block, is_candidate = values[inside], load[inside], block[inside], is_candidate[inside]
    if len(names) < 3:
        raise NotEnough(f"{len(names)} blocks in which both arms had traffic; three are needed")
    centred = load - load.mean()
    design = np.column_stack([np.ones_like(values), is_candidate, centred, centred**2])
    if np.ptp(centred) < 1e-9:
        design = design[:, :2]
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    if rank < design.shape[1]:
        design = design[:, :2]
        solution = np.linalg.lstsq(design, values, rcond=None)[0]
    residuals = values - design @ solution
    influence = (np.linalg.pinv(design.T @ design) @ (design * residuals[:, None]).T)[1]
    of_block = np.array([influence[block == name].sum() for name in names]) * len(names)
    sign = -1.0 if more_is_better else 1.0
    differences = sign * (float(solution[1]) + of_block)
    # Two coefficients of load are estimated as well.
    degrees = max(len(names) - 1, 1)
    return Estimate(
        harm=sign * float(solution[1]),
        standard_error=float(np.std(differences, ddof=1)) / math.sqrt(len(names)),
        degrees=degrees,
        boot_error=boot_error,
        blocks=differences,
    )


def load_overlap(baseline: Floats, candidate: Floats) -> float:
    """The share of the two arms' ranges of load (5th to 95th percentile) that both were under; 0 to 1."""
    first, second = (np.percentile(arm[np.isfinite(arm)], [5, 95]) for arm in (baseline, candidate))
    common = min(first[1], second[1]) - max(first[0], second[0])
    whole = max(first[1], second[1]) - min(first[0], second[0])
    if whole <= 0:
        return 1.0
    return float(max(common, 0.0) / whole)


def quantile_of_buckets(bounds: Floats, counts: Floats, quantile: float) -> tuple[float, float]:
    """The quantile by linear interpolation within its bucket, and the bucket's width over it.

    bounds: upper bounds, rising, the last one infinite. counts: cumulative. (nan, nan) where nothing was
    counted or the quantile lies in the last bucket.
    """
    total = counts[-1]
    if not total > 0:
        return math.nan, math.nan
    rank = quantile * total
    place = int(np.searchsorted(counts, rank))
    if place >= len(bounds) - 1 or not np.isfinite(bounds[place]):
        return math.nan, math.nan
    low = bounds[place - 1] if place else 0.0
    before = counts[place - 1] if place else 0.0
    inside = counts[place] - before
    value = low + (bounds[place] - low) * ((rank - before) / inside if inside > 0 else 1.0)
    return float(value), float((bounds[place] - low) / value) if value > 0 else math.nan
