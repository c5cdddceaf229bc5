"""Raw samples of a server, cut into stretches of time: what counters grew by, what gauges were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one quantity of one server. times: seconds since the epoch, rising."""

    times: Floats
    values: Floats

    def __repr__(self) -> str:
        # asyncio.run of Python 3.11 takes its result's, and writing out a day of samples costs a second.
        return f"Series({len(self.times)} samples)"


EMPTY = Series(np.empty(0), np.empty(0))

# Of usual scrape intervals: two samples further apart than this have a gap between them.
GAP_INTERVALS = 2.5


@dataclass(frozen=True, slots=True, repr=False)
class Growth(Series):
    """What counters grew by, from one sample to the next; a step stands at its later sample.

    over_gaps: apart from those, what they grew by from one time to another without a sample in between.
    """

    over_gaps: tuple[tuple[float, float, float], ...] = ()


NO_GROWTH = Growth(np.empty(0), np.empty(0))


def summed(parts: Sequence[Series]) -> Series:
    """The parts (ranks, models) added up, at each time that all of them have that were there then.

    A scrape reads all parts at once: one that is missing between its first and last sample makes the sum
    unknown, one that begins later or ended before is no part of it.
    """
    parts = [part for part in parts if len(part.times)]
    if len(parts) <= 1:
        return parts[0] if parts else EMPTY
    times = np.unique(np.concatenate([part.times for part in parts]))
    values = np.zeros(len(times))
    known = np.ones(len(times), dtype=bool)
    for part in parts:
        there = np.zeros(len(times), dtype=bool)
        places = np.searchsorted(times, part.times)
        there[places] = True
        values[places] += part.values
        known &= there | (times < part.times[0]) | (times > part.times[-1])
    return Series(times[known], values[known])


def largest(parts: Sequence[Series]) -> Series:
    """The largest of the parts at each time that any of them has: the fullest rank."""
    if len(parts) <= 1:
        return parts[0] if parts else EMPTY
    times = np.unique(np.concatenate([part.times for part in parts]))
    values = np.full(len(times), -np.inf)
    for part in parts:
        places = np.searchsorted(times, part.times)
        values[places] = np.maximum(values[places], part.values)
    return Series(times, values)


def finite(series: Series) -> Series:
    """The samples that are numbers."""
    known = np.isfinite(series.values)
    return series if known.all() else Series(series.times[known], series.values[known])


def growth(counter: Series) -> Growth:
    """What a counter grew by since the sample before; after a fall, all that it shows is growth.

    A sample that is no number is passed over, as if it had not been taken.
    """
    counter = finite(counter)
    if len(counter.times) < 2:
        return NO_GROWTH
    steps = np.diff(counter.values)
    steps = np.where(steps < 0, counter.values[1:], steps)
    waited = np.diff(counter.times)
    over_gap = waited > GAP_INTERVALS * np.median(waited)
    if not over_gap.any():
        return Growth(counter.times[1:], steps)
    gaps = zip(counter.times[:-1][over_gap], counter.times[1:][over_gap], steps[over_gap], strict=True)
    return Growth(
        counter.times[1:],
        np.where(over_gap, 0.0, steps),
        tuple((float(start), float(end), float(grown)) for start, end, grown in gaps),
    )


def resets(counter: Series) -> Floats:
    """The times at which a counter fell."""
    counter = finite(counter)
    return counter.times[1:][np.diff(counter.values) < 0] if len(counter.times) > 1 else np.empty(0)


def total_growth(parts: Iterable[Series]) -> Growth:
    """The growth of several counters together, each with its own resets and gaps."""
    grown = [growth(part) for part in parts]
    grown = [part for part in grown if len(part.times)]
    if not grown:
        return NO_GROWTH
    times = np.unique(np.concatenate([part.times for part in grown]))
    steps = np.zeros(len(times))
    for part in grown:
        steps[np.searchsorted(times, part.times)] += part.values
    return Growth(times, steps, tuple(gap for part in grown for gap in part.over_gaps))


def shifted(series: Series, seconds: float) -> Series:
    """The same so many seconds later."""
    times = series.times + seconds
    if isinstance(series, Growth):
        gaps = tuple((start + seconds, end + seconds, grown) for start, end, grown in series.over_gaps)
        return Growth(times, series.values, gaps)
    return Series(times, series.values)


# --- stretches of time ---


def in_stretches(steps: Series, edges: Floats) -> Floats:
    """The sum of steps within each stretch (after one edge, up to the next).

    Of what grew over a gap, each stretch has its part by time: when it grew is not known, and all of it in
    the stretch that the gap ends in would make that one's load many times what it was.
    """
    places = np.searchsorted(steps.times, edges, side="right")
    running = np.concatenate([[0.0], np.cumsum(steps.values)])
    sums = np.diff(running[places])
    for start, end, grown in steps.over_gaps if isinstance(steps, Growth) else ():
        sums += grown * np.diff(np.clip((edges - start) / (end - start), 0.0, 1.0))
    return sums


def mean_in_stretches(gauge: Series, edges: Floats) -> Floats:
    """The mean of a gauge's samples within each stretch; nan where there is none."""
    gauge = finite(gauge)
    places = np.searchsorted(gauge.times, edges, side="right")
    running = np.concatenate([[0.0], np.cumsum(gauge.values)])
    counts = np.diff(places)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.diff(running[places]) / counts
    return np.where(counts > 0, means, np.nan)


def samples_in_stretches(times: Floats, edges: Floats) -> Floats:
    """How many samples each stretch holds."""
    return np.diff(np.searchsorted(times, edges, side="right")).astype(float)


def coverage(times: Floats, edges: Floats, interval: float) -> Floats:
    """The share of the scrapes that each stretch should hold; more than 1 is cut to 1."""
    counts = samples_in_stretches(times, edges)
    wanted = np.maximum(np.diff(edges) / interval, 1.0)
    return np.minimum(counts / wanted, 1.0)


def scrape_interval(times: Iterable[Floats]) -> float:
    """The usual time between two samples; nan where there are none."""
    steps = [np.diff(one) for one in times if len(one) > 1]
    return float(np.median(np.concatenate(steps))) if steps else float("nan")


@dataclass(frozen=True, slots=True)
class Replica:
    """One server of an arm, as read over the window.

    counters: growth by quantity. gauges: by quantity. buckets: growth of each histogram bucket, by quantity
    and upper bound. resets: times at which its counters fell.
    """

    name: str
    counters: Mapping[str, Series]
    gauges: Mapping[str, Series]
    buckets: Mapping[str, Mapping[float, Series]]
    resets: Floats
