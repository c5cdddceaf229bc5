"""A predicted number with its bounds and the place it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from brimline.errors import FootprintError


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes, or a count, that a prediction expects, and the bounds it is believed to lie in.

    source: where the number comes from, for people: a live label, a launch flag, a file, a table.
    Raises FootprintError unless 0 <= low <= expected <= high.
    """

    low: int
    expected: int
    high: int
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.expected <= self.high:
            raise FootprintError(
                f"bounds {self.low}, {self.expected}, {self.high} ({self.source}) must rise from zero upwards"
            )

    @property
    def is_exact(self) -> bool:
        """True where the bounds leave no room."""
        return self.low == self.high


def exact(value: float, source: str) -> Estimate:
    """A number that is computed, not estimated; a fraction of a byte counts as a byte."""
    whole = math.ceil(value)
    return Estimate(whole, whole, whole, source)


def between(low: float, expected: float, high: float, source: str) -> Estimate:
    """A number within bounds; low is rounded down, the others up."""
    return Estimate(math.floor(low), math.ceil(expected), math.ceil(high), source)


def total(estimates: Iterable[Estimate], source: str) -> Estimate:
    """The sum of estimates; bounds add up, since what makes one of them wrong may make all of them wrong."""
    listed = list(estimates)
    return Estimate(
        sum(one.low for one in listed),
        sum(one.expected for one in listed),
        sum(one.high for one in listed),
        source,
    )
