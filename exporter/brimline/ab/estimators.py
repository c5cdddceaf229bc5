"""Differences of two arms by kind of metric, from their sums in each block of time.

An arm's value of a block is a ratio of sums over its replicas, never a mean of ratios. `harm` is the
logarithm of candidate over baseline, with the sign turned where more is better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from brimline.ab.inference import Estimate, Floats, of_blocks

# Below this spread (of a logarithm) of an arm's load, its slope cannot be told.
LEAST_LOAD_SPREAD = 0.01


class NotEnough(ValueError):  # noqa: N818 - it is no error of the program: the text says what is missing
    """Too little to compare; the text says what."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm in each block. load: what was asked of one of its replicas; nan where that is not known."""

    values: Floats
    load: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A difference. places: the blocks that it is from. slope: of the log metric over the log load."""

    estimate: Estimate
    places: tuple[int, ...]
    slope: float = 0.0


def log_of(values: Floats) -> Floats:
    """The logarithm; nan where a value is not above zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), np.nan)


def intensity(baseline: Arm, candidate: Arm, *, more_is_better: bool, boot_error: float) -> Compared:
    """The mean of the blocks' log-ratios. Raises NotEnough for fewer than two of them."""
    differences = log_of(candidate.values) - log_of(baseline.values)
    places = np.flatnonzero(np.isfinite(differences))
    if len(places) < 2:
        raise NotEnough(f"{len(places)} blocks in which both arms had anything to count; two are needed")
    kept = differences[places]
    estimate = of_blocks(-kept if more_is_better else kept, boot_error=boot_error)
    return Compared(estimate=estimate, places=tuple(int(place) for place in places))


def affine(baseline: Arm, candidate: Arm, *, more_is_better: bool, boot_error: float) -> Compared:
    """The difference at equal load, for metrics with a fixed part and one that grows with load.

    Least squares of the log of a block's value on arm and log load, over the blocks of both arms; the error
    is that of leaving out each block (of both arms) in turn, the jackknife (Miller 1974; with few clusters
    nearer the truth than the sandwich, MacKinnon and White 1985), with one degree of freedom less for the
    slope. Loads of whole blocks, because those of minutes are noise to a good part and a noisy load is
    adjusted for too little (docs/ab.md). Raises NotEnough.
    """
    values = np.stack([log_of(baseline.values), log_of(candidate.values)])
    load = np.stack([log_of(baseline.load), log_of(candidate.load)])
    places = np.flatnonzero(np.isfinite(values).all(axis=0) & np.isfinite(load).all(axis=0))
    if len(places) < 4:
        raise NotEnough(f"{len(places)} blocks in which both arms had traffic; four are needed")
    values, load = values[:, places], load[:, places]
    centred = load - load.mean()
    count = len(places)
    columns = [np.ones_like(values), np.stack([np.zeros(count), np.ones(count)])]
    spread = math.sqrt(float(load.var(axis=1, ddof=1).mean()))
    with_load = spread >= LEAST_LOAD_SPREAD
    if with_load:
        columns.append(centred)
    elif abs(float(np.diff(load.mean(axis=1))[0])) > 2 * LEAST_LOAD_SPREAD:
        raise NotEnough("the arms' loads differ and never vary, so that nothing says what the load does")
    design = np.stack(columns, axis=-1)
    squares = np.einsum("abi,abj->bij", design, design)
    products = np.einsum("abi,ab->bi", design, values)
    whole = np.linalg.solve(squares.sum(axis=0), products.sum(axis=0))
    try:
        without = np.linalg.solve(squares.sum(axis=0) - squares, (products.sum(axis=0) - products)[..., None])
    except np.linalg.LinAlgError:
        raise NotEnough("one block alone decides what the load does; more blocks are needed") from None
    sign = -1.0 if more_is_better else 1.0
    harm = sign * float(whole[1])
    # Tukey's pseudo-values: what each block says of the difference.
    blocks = count * harm - (count - 1) * sign * without[:, 1, 0]
    estimate = Estimate(
        harm=harm,
        standard_error=float(np.std(blocks, ddof=1)) / math.sqrt(count),
        degrees=count - 1 - int(with_load),
        boot_error=boot_error,
        blocks=blocks,
    )
    return Compared(
        estimate=estimate,
        places=tuple(int(place) for place in places),
        slope=float(whole[2]) if with_load else 0.0,
    )


def load_overlap(baseline: Floats, candidate: Floats) -> float:
    """The share of the two arms' ranges of load (5th to 95th percentile) that both were under; 0 to 1."""
    arms = [arm[np.isfinite(arm)] for arm in (baseline, candidate)]
    if min(len(arm) for arm in arms) == 0:
        return math.nan
    first, second = (np.percentile(arm, [5, 95]) for arm in arms)
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
    if len(bounds) == 0 or not counts[-1] > 0:
        return math.nan, math.nan
    rank = quantile * counts[-1]
    place = int(np.searchsorted(counts, rank))
    if place >= len(bounds) - 1 or not np.isfinite(bounds[place]):
        return math.nan, math.nan
    low = bounds[place - 1] if place else 0.0
    before = counts[place - 1] if place else 0.0
    inside = counts[place] - before
    value = low + (bounds[place] - low) * ((rank - before) / inside if inside > 0 else 1.0)
    return float(value), float((bounds[place] - low) / value) if value > 0 else math.nan
