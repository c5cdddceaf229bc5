"""How long a comparison takes, as people and programs read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brimline import units
from brimline.ab.experiment import Experiment
from brimline.ab.needed import Needed, longest
from brimline.compared import wording
from brimline.fitted_table import print_table

SCHEMA_VERSION = 1
NEVER = "no time suffices"


def print_needed(
    experiment: Experiment, rows: Sequence[Needed], hours: float | None, source: str, console: Console
) -> None:
    """Print a row for each metric, and how long until all gates can be decided."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for place, heading in enumerate(("metric", "margin", "noise of a block", "blocks", "time")):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=place > 0)
    for row in rows:
        table.add_row(
            Text(f"{'* ' if row.metric.gate else '  '}{wording.plain(row.metric.title)}"),
            f"{row.metric.margin * 100:.3g} %",
            _noise(row),
            "–" if row.blocks is None else NEVER if math.isinf(row.blocks) else f"{row.blocks:.0f}",
            "–" if row.hours is None else "" if math.isinf(row.hours) else wording.hours(row.hours),
        )
    length = units.format_duration(experiment.block_length)
    console.print(Text(f"{wording.plain(experiment.name)}: blocks of {length}; noise from {source}"))
    print_table(table, console)
    console.print("* a gate. Time until a candidate that differs by nothing passes in four runs of five.")
    for line in sentences(experiment, rows, hours):
        console.print(Text(line))


def sentences(experiment: Experiment, rows: Sequence[Needed], hours: float | None) -> list[str]:
    """What the table comes to."""
    said = []
    if hours is None:
        unknown = [
            row.metric.name
            for row in rows
            if row.metric.gate and row.metric.kind != "rare" and row.hours is None
        ]
        said.append(f"The noise of {', '.join(unknown)} is not known: give --noise, or more history.")
    elif math.isinf(hours):
        said.append(
            f"For a gate no time suffices: one boot deviates by {experiment.boot_deviation:.1%} "
            "(boot_deviation). Run three servers of each variant, let them change places half-way, or widen "
            "the margin."
        )
    else:
        said.append(f"All gates: {wording.hours(hours)} of both variants at once, warm-up included.")
        watched = longest(tuple(rows), watched=True)
        if watched is not None and math.isfinite(watched):
            said.append(
                f"Looked at after every block (`ab watch`, `ab run --sequential`): {wording.hours(watched)}."
            )
    if unknown := [row.metric.title for row in rows if row.metric.kind == "rare" and row.hours is None]:
        said.append(
            f"How many events there will be is not known ({', '.join(unknown)}): "
            "none at all pass, few take long."
        )
    return said


def _noise(row: Needed) -> str:
    if row.events_per_block is not None:
        return f"{row.events_per_block:.3g} events"
    return "–" if row.block_deviation is None else f"{row.block_deviation * 100:.1f} %"


def as_json(
    experiment: Experiment, rows: Sequence[Needed], hours: float | None, source: str
) -> dict[str, Any]:
    """The plan in its published form. hours: null where not known, or where `enough` is false."""

    def finite(value: float | None) -> float | None:
        return None if value is None or math.isinf(value) else value

    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment.name,
        "block_seconds": experiment.block_length,
        "noise_from": source,
        "hours": finite(hours),
        "hours_watched": finite(longest(tuple(rows), watched=True)),
        "enough": None if hours is None else not math.isinf(hours),
        "metrics": [
            {
                "name": row.metric.name,
                "gate": row.metric.gate,
                "margin_ratio": row.metric.margin,
                "block_deviation": row.block_deviation,
                "events_per_block": row.events_per_block,
                "blocks": finite(row.blocks),
                "hours": finite(row.hours),
                "hours_watched": finite(row.hours_watched),
                "enough": None if row.hours is None else not math.isinf(row.hours),
            }
            for row in rows
        ],
    }
