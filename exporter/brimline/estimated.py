"""Estimates of training and of embeddings as people read them, and their published JSON form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from brimline import units
from brimline.estimate import Estimate, total
from brimline.fitted_table import print_table
from brimline.footprint.part import Part

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """One estimate: its parts, and the memory that they must fit; capacity is None where none was named.

    title: what it is of. where: whose memory it is. assumptions: what was taken for granted, a sentence each.
    """

    title: str
    where: str
    parts: tuple[Part, ...]
    capacity: Estimate | None = None
    assumptions: tuple[str, ...] = ()

    @property
    def total(self) -> Estimate:
        """All parts together."""
        return total((part.size for part in self.parts), "sum of the parts")

    @property
    def fits(self) -> bool | None:
        """Whether it fits, by the high bounds; None without a capacity."""
        return None if self.capacity is None else self.total.high <= self.capacity.low

    @property
    def headroom_bytes(self) -> int | None:
        """What stays free by what is expected; negative where too little is there."""
        return None if self.capacity is None else self.capacity.expected - self.total.expected


def as_json(estimated: Estimated) -> dict[str, Any]:
    """The published form: bytes, and null for what is not known."""
    return {
        "schema_version": SCHEMA_VERSION,
        "where": estimated.where,
        "components": {
            part.name.replace(" ", "_"): {**_bounds(part.size), "formula": part.formula}
            for part in estimated.parts
        },
        "total": _bounds(estimated.total),
        "capacity_bytes": None if estimated.capacity is None else estimated.capacity.expected,
        "fits": estimated.fits,
        "headroom_bytes": estimated.headroom_bytes,
        "assumptions": list(estimated.assumptions),
    }


def _bounds(estimate: Estimate) -> dict[str, Any]:
    return {
        "low": estimate.low,
        "expected": estimate.expected,
        "high": estimate.high,
        "source": estimate.source,
    }


def print_estimated(estimated: Estimated, console: Console) -> None:
    """Print the parts with their formulas, the total, and whether it fits."""
    table = Table(title=estimated.title, title_justify="left")
    table.add_column("component")
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("GB", justify="right", no_wrap=True)
    table.add_column("low to high", justify="right", no_wrap=True)
    table.add_column("formula", overflow="fold")
    for part in estimated.parts:
        table.add_row(part.name, *_sizes(part.size), part.formula)
    table.add_section()
    table.add_row("total", *_sizes(estimated.total), "")
    print_table(table, console)
    console.print(estimated.where)
    if estimated.capacity is not None and estimated.headroom_bytes is not None:
        room = units.format_bytes(estimated.capacity.expected)
        left = units.format_bytes(abs(estimated.headroom_bytes))
        if estimated.fits:
            said = f"fits; {left} of {room} stay free"
        elif estimated.headroom_bytes < 0:
            said = f"DOES NOT FIT: {left} more than {room}"
        else:
            said = f"DOES NOT FIT by the high bounds; {left} of {room} stay free by what is expected"
        console.print(said)
    for assumption in estimated.assumptions:
        console.print(f"! {assumption}")


def _sizes(size: Estimate) -> Sequence[str]:
    span = "" if size.is_exact else f"{units.format_bytes(size.low)} – {units.format_bytes(size.high)}"
    return (f"{size.expected / (1 << 30):,.2f}", f"{size.expected / 1e9:,.2f}", span)


def print_comparison(rows: Sequence[tuple[str, Estimated]], console: Console) -> None:
    """Print one line for each of several estimates."""
    table = Table(title=rows[0][1].title, title_justify="left")
    table.add_column("type")
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("GB", justify="right", no_wrap=True)
    table.add_column("low to high", justify="right", no_wrap=True)
    table.add_column("formula", overflow="fold")
    table.add_column("fits")
    for name, estimated in rows:
        formula = " + ".join(part.formula for part in estimated.parts)
        fits = {True: "yes", False: "NO", None: "–"}[estimated.fits]
        table.add_row(name, *_sizes(estimated.total), formula, fits)
    print_table(table, console)
    console.print(rows[0][1].where)
    for assumption in dict.fromkeys(line for _, estimated in rows for line in estimated.assumptions):
        console.print(f"! {assumption}")
