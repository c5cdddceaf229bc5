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


def growth(counter: Series) -> Series:
    """What a counter grew by since the sample before; after a fall, all that it shows is growth.

    A sample that is no number is passed over, as if it had not been taken.
    """
    counter = finite(counter)
    if len(counter.times) < 2:
        return EMPTY
    steps = np.diff(counter.values)
    steps = np.where(steps < 0, counter.values[1:], steps)
    return Series(counter.times[1:], steps)


def resets(counter: Series) -> Floats:
    """The times at which a counter fell."""
    counter = finite(counter)
    return counter.times[1:][np.diff(counter.values) < 0] if len(counter.times) > 1 else np.empty(0)


def total_growth(parts: Iterable[Series]) -> Series:
    """The growth of several counters together, each with its own resets."""
    grown = [growth(part) for part in parts]
    grown = [part for part in grown if len(part.times)]
    if not grown:
        return EMPTY
    times = np.unique(np.concatenate([part.times for part in grown]))
    steps = np.zeros(len(times))
    for part in grown:
        steps[np.searchsorted(times, part.times)] += part.values
    return Series(times, steps)


# --- stretches of time ---


def in_stretches(steps: Series, edges: Floats) -> Floats:
    """The sum of steps within each stretch (after one edge, up to the next)."""
    places = np.searchsorted(steps.times, edges, side="right")
    running = np.concatenate([[0.0], np.cumsum(steps.values)])
    return np.diff(running[places])


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
