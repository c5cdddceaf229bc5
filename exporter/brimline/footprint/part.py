"""One line of an estimate: how much memory, and by what formula."""

from __future__ import annotations

from dataclasses import dataclass

from brimline.estimate import Estimate


@dataclass(frozen=True, slots=True)
class Part:
    """A component of an estimate. formula: for people, with its numbers filled in."""

    name: str
    size: Estimate
    formula: str
